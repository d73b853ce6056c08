"""A token bucket, sans clock: so many a second, with a reserve for bursts.

Two ways to use it: `take` refuses what is too much (requests), `owe` lets it pass and says how long to wait before the
next (bytes, which have come already).
"""

from __future__ import annotations

__all__ = ["Bucket"]


class Bucket:
    """Holds what may still be used; full at first.

    Args:
        rate: that is added each second; above 0.
        burst: the most that it holds.
        now: monotonic seconds.
    """

    __slots__ = ("_at", "_level", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at = now

    def take(self, count: float, now: float) -> float:
        """Use `count` if there is so much: 0.0; else nothing is used, and the seconds until there is.

        A `count` above `burst` is let through when the bucket is full.
        """
        self._fill(now)
        wanted = min(count, self.burst)
        if self._level >= wanted:
            self._level -= count
            return 0.0
        return (wanted - self._level) / self.rate

    def owe(self, count: float, now: float) -> float:
        """Use `count` whether it is there or not; the seconds until what is owed is made good, 0.0 when nothing is."""
        self._fill(now)
        self._level -= count
        return max(0.0, -self._level / self.rate)

    def full(self, now: float) -> bool:
        """It is as good as a new one."""
        self._fill(now)
        return self._level >= self.burst

    def retune(self, rate: float, burst: float, now: float) -> None:
        """Let another rate hold from now on."""
        self._fill(now)
        self.rate, self.burst = rate, burst
        self._level = min(self._level, burst)

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
            self._at = now
