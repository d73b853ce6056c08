"""``GET /v1/events``: each subscriber has a bounded queue of its own; one that is too slow is cut and told so.

A reader whose connection broke comes back with ``Last-Event-ID`` and gets what it missed, as far as that is kept.
"""

from __future__ import annotations

import asyncio
import datetime
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING

from starlette.responses import Response

from tunneld.control.guard import Problem, json_bytes
from tunneld.control.models import Event

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "Subscribers"]

GATHER = 0.05
"""Seconds between two writes to one reader."""
KEEPALIVE = 15.0
"""Seconds of quiet after which a comment shows the reader that the stream lives."""
MAX_HELD = 1024 * 1024
"""Bytes that wait for one subscriber before it is cut."""
MAX_SUBSCRIBERS = 32
MAX_KEPT = 1024 * 1024
"""Bytes of the last events that are kept for readers that come back."""
RETAIN = 300.0
"""Seconds that events are kept after the last reader has left."""
CUT_AFTER = 5.0
"""Seconds that a cut subscriber has to read what is left; then its connection is aborted."""

Subscribe = Callable[[Callable[[Event], None]], Callable[[], None]]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _encode(event: Event) -> bytes:
    # JSON holds no line end, so one data field carries it (HTML, 9.2.6).
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event["id"], event["type"].encode(), json_bytes(event))


class Subscription:
    """One reader's events, encoded, in order. `wake` is set when there is something to do."""

    __slots__ = ("_held", "_queue", "dropped", "ended", "last_id", "on_cut", "wake")

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._held = 0
        self.ended = False
        self.dropped = 0
        self.last_id = 0
        self.wake = asyncio.Event()
        self.on_cut: Callable[[], None] | None = None

    def add(self, event_id: int, encoded: bytes) -> None:
        """One more; too much for one that does not read, and it is cut."""
        if self.ended:
            return
        self.last_id = event_id
        if self._held + len(encoded) > MAX_HELD:
            self._cut()
        else:
            self._queue.append(encoded)
            self._held += len(encoded)
        self.wake.set()

    def begin(self, missed: list[bytes]) -> None:
        """What a reader that comes back has missed, whatever its size: it is bounded by what is kept."""
        self._queue.extend(missed)
        self.wake.set()

    def _cut(self) -> None:
        self.dropped = len(self._queue) + 1
        last = {"id": self.last_id, "type": "lagged", "time": _now(), "dropped": self.dropped}
        self._queue.clear()
        self._queue.append(_encode(last))
        self.end()
        if self.on_cut is not None:
            self.on_cut()

    def take(self) -> bytes:
        """Return all that waits."""
        taken = b"".join(self._queue)
        self._queue.clear()
        self._held = 0
        self.wake.clear()
        return taken

    def end(self) -> None:
        """Take no more events; what waits may still be taken. Idempotent."""
        self.ended = True
        self.wake.set()


class Subscribers:
    """All readers of an agent's events, at most `MAX_SUBSCRIBERS`, and the last events for those that come back.

    Nothing is listened to before the first reader comes, nor for longer than `RETAIN` after the last has left.
    """

    def __init__(self, subscribe: Subscribe) -> None:
        self._subscribe = subscribe
        self._open: set[Subscription] = set()
        self._closed = False
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_size = 0
        self._before = 0  # id of the last event that is not kept any more, or came before anybody listened
        self._unsubscribe: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, last_id: int | None = None) -> Subscription | None:
        """Return a new subscription, None when there are too many or the agent stops.

        Args:
            last_id: of the last event that the reader had; it gets those that came since, after an event ``gap`` when
                not all are kept. None: it wants what comes from now on.
        """
        if self._closed or len(self._open) >= MAX_SUBSCRIBERS:
            return None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        listened = self._unsubscribe is not None
        if self._unsubscribe is None:
            self._unsubscribe = self._subscribe(self._listen)
        one = Subscription()
        if last_id is not None:
            one.begin(self._since(last_id, listened=listened))
        self._open.add(one)
        return one

    def _since(self, last_id: int, *, listened: bool) -> list[bytes]:
        newest = self._kept[-1][0] if self._kept else self._before
        missed = [encoded for event_id, encoded in self._kept if event_id > last_id]
        if listened and self._before <= last_id <= newest:
            return missed
        first = self._kept[0][0] if missed else None
        gap = {"id": max(0, (first or 1) - 1), "type": "gap", "time": _now(), "since": last_id, "next": first}
        return [_encode(gap), *missed]

    def _listen(self, event: Event) -> None:
        encoded = _encode(event)
        event_id: int = event["id"]
        if not self._kept and self._before == 0:
            self._before = event_id - 1
        self._kept.append((event_id, encoded))
        self._kept_size += len(encoded)
        while self._kept_size > MAX_KEPT and len(self._kept) > 1:
            self._before, oldest = self._kept.popleft()
            self._kept_size -= len(oldest)
        for one in tuple(self._open):
            one.add(event_id, encoded)

    def remove(self, one: Subscription) -> None:
        """End it and forget it. Idempotent."""
        one.end()
        self._open.discard(one)
        if not self._open and self._timer is None and self._unsubscribe is not None:
            self._timer = asyncio.get_running_loop().call_later(RETAIN, self._let_go)

    def _let_go(self) -> None:
        """Nobody listens: what happens from now on is not kept."""
        self._timer = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._kept.clear()
        self._kept_size = self._before = 0

    def close(self) -> None:
        """End every subscription; each response ends after what already waits. None can be added."""
        self._closed = True
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
    """The response: SSE until the reader leaves, is cut, or the agent stops."""

    def __init__(self, subscribers: Subscribers) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._subscribers = subscribers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader (ASGI)."""
        one = self._subscribers.add(last_event_id(scope.get("headers", ())))
        if one is None:
            await Problem("too_many_subscribers")(scope, receive, send)
            return
        timers: list[asyncio.TimerHandle] = []
        abort = scope.get("state", {}).get("abort")
        if abort is not None:
            loop = asyncio.get_running_loop()
            one.on_cut = lambda: timers.append(loop.call_later(CUT_AFTER, abort))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # A first comment, so that a reader knows at once that it is subscribed.
            await send({"type": "http.response.body", "body": b": subscribed\n\n", "more_body": True})
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(_watch(receive, one), name="control events: reader")
                await _pump(one, send)
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


async def _pump(one: Subscription, send: Send) -> None:
    """Send what happens after a quiet moment at once; what happens all the time, together: each write has a price."""
    sent = 0.0
    while True:
        if (early := sent + GATHER - monotonic()) > 0 and not one.ended:
            await asyncio.sleep(early)
        ended = one.ended
        waiting = one.take()
        if waiting:
            await send({"type": "http.response.body", "body": waiting, "more_body": True})
            sent = monotonic()
        if ended:
            return
        try:
            async with asyncio.timeout(KEEPALIVE):
                await one.wake.wait()
        except TimeoutError:
            await send({"type": "http.response.body", "body": b": keepalive\n\n", "more_body": True})
