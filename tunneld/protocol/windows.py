"""Credit, and nothing else: who may send how much, and how much a process holds for slow readers.

See PROTOCOL.md, "v3: flow control".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf

from tunneld.errors import RemoteError

__all__ = ["MAX_CREDIT", "MIN_WINDOW", "PIECE", "STREAM", "Holders", "MemoryBudget", "ReceiveWindow"]

#: A smaller wish is raised to this, a smaller configuration refused (bytes).
MIN_WINDOW = 16 * 1024
#: More credit than this at one time is an error of the peer: no window is that large.
MAX_CREDIT = 2**31 - 1
#: Bytes: a smaller piece of credit is returned only where it is half a window.
_STEP = 128 * 1024
#: Bytes that a stream costs while nothing waits for it: its objects and those of its connection (measured: see
#: tests/bench, `bounded`), and what may wait uncounted: the first `UNCOUNTED` in its transport, many small pieces.
STREAM = 16 * 1024
#: Bytes that a piece costs beside its bytes while a transport keeps it: many of one byte must count, too.
PIECE = 256


@lru_cache(64)
def _step(size: int) -> int:
    """Bytes of a window of that size that must have been taken before their credit goes back."""
    return max(size >> 3, min(size >> 1, _STEP))


class ReceiveWindow:
    """What the peer may still send in one direction of one stream.

    Credit returns when the consumer has taken bytes, in one piece once half a window was taken; of a window that has
    grown, once an eighth was: what waits here for the rest of its half is credit that the sender lacks, and over a
    long way it moved only half a window each round trip. The window
    doubles up to `maximum` while its consumer empties half of it within two round trips. While memory is short it
    does the contrary: credit is withheld, down to `MIN_WINDOW`, which every stream keeps so that it goes on.

    Args:
        size: bytes of credit that the peer has from the start.
        maximum: bytes that the window may grow to.
    """

    __slots__ = ("_halved_at", "_step", "_taken", "due", "maximum", "outstanding", "size")

    def __init__(self, size: int, maximum: int) -> None:
        self.maximum = maximum
        self.outstanding = size
        self.due = 0
        self._taken = 0  # since `_halved_at`
        self._halved_at: float | None = None
        self.size = size
        self._step = _step(size)

    def received(self, count: int) -> None:
        """Bytes came; raises RemoteError ``flow_control`` when the peer had no credit for them."""
        self.outstanding -= count
        if self.outstanding < 0:
            raise RemoteError("flow_control", f"{-self.outstanding} bytes over the window of {self.size}")

    def took(self, count: int) -> bool:
        """The consumer has taken `count` bytes; True when a grant is due."""
        self.due += count
        return self.due >= self._step

    def grant(self, now: float, round_trip: float | None, *, short: bool = False) -> int:
        """The credit to return now, the growth of the window included, what is withheld of it left out.

        Args:
            now: monotonic seconds.
            round_trip: seconds of the tunnel's round trip; None until it is known, and then nothing grows.
            short: the process holds nearly as much as it may.
        """
        credit = self.due
        self.due = 0
        if short:
            self._halved_at, self._taken = None, 0
            withheld = max(0, min(credit, self.size - max(MIN_WINDOW, self.size >> 1)))
            self._resize(self.size - withheld)
            self.outstanding += credit - withheld
            return credit - withheld
        self._taken += credit
        if self._taken * 2 >= self.size:
            before, self._halved_at = self._halved_at, now
            self._taken = 0
            # A sender that waits for credit answers a grant a round trip and a bit later: half a window within one
            # round trip is what a window that is too small never shows.
            if round_trip is not None and before is not None and now - before <= 2 * round_trip:
                growth = min(self.size, self.maximum - self.size)
                self._resize(self.size + growth)
                credit += growth
        self.outstanding += credit
        return credit

    def _resize(self, size: int) -> None:
        self.size = size
        self._step = _step(size)


class MemoryBudget:
    """The bytes that one process holds for those who have not taken or acknowledged them, against `limits.memory`.

    Args:
        limit: bytes.

    Attributes:
        held: bytes; whoever is in a hurry changes it without `add` and `sub`.
        streams: how many are open. What each costs by itself is taken off the limit.
        near_at: bytes from which memory is short: windows shrink, and sources are read one piece at a time.
    """

    __slots__ = ("_limit", "_most", "held", "near_at", "streams")

    #: The share of the limit from which memory is short.
    NEAR = 0.75

    def __init__(self, limit: float = inf) -> None:
        self.held = 0
        self.streams = 0
        self.limit = limit

    @property
    def limit(self) -> float:
        """Bytes; it may be changed at any time."""
        return self._limit

    @limit.setter
    def limit(self, limit: float) -> None:
        self._limit = limit
        self._most = limit - self.streams * STREAM
        self.near_at = self._most * self.NEAR

    def opened(self) -> None:
        """A stream more is open."""
        self.streams += 1
        self._most = most = self._limit - self.streams * STREAM
        self.near_at = most * self.NEAR

    def closed(self) -> None:
        """A stream is over."""
        self.streams -= 1
        self._most = most = self._limit - self.streams * STREAM
        self.near_at = most * self.NEAR

    @property
    def used(self) -> int:
        """Bytes held, and what the streams cost."""
        return self.held + self.streams * STREAM

    def fits(self, count: int) -> bool:
        """Whether `count` bytes more may be held."""
        return self.held + count <= self._most

    def add(self, count: int) -> None:
        """`count` bytes more are held."""
        self.held += count

    def sub(self, count: int) -> None:
        """`count` bytes were taken, acknowledged or dropped."""
        self.held -= count

    @property
    def near(self) -> bool:
        """Memory is short."""
        return self.held >= self.near_at

    @property
    def over(self) -> bool:
        """So much is held that the streams stalled for the longest must go."""
        return self.held > self._most


class Holders:
    """Whose bytes a process holds, those that have waited for the longest first; over the limit they must go.

    Args:
        budget: of the process.
    """

    __slots__ = ("_first", "_second", "budget")

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self._first: dict[Callable[[], None], None] = {}
        self._second: dict[Callable[[], None], None] = {}

    def add(self, give_up: Callable[[], None], *, slow: bool) -> None:
        """Bytes wait, and `give_up` ends that.

        Args:
            give_up: lets go of the bytes, and calls `discard`; the same for each call of one holder.
            slow: a reader does not take them; False: the tunnel does not, which is nobody's fault: these go last.
        """
        (self._first if slow else self._second).setdefault(give_up)
        self.shed()

    def discard(self, give_up: Callable[[], None]) -> None:
        """Nothing of it waits any more."""
        if self._first or self._second:
            self._first.pop(give_up, None)
            self._second.pop(give_up, None)

    def shed(self) -> None:
        """Let go of what is over the limit, as far as anybody holds it for a stream."""
        while self.budget.over and (holders := self._first or self._second):
            give_up = next(iter(holders))
            del holders[give_up]
            give_up()
