"""`tunnelctl doctor` beside a real systemd: each finding of the units and of the socket's rights by its real cause."""

from __future__ import annotations

import base64
import json
import tarfile
from io import BytesIO
from typing import Any

from tests.support.box import Box
from tests.support.processes import eventually
from tests.systemd.conftest import agent_file, server_file, started
from tests.systemd.service import serving

AGENT, SERVER = "/etc/tunneld/tunneld.yaml", "/etc/tunneld/server.yaml"
CRASH = "[Service]\nExecStart=\nExecStart=/bin/false\nRestart=on-failure\nRestartSec=10ms\n"


def doctor(box: Box, *args: str, user: str | None = None) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Its exit status, and the findings by their ids."""
    who = ["runuser", "-u", user, "--"] if user else []
    done = box.run(*who, "tunnelctl", "doctor", "--json", *args, check=False)
    assert done.stderr == ""
    told: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(done.stdout)["findings"]:
        told.setdefault(one["id"], []).append(one)
    return done.returncode, told


def unit(box: Box, *args: str) -> dict[str, Any]:
    """What it finds of the agent's unit."""
    (found,) = doctor(box, *args)[1]["systemd"]
    return found


def settled(box: Box, name: str) -> None:
    box.wait_for(name, ActiveState="failed", timeout=60)


def test_of_healthy_units_there_is_nothing_to_find(box: Box) -> None:
    """Agent and server with a token, as the package wants them; root, and a user of the group."""
    with serving(box) as service:
        box.configure(SERVER, server_file(auth={"mode": "token"}, store="sqlite:////var/lib/tunneld-server/doctor.db"))
        token = box.sh(f"runuser -u tunneld -- tunneld server token create demo --config {SERVER}").strip()
        box.write("/etc/credstore/tunneld.token", token, mode=0o600)
        box.configure(AGENT, agent_file(service.port))
        box.systemctl("enable", "-q", "tunneld", "tunneld-server")
        started(box)
        eventually(lambda: "online" in box.run("tunnelctl", "status", check=False).stdout, timeout=60, what="online")
        status, told = doctor(box)
        assert {one["status"] for found in told.values() for one in found} <= {"ok", "skip"}, told
        assert status == 0
        assert told["systemd"][0]["detail"] == "tunneld.service is active (running)."
        assert told["systemd-server"][0]["detail"] == "tunneld-server.service is active (running)."
        assert told["token"][0]["detail"] == "It is accepted."
        box.sh("id friend >/dev/null 2>&1 || useradd friend; usermod -aG tunneld friend")
        status, told = doctor(box, user="friend")
        assert {one["status"] for found in told.values() for one in found} <= {"ok", "skip"}, told
        assert "not ours to read" in told["token"][0]["detail"]
        assert status == 0

        # what may go into a report of all that, the journal too
        said = box.run(
            "tunnelctl", "--socket", "/run/tunneld/control.sock", "doctor", "--bundle", "/root/bundle.tar.gz"
        )
        assert "journal.txt" in said.stdout
        packed = box.sh("stat -c '%a %U' /root/bundle.tar.gz; base64 -w0 /root/bundle.tar.gz; rm /root/bundle.tar.gz")
        mode, _, text = packed.partition("\n")
        assert mode == "600 root"
        with tarfile.open(fileobj=BytesIO(base64.b64decode(text))) as archive:
            files = ((one.name, archive.extractfile(one)) for one in archive.getmembers())
            parts = {name: file.read() for name, file in files if file is not None}
        assert "✓ Tunnel established: demo" in parts["tunneld-bundle/journal.txt"].decode()
        for name, data in parts.items():
            assert token.encode() not in data, name
        box.sh("rm -f /var/lib/tunneld-server/doctor.db*")


def test_a_unit_that_is_not_installed_inactive_or_masked(box: Box) -> None:
    box.configure(AGENT, agent_file())
    found = unit(box)
    assert (found["status"], found["detail"]) == ("fail", "tunneld.service is inactive (it will not start at boot).")
    assert "systemctl enable --now tunneld.service" in found["advice"]
    assert "systemd-server" not in doctor(box)[1], "a server that is not wanted here is no finding"
    box.systemctl("mask", "-q", "--runtime", "tunneld")
    try:
        assert unit(box)["detail"] == "tunneld.service is masked: nothing can start it."
    finally:
        box.systemctl("unmask", "-q", "--runtime", "tunneld")
    box.sh("mv /usr/lib/systemd/system/tunneld.service /root/; systemctl daemon-reload")
    try:
        found = unit(box)
        assert (found["status"], found["detail"]) == (
            "warn",
            "There is no unit tunneld.service: nothing starts an agent here.",
        )
        assert "packaging/systemd" in found["advice"]
    finally:
        box.sh("mv /root/tunneld.service /usr/lib/systemd/system/; systemctl daemon-reload")


def test_bad_configuration_a_crash_and_a_signal_are_told_with_how_it_ended(box: Box) -> None:
    box.write(AGENT, "tunnels: nonsense\n")
    box.write(SERVER, "listen: nonsense\n")
    box.run("systemctl", "start", "tunneld", "tunneld-server", check=False)
    settled(box, "tunneld")
    settled(box, "tunneld-server")
    status, told = doctor(box)
    assert status == 1
    for check, name in (("systemd", "tunneld.service"), ("systemd-server", "tunneld-server.service")):
        (found,) = told[check]
        assert found["status"] == "fail"
        assert found["detail"] == (
            f"{name} has failed: the last process ended with exit status 2 (bad usage or configuration; it is not "
            "tried again)."
        )
        assert f"journalctl -u {name}" in found["advice"]
    assert any("tunnels" in one["detail"] for one in told["config"])
    box.configure(AGENT, agent_file())
    box.drop_in("tunneld.service", "[Service]\nRestart=no\n")
    box.systemctl("start", "tunneld")
    box.systemctl("kill", "--signal=SEGV", "tunneld")
    settled(box, "tunneld")
    assert unit(box)["detail"] == "tunneld.service has failed: the last process was ended by SIGSEGV."


def test_one_that_hung_is_told_so(box: Box) -> None:
    box.configure(AGENT, agent_file())
    box.drop_in("tunneld.service", "[Service]\nRestart=no\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
    box.systemctl("start", "tunneld")
    box.systemctl("kill", "--signal=STOP", "tunneld")
    settled(box, "tunneld")
    found = unit(box)
    assert found["detail"] == "tunneld.service has failed: it hung, and its watchdog ended it."
    assert "journalctl -u tunneld.service" in found["advice"]


def test_one_that_crashes_again_and_again_and_one_that_is_given_up(box: Box) -> None:
    box.configure(AGENT, agent_file())
    box.drop_in("tunneld.service", CRASH.replace("10ms", "1min"))
    box.run("systemctl", "start", "--no-block", "tunneld")
    box.wait_for("tunneld", SubState="auto-restart")
    found = unit(box)
    assert found["status"] == "fail"
    assert "is started again and again" in found["detail"]
    assert "exit status 1" in found["detail"]
    box.systemctl("stop", "tunneld")
    box.drop_in("tunneld.service", CRASH)
    box.run("systemctl", "start", "--no-block", "tunneld")
    settled(box, "tunneld")
    found = unit(box)
    assert found["detail"] == (
        "tunneld.service has failed, and is not started any more after 10 starts within 1min: the last process ended "
        "with exit status 1."
    )
    assert "systemctl reset-failed tunneld.service" in found["advice"]


def test_one_that_was_restarted_or_whose_file_was_changed(box: Box) -> None:
    box.configure(AGENT, agent_file())
    box.systemctl("start", "tunneld")
    assert unit(box)["detail"] == "tunneld.service is active (running), but will not start at boot."
    pid = box.pid("tunneld")
    box.systemctl("kill", "--signal=KILL", "tunneld")
    box.wait_for("tunneld", NRestarts="1", SubState="running")
    assert box.pid("tunneld") != pid
    assert unit(box)["detail"] == "tunneld.service is active (running), but was restarted 1 times."
    box.write("/etc/systemd/system/tunneld.service.d/zz-test.conf", "[Service]\n")
    found = unit(box)
    assert found["detail"] == "tunneld.service is active (running), but its file was changed since."
    assert found["advice"].startswith("systemctl daemon-reload")


def test_a_unit_that_runs_with_another_file_or_another_agent(box: Box) -> None:
    box.configure("/etc/tunneld/own.yaml", agent_file())
    box.drop_in(
        "tunneld.service", "[Service]\nExecStart=\nExecStart=/usr/bin/tunneld agent --config /etc/tunneld/own.yaml\n"
    )
    box.systemctl("start", "tunneld")
    found = unit(box, "--config", AGENT)
    assert (found["status"], found["detail"]) == (
        "warn",
        f"tunneld.service is active with /etc/tunneld/own.yaml; what is looked at here is {AGENT}.",
    )
    box.configure("/etc/tunneld/second.yaml", agent_file(control={"socket": "/run/second.sock"}))
    box.systemctl("stop", "tunneld")
    box.run(
        "systemd-run",
        "-q",
        "--unit=tunneld-second",
        "--service-type=notify",
        "tunneld",
        "-c",
        "/etc/tunneld/second.yaml",
    )
    try:
        found = unit(box, "--socket", "/run/second.sock")
        assert found["status"] == "warn"
        assert "is inactive, but an agent answers" in found["detail"]
        box.systemctl("start", "tunneld")
        found = unit(box, "--socket", "/run/second.sock")
        assert "pid " in found["detail"]
        assert "/etc/tunneld/second.yaml" in found["detail"]
        assert "Two agents run" in found["advice"]
    finally:
        box.systemctl("stop", "tunneld-second")


def test_of_an_instance_its_own_unit_is_looked_at(box: Box) -> None:
    box.configure("/etc/tunneld/other.yaml", agent_file())
    box.systemctl("start", "tunneld@other")
    found = unit(box, "--instance", "other")
    assert found["detail"] == "tunneld@other.service is active (running), but will not start at boot."


def test_the_sockets_rights_are_told_with_the_group_to_join(box: Box) -> None:
    box.configure(AGENT, agent_file())
    box.systemctl("start", "tunneld")
    box.sh("id stranger >/dev/null 2>&1 || useradd stranger; gpasswd -d stranger tunneld >/dev/null 2>&1 || true")
    status, told = doctor(box, user="stranger")
    (found,) = told["socket"]
    assert (status, found["status"]) == (1, "fail")
    assert "/run/tunneld is closed (mode 0750, group tunneld)" in found["detail"]
    assert found["advice"] == "sudo usermod -aG tunneld stranger, then log in anew."
    # put into the group, but not in this login: the groups of a session are those of its beginning
    box.sh("usermod -aG tunneld stranger")
    stale = "setpriv --reuid=stranger --regid=stranger --clear-groups tunnelctl doctor --json"
    (found,) = [one for one in json.loads(box.sh(stale, check=False))["findings"] if one["id"] == "socket"]
    assert found["advice"] == "stranger was put into the group tunneld after this login: log in anew."
    box.systemctl("kill", "--signal=STOP", "tunneld")
    try:
        box.drop_in("tunneld.service", "[Service]\nRuntimeDirectoryPreserve=yes\nRestart=no\n")
        box.systemctl("kill", "--signal=KILL", "tunneld")
        settled(box, "tunneld")
        (found,) = doctor(box)[1]["socket"]
        assert "is there, but nobody answers" in found["detail"]
    finally:
        box.systemctl("reset-failed", "tunneld")
        box.sh("rm -rf /run/tunneld")
