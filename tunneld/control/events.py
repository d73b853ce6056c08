"""``GET /v1/events``: each subscriber has a bounded queue of its own; one that is too slow is cut and told so."""

from __future__ import annotations

import asyncio
import datetime
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.responses import Response

from tunneld.control.guard import Problem, json_bytes
from tunneld.control.models import Event

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["EventStream", "Subscribers"]

KEEPALIVE = 15.0
"""Seconds of quiet after which a comment shows the reader that the stream lives."""
MAX_HELD = 1024 * 1024
"""Bytes that wait for one subscriber before it is cut."""
MAX_SUBSCRIBERS = 32
CUT_AFTER = 5.0
"""Seconds that a cut subscriber has to read what is left; then its connection is aborted."""

Subscribe = Callable[[Callable[[Event], None]], Callable[[], None]]


def _encode(event: Event) -> bytes:
    # JSON holds no line end, so one data field carries it (HTML, 9.2.6).
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event["id"], event["type"].encode(), json_bytes(event))


class Subscription:
    """One reader's events, encoded, in order. `wake` is set when there is something to do."""

    __slots__ = ("_held", "_queue", "_unsubscribe", "dropped", "ended", "last_id", "on_cut", "wake")

    def __init__(self, subscribe: Subscribe) -> None:
        self._queue: deque[bytes] = deque()
        self._held = 0
        self.ended = False
        self.dropped = 0
        self.last_id = 0
        self.wake = asyncio.Event()
        self.on_cut: Callable[[], None] | None = None
        self._unsubscribe = subscribe(self._listen)

    def _listen(self, event: Event) -> None:
        if self.ended:
            return
        self.last_id = event["id"]
        encoded = _encode(event)
        if self._held + len(encoded) > MAX_HELD:
            self._cut()
        else:
            self._queue.append(encoded)
            self._held += len(encoded)
        self.wake.set()

    def _cut(self) -> None:
        self.dropped = len(self._queue) + 1
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        last = {"id": self.last_id, "type": "lagged", "time": now, "dropped": self.dropped}
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
        if not self.ended:
            self.ended = True
            self._unsubscribe()
        self.wake.set()


class Subscribers:
    """All subscribers of an agent's events, at most `MAX_SUBSCRIBERS`."""

    def __init__(self, subscribe: Subscribe) -> None:
        self._subscribe = subscribe
        self._open: set[Subscription] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self) -> Subscription | None:
        """Return a new subscription, None when there are too many or the agent stops."""
        if self._closed or len(self._open) >= MAX_SUBSCRIBERS:
            return None
        one = Subscription(self._subscribe)
        self._open.add(one)
        return one

    def remove(self, one: Subscription) -> None:
        """End it and forget it. Idempotent."""
        one.end()
        self._open.discard(one)

    def close(self) -> None:
        """End every subscription; each response ends after what already waits. None can be added."""
        self._closed = True
        for one in tuple(self._open):
            one.end()


class EventStream(Response):
    """The response: SSE until the reader leaves, is cut, or the agent stops."""

    def __init__(self, subscribers: Subscribers) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._subscribers = subscribers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader (ASGI)."""
        one = self._subscribers.add()
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
    while True:
        ended = one.ended
        waiting = one.take()
        if waiting:
            await send({"type": "http.response.body", "body": waiting, "more_body": True})
        if ended:
            return
        try:
            async with asyncio.timeout(KEEPALIVE):
                await one.wake.wait()
        except TimeoutError:
            await send({"type": "http.response.body", "body": b": keepalive\n\n", "more_body": True})
