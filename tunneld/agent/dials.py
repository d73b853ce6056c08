"""When a tunnel dials: the wait before a dial, and what cuts a wait or a dial short."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from tunneld.agent.reconnect import Backoff, Verdict

__all__ = ["Dials"]

Made = TypeVar("Made")

#: Seconds for which, after a dial was cut because the network changed, the next is let alone: where networks come and
#: go all the time (containers), no dial would ever be done.
_SPARED = 5.0


class Dials:
    """The dials of one tunnel, one at a time.

    Args:
        backoff: how far apart they are.

    Attributes:
        hurried: somebody wants a dial now: it is worth more than the backoff, but for the distance any two keep.
    """

    def __init__(self, backoff: Backoff) -> None:
        self.hurried = False
        self._backoff = backoff
        self._under_way: asyncio.Timeout | None = None
        self._kick = asyncio.Event()
        self._closing = False
        self._spared_until = 0.0

    def update(self, initial: float, maximum: float) -> None:
        """Let other distances hold from the next wait on, in seconds."""
        self._backoff.update(initial, maximum)

    def connected(self) -> None:
        """A session stands: its loss is followed by a dial at once, when it stood for long enough."""
        self._backoff.connected(monotonic())

    @property
    def under_way(self) -> bool:
        """Whether a dial is being made."""
        return self._under_way is not None

    async def dial(self, make: Callable[[], Awaitable[Made]]) -> Made:
        """Make a connection; raises TimeoutError when it is cut, and what `make` raises."""
        self._backoff.dialled(monotonic())
        try:
            async with asyncio.timeout(None) as self._under_way:  # `cut` ends it
                return await make()
        finally:
            self._under_way = None

    def hurry(self) -> None:
        """Dial as soon as two dials may follow each other."""
        self._backoff.forget()
        self.hurried = True
        self._kick.set()
        self.cut()

    def cut(self) -> None:
        """End the dial that is being made, if one is."""
        if self._under_way is not None:
            self._under_way.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """No more dials: end the one that is being made and the wait."""
        self._closing = True
        self._kick.set()
        self.cut()

    def spares(self) -> bool:
        """The network changed under a dial: whether to let it alone, since one was cut for that a moment ago."""
        now = monotonic()
        if now < self._spared_until:
            self._backoff.forget()
            return True
        self._spared_until = now + _SPARED
        return False

    async def pause(self, verdict: Verdict, *, kept: float | None) -> None:
        """Wait before the next dial. `hurry` ends it, but for the distance that any two dials keep.

        Args:
            verdict: why the last connection ended.
            kept: seconds that a session without a connection is still kept for; None: there is none.
        """
        until = monotonic() + self._backoff.delay(monotonic(), verdict, kept=kept)
        while not self._closing and (left := until - monotonic()) > 0:
            if self.hurried:
                self.hurried = False
                until = min(until, monotonic() + self._backoff.spacing(monotonic()))
                continue
            self._kick.clear()
            try:
                async with asyncio.timeout(left):
                    await self._kick.wait()
            except TimeoutError:
                pass
