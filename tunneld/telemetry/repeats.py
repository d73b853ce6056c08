"""What one caller says again and again: told once in a time, the others counted. Pure: the time is passed in."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Repeats"]

_T = TypeVar("_T")


@dataclass(slots=True)
class _Time(Generic[_T]):
    """Of one key, from its first line on: `until` when, what was told, and how many were left out since."""

    until: float
    what: _T | None
    left: int = 0


class Repeats(Generic[_T]):
    """Which lines are told, and how many like each were not.

    Args:
        seconds: for which a line stands for all that are like it.
        most: keys that are known at a time; what is beyond them is counted together.
    """

    def __init__(self, seconds: Callable[[], float], most: Callable[[], int]) -> None:
        self._seconds = seconds
        self._most = most
        self._known: dict[Hashable, _Time[_T]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def first(self, key: Hashable, what: _T, now: float) -> bool:
        """Whether this one is told; one like it stands already otherwise, and it is counted."""
        found = self._known.get(key)
        if found is None and len(self._known) < self._most():
            self._known[key] = _Time(now + self._seconds(), what)
            return True
        if found is None:
            found = self._known.setdefault(None, _Time(now + self._seconds(), None))
        found.left += 1
        return False

    def deadline(self) -> float | None:
        """When `over` is to be called next; None: nothing is known."""
        return min((one.until for one in self._known.values()), default=None)

    def over(self, now: float) -> list[tuple[_T | None, int]]:
        """Of those whose time is over: the first, and how many like it were left out; None: of all beyond the bound.

        Of each that goes on the time begins anew.
        """
        told: list[tuple[_T | None, int]] = []
        for key, one in list(self._known.items()):
            if one.until > now:
                continue
            if one.left:
                told.append((one.what, one.left))
                self._known[key] = _Time(now + self._seconds(), one.what)
            else:
                del self._known[key]
        return told

    def end(self) -> list[tuple[_T | None, int]]:
        """As `over`, of all; nothing is known afterwards."""
        told = [(one.what, one.left) for one in self._known.values() if one.left]
        self._known.clear()
        return told
