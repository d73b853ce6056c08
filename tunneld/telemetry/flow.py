"""Throughput of each tunnel, over the last few seconds, for whoever asks: two samples a tunnel, taken by one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from time import monotonic

__all__ = ["EVERY", "Flow", "FlowTimer"]

EVERY = 5.0
"""Seconds between two samples: a rate is of the last 5 to 10."""
_LEAST = 1.0
"""Seconds that a rate is of at least."""
_AT_ONCE = 100  # tunnels that are looked at before the loop turns


class Flow:
    """How many bytes of visitors' bodies one tunnel carries a second."""

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        self._before: tuple[float, int, int] | None = None
        self._last: tuple[float, int, int] | None = None

    def note(self, now: float, received: int, sent: int) -> None:
        """Take a sample.

        Args:
            now: monotonic seconds.
            received: bytes from visitors since the start.
            sent: bytes to them.
        """
        self._before, self._last = self._last, (now, received, sent)

    def rates(self, now: float, received: int, sent: int) -> tuple[float, float] | None:
        """Bytes a second from visitors, and to them, since the sample before the last; None: not known yet.

        Args:
            now: monotonic seconds; `received` and `sent` as for `note`, of now.
        """
        since = self._before or self._last
        if since is None or now - since[0] < _LEAST:
            return None
        elapsed = now - since[0]
        return max(0, received - since[1]) / elapsed, max(0, sent - since[2]) / elapsed


class FlowTimer:
    """Samples every tunnel of a daemon each `EVERY` seconds. `start`, then `stop`.

    Args:
        read: (its flow, bytes from visitors, bytes to them) of each; gone through once, with turns of the loop between.
    """

    def __init__(self, read: Callable[[], Iterable[tuple[Flow, int, int]]]) -> None:
        self._read = read
        self._timer: asyncio.Handle | None = None

    def start(self) -> None:
        """Sample from now on."""
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._begin)

    def stop(self) -> None:
        """End. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self.start()  # before anything is read: one that fails is the last of its turn alone
        self._go_on(iter(self._read()))

    def _go_on(self, steps: Iterator[tuple[Flow, int, int]]) -> None:
        now = monotonic()
        for number, (flow, received, sent) in enumerate(steps, 1):
            flow.note(now, received, sent)
            if number == _AT_ONCE:
                asyncio.get_running_loop().call_soon(self._go_on, steps)
                return
