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
from time import time
from typing import TYPE_CHECKING

from tunneld import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Exemplar, Metric

    from tunneld.telemetry.traces import Tracer

__all__ = [
    "CONTENT_TYPE", "LATENCY", "LIFE", "QUICK", "Histogram", "StreamCounts", "counter", "descriptors", "gauge",
    "histogram", "near", "of_traces", "render", "spans",
]  # fmt: skip

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, seconds, of what should be quick: heads, round trips, cancels."""
QUICK = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds, seconds, of what should take no time."""
LIFE = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Upper bounds, seconds, of how long a stream lives."""


_MOST_EXEMPLAR = 100
"""Characters of an exemplar's value; OpenMetrics allows 128 with its name."""
_OPEN_METRICS = "application/openmetrics-text"


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

    def buckets(self) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        """(upper bound, how many were at most that, one of them), the last bound ``+Inf``."""
        from prometheus_client.core import Exemplar

        found: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        total = 0
        for bucket, bound in enumerate((*map(str, self._bounds), "+Inf")):
            total += self._counts[bucket]
            example = self._examples.get(bucket)
            if example is None or len(example[0]) > _MOST_EXEMPLAR:
                found.append((bound, float(total)))
            else:
                request_id, value, at = example
                found.append((bound, float(total), Exemplar({"request_id": request_id}, value, at)))
        return found


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


def render(
    collect: Callable[[], Iterable[Metric]], *, role: str, started: float, accept: str = ""
) -> tuple[bytes, str]:
    """The text of all that `collect` yields, and of the process itself; and its media type.

    Args:
        collect: yields metric families.
        role: ``agent`` or ``server``.
        started: seconds since the epoch.
        accept: of the request: OpenMetrics, with exemplars, where it is asked for.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.openmetrics import exposition
    from prometheus_client.registry import Collector

    class Once(Collector):
        def collect(self) -> Iterable[Metric]:
            yield from collect()
            yield from _process(role, started)

    registry = CollectorRegistry()
    registry.register(Once())
    if _OPEN_METRICS in accept:
        text: bytes = exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text, exposition.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE


def near(rows: Iterable[tuple[str, float, float]]) -> Metric:
    """How close limits are: of (limit, what is used, what may be; 0: no limit)."""
    help_ = "Share of a limit that is used; of one for each tunnel, the most."
    shares = [((limit,), used / most) for limit, used, most in rows if most]
    return gauge("tunneld_limit_used_ratio", help_, ("limit",), shares)


def of_traces(tracer: Tracer | None) -> Iterable[Metric]:
    """What became of spans; nothing where there are no traces."""
    if tracer is not None:
        rows = [(("sent",), tracer.sent), (("lost",), tracer.lost)]
        yield counter("tunneld_trace_spans", "Spans of traces, by what became of them.", ("outcome",), rows)


def spans(tracer: Tracer | None) -> tuple[str, float, float]:
    """The row of `near` for spans that wait."""
    return ("trace_spans", tracer.waiting, tracer.limit) if tracer is not None else ("trace_spans", 0, 0)


def descriptors() -> tuple[str, float, float]:
    """The row of `near` for open descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return "descriptors", len(os.listdir("/proc/self/fd")), soft
    except OSError:  # another kernel
        return "descriptors", 0, 0
