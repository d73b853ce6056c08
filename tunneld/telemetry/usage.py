"""How close a process is to what its configuration allows: one figure for each bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["LOOK", "Pair", "Shares", "Usage", "fullest"]

LOOK = 5.0
"""Seconds between two looks at how much of each limit is used, for alerts."""

Pair = tuple[float, float]
"""What is used, and what may be; 0: no limit."""

_NAMES = {"tunnel_streams": "streams of a tunnel"}  # others are told with spaces


class Usage(NamedTuple):
    """One bound.

    Attributes:
        limit: its name, of our own code.
        used: as many there are.
        most: as many there may be; 0: no limit.
        gives_way: what is kept beside it makes room for what comes (or comes later): to be full is no trouble. Else
            what comes then is refused.
    """

    limit: str
    used: float
    most: float
    gives_way: bool = False


def fullest(limit: str, pairs: Iterable[Pair], *, gives_way: bool = False) -> Usage:
    """Of a bound that each of many has for itself: the one that is closest to it."""
    used = most = share = 0.0
    for one, may in pairs:
        if may and (one / may > share or not most):
            used, most, share = one, may, one / may
    return Usage(limit, used, most, gives_way)


class Shares:
    """What is used of each limit that something could be refused for, by its name in words.

    To gather it takes longer than all else that alerts look at each second.

    Args:
        gather: all bounds.
    """

    def __init__(self, gather: Callable[[], Iterable[Usage]]) -> None:
        self._gather = gather
        self._looked_at = float("-inf")
        self._found: dict[str, float] = {}

    def read(self, now: float) -> dict[str, float]:
        """The shares, at most `LOOK` seconds old; `now` is monotonic seconds."""
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            self._found = {
                _NAMES.get(one.limit, one.limit.replace("_", " ")): one.used / one.most
                for one in self._gather()
                if one.most and not one.gives_way
            }
        return self._found
