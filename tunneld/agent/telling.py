"""What happens in an agent, as events for whoever listens: two for each visitor's request, and a few others.

Where nobody listens an event costs a look at a bool. Of the many, those of streams, nothing is made as they happen:
what they say is noted, and they are made together when somebody is about to be written to, or some have gathered. A
stream that is over is noted by its values alone: what held hundreds of exchanges for a quarter of a second cost more
than their events, since each new one was then in memory that no cache knew any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from operator import attrgetter
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    from tunneld.agent.record import Record

__all__ = ["MAX_WAITING", "Listener", "StreamListener", "Streams", "Teller"]

MAX_WAITING: Final = 64 * 1024
"""Bytes, about, of events of streams that wait to be made."""
_EACH: Final = 256  # bytes of an event beyond its path


class _Said(msgspec.Struct, gc=False):
    """What all events of a stream say, in the order of what readers get."""

    tunnel: str
    request_id: str
    kind: str
    method: str
    path: str
    client: str


class _Over(_Said, gc=False):
    """What is noted of a stream that is over.

    Attributes:
        untold: that it began was not told yet.
        started: monotonic seconds.
        ended: monotonic seconds.
        text: of what all its events say, once it is made.
    """

    untold: bool
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
        self._begun: dict[Record, None] = {}  # under way; that they began waits to be told
        self._over: list[_Over] = []  # their ends wait, and the begins of some
        self._size = 0  # of all that waits, bytes
        # Rising over restarts too, so that a reader that comes back to another process is told of the gap.
        self._last = int(time() * 1000) * 1000 - 1  # id of the last event
        self._second = -1  # of the epoch
        self._begin = b""  # of that second's stamps

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
                self._begun, self._over, self._size = {}, [], 0

        return leave

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """An event that is none of a stream."""
        self.flush()
        listeners = self._whole + self._others
        if listeners:
            self._last += 1
            at = int(time() * 1000)
            stamp = f"{self._since(at).decode()}.{at % 1000:03d}Z"
            event = {"id": self._last, "type": kind, "time": stamp, **fields}
            for listener in listeners:
                listener(event)

    def opened(self, record: Record) -> None:
        """A stream began."""
        if self._listened:
            self._begun[record] = None
            self._noted(len(record.path) + _EACH)

    def upgraded(self, record: Record) -> None:
        """A stream became a WebSocket."""
        if self._listened:
            self.tell("stream_upgraded", {name: getattr(record, name) for name in _Said.__struct_fields__})

    def closed(self, record: Record, now: float) -> None:
        """A stream is over; `now` is monotonic seconds."""
        if self._listened:
            untold, path = self._begun.pop(record, 0) is None, record.path
            over = _Over(
                record.tunnel, record.request_id, record.kind, record.method, path, record.client,
                untold, record.reason, record.started, now, record.bytes_in, record.bytes_out,
            )  # fmt: skip
            self._over.append(over)
            self._noted(len(path) + _EACH)

    def _noted(self, size: int) -> None:
        """So many bytes more wait: the first, or many by now?"""
        before = self._size
        self._size = size = before + size
        if not before:
            for listener in self._streams:
                listener.waiting(self.flush)
        if size > MAX_WAITING or self._whole:
            self.flush()

    def flush(self) -> None:
        """Make the events that wait, and give them to whoever listens."""
        if not self._size:
            return
        begun, over = self._begun, self._over
        self._begun, self._over, self._size = {}, [], 0
        begins: list[Record | _Over] = [one for one in over if one.untold]
        begins += begun
        begins.sort(key=_started, reverse=True)
        first = self._last + 1
        blocks = self._made(begins, over)
        for listener in self._whole:
            for block in blocks:
                listener(json.loads(block.partition(_DATA)[2]))
        encoded = b"".join(blocks)
        for taker in self._streams:
            taker.take(first, self._last, encoded, len(blocks))

    def _made(self, begins: list[Record | _Over], over: list[_Over]) -> list[bytes]:
        """Events of streams as readers get them, in the order of what happened.

        Args:
            begins: those that began, the last first.
            over: those that are over, the first one first.
        """
        event_id, offset, since = self._last, time() - monotonic(), self._since
        blocks: list[bytes] = []
        more = blocks.append
        for one in over:
            ended = one.ended
            while begins and begins[-1].started <= ended:
                begin = begins.pop()
                event_id += 1
                at = int((offset + begin.started) * 1000)
                more(_OPENED % (event_id, event_id, since(at), at % 1000, _begun(begin)))
            event_id += 1
            at, age = int((offset + ended) * 1000), int((ended - one.started) * 1000 + 0.5)
            more(
                _CLOSED % (
                    event_id, event_id, since(at), at % 1000, one.text or _text(one, one.kind),
                    one.reason.encode(), age // 1000, age % 1000, one.bytes_in, one.bytes_out,
                )
            )  # fmt: skip
        for begin in reversed(begins):
            event_id += 1
            at = int((offset + begin.started) * 1000)
            more(_OPENED % (event_id, event_id, since(at), at % 1000, _begun(begin)))
        self._last = event_id
        return blocks

    def _since(self, milliseconds: int) -> bytes:
        """ISO 8601 of that second of the epoch, up to its point; that of the last one is at hand."""
        second = milliseconds // 1000
        if second != self._second:
            self._second = second
            self._begin = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
        return self._begin


_DATA: Final = b"\ndata: "
_OPENED: Final = b'id: %d\nevent: stream_opened\ndata: {"id":%d,"type":"stream_opened","time":"%b.%03dZ",%b}\n\n'
_CLOSED: Final = (
    b'id: %d\nevent: stream_closed\ndata: {"id":%d,"type":"stream_closed","time":"%b.%03dZ",%b,'
    b'"reason":"%b","age_s":%d.%03d,"bytes_in":%d,"bytes_out":%d}\n\n'
)
_encode = msgspec.json.Encoder().encode
_started = attrgetter("started")


def _text(of: Record | _Over, kind: str) -> bytes:
    """What all events of a stream say, as JSON without its braces; it holds no line end, so one data field carries it.

    Args:
        kind: that it had then.
    """
    said = _Said(of.tunnel, of.request_id, kind, of.method, of.path, of.client)
    try:
        return _encode(said)[1:-1]
    except UnicodeEncodeError:  # half a surrogate in a path
        return json.dumps(msgspec.structs.asdict(said), separators=(",", ":"))[1:-1].encode()


def _begun(of: Record | _Over) -> bytes:
    """As `_text`, of its begin: that it is an event stream may be known by now, and was not then."""
    text = _text(of, "http")
    if of.kind == "http" and isinstance(of, _Over):
        of.text = text  # its end says the same
    return text


_T = TypeVar("_T")


def _without(listeners: tuple[_T, ...], gone: _T) -> tuple[_T, ...]:
    """The same but for one; a method is another object each time it is asked for, and equal."""
    return tuple(one for one in listeners if one != gone)
