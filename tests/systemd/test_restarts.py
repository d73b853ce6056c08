"""Which stream survives which restart: each cell of the README's table, as visitors see it."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.support.box import Box
from tests.support.processes import ROOT, eventually
from tests.systemd.conftest import PORT, agent_file, server_file, started
from tests.systemd.service import Service, Visitor, serving

DRAIN = 5.0
RESTARTS = ("agent restarts", "agent is killed", "server restarts", "server is killed")


def table() -> dict[str, dict[str, str]]:
    """kind of stream -> restart -> what the README says becomes of it."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"(?m)^\| (.*) \|$", text.partition("| What is open |")[2].partition("\n\n")[0])
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return {row[0]: dict(zip(RESTARTS, row[1:], strict=True)) for row in cells if not row[0].startswith("-")}


def restart(box: Box, how: str) -> None:
    """Have the daemon leave; returns when nobody else takes it for present."""
    unit = "tunneld" if how.startswith("agent") else "tunneld-server"
    if how.endswith("killed"):
        pid, since = box.pid(unit), box.now()
        box.systemctl("kill", "--signal=KILL", unit)
        eventually(lambda: box.pid(unit) != pid, timeout=30, what="dead")
        if unit == "tunneld":  # what comes before the server knows goes to the dead one, and ends as what is open does
            told = ("--unit=tunneld-server", "TUNNEL=demo")
            eventually(
                lambda: any("KEPT_STREAMS" in one for one in box.journal(since, *told)), timeout=30, what="missed"
            )
    else:
        box.systemctl("restart", "--no-block", unit)
        box.wait_for(unit, SubState="stop-sigterm")


def back(box: Box, unit: str, pid: int) -> None:
    eventually(
        lambda: box.show(unit, "SubState", "MainPID").items() >= {("SubState", "running")} and box.pid(unit) != pid,
        timeout=40,
        what="running again",
    )
    eventually(lambda: "online" in box.run("tunnelctl", "status", check=False).stdout, timeout=60, what="online again")


def fate(visitor: Visitor, *, whole: bytes = b"") -> str:
    """What became of it, as the README words it."""
    if not whole:
        before = len(visitor.numbers)
        try:
            eventually(lambda: visitor.over.is_set() or len(visitor.numbers) > before + 20, timeout=20)
        except AssertionError:
            return "stands still"
        if not visitor.over.is_set():
            consecutive = visitor.numbers == list(range(1, len(visitor.numbers) + 1))
            return "goes on" if consecutive else f"goes on with other events: {visitor.numbers}"
    eventually(lambda: visitor.over.is_set() or visitor.failed or (whole and whole in visitor.got), timeout=30)
    if visitor.failed:
        return "ends visibly"
    if whole and whole in visitor.got:
        return "ends whole"
    return "ends for no reason that a visitor sees" if visitor.ended_clean else "ends visibly"


def fate_of_websocket(visitor: Visitor) -> str:
    """The same of a WebSocket: whether it was told why it ends, or just broke."""
    eventually(visitor.over.is_set, timeout=30, what="over")
    return "ends visibly" if visitor.told is None else f"is told {visitor.told}"


def answered(late: Visitor, how: str) -> str:
    """What a visitor gets who came while nobody served."""
    eventually(lambda: late.over.is_set() or b"\r\n\r\n" in late.got, timeout=30, what="answered")
    if b"\r\n\r\n" not in late.got:
        return "is broken off"
    if how.startswith("server"):  # a new one knows no tunnel before its agent is back where, as here, nobody owns names
        return "waits for the server"
    return "is answered" if b"hello" in late.got else f"is answered {late.status}"


def fates(box: Box, service: Service, how: str) -> dict[str, str]:
    """What becomes of one of each kind."""
    settings = {"drain_timeout": DRAIN}
    box.configure("/etc/tunneld/server.yaml", server_file(**settings))
    box.configure("/etc/tunneld/tunneld.yaml", agent_file(service.port, **settings))
    started(box)
    unit = "tunneld" if how.startswith("agent") else "tunneld-server"
    pid = box.pid(unit)
    service.released.clear()
    with_ids = Visitor(box, PORT, "/t/demo/events")
    without = Visitor(box, PORT, "/t/demo/plain")
    short = Visitor(box, PORT, "/t/demo/slow")
    upload = Visitor(box, PORT, "/t/demo/upload", body=b"x" * 10, length=20)
    endless = Visitor(box, PORT, "/t/demo/endless")
    websocket = Visitor(box, PORT, "/t/demo/socket", websocket=True)
    with_ids.wait(b"id: 5\n")
    for visitor in (without, endless, websocket):
        visitor.wait(b"tick")
    short.wait(b"first")
    eventually(lambda: ("POST", "/upload", None) in service.asked, what="asked")
    restart(box, how)
    service.released.set()
    try:
        upload.socket.sendall(b"x" * 10)
    except OSError:
        pass  # reset already
    late = Visitor(box, PORT, "/t/demo/hello")
    found = {
        "a request that ends within `drain_timeout`": fate(short, whole=b"last\r\n0\r\n\r\n"),
        "an upload that ends within `drain_timeout`": fate(upload, whole=b"got it"),
        "a request that comes meanwhile": answered(late, how),
    }
    back(box, unit, pid)
    found["an event stream with ids"] = fate(with_ids)
    found["an event stream without ids"] = fate(without)
    found["a WebSocket"] = fate_of_websocket(websocket)
    found["any other that goes on for longer"] = fate(endless)
    if found["an event stream with ids"] == "ends visibly":  # EventSource comes back by itself
        again = Visitor(box, PORT, "/t/demo/events", last=with_ids.numbers[-1])
        again.wait(b"id: %d\n" % (with_ids.numbers[-1] + 1))
        assert again.numbers[0] == with_ids.numbers[-1] + 1
    return found


@pytest.fixture(scope="module")
def outcomes(booted: Box) -> dict[str, dict[str, str]]:
    """restart -> kind -> fate; filled as the cells ask."""
    return {}


@pytest.mark.parametrize("how", RESTARTS)
@pytest.mark.parametrize("kind", table())
def test_a_cell_of_the_table(
    booted: Box, outcomes: dict[str, dict[str, str]], request: pytest.FixtureRequest, kind: str, how: str
) -> None:
    if how not in outcomes:
        box = request.getfixturevalue("box")
        with serving(box) as service:
            outcomes[how] = fates(box, service, how)
    assert outcomes[how][kind] == table()[kind][how]


def test_the_table_is_whole(outcomes: dict[str, dict[str, str]]) -> None:
    assert len(table()) == 7
    assert all(set(found) == set(table()) for found in outcomes.values())


def test_the_session_is_the_same_over_a_restart(box: Box) -> None:
    with serving(box) as service:
        box.configure("/etc/tunneld/server.yaml", server_file())
        box.configure("/etc/tunneld/tunneld.yaml", agent_file(service.port))
        started(box)
        visitor = Visitor(box, PORT, "/t/demo/events")
        visitor.wait(b"id: 5\n")
        since = box.now()
        began = time.monotonic()
        box.systemctl("restart", "tunneld")
        assert time.monotonic() - began < 20  # drain_timeout is 30 s: an event stream that goes on is not waited for
        eventually(lambda: bool(box.journal(since, "--unit=tunneld", "RESUMED=True")), what="resumed")
        last = visitor.numbers[-1]
        visitor.wait(b"id: %d\n" % (last + 40))
        assert visitor.numbers == list(range(1, len(visitor.numbers) + 1))
        assert service.asked[-1][2] is not None  # asked with Last-Event-ID
        assert not box.sh("ls /run/tunneld/sessions.json 2>/dev/null || true")  # used up
        box.systemctl("stop", "tunneld")
        assert not box.sh("ls -d /run/tunneld 2>/dev/null || true")


def test_what_is_left_for_the_successor_is_its_users_alone(box: Box) -> None:
    with serving(box) as service:
        box.configure("/etc/tunneld/server.yaml", server_file())
        box.configure("/etc/tunneld/tunneld.yaml", agent_file(service.port))
        box.drop_in("tunneld.service", "[Service]\nRuntimeDirectoryPreserve=yes\n")
        started(box)
        box.systemctl("stop", "tunneld")
        assert box.sh("stat -c '%a %U' /run/tunneld/sessions.json").split() == ["600", "tunneld"]
        assert list(json.loads(box.sh("cat /run/tunneld/sessions.json"))["tunnels"]) == ["demo"]
        box.sh("rm -r /run/tunneld")
