"""Who may use the control socket of the packaged agent, and what the journal keeps of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.box import Box
from tests.support.processes import eventually
from tests.systemd.conftest import agent_file

SOCKET = "/run/tunneld/control.sock"
#: Asks over a Unix socket: path, method, target, headers as JSON; prints the status and the body.
ASK = """
import http.client, json, socket, sys
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
connection = Connection("localhost")
connection.request(sys.argv[2], sys.argv[3], headers=json.loads(sys.argv[4]))
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode()]))
"""


@pytest.fixture(scope="module")
def agent(booted: Box) -> Iterator[Box]:
    """An agent without a server, two users beside it: one in its group, one not."""
    booted.revert()
    booted.sh(
        "id insider >/dev/null 2>&1 || useradd --create-home insider; usermod -aG tunneld insider;"
        "id visitor >/dev/null 2>&1 || useradd --create-home visitor"
    )
    booted.write("/usr/local/lib/ask.py", ASK)
    booted.configure("/etc/tunneld/tunneld.yaml", agent_file(control={"readonly_socket": "/run/tunneld/read.sock"}))
    booted.systemctl("start", "tunneld")
    yield booted
    booted.revert()


def ask(box: Box, method: str, target: str, path: str = SOCKET, **headers: str) -> tuple[int, str]:
    sent = json.dumps({name.replace("_", "-"): value for name, value in headers.items()})
    status, body = json.loads(box.run("python3", "-B", "/usr/local/lib/ask.py", path, method, target, sent).stdout)
    return status, body


def test_the_socket_is_the_groups(agent: Box) -> None:
    assert agent.sh(f"stat -c '%F %a %U:%G' {SOCKET} /run/tunneld/read.sock /run/tunneld").splitlines() == [
        "socket 660 tunneld:tunneld",
        "socket 660 tunneld:tunneld",
        "directory 750 tunneld:tunneld",
    ]


def test_a_user_in_the_group_may(agent: Box) -> None:
    done = agent.run("runuser", "-u", "insider", "--", "tunnelctl", "status")
    assert "demo" in done.stdout


def test_a_user_outside_is_told_which_group_to_join(agent: Box) -> None:
    done = agent.run("runuser", "-u", "visitor", "--", "tunnelctl", "status", check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith("join group tunneld (sudo usermod -aG tunneld visitor) and log in again")


def test_who_changes_what_is_in_the_journal(agent: Box) -> None:
    since = agent.now()
    uid = agent.sh("id -u insider").strip()
    agent.run("runuser", "-u", "insider", "--", "tunnelctl", "reload")
    eventually(lambda: bool(agent.journal(since, "--unit=tunneld", "PEER_USER=insider")), what="told who it was")
    (record,) = agent.journal(since, "--unit=tunneld", "PEER_USER=insider")
    assert record["PEER_UID"] == uid
    assert int(record["PEER_PID"]) > 0
    assert record["ACTION"] == "reload"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Host": "evil"}, 421),
    ],
    ids=["plain", "origin", "fetch", "host"],
)
def test_a_browser_is_refused(agent: Box, headers: dict[str, str], status: int) -> None:
    assert ask(agent, "GET", "/v1/status", **headers)[0] == status


def test_the_readonly_socket_shows_and_changes_nothing(agent: Box) -> None:
    assert ask(agent, "GET", "/v1/status", "/run/tunneld/read.sock")[0] == 200
    status, body = ask(agent, "POST", "/v1/drain", "/run/tunneld/read.sock")
    assert (status, json.loads(body)["code"]) == (403, "read_only")
    assert agent.run("tunnelctl", "--socket", "/run/tunneld/read.sock", "health", check=False).returncode in (1, 2)


def test_a_live_one_is_refused(agent: Box) -> None:
    pid = agent.pid("tunneld")
    done = agent.run("runuser", "-u", "tunneld", "--", "tunneld", "--config", "/etc/tunneld/tunneld.yaml", check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert f"already running as pid {pid}" in line
    assert agent.run("tunnelctl", "health", check=False).returncode in (1, 2)  # the live one is as it was


def test_a_stale_one_is_replaced(box: Box) -> None:
    box.configure("/etc/tunneld/tunneld.yaml", agent_file())
    box.systemctl("start", "tunneld")
    before = box.sh(f"stat -c %i {SOCKET}")
    box.systemctl("kill", "--signal=KILL", "tunneld")
    box.wait_for("tunneld", NRestarts="1", ActiveState="active", SubState="running")
    assert box.sh(f"stat -c %i {SOCKET}") != before
    assert "demo" in box.run("tunnelctl", "status").stdout


@pytest.mark.parametrize(
    ("make", "what"),
    [
        ("touch /run/tunneld/target; ln -s /run/tunneld/target", "is a symbolic link, which is not followed"),
        ("echo keep >", "exists and is not a socket"),
    ],
    ids=["symlink", "file"],
)
def test_what_stands_in_its_place_is_left_alone(box: Box, make: str, what: str) -> None:
    box.configure("/etc/tunneld/tunneld.yaml", agent_file())
    box.drop_in("tunneld.service", "[Service]\nRuntimeDirectoryPreserve=yes\n")
    box.sh(f"install -d -o tunneld -g tunneld -m 750 /run/tunneld; {make} {SOCKET}")
    since = box.now()
    try:
        assert box.run("systemctl", "start", "tunneld", check=False).returncode != 0
        said = [record for record in box.journal(since, "--unit=tunneld") if what in str(record["MESSAGE"])]
        assert [record["PRIORITY"] for record in said] == ["3"]
        assert box.show("tunneld", "NRestarts", "ExecMainStatus") == {"NRestarts": "0", "ExecMainStatus": "2"}
        assert not box.sh(f"test -S {SOCKET} && echo made || true")
        assert box.sh(f"cat {SOCKET}") == ("keep\n" if "keep" in make else "")
    finally:
        box.sh("rm -rf /run/tunneld")
