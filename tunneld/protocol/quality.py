"""How good a tunnel's connection is: round trips, jitter, loss, and a grade with its reason.

Sans clock: every call that needs the time gets it, in seconds of any monotonic clock. What is measured outlives the
connection that it was measured on: a tunnel that reconnects keeps its history, so that a bad network stays visible.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["GRADES", "Bounds", "Grade", "Quality", "Reading", "Thresholds"]

Grade = Literal["excellent", "good", "fair", "poor", "down"]
GRADES: tuple[Grade, ...] = ("excellent", "good", "fair", "poor", "down")

#: Pings remembered, whatever the window says: at the shortest heartbeat (1 s) more than four minutes.
MAX_SAMPLES = 256
#: RFC 3550, 6.4.1: the estimator's gain.
_GAIN = 1 / 16
#: Segments sent before a share of them means anything.
_ENOUGH = 50
_NOTHING = (0, 0)


class Bounds(Protocol):
    """What a grade allows at most.

    Attributes:
        rtt: seconds, of the 95th percentile.
        jitter: seconds.
        loss: a share, 0 to 1.
    """

    @property
    def rtt(self) -> float: ...  # noqa: D102
    @property
    def jitter(self) -> float: ...  # noqa: D102
    @property
    def loss(self) -> float: ...  # noqa: D102


class Thresholds(Protocol):
    """Bounds of each grade, the best first; what is over the last is ``poor``. The configuration's `quality`.

    Attributes:
        window: seconds that a ping counts for.
    """

    @property
    def excellent(self) -> Bounds: ...  # noqa: D102
    @property
    def good(self) -> Bounds: ...  # noqa: D102
    @property
    def fair(self) -> Bounds: ...  # noqa: D102
    @property
    def window(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known at one moment. Seconds; None: not known yet.

    Attributes:
        last: the newest round trip.
        p50: median of the window.
        p95: 95th percentile of the window.
        jitter: RFC 3550's estimate of how much round trips differ from one to the next.
        loss: the share of pings that found no answer within the timeout, or of segments that the kernel sent again
            in the window, whichever is more.
        pings: answered or lost, in the window.
        lost: of these.
        grade: None before the first ping is answered or lost.
        reason: why it is no better, in words; empty for ``excellent``.
    """

    last: float | None
    p50: float | None
    p95: float | None
    jitter: float | None
    loss: float | None
    pings: int
    lost: int
    grade: Grade | None
    reason: str


class Quality:
    """The window of one tunnel's pings.

    Args:
        thresholds: of the grades.
    """

    __slots__ = (
        "_again", "_holds", "_jitter", "_known", "_last", "_pending", "_samples", "_segments", "_totals", "_trips",
        "_until", "thresholds",
    )  # fmt: skip

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        # When, seconds (below 0: lost), and what the connection carried since the one before.
        self._samples: deque[tuple[float, float, tuple[int, int]]] = deque()
        self._totals = self._pending = _NOTHING  # of the connection: now, and since the last sample
        self._segments = self._again = 0  # sums of the window
        self._known: Reading | None = None  # as long as nothing changes, what was read last
        self._holds: tuple[bool, Thresholds] | None = None  # under what it was read
        self._until = 0.0
        self._trips: list[float] = []  # of these, those that were answered, in their order: read again and again
        self._last: float | None = None
        self._jitter: float | None = None

    def carried(self, segments: int, again: int) -> None:
        """What the connection that stands has sent so far, to be counted with the next ping.

        Args:
            segments: with data; those sent again count too.
            again: sent again because they were lost.
        """
        before, self._totals = self._totals, (segments, again)
        if segments < before[0] or again < before[1]:  # another connection
            before = _NOTHING
        self._pending = self._pending[0] + segments - before[0], self._pending[1] + again - before[1]

    def answered(self, now: float, round_trip: float, *, late: bool) -> None:
        """A ping was answered; `late`: not within the heartbeat's timeout, which counts as lost."""
        last, self._last = self._last, round_trip
        if last is not None:
            change = abs(round_trip - last)
            # The first difference is all that is known: beginning at 0 would take 16 pings to show the truth.
            self._jitter = change if self._jitter is None else self._jitter + (change - self._jitter) * _GAIN
        self._add(now, -1.0 if late else round_trip)

    def lost(self, now: float, pings: int = 1) -> None:
        """So many pings will find no answer any more."""
        for _ in range(pings):
            self._add(now, -1.0)

    def _add(self, now: float, trip: float) -> None:
        self._known = None
        if len(self._samples) == MAX_SAMPLES:
            self._forget()
        carried, self._pending = self._pending, _NOTHING
        self._segments += carried[0]
        self._again += carried[1]
        self._samples.append((now, trip, carried))
        if trip >= 0:
            insort(self._trips, trip)

    def _forget(self) -> None:
        """The oldest counts no more."""
        _, trip, (segments, again) = self._samples.popleft()
        self._known = None
        self._segments -= segments
        self._again -= again
        if trip >= 0:
            del self._trips[bisect_left(self._trips, trip)]

    def read(self, now: float, *, connected: bool) -> Reading:
        """What is known now.

        Args:
            now: seconds.
            connected: the connection stands.
        """
        holds = connected, self.thresholds
        if self._known is not None and now <= self._until and holds == self._holds:
            return self._known
        samples, oldest = self._samples, now - self.thresholds.window
        while samples and samples[0][0] < oldest:
            self._forget()
        trips = self._trips
        lost = len(samples) - len(trips)
        loss = lost / len(samples) if samples else None
        if self._segments >= _ENOUGH:
            loss = max(loss or 0.0, self._again / self._segments)
        p50, p95 = _quantile(trips, 0.5), _quantile(trips, 0.95)
        grade, reason = self._grade(p95, self._jitter, loss, known=bool(samples), connected=connected)
        self._holds, self._until = holds, samples[0][0] + self.thresholds.window if samples else math.inf
        self._known = Reading(self._last, p50, p95, self._jitter, loss, len(samples), lost, grade, reason)
        return self._known

    def _grade(
        self, p95: float | None, jitter: float | None, loss: float | None, *, known: bool, connected: bool
    ) -> tuple[Grade | None, str]:
        if not connected:
            return ("down", "not connected") if known else (None, "")
        if not known:
            return None, ""
        limits = self.thresholds
        reason = ""
        for grade, bounds in zip(GRADES, (limits.excellent, limits.good, limits.fair), strict=False):
            found = _over(bounds, p95, jitter, loss)
            if not found:
                return grade, reason
            reason = found  # why it is not this grade: what stands when the next one holds
        return "poor", reason


def _over(bounds: Bounds, p95: float | None, jitter: float | None, loss: float | None) -> str:
    """What is over these bounds, in words; empty when nothing is."""
    if p95 is not None and p95 > bounds.rtt:
        return f"p95 rtt {_ms(p95)} > {_ms(bounds.rtt)}"
    if loss is not None and loss > bounds.loss:
        return f"loss {loss:.1%} > {bounds.loss:.1%}"
    if jitter is not None and jitter > bounds.jitter:
        return f"jitter {_ms(jitter)} > {_ms(bounds.jitter)}"
    return ""


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _quantile(ordered: list[float], share: float) -> float | None:
    """By linear interpolation between the two nearest (the usual definition, Hyndman and Fan's seventh)."""
    if not ordered:
        return None
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
