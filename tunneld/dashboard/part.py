"""A part of a daemon's tunnels, as the dashboard of somebody who may see no others has it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from tunneld.dashboard.history import Event, History
from tunneld.dashboard.source import AlertBrief, Brief, Counted, Source
from tunneld.telemetry.outages import Outages

__all__ = ["Past", "part", "past"]

Seen = Callable[[str], bool]
"""Whether a tunnel of that name is shown."""


class Past(Protocol):
    """What a feed asks of a `History`."""

    @property
    def newest(self) -> int:
        """Number of the newest event."""

    def day(self, now: float, most: int) -> list[Event]:
        """For who was told nothing yet: see `History.day`."""

    def since(self, number: int, now: float) -> list[Event]:
        """What happened after that event, within a day."""


def part(source: Source, seen: Seen | None) -> Source:
    """Of a daemon's tunnels those that are shown; None: all."""
    return source if seen is None else _Part(source, seen)


def past(history: History, seen: Seen | None) -> Past:
    """Of a daemon's past what is shown; None: all."""
    return history if seen is None else _PartOfPast(history, seen)


class _Part:
    """A `Source`."""

    def __init__(self, source: Source, seen: Seen) -> None:
        self.role = source.role
        self._source = source
        self._seen = seen

    def head(self) -> Mapping[str, Any]:
        """As `Source`; so are all below."""
        return self._source.head()

    def draining(self) -> bool:
        return self._source.draining()

    def alerts(self) -> list[AlertBrief]:
        """The rules are of the whole daemon, as ``GET …/alerts`` is: the operator's."""
        return []

    def briefs(self) -> list[Brief]:
        return [brief for brief in self._source.briefs() if self._seen(brief.name)]

    def details(self, name: str) -> Mapping[str, Any] | None:
        return self._source.details(name) if self._seen(name) else None

    def measured(self, name: str) -> tuple[float | None, float | None]:
        return self._source.measured(name) if self._seen(name) else (None, None)

    def outages(self, name: str) -> Outages | None:
        return self._source.outages(name) if self._seen(name) else None

    def stream_ids(self) -> Collection[str]:
        return [one for one in self._source.stream_ids() if self.tunnel_of(one) is not None]

    def stream(self, request_id: str) -> Mapping[str, Any] | None:
        found = self._source.stream(request_id)
        return found if found is not None and self._seen(found["tunnel"]) else None

    def counted(self, request_id: str) -> tuple[Counted, float] | None:
        return self._source.counted(request_id) if self.tunnel_of(request_id) is not None else None

    def tunnel_of(self, request_id: str) -> str | None:
        name = self._source.tunnel_of(request_id)
        return name if name is not None and self._seen(name) else None


class _PartOfPast:
    """A `Past`."""

    def __init__(self, history: History, seen: Seen) -> None:
        self._history = history
        self._seen = seen

    @property
    def newest(self) -> int:
        return self._history.newest

    def day(self, now: float, most: int) -> list[Event]:
        return [event for event in self._history.day(now, most) if self._seen(event.tunnel)]

    def since(self, number: int, now: float) -> list[Event]:
        return [event for event in self._history.since(number, now) if self._seen(event.tunnel)]
