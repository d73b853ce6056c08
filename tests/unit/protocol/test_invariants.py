"""The invariants of PROTOCOL.md: each by its number, under any interleaving that hypothesis finds.

The fifth, liveness, is held in test_heartbeat.py.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.handshaken import Handshaken
from tests.support.sessions import SMALL, Joined, Side, counted, kept, pattern
from tunneld.errors import CODES, RemoteError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, FIN, HEAD, OPEN, STOP, WINDOW
from tunneld.protocol.messages import Head, Open, Ping, Pong, StreamCancel, encode
from tunneld.protocol.session import Session
from tunneld.protocol.streams import MAX_INFORMATIONAL, REASONS

SIDES = st.sampled_from(["server", "agent"])
SIZES = st.sampled_from([1, 100, 5_000, 16_384, 16_385, 70_000])
COUNTS = st.integers(1, 6)
INDEX = st.integers(0, 9)
TRAILERS = st.sampled_from([None, [("X-Sum", "1")], [("A", "b"), ("A", "ü")]])
RARELY = st.integers(0, 2).map(lambda number: number == 2)


class Sessions(RuleBasedStateMachine):
    """Invariants 1 and 2 with resume: nothing is lost, doubled or left behind, whatever is cut."""

    grace = 60.0
    kind: type[Joined] = Joined

    def __init__(self) -> None:
        super().__init__()
        self.joined = self.kind(replace(SMALL, grace=self.grace))

    @initialize(
        window=st.sampled_from([16 * 1024, 200 * 1024]),
        agent_streams=st.sampled_from([4, 3]),
        high=st.sampled_from([0, 2**31 - 2, 2**32 - 3]),
        memory=st.sampled_from([inf, 150_000, 20_000]),
    )
    def begin(self, window: int, agent_streams: int, high: int, memory: float) -> None:
        self.window_max = max(window, SMALL.stream_window_max)
        self.arguments = {"agent_streams": agent_streams, "high": high, "memory": memory}
        self.settings = replace(SMALL, grace=self.grace, stream_window=window, stream_window_max=self.window_max)
        self.joined = self.kind(self.settings, **self.arguments)

    def live(self, who: str) -> list[Side]:
        return [side for (_, owner), side in self.joined.sides.items() if owner == who and not side.over]

    def pick(self, who: str, index: int) -> Side | None:
        sides = self.live(who)
        return sides[index % len(sides)] if sides else None

    def sender(self, who: str, index: int) -> Side | None:
        """One that may send DATA or END."""
        side = self.pick(who, index)
        return None if side is None or side.ended_sending or (who == "agent" and not side.head_sent) else side

    # -- streams
    @rule(ended=st.booleans())
    @precondition(lambda self: self.joined.server.in_use < SMALL.max_streams)
    def open(self, ended: bool) -> None:
        self.joined.open(ended=ended)

    @rule(index=INDEX, status=st.sampled_from([103, 200, 404]), end=st.booleans())
    def head(self, index: int, status: int, end: bool) -> None:
        side = self.pick("agent", index)
        if side is None or side.head_sent or side.ended_sending:
            return
        if status >= 200 or len(side.heads_sent) < MAX_INFORMATIONAL:
            side.answer(status, end=end and status >= 200)

    @rule(who=SIDES, index=INDEX, size=SIZES)
    def send(self, who: str, index: int, size: int) -> None:
        side = self.sender(who, index)
        if side is not None and not side.blocked:
            side.send(size)

    @rule(who=SIDES, index=INDEX, trailers=TRAILERS)
    def finish(self, who: str, index: int, trailers: list[tuple[str, str]] | None) -> None:
        side = self.sender(who, index)
        if side is not None:
            side.finish(trailers)

    @rule(who=SIDES, index=INDEX, size=SIZES)
    def take(self, who: str, index: int, size: int) -> None:
        side = self.pick(who, index)
        if side is not None:
            side.take(size)

    @rule(index=INDEX, size=SIZES, trailers=TRAILERS)
    def serve(self, index: int, size: int, trailers: list[tuple[str, str]] | None) -> None:
        """A whole answer at once."""
        side = self.pick("agent", index)
        if side is not None and not side.head_sent and not side.ended_sending:
            side.answer(200)
            side.send(size)
            side.finish(trailers)

    @rule(who=SIDES, index=INDEX, really=RARELY)
    def stop(self, who: str, index: int, really: bool) -> None:
        side = self.pick(who, index)
        if really and side is not None and not side.ends and not side.said_stop:
            side.stop()

    @rule(who=SIDES, index=INDEX, reason=st.sampled_from(REASONS), really=RARELY)
    def cancel(self, who: str, index: int, reason: str, really: bool) -> None:
        side = self.pick(who, index)
        if really and side is not None:
            self.joined.cancel(who, side, reason)

    @rule(refusing=st.booleans())
    def refuse_new(self, refusing: bool) -> None:
        self.joined.agent.refuse_new(refusing)

    # -- the network
    @rule(who=SIDES, count=COUNTS)
    def write(self, who: str, count: int) -> None:
        for _ in range(count):
            self.joined.write(who)

    @rule(who=SIDES, count=COUNTS)
    def deliver(self, who: str, count: int) -> None:
        for _ in range(count):
            self.joined.deliver(who)

    @rule(who=SIDES)
    def burst(self, who: str) -> None:
        """All that may be sent is, and none of it arrives: what is not acknowledged must stop it."""
        for _ in range(3):
            for index, side in enumerate(self.live(who)):
                if self.sender(who, index) and not side.blocked and side.sent < 500_000:
                    side.send(70_000)
            self.write(who, 4)

    @rule(count=COUNTS)
    def exchange(self, count: int) -> None:
        """Both sides write and read, so that streams come far."""
        for _ in range(count):
            for who in ("server", "agent"):
                self.joined.write(who)
                self.joined.deliver("agent" if who == "server" else "server")

    @rule(seconds=st.sampled_from([0.01, 0.3]), round_trip=st.sampled_from([None, 0.05, 10.0]))
    def wait(self, seconds: float, round_trip: float | None) -> None:
        """Time passes; what the round trip is known to be lets windows grow."""
        self.joined.now += seconds
        self.joined.server.round_trip = self.joined.agent.round_trip = round_trip

    @rule(lost=st.tuples(st.integers(0, 5), st.integers(0, 5)))
    def cut(self, lost: tuple[int, int]) -> None:
        """The connection dies and loses what was under way last; a new one takes over, the old one's rest may come."""
        for who, count in zip(("server", "agent"), lost, strict=True):
            queue = self.joined.connection.to[who]
            for _ in range(min(count, len(queue))):
                queue.pop()
        self.joined.connect()

    @rule(who=SIDES, count=COUNTS)
    def overtake(self, who: str, count: int) -> None:
        """A new connection stands while the old one's messages are still read."""
        for side in ("server", "agent"):
            for _ in range(count):
                self.joined.write(side)
        self.joined.connect()
        for _ in range(2 * count):
            self.late(who, 2)

    @rule(who=SIDES, back=st.integers(2, 3))
    def late(self, who: str, back: int) -> None:
        """Input and output of a connection that was replaced."""
        if len(self.joined.connections) >= back:
            old = self.joined.connections[-back]
            assert not self.joined.write(who, old), "an old connection was given something to write"
            self.joined.deliver(who, old)

    @rule(who=SIDES)
    def bad_counter(self, who: str) -> None:
        """A peer that says it received what was never sent, or less than it said before: nothing changes."""
        session = self.joined.session(who)
        acknowledged, sent = session.counters
        epoch = session.epoch
        for count in (sent + 1, acknowledged - 1):
            with pytest.raises(RemoteError):
                session.attach(count, lambda: None)
        assert (session.counters, session.epoch) == ((acknowledged, sent), epoch)

    @rule(really=RARELY)
    def end(self, really: bool) -> None:
        """The session is over, on both sides."""
        if not really:
            return
        joined = self.joined
        for who in ("server", "agent"):
            joined.session(who).end("peer_lost")
            assert not kept(joined.session(who))
        for side in joined.sides.values():
            assert side.over, "a stream outlived its session"
        self.joined = self.kind(self.settings, **self.arguments)

    # -- what always holds
    @invariant()
    def bounded(self) -> None:
        joined = self.joined
        for side in joined.sides.values():
            assert side.max_held <= self.window_max
        for who in ("server", "agent"):
            session = joined.session(who)
            if session._replay is not None:
                assert session._replay.data_held <= SMALL.buffer + 66 * 1024
                assert session._replay.control_held <= session._reserve
            assert len(session.streams) <= session.settings.max_streams
            assert joined.budget[who].held == counted(session), "the process's memory is not what is held"

    def teardown(self) -> None:
        joined = self.joined
        joined.agent.refuse_new(False)
        joined.settle()
        for (request_id, who), side in joined.sides.items():
            if side.said_stop and not side.over:
                assert side.stream.receiving_ended, f"{who}'s STOP for {request_id} was never answered"
        for who in ("agent", "server"):
            for side in self.live(who):
                if not side.ended_sending:
                    if who == "agent" and not side.head_sent:
                        side.answer(200)
                    side.finish()
        joined.settle()
        self.check_complete()
        for who in ("server", "agent"):
            assert not kept(joined.session(who)), "something outlived its stream"
            if (replay := joined.session(who)._replay) is not None:
                assert replay.data_held == replay.control_held == 0
            assert joined.budget[who].held == 0

    def check_complete(self) -> None:
        for (request_id, who), side in self.joined.sides.items():
            assert side.over, "a stream that never ended"
            peer = self.joined.sides.get((request_id, "agent" if who == "server" else "server"))
            if peer is None:
                assert side.reason is not None, "a stream that never reached the agent and was never cancelled"
                continue
            assert peer.over
            if side.reason is None and peer.reason is None and not side.said_stop:
                assert side.received == peer.sent, "bytes that never arrived"
                assert side.ends == 1, "a direction that never ended"
                assert side.trailers in (None, peer.trailers_sent)
                assert who == "agent" or side.heads == peer.heads_sent


class WithoutResume(Sessions):
    """The same with `grace` 0: nothing is counted; a cut ends the session on both sides."""

    grace = 0.0

    @rule(lost=st.tuples(st.integers(0, 5), st.integers(0, 5)))
    def cut(self, lost: tuple[int, int]) -> None:
        self.end(True)

    @rule()
    def overtake(self) -> None:
        """There is no other connection of a session."""

    @rule()
    def late(self) -> None:
        """Nor anything late."""

    @rule(who=SIDES)
    def bad_counter(self, who: str) -> None:
        """Any ACK is one too many."""
        with pytest.raises(RemoteError):
            self.joined.session(who).attach(1, lambda: None)


class WithHandshakes(Sessions):
    """With resume whose hello and answer are lost, late, overtaken or cut in the middle, as the network pleases."""

    kind = Handshaken

    @rule()
    def dial(self) -> None:
        """The agent gives up what it has; the server may not know for long."""
        self.joined.dial()

    @rule(which=st.integers(0, 3))
    def arrive(self, which: int) -> None:
        """Any hello that is under way, one that was given up too."""
        self.joined.arrive(which)

    @rule()
    def answer(self) -> None:
        """The oldest `connected`."""
        self.joined.answer()

    @rule(hello=st.booleans())
    def lose(self, hello: bool) -> None:
        """A hello or a `connected` never comes."""
        queue = self.joined.hellos if hello else self.joined.answers
        if queue:
            queue.pop()

    @rule(who=SIDES, back=st.integers(1, 4), count=COUNTS)
    def late(self, who: str, back: int, count: int = 1) -> None:
        """Input of any connection that there was; output goes only to the one that this side believes in."""
        joined = self.joined
        if len(joined.connections) >= back:
            old = joined.connections[-back]
            assert old is joined.current[who] or not joined.write(who, old)
            for _ in range(count):
                joined.deliver(who, old)


_MANY = settings(max_examples=200, stateful_step_count=60, deadline=None)
_LONG = [pytest.mark.timeout(120)]  # of a machine that others use, too
TestInvariants1And2WithResume = Sessions.TestCase
TestInvariants1And2WithResume.settings = _MANY
TestInvariants1And2WithResume.pytestmark = _LONG
TestInvariants1And2WithoutResume = WithoutResume.TestCase
TestInvariants1And2WithoutResume.settings = _MANY
TestInvariants1And2WithoutResume.pytestmark = _LONG
TestInvariants1And2WithHandshakes = WithHandshakes.TestCase
TestInvariants1And2WithHandshakes.settings = _MANY
TestInvariants1And2WithHandshakes.pytestmark = _LONG


def _opened(joined: Joined, *, ended: bool = False) -> tuple[Side, Side]:
    """A stream whose OPEN and HEAD have arrived: (server's side, agent's side)."""
    server = joined.open(ended=ended)
    joined.settle()
    agent = joined.sides[server.request_id, "agent"]
    agent.answer(200)
    joined.settle()
    return server, agent


@given(
    chunks=st.lists(st.integers(1, 30_000), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    lost=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_invariant_1_bytes_arrive_in_order_once_whatever_happens_to_the_connection(
    chunks: list[int], cuts: list[int], lost: int
) -> None:
    joined = Joined(replace(SMALL, grace=60.0))
    server, agent = _opened(joined)
    for step in range(200):
        for side in (server, agent):
            if not side.blocked and side.sent < sum(chunks):
                side.send(min(chunks[step % len(chunks)], sum(chunks) - side.sent))
        joined.write("server")
        joined.write("agent")
        if step in cuts:
            for queue in joined.connection.to.values():
                for _ in range(min(lost, len(queue))):
                    queue.pop()
            joined.connect()
        joined.deliver("server")
        joined.deliver("agent")
        for side in (server, agent):
            side.take(side.held)
    server.finish([("X-Last", "1")])
    agent.finish()
    joined.settle()
    assert server.received == agent.sent == agent.received == server.sent == sum(chunks)
    assert (server.ends, agent.ends, agent.trailers) == (1, 1, [("X-Last", "1")])


@given(
    who=SIDES,
    reason=st.sampled_from(REASONS),
    phase=st.sampled_from(["queued", "open", "head", "bytes", "half", "stopped"]),
    grace=st.sampled_from([0.0, 60.0]),
    end=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_invariant_2_a_stream_ends_on_both_sides_for_every_reason(
    who: str, reason: str, phase: str, grace: float, end: bool
) -> None:
    joined = Joined(replace(SMALL, grace=grace))
    server = joined.open(ended=False)
    if phase != "queued":
        joined.settle()
        agent = joined.sides[server.request_id, "agent"]
        if phase != "open":
            agent.answer(200)
            joined.settle()
        if phase == "bytes":
            agent.send(70_000)
            server.send(70_000)
            joined.write("agent")
        elif phase == "half":
            agent.finish()
            joined.settle()
        elif phase == "stopped":
            agent.stop()
    side = joined.sides.get((server.request_id, who))
    if end or side is None:
        joined.server.end(reason)
        joined.agent.end(reason)
    else:
        joined.cancel(who, side, reason)
        joined.settle()
    for known in joined.sides.values():
        assert known.over
        assert known.reason in (reason, f"own {reason}")
    if not end and side is not None:
        assert not kept(joined.server)
        assert not kept(joined.agent)


@given(
    down=st.lists(st.integers(1, 200_000), min_size=1, max_size=3),
    grace=st.sampled_from([0.0, 60.0]),
    round_trip=st.sampled_from([None, 10.0]),
)
@settings(max_examples=25, deadline=None)
def test_invariant_3_a_reader_that_stops_reading_stops_only_its_own_stream(
    down: list[int], grace: float, round_trip: float | None
) -> None:
    joined = Joined(replace(SMALL, grace=grace))
    joined.server.round_trip = joined.agent.round_trip = round_trip
    stuck_reader, stuck_source = _opened(joined, ended=True)
    pairs = [_opened(joined, ended=True) for _ in down]
    for _ in range(400):
        if not stuck_source.blocked:
            stuck_source.send(10_000)  # its reader takes nothing, ever
        for (_, source), size in zip(pairs, down, strict=True):
            if not source.blocked and source.sent < size:
                source.send(min(10_000, size - source.sent))
        for _ in range(2):
            joined.write("agent")
            joined.deliver("server")
            joined.write("server")
            joined.deliver("agent")
        for reader, _ in pairs:
            reader.take(reader.held)
        joined.now += 0.3  # ACKs are told
        for who in ("server", "agent"):
            joined.session(who).wake_for_ack()
    assert [reader.received for reader, _ in pairs] == down
    assert stuck_source.blocked
    assert stuck_reader.max_held == SMALL.stream_window
    assert stuck_source.stream is not None
    assert stuck_source.stream.pending <= 64 * 1024 + 10_000


_IDS = st.integers(0, 6)
_PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda size: bytes(size), st.integers(0, 20_000)),
    st.builds(lambda credit: credit.to_bytes(4, "big"), st.integers(0, 2**32 - 1)),
    st.builds(lambda n: encode(Open(f"r{n}", "GET", "/", [("A", "b")])), _IDS),
    st.builds(lambda status: encode(Head(status, [("A", "b")])), st.integers(90, 1010)),
    st.just(encode([("A", "b")])),
)
_KINDS = st.sampled_from([OPEN, OPEN | FIN, HEAD, HEAD | FIN, DATA, DATA | FIN, END, STOP, WINDOW, 0x45, 0x45 | FIN])
_FRAMES = st.builds(frames.frame, st.one_of(_KINDS, st.integers(0, 255)), _IDS, _PAYLOADS)
_MESSAGES = st.one_of(
    st.lists(_FRAMES, min_size=1, max_size=4).map(b"".join),
    st.builds(frames.ack, st.integers(0, 3)),
    st.builds(StreamCancel, _IDS.map("r{}".format), st.sampled_from([*REASONS, "unheard of"])),
)


@given(
    role=SIDES,
    grace=st.sampled_from([0.0, 60.0]),
    inputs=st.lists(_MESSAGES, max_size=20),
    writes=st.lists(st.booleans(), max_size=20),
)
@pytest.mark.timeout(60)
@settings(max_examples=400, deadline=None)
def test_invariant_4_any_input_is_a_valid_transition_or_an_error_with_a_code(
    role: str, grace: float, inputs: list[bytes | StreamCancel], writes: list[bool]
) -> None:
    joined = Joined(replace(SMALL, grace=grace))
    session = joined.session(role)
    if role == "server":
        for _ in range(3):
            joined.open(ended=False)
        for _ in range(3):
            joined.write("server")
    joined.sides.clear()
    code = None
    pattern_of_others = Side.data  # bytes of a stranger follow no pattern
    try:
        Side.data = lambda self, data: None  # type: ignore[method-assign]
        for position, message in enumerate(inputs):
            if isinstance(message, StreamCancel):
                session.receive_cancel(session.epoch, message, joined.now)
            else:
                session.receive(session.epoch, message, joined.now)
            if position < len(writes) and writes[position]:
                session.next_message(session.epoch, joined.now)
            joined.sides.clear()
    except RemoteError as error:
        code = error.code
    finally:
        Side.data = pattern_of_others  # type: ignore[method-assign]
    assert code is None or CODES[code].status == 0
    assert len(session.streams) <= SMALL.max_streams
    assert set(session._by_request.values()) == set(session.streams.values())
    session.end("peer_lost")
    assert not session.streams
    assert not session._by_request


class Quiet:
    """A consumer of whatever comes; on the agent it answers at once, and whole."""

    def __init__(self, stream: object = None) -> None:
        if stream is not None:
            stream.send_head(200, [("A", "b" * 100)], end=True)  # type: ignore[attr-defined]

    def head(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def data(self, data: bytes) -> None: ...
    def end(self, trailers: list[tuple[str, str]]) -> None: ...
    def stopped(self) -> None: ...
    def cancelled(self, reason: str) -> None: ...
    def writable(self) -> None: ...


def _flood_opens(session: Session, number: int) -> None:
    opening = frames.frame(OPEN | FIN, number, encode(Open(f"r{number}", "GET", "/", [])))
    session.receive(session.epoch, opening, 0.0)


def _flood_cancelled(session: Session, number: int) -> None:
    opening = frames.frame(OPEN, number, encode(Open(f"r{number}", "GET", "/", [])))
    session.receive(session.epoch, opening, 0.0)
    session.receive_cancel(session.epoch, StreamCancel(f"r{number}", "visitor"), 0.0)


def _flood_pings(session: Session, number: int) -> None:
    session.say(Pong("now", number))


def _flood_frames(kind: int, payload: bytes):
    def flood(session: Session, number: int) -> None:
        if number == 1:
            session.receive(session.epoch, frames.frame(OPEN, 1, encode(Open("r", "GET", "/", []))), 0.0)
        session.receive(session.epoch, frames.frame(kind, 1, payload) * 20, 0.0)

    return flood


@pytest.mark.parametrize("grace", [0.0, 60.0])
@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(_flood_opens, id="opens"),
        pytest.param(_flood_cancelled, id="opens-and-cancels"),
        pytest.param(_flood_pings, id="pings"),
        pytest.param(_flood_frames(STOP, b""), id="stops"),
        pytest.param(_flood_frames(WINDOW, b"\0\0\0\1"), id="windows"),
        pytest.param(_flood_frames(0x40, b"x" * 50), id="unknown-types"),
    ],
)
def test_invariant_4_nothing_grows_under_a_flood_that_is_never_read(flood, grace: float) -> None:
    session = Session(replace(SMALL, grace=grace), accept=lambda stream, request, ended: Quiet(stream))
    session.attach(0, lambda: None)
    most, code = 0, "protocol_error"
    try:
        for number in range(1, 5000):
            flood(session, number)
            most = max(most, kept(session))
    except RemoteError as error:
        code = error.code
    assert most <= 300
    assert code == "protocol_error"


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_invariant_4_an_agent_that_reads_and_never_acknowledges_is_given_up(grace: float) -> None:
    session = Session(replace(SMALL, grace=grace), accept=lambda stream, request, ended: Quiet(stream))
    epoch = session.attach(0, lambda: None)

    def storm() -> None:
        for number in range(1, 5000):
            _flood_opens(session, number)
            while session.next_message(epoch, 0.0) is not None:
                pass

    if grace:
        with pytest.raises(RemoteError, match="ACK"):
            storm()
        assert session._replay is not None
        assert session._replay.control_held <= session._reserve + 1024
    else:
        storm()
        assert not kept(session)


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_invariant_4_visitors_that_come_and_go_leave_nothing_while_nobody_reads(grace: float) -> None:
    session = Session(replace(SMALL, grace=grace))
    session.attach(0, lambda: None)
    for number in range(5000):
        stream = session.open(Open(f"r{number}", "POST", "/", []), Quiet(), ended=False)
        stream.send(b"x" * 100)
        stream.cancel("visitor")
        assert kept(session) <= 4
    session.say(Ping("now", 1))


def test_invariant_4_the_patterns_of_two_streams_differ() -> None:
    assert pattern("r1", "up", 0, 100) != pattern("r1", "down", 0, 100) != pattern("r2", "down", 0, 100)
