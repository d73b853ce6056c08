"""How close a process is to what its configuration allows: one figure for each bound."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Pair", "Usage", "fullest", "shares"]

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


def shares(usages: Iterable[Usage]) -> dict[str, float]:
    """What is used of each limit that something could be refused for, by its name in words."""
    return {
        _NAMES.get(one.limit, one.limit.replace("_", " ")): one.used / one.most
        for one in usages
        if one.most and not one.gives_way
    }
