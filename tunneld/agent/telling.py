"""What happens in an agent, as events for whoever listens: two for each visitor's request, and a few others.

Where nobody listens an event costs a look at two empty tuples. Of the many, those of streams, a listener may take the
compact form, which it encodes when and if it has to; the others are made for it as they happen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from tunneld.agent.record import Record

__all__ = ["Listener", "StreamClosed", "StreamListener", "StreamOpened", "Teller"]


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
StreamListener = Callable[[StreamOpened], None]
"""The same for the compact events of streams."""


class Teller:
    """Gives every event its id and its time, and whoever listens the event."""

    def __init__(self) -> None:
        self._whole: tuple[Listener, ...] = ()  # take every event in the API's shape
        self._others: tuple[Listener, ...] = ()  # take all but the streams' so
        self._streams: tuple[StreamListener, ...] = ()
        # Rising over restarts too, so that a reader that comes back to another process is told of the gap.
        self._ids = itertools.count(int(time() * 1000) * 1000)
        self._millisecond = self._second = -1
        self._stamp = self._begin = ""  # of that millisecond; of that second, without its end

    def subscribe(self, listener: Listener, streams: StreamListener | None = None) -> Callable[[], None]:
        """Call `listener` for each event until the returned function is called.

        Args:
            streams: called in its place for those of streams.
        """
        if streams is None:
            self._whole = (*self._whole, listener)
        else:
            self._others = (*self._others, listener)
            self._streams = (*self._streams, streams)

        def leave() -> None:
            if streams is None:
                self._whole = _without(self._whole, listener)
            else:
                self._others = _without(self._others, listener)
                self._streams = _without(self._streams, streams)

        return leave

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """An event that is none of a stream."""
        listeners = self._whole + self._others
        if listeners:
            event = {"id": next(self._ids), "type": kind, "time": self._now(), **fields}
            for listener in listeners:
                listener(event)

    def stream(self, kind: str, record: Record, reason: str) -> None:
        """A stream began, became a WebSocket, or ended for that reason."""
        if not self._streams and not self._whole:
            return
        if reason:
            age = int((monotonic() - record.started) * 1000 + 0.5) / 1000  # a quarter of what `round` takes
            event: StreamOpened = StreamClosed(
                next(self._ids), kind, self._now(), record.tunnel, record.request_id, record.kind, record.method,
                record.path, record.client, reason, age, record.bytes_in,
                record.bytes_out,
            )  # fmt: skip
        else:
            event = StreamOpened(
                next(self._ids), kind, self._now(), record.tunnel, record.request_id, record.kind, record.method,
                record.path, record.client,
            )  # fmt: skip
        for listener in self._streams:
            listener(event)
        if self._whole:
            shown = msgspec.structs.asdict(event)
            for whole in self._whole:
                whole(shown)

    def _now(self) -> str:
        """ISO 8601 UTC in milliseconds; what is the same as before is not made again."""
        milliseconds = int(time() * 1000)
        if milliseconds != self._millisecond:
            self._millisecond = milliseconds
            second = milliseconds // 1000
            if second != self._second:
                self._second = second
                self._begin = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
            self._stamp = f"{self._begin}{milliseconds % 1000:03d}Z"
        return self._stamp


_T = TypeVar("_T")


def _without(listeners: tuple[_T, ...], gone: _T) -> tuple[_T, ...]:
    """The same but for one; a method is another object each time it is asked for, and equal."""
    return tuple(one for one in listeners if one != gone)
