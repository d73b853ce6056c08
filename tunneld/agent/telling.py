"""What happens in an agent, as events for whoever listens: two for each visitor's request, and a few others.

Where nobody listens an event costs a look at a bool. Of the many, those of streams, nothing is made as they happen:
what they say is noted, and they are made together when somebody is about to be written to, or some have gathered. A
stream that is over is noted by its values alone: what held hundreds of exchanges for a quarter of a second cost more
than their events, since each new one was then in memory that no cache knew any more.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    from tunneld.agent.record import Record

__all__ = ["MAX_WAITING", "Listener", "StreamListener", "Streams", "Teller"]

MAX_WAITING: Final = 64 * 1024
"""Bytes, about, of events of streams that wait to be made."""
_EACH: Final = 256  # bytes of an event beyond its path


class _Shared(msgspec.Struct, gc=False):
    """What all events of a stream say, in the order of what readers get."""

    tunnel: str
    request_id: str
    kind: str
    method: str
    path: str
    client: str


class _Closed(msgspec.Struct, gc=False):
    """What is noted of a stream that is over.

    Attributes:
        opened: that it began stands in a place before, and was not told yet.
        said: of its end.
        started: monotonic seconds.
        ended: monotonic seconds.
        text: of `said`, once it is made.
    """

    opened: bool
    said: _Shared
    reason: str
    started: float
    ended: float
    bytes_in: int
    bytes_out: int
    text: bytes = b""


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


Streams = StreamListener | Literal[False] | None
"""Who takes the events of streams. None: the `Listener`, whole; False: nobody, and for nobody they are not made."""


class Teller:
    """Gives every event its id and its time, and whoever listens the event."""

    def __init__(self) -> None:
        self._whole: tuple[Listener, ...] = ()  # take every event in the API's shape
        self._others: tuple[Listener, ...] = ()  # take all but the streams' so
        self._streams: tuple[StreamListener, ...] = ()
        self._listened = False  # to events of streams
        self._waiting: list[Record | _Closed] = []  # a record: it began; what is closed: it ended, or began as well
        self._places: dict[Record, int] = {}  # in that list, of those that began
        self._size = 0  # of those, bytes
        # Rising over restarts too, so that a reader that comes back to another process is told of the gap.
        self._ids = itertools.count(int(time() * 1000) * 1000)
        self._millisecond = self._second = -1
        self._stamp = self._begin = b""  # of that millisecond; of that second, without its end

    def subscribe(self, listener: Listener, streams: Streams = None) -> Callable[[], None]:
        """Call `listener` for each event that comes, until the returned function is called.

        Args:
            streams: takes those of streams in its place.
        """
        self.flush()
        if streams is None:
            self._whole = (*self._whole, listener)
        else:
            self._others = (*self._others, listener)
            if streams is not False:
                self._streams = (*self._streams, streams)
        self._listened = bool(self._whole or self._streams)

        def leave() -> None:
            if streams is None:
                self._whole = _without(self._whole, listener)
            else:
                self._others = _without(self._others, listener)
                if streams is not False:
                    self._streams = _without(self._streams, streams)
            self._listened = bool(self._whole or self._streams)
            if not self._listened:
                self._waiting, self._places, self._size = [], {}, 0

        return leave

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """An event that is none of a stream."""
        self.flush()
        listeners = self._whole + self._others
        if listeners:
            event = {"id": next(self._ids), "type": kind, "time": self._stamped(time()).decode(), **fields}
            for listener in listeners:
                listener(event)

    def opened(self, record: Record) -> None:
        """A stream began."""
        if not self._listened:
            return
        waiting = self._waiting
        self._places[record] = len(waiting)
        waiting.append(record)
        self._size += len(record.path) + _EACH
        if len(waiting) == 1 or self._whole or self._size > MAX_WAITING:
            self._noted()

    def upgraded(self, record: Record) -> None:
        """A stream became a WebSocket."""
        if self._listened:
            self.tell("stream_upgraded", {name: getattr(record, name) for name in _Shared.__struct_fields__})

    def closed(self, record: Record, now: float) -> None:
        """A stream is over; `now` is monotonic seconds."""
        if not self._listened:
            return
        place, waiting, path = self._places.pop(record, None), self._waiting, record.path
        said = _Shared(record.tunnel, record.request_id, record.kind, record.method, path, record.client)
        ended = _Closed(
            place is not None, said, record.reason, record.started, now, record.bytes_in, record.bytes_out
        )  # fmt: skip
        if place is not None:
            waiting[place] = ended
        waiting.append(ended)
        self._size += len(path) + _EACH
        if len(waiting) == 1 or self._whole or self._size > MAX_WAITING:
            self._noted()

    def _noted(self) -> None:
        """The first of some waits, or many do."""
        if len(self._waiting) == 1:
            for listener in self._streams:
                listener.waiting(self.flush)
        if self._whole or self._size > MAX_WAITING:
            self.flush()

    def flush(self) -> None:
        """Make the events that wait, and give them to whoever listens."""
        if not self._waiting:
            return
        waiting, self._waiting, self._places, self._size = self._waiting, [], {}, 0
        offset = time() - monotonic()
        blocks: list[bytes] = []
        first = event_id = 0
        for what in waiting:
            event_id = next(self._ids)
            first = first or event_id
            if isinstance(what, _Closed):
                text = what.text = what.text or _text(what.said)
                if not what.opened:
                    age = int((what.ended - what.started) * 1000 + 0.5) / 1000
                    ended = (what.reason.encode(), age, what.bytes_in, what.bytes_out)
                    blocks.append(_CLOSED % (event_id, event_id, self._stamped(offset + what.ended), text, *ended))
                    continue
                what.opened = False
                if what.said.kind != "http":
                    text = _begun(what.said)
            else:
                text = _begun(what)
            blocks.append(_OPENED % (event_id, event_id, self._stamped(offset + what.started), text))
        for listener in self._whole:
            for block in blocks:
                listener(json.loads(block.partition(_DATA)[2]))
        encoded = b"".join(blocks)
        for taker in self._streams:
            taker.take(first, event_id, encoded, len(blocks))

    def _stamped(self, at: float) -> bytes:
        """ISO 8601 UTC in milliseconds, of seconds of the epoch; what is the same as before is not made again."""
        milliseconds = int(at * 1000)
        if milliseconds != self._millisecond:
            self._millisecond = milliseconds
            second = milliseconds // 1000
            if second != self._second:
                self._second = second
                self._begin = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.").encode()
            self._stamp = b"%b%03dZ" % (self._begin, milliseconds % 1000)
        return self._stamp


_DATA: Final = b"\ndata: "
_OPENED: Final = b'id: %d\nevent: stream_opened\ndata: {"id":%d,"type":"stream_opened","time":"%b",%b}\n\n'
_CLOSED: Final = (
    b'id: %d\nevent: stream_closed\ndata: {"id":%d,"type":"stream_closed","time":"%b",%b,'
    b'"reason":"%b","age_s":%a,"bytes_in":%d,"bytes_out":%d}\n\n'
)
_encode = msgspec.json.Encoder().encode


def _text(said: _Shared) -> bytes:
    """As JSON without its braces; it holds no line end, so one data field carries it."""
    try:
        return _encode(said)[1:-1]
    except UnicodeEncodeError:  # half a surrogate in a path
        return json.dumps(msgspec.structs.asdict(said), separators=(",", ":"))[1:-1].encode()


def _begun(of: Record | _Shared) -> bytes:
    """As `_text`, of its begin: that it is an event stream may be known by now, and was not then."""
    return _text(_Shared(of.tunnel, of.request_id, "http", of.method, of.path, of.client))


_T = TypeVar("_T")


def _without(listeners: tuple[_T, ...], gone: _T) -> tuple[_T, ...]:
    """The same but for one; a method is another object each time it is asked for, and equal."""
    return tuple(one for one in listeners if one != gone)
