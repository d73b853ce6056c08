"""Agents that replace each other under one name for ever: a copied machine image. Pure: the time is passed in.

Two instances that replace each other three times within ten minutes are in conflict: the one that serves stays, and
the other's hello is refused until ten minutes have passed without one (PROTOCOL.md, takeover).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["PAUSE", "Conflict", "Conflicts"]

#: Seconds: the time within which replacements count, and that a refused one must stay away.
PAUSE = 600.0
#: Times within `PAUSE` that somebody who was replaced took the name back. With the first replacement that makes three.
_RETURNS = 2
#: Replacements, and refused instances, that are remembered of one name.
_MAX = 32


@dataclass(frozen=True, slots=True)
class Conflict:
    """A hello that is refused.

    Attributes:
        address: of the agent that is refused.
        other: of the one that serves.
        first: its first refusal in a row, or from another address than before: worth a line in the log.
    """

    address: str
    other: str
    first: bool


class Conflicts:
    """Who took one name from whom, and who is kept away from it.

    An instance is a process (`instance` of its hello). One that was started anew replaces its former self, which
    does not come back: only those that were replaced and return count.
    """

    __slots__ = ("_address", "_holder", "_refused", "_swaps")

    def __init__(self) -> None:
        self._holder: str | None = None
        self._address = ""
        #: (when, who lost the name, who took it), the oldest first.
        self._swaps: deque[tuple[float, str, str]] = deque(maxlen=_MAX)
        #: instance -> (when its last hello came, from which address), the oldest first.
        self._refused: dict[str, tuple[float, str]] = {}

    def hello(self, instance: str, address: str, now: float, *, held: bool) -> Conflict | None:
        """A hello that is otherwise good came; None: it takes the name.

        Args:
            instance: of the process that says it.
            address: of its connection, for people.
            now: monotonic seconds.
            held: a connection or a kept session has the name, and would be replaced or resumed.
        """
        self._forget_before(now - PAUSE)
        holder = self._holder
        if held and holder is not None and holder != instance:
            if instance in self._refused or self._returns_again(instance):
                before = self._refused.pop(instance, None)
                self._refused[instance] = (now, address)
                if len(self._refused) > _MAX:
                    del self._refused[next(iter(self._refused))]
                return Conflict(address, self._address, before is None or before[1] != address)
            self._swaps.append((now, holder, instance))
        self._refused.pop(instance, None)
        self._holder, self._address = instance, address
        return None

    def _returns_again(self, instance: str) -> bool:
        """It was replaced and is back, and that has happened here often enough."""
        lost: set[str] = set()
        returns = 0
        for _, loser, taker in self._swaps:
            returns += taker in lost
            lost.add(loser)
        return instance in lost and returns >= _RETURNS

    def _forget_before(self, then: float) -> None:
        swaps, refused = self._swaps, self._refused
        while swaps and swaps[0][0] <= then:
            swaps.popleft()
        while refused and (first := next(iter(refused))) and refused[first][0] <= then:
            del refused[first]
