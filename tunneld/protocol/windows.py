"""Credit, and nothing else: who may send how much, and how much a process holds for slow readers.

See PROTOCOL.md, "v3: flow control".
"""

from __future__ import annotations

from tunneld.errors import RemoteError

__all__ = ["MAX_CREDIT", "MIN_WINDOW", "MemoryBudget", "ReceiveWindow"]

#: A smaller wish is raised to this, a smaller configuration refused (bytes).
MIN_WINDOW = 16 * 1024
#: More credit than this at one time is an error of the peer: no window is that large.
MAX_CREDIT = 2**31 - 1
#: Bytes: a smaller piece of credit is returned only where it is half a window.
_STEP = 128 * 1024


class ReceiveWindow:
    """What the peer may still send in one direction of one stream.

    Credit returns when the consumer has taken bytes, in one piece once half a window was taken; of a window that has
    grown, once an eighth was: what waits here for the rest of its half is credit that the sender lacks, and over a
    long way it moved only half a window each round trip. The window
    doubles up to `maximum` while its consumer empties half of it within two round trips.

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
        self._resize(size)

    def received(self, count: int) -> None:
        """Bytes came; raises RemoteError ``flow_control`` when the peer had no credit for them."""
        self.outstanding -= count
        if self.outstanding < 0:
            raise RemoteError("flow_control", f"{-self.outstanding} bytes over the window of {self.size}")

    def took(self, count: int) -> bool:
        """The consumer has taken `count` bytes; True when a grant is due."""
        self.due += count
        return self.due >= self._step

    def grant(self, now: float, round_trip: float | None) -> int:
        """The credit to return now, the growth of the window included.

        Args:
            now: monotonic seconds.
            round_trip: seconds of the tunnel's round trip; None until it is known, and then nothing grows.
        """
        credit = self.due
        self.due = 0
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
        self._step = max(size >> 3, min(size >> 1, _STEP))


class MemoryBudget:
    """The bytes that one process holds for consumers that have not taken them, against `limits.memory`.

    Args:
        limit: bytes.
    """

    __slots__ = ("held", "limit")

    #: The share of the limit from which credit is withheld.
    NEAR = 0.75

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def add(self, count: int) -> None:
        """`count` bytes more are held."""
        self.held += count

    def sub(self, count: int) -> None:
        """`count` bytes were taken or dropped."""
        self.held -= count

    @property
    def near(self) -> bool:
        """So much is held that stalled readers get no more credit."""
        return self.held >= self.limit * self.NEAR

    @property
    def over(self) -> bool:
        """So much is held that the streams stalled for the longest must go."""
        return self.held > self.limit
