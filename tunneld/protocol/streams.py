"""One visitor's request as a stream: where its directions stand, its credit, what waits to be sent.

A stream has two directions, each ended by its own END. The same class serves at both ends; what differs is
where each direction starts: the side that opens expects a HEAD before DATA, the other does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tunneld.errors import LocalError, RemoteError
from tunneld.protocol.directions import TABLE, Direction, Event
from tunneld.protocol.messages import Headers
from tunneld.protocol.outgoing import HeadTooLarge, Outbox
from tunneld.protocol.sinks import Sink
from tunneld.protocol.websockets import COST, LEAST, Frames
from tunneld.protocol.windows import MAX_CREDIT, ReceiveWindow

if TYPE_CHECKING:
    from tunneld.protocol.session import Session

__all__ = [
    "MAX_INFORMATIONAL",
    "REASONS",
    "Chunk",
    "HeadTooLarge",
    "Stream",
]

Chunk: TypeAlias = bytes | memoryview
#: Who or what ended a stream that did not end by itself.
REASONS = ("visitor", "service", "operator", "peer_lost", "limit", "shutdown", "refused")
#: Heads with a 1xx status that one stream may carry.
MAX_INFORMATIONAL = 8
#: A source is paused when this many bytes wait to be sent, and goes on when half of it is left.
HIGH_WATER = 64 * 1024
LOW_WATER = HIGH_WATER // 2
#: So many chunks that wait become one: a small one costs more by itself than its bytes.
_MANY = 64
#: Bytes that a frame which waits costs in memory beside its credit.
_SLOT = 64

# Names of this module: looking a member up in its enumeration costs as much as a call.
_HEAD_DUE, _BODY, _ENDED = Direction.HEAD_DUE, Direction.BODY, Direction.ENDED
_HEAD_DUE_STOPPED, _BODY_STOPPED = Direction.HEAD_DUE_STOPPED, Direction.BODY_STOPPED
_INFORMATIONAL, _HEAD, _END = Event.INFORMATIONAL, Event.HEAD, Event.END


class Stream:
    """Made by `Session.open` or by an OPEN that came; never by hand."""

    __slots__ = (
        "_credit",
        "_cut",
        "_first",
        "_frames",
        "_informational",
        "_more",
        "_outbox",
        "_paused",
        "_receiving",
        "_sending",
        "_session",
        "_trailers",
        "_window",
        "cancelled",
        "closed",
        "handed_over",
        "id",
        "in_ready",
        "opening",
        "pending",
        "queued",
        "request_id",
        "sink",
        "when_sent",
        "window_waits",
    )

    def __init__(
        self,
        session: Session,
        outbox: Outbox,
        stream_id: int,
        request_id: str,
        *,
        opened_here: bool,
        window: int,
        maximum: int,
    ) -> None:
        self._session = session
        self._outbox = outbox
        self.id = stream_id
        self.request_id = request_id
        #: The payload of its OPEN, as it came, while `accept` is called; empty before and after.
        self.opening = b""
        self.sink: Sink | None = None
        #: Called when both directions have ended in order and every byte that was sent is in a message (its END is next
        #: in line): for a consumer that has handed its last bytes over. `Sink.cancelled` tells of the other end.
        self.when_sent: Callable[[], None] | None = None
        #: Both directions have ended, or the stream was cancelled.
        self.closed = False
        self.cancelled = False
        #: The OPEN has reached the socket (or came from it): only then does the peer know the stream.
        self.handed_over = not opened_here
        #: What waits in the outbox: control frames, a turn, credit. The outbox keeps these.
        self.queued = 0
        self.in_ready = False
        self.window_waits = False
        self._receiving = _HEAD_DUE if opened_here else _BODY
        self._sending = _BODY if opened_here else _HEAD_DUE
        self._informational = 0
        self._credit = window
        self._window = ReceiveWindow(window, maximum)
        self._first: Chunk | None = None  # what waits to be sent; nearly always one chunk, so `_more` seldom is
        self._more: deque[Chunk] | None = None
        self._frames: Frames | None = None
        self._cut = 0  # bytes of what stands first that a message carries already: memory has them until the last does
        #: Bytes given to `send` that no message carries yet; of frames, what they cost.
        self.pending = 0
        self._trailers: Headers | None = None
        self._paused = False

    # -- what a consumer does --------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Bytes of memory that what waits takes."""
        return self.pending + self._cut + (_SLOT * len(self._frames.waiting) if self._frames is not None else 0)

    @property
    def stuck(self) -> bool:
        """Bytes wait, and for credit: the peer's reader takes none at present."""
        return self.pending > 0 and not self.can_go_on

    @property
    def sending_ended(self) -> bool:
        """Our direction has ended, or its END waits behind its bytes."""
        return self._sending is _ENDED or self._trailers is not None

    @property
    def receiving_ended(self) -> bool:
        """The peer's direction has ended."""
        return self._receiving is _ENDED

    def send_head(self, status: int, headers: Headers, *, end: bool = False) -> None:
        """Send a HEAD; with `end` the answer has no body.

        Raises:
            HeadTooLarge: encoded it is over twice `max_header`; nothing was sent and the stream stands.
            LocalError: a head was sent before, or too many with 1xx.
        """
        if self.closed or self._sending is _ENDED:
            return
        informational = 100 <= status < 200 and status != 101
        after = TABLE.get((self._sending, _INFORMATIONAL if informational else _HEAD))
        self._informational += informational
        if after is None or self._informational > MAX_INFORMATIONAL:
            raise LocalError(f"stream {self.request_id}: a head with status {status} where none may stand")
        self._outbox.head(self, status, headers, end=end and not informational)
        self._sending = after
        if status == 101:
            self._frames = Frames()
        if end and not informational:
            self.finish_sending()

    def send(self, data: bytes) -> bool:
        """Queue DATA; False asks to pause the source until `Sink.writable`. Dropped when the peer said STOP."""
        if self._sending is not _BODY or self._trailers is not None:
            if self.closed or self._sending is _ENDED:
                return True
            raise LocalError(f"stream {self.request_id}: DATA before HEAD or after END")
        if not data:
            return not self._paused
        if self._first is None:
            self._first = data
        elif self._more is None:
            self._more = deque((data,))
        else:
            self._more.append(data)
            if len(self._more) >= _MANY:
                self._more = deque((b"".join(self._more),))
        size = len(data)
        self.pending = pending = self.pending + size
        outbox = self._outbox
        outbox.budget.held += size
        if self._credit > 0 and not self.in_ready:
            self.in_ready = True
            outbox.ready(self)
        if pending < HIGH_WATER and pending <= self._credit and outbox.budget.held < outbox.budget.near_at:
            return True
        return self._keeps_up()

    def send_frame(self, first: int, payload: bytes) -> bool:
        """Queue a frame of a WebSocket, after HEAD 101; as `send`.

        Args:
            first: the opcode, with `FINAL` on a message's last frame.
            payload: of any length but a control frame's; what does not fit goes in pieces.
        """
        frames = self._frames
        if frames is None or self._sending is not _BODY or self._trailers is not None:
            if self.closed or self._sending is _ENDED:
                return True
            raise LocalError(f"stream {self.request_id}: a frame before HEAD 101 or after END")
        frames.waiting.append((first, payload))
        self.pending += len(payload) + LEAST
        self._outbox.budget.held += len(payload) + LEAST + _SLOT
        if not self.in_ready and frames.can_go_on(self._credit):
            self.in_ready = True
            self._outbox.ready(self)
        return self._keeps_up()

    def _keeps_up(self) -> bool:
        """Whether the source may be read on, after what it gave last."""
        if self.pending >= HIGH_WATER:
            self._paused = True
            self._outbox.hurry()
            return False
        if self.pending > self._credit or self._outbox.budget.near:  # memory is short: one piece at a time
            self._paused = True
            return False
        return True

    def send_end(self, trailers: Headers | None = None) -> bool:
        """End our direction after all that was sent; False when the trailers were too large and are left out."""
        if self.closed or self._sending is _ENDED or self._trailers is not None:
            return True
        if self._sending is not _BODY:
            raise LocalError(f"stream {self.request_id}: END before HEAD")
        fits = not trailers or self._outbox.fits(trailers)
        self._trailers = trailers if trailers and fits else []
        if not self.pending:
            self._outbox.end(self, self._trailers)
            self.finish_sending()
        return fits

    def stop(self) -> None:
        """Take no more DATA: neither `data` nor `end` is called again. The peer answers with END."""
        if self.closed or self._receiving in (
            _ENDED,
            _HEAD_DUE_STOPPED,
            _BODY_STOPPED,
        ):
            return
        self._receiving = TABLE[self._receiving, Event.STOP]
        self._outbox.stop(self)

    def cancel(self, reason: str) -> None:
        """End both directions now and tell the peer why (one of `REASONS`). Nothing is called afterwards."""
        if not self.closed:
            self._session.cancel(self, reason)

    def leave(self) -> None:
        """Let go of it without a word to the peer (see `Session.leave`). Nothing is called afterwards."""
        if not self.closed:
            self._session.leave(self)

    def took(self, count: int) -> None:
        """The consumer has taken `count` of the bytes that `Sink.data` gave it: their credit may go back."""
        if self._window.took(count) and not self.window_waits and not self.closed:
            if self._receiving is _ENDED:
                return
            self.window_waits = True
            self._outbox.window_due(self)

    # -- what the session does -------------------------------------------------------------------------

    def release(self) -> None:
        """Drop what waits and let go of the consumer; the session has taken the stream off its table."""
        self.closed = True
        self._sending = self._receiving = _ENDED
        if self.pending or self._cut or self._frames is not None:
            self._outbox.budget.sub(self.held)
            self._first = self._more = self._frames = None
            self.pending = self._cut = 0
        self._trailers = None
        self.sink = None
        self.when_sent = None

    def on_head(self, status: int, headers: Headers, *, end: bool) -> None:
        """A HEAD came; raises RemoteError."""
        informational = 100 <= status < 200 and status != 101
        if informational:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL or end:
                raise RemoteError("protocol_error", f"a HEAD with END and 1xx, or more than {MAX_INFORMATIONAL} of 1xx")
        self._receive(_INFORMATIONAL if informational else _HEAD)
        if status == 101:
            self._frames = Frames()
        if self._receiving is not _HEAD_DUE_STOPPED and self._receiving is not _BODY_STOPPED:
            sink = self.sink
            if sink is not None:
                sink.head(status, headers)
        if end and not self.closed:
            self.on_end([])

    def on_data(self, data: bytes) -> None:
        """DATA came; raises RemoteError."""
        if not data:
            raise RemoteError("protocol_error", "an empty DATA")
        frames = self._frames
        if frames is None:
            self._window.received(len(data))
        else:
            self._window.received(len(data) + COST)
            frames.order.check(data)
        if self._receiving is _BODY:
            sink = self.sink
            if sink is not None:
                sink.data(data)
        else:
            self._receive(Event.DATA)

    def on_end(self, trailers: Headers) -> None:
        """END came; raises RemoteError."""
        sink = self.sink
        if self._receiving is _BODY:
            self._receiving = _ENDED
        else:
            if self._receiving is _HEAD_DUE_STOPPED or self._receiving is _BODY_STOPPED:
                sink = None
            self._receive(_END)
        if sink is not None:
            sink.end(trailers)
        if self._sending is _ENDED and not self.closed:
            self._session.finish(self)

    def on_stop(self) -> None:
        """STOP came: drop what waits, answer END. Ignored when our direction has ended."""
        if self._sending is _ENDED:
            return
        self._outbox.budget.sub(self.held)
        self._first = self._more = None
        if self._frames is not None:
            self._frames.waiting.clear()
        self.pending = self._cut = 0
        self._paused = False
        self._trailers = None
        self._outbox.end(self, [])
        sink = self.sink
        self.finish_sending()
        if sink is not None:
            sink.stopped()

    def on_window(self, credit: int) -> None:
        """WINDOW came; raises RemoteError ``flow_control`` on more credit than any window has."""
        if self._sending is _ENDED:
            return
        self._credit += credit
        if self._credit > MAX_CREDIT:
            raise RemoteError("flow_control", f"{self._credit} bytes of credit at one time")
        if self.pending and not self.in_ready:
            self.in_ready = True
            self._outbox.ready(self)
        elif self._paused and not self.pending:
            self._outbox.drained.append(self)

    def take_turn(self, limit: int) -> tuple[Sequence[Chunk], int, bool]:
        """Take at most `limit` bytes that credit allows: (chunks, their size, our direction ends with them)."""
        if self._frames is not None:
            return self._take_frame(self._frames, limit)
        size = min(limit, self._credit, self.pending)
        first = self._first
        if first is None or not size:
            return (), 0, False
        taken: Sequence[Chunk]
        if self._more is None and size == len(first):
            taken = (first,)
            self._first = None
            if self._cut:
                self._outbox.budget.held -= self._cut
                self._cut = 0
        else:
            taken = self._take(size)
        self._credit -= size
        self.pending -= size
        self._outbox.budget.held -= size
        if self._paused:
            self._mind_source()
        return taken, size, not self.pending and self._trailers is not None

    def _take(self, size: int) -> list[Chunk]:
        """Take `size` of the bytes that wait."""
        taken: list[Chunk] = []
        chunk, more, cut = self._first, self._more, self._cut
        while size:
            assert chunk is not None
            if len(chunk) > size:
                view = memoryview(chunk)  # a large chunk goes in several turns: its rest is not copied each time
                taken.append(view[:size])
                chunk = view[size:]
                cut += size
                break
            taken.append(chunk)
            size -= len(chunk)
            chunk = more.popleft() if more else None
            cut = 0
        self._first = chunk
        if not more:
            self._more = None
        self._outbox.budget.held += cut - self._cut
        self._cut = cut
        return taken

    def _take_frame(self, frames: Frames, limit: int) -> tuple[Sequence[Chunk], int, bool]:
        """Take one frame of a WebSocket, or a piece of it."""
        waiting = len(frames.waiting)
        taken = frames.take(limit, self._credit)
        if taken is None:
            return (), 0, False
        chunks, size, freed = taken
        self._credit -= size + COST
        self.pending -= freed
        if len(frames.waiting) < waiting:
            self._outbox.budget.held -= freed + _SLOT + self._cut
            self._cut = 0
        else:
            self._cut += freed
        self._mind_source()
        return chunks, size, not self.pending and self._trailers is not None

    def _mind_source(self) -> None:
        """Bytes have left: a source that was paused may have to be read again."""
        if self._paused and self.pending <= LOW_WATER and self._credit > 0:
            self._outbox.drained.append(self)

    def finish_sending(self) -> None:
        """Our END is written, or next in line."""
        self._sending = _ENDED
        if self._receiving is _ENDED and not self.closed:
            self._session.finish(self)

    def grant(self, now: float, round_trip: float | None, *, short: bool = False) -> int:
        """The credit of a WINDOW that goes out now; 0 for none. See `ReceiveWindow.grant`."""
        self.window_waits = False
        if self.closed or self._receiving is not _BODY:
            return 0
        return self._window.grant(now, round_trip, short=short)

    def tell_writable(self) -> None:
        """Let the consumer read its source again, if it still waits for that."""
        if self._paused and not self.closed:
            self._paused = False
            if self.sink is not None:
                self.sink.writable()

    @property
    def can_go_on(self) -> bool:
        """Bytes wait and credit allows some of them."""
        if self._frames is not None:
            return self._frames.can_go_on(self._credit)
        return self.pending > 0 and self._credit > 0

    @property
    def end_trailers(self) -> Headers:
        """The trailers of an END that is due."""
        return self._trailers or []

    def _receive(self, event: Event) -> None:
        after = TABLE.get((self._receiving, event))
        if after is None:
            raise RemoteError("protocol_error", f"{event.name} where the peer's direction is {self._receiving.name}")
        self._receiving = after
