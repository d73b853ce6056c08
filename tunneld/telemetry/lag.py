"""How late the event loop runs what is due: the first sign of a process that has too much to do."""

from __future__ import annotations

import asyncio

from tunneld.telemetry.metrics import Histogram

__all__ = ["LAG", "LoopLag"]

LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds, seconds."""
_EVERY = 1.0
"""Seconds between two looks; each costs a few microseconds."""


class LoopLag:
    """Measures the running loop from `start` until `stop`.

    Attributes:
        seen: seconds that each timer was late.
    """

    def __init__(self) -> None:
        self.seen = Histogram(LAG)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; on the loop."""
        loop = asyncio.get_running_loop()
        self._arm(loop, loop.time())

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        due = now + _EVERY
        self._timer = loop.call_at(due, self._look, loop, due)

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = loop.time()
        self.seen.observe(max(0.0, now - due))
        self._arm(loop, now)
