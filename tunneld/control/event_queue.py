"""What waits for one reader of ``GET /v1/events``, and when it is too much.

Encoded events come in pieces, which all readers share: what is told here of bytes is told of the same objects, and many
readers that are behind hold hardly more than the one that is the furthest behind. Each writes a part at a time, so that
little is copied for it alone.
"""

from __future__ import annotations

import asyncio
import datetime
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from tunneld.control.event_filter import EventFilter
from tunneld.control.guard import json_bytes
from tunneld.control.models.events import Event

__all__ = ["BURST", "Subscription", "encode", "now"]

PATIENCE = 0.5
"""Seconds that one write may take before its reader counts as one that does not read.

On a busy machine a reader may get no time for more than 0.1 s, however willing it is.
"""
BURST: Final = 16
"""A reader that is not known not to read may have so many times its queue wait: 16 MiB by itself.

What happens in one turn of the loop comes before any reader could take of it, and one cause may end all streams of some
tunnels in a few turns: about 300 bytes each, so 55,000 are within it, and 14,000 with the smallest queue. It is no
price of each reader's, since they share the pieces.
"""
WRITE: Final = 256 * 1024
"""Bytes of one write, about: what a reader that reads has taken long before `PATIENCE` is over."""


def now() -> str:
    """ISO 8601 UTC in milliseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(event: Event) -> bytes:
    """An event as a block of an event stream; JSON holds no line end, so one data field carries it (HTML, 9.2.6)."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event["id"], event["type"].encode(), json_bytes(event))


class Subscription:
    """One reader's events, encoded, in order.

    It is cut when more than `most` waits and a write to it has not ended within `PATIENCE`; or, at once, when more than
    `BURST` times that waits.

    Args:
        most: bytes.
        wanted: what its reader asks for; None: all. What is added may have more in it.

    Attributes:
        streams: whether it wants events of streams.
        taken: bytes that waited and were taken so far, whether its reader asks for them or not.
        wake: set when there is something to do.
        hurry: set when it should be done now: much waits, or it has ended.
        eager: `hurry` is set for little as well; may be set.
    """

    __slots__ = (
        "_bound", "_held", "_most", "_queue", "dropped", "eager", "ended", "hurry", "last_id", "on_cut", "streams",
        "taken", "wake", "wanted",
    )  # fmt: skip

    def __init__(self, most: int, wanted: EventFilter | None = None) -> None:
        self.wanted = wanted
        self.streams = wanted is None or wanted.streams
        self._most = most
        self._bound = most * BURST
        self._queue: deque[tuple[bytes, int, int]] = deque()  # encoded, of how many events, its bytes that count
        self._held = 0
        self.eager = self.ended = False
        self.dropped = self.taken = 0
        self.last_id = 0
        self.wake = asyncio.Event()
        self.hurry = asyncio.Event()
        self.on_cut: Callable[[], None] | None = None

    def add(self, last_id: int, encoded: bytes, events: int) -> None:
        """Some more; too much for one that does not read, and it is cut.

        Args:
            last_id: of the last of them.
            events: how many they are.
        """
        if self.ended:
            return
        self.last_id = last_id
        held = self._held + len(encoded)
        if held > self._bound:
            self._cut(events if self.wanted is None else self._count(encoded))
        else:
            self._queue.append((encoded, events, len(encoded)))
            self._held = held
            if self.eager or held > self._most // 8:
                self.hurry.set()
        self.wake.set()

    def begin(self, missed: list[bytes]) -> None:
        """What a reader that comes back has missed, whatever its size: it is bounded by what is kept."""
        self._queue.append((b"".join(missed), len(missed), 0))
        self.wake.set()

    @property
    def held(self) -> int:
        """Bytes that wait for it."""
        return self._held

    @property
    def reads(self) -> bool:
        """Whether its writes end in time, as far as is known."""
        return self._bound > self._most

    @property
    def waits(self) -> bool:
        """Whether there is something to take."""
        return bool(self._queue)

    def _cut(self, more: int) -> None:
        if self.wanted is None:
            self.dropped = sum(events for _, events, _ in self._queue) + more
        else:
            self.dropped = sum(self._count(encoded) for encoded, *_ in self._queue) + more
        last = {"id": self.last_id, "type": "lagged", "time": now(), "dropped": self.dropped}
        self._queue.clear()
        self._held = 0
        self._queue.append((encode(last), 0, 0))
        self.end()
        if self.on_cut is not None:
            self.on_cut()

    def _count(self, encoded: bytes) -> int:
        """Of how many of these events its reader would have been told."""
        return (encoded if self.wanted is None else self.wanted.pick(encoded)).count(b"\n\n")

    def take(self) -> list[bytes]:
        """Return what its reader asks for of `WRITE` bytes that wait, or a piece; with more it remains in a hurry.

        In its pieces, which are not joined: to go through so much once more costs more than to write each by itself.
        """
        queue, size = self._queue, 0
        taken: list[bytes] = []
        while queue and (not size or size + len(queue[0][0]) <= WRITE):
            encoded, _, counted = queue.popleft()
            size += len(encoded)
            if self.wanted is not None:
                encoded = self.wanted.pick(encoded)
            if encoded:
                taken.append(encoded)
            self._held -= counted
        self.taken += size
        if not queue:
            self.wake.clear()
            if not self.ended:
                self.hurry.clear()
        else:
            self.hurry.set()
        return taken

    async def writing(self, write: Awaitable[None]) -> None:
        """Await the write of what it was given. While that takes longer than `PATIENCE`, no burst is taken in for it.

        A loop that does not turn makes no reader slow: what the socket takes after that is seen in the turn in which
        the timer ends, and ends the write in the next, before it is judged.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.Handle

        def late() -> None:
            nonlocal timer
            timer = loop.call_soon(self._stuck)

        timer = loop.call_later(PATIENCE, late)
        try:
            await write
        finally:
            timer.cancel()
            self._bound = self._most * BURST

    def _stuck(self) -> None:
        """Its write does not end: it holds its queue at most from now on."""
        self._bound = self._most
        if self._held > self._most and not self.ended:
            self._cut(0)

    def end(self) -> None:
        """Take no more events; what waits may still be taken. Idempotent."""
        self.ended = True
        self.wake.set()
        self.hurry.set()
