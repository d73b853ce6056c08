"""What is counted, as Prometheus's text or as OpenMetrics, made in slices that the event loop does not feel.

A thousand tunnels are tens of thousands of lines. A thread would hold the interpreter for as long as the lines take;
here the loop turns after each slice instead. Names come from our own code and are valid; values of labels are escaped.
"""

from __future__ import annotations

import asyncio
import gc
import platform
import re
import resource
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeVar

from prometheus_client.utils import floatToGoString

from tunneld import __version__
from tunneld.telemetry.metrics import Histogram, StreamCounts, open_descriptors
from tunneld.telemetry.usage import Usage

if TYPE_CHECKING:
    from tunneld.telemetry.traces import Tracer

__all__ = [
    "CONTENT_TYPE",
    "KERNEL_TUNNELS",
    "OPEN_CONTENT_TYPE",
    "Family",
    "Rows",
    "Written",
    "counter",
    "gauge",
    "histogram",
    "near",
    "of_each",
    "of_ended",
    "of_some",
    "of_traces",
    "render",
    "tallied",
]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

KERNEL_TUNNELS = 256
"""Tunnels up to which a daemon tells what the kernel knows of each connection: of thousands it would be a third, or
most, of what a scrape costs."""

_OPEN_METRICS = "application/openmetrics-text"
_ID = re.compile(r"[0-9A-Za-z._:-]{1,100}", re.ASCII)
"""An id that is told as an exemplar: OpenMetrics allows 128 characters with its name, and parsers stumble over escapes
there. A peer could say others."""
_SLICE = 0.0005
"""Seconds of work between two turns of the loop, of which a request needs several."""
_LOOK = 32
"""Rows between two looks at the clock."""

_ONE = TypeVar("_ONE")
Value = float | Histogram
Things = list[tuple[Sequence[_ONE], list[str], dict[str, tuple[list[float | None], str]]]]
"""See `Written.of`."""
Rows = Iterable[tuple[Sequence[str], Value] | str | None]
"""(values of the labels, value) each; a text: lines of them, written already (see `of_each`); None: nothing, a good
place to let the loop turn."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Attributes:
        name: without the ``_total`` of a counter.
        labels: names of the labels that each row has values for.
        rows: worked off while the text is made, not before.
    """

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    help: str
    labels: Sequence[str]
    rows: Rows


def gauge(name: str, help_: str, labels: Sequence[str], rows: Rows) -> Family:
    """A gauge of (label values, value) rows."""
    return Family("gauge", name, help_, labels, rows)


def counter(name: str, help_: str, labels: Sequence[str], rows: Rows) -> Family:
    """A counter; the text adds ``_total`` to its name."""
    return Family("counter", name, help_, labels, rows)


def histogram(name: str, help_: str, labels: Sequence[str], rows: Rows) -> Family:
    """A histogram of (label values, `Histogram`) rows."""
    return Family("histogram", name, help_, labels, rows)


class Written:
    """Lines of many things as they were written last, by the few: what has not changed is not written again."""

    def __init__(self) -> None:
        self._blocks: list[tuple[list[str], dict[str, tuple[list[float | None], str]]]] = []

    def of(self, things: Sequence[_ONE], label: Callable[[_ONE], str]) -> Things[_ONE]:
        """These things, some at a time, with the text of the label that each has, and what was written of them."""
        found: Things[_ONE] = []
        kept: list[tuple[list[str], dict[str, tuple[list[float | None], str]]]] = []
        for at in range(0, len(things), _LOOK):
            some = things[at : at + _LOOK]
            labels = [label(thing) for thing in some]
            before = self._blocks[at // _LOOK] if at // _LOOK < len(self._blocks) else None
            kept.append(before if before is not None and before[0] == labels else (labels, {}))
            found.append((some, *kept[-1]))
        self._blocks = kept
        return found


def of_each(
    kind: Literal["gauge", "counter"],
    name: str,
    help_: str,
    things: Things[_ONE],
    *columns: tuple[str, Callable[[_ONE], float | None]],
) -> Family:
    """A gauge or counter with lines for each of many things, at a fraction of what a row costs.

    Args:
        columns: (more labels, which come before the thing's own and are written ``key="value",``; its value, finite
            and no bool, or None: no line of it).
    """
    sample = f"{name}_total" if kind == "counter" else name

    def blocks() -> Iterator[str]:
        for more, value in columns:
            begin = f"{sample}{{{more}"
            for some, labels, written in things:
                values = [value(thing) for thing in some]
                before = written.get(begin)
                if before is None or before[0] != values:
                    pairs = zip(labels, values, strict=True)
                    lines = "\n".join([f"{begin}{label}}} {found!r}" for label, found in pairs if found is not None])
                    before = written[begin] = values, lines
                yield before[1]

    return Family(kind, name, help_, (), blocks())


def of_some(name: str, help_: str, things: Things[_ONE], more: Callable[[_ONE], str | None]) -> Family:
    """A gauge that is 1 for few of many things, and has no line for the others.

    Args:
        more: labels of it as for `of_each`; None: no line.
    """

    def blocks() -> Iterator[str]:
        for some, labels, _ in things:
            found = [(more(thing), label) for thing, label in zip(some, labels, strict=True)]
            yield "\n".join([f"{name}{{{first}{label}}} 1" for first, label in found if first is not None])

    return Family("gauge", name, help_, (), blocks())


def tallied(things: Iterable[_ONE], key: Callable[[_ONE], str | None], names: Iterable[str]) -> Rows:
    """Rows of one label: how many of `things` have each of `names` as their key."""
    counts: dict[str | None, int] = {}
    for number, thing in enumerate(things):
        if not number % _LOOK:
            yield None
        found = key(thing)
        counts[found] = counts.get(found, 0) + 1
    for name in names:
        yield (name,), counts.get(name, 0)


def near(usages: Iterable[Usage]) -> Iterator[Family | None]:
    """How close limits are, and how full is what gives way; of those without a limit nothing is told.

    None between them, since to find one may mean to look at every tunnel: see `render`.
    """
    known: list[Usage] = []
    for one in usages:
        if one.most:
            known.append(one)
        yield None
    for name, help_, gives_way in (
        (
            "tunneld_limit_used_ratio",
            "Share of a limit that is used; of one for each tunnel or address the most.",
            False,
        ),
        ("tunneld_kept_used_ratio", "Share that is used of what makes room, or waits, when it is full.", True),
    ):
        rows = [((one.limit,), one.used / one.most) for one in known if one.gives_way is gives_way]
        yield gauge(name, help_, ("limit",), rows)


def of_traces(tracer: Tracer | None) -> Iterator[Family]:
    """What became of spans; nothing where there are no traces."""
    if tracer is not None:
        rows = [(("sent",), tracer.sent), (("lost",), tracer.lost)]
        yield counter("tunneld_trace_spans", "Spans of traces, by what became of them.", ("outcome",), rows)


def of_ended(counts: StreamCounts) -> Iterator[Family]:
    """Of the streams of one process that are over."""
    yield counter("tunneld_streams_ended", "Streams that ended, and why.", ("kind", "reason"), [
        (key, count) for key, count in sorted(counts.ended.items())
    ])  # fmt: skip
    yield histogram("tunneld_stream_duration_seconds", "From a stream's begin to its end.", ("kind",), [
        ((kind,), life) for kind, life in sorted(counts.life.items())
    ])  # fmt: skip


def _process(role: str, started: float) -> Iterator[Family]:
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
    except OSError:  # another kernel
        pass
    if (count := open_descriptors()) is not None:
        yield gauge("process_open_fds", "Open descriptors.", (), [((), count)])
    collections = [((str(number),), stat["collections"]) for number, stat in enumerate(gc.get_stats())]
    yield counter("python_gc_collections", "Runs of the garbage collector.", ("generation",), collections)


# -- the text ----------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    text = repr(value + 0)  # a bool is a number
    return str(floatToGoString(value)) if "n" in text else text  # type: ignore[no-untyped-call]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(names: Sequence[str], values: Sequence[str], *more: tuple[str, str]) -> str:
    """In the order of their names, in braces; empty without any."""
    pairs = sorted([*zip(names, values, strict=True), *more])
    return "{" + ",".join([f'{name}="{_escaped(value)}"' for name, value in pairs]) + "}" if pairs else ""


def _of_histogram(family: Family, values: Sequence[str], seen: Histogram, open_: bool) -> str:
    name, lines = family.name, []
    count = 0
    for bound, count, example in seen.buckets():
        line = f"{name}_bucket{_labels(family.labels, values, ('le', bound))} {count}.0"
        if open_ and example is not None and _ID.fullmatch(example[0]):
            request_id, value, at = example
            line += f' # {{request_id="{request_id}"}} {_number(value)} {at:.3f}'
        lines.append(line)
    labels = _labels(family.labels, values)
    return "\n".join([*lines, f"{name}_count{labels} {count}.0", f"{name}_sum{labels} {_number(seen.sum)}"])


def _lines(families: Iterable[Family | None], *, open_: bool) -> Iterator[str | None]:
    """The lines; None after each few: a good place to look at the clock."""
    for family in families:
        yield None
        if family is None:
            continue
        kind, name = family.kind, family.name
        sample = f"{name}_total" if kind == "counter" else name
        told = name if open_ else sample
        yield f"# HELP {told} {_escaped(family.help) if open_ else _helped(family.help)}\n# TYPE {told} {kind}"
        number = 0
        for row in family.rows:
            number += 1
            if row is None or not number % _LOOK:
                yield None
            if row is None:
                continue
            if isinstance(row, str):
                if row:
                    yield row
                yield None
                continue
            values, value = row
            if isinstance(value, Histogram):
                yield _of_histogram(family, values, value, open_)
                continue
            yield f"{sample}{_labels(family.labels, values)} {_number(value)}"
    if open_:
        yield "# EOF"


def _helped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _encoded(lines: list[str]) -> bytes:
    return "\n".join(lines).encode(errors="replace")  # half a surrogate pair is no text, and no reason to tell nothing


async def _sliced(lines: Iterator[str | None]) -> AsyncIterator[bytes]:
    """The lines as octets, a slice at a time; the loop turns between two."""
    held: list[str] = []
    until = monotonic() + _SLICE
    for line in lines:
        if line is not None:
            held.append(line)
        elif monotonic() > until:
            held.append("")
            yield _encoded(held)
            held.clear()
            await asyncio.sleep(0)
            until = monotonic() + _SLICE
    held.append("")
    yield _encoded(held)


async def render(
    families: Iterable[Family | None], *, role: str, started: float, accept: str = ""
) -> tuple[bytes, str]:
    """The text of all families, and of the process itself; and its media type. The loop turns meanwhile.

    Args:
        families: worked off while the text is made: what they count may change between two rows. None: nothing, a good
            place to let the loop turn.
        role: ``agent`` or ``server``.
        started: seconds since the epoch.
        accept: of the request: OpenMetrics, with exemplars, where it is asked for.
    """
    open_ = _OPEN_METRICS in accept

    def every() -> Iterator[Family | None]:
        yield from families
        yield from _process(role, started)

    parts = [part async for part in _sliced(_lines(every(), open_=open_))]
    return b"".join(parts), OPEN_CONTENT_TYPE if open_ else CONTENT_TYPE
