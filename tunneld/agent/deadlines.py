"""Many equal timeouts on one timer: what is given the same time expires in the order it was added."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Deadlines"]

_K = TypeVar("_K")

_GRAIN = 0.001  # s: a loop's timers may fire this much early


class Deadlines(Generic[_K]):
    """Calls `expired` with each key that was added `after` seconds ago and not discarded since.

    An entry costs a place in a dict; the loop's one timer is armed only while there are entries, and is not
    touched when they come and go.

    Args:
        loop: whose timer it is.
        after: seconds; 0: nothing ever expires.
        expired: called with a key that is no longer in; it may add and discard.
    """

    __slots__ = ("_after", "_entries", "_expired", "_held_at", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, after: float, expired: Callable[[_K], None]) -> None:
        self._loop = loop
        self._after = after
        self._expired = expired
        self._entries: dict[_K, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._held_at: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: _K) -> bool:
        return key in self._entries

    @property
    def after(self) -> float:
        """Seconds until a key expires; a new value holds for those that are in, too."""
        return self._after

    @after.setter
    def after(self, after: float) -> None:
        if after != self._after:
            self._after = after
            self._arm()

    def add(self, key: _K) -> None:
        """Begin this key's time, anew when it is in."""
        entries = self._entries
        if key in entries:
            del entries[key]
        entries[key] = time.monotonic()
        if self._timer is None:
            self._arm()

    def discard(self, key: _K) -> None:
        """Forget this key; nothing happens when it is not in."""
        self._entries.pop(key, None)

    def newest(self) -> tuple[_K, float] | None:
        """The key that was added last, and when (monotonic seconds); None when there is none."""
        if not self._entries:
            return None
        key = next(reversed(self._entries))
        return key, self._entries[key]

    def hold(self) -> None:
        """Let time stand still for all keys, until `go_on`."""
        if self._held_at is None:
            self._held_at = time.monotonic()
            self._arm()

    def go_on(self) -> None:
        """Time passes again: what was held does not count, for keys that came meanwhile neither."""
        held_at, self._held_at = self._held_at, None
        if held_at is not None:
            now = time.monotonic()
            for key, since in self._entries.items():
                self._entries[key] = since + now - max(held_at, since)
            self._arm()

    def clear(self) -> list[_K]:
        """Forget all keys and stop the timer; returns the keys that were in."""
        keys = list(self._entries)
        self._entries.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return keys

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._entries and self._after > 0 and self._held_at is None:
            first = next(iter(self._entries.values()))
            self._timer = self._loop.call_later(max(0.0, first + self._after - time.monotonic()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        until = time.monotonic() - self._after + _GRAIN
        while self._entries:
            key, since = next(iter(self._entries.items()))
            if since > until:
                break
            del self._entries[key]
            self._expired(key)
        if self._timer is None:
            self._arm()
