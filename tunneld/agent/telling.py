"""What happens in an agent, as events for whoever listens: two for each visitor's request, and a few others.

Where nobody listens an event costs a look at a bool. Of the many, those of streams, nothing is made as they happen:
what they say is noted, and they are made together (`stream_events`) when somebody is about to be written to, or some
have gathered. A stream that is over is noted by its values alone: what held hundreds of exchanges for a quarter of a
second cost more than their events, since each new one was then in memory that no cache knew any more. One that begins
is not noted at all: it is among those under way, or over, when events are made. What runs once a request is in no cache
either, so that little of it is worth more than what it leaves to be done for many at a time.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Reversible
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from tunneld.agent.stream_events import Happened, Over, Said, begins, blocks, ends, second

if TYPE_CHECKING:
    from tunneld.agent.record import Record

__all__ = ["PIECE", "PIECES", "Listener", "StreamListener", "Streams", "Teller"]

PIECE: Final = 256 * 1024
"""Bytes, about, of events of streams that are made in one go: the loop stands still for half a millisecond."""
PIECES: Final = 4
"""So many may wait, and what gathers behind them: a second's at 1,500 requests a second. Then the oldest is made.

What is made piece after piece finds code and memory warm, and costs less than a piece by itself.
"""
_EACH: Final = 320  # bytes of an event beyond its path


Listener = Callable[[dict[str, Any]], None]
"""Takes an event in the API's shape. It neither waits nor raises nor changes it."""


class StreamListener(Protocol):
    """Takes the events of streams, which are made when it asks for them or many wait."""

    def waiting(self, fetch: Callable[[], bool]) -> None:
        """The first of some waits.

        Args:
            fetch: has those that wait the longest given to `take` of every listener, once; tells whether others wait.
        """

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
        self._live: list[Reversible[Record]] = []  # under way, of each tunnel in the order of their begins
        self._told = inf  # monotonic seconds: what began by then was told, or was before anybody listened
        self._over: list[Over] = []  # their ends wait, and the begins of some
        self._room = 0  # bytes that may still gather with these; below 0 something is to be done at once
        self._waits = False  # some have gathered
        self._pieces: deque[_Piece] = deque()  # what waits before these
        # Rising over restarts too, so that a reader that comes back to another process is told of the gap.
        self._last = int(time() * 1000) * 1000 - 1  # id of the last event

    def follow(self, live: Reversible[Record]) -> Callable[[], None]:
        """Know a tunnel's streams, until the returned function is called: then none begins any more.

        Args:
            live: those under way, in the order of their begins, as a view of what changes as they come and go.
        """
        self._live.append(live)

        def leave() -> None:
            self.flush()
            self._live = [one for one in self._live if one is not live]

        return leave

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
        if not self._listened:
            self._told = monotonic()
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
                self._forget()

        return leave

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """An event that is none of a stream."""
        self.flush()
        listeners = self._whole + self._others
        if listeners:
            self._last += 1
            at = int(time() * 1000)
            stamp = f"{second(at // 1000).decode()}{at % 1000:03d}Z"
            event = {"id": self._last, "type": kind, "time": stamp, **fields}
            for listener in listeners:
                listener(event)

    def opened(self, record: Record) -> None:
        """A stream began: it is under way from now on."""
        if self._listened:
            self._room -= len(record.path) + _EACH
            if self._room < 0:
                self._noted()

    def upgraded(self, record: Record) -> None:
        """A stream became a WebSocket."""
        if self._listened:
            self.tell("stream_upgraded", {name: getattr(record, name) for name in Said.__struct_fields__})

    def closed(self, record: Record, now: float) -> None:
        """A stream is over; `now` is monotonic seconds."""
        if self._listened:
            path = record.path
            over = (
                record.tunnel, record.request_id, record.kind, record.method, path, record.client,
                record.reason, record.started, now, record.bytes_in, record.bytes_out,
            )  # fmt: skip
            self._over.append(over)
            self._room -= len(path) + _EACH
            if self._room < 0:
                self._noted()

    def _noted(self) -> None:
        """The first of a piece, or the last."""
        if not self._waits:
            self._waits = True
            self._room += PIECE
            if not self._pieces:
                for listener in self._streams:
                    listener.waiting(self.fetch)
        if self._whole:
            self.flush()
        elif self._room < 0:
            self._pieces.append(self._gathered())
            if len(self._pieces) > PIECES:
                self._make(*self._pieces.popleft())

    def _gathered(self) -> _Piece:
        """What has gathered since the last piece. It holds no stream: that may be over before the piece is made."""
        before, self._told = self._told, monotonic()
        begun: list[Record] = []
        for live in self._live:
            for record in reversed(live):
                if record.started <= before:
                    break
                begun.append(record)
        piece = begins(begun), self._over, before
        self._begin_anew()
        return piece

    def _begin_anew(self) -> None:
        self._over, self._room, self._waits = [], 0, False

    def _forget(self) -> None:
        self._pieces.clear()
        self._begin_anew()

    def fetch(self) -> bool:
        """Make a piece of the events that wait, the oldest, and give it to whoever listens; whether others wait."""
        if self._pieces:
            self._make(*self._pieces.popleft())
            return bool(self._pieces) or self._waits
        if self._waits:
            self._make(*self._gathered())
        return False

    def flush(self) -> None:
        """Make all events that wait, and give them to whoever listens."""
        while self.fetch():
            pass

    def _make(self, happened: list[Happened], over: list[Over], told: float) -> None:
        if over:
            happened += ends(over, told)
        if not happened:  # what waited was refused before it was under way
            return
        last = self._last
        self._last += len(happened)
        for encoded, events in blocks(happened, last + 1, time() - monotonic()):
            first, last = last + 1, last + events
            for listener in self._whole:
                for block in encoded.split(b"\n\n")[:-1]:
                    listener(json.loads(block.partition(_DATA)[2]))
            for taker in self._streams:
                taker.take(first, last, encoded, events)


_Piece = tuple[list[Happened], list[Over], float]
"""Of some time: begins of streams that went on at its end; those that ended; until when begins were told before."""
_DATA: Final = b"\ndata: "


_T = TypeVar("_T")


def _without(listeners: tuple[_T, ...], gone: _T) -> tuple[_T, ...]:
    """The same but for one; a method is another object each time it is asked for, and equal."""
    return tuple(one for one in listeners if one != gone)
