"""One tunnel's session: streams over one connection after another, sans I/O and sans clock.

The shell (link.py) hands in messages and the time, and asks for the next message to write; consumers are told by
their `Sink`. `wake` is called when there is something to write and nothing was before. What waits to be written is
in outgoing.py; here are the ids, the connections and what comes in. PROTOCOL.md has the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunneld.errors import CODES, LocalError, RemoteError, VisitorError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, FIN, HEAD, OPEN, STOP, WINDOW
from tunneld.protocol.messages import Open, StreamCancel, decode_head, decode_open, decode_trailers, encode
from tunneld.protocol.outgoing import BINARY, TEXT, TURN, Outbox, Outgoing
from tunneld.protocol.replay import ReplayBuffer
from tunneld.protocol.sinks import Sink
from tunneld.protocol.streams import REASONS, Stream
from tunneld.protocol.windows import MemoryBudget

__all__ = ["BINARY", "TEXT", "Outgoing", "Session", "SessionSettings", "Standing"]

_HALF_IDS = 2**31
_IDS = 2**32
#: Frames and cancels that may wait for each stream that the peer may have open: at most eight heads with 1xx, HEAD,
#: END, STOP and a cancel wait for a peer that keeps to `max_streams`.
_BACKLOG = 16


def _nothing() -> None:
    """Nobody waits."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What holds for a session's life; both sides take it from `connected`.

    Attributes:
        max_streams: ids in use at one time.
        stream_window: bytes of credit that each direction starts with.
        stream_window_max: bytes that one's own receive windows may grow to.
        max_header: bytes; an encoded head may be twice as large.
        grace: seconds that the session outlives a connection; 0: nothing is counted or kept.
        buffer: bytes of one's own replay buffer.
        peer_buffer: bytes of the peer's.
    """

    max_streams: int = 1000
    stream_window: int = 256 * 1024
    stream_window_max: int = 4 * 1024 * 1024
    max_header: int = 64 * 1024
    grace: float = 0.0
    buffer: int = 4 * 1024 * 1024
    peer_buffer: int = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Standing:
    """A session without anything under way: what another process needs to take it up.

    Attributes:
        sent: counted messages sent, all of which the peer has.
        received: counted messages received.
        high: the highest stream id opened.
        passed: ids that were gone past.
    """

    sent: int
    received: int
    high: int
    passed: int


class Session:
    """The state that both ends share, less the connection.

    Args:
        settings: what `connected` said.
        accept: called for each OPEN that comes (agent): (stream, request, its direction has ended) -> consumer.
            None where streams are opened (server).
        budget: of the process's memory, shared with its other sessions; None: there is none.
    """

    def __init__(
        self,
        settings: SessionSettings,
        *,
        accept: Callable[[Stream, Open, bool], Sink] | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self.settings = settings
        #: id -> stream, until both directions have ended.
        self.streams: dict[int, Stream] = {}
        #: Seconds of round trip, for the growth of windows; the shell sets it from its heartbeats.
        self.round_trip: float | None = None
        #: Raised with each attach and detach; input and output of another epoch are ignored.
        self.epoch = 0
        self.ended = False
        self._accept = accept
        self._by_request: dict[str, Stream] = {}
        budget = budget or MemoryBudget()
        self._replay = ReplayBuffer(settings.buffer, settings.peer_buffer, budget) if settings.grace > 0 else None
        self._most = 2 * settings.max_header  # bytes of an encoded head, or of trailers
        self._reserve = settings.max_streams * (4 * settings.max_header + 1024) + 256 * 1024
        self._outbox = Outbox(settings.max_header, self._replay, budget)
        self._high = 0
        self._passed = 0  # ids that `_high` has gone past
        self._refusing = False
        #: Called with the request id of each cancel from this side; what it returns is called once the peer has it.
        #: None: nobody asks.
        self.cancelling: Callable[[str], Callable[[], None]] | None = None
        #: Called when an ACK came; a process that is about to hand the session over waits for it.
        self.acknowledged: Callable[[], None] = _nothing

    # -- connections -----------------------------------------------------------------------------------

    @property
    def received(self) -> int:
        """Counted messages received, for `hello` and `connected`; telling it counts as an ACK."""
        return self._replay.tell() if self._replay else 0

    @property
    def counters(self) -> tuple[int, int]:
        """(acknowledged, sent): a `received` of the peer must lie between them."""
        return (self._replay.acked, self._replay.sent) if self._replay else (0, 0)

    @property
    def hurry(self) -> Callable[[], None]:
        """Called when a whole message's worth waits, so that gathering has no more use; the shell sets it."""
        return self._outbox.hurry

    @hurry.setter
    def hurry(self, hurry: Callable[[], None]) -> None:
        self._outbox.hurry = hurry

    @property
    def bulk(self) -> int:
        """Bytes of DATA that one message takes, 16 KiB at least; the shell takes fewer on a slow network, until the
        next connection."""
        return self._outbox.bulk

    @bulk.setter
    def bulk(self, most: int) -> None:
        self._outbox.bulk = max(TURN, most)

    @property
    def unacknowledged(self) -> tuple[int, int]:
        """Bytes of messages with DATA that wait for the peer's ACK, and how many may; (0, 0) where none are kept."""
        return (self._replay.data_held, self._replay.limit) if self._replay else (0, 0)

    @property
    def replayed(self) -> int:
        """Bytes that the last attach had to send again."""
        return self._outbox.replayed

    def attach(self, peer_received: int, wake: Callable[[], None]) -> int:
        """Take a connection on, in one step; returns the epoch that its input and output carry.

        Args:
            peer_received: what the peer's `hello` or `connected` said it had received of this session.
            wake: called when there is something to write and nothing was before.

        Raises:
            RemoteError: ``protocol_error``: the peer's count cannot be. Nothing has changed.
        """
        if self.ended:
            raise LocalError("a session that has ended takes no connection")
        self._outbox.acknowledged(peer_received)
        self.epoch += 1
        self._outbox.attach(wake)
        return self.epoch

    def detach(self) -> None:
        """The connection is gone, or is to be ignored from here on."""
        self.epoch += 1
        self._outbox.detach()

    # -- from process to process -----------------------------------------------------------------------

    def leave(self, stream: Stream) -> None:
        """Let go of a stream without a word: a successor will `disown` it. Its consumer is told nothing."""
        self._forget(stream)

    def standing(self) -> Standing | None:
        """What a successor needs; None while anything is under way or not acknowledged."""
        replay = self._replay
        if replay is None or self.ended or self.streams or not self._outbox.idle or replay.acked != replay.sent:
            return None
        return Standing(replay.sent, replay.received, self._high, self._passed)

    def take_up(self, standing: Standing) -> None:
        """Be the session that another process left; before the first `attach`."""
        assert self._replay is not None
        self._replay.take_up(standing.sent, standing.received)
        self._high, self._passed = standing.high, standing.passed

    def disown(self, request_id: str, reason: str) -> None:
        """End a stream that only the peer knows."""
        self._outbox.disown(encode(StreamCancel(request_id, reason)))

    def end(self, reason: str) -> None:
        """The session is over: every stream's consumer is told `reason`, nothing is kept."""
        self.detach()
        self.ended = True
        for stream in list(self.streams.values()):
            sink = stream.sink
            self._forget(stream)
            if sink is not None:
                sink.cancelled(reason)
        self._outbox.clear()

    # -- opening ---------------------------------------------------------------------------------------

    @property
    def max_streams(self) -> int:
        """Ids in use at one time."""
        return self.settings.max_streams

    @property
    def in_use(self) -> int:
        """Ids that count towards `max_streams`."""
        return len(self.streams) + len(self._outbox.unconfirmed)

    def open(self, request: Open, sink: Sink, *, ended: bool) -> Stream:
        """Open a stream for a visitor's request (server).

        Args:
            request: its head.
            sink: what consumes the answer.
            ended: the request has no body.

        Raises:
            VisitorError: ``too_many_streams``, ``head_too_large``, or ``tunnel_offline`` once the session is over.
        """
        if self.ended:
            raise VisitorError("tunnel_offline", retry_after=1)
        if request.request_id in self._by_request:
            raise LocalError(f"request id {request.request_id} names a live stream")
        if len(self.streams) + len(self._outbox.unconfirmed) >= self.settings.max_streams:
            raise VisitorError(
                "too_many_streams",
                f"{self.in_use} streams are open on this tunnel, the most it may carry.",
                retry_after=1,
            )
        payload = encode(request)
        if len(payload) > self._most:
            raise VisitorError("head_too_large", "The request's head is over the limit once encoded.")
        stream = self._make(self._next_id(), request.request_id, opened_here=True)
        stream.sink = sink
        self._outbox.open(stream, payload, ended=ended)
        if ended:
            stream.finish_sending()
        return stream

    def _next_id(self) -> int:
        candidate = self._high
        streams, unconfirmed = self.streams, self._outbox.unconfirmed
        while True:
            candidate = (candidate + 1) % _IDS or 1
            if candidate not in streams and candidate not in unconfirmed:
                return candidate

    def _make(self, stream_id: int, request_id: str, *, opened_here: bool) -> Stream:
        stream = Stream(
            self,
            self._outbox,
            stream_id,
            request_id,
            opened_here=opened_here,
            window=self.settings.stream_window,
            maximum=self.settings.stream_window_max,
        )
        self._passed += (stream_id - self._high) % _IDS
        self._high = stream_id
        self.streams[stream_id] = stream
        self._by_request[request_id] = stream
        return stream

    def find(self, request_id: str) -> Stream | None:
        """The stream of that request, while it is not over."""
        return self._by_request.get(request_id)

    def refuse_new(self, refusing: bool = True) -> None:
        """Answer every further OPEN with a cancel `refused` (after the agent's own goaway)."""
        self._refusing = refusing

    # -- what streams ask for --------------------------------------------------------------------------

    def cancel(self, stream: Stream, reason: str) -> None:
        """End a stream from this side."""
        if reason not in REASONS:
            raise LocalError(f"no reason to cancel: {reason!r}")
        self._forget(stream)
        if stream.handed_over:  # else the peer never hears of it
            payload = encode(StreamCancel(stream.request_id, reason))
            confirmed = self.cancelling(stream.request_id) if self.cancelling is not None else None
            self._outbox.cancel(stream, payload, holds_id=self._accept is None, confirmed=confirmed)

    def finish(self, stream: Stream) -> None:
        """Both directions have ended."""
        told = stream.when_sent
        self._forget(stream, cancelled=False)
        if told is not None:
            told()

    def _forget(self, stream: Stream, *, cancelled: bool = True) -> None:
        """Take the stream off the tables; nothing is kept for it, and its consumer is told nothing more."""
        self.streams.pop(stream.id, None)
        self._by_request.pop(stream.request_id, None)
        stream.cancelled = cancelled
        stream.release()
        self._outbox.drop(stream)

    # -- output ----------------------------------------------------------------------------------------

    def say(self, message: object) -> None:
        """Queue a text message that is not counted (ping, pong, settings, goaway). Lost with its connection.

        Raises:
            RemoteError: ``protocol_error``: the peer does not read what it is told.
        """
        self._outbox.say(message)

    def next_message(self, epoch: int, now: float) -> Outgoing | None:
        """The next message to write; None when there is nothing, and then `wake` will be called again.

        Args:
            epoch: what `attach` returned to the caller.
            now: monotonic seconds.
        """
        return self._outbox.next(now, self.round_trip) if epoch == self.epoch else None

    @property
    def ack_at(self) -> float | None:
        """When an ACK is due at the latest (monotonic seconds): the shell calls `wake_for_ack` then."""
        return self._replay.ack_at if self._replay is not None else None

    def wake_for_ack(self) -> None:
        """The time of `ack_at` has come, as far as a timer can tell."""
        if self._replay is not None:
            self._replay.ack_now()
            self._outbox.want_write()

    # -- input -----------------------------------------------------------------------------------------

    def receive(self, epoch: int, message: bytes, now: float) -> None:
        """A binary message came.

        Raises:
            RemoteError: the peer broke the protocol; the session must end with its code.
        """
        if epoch != self.epoch:
            return
        if not message:
            raise RemoteError("protocol_error", "an empty binary message")
        count = frames.parse_ack(message)
        if count is not None:
            self._outbox.acknowledged(count)
            self.acknowledged()
            return
        replay = self._replay
        if replay is not None:
            replay.count(len(message), now)
            if replay.control_held > self._reserve:
                raise RemoteError("protocol_error", f"{replay.control_held} bytes wait for an ACK that does not come")
        streams = self.streams
        for kind, stream_id, payload in frames.split(message):
            stream = streams.get(stream_id)
            if stream is None:
                if self.ended:
                    return  # by a consumer
                self._without_stream(kind, stream_id, payload)
            elif kind == DATA:
                stream.on_data(payload)
            else:
                self._frame(stream, kind, payload)
        if self._outbox.drained:
            self._outbox.tell_drained()
        if replay is not None and replay.ack_due(now):
            self._outbox.want_write()

    def receive_cancel(self, epoch: int, message: StreamCancel, now: float) -> None:
        """A `stream_cancel` came (it is counted); one for a stream that is gone is ignored."""
        if epoch != self.epoch:
            return
        if self._replay is not None:
            self._replay.count(len(message.request_id) + 64, now)
            if self._accept is not None:  # the server measures by it how long a cancel takes
                self._replay.ack_now()
                self._outbox.want_write()
        stream = self._by_request.get(message.request_id)
        if stream is None:
            return
        sink = stream.sink
        self._forget(stream)
        if sink is not None:
            sink.cancelled(message.reason if message.reason in REASONS else "service")

    def _frame(self, stream: Stream, kind: int, payload: bytes) -> None:
        base = kind & 0x7F
        if base == DATA:
            stream.on_data(payload)
            if not stream.closed:
                stream.on_end([])
        elif not stream.handed_over:
            raise RemoteError("unknown_stream", f"a frame of type {base:#04x} for stream {stream.id}")
        elif base == HEAD:
            if self._accept is not None:
                raise RemoteError("protocol_error", "a HEAD from the server")
            if len(payload) > self._most:
                raise _too_large(payload, "HEAD")
            head = decode_head(payload)
            stream.on_head(head.status, head.headers, end=bool(kind & FIN))
        elif base == END:
            if len(payload) > self._most:
                raise _too_large(payload, "END")
            stream.on_end(decode_trailers(payload))
        elif base == WINDOW:
            stream.on_window(frames.parse_window(payload))
        elif base == STOP:
            if payload:
                raise RemoteError("protocol_error", "a STOP with a payload")
            stream.on_stop()
        elif base == OPEN:
            raise RemoteError("protocol_error", f"an OPEN for stream {stream.id}, which is in use")
        elif kind & FIN:  # on a type that only newer peers know: the END stands all the same
            stream.on_end([])

    def _without_stream(self, kind: int, stream_id: int, payload: bytes) -> None:
        base = kind & 0x7F
        if base == OPEN:
            self._opened_by_peer(stream_id, payload, ended=bool(kind & FIN))
        elif frames.COUNTED_FIRST <= base <= frames.COUNTED_LAST:
            return
        elif self._passed < _HALF_IDS and self._is_above(stream_id):
            raise RemoteError("unknown_stream", f"a frame of type {base:#04x} for stream {stream_id}")

    def _is_above(self, stream_id: int) -> bool:
        """RFC 1982: above the highest id opened."""
        return stream_id == 0 or 0 < (stream_id - self._high) % _IDS < _HALF_IDS

    def _opened_by_peer(self, stream_id: int, payload: bytes, *, ended: bool) -> None:
        if self._accept is None:
            raise RemoteError("protocol_error", "an OPEN from the agent")
        if len(payload) > self._most:
            raise _too_large(payload, "OPEN")
        if not stream_id or (self._passed < _HALF_IDS and not self._is_above(stream_id)):
            raise RemoteError("protocol_error", f"an OPEN with id {stream_id}, not above {self._high}")
        request = decode_open(payload)
        if request.request_id in self._by_request:
            raise RemoteError("protocol_error", f"an OPEN with the request id of a live stream: {request.request_id}")
        if self._outbox.backlog > _BACKLOG * self.settings.max_streams + 64:
            raise RemoteError("protocol_error", "streams are opened by a peer that does not read the answers")
        stream = self._make(stream_id, request.request_id, opened_here=False)
        if self._refusing or len(self.streams) > self.settings.max_streams:
            self.cancel(stream, "refused")
            return
        if ended:
            stream.on_end([])  # nobody is told: `accept` is
        stream.opening = payload
        sink = self._accept(stream, request, ended)
        stream.opening = b""
        if not stream.closed:
            stream.sink = sink


def _too_large(payload: bytes, what: str) -> RemoteError:
    return RemoteError("protocol_error", f"{what} of {len(payload)} bytes; {CODES['too_large'].title}")
