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

__all__ = ["GRADES", "Bounds", "Grade", "Kernel", "Quality", "Reading", "Thresholds"]

Grade = Literal["excellent", "good", "fair", "poor", "down"]
GRADES: tuple[Grade, ...] = ("excellent", "good", "fair", "poor", "down")

#: Pings remembered, whatever the window says: at the shortest heartbeat (1 s) more than four minutes.
MAX_SAMPLES = 256
#: RFC 3550, 6.4.1: the estimator's gain.
_GAIN = 1 / 16
#: Bytes that a connection carries, both ways, while a ping is under way: with as many it may have waited behind them.
_BULK = 32 * 1024
#: Segments sent before a share of them means anything.
_ENOUGH = 50
_NOTHING = (0, 0, 0, 0)
#: Round trips in a row that a loss keeps from counting as jitter.
_PASSED_OVER = 16
#: Pings with nothing beside them whose shortest round trip is the least that one beside bulk counts as.
_QUIET = 16
#: The share of round trips, not held back by TCP, that the median can be taken from.
_FREE = 0.1


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


class Kernel(Protocol):
    """What the kernel knows of a connection (wire/tcp_info.py), since its begin.

    Attributes:
        least_rtt: the shortest round trip of the last minutes, seconds.
        segments: with data, sent; those sent again count too.
        retransmitted: of these, sent again.
        lost: of these, those that were needed.
        disordered: segments that came before one that was sent earlier.
    """

    @property
    def least_rtt(self) -> float: ...  # noqa: D102
    @property
    def segments(self) -> int: ...  # noqa: D102
    @property
    def retransmitted(self) -> int: ...  # noqa: D102
    @property
    def lost(self) -> int: ...  # noqa: D102
    @property
    def disordered(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known at one moment. Seconds; None: not known yet.

    Attributes:
        last: the newest round trip, of one beside bulk without what it waited behind that, as those of the window (see
            `Quality`), and of one that TCP held back the one before (see `p50`).
        p50: median of the window, without the round trips that TCP held back: while such a ping was under way this side
            sent segments again, so that it tells of the loss and not of the way (Karn's rule, RFC 6298 section 3).
            Where nearly all are held, of all of them. That segments came in disorder is no sign: the slow ones are
            overtaken, and a median without them would be too low.
        p95: 95th percentile of the window, those held back too: what a visitor's bytes meet.
        jitter: RFC 3550's estimate of how much round trips differ from one to the next; as there, of what was not lost.
        loss: the share of pings that found no answer within the timeout, or of segments that the kernel sent again
            in the window, whichever is more.
        pings: answered or lost, in the window.
        lost: of these.
        grade: None before the first ping is answered or lost.
        reason: why it is no better, in words; empty for ``excellent``.
        queued: what the last ping and its answer waited, behind other bytes or for their turn: its whole round trip
            beyond the shortest that the kernel has seen lately. Behind a proxy, which is all the kernel knows of, the
            way beyond that is in it too. None: the kernel knows nothing of the connection.
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
    queued: float | None


class Quality:
    """The window of one tunnel's pings.

    What is told of one trouble is true of that one (tests/e2e/test_quality.py). Where a way wavers and loses at a time
    the figures say more than the network did, since nothing that an end can see tells the parts apart. Measured with
    50 ms, of it up to 40 ms by chance each way, and 5 % lost: `p50` 6 to 12 % too high, `loss` up to half too high,
    `jitter` up to three times.

    - What this side sent again is known, and left out of `p50`. What the peer did is not: a pong that was lost, with
      nothing behind it, comes after a retransmission timeout (200 ms at least) and in order, as on a slow way.
    - That segments came in disorder tells of a loss as of a way that wavers. Without the round trips beside which they
      did, those are missing that were overtaken because they were slow: `p50` was up to 10 % too low then.
    - TCP hands over in order: what came early waits for what is late. That is true of visitors' bytes too.
    - Segments that overtake one another make TCP send some again that were not lost. The peer says so (D-SACK) of
      most of them, not of all.

    What a ping waited behind bulk is what it took beyond the kernel's round trip, or beyond the shortest of the last
    pings that had no bulk beside them where that is longer: behind a proxy the kernel knows the way to the proxy alone.
    A tunnel through a proxy that carries bulk from its first ping on has none of these: until the first, its round
    trips read as those to the proxy. These pings count for the connections after theirs too.

    Args:
        thresholds: of the grades.
    """

    __slots__ = (
        "_again", "_alone", "_free", "_held_back", "_held_up", "_holds", "_jitter", "_known", "_last", "_passed_over",
        "_pending", "_queued", "_rtt", "_samples", "_segments", "_steady", "_totals", "_trips", "_until", "thresholds",
    )  # fmt: skip

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        # When, seconds (below 0: lost), what the connection carried since the one before, whether TCP held it back.
        self._samples: deque[tuple[float, float, tuple[int, int], bool]] = deque()
        self._totals: tuple[int, int, int, int] = (
            _NOTHING  # of the connection: segments, lost ones, those sent again, those that came in disorder
        )
        self._pending: tuple[int, int] = (0, 0)  # segments and lost ones since the last sample
        self._segments = self._again = 0  # sums of the window
        self._known: Reading | None = None  # as long as nothing changes, what was read last
        self._holds: tuple[bool, Thresholds] | None = None  # under what it was read
        self._until = 0.0
        self._trips: list[float] = []  # of these, those that were answered, in their order: read again and again
        self._free: list[float] = []  # of these, those that TCP did not hold back
        self._held_back = 0  # those in a row that it did
        self._last: float | None = None
        self._jitter: float | None = None
        self._rtt: float | None = None  # the shortest that the kernel saw
        self._queued: float | None = None
        self._alone: deque[float] = deque(maxlen=_QUIET)  # round trips beside no bulk, not held back by TCP
        self._held_up = False  # segments were lost or late since the last ping
        self._passed_over = 0  # round trips in a row that jitter does not count for that
        self._steady: float | None = None  # the last that it does

    def carried(self, kernel: Kernel | None) -> None:
        """What the kernel knows of the connection that stands, to be counted with the next ping; None: nothing."""
        if kernel is None:  # what it said of a connection before is not true of this one
            self._rtt = self._queued = None
            self._held_up = False
            return
        now, before = (kernel.segments, kernel.lost, kernel.retransmitted, kernel.disordered), self._totals
        self._totals = now
        if any(one < other for one, other in zip((now[0], *now[2:]), (before[0], *before[2:]), strict=True)):
            before = _NOTHING  # another connection
        self._pending = self._pending[0] + now[0] - before[0], max(0, self._pending[1] + now[1] - before[1])
        self._rtt = kernel.least_rtt
        self._held_up = now[2:] != before[2:]

    def answered(self, now: float, round_trip: float, *, late: bool, beside: int = 0, held: bool = False) -> None:
        """A ping was answered.

        Args:
            now: seconds.
            round_trip: seconds.
            late: not within the heartbeat's timeout, which counts as lost.
            beside: bytes that the connection carried meanwhile, both ways.
            held: meanwhile segments were sent again.
        """
        loaded = False
        if self._rtt is not None:
            self._queued = max(0.0, round_trip - self._rtt)
            if loaded := beside >= _BULK:  # a full pipe is no slow network
                # Behind a proxy the kernel knows the way to that one alone: quiet pings tell of the whole.
                round_trip = min(round_trip, max(self._rtt, min(self._alone, default=0.0)))
        if not loaded and not held:
            self._alone.append(round_trip)
        self._held_back = self._held_back + 1 if held else 0
        if self._last is None or not 0 < self._held_back < _PASSED_OVER:
            self._last = round_trip
        # Where segments were lost, one way or the other, it may show how long TCP took to send them again, which is
        # no jitter; nor is how queues rise and fall. Not for long, though: where all is always in disorder, what comes
        # is all there is.
        self._passed_over = self._passed_over + 1 if self._held_up or loaded else 0
        if not 0 < self._passed_over < _PASSED_OVER:
            self._passed_over = 0
            last, self._steady = self._steady, round_trip
            if last is not None:
                change = abs(round_trip - last)
                # The first difference is all that is known: beginning at 0 would take 16 pings to show the truth.
                self._jitter = change if self._jitter is None else self._jitter + (change - self._jitter) * _GAIN
        self._add(now, -1.0 if late else round_trip, held=held)

    @property
    def queued(self) -> float | None:
        """See `Reading`."""
        return self._queued

    def lost(self, now: float, pings: int = 1) -> None:
        """So many pings will find no answer any more."""
        for _ in range(pings):
            self._add(now, -1.0)

    def _add(self, now: float, trip: float, *, held: bool = False) -> None:
        self._known = None
        if len(self._samples) == MAX_SAMPLES:
            self._forget()
        carried, self._pending = self._pending, (0, 0)
        self._segments += carried[0]
        self._again += carried[1]
        self._samples.append((now, trip, carried, held))
        if trip >= 0:
            insort(self._trips, trip)
            if not held:
                insort(self._free, trip)

    def _forget(self) -> None:
        """The oldest counts no more."""
        _, trip, (segments, again), held = self._samples.popleft()
        self._known = None
        self._segments -= segments
        self._again -= again
        if trip >= 0:
            del self._trips[bisect_left(self._trips, trip)]
            if not held:
                del self._free[bisect_left(self._free, trip)]

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
        enough = len(self._free) >= _FREE * len(trips)
        p50, p95 = _quantile(self._free if enough else trips, 0.5), _quantile(trips, 0.95)
        grade, reason = self._grade(p95, self._jitter, loss, known=bool(samples), connected=connected)
        self._holds, self._until = holds, samples[0][0] + self.thresholds.window if samples else math.inf
        self._known = Reading(self._last, p50, p95, self._jitter, loss, len(samples), lost, grade, reason, self._queued)
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
