"""What tunnels were like in the last 24 hours, in memory that is bounded and soon reached. Pure: the time is passed in.

Three rings a tunnel: every 10 s for a quarter of an hour, every minute for two hours, every 10 minutes for a day. A
coarser point keeps the worst round trip and loss of its time, and the mean of the throughput: 5.7 KiB a tunnel.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from tunneld.config.common import DashboardConfig
from tunneld.telemetry.outages import Outage, Outages

__all__ = ["PERIOD", "SPANS", "Event", "History"]

PERIOD = 10.0
"""Seconds between two samples of one tunnel."""
SPANS = ((10, 90), (60, 120), (600, 144))
"""(seconds of a point, points) of each ring, the finest first."""
COLUMNS = ("rtt", "loss", "in", "out")
_DEFAULTS = DashboardConfig()
_WORST = 2  # of the columns, so many keep the worst of their time; the others the mean


class Ring:
    """The newest points of one tunnel at one resolution.

    Args:
        step: seconds of a point.
        size: points.
    """

    __slots__ = ("_count", "_newest", "_values", "size", "step")

    def __init__(self, step: int, size: int) -> None:
        self.step = step
        self.size = size
        self._values = [array("f", [nan]) * size for _ in COLUMNS]
        self._newest = -1
        self._count = 0

    def add(self, at: float, row: tuple[float, ...]) -> None:
        """Take one sample, seconds since the epoch; a time before the newest point counts for that point."""
        index = max(int(at // self.step), self._newest)
        place = index % self.size
        if index > self._newest:
            missed = index - self._newest if self._newest >= 0 else 1
            for column in self._values:
                for each in range(min(missed, self.size)):
                    column[(index - each) % self.size] = nan
            self._newest, self._count = index, 0
        self._count += 1
        for number, (column, value) in enumerate(zip(self._values, row, strict=True)):
            before = column[place]
            if isnan(before):
                column[place] = value
            elif not isnan(value):
                column[place] = max(before, value) if number < _WORST else before + (value - before) / self._count

    def read(self, now: float, points: int) -> list[list[float | None]]:
        """The newest `points` up to now, the oldest first, a list a column; None: not known."""
        last = int(now // self.step)
        found: list[list[float | None]] = []
        for column in self._values:
            values: list[float | None] = []
            for index in range(last - points + 1, last + 1):
                inside = self._newest - self.size < index <= self._newest
                value = column[index % self.size] if inside else nan
                values.append(None if isnan(value) else _short(value))
            found.append(values)
        return found


def _short(value: float) -> float:
    """Four digits: what a curve shows of it, and no more to send."""
    return float(f"{value:.4g}")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a tunnel.

    Attributes:
        number: rising.
        at: seconds since the epoch.
        tunnel: its name.
        state: that it had from then on; None: an outage was over.
        outage: that was over; None: the state changed.
    """

    number: int
    at: float
    tunnel: str
    state: str | None = None
    outage: Outage | None = None

    def shown(self) -> dict[str, Any]:
        """For the page."""
        if self.outage is None:
            return {"n": self.number, "t": round(self.at, 1), "tunnel": self.tunnel, "state": self.state}
        return {
            "n": self.number,
            "t": round(self.at, 1),
            "tunnel": self.tunnel,
            "seconds": self.outage.seconds,
            "resumed": self.outage.resumed,
            "replayed_bytes": self.outage.replayed_bytes,
            "streams_lost": self.outage.streams_lost,
        }


class _Known:
    """One tunnel: its rings, and what the sample before said."""

    __slots__ = ("at", "bytes_in", "bytes_out", "over", "rings", "state")

    def __init__(self) -> None:
        self.rings = [Ring(step, size) for step, size in SPANS]
        self.at: float | None = None
        self.bytes_in = self.bytes_out = 0
        self.over = 0
        self.state = ""


class History:
    """Of all tunnels of one daemon.

    Args:
        bounds: how much is remembered.
    """

    def __init__(self, bounds: DashboardConfig = _DEFAULTS) -> None:
        self._most = bounds.tunnels
        self._known: dict[str, _Known] = {}  # the one sampled last stands last
        self.events: deque[Event] = deque(maxlen=bounds.events)
        self._before: dict[str, Event] = {}  # of known tunnels, the newest state whose event is kept no more
        self.newest = 0

    def __len__(self) -> int:
        return len(self._known)

    def sample(
        self,
        name: str,
        now: float,
        *,
        state: str,
        rtt: float | None,
        loss: float | None,
        bytes_in: int,
        bytes_out: int,
        outages: Outages | None = None,
    ) -> None:
        """Note how one tunnel is.

        Args:
            name: of the tunnel.
            now: seconds since the epoch, of a clock that never goes back.
            state: as the API says it.
            rtt: its last round trip, seconds; None: not known.
            loss: a share; None: not known.
            bytes_in: of visitors' bodies since the start.
            bytes_out: of answers' bodies since the start.
            outages: that it had.
        """
        known = self._known.pop(name, None)
        if known is None:
            known = _Known()
            if outages is not None:
                known.over = max(0, outages.over - len(outages.recent))
        self._known[name] = known
        if outages is not None:
            self._note_outages(name, known, outages, now)
        if state != known.state:
            self._note(Event(0, now, name, state=state))
            known.state = state
        elapsed = now - known.at if known.at is not None else 0.0
        rates = (nan, nan)
        if elapsed > 0:
            rates = max(0, bytes_in - known.bytes_in) / elapsed, max(0, bytes_out - known.bytes_out) / elapsed
        known.at, known.bytes_in, known.bytes_out = now, bytes_in, bytes_out
        row = (nan if rtt is None else rtt * 1000, nan if loss is None else loss, *rates)
        for ring in known.rings:
            ring.add(now, row)
        while len(self._known) > self._most:
            gone = next(iter(self._known))
            del self._known[gone]
            self._before.pop(gone, None)

    def _note_outages(self, name: str, known: _Known, outages: Outages, now: float) -> None:
        fresh = min(outages.over - known.over, len(outages.recent))
        known.over = outages.over
        for outage in list(outages.recent)[len(outages.recent) - fresh :] if fresh > 0 else ():
            self._note(Event(0, _epoch(outage.at, now), name, outage=outage))

    def _note(self, event: Event) -> None:
        self.newest += 1
        if len(self.events) == self.events.maxlen:
            oldest = self.events[0]
            if oldest.state is not None and oldest.tunnel in self._known:
                self._before[oldest.tunnel] = oldest
        self.events.append(Event(self.newest, event.at, event.tunnel, event.state, event.outage))

    def day(self, now: float, most: int) -> list[Event]:
        """The newest events of the last day, for who was told none; before them the state that each tunnel had by then.

        Of a tunnel that was well and to which nothing happened there is nothing.
        """
        from_, left_out = now - 86400, len(self.events) - most
        before = dict(self._before)
        found: list[Event] = []
        for index, event in enumerate(self.events):
            if index >= left_out and event.at > from_:
                found.append(event)
            elif event.state is not None:
                before[event.tunnel] = event
        changed = {event.tunnel for event in found}
        return [*(one for one in before.values() if one.state != "online" or one.tunnel in changed), *found]

    def since(self, number: int, now: float) -> list[Event]:
        """What happened after that event, within a day."""
        return [event for event in self.events if event.number > number and event.at > now - 86400]

    def curves(self, name: str, now: float, span: int) -> dict[str, Any]:
        """One ring of a tunnel, empty when it is not known.

        Args:
            name: of the tunnel.
            now: seconds since the epoch.
            span: which ring, an index of `SPANS`.

        Returns:
            ``t``: the first point's time, seconds since the epoch; ``step``: seconds; and each column: ``rtt``
            milliseconds, ``loss`` a share, ``in`` and ``out`` bytes a second.
        """
        known = self._known.get(name)
        step, points = SPANS[span]
        columns = (known.rings[span] if known is not None else Ring(step, points)).read(now, points)
        first = (int(now // step) - points + 1) * step
        return {"tunnel": name, "t": first, "step": step, **dict(zip(COLUMNS, columns, strict=True))}

    def sparks(self, names: Collection[str], now: float, points: int = 45) -> dict[str, list[list[float | None]]]:
        """The newest points of several tunnels at the finest resolution: round trip, loss, throughput both ways."""
        found = {}
        for name in names:
            if (known := self._known.get(name)) is not None:
                rtt, loss, received, sent = known.rings[0].read(now, points)
                both = [None if a is None else _short(a + (b or 0)) for a, b in zip(received, sent, strict=True)]
                found[name] = [rtt, loss, both]
        return found


def _epoch(text: str, now: float) -> float:
    """Seconds since the epoch of an outage's `at`; now where it says none."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return now
