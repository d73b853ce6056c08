"""What a session has to say, and in which order it goes: the writing half of `Session`.

Texts that are not counted go first (heartbeats must not wait behind bulk), then what a resumed connection lacks, the
ACK, cancels, control frames, credit, and DATA in turns. Only what was handed to the socket is numbered and kept.
See PROTOCOL.md, "Order" and "Gathering".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tunneld.errors import LocalError, RemoteError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, FIN, HEAD, HEADER, MAX_DATA, MESSAGE_TARGET, OPEN, STOP
from tunneld.protocol.messages import Head, Headers, encode
from tunneld.protocol.replay import ReplayBuffer
from tunneld.protocol.windows import MemoryBudget

if TYPE_CHECKING:
    from tunneld.protocol.streams import Chunk, Stream

__all__ = ["BINARY", "MAX_TEXTS", "TEXT", "TURN", "HeadTooLarge", "Outbox", "Outgoing"]

#: Opcodes of WebSocket messages.
TEXT, BINARY = 1, 2
#: DATA goes in turns of this many bytes while several streams have some.
TURN = 16 * 1024
#: Text messages that may wait to be written.
MAX_TEXTS = 256

#: (opcode, parts of the payload)
Outgoing: TypeAlias = "tuple[int, list[Chunk]]"


class HeadTooLarge(LocalError):
    """A head that, encoded, is over twice `max_header`: it was not sent."""


def _nothing() -> None:
    """Until a connection is attached nobody waits to be woken."""


class Outbox:
    """The queues of one session; made by it.

    Args:
        max_header: bytes; an encoded head, or trailers, may be twice as large.
        replay: where counted messages are kept; None: nothing is counted.
        budget: of the process's memory.

    Attributes:
        attached: a connection stands; without one nothing is woken and no text is kept.
        wake: called when there is something to write and nothing was before.
        drained: streams whose source may be read again once the current message is done; see `tell_drained`.
        hurry: called when a whole message's worth waits, so that gathering has no more use.
        bulk: bytes of DATA that one message takes, `TURN` at least: on a slow network less than there is room for.
        woken: `wake` was called, and `next` has not said since that there is nothing.
        unconfirmed: id of each stream cancelled here -> number of the message that said so, None before it
            was handed over. The ids are in use until the peer has acknowledged that message.
        confirming: the same ids -> what to call once it has.
    """

    __slots__ = (
        "_cancels",
        "_control",
        "_most",
        "_ready",
        "_replay",
        "_retransmit",
        "_stale",
        "_texts",
        "_windows",
        "attached",
        "budget",
        "bulk",
        "confirming",
        "drained",
        "hurry",
        "replayed",
        "unconfirmed",
        "wake",
        "woken",
    )

    def __init__(self, max_header: int, replay: ReplayBuffer | None, budget: MemoryBudget) -> None:
        self.attached = False
        self.budget = budget
        self.wake: Callable[[], None] = _nothing
        self.hurry: Callable[[], None] = _nothing
        self.woken = False
        self.replayed = 0  # bytes that the last attach had to send again
        self.unconfirmed: dict[int, int | None] = {}
        self.confirming: dict[int, Callable[[], None]] = {}
        self.bulk = MESSAGE_TARGET
        self._most = 2 * max_header
        self._replay = replay
        self._retransmit: deque[tuple[int, bytes]] = deque()
        self._texts: deque[bytes] = deque()
        self._cancels: deque[tuple[int, bytes]] = deque()
        self._control: deque[tuple[Stream, int, bytes]] = deque()
        self._windows: deque[Stream] = deque()
        self._ready: deque[Stream] = deque()
        self.drained: list[Stream] = []
        self._stale = 0  # entries of streams that are gone in _control, _windows and _ready

    # -- connections -----------------------------------------------------------------------------------

    def attach(self, wake: Callable[[], None]) -> None:
        """Write to a new connection from now on: first what the peer lacks."""
        if self._replay is not None:
            self._retransmit = deque(self._replay.unacknowledged())
            self.replayed = sum(len(payload) for _, payload in self._retransmit)
        self._texts.clear()
        self.attached = True
        self.bulk = MESSAGE_TARGET
        self.wake = wake
        self.woken = False
        self.want_write()

    def detach(self) -> None:
        """There is no connection."""
        self.attached = False
        self.wake = self.hurry = _nothing
        self._retransmit.clear()
        self._texts.clear()

    def clear(self) -> None:
        """Keep nothing: the session is over."""
        for queue in (self._control, self._windows, self._cancels, self._ready, self.drained):
            queue.clear()
        self.unconfirmed.clear()
        self.confirming.clear()
        self._stale = 0
        if self._replay is not None:
            self._replay.clear()

    def want_write(self) -> None:
        """There is something to write."""
        if not self.woken and self.attached:
            self.woken = True
            self.wake()

    # -- what goes in ----------------------------------------------------------------------------------

    def say(self, message: object) -> None:
        """Queue a text message that is not counted; lost with its connection.

        Raises:
            RemoteError: ``protocol_error``: the peer does not read what it is told.
        """
        if self.attached:
            if len(self._texts) >= MAX_TEXTS:
                raise RemoteError("protocol_error", f"{MAX_TEXTS} texts wait for a peer that does not read")
            self._texts.append(encode(message))
            self.want_write()

    def open(self, stream: Stream, payload: bytes, *, ended: bool) -> None:
        """Queue an OPEN."""
        self._add(stream, OPEN | FIN if ended else OPEN, payload)

    def head(self, stream: Stream, status: int, headers: Headers, *, end: bool) -> None:
        """Queue a HEAD; raises HeadTooLarge."""
        payload = encode(Head(status, headers))
        if len(payload) > self._most:
            raise HeadTooLarge(f"a head of {len(payload)} bytes, encoded; the most is {self._most}")
        self._add(stream, HEAD | FIN if end else HEAD, payload)

    def end(self, stream: Stream, trailers: Headers) -> None:
        """Queue an END behind what was queued of that stream."""
        self._add(stream, END, encode(trailers) if trailers else b"")

    def stop(self, stream: Stream) -> None:
        """Queue a STOP."""
        self._add(stream, STOP, b"")

    def fits(self, trailers: Headers) -> bool:
        """These trailers may be sent."""
        return len(encode(trailers)) <= self._most

    def ready(self, stream: Stream) -> None:
        """The stream has bytes and credit: it takes turns."""
        self._ready.append(stream)
        self.want_write()

    def window_due(self, stream: Stream) -> None:
        """The stream has credit to return."""
        self._windows.append(stream)
        self.want_write()

    def cancel(
        self, stream: Stream, payload: bytes, *, holds_id: bool, confirmed: Callable[[], None] | None = None
    ) -> None:
        """Queue the `stream_cancel` of a stream that was `drop`ped.

        Args:
            stream: which.
            payload: the message.
            holds_id: the id is in use until the peer has acknowledged it.
            confirmed: called once it has; None: nobody asks.
        """
        if holds_id and self._replay is not None:
            self.unconfirmed[stream.id] = None
            if confirmed is not None:
                self.confirming[stream.id] = confirmed
        self._cancels.append((stream.id, payload))
        self.want_write()

    def disown(self, payload: bytes) -> None:
        """Queue the `stream_cancel` of a stream that is the peer's alone; it holds no id here."""
        self._cancels.append((0, payload))
        self.want_write()

    def drop(self, stream: Stream) -> None:
        """The stream is gone: nothing of it is to be kept here for long.

        Frames of one that was cancelled are never written; an END of one that ended still is.
        """
        self._stale += stream.in_ready + stream.window_waits
        if stream.cancelled:
            self._stale += stream.queued
        if self._stale * 2 > len(self._control) + len(self._windows) + len(self._ready):
            self._sweep()

    def _sweep(self) -> None:
        """Let go of what is left of streams that are gone; each is looked at a bounded number of times."""
        self._control = deque(entry for entry in self._control if not entry[0].cancelled)
        self._windows = deque(stream for stream in self._windows if not stream.closed)
        self._ready = deque(stream for stream in self._ready if not stream.closed)
        self._stale = 0

    @property
    def backlog(self) -> int:
        """Control frames and cancels that wait to be written."""
        return len(self._control) + len(self._cancels)

    @property
    def idle(self) -> bool:
        """Nothing at all is kept here."""
        return not (
            self._control or self._cancels or self._windows or self._ready or self.drained
            or self._texts or self._retransmit or self.unconfirmed
        )  # fmt: skip

    def acknowledged(self, count: int) -> None:
        """The peer has received `count` messages in all; raises RemoteError ``protocol_error``."""
        replay = self._replay
        if replay is None:
            if count:
                raise RemoteError("protocol_error", "an ACK where nothing is counted")
            return
        replay.acknowledged(count)
        unconfirmed = self.unconfirmed
        while unconfirmed:  # in order of their numbers, those without one last
            stream_id = next(iter(unconfirmed))
            number = unconfirmed[stream_id]
            if number is None or number > count:
                break
            del unconfirmed[stream_id]
            if (confirmed := self.confirming.pop(stream_id, None)) is not None:
                confirmed()
        if self._ready and not replay.full:  # it may have been
            self.want_write()

    # -- what comes out --------------------------------------------------------------------------------

    def next(self, now: float, round_trip: float | None) -> Outgoing | None:
        """The next message to write; None when there is nothing."""
        message = self._next(now, round_trip)
        if message is None:
            self.woken = False
        if self.drained:
            self.tell_drained()
        return message

    def tell_drained(self) -> None:
        """Let the consumers of drained streams read their sources again."""
        drained, self.drained = self.drained, []
        for stream in drained:
            stream.tell_writable()

    def _next(self, now: float, round_trip: float | None) -> Outgoing | None:
        if self._texts:  # not counted, so nothing depends on their place
            return TEXT, [self._texts.popleft()]
        if self._retransmit:
            opcode, payload = self._retransmit.popleft()
            return opcode, [payload]
        replay = self._replay
        if replay is not None and replay.ack_due(now):
            return BINARY, [frames.ack(replay.tell())]
        if self._cancels:  # before an OPEN that takes the place of what they end
            return self._next_cancel()
        parts: list[Chunk] = []
        size = data = 0
        if self._control:
            size = self._gather_control(parts)
        if self._windows and size < MESSAGE_TARGET:
            size += self._gather_windows(parts, now, round_trip, MESSAGE_TARGET - size)
        if self._ready and size < MESSAGE_TARGET and (replay is None or not replay.full):
            room = MESSAGE_TARGET - size
            data = self._gather_data(parts, room if room < self.bulk else self.bulk)
        if not parts:
            return None
        if replay is not None:
            payload = b"".join(parts)
            replay.keep(BINARY, payload, data)
            return BINARY, [payload]
        return BINARY, parts

    def _add(self, stream: Stream, kind: int, payload: bytes) -> None:
        stream.queued += 1
        self._control.append((stream, kind, payload))
        if not self.woken:
            self.want_write()

    def _next_cancel(self) -> Outgoing:
        stream_id, payload = self._cancels.popleft()
        if self._replay is not None:
            number = self._replay.keep(TEXT, payload, 0)
            if stream_id in self.unconfirmed:
                self.unconfirmed[stream_id] = number
        return TEXT, [payload]

    def _gather_control(self, parts: list[Chunk]) -> int:
        control = self._control
        size = 0
        while control and size < MESSAGE_TARGET:
            stream, kind, payload = control.popleft()
            if stream.cancelled:
                self._stale -= 1
                continue
            stream.queued -= 1
            stream.handed_over = True
            parts.append(HEADER.pack(kind, stream.id, len(payload)))
            size += 9
            if payload:
                parts.append(payload)
                size += len(payload)
        return size

    def _gather_windows(self, parts: list[Chunk], now: float, round_trip: float | None, room: int) -> int:
        windows = self._windows
        size = 0
        while windows and size < room:
            stream = windows.popleft()
            if stream.closed:
                self._stale -= 1
                continue
            credit = stream.grant(now, round_trip, short=self.budget.near)
            if credit:
                parts.append(frames.window(stream.id, credit))
                size += 13
        return size

    def _gather_data(self, parts: list[Chunk], room: int) -> int:
        """Append DATA in turns; returns the payload bytes."""
        queue = self._ready
        total = 0
        while queue and room > 0:
            stream = queue.popleft()
            if stream.closed:
                self._stale -= 1
                continue
            turn = TURN if queue else MAX_DATA  # alone, it need not wait for its next turn
            chunks, size, last = stream.take_turn(turn if turn < room else room)
            again = stream.pending > 0 and stream.can_go_on
            if again:
                queue.append(stream)
            else:
                stream.in_ready = False
            if again and not size:  # a WebSocket's frame that the next message has more room for
                break
            if size:
                trailers = stream.end_trailers if last else None
                bare_end = last and not trailers
                parts.append(HEADER.pack(DATA | FIN if bare_end else DATA, stream.id, size))
                parts.extend(chunks)
                total += size
                room -= size + 9
                if last:
                    if trailers:
                        self.end(stream, trailers)
                    stream.finish_sending()
        return total
