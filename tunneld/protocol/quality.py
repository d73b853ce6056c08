"""How good a tunnel's connection is: round trips, jitter, loss, and a grade with its reason.

Sans clock: every call that needs the time gets it, in seconds of any monotonic clock. What is measured outlives the
connection that it was measured on: a tunnel that reconnects keeps its history, so that a bad network stays visible.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from tunneld.protocol.grades import NOT_CONNECTED, Grade, Thresholds, grade_of

__all__ = ["Kernel", "Peer", "Quality", "Reading"]

#: Pings remembered, whatever the window says: at the shortest heartbeat (1 s) more than four minutes.
MAX_SAMPLES = 256
#: RFC 3550, 6.4.1: the estimator's gain.
_GAIN = 1 / 16
#: Bytes that a connection carries, both ways, while a ping is under way: with as many it may have waited behind them.
_BULK = 32 * 1024
#: Segments sent before a share of them means anything.
_ENOUGH = 50
_NOTHING = (0, 0, 0, 0)
#: Pings whose answers may wait to be judged.
_DOUBTS = 64
#: Round trips in a row that a loss keeps from counting as jitter.
_PASSED_OVER = 16
#: Seconds that it does so for at least: one loss can hold back as many pings as are sent until TCP tries again.
_PASSED_FOR = 10.0
#: Pings with nothing beside them whose shortest round trip is the least that one beside bulk counts as.
_QUIET = 16
#: The share of round trips, not held back by TCP, that the median can be taken from.
_FREE = 0.1


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


@dataclass(frozen=True, slots=True)
class Peer:
    """What the peer's kernel knew of the connection when it answered a ping.

    Attributes:
        resent: segments that it had sent again, since the connection's begin.
        missing: segments that this side had sent when it sent its ping, the ping among them, less all that had come
            there when it was answered. TCP hands over in order, so none of these was under way still. None: it does
            not say.
        mending: it was making up for a loss, which the answer may have waited for.
    """

    resent: int
    missing: int | None
    mending: bool = False


@dataclass(eq=False, slots=True)
class _Sample:
    """A ping of the window.

    Attributes:
        at: when it was answered or lost.
        trip: seconds; below 0: lost.
        held: this side sent segments again meanwhile.
        segments: sent since the sample before.
        lost: of these.
        free: neither side held it back.
        gone: out of the window.
    """

    at: float
    trip: float
    held: bool
    segments: int
    lost: int
    free: bool = False
    gone: bool = False


@dataclass(frozen=True, slots=True)
class _Doubt:
    """An answer that the peer may have sent again, which its next one tells.

    Attributes:
        round_trip: seconds.
        resent: segments that the peer had sent again by then; -1: it waited for one of these in any case.
        loaded: it was beside bulk.
    """

    sample: _Sample
    round_trip: float
    resent: int
    loaded: bool


class Quality:
    """The window of one tunnel's pings.

    TCP hides what it loses and holds back what came behind it, so that pings alone tell too much of a way that loses:
    with 50 ms, of it up to 40 ms by chance each way, and 5 % lost, their median was 6 to 12 % too high, jitter up to
    three times, and what the own kernel sent again half too much (segments that overtake one another make it send some
    that were not lost; the peer says so, by D-SACK, of most but not all). So each end is told what the peer's kernel
    knows (`Peer`), and all are true at once (tests/e2e/test_quality.py):

    - Round trips while either side sent segments again count for the 95th percentile alone. This side knows its own by
      the moment; the peer's only from one answer to the next, so that an answer is judged with the one after it.
      That segments came in disorder is no sign: the slow ones are overtaken, and a median without them is too low.
    - Lost are the segments that were sent and did not come, by the peer's count.

    What stays: TCP hands over in order, so what came early waits for what is late, as visitors' bytes do. A peer that
    says nothing (an older one) leaves the faults above, and a proxy between the loss by D-SACK.

    What a ping waited behind bulk is what it took beyond the kernel's round trip, or beyond the shortest of the last
    pings that had no bulk beside them where that is longer: behind a proxy the kernel knows the way to the proxy alone.
    A tunnel through a proxy that carries bulk from its first ping on has none of these: until the first, its round
    trips read as those to the proxy. These pings count for the connections after theirs too.

    Args:
        thresholds: of the grades.
    """

    __slots__ = (
        "_alone", "_doubts", "_free", "_gone", "_held_back", "_held_up", "_holds", "_jitter", "_known", "_last",
        "_missed", "_passed_over", "_passed_since", "_pending", "_queued", "_rtt", "_samples", "_segments",
        "_steady", "_totals", "_trips", "_unheld", "_until", "thresholds",
    )  # fmt: skip

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self._samples: deque[_Sample] = deque()
        self._totals: tuple[int, int, int, int] = (
            _NOTHING  # of the connection: segments, lost ones, those sent again, those that came in disorder
        )
        self._pending = (0, 0)  # segments and lost ones since the last sample
        self._segments = self._missed = 0  # sums of the window: segments, and lost ones
        self._gone = 0  # of the connection's segments, lost
        self._doubts: deque[_Doubt] = deque(maxlen=_DOUBTS)  # answers that may have been sent again
        self._known: Reading | None = None  # as long as nothing changes, what was read last
        self._holds: tuple[bool, str, Thresholds] | None = None  # under what it was read
        self._until = 0.0
        self._trips: list[float] = []  # of these, those that were answered, in their order: read again and again
        self._unheld: list[float] = []  # of these, those that this side did not hold back
        self._free: list[float] = []  # of these, those that the peer did not either
        self._held_back = 0  # those in a row that it did
        self._last: float | None = None
        self._jitter: float | None = None
        self._rtt: float | None = None  # the shortest that the kernel saw
        self._queued: float | None = None
        self._alone: deque[float] = deque(maxlen=_QUIET)  # round trips beside no bulk, not held back by TCP
        self._held_up = False  # segments were lost or late since the last ping
        self._passed_over = 0  # round trips in a row that jitter does not count for that
        self._passed_since = 0.0  # when the first of these came
        self._steady: float | None = None  # the last that it does

    def carried(self, kernel: Kernel | None) -> None:
        """What the kernel knows of the connection that stands, to be counted with the next ping; None: nothing."""
        if kernel is None:  # what it said of a connection before is not true of this one
            self._rtt = self._queued = None
            self._held_up, self._gone = False, 0
            return
        now, before = (kernel.segments, kernel.lost, kernel.retransmitted, kernel.disordered), self._totals
        self._totals = now
        if any(one < other for one, other in zip((now[0], *now[2:]), (before[0], *before[2:]), strict=True)):
            before, self._gone = _NOTHING, 0  # another connection
        self._pending = (
            self._pending[0] + now[0] - before[0],
            self._pending[1] + now[1] - before[1],  # below 0 where the peer said of more that it had them already
        )
        self._rtt = kernel.least_rtt
        self._held_up = now[2:] != before[2:]

    def answered(
        self,
        now: float,
        round_trip: float,
        *,
        late: bool,
        beside: int = 0,
        held: bool = False,
        peer: Peer | None = None,
    ) -> None:
        """A ping was answered.

        Args:
            now: seconds.
            round_trip: seconds.
            late: not within the heartbeat's timeout, which counts as lost.
            beside: bytes that the connection carried meanwhile, both ways.
            held: meanwhile segments were sent again.
            peer: what its kernel knew when it answered; None: it does not say.
        """
        if peer is not None:
            self._settle(now - round_trip, peer.resent)
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
        sample = self._add(now, -1.0 if late else round_trip, held=held, missing=None if peer is None else peer.missing)
        if peer is None:
            self._judge(sample, round_trip, spoilt=False, passed_over=self._held_up or loaded)
        else:
            self._doubts.append(_Doubt(sample, round_trip, -1 if peer.mending else peer.resent, loaded))

    def _settle(self, sent: float, resent: int) -> None:
        """A ping of that time was answered, by a peer that had sent so many segments again by then.

        Answers that had come by that time are known now: where the peer sent nothing again since it wrote one of them,
        that one did not come by being sent again, nor did it wait for another that was.
        """
        while self._doubts and self._doubts[0].sample.at <= sent:
            doubt = self._doubts.popleft()
            spoilt = doubt.resent != resent
            over = spoilt or doubt.sample.held or doubt.loaded
            self._judge(doubt.sample, doubt.round_trip, spoilt=spoilt, passed_over=over)

    def _judge(self, sample: _Sample, round_trip: float, *, spoilt: bool, passed_over: bool) -> None:
        """All that will be known of an answer is: whether the peer may have sent it again, and whether it is jitter.

        Where segments were lost, one way or the other, it may show how long TCP took to send them again, which is no
        jitter; nor is how queues rise and fall. Not for long, though: where all is always held back, what comes is all
        there is.
        """
        if not (spoilt or sample.held or sample.gone) and sample.trip >= 0:
            sample.free = True
            insort(self._free, sample.trip)
            self._known = None
        if passed_over:
            self._passed_over += 1
            if self._passed_over == 1:
                self._passed_since = sample.at
            if self._passed_over < _PASSED_OVER or sample.at - self._passed_since < _PASSED_FOR:
                return
        self._passed_over = 0
        last, self._steady = self._steady, round_trip
        if last is not None:
            change = abs(round_trip - last)
            # The first difference is all that is known: beginning at 0 would take 16 pings to show the truth.
            self._jitter = change if self._jitter is None else self._jitter + (change - self._jitter) * _GAIN
            self._known = None

    @property
    def queued(self) -> float | None:
        """See `Reading`."""
        return self._queued

    def lost(self, now: float, pings: int = 1) -> None:
        """So many pings will find no answer any more."""
        for _ in range(pings):
            self._add(now, -1.0)

    def _add(self, now: float, trip: float, *, held: bool = False, missing: int | None = None) -> _Sample:
        self._known = None
        if len(self._samples) == MAX_SAMPLES:
            self._forget()
        (segments, lost), self._pending = self._pending, (0, 0)
        if missing is not None:
            # Segments behind the ping that came before it was answered make it too low, now and then; and none is lost
            # that was not sent again. Where a peer says more, it counts those of a proxy's connection.
            lost = min(max(self._gone, missing), self._totals[2]) - self._gone
        self._gone += lost
        sample = _Sample(now, trip, held, segments, lost)
        self._segments += segments
        self._missed += lost
        self._samples.append(sample)
        if trip >= 0:
            insort(self._trips, trip)
            if not held:
                insort(self._unheld, trip)
        return sample

    def _forget(self) -> None:
        """The oldest counts no more."""
        sample = self._samples.popleft()
        sample.gone = True
        self._known = None
        self._segments -= sample.segments
        self._missed -= sample.lost
        if (trip := sample.trip) >= 0:
            del self._trips[bisect_left(self._trips, trip)]
            if not sample.held:
                del self._unheld[bisect_left(self._unheld, trip)]
            if sample.free:
                del self._free[bisect_left(self._free, trip)]

    def read(self, now: float, *, connected: bool, why: str = NOT_CONNECTED) -> Reading:
        """What is known now.

        Args:
            now: seconds.
            connected: the connection stands.
            why: it does not, in words.
        """
        holds = connected, why, self.thresholds
        if self._known is not None and now <= self._until and holds == self._holds:
            return self._known
        samples, oldest = self._samples, now - self.thresholds.window
        while samples and samples[0].at < oldest:
            self._forget()
        trips = self._trips
        lost = len(samples) - len(trips)
        loss = lost / len(samples) if samples else None
        if self._segments >= _ENOUGH:
            loss = max(loss or 0.0, self._missed / self._segments)
        enough = (one for one in (self._free, self._unheld) if one and len(one) >= _FREE * len(trips))
        p50, p95 = _quantile(next(enough, trips), 0.5), _quantile(trips, 0.95)
        grade, reason = self._grade(p95, loss) if connected or not samples else ("down", why)
        self._holds, self._until = holds, samples[0].at + self.thresholds.window if samples else math.inf
        self._known = Reading(self._last, p50, p95, self._jitter, loss, len(samples), lost, grade, reason, self._queued)
        return self._known

    def _grade(self, p95: float | None, loss: float | None) -> tuple[Grade | None, str]:
        if not self._samples:
            return None, ""
        return grade_of(self.thresholds, p95, self._jitter, loss)


def _quantile(ordered: list[float], share: float) -> float | None:
    """By linear interpolation between the two nearest (the usual definition, Hyndman and Fan's seventh)."""
    if not ordered:
        return None
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
