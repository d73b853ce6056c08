"""``GET /v1/events``: each subscriber has a bounded queue of its own; one that is too slow is cut and told so.

What happens in one turn of the loop, as when a tunnel is lost with all its streams, cuts nobody who reads
(`control.event_queue`).

A reader whose connection broke comes back with ``Last-Event-ID`` and gets what it missed, as far as that is kept.

Events of streams, of which there are two a request, are made when a reader is about to be written to, or some have
gathered: then together, and encoded once for all readers (agent/telling.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING

from starlette.responses import Response

from tunneld.agent.telling import Streams
from tunneld.control.event_bounds import EventBounds
from tunneld.control.event_filter import EventFilter
from tunneld.control.event_queue import Subscription, encode, now
from tunneld.control.guard import Problem
from tunneld.control.models.events import Event

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "Subscribers"]

GATHER = 0.25
"""Seconds between two writes to one reader, unless an eighth of what may wait for it does."""
BUSY = 256 * 1024
"""Bytes a second of events of streams (about 440 requests a second) from which nobody reads along any more."""
GATHER_BUSY = 1.0
"""The same seconds then, unless something else happens: what is made seldom, and much at a time, costs each less."""
KEEPALIVE = 15.0
"""Seconds of quiet after which a comment shows the reader that the stream lives."""
RETAIN = 300.0
"""Seconds that events are kept after the last reader has left; those of streams: the last that wants such."""
CUT_AFTER = 5.0
"""Seconds that a cut subscriber has to read what is left; then its connection is aborted."""

Subscribe = Callable[[Callable[[Event], None], Streams], Callable[[], None]]


def _after(event_id: int, encoded: bytes) -> list[bytes]:
    """Of encoded events those behind that one."""
    events = [event + b"\n\n" for event in encoded.split(b"\n\n") if event]
    return [event for event in events if _id(event) > event_id]


def _id(event: bytes) -> int:
    return int(event[4 : event.index(b"\n")])


class Subscribers:
    """All readers of an agent's events through one door, and the last events for those that come back.

    Nothing is listened to before the first reader comes, nor for longer than `RETAIN` after the last has left. The same
    holds for events of streams and the readers that want such: where nobody does, they are not even made.
    """

    def __init__(self, subscribe: Subscribe, bounds: EventBounds | None = None) -> None:
        self._subscribe = subscribe
        self.bounds = bounds if bounds is not None else EventBounds()
        self._open: set[Subscription] = set()
        self._closed = False
        self._fetch: Callable[[], bool] | None = None  # brings some of the events of streams that wait
        self._kept: deque[tuple[int, int, bytes]] = deque()  # what came together: first id, last id, encoded
        self._kept_size = 0
        self._before = 0  # id of the last event that is not kept any more, or came before anybody listened
        self._unsubscribe: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._streams = False  # those of streams are listened to as well
        self._streams_timer: asyncio.TimerHandle | None = None
        self._missing = False  # what is kept comes in part from when they were not
        self._since_then = 0  # id of the first event since they are again; 0: none came yet

    def __len__(self) -> int:
        return len(self._open)

    @property
    def fullest(self) -> int:
        """Bytes that wait for the reader that is the furthest behind."""
        return max((one.held for one in self._open), default=0)

    @property
    def kept(self) -> int:
        """Bytes of the last events that are kept."""
        return self._kept_size

    def add(self, last_id: int | None = None, wanted: EventFilter | None = None) -> Subscription | None:
        """Return a new subscription, None when there are too many or the agent stops.

        Args:
            last_id: of the last event that the reader had; it gets those that came since, after an event ``gap`` when
                not all are kept. None: it wants what comes from now on.
            wanted: what it asks for; None: all.
        """
        if self._closed or len(self._open) >= self.bounds.readers:
            return None
        one = Subscription(self.bounds.queue, wanted)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._streams_timer is not None and one.streams:
            self._streams_timer.cancel()
            self._streams_timer = None
        self.flush()  # what came before this reader is none of its own
        listened = self._unsubscribe is not None
        self._listen_to(streams=one.streams or self._streams)
        if last_id is not None:
            one.begin(self._missed(one, last_id, listened=listened))
        self._open.add(one)
        return one

    def _listen_to(self, *, streams: bool) -> None:
        if self._unsubscribe is not None:
            if streams == self._streams:
                return
            self._unsubscribe()
            self._missing, self._since_then = True, 0
        self._streams, self._fetch = streams, None
        self._unsubscribe = self._subscribe(self._listen, self if streams else False)

    def _missed(self, one: Subscription, last_id: int, *, listened: bool) -> list[bytes]:
        newest = self._kept[-1][1] if self._kept else self._before
        missed: list[bytes] = []
        for _, last, encoded in self._kept:
            if last > last_id:
                missed += _after(last_id, encoded if one.wanted is None else one.wanted.pick(encoded))
        # Who had the last event before streams were listened to again may miss some that have no id: it is told so.
        made = not one.streams or not self._missing or 0 < self._since_then <= last_id
        if listened and made and self._before <= last_id <= newest:
            return missed
        first = _id(missed[0]) if missed else None
        at = first - 1 if first else newest or last_id  # ids rise, this one's too
        gap = {"id": at, "type": "gap", "time": now(), "since": last_id, "next": first}
        return [encode(gap), *missed]

    def _listen(self, event: Event) -> None:
        encoded = encode(event)
        self._keep(event["id"], event["id"], encoded)
        for one in tuple(self._open):
            if one.wanted is None or one.wanted.passes(event):
                one.add(event["id"], encoded, 1)

    def waiting(self, fetch: Callable[[], bool]) -> None:
        """See `StreamListener`."""
        self._fetch = fetch
        for one in self._open:
            if one.streams:
                one.wake.set()

    def take(self, first: int, last: int, encoded: bytes, events: int) -> None:
        """See `StreamListener`."""
        self._keep(first, last, encoded)
        for one in tuple(self._open):
            if one.streams:
                one.add(last, encoded, events)

    def fetch(self) -> bool:
        """Give every reader some of what waits; whether more does."""
        return self._fetch is not None and self._fetch()

    def flush(self) -> None:
        """Give every reader what waits."""
        while self.fetch():
            pass

    def _keep(self, first: int, last: int, encoded: bytes) -> None:
        self._since_then = self._since_then or first
        if not self._kept and self._before == 0:
            self._before = first - 1
        self._kept.append((first, last, encoded))
        self._kept_size += len(encoded)
        while self._kept_size > self.bounds.history and len(self._kept) > 1:
            _, self._before, oldest = self._kept.popleft()
            self._kept_size -= len(oldest)

    def remove(self, one: Subscription) -> None:
        """End it and forget it. Idempotent."""
        one.end()
        self._open.discard(one)
        loop = asyncio.get_running_loop()
        if self._streams and self._streams_timer is None and not any(other.streams for other in self._open):
            self._streams_timer = loop.call_later(RETAIN, self._let_streams_go)
        if not self._open and self._timer is None and self._unsubscribe is not None:
            self._timer = loop.call_later(RETAIN, self._let_go)

    def _let_streams_go(self) -> None:
        """Nobody wants their events: they are made no more, for this door."""
        self._streams_timer = None
        self.flush()
        self._listen_to(streams=False)

    def _let_go(self) -> None:
        """Nobody listens: what happens from now on is not kept."""
        self._timer = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._fetch = None
        self._kept.clear()
        self._kept_size = self._before = self._since_then = 0
        self._streams = self._missing = False
        if self._streams_timer is not None:
            self._streams_timer.cancel()
            self._streams_timer = None

    def close(self) -> None:
        """End every subscription; each response ends after what already waits. None can be added."""
        self._closed = True
        self.flush()
        for one in tuple(self._open):
            one.end()
        if self._timer is not None:
            self._timer.cancel()
        self._let_go()


def last_event_id(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """What ``Last-Event-ID`` says; None without it, or where it is none of ours."""
    given = [value for name, value in headers if name == b"last-event-id"]
    if len(given) != 1 or not given[0].isdigit() or len(given[0]) > 18:
        return None
    return int(given[0])


class EventStream(Response):
    """The response: SSE until the reader leaves, is cut, or the agent stops.

    Args:
        wanted: what the reader asks for; None: all.
    """

    def __init__(self, subscribers: Subscribers, wanted: EventFilter | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._subscribers = subscribers
        self._wanted = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader (ASGI)."""
        one = self._subscribers.add(last_event_id(scope.get("headers", ())), self._wanted)
        if one is None:
            await Problem("too_many_subscribers")(scope, receive, send)
            return
        timers: list[asyncio.TimerHandle] = []
        state = scope.get("state", {})
        state["patient"] = True  # who does not read is cut when too much waits, however long that takes
        abort = state.get("abort")
        if abort is not None:
            loop = asyncio.get_running_loop()
            one.on_cut = lambda: timers.append(loop.call_later(CUT_AFTER, abort))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # A first comment, so that a reader knows at once that it is subscribed.
            await send({"type": "http.response.body", "body": b": subscribed\n\n", "more_body": True})
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(_watch(receive, one), name="control events: reader")
                await _pump(one, send, self._subscribers.fetch)
                watcher.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for timer in timers:
                timer.cancel()
            self._subscribers.remove(one)


async def _watch(receive: Receive, one: Subscription) -> None:
    """End the subscription when its reader is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    one.end()


async def _pump(one: Subscription, send: Send, fetch: Callable[[], bool]) -> None:
    """Send what happens after a quiet moment at once; what happens all the time, together: each write has a price.

    Args:
        fetch: gives it some of what has gathered; tells whether more has.
    """
    looked, taken = 0.0, 0
    told = before = monotonic()
    more = rest = busy = False
    while True:
        if not (more or rest):
            if looked > before:
                busy = one.taken - taken > BUSY * (looked - before)
                before, taken = looked, one.taken
            await _gather(one, looked, busy=busy)
        if not rest:
            more = fetch()  # what is noted behind a burst gathers on until that is written
        some, waiting = one.waits, one.take()
        if waiting:
            await one.writing(_write(send, waiting))
            told = monotonic()
        if some:
            looked = monotonic()  # though nothing of it may be what the reader asks for
        again, rest = rest or more, one.waits
        if again or rest:  # behind the last part too: something may be noted
            await asyncio.sleep(0)  # between two parts the loop turns, however fast the reader is
            continue
        if one.ended:
            return
        if (quiet := told + KEEPALIVE - monotonic()) > 0:
            await _set(one.wake, quiet)
        else:
            await one.writing(_write(send, [b": keepalive\n\n"]))
            told = monotonic()


async def _write(send: Send, pieces: list[bytes]) -> None:
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _gather(one: Subscription, looked: float, *, busy: bool) -> None:
    """Wait until it is time to look for more.

    Args:
        looked: when there was some the last time, monotonic seconds.
        busy: streams come and go too fast for people: what else happens ends the longer wait for them.
    """
    if (early := looked + GATHER - monotonic()) > 0:
        await _set(one.hurry, early)
    if busy and not (one.waits or one.ended) and (early := looked + GATHER_BUSY - monotonic()) > 0:
        one.hurry.clear()  # the clock set it: whatever else does leaves something to take, or an end
        one.eager = True
        await _set(one.hurry, early)
        one.eager = False


async def _set(event: asyncio.Event, within: float) -> None:
    """Wait until it is set, which the clock does after so many seconds; `Subscription.take` clears it again.

    (asyncio.timeout raises and catches two exceptions for each that is over.)
    """
    timer = asyncio.get_running_loop().call_later(within, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
