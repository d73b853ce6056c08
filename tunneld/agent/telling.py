"""What happens in an agent, as events for whoever listens: two for each visitor's request, and a few others.

Where nobody listens an event costs a look at a bool. Of the many, those of streams, nothing is made as they happen: it
is noted which stream it was, and they are made together when somebody is about to be written to, or some have gathered.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    from tunneld.agent.record import Record

__all__ = ["MAX_WAITING", "Listener", "StreamClosed", "StreamListener", "StreamOpened", "Teller"]

MAX_WAITING: Final = 64 * 1024
"""Bytes, about, of events of streams that wait to be made."""
_EACH: Final = 256  # bytes of an event beyond its path


class StreamOpened(msgspec.Struct, frozen=True, gc=False):
    """``stream_opened`` and ``stream_upgraded``, with the keys and in the order of what readers get."""

    id: int
    type: str
    time: str
    tunnel: str
    request_id: str
    kind: str
    method: str
    path: str
    client: str


class StreamClosed(StreamOpened, frozen=True, gc=False):
    """``stream_closed``; `age_s` in seconds."""

    reason: str
    age_s: float
    bytes_in: int
    bytes_out: int


Listener = Callable[[dict[str, Any]], None]
"""Takes an event in the API's shape. It neither waits nor raises nor changes it."""


class StreamListener(Protocol):
    """Takes the events of streams, which are made when it asks for them or many wait."""

    def waiting(self, fetch: Callable[[], None]) -> None:
        """The first of some waits; `fetch` has all that wait by then given to `take` of every listener, once."""

    def take(self, first: int, last: int, encoded: bytes, events: int) -> None:
        """Some events, one at least, in order.

        Args:
            first: id of the first.
            last: id of the last.
            encoded: blocks of an event stream (HTML, 9.2.6), one for each.
            events: how many they are.
        """


class Teller:
    """Gives every event its id and its time, and whoever listens the event."""

    def __init__(self) -> None:
        self._whole: tuple[Listener, ...] = ()  # take every event in the API's shape
        self._others: tuple[Listener, ...] = ()  # take all but the streams' so
        self._streams: tuple[StreamListener, ...] = ()
        self._listened = False  # to events of streams
        self._waiting: list[tuple[str, float, Record]] = []
        self._size = 0  # of those, bytes
        # Rising over restarts too, so that a reader that comes back to another process is told of the gap.
        self._ids = itertools.count(int(time() * 1000) * 1000)
        self._millisecond = self._second = -1
        self._stamp = self._begin = ""  # of that millisecond; of that second, without its end

    def subscribe(self, listener: Listener, streams: StreamListener | None = None) -> Callable[[], None]:
        """Call `listener` for each event that comes, until the returned function is called.

        Args:
            streams: takes those of streams in its place.
        """
        self.flush()
        if streams is None:
            self._whole = (*self._whole, listener)
        else:
            self._others = (*self._others, listener)
            self._streams = (*self._streams, streams)
        self._listened = True

        def leave() -> None:
            if streams is None:
                self._whole = _without(self._whole, listener)
            else:
                self._others = _without(self._others, listener)
                self._streams = _without(self._streams, streams)
            self._listened = bool(self._whole or self._streams)
            if not self._listened:
                self._waiting, self._size = [], 0

        return leave

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """An event that is none of a stream."""
        self.flush()
        listeners = self._whole + self._others
        if listeners:
            event = {"id": next(self._ids), "type": kind, "time": self._stamped(time()), **fields}
            for listener in listeners:
                listener(event)

    def stream(self, kind: str, now: float, record: Record) -> None:
        """A stream began, became a WebSocket, or ended; `now` is monotonic seconds."""
        if not self._listened:
            return
        waiting = self._waiting
        waiting.append((kind, now, record))
        self._size += len(record.path) + _EACH
        if len(waiting) == 1:
            for listener in self._streams:
                listener.waiting(self.flush)
        if self._whole or self._size > MAX_WAITING:
            self.flush()

    def flush(self) -> None:
        """Make the events that wait, and give them to whoever listens."""
        if not self._waiting:
            return
        waiting, self._waiting, self._size = self._waiting, [], 0
        whole, streams = self._whole, self._streams
        offset = time() - monotonic()
        encoded, first, event_id = bytearray(), 0, 0
        for kind, now, record in waiting:  # each to its end, while it is in the cache
            event = self._made(kind, now, offset + now, record)
            event_id = event.id
            first = first or event_id
            if streams:
                _encode(event, encoded)
            if whole:
                shown = msgspec.structs.asdict(event)
                for listener in whole:
                    listener(shown)
        for taker in streams:
            taker.take(first, event_id, bytes(encoded), len(waiting))

    def _made(self, kind: str, now: float, at: float, record: Record) -> StreamOpened:
        if kind != "stream_closed":
            # That it is an event stream may be known by now, and was not then.
            carried = "http" if kind == "stream_opened" else record.kind
            return StreamOpened(
                next(self._ids), kind, self._stamped(at), record.tunnel, record.request_id, carried, record.method,
                record.path, record.client,
            )  # fmt: skip
        age = int((now - record.started) * 1000 + 0.5) / 1000  # a quarter of what `round` takes
        return StreamClosed(
            next(self._ids), kind, self._stamped(at), record.tunnel, record.request_id, record.kind, record.method,
            record.path, record.client, record.reason, age, record.bytes_in, record.bytes_out,
        )  # fmt: skip

    def _stamped(self, at: float) -> str:
        """ISO 8601 UTC in milliseconds, of seconds of the epoch; what is the same as before is not made again."""
        milliseconds = int(at * 1000)
        if milliseconds != self._millisecond:
            self._millisecond = milliseconds
            second = milliseconds // 1000
            if second != self._second:
                self._second = second
                self._begin = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
            self._stamp = f"{self._begin}{milliseconds % 1000:03d}Z"
        return self._stamp


_encoder = msgspec.json.Encoder()


def _encode(event: StreamOpened, into: bytearray) -> None:
    """Add its block; JSON holds no line end, so one data field carries it."""
    into += b"id: %d\nevent: %b\ndata: " % (event.id, event.type.encode())
    begin = len(into)
    try:
        _encoder.encode_into(event, into, -1)
    except UnicodeEncodeError:  # half a surrogate in a path
        into[begin:] = json.dumps(msgspec.structs.asdict(event)).encode()
    into += b"\n\n"


_T = TypeVar("_T")


def _without(listeners: tuple[_T, ...], gone: _T) -> tuple[_T, ...]:
    """The same but for one; a method is another object each time it is asked for, and equal."""
    return tuple(one for one in listeners if one != gone)
