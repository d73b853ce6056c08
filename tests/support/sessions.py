"""Two real sessions joined in memory by a network that delays, drops, cuts and replaces connections.

What is counted is the WebSocket message, so whole messages are what this network carries: it may cut the stream of them
anywhere, and bring what was under way late. That a message is cut into pieces on its way is the business of the
WebSocket's codec, and of its tests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf

from tunneld.protocol import frames
from tunneld.protocol.frames import OPEN
from tunneld.protocol.messages import Headers, Open, StreamCancel, decode_text, encode
from tunneld.protocol.session import BINARY, Session, SessionSettings
from tunneld.protocol.streams import Stream
from tunneld.protocol.windows import MemoryBudget

SMALL = SessionSettings(
    max_streams=4, stream_window=16 * 1024, stream_window_max=64 * 1024, max_header=1024, buffer=64 * 1024
)


def kept(session: Session) -> int:
    """How many entries of any kind a session holds: zero once everything is over and acknowledged."""
    outbox = session._outbox
    queues = (
        session.streams,
        session._by_request,
        outbox.unconfirmed,
        outbox.drained,
        outbox._control,
        outbox._cancels,
        outbox._windows,
        outbox._ready,
        outbox._retransmit,
        outbox._texts,
    )
    return sum(map(len, queues)) + (len(session._replay._messages) if session._replay is not None else 0)


def counted(session: Session) -> int:
    """Bytes that a session holds, and that its process's budget must know of."""
    replay = session._replay
    kept = replay.data_held + replay.control_held if replay is not None else 0
    return kept + sum(stream.held for stream in session.streams.values())


def pattern(request_id: str, direction: str, start: int, count: int) -> bytes:
    """The bytes that this direction of this stream carries: a different one at each place."""
    seed = sum(f"{request_id}{direction}".encode()) % 251
    return bytes((seed + (position * 7) % 241) % 256 for position in range(start, start + count))


class Side:
    """One end of one stream: makes its direction's bytes, checks the other's, takes as slowly as it is told."""

    def __init__(self, request_id: str, direction: str, other: str) -> None:
        self.request_id = request_id
        self.direction = direction
        self.other = other
        self.stream: Stream | None = None
        self.sent = 0
        self.received = 0
        self.held = 0
        self.max_held = 0
        self.head_sent = False
        self.ended_sending = False
        self.heads: list[int] = []
        self.heads_sent: list[int] = []
        self.ends = 0
        self.trailers: Headers | None = None
        self.trailers_sent: Headers = []
        self.stopped_by_peer = False
        self.said_stop = False
        self.reason: str | None = None
        self.blocked = False

    # -- Sink
    def head(self, status: int, headers: Headers) -> None:
        assert self.reason is None
        assert not self.received, "a head behind bytes"
        self.heads.append(status)

    def data(self, data: bytes) -> None:
        assert self.reason is None, "bytes after the end"
        assert not self.ends
        assert not self.said_stop
        expected = pattern(self.request_id, self.other, self.received, len(data))
        assert data == expected, "bytes lost, doubled, out of order or of another stream"
        self.received += len(data)
        self.held += len(data)
        self.max_held = max(self.max_held, self.held)

    def end(self, trailers: Headers) -> None:
        assert self.reason is None
        assert not self.ends, "two ends"
        assert not self.said_stop, "an end behind STOP"
        self.ends += 1
        self.trailers = trailers

    def stopped(self) -> None:
        assert not self.stopped_by_peer, "stopped twice"
        self.stopped_by_peer = True
        self.ended_sending = True

    def cancelled(self, reason: str) -> None:
        assert self.reason is None, "cancelled twice"
        self.reason = reason

    def writable(self) -> None:
        assert self.blocked, "told to go on without having been paused"
        assert self.reason is None
        self.blocked = False

    # -- what a test does
    @property
    def over(self) -> bool:
        return self.reason is not None or self.stream is None or self.stream.closed

    def send(self, count: int) -> None:
        assert self.stream is not None
        data = pattern(self.request_id, self.direction, self.sent, count)
        self.sent += count
        self.blocked = not self.stream.send(data)

    def take(self, count: int) -> None:
        assert self.stream is not None
        count = min(count, self.held)
        self.held -= count
        self.stream.took(count)

    def answer(self, status: int, *, end: bool = False) -> None:
        assert self.stream is not None
        self.stream.send_head(status, [("X", "y")], end=end)
        self.heads_sent.append(status)
        if status >= 200:
            self.head_sent = True
            self.ended_sending = end

    def stop(self) -> None:
        assert self.stream is not None
        self.said_stop = True
        self.stream.stop()

    def finish(self, trailers: Headers | None = None) -> None:
        assert self.stream is not None
        self.trailers_sent = trailers or []
        self.stream.send_end(trailers)
        self.ended_sending = True

    def cancel(self, reason: str) -> None:
        assert self.stream is not None
        self.stream.cancel(reason)
        self.reason = f"own {reason}"


class Connection:
    """Messages under way in both directions, and the epoch that each end knows the connection by."""

    def __init__(self) -> None:
        self.to: dict[str, deque[tuple[int, bytes]]] = {"server": deque(), "agent": deque()}
        self.epoch = {"server": -1, "agent": -1}


class Joined:
    """A server's session and an agent's, and the connections between them, the newest last.

    Args:
        settings: of both; the agent's `max_streams` is `agent_streams`, where that is given.
        high: the highest id opened so far, on both sides.
        memory: bytes that each side's process may hold.
    """

    def __init__(
        self,
        settings: SessionSettings = SMALL,
        *,
        agent_streams: int | None = None,
        high: int = 0,
        memory: float = inf,
    ) -> None:
        self.settings = settings
        self.now = 0.0
        self.sides: dict[tuple[str, str], Side] = {}
        self.opened = 0
        self.cancelled: dict[str, set[int]] = {"server": set(), "agent": set()}
        self.connections: list[Connection] = []
        self.budget = {who: MemoryBudget(memory) for who in ("server", "agent")}
        self.server = Session(settings, budget=self.budget["server"])
        agents = replace(settings, max_streams=agent_streams or settings.max_streams)
        self.agent = Session(agents, accept=self._accept, budget=self.budget["agent"])
        self.server._high = self.agent._high = high
        self.connect()

    @property
    def connection(self) -> Connection:
        return self.connections[-1]

    def session(self, who: str) -> Session:
        return self.server if who == "server" else self.agent

    def _accept(self, stream: Stream, request: Open, ended: bool) -> Side:
        side = Side(request.request_id, "down", "up")
        side.stream = stream
        side.ends = int(ended)
        assert (request.request_id, "agent") not in self.sides, "a request opened twice"
        self.sides[request.request_id, "agent"] = side
        return side

    def open(self, *, ended: bool) -> Side:
        self.opened += 1
        request_id = f"r{self.opened}"
        side = Side(request_id, "up", "down")
        side.ended_sending = ended
        request = Open(request_id, "GET", f"/{self.opened}", [("X-N", str(self.opened))], "::1")
        side.stream = self.server.open(request, side, ended=ended)
        self.sides[request_id, "server"] = side
        return side

    # -- the network
    def connect(self) -> None:
        """A new connection: the agent detaches the old one before it reads its counter, the server in one step."""
        self.agent.detach()
        agent_received = self.agent.received
        connection = Connection()
        connection.epoch["server"] = self.server.attach(agent_received, _nothing)
        connection.epoch["agent"] = self.agent.attach(self.server.received, _nothing)
        self.connections.append(connection)
        del self.connections[:-3]

    def write(self, who: str, connection: Connection | None = None) -> bool:
        """One message from that side onto its connection; False when it has none."""
        connection = connection or self.connection
        session = self.session(who)
        before = session.counters[1]
        message = session.next_message(connection.epoch[who], self.now)
        if message is None:
            return False
        opcode, parts = message
        payload = b"".join(parts)
        if opcode == BINARY and (session._replay is None or session.counters[1] > before):
            for _, stream_id, _ in frames.split(payload):  # neither a retransmission nor an ACK
                assert stream_id not in self.cancelled[who], "a frame of a stream that this side had cancelled"
        other = "agent" if who == "server" else "server"
        connection.to[other].append((opcode, payload))
        return True

    def cancel(self, who: str, side: Side, reason: str) -> None:
        """This side ends the stream."""
        assert side.stream is not None
        self.cancelled[who].add(side.stream.id)
        side.cancel(reason)

    def deliver(self, who: str, connection: Connection | None = None) -> bool:
        """One message to that side; False when none is under way."""
        connection = connection or self.connection
        queue = connection.to[who]
        if not queue:
            return False
        opcode, payload = queue.popleft()
        session, epoch = self.session(who), connection.epoch[who]
        if opcode == BINARY:
            session.receive(epoch, payload, self.now)
        else:
            message = decode_text(payload)
            assert isinstance(message, StreamCancel)
            session.receive_cancel(epoch, message, self.now)
        return True

    def settle(self) -> None:
        """Let all that is under way arrive, every consumer take, and every acknowledgement be told."""
        for _ in range(10_000):
            busy = False
            for who in ("server", "agent"):
                busy |= self.write(who)
                busy |= self.deliver(who)
            for side in self.sides.values():
                if side.held and side.stream is not None:
                    side.take(side.held)
                    busy = True
            if not busy:
                self.now += 1.0
                for who in ("server", "agent"):
                    self.session(who).wake_for_ack()
                    busy |= self.write(who)
                if not busy:
                    return
        raise AssertionError("the sessions never come to rest")


def _nothing() -> None:
    """The test asks by itself."""


RESUMED = replace(SMALL, grace=60.0)


class Meddler:
    """A consumer that does what it is told inside a callback."""

    def __init__(self, **doings: Callable[[], None]) -> None:
        self.doings = doings
        self.calls: list[str] = []

    def _do(self, call: str) -> None:
        self.calls.append(call)
        self.doings.pop(call, lambda: None)()

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._do("head")

    def data(self, data: bytes) -> None:
        self._do("data")

    def end(self, trailers: list[tuple[str, str]]) -> None:
        self._do("end")

    def stopped(self) -> None:
        self._do("stopped")

    def cancelled(self, reason: str) -> None:
        self._do("cancelled")

    def writable(self) -> None:
        self._do("writable")


def opened(joined: Joined, count: int, *, answered: bool = True) -> list[tuple[Side, Side]]:
    pairs = []
    for _ in range(count):
        server = joined.open(ended=False)
        joined.settle()
        agent = joined.sides[server.request_id, "agent"]
        if answered:
            agent.answer(200)
        pairs.append((server, agent))
    joined.settle()
    return pairs


def written_by(joined: Joined, who: str) -> list[tuple[int, bytes]]:
    """All that this side has to say now; none of it arrives."""
    while joined.write(who):
        pass
    queue = joined.connection.to["agent" if who == "server" else "server"]
    said = list(queue)
    queue.clear()
    return said


def frames_of(message: tuple[int, bytes]) -> list[tuple[int, int, int]]:
    """(type, id, length) of each frame."""
    assert message[0] == BINARY
    return [(kind, stream_id, len(payload)) for kind, stream_id, payload in frames.split(message[1])]


def receive(session: Session, *parts: bytes) -> None:
    session.receive(session.epoch, b"".join(parts), 0.0)


def opening(number: int, **changes: object) -> bytes:
    fields = {"request_id": f"x{number}", "method": "GET", "path": "/", "headers": [], **changes}
    return frames.frame(OPEN, number, encode(Open(**fields)))  # type: ignore[arg-type]
