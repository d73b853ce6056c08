"""What is counted while the daemons work, as plain numbers; `exposition` makes text of it when it is asked for.

Counting costs an addition; no label has values without a bound (no path, id or address is one).
"""

from __future__ import annotations

import os
import resource
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from time import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunneld.telemetry.traces import Tracer

__all__ = ["LATENCY", "LIFE", "QUICK", "Histogram", "StreamCounts", "descriptors", "open_descriptors", "spans"]

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, seconds, of what should be quick: heads, round trips, cancels."""
QUICK = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds, seconds, of what should take no time."""
LIFE = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Upper bounds, seconds, of how long a stream lives."""


class Histogram:
    """Observations in buckets.

    Args:
        bounds: upper bounds, rising; the last bucket, without one, is added.
    """

    __slots__ = ("_bounds", "_counts", "_examples", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._examples: dict[int, tuple[str, float, float]] = {}  # bucket -> request id, value, seconds of the epoch
        self.sum = 0.0

    def observe(self, value: float, request_id: str = "") -> None:
        """Count one; its request's id is the exemplar of its bucket until the next comes."""
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] += 1
        self.sum += value
        if request_id:
            self._examples[bucket] = request_id, value, time()

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def buckets(self) -> Iterator[tuple[str, int, tuple[str, float, float] | None]]:
        """(upper bound, how many were at most that, one of them) each, the last bound ``+Inf``.

        One of them: its request's id, its value, and when it was, in seconds of the epoch; None: none is known.
        """
        total = 0
        for bucket, bound in enumerate((*map(str, self._bounds), "+Inf")):
            total += self._counts[bucket]
            yield bound, total, self._examples.get(bucket)


class StreamCounts:
    """Visitors' streams of one process.

    Attributes:
        ended: (kind, reason) -> how many.
        life: kind -> seconds from begin to end.
        first_byte: seconds from a request's begin to the head of its answer.
        cancels: seconds from a cancel's arrival until the service's connection is closed.
    """

    __slots__ = ("cancels", "ended", "first_byte", "life")

    def __init__(self) -> None:
        self.ended: dict[tuple[str, str], int] = {}
        self.life: dict[str, Histogram] = {}
        self.first_byte = Histogram(LATENCY)
        self.cancels = Histogram(QUICK)

    def over(self, kind: str, reason: str, seconds: float, request_id: str = "") -> None:
        """A stream ended."""
        key = kind, reason
        self.ended[key] = self.ended.get(key, 0) + 1
        life = self.life.get(kind)
        if life is None:
            life = self.life[kind] = Histogram(LIFE)
        life.observe(seconds, request_id)


def descriptors() -> tuple[str, float, float]:
    """How near their limit open descriptors are: its name, how many there are, how many there may be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = open_descriptors()
    return ("descriptors", count, soft) if count is not None else ("descriptors", 0, 0)


def spans(tracer: Tracer | None) -> tuple[str, float, float]:
    """The same for spans that wait to be sent."""
    return ("trace_spans", tracer.waiting, tracer.limit) if tracer is not None else ("trace_spans", 0, 0)


def open_descriptors() -> int | None:
    """How many descriptors this process has open; None: another kernel, which does not say."""
    try:
        # Since Linux 6.2 the folder's size says it; to list thousands takes milliseconds.
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return None
