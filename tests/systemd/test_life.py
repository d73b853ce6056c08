"""How systemd sees the daemons live and end: ready, reloading, hung, killed, bad files, full disks, jumping clocks."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest

from tests.support.box import Box
from tests.support.processes import eventually
from tests.systemd.conftest import PORT, agent_file, server_file, started
from tests.systemd.service import Visitor, serving

AGENT = "/etc/tunneld/tunneld.yaml"
SERVER = "/etc/tunneld/server.yaml"


#: Reloads a daemon so many times by its signal, and waits each time until it has done what the file says.
RELOADS = """
import http.client, json, os, shutil, signal, socket, sys, time
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/tunneld/control.sock")
connection = Connection("localhost", timeout=60)
pid, count = int(sys.argv[1]), int(sys.argv[2])
for number in range(count):
    name, wanted = (("other", 2), ("one", 1))[number % 2]
    shutil.copyfile(f"/etc/tunneld/{name}.yaml", "/etc/tunneld/next")
    os.replace("/etc/tunneld/next", "/etc/tunneld/tunneld.yaml")
    os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + 60
    while True:
        connection.request("GET", "/v1/status")
        if len(json.loads(connection.getresponse().read())["tunnels"]) == wanted:
            break
        assert time.monotonic() < deadline, f"reload {number} did nothing"
"""


def online(box: Box, *args: str) -> bool:
    done = box.run("tunnelctl", *args, "status", "--json", check=False)
    return done.returncode == 0 and all(tunnel["state"] == "online" for tunnel in json.loads(done.stdout)["tunnels"])


def errors(box: Box, since: str, unit: str) -> list[str]:
    """What the daemon itself said with the priority of an error."""
    said = box.journal(since, f"--unit={unit}", "--priority=err")
    return [str(record["MESSAGE"]) for record in said if record.get("SYSLOG_IDENTIFIER") != "systemd"]


# -- ready ---------------------------------------------------------------------------------------------------------


def test_without_server_and_service_it_is_ready_and_degraded(box: Box) -> None:
    box.configure(AGENT, agent_file())
    box.systemctl("start", "tunneld")  # returns once it is ready
    assert box.run("tunnelctl", "health", check=False).returncode in (1, 2)
    told = box.show("tunneld", "ActiveState", "SubState", "StatusText", "NRestarts")
    assert told["StatusText"] == "0 of 1 tunnels up, 0 streams"
    assert (told["ActiveState"], told["SubState"], told["NRestarts"]) == ("active", "running", "0")


def test_the_status_is_what_an_operator_wants(box: Box) -> None:
    with serving(box) as service:
        box.configure(SERVER, server_file())
        box.configure(AGENT, agent_file(service.port, heartbeat={"interval": "1s"}))
        started(box)
        Visitor(box, PORT, "/t/demo/events").wait(b"id: 1\n")
        for unit, begin in (("tunneld", "1 of 1"), ("tunneld-server", "1")):
            told = re.compile(begin + r" tunnels up, 1 streams, rtt \d+ ms")
            eventually(
                lambda told=told, unit=unit: bool(told.fullmatch(box.show(unit, "StatusText")["StatusText"])),  # type: ignore[misc]
                timeout=60,
                what=f"told by {unit}",
            )


def test_a_reload_is_told_and_a_bad_file_changes_nothing(box: Box) -> None:
    box.configure(AGENT, agent_file())
    box.systemctl("start", "tunneld")
    pid = box.pid("tunneld")
    since = box.now()
    box.systemctl("reload", "tunneld")
    box.write(AGENT, "tunels: []\n")
    box.systemctl("reload", "tunneld")
    eventually(lambda: bool(errors(box, since, "tunneld")), what="told that the file is bad")
    assert errors(box, since, "tunneld")[0].startswith("The reload changed nothing: /etc/tunneld/tunneld.yaml")
    told = box.show("tunneld", "ActiveState", "SubState", "MainPID", "NRestarts")
    assert told == {"ActiveState": "active", "SubState": "running", "MainPID": str(pid), "NRestarts": "0"}


def test_a_thousand_reloads_leave_nothing_behind(box: Box) -> None:
    """Each opens or closes a tunnel. Some by systemctl, which builds a sandbox around ``ExecReload=`` each time (a
    tenth of a second of systemd's own), the thousand by the signal that it sends, each waited for.
    """
    one, other = agent_file(), agent_file()
    other["tunnels"] = [*other["tunnels"], {"name": "more", "service": "http://127.0.0.1:9001"}]  # type: ignore[misc]
    box.configure("/etc/tunneld/one.yaml", one)
    box.configure("/etc/tunneld/other.yaml", other)
    box.configure(AGENT, one)
    box.write("/usr/local/lib/reloads.py", RELOADS)
    box.systemctl("start", "tunneld")
    pid = box.pid("tunneld")
    since = box.now()

    def weight() -> tuple[int, int, int]:
        """(KiB, descriptors, threads)."""
        status = box.sh(f"cat /proc/{pid}/status; ls /proc/{pid}/fd | wc -l")
        kib = re.search(r"VmRSS:\s+(\d+)", status)
        threads = re.search(r"Threads:\s+(\d+)", status)
        assert kib is not None
        assert threads is not None
        return int(kib[1]), int(status.split()[-1]), int(threads[1])

    # whole at every moment: systemctl does not wait until the file is read
    reload = "for file in other one; do cp $file.yaml next; mv next tunneld.yaml; systemctl reload tunneld; done"
    box.sh(f"cd /etc/tunneld; for i in $(seq 20); do {reload}; done", timeout=120)
    box.run("python3", "-B", "/usr/local/lib/reloads.py", str(pid), "100", timeout=120)
    before = weight()
    box.run("python3", "-B", "/usr/local/lib/reloads.py", str(pid), "1000", timeout=200)
    # the last caller's connection may be on its way out yet
    eventually(lambda: all(now <= then for now, then in zip(weight()[1:], before[1:], strict=True)), what="as before")
    after = weight()
    assert after[0] - before[0] < 4096, (before, after)
    assert box.show("tunneld", "NRestarts", "SubState") == {"NRestarts": "0", "SubState": "running"}
    assert box.pid("tunneld") == pid
    assert errors(box, since, "tunneld") == []


# -- hung and killed -----------------------------------------------------------------------------------------------


def test_a_loop_that_stands_still_is_killed_and_started_again(box: Box) -> None:
    box.configure(AGENT, agent_file())
    box.drop_in("tunneld.service", "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
    box.systemctl("start", "tunneld")
    pid = box.pid("tunneld")
    since = box.now()
    box.run("kill", "-STOP", str(pid))
    box.wait_for("tunneld", NRestarts="1", SubState="running")
    assert box.pid("tunneld") != pid
    said = [str(record["MESSAGE"]) for record in box.journal(since, "--unit=tunneld")]
    assert any("Watchdog timeout" in message for message in said)


@pytest.mark.parametrize("unit", ["tunneld", "tunneld-server"])
def test_a_killed_daemon_is_back_after_a_second(box: Box, unit: str) -> None:
    box.configure(AGENT, agent_file())
    box.configure(SERVER, server_file())
    box.systemctl("start", unit)
    box.systemctl("kill", "--signal=KILL", unit)
    box.wait_for(unit, NRestarts="1", SubState="running")


def test_one_that_cannot_live_is_left_alone_in_the_end(box: Box) -> None:
    box.configure(AGENT, agent_file())
    box.drop_in("tunneld.service", "[Service]\nLimitAS=24M\nRestartSec=100ms\n")  # no room for an interpreter's modules
    box.run("systemctl", "start", "tunneld", check=False)
    box.wait_for("tunneld", ActiveState="failed", SubState="failed", NRestarts="10", timeout=90)
    assert "Start request repeated too quickly" in box.text("tunneld")


def test_out_of_memory_is_no_end(box: Box) -> None:
    with serving(box) as service:
        box.configure(SERVER, server_file())
        box.configure(AGENT, agent_file(service.port))
        started(box)
        pid = box.pid("tunneld")
        size = re.search(r"VmSize:\s+(\d+)", box.sh(f"cat /proc/{pid}/status"))
        assert size is not None
        limit = ["runuser", "-u", "tunneld", "--", "prlimit", f"--pid={pid}"]
        box.run(*limit, f"--as={int(size[1]) * 1024}:")
        big = b"x" * (4 << 20)
        visitors = [Visitor(box, PORT, "/t/demo/upload", body=big, length=len(big)) for _ in range(4)]
        for visitor in visitors:  # answered, refused or broken off: never left waiting
            eventually(lambda visitor=visitor: visitor.over.is_set() or b"\r\n\r\n" in visitor.got, timeout=40)  # type: ignore[misc]
        box.run(*limit, "--as=unlimited:", check=False)  # it may be another by now
        eventually(lambda: online(box), timeout=30, what="online again")
        Visitor(box, PORT, "/t/demo/hello").wait(b"hello")


# -- what cannot be used -------------------------------------------------------------------------------------------


def bad(**over: Any) -> dict[str, Any]:
    return agent_file(**over)


LONG = "/run/tunneld/" + "x" * 120
BAD: dict[str, tuple[dict[str, Any] | str | None, str, str]] = {
    "missing": (None, "true", "/etc/tunneld/tunneld.yaml: no such file"),
    "unreadable": (bad(), f"chmod 000 {AGENT}", f"{AGENT}: permission denied"),
    "broken": ("server: [", "true", f"{AGENT}:"),
    "unknown key": (bad(tunels=[]), "true", "tunnels"),
    "open token": (
        bad(server={"url": f"ws://127.0.0.1:{PORT}", "token_file": "/etc/tunneld/token"}),
        "echo secret >/etc/tunneld/token; chmod 644 /etc/tunneld/token",
        "others can read or change this secret (mode 0644); run `chmod 600 /etc/tunneld/token`",
    ),
    "long path": (bad(control={"socket": LONG}), "true", "expected a socket path of at most 107 bytes"),
    "read-only": (bad(control={"socket": "/usr/lib/x.sock"}), "true", "read-only file system"),
    "group": (bad(control={"group": "nobody-knows"}), "true", 'this machine has no group "nobody-knows"'),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_line_and_no_second_start(box: Box, case: str) -> None:
    settings, script, line = BAD[case]
    if isinstance(settings, str):
        box.write(AGENT, settings)
    elif settings is not None:
        box.configure(AGENT, settings)
    box.sh(script)
    since = box.now()
    assert box.run("systemctl", "start", "tunneld", check=False).returncode != 0
    told = box.show("tunneld", "NRestarts", "ExecMainStatus", "ActiveState")
    assert told == {"NRestarts": "0", "ExecMainStatus": "2", "ActiveState": "failed"}
    (said,) = errors(box, since, "tunneld")
    assert line in said
    assert "secret\n" not in said


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (None, f"{SERVER}: no such file"),
        (server_file(auth={"mode": "open"}, listen={"host": "0.0.0.0", "port": PORT}), "auth.mode"),
        (server_file(store="sqlite:////usr/lib/x.db"), "/usr/lib/x.db"),
        (server_file(listn=1), "listn"),
    ],
    ids=["missing", "open to all", "read-only store", "unknown key"],
)
def test_a_server_that_cannot_be_is_one_line_too(box: Box, settings: dict[str, object] | None, line: str) -> None:
    if settings is not None:
        box.configure(SERVER, settings)
    since = box.now()
    assert box.run("systemctl", "start", "tunneld-server", check=False).returncode != 0
    told = box.show("tunneld-server", "NRestarts", "ExecMainStatus", "ActiveState")
    assert told == {"NRestarts": "0", "ExecMainStatus": "2", "ActiveState": "failed"}
    (said,) = errors(box, since, "tunneld-server")
    assert line in said


def test_a_full_disk_is_tried_again_until_the_limit(box: Box) -> None:
    box.configure(AGENT, agent_file(control={"socket": "/run/full/control.sock"}))
    box.drop_in("tunneld.service", "[Service]\nReadWritePaths=/run/full\nRestartSec=100ms\n")
    box.sh("mkdir -p /run/full; mount -t tmpfs -o size=4k,nr_inodes=2,mode=1777 full /run/full; touch /run/full/last")
    try:
        since = box.now()
        assert box.run("systemctl", "start", "tunneld", check=False).returncode != 0
        line = "control.socket: /run/full/control.sock: cannot write beside it: no space left on device"
        eventually(lambda: bool(errors(box, since, "tunneld")), what="told")
        assert set(errors(box, since, "tunneld")) == {line}
        assert box.show("tunneld", "ExecMainStatus")["ExecMainStatus"] in ("0", "1")  # 0: the next has begun
        box.sh("rm /run/full/last; mount -o remount,size=64k,nr_inodes=9 /run/full")
        box.wait_for("tunneld", ActiveState="active", SubState="running")
    finally:
        box.sh("systemctl stop tunneld; umount /run/full")


def test_who_may_not_tell_systemd_lives_all_the_same(box: Box) -> None:
    """No NOTIFY_SOCKET, and one that is gone."""
    box.configure(AGENT, agent_file(control={"socket": "/run/by-hand.sock"}))
    for variables in ([], ["NOTIFY_SOCKET=/run/gone"], ["NOTIFY_SOCKET=@gone"]):
        script = "tunneld & pid=$!; until tunnelctl status >/dev/null 2>&1; do sleep 0.1; done; kill $pid; wait $pid"
        done = box.run(
            "env", *variables, "TUNNELD_SOCKET=/run/by-hand.sock", "bash", "-c", script, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


# -- time ----------------------------------------------------------------------------------------------------------


def test_the_clock_jumps_and_nobody_falls(box: Box) -> None:
    library = box.sh("echo /usr/lib/*/faketime/libfaketimeMT.so.1").strip()
    environment = (
        f"[Service]\nEnvironment=LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE=/etc/tunneld/clock "
        "FAKETIME_CACHE_DURATION=1 NO_FAKE_STAT=1 FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1\n"
        "WatchdogSec=10s\n"
    )
    with serving(box) as service:
        box.write("/etc/tunneld/clock", "+0")
        box.configure(SERVER, server_file())
        box.configure(AGENT, agent_file(service.port, heartbeat={"interval": "1s", "timeout": "6s"}))
        for unit in ("tunneld", "tunneld-server"):
            box.drop_in(f"{unit}.service", environment)
        started(box)
        visitor = Visitor(box, PORT, "/t/demo/events")
        visitor.wait(b"id: 5\n")
        since = box.now()
        for jump, events in (("+86400", 240), ("-86400", 240), ("+0", 40)):
            box.write("/etc/tunneld/clock", jump)
            last = visitor.numbers[-1]
            # twelve seconds: longer than interval and timeout, and than the watchdog waits
            visitor.wait(b"id: %d\n" % (last + events), timeout=90)
        assert visitor.numbers == list(range(1, len(visitor.numbers) + 1))
        for unit in ("tunneld", "tunneld-server"):
            assert box.show(unit, "NRestarts", "SubState") == {"NRestarts": "0", "SubState": "running"}
        said = " ".join(str(record["MESSAGE"]) for record in box.journal(since, "--unit=tunneld"))
        assert "disconnected" not in said


def test_an_agent_that_slept_goes_on_with_the_next_event(box: Box) -> None:
    with serving(box) as service:
        box.configure(SERVER, server_file(heartbeat={"interval": "1s", "timeout": "1s"}))
        box.configure(AGENT, agent_file(service.port, heartbeat={"interval": "1s", "timeout": "1s"}))
        started(box)
        visitor = Visitor(box, PORT, "/t/demo/events")
        visitor.wait(b"id: 5\n")
        since = box.now()
        box.systemctl("freeze", "tunneld")
        lost = ("--unit=tunneld-server", "TUNNEL=demo", "KEPT_STREAMS=1")
        eventually(lambda: bool(box.journal(since, *lost)), what="missed by the server")
        box.systemctl("thaw", "tunneld")
        last = visitor.numbers[-1]
        visitor.wait(b"id: %d\n" % (last + 100))
        assert visitor.numbers == list(range(1, len(visitor.numbers) + 1))
        assert box.show("tunneld", "NRestarts", "SubState") == {"NRestarts": "0", "SubState": "running"}


# -- stopping ------------------------------------------------------------------------------------------------------


def test_draining_is_given_the_time_that_it_asks_for(box: Box) -> None:
    with serving(box) as service:
        box.configure(SERVER, server_file())
        box.configure(AGENT, agent_file(service.port, drain_timeout="20s"))
        box.drop_in("tunneld.service", "[Service]\nTimeoutStopSec=2s\n")
        started(box)
        visitor = Visitor(box, PORT, "/t/demo/slow")
        visitor.wait(b"first")
        since = box.now()
        box.systemctl("stop", "--no-block", "tunneld")
        eventually(
            lambda: "stopping, at most 1" in box.show("tunneld", "StatusText")["StatusText"], timeout=15, what="told"
        )
        service.released.wait(4)  # past TimeoutStopSec=
        service.released.set()
        visitor.wait(b"last")
        eventually(lambda: visitor.ended_clean, what="whole")
        box.wait_for("tunneld", ActiveState="inactive", Result="success")
        said = [str(record["MESSAGE"]) for record in box.journal(since, "--unit=tunneld")]
        assert not any("timed out" in message for message in said)


def test_two_agents_and_a_server_keep_out_of_each_others_way(box: Box) -> None:
    box.configure(SERVER, server_file())
    box.configure(AGENT, agent_file())
    box.configure(
        "/etc/tunneld/one.yaml", {**agent_file(), "tunnels": [{"name": "one", "service": "http://127.0.0.1:1"}]}
    )
    box.systemctl("start", "tunneld-server", "tunneld", "tunneld@one")
    assert "one" in box.run("tunnelctl", "--instance", "one", "status").stdout
    box.systemctl("stop", "tunneld@one")
    assert box.sh("ls -d /run/tunneld*").split() == ["/run/tunneld", "/run/tunneld-server"]
    assert "demo" in box.run("tunnelctl", "status").stdout
    assert box.run("systemctl", "start", "tunneld@server", check=False).returncode != 0
    box.systemctl("stop", "tunneld")
    assert box.sh("ls -d /run/tunneld*").split() == ["/run/tunneld-server"]


# -- sockets, credentials, boot ------------------------------------------------------------------------------------


def test_a_port_below_1024_comes_from_systemd_alone(box: Box) -> None:
    box.configure(SERVER, server_file(listen={"host": "127.0.0.1", "port": 80}))
    box.sh("systemctl mask --quiet tunneld-server.socket")
    try:
        since = box.now()
        assert box.run("systemctl", "start", "tunneld-server", check=False).returncode != 0
        (line,) = errors(box, since, "tunneld-server")
        assert line.endswith("this user may not: choose a port from 1024 on, or let systemd bind it")
    finally:
        box.sh(
            "systemctl unmask --quiet tunneld-server.socket; cp /src/packaging/systemd/*.socket /etc/systemd/system/"
        )
    box.drop_in("tunneld-server.socket", "[Socket]\nListenStream=\nListenStream=127.0.0.1:80\n")
    box.systemctl("start", "tunneld-server")
    visitor = Visitor(box, 80, "/healthz")
    visitor.wait(b"\r\n\r\n")
    assert visitor.status == 200


def test_no_dial_is_refused_while_the_server_restarts(box: Box) -> None:
    box.configure(SERVER, server_file())
    box.systemctl("start", "tunneld-server")
    pid = box.pid("tunneld-server")
    box.systemctl("restart", "--no-block", "tunneld-server")
    dials: list[Visitor] = []

    def restarted() -> bool:
        dials.append(Visitor(box, PORT, "/healthz"))  # a refused one raises
        return len(dials) > 20 and box.pid("tunneld-server") not in (0, pid)

    eventually(restarted, timeout=60, what="restarted")
    box.wait_for("tunneld-server", SubState="running")
    late = Visitor(box, PORT, "/healthz")
    late.wait(b" 200 ")
    for visitor in dials:  # those of the old one were answered or closed in order; those after it were answered
        eventually(lambda visitor=visitor: visitor.over.is_set() or b" 200 " in visitor.got)  # type: ignore[misc]
        assert visitor.fault is None


def test_a_socket_that_the_file_does_not_name_is_told(box: Box) -> None:
    box.configure(SERVER, server_file(listen={"host": "127.0.0.1", "port": 9999}))
    since = box.now()
    assert box.run("systemctl", "start", "tunneld-server", check=False).returncode != 0
    (line,) = errors(box, since, "tunneld-server")
    assert line.startswith("listen: systemd holds 127.0.0.1:8440 for this server, which no listener names")


@pytest.mark.parametrize(("unit", "credential"), [("tunneld", "tunneld.token"), ("tunneld@one", "tunneld-one.token")])
def test_the_token_comes_as_a_credential_and_shows_nowhere(box: Box, unit: str, credential: str) -> None:
    secret = "tdt_not-for-everyone"
    server = box.listen()
    server.settimeout(30)
    with server:
        box.write(f"/etc/credstore/{credential}", secret + "\n", mode=0o600)
        settings = agent_file(server={"url": f"ws://127.0.0.1:{server.getsockname()[1]}"})
        box.configure(AGENT if unit == "tunneld" else "/etc/tunneld/one.yaml", settings)
        since = box.now()
        box.systemctl("start", unit)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            connection.shutdown(socket.SHUT_RDWR)
    assert f"authorization: bearer {secret}".encode() in head.lower()
    pid = box.pid(unit)
    box.systemctl("stop", unit)
    seen = box.systemctl("show", unit) + box.run("journalctl", "--output=export", since).stdout
    assert secret not in seen
    assert pid > 0


def test_after_a_boot_the_tunnel_is_there(booted: Box) -> None:
    box = booted
    box.revert()
    box.configure(SERVER, server_file())
    box.configure(AGENT, agent_file())
    box.sh("systemctl enable -q tunneld tunneld-server")
    box.reboot()
    try:
        assert (
            box.systemctl("is-active", "tunneld", "tunneld-server", "tunneld-server.socket").split() == ["active"] * 3
        )
        states = ("online", "degraded")  # there is no service
        eventually(
            lambda: json.loads(box.run("tunnelctl", "status", "--json").stdout)["tunnels"][0]["state"] in states,
            what="online after a boot",
        )
        # With no server at all the boot is over just the same.
        box.sh("systemctl disable -q --now tunneld-server tunneld-server.socket")
        box.reboot()
        assert box.systemctl("is-active", "tunneld").strip() == "active"
        assert box.systemctl("is-system-running", check=False).strip() == "running"
    finally:
        box.revert()
