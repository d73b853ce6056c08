"""What is counted while the daemons work, as plain numbers; Prometheus's text is made of it when it is asked for.

Counting costs an addition; no label has values without a bound (no path, id or address is one). The library that
writes the text is loaded at the first scrape.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunneld import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["CONTENT_TYPE", "LATENCY", "LIFE", "Histogram", "StreamCounts", "counter", "gauge", "histogram", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, seconds, of what should be quick: heads, round trips, cancels."""
LIFE = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Upper bounds, seconds, of how long a stream lives."""


class Histogram:
    """Observations in buckets.

    Args:
        bounds: upper bounds, rising; the last bucket, without one, is added.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many were at most that), the last ``+Inf``."""
        found, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class StreamCounts:
    """Visitors' streams of one process.

    Attributes:
        ended: (kind, reason) -> how many.
        life: kind -> seconds from begin to end.
        first_byte: seconds from a request's begin to the head of its answer.
    """

    __slots__ = ("ended", "first_byte", "life")

    def __init__(self) -> None:
        self.ended: dict[tuple[str, str], int] = {}
        self.life: dict[str, Histogram] = {}
        self.first_byte = Histogram(LATENCY)

    def over(self, kind: str, reason: str, seconds: float) -> None:
        """A stream ended."""
        key = kind, reason
        self.ended[key] = self.ended.get(key, 0) + 1
        life = self.life.get(kind)
        if life is None:
            life = self.life[kind] = Histogram(LIFE)
        life.observe(seconds)


Rows = Iterable[tuple[Sequence[str], float]]


def gauge(name: str, help_: str, labels: Sequence[str], rows: Rows) -> Metric:
    """A gauge of (label values, value) rows."""
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, help_, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), value)
    return family


def counter(name: str, help_: str, labels: Sequence[str], rows: Rows) -> Metric:
    """A counter; the text adds ``_total`` to its name."""
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, help_, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), value)
    return family


def histogram(name: str, help_: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Histogram]]) -> Metric:
    """A histogram of (label values, histogram) rows."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, help_, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), buckets=value.buckets(), sum_value=value.sum)
    return family


def _process(role: str, started: float) -> Iterable[Metric]:
    """Build and process: the names that Prometheus's own libraries use, where they have one."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    labels = ("version", "role", "python")
    yield gauge("tunneld_build_info", "Always 1.", labels, [((__version__, role, platform.python_version()), 1)])
    yield gauge("process_start_time_seconds", "Start, seconds since the epoch.", (), [((), started)])
    yield counter("process_cpu_seconds", "User and system time.", (), [((), used.ru_utime + used.ru_stime)])
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield gauge("process_max_fds", "Descriptors that may be open.", (), [((), soft)])
    try:
        pages = Path("/proc/self/statm").read_bytes().split()
        page = resource.getpagesize()
        yield gauge("process_resident_memory_bytes", "Resident memory.", (), [((), int(pages[1]) * page)])
        yield gauge("process_virtual_memory_bytes", "Virtual memory.", (), [((), int(pages[0]) * page)])
        yield gauge("process_open_fds", "Open descriptors.", (), [((), len(os.listdir("/proc/self/fd")))])
    except OSError:  # another kernel
        pass
    collections = [((str(number),), stat["collections"]) for number, stat in enumerate(gc.get_stats())]
    yield counter("python_gc_collections", "Runs of the garbage collector.", ("generation",), collections)


def render(collect: Callable[[], Iterable[Metric]], *, role: str, started: float) -> bytes:
    """The text of all that `collect` yields, and of the process itself.

    Args:
        collect: yields metric families.
        role: ``agent`` or ``server``.
        started: seconds since the epoch.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Once(Collector):
        def collect(self) -> Iterable[Metric]:
            yield from collect()
            yield from _process(role, started)

    registry = CollectorRegistry()
    registry.register(Once())
    return generate_latest(registry)
