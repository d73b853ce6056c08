"""The driver of a session: what it writes when, what it tells its owner, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import pytest

from tests.support.joined import Visitor
from tunneld.errors import CODES, RemoteError
from tunneld.link import CLOSE_CODES, GATHER, Link
from tunneld.protocol.messages import (
    ErrorMessage,
    GoAway,
    Message,
    Open,
    Ping,
    Pong,
    Settings,
    StreamCancel,
    decode_text,
    encode,
)
from tunneld.protocol.session import BINARY, TEXT, Session, SessionSettings
from tunneld.protocol.streams import Stream
from tunneld.wire import pacing
from tunneld.wire.tcp_info import TcpInfo


class Wire:
    """One end of a connection in memory (a `Pipe`): what is written is kept, and passed to the other end."""

    def __init__(self) -> None:
        self.paused = False
        self.transport = asyncio.BaseTransport()  # the kernel knows nothing of it
        self.last_heard = monotonic()
        self.fault: str | None = None
        self.last_words: Callable[[str, str], None] | None = None
        self.sent: list[tuple[int, bytes, float]] = []
        self.closed_with: tuple[int | None, str] | None = None
        self.aborted = False
        self.held: list[int] = []
        self.limits: list[int] = []
        self.other: Wire | None = None
        self.handler: Link | None = None
        self.news = asyncio.Event()

    def send(self, opcode: int, parts: Sequence[Any]) -> None:
        if self.closed_with is not None or self.aborted:
            return
        payload = b"".join(bytes(part) for part in parts)
        self.sent.append((opcode, payload, monotonic()))
        self.news.set()
        if self.other is not None:
            asyncio.get_running_loop().call_soon(self.other.arrive, opcode, payload)

    def arrive(self, opcode: int, payload: bytes) -> None:
        self.last_heard = monotonic()
        if self.handler is not None and self.closed_with is None and not self.aborted:
            self.handler.message(opcode, payload)

    def hold(self, most: int) -> None:
        self.held.append(most)

    def limit(self, max_message: int) -> None:
        self.limits.append(max_message)

    def close(self, code: int, reason: str = "") -> None:
        if self.closed_with is None:
            self.closed_with = code, reason

    def abort(self) -> None:
        self.aborted = True

    def drain(self) -> None:
        self.paused = False
        assert self.handler is not None
        self.handler.writable()

    def texts(self) -> list[Message | None]:
        return [decode_text(payload) for opcode, payload, _ in self.sent if opcode == TEXT]

    def binaries(self) -> list[bytes]:
        return [payload for opcode, payload, _ in self.sent if opcode == BINARY]

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not done():
                self.news.clear()
                await self.news.wait()


class Owner:
    """Keeps what it is told, and ends the session on a fault, as both roles do."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.news = asyncio.Event()

    def _note(self, kind: str, what: Any) -> None:
        self.told.append((kind, what))
        self.news.set()

    def link_text(self, link: Link, message: Message) -> None:
        if isinstance(message, GoAway):
            raise RemoteError("protocol_error", "no goaway here")
        self._note("text", message)

    def link_fault(self, link: Link, error: RemoteError) -> None:
        self._note("fault", error)
        if link.session is not None:
            link.session.end("peer_lost")
        link.fail(error, tell=True)

    def link_silent(self, link: Link, *, dead: bool) -> None:
        self._note("silent", dead)
        if dead:
            if link.session is not None:
                link.session.end("peer_lost")
            link.abort()

    def link_heard(self, link: Link, round_trip: float | None) -> None:
        self._note("heard", round_trip)

    def link_closed(self, link: Link, code: int | None, reason: str) -> None:
        self._note("closed", (code, reason))

    def of(self, kind: str) -> list[Any]:
        return [what for said, what in self.told if said == kind]

    async def until(self, kind: str, what: Any) -> None:
        async with asyncio.timeout(5):
            while (kind, what) not in self.told:
                self.news.clear()
                await self.news.wait()


class Ends:
    """Two links with their sessions, joined by a wire in memory."""

    def __init__(self, *, interval: float = 30, timeout: float = 10, joined: bool = True, **settings: Any) -> None:
        chosen = SessionSettings(**settings)
        self.served: list[Visitor] = []
        self.sessions = Session(chosen), Session(chosen, accept=self._accept)
        self.wires = Wire(), Wire()
        self.owners = Owner(), Owner()
        if joined:
            self.wires[0].other, self.wires[1].other = self.wires[1], self.wires[0]
        self.links: list[Link] = []
        for wire, owner, session in zip(self.wires, self.owners, self.sessions, strict=True):
            link = Link(wire, owner, name="app")
            wire.handler = link
            link.attach(session, 0, interval=interval, timeout=timeout)
            self.links.append(link)

    def _accept(self, stream: Stream, request: Open, ended: bool) -> Visitor:
        sink = Visitor()
        sink.stream = stream
        self.served.append(sink)
        return sink

    def open(self, request_id: str = "r1") -> Visitor:
        visitor = Visitor()
        visitor.stream = self.sessions[0].open(Open(request_id, "POST", "/", [], ""), visitor, ended=False)
        return visitor

    def close(self) -> None:
        for link, session in zip(self.links, self.sessions, strict=True):
            session.end("peer_lost")
            link.closed(None, "")


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def timers() -> set[asyncio.TimerHandle]:
    return {handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()}  # type: ignore[attr-defined]


@pytest.fixture
async def quiet() -> Any:
    """Ends that have written nothing for longer than a gathering."""
    ends = Ends()
    await ends.wires[0].until(lambda: len(ends.wires[0].sent) >= 2)  # its ping and its pong
    await asyncio.sleep(2 * GATHER)
    yield ends
    ends.close()


async def test_a_quiet_line_is_written_to_at_once(quiet: Ends) -> None:
    wire = quiet.wires[0]
    before = len(wire.sent)
    quiet.open()
    await asyncio.sleep(0)
    assert len(wire.sent) == before + 1


async def test_a_busy_line_gathers_for_the_rest_of_the_millisecond(quiet: Ends) -> None:
    wire = quiet.wires[0]
    visitor = quiet.open()
    await asyncio.sleep(0)
    first = wire.sent[-1][2]
    count = len(wire.sent)
    for number in range(20):
        visitor.stream.send(b"%d" % number)
    await turns()
    if monotonic() - first < GATHER / 2:  # else the machine stood still here
        assert len(wire.sent) == count
    await wire.until(lambda: len(wire.sent) > count)
    assert len(wire.sent) == count + 1
    assert wire.sent[-1][2] - first >= GATHER * 0.5
    await quiet.served[0].until(lambda: quiet.served[0].body.endswith(b"19"))


async def test_a_messages_worth_is_not_gathered_for(quiet: Ends) -> None:
    wire, link = quiet.wires[0], quiet.links[0]
    visitor = quiet.open()
    await asyncio.sleep(0)
    link._wrote_at = monotonic() + 3600  # gathering would take an hour
    count = len(wire.sent)
    visitor.stream.send(b"x" * 1000)
    await turns()
    assert len(wire.sent) == count
    visitor.stream.send(b"x" * 65536)
    await turns()
    assert len(wire.sent) > count


async def test_nothing_is_written_while_the_pipe_is_paused_and_texts_go_first_then(quiet: Ends) -> None:
    wire, link = quiet.wires[0], quiet.links[0]
    visitor = quiet.open()
    await turns()
    wire.paused = True
    count = len(wire.sent)
    visitor.stream.send(b"x" * 100_000)
    link.tell(Settings())
    await asyncio.sleep(3 * GATHER)
    assert len(wire.sent) == count
    wire.drain()
    assert wire.sent[count][0] == TEXT
    assert sum(len(payload) for _, payload, _ in wire.sent[count + 1 :]) > 100_000
    await quiet.served[0].until(lambda: len(quiet.served[0].body) == 100_000)


async def test_on_a_slow_network_messages_are_short_until_there_is_another_connection(
    quiet: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, link = quiet.wires[0], quiet.links[0]
    slow = TcpInfo(0.1, 0.0, 0.1, 0, 0, 0, 0, 0, 0, delivery_rate=100_000)
    monkeypatch.setattr(pacing, "read_tcp_info", lambda transport: slow)
    visitor = quiet.open()
    await turns()
    assert not link._pace.look(0.0)  # the first look, which proves nothing
    wire.drain()
    assert wire.held == [16 * 1024]
    count = len(wire.sent)
    visitor.stream.send(b"x" * 60_000)
    await wire.until(lambda: len(wire.sent) >= count + 4)
    sizes = [len(payload) for _, payload, _ in wire.sent[count:]]
    assert sizes == [16_384 + 9] * 3 + [60_000 - 3 * 16_384 + 9]
    session = quiet.sessions[0]
    link.detach()
    assert link.session is None
    Link(Wire(), quiet.owners[0], name="app").attach(session, session.counters[1], interval=30, timeout=10)
    assert session.bulk == 64 * 1024


async def test_a_pipe_that_pauses_midway_is_not_fed_further(quiet: Ends) -> None:
    wire = quiet.wires[0]
    visitor = quiet.open()
    await turns()
    count = len(wire.sent)
    send = wire.send

    def send_and_pause(opcode: int, parts: Sequence[Any]) -> None:
        send(opcode, parts)
        wire.paused = True

    wire.send = send_and_pause  # type: ignore[method-assign]
    visitor.stream.send(b"x" * 200_000)
    await asyncio.sleep(3 * GATHER)
    assert len(wire.sent) == count + 1
    wire.drain()
    assert len(wire.sent) == count + 2


async def test_messages_are_acknowledged_in_time_where_they_are_counted() -> None:
    ends = Ends(grace=60)
    ends.open()
    await ends.wires[1].until(lambda: ends.wires[1].binaries())  # a lone ACK, at the latest after 250 ms
    assert ends.sessions[0].counters == (0, 1)
    await turns()
    assert ends.sessions[0].counters == (1, 1)
    ends.open("r2")
    await turns()
    ends.close()  # with the timer of the second one still running
    await turns()
    assert not [handle for handle in timers() if "Link" in repr(handle)]


async def test_pings_are_answered_and_round_trips_told(quiet: Ends) -> None:
    pings = [text for text in quiet.wires[0].texts() if isinstance(text, Ping)]
    pongs = [text for text in quiet.wires[1].texts() if isinstance(text, Pong)]
    assert [(ping.timestamp, ping.seq) for ping in pings] == [(pong.timestamp, pong.seq) for pong in pongs]
    assert pings[0].timestamp.endswith("Z")
    (trip,) = quiet.owners[0].of("heard")
    assert 0 <= trip < 5
    assert quiet.sessions[0].round_trip == trip


@pytest.mark.parametrize("code", sorted(CLOSE_CODES))
async def test_each_code_closes_with_its_number(quiet: Ends, code: str) -> None:
    link, wire = quiet.links[0], quiet.wires[0]
    link.fail(RemoteError(code, "why"), tell=True)
    assert wire.closed_with == (CLOSE_CODES[code], code)
    assert code in CODES
    said = wire.texts()[-1]
    assert isinstance(said, ErrorMessage)
    assert (said.code, said.message) == (code, "why")
    assert link.session is None
    await turns()


async def test_an_agent_tells_by_the_close_alone(quiet: Ends) -> None:
    link, wire = quiet.links[1], quiet.wires[1]
    count = len(wire.sent)
    link.fail(RemoteError("flow_control", "why"), tell=False)
    assert wire.closed_with == (1002, "flow_control")
    assert len(wire.sent) == count


@pytest.mark.parametrize(
    ("opcode", "payload", "code"),
    [
        (BINARY, b"", "protocol_error"),
        (BINARY, b"\xff" * 20, "protocol_error"),
        (BINARY, b"\x03" + b"\0\0\0\x09" + b"\0\0\0\x01x", "unknown_stream"),
        (TEXT, b"no json", "protocol_error"),
        (TEXT, b"[]", "protocol_error"),
        (TEXT, b'{"type": "ping"}', "protocol_error"),
        (TEXT, encode(GoAway("x", 1.0)), "protocol_error"),  # refused by this owner
    ],
)
async def test_a_fault_of_the_peer_ends_the_session(quiet: Ends, opcode: int, payload: bytes, code: str) -> None:
    visitor = quiet.open()
    await turns()
    quiet.links[0].message(opcode, payload)
    (error,) = quiet.owners[0].of("fault")
    assert error.code == code
    assert visitor.reason == "peer_lost"
    assert quiet.wires[0].closed_with == (CLOSE_CODES[code], code)


async def test_unknown_texts_are_passed_over(quiet: Ends) -> None:
    quiet.links[0].message(TEXT, b'{"type": "from a newer peer", "x": 1}')
    assert not quiet.owners[0].of("fault")


@pytest.mark.parametrize(
    "message", [Ping("t", 1), Pong("t", 1), StreamCancel("r", "visitor"), b"\x01\0\0\0\x01\0\0\0\0"]
)
async def test_nothing_of_a_session_comes_before_it(message: Any) -> None:
    wire, owner = Wire(), Owner()
    link = Link(wire, owner, name="app")
    if isinstance(message, bytes):
        link.message(BINARY, message)
    else:
        link.message(TEXT, encode(message))
    (error,) = owner.of("fault")
    assert error.code == "protocol_error"
    link.closed(None, "")


async def test_a_peer_that_asks_and_does_not_read_is_given_up(quiet: Ends) -> None:
    wire, link = quiet.wires[0], quiet.links[0]
    wire.paused = True
    for number in range(300):
        link.message(TEXT, encode(Ping("t", number)))
        if quiet.owners[0].of("fault"):
            break
    (error,) = quiet.owners[0].of("fault")
    assert error.code == "protocol_error"
    assert link.session is None


async def test_ones_own_texts_that_nobody_reads_are_a_fault_and_no_exception() -> None:
    ends = Ends(interval=0.001, timeout=3600, joined=False)
    ends.wires[0].paused = True  # and the peer's bytes come on
    async with asyncio.timeout(10):
        while not ends.owners[0].of("fault"):
            ends.owners[0].news.clear()
            await ends.owners[0].news.wait()
    assert ends.links[0].session is None
    ends.close()
    await turns()
    assert not [handle for handle in timers() if "Link" in repr(handle)]


async def test_silence_is_told_then_death_and_never_early() -> None:
    begun = monotonic()
    ends = Ends(interval=0.2, timeout=0.2, joined=False)
    visitor = ends.open()
    await ends.owners[0].until("silent", True)
    took = monotonic() - begun
    assert 0.4 <= took < 1.4
    assert ends.owners[0].of("silent") == [False, True]
    assert visitor.reason == "peer_lost"
    assert ends.wires[0].aborted
    ends.close()


async def test_a_peer_that_is_back_in_time_is_told_of() -> None:
    ends = Ends(interval=0.2, timeout=5, joined=False)
    await ends.owners[0].until("silent", False)
    ends.wires[0].arrive(TEXT, b'{"type": "anything new"}')
    await ends.owners[0].until("heard", None)
    ends.close()


async def test_a_reload_of_the_heartbeat_holds_at_once(quiet: Ends) -> None:
    for link in quiet.links:
        link.retime(0.05, 1)
    await quiet.wires[0].until(lambda: sum(isinstance(text, Ping) for text in quiet.wires[0].texts()) >= 4)


@pytest.mark.parametrize("how", ["closed", "detach", "abort", "fail", "close"])
async def test_nothing_runs_after_the_end(how: str) -> None:
    before = timers()
    ends = Ends(interval=0.05, timeout=1, grace=60)
    visitor = ends.open()
    await turns(5)
    visitor.stream.send(b"x")
    ends.links[0].message(BINARY, b"\x40\0\0\0\x07\0\0\0\0")  # counted: the timer for its ACK runs
    for link in ends.links:
        match how:
            case "closed":
                link.closed(None, "")
            case "fail":
                link.fail(RemoteError("protocol_error", "x"), tell=False)
            case "close":
                link.close(1000, "")
            case _:
                getattr(link, how)()
        assert link.session is None
    await turns(5)
    assert not {handle for handle in timers() - before if "Link" in repr(handle)}
    counts = [len(wire.sent) for wire in ends.wires]
    await asyncio.sleep(0.12)
    assert counts == [len(wire.sent) for wire in ends.wires]


async def test_after_closed_nothing_is_said(quiet: Ends) -> None:
    link, wire = quiet.links[0], quiet.wires[0]
    link.closed(1006, "gone")
    count = len(wire.sent)
    link.say(GoAway("x", 1.0))
    link.tell(GoAway("x", 1.0))
    link.go_away("x", 1.0)
    link.retime(0.01, 1)
    link.writable()
    await turns()
    assert len(wire.sent) == count
    assert quiet.owners[0].of("closed") == [(1006, "gone")]
    assert not quiet.owners[0].of("fault")


async def test_closing_hands_over_what_is_queued(quiet: Ends) -> None:
    visitor = quiet.open()
    await turns()
    visitor.stream.cancel("shutdown")
    quiet.links[0].close(1000, "shutdown")
    assert isinstance(quiet.wires[0].texts()[-1], StreamCancel)
    assert quiet.wires[0].closed_with == (1000, "shutdown")


async def test_a_consumers_fault_ends_the_connection_and_is_told_to_the_loop(quiet: Ends) -> None:
    """What a consumer raises is a defect of ours: the session is not whole any more, so it does not go on."""
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    wire = quiet.wires[0]
    visitor = quiet.open()
    await turns()

    def broken() -> None:
        raise ZeroDivisionError

    visitor.writable = broken  # type: ignore[method-assign]
    while visitor.stream.send(b"x" * 65536):
        pass
    async with asyncio.timeout(5):
        while not faults:
            await asyncio.sleep(0.001)
    assert [type(fault) for fault in faults] == [ZeroDivisionError]
    assert wire.aborted
    quiet.links[0].closed(None, "")
    assert [code for code, _ in quiet.owners[0].of("closed")] == [1006]


async def test_input_of_a_connection_that_was_let_go_reaches_nobody(quiet: Ends) -> None:
    visitor = quiet.open()
    await turns()
    quiet.links[0].detach()
    stream = quiet.served[0].stream
    stream.send_head(200, [])
    await turns(5)
    assert not visitor.heads
    (error,) = quiet.owners[0].of("fault")  # a whole WebSocket would not even deliver it
    assert error.code == "protocol_error"
