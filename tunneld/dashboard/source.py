"""What the dashboard asks of the daemon that carries it: the server's view and the agent's both answer it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

from tunneld.telemetry.outages import Outages

__all__ = ["COUNTED", "AlertBrief", "Brief", "Counted", "Counting", "Source", "counted"]


class Brief(NamedTuple):
    """One tunnel in a few numbers, cheap to read once a second.

    Attributes:
        name: of the tunnel.
        state: as the API says it.
        streams: under way.
        bytes_in: of visitors' bodies since the start.
        bytes_out: of answers' bodies since the start.
    """

    name: str
    state: str
    streams: int
    bytes_in: int
    bytes_out: int


COUNTED: Final = ("bytes_in", "bytes_out", "events", "last_event_id", "state", "kind")
"""What moves of one stream while it goes on, in the API's words."""

Counted = tuple[int, int, int, str | None, str, str]
"""The values of `COUNTED`. They are read of hundreds once a second, and a tuple with names costs twice as much."""


class AlertBrief(NamedTuple):
    """One alert that fires.

    Attributes:
        rule: its name.
        subject: a tunnel's name, a limit, or what ends.
        tunnel: `subject` is a tunnel.
        since: seconds since the epoch, from which on it holds.
        message: what holds, with its value, as a sentence.
    """

    rule: str
    subject: str
    tunnel: bool
    since: float
    message: str


class Counting(Protocol):
    """A stream that goes on, of either daemon.

    Attributes:
        active: monotonic seconds of its last byte.
    """

    bytes_in: int
    bytes_out: int
    state: str
    kind: str
    active: float

    @property
    def events(self) -> int:
        """Of an event stream, so far."""

    @property
    def last_event_id(self) -> str | None:
        """Of an event stream."""


def counted(one: Counting | None) -> tuple[Counted, float] | None:
    """See `Source.counted`."""
    if one is None:
        return None
    idle = monotonic() - one.active
    moved = (one.bytes_in, one.bytes_out, one.events, one.last_event_id, one.state, one.kind)
    return moved, idle if idle > 0 else 0.0


class Source(Protocol):
    """A daemon as the dashboard sees it. Called on the daemon's own loop; nothing waits.

    Attributes:
        role: ``server`` or ``agent``.
    """

    role: str

    def head(self) -> Mapping[str, Any]:
        """What stands at the top of the page: version, server, uptime_s."""

    def draining(self) -> bool:
        """It takes no new streams and is about to leave."""

    def alerts(self) -> list[AlertBrief]:
        """Those that fire, the oldest first."""

    def briefs(self) -> list[Brief]:
        """Every tunnel, by name."""

    def details(self, name: str) -> Mapping[str, Any] | None:
        """One tunnel in the API's shape; None when it is not known."""

    def measured(self, name: str) -> tuple[float | None, float | None]:
        """Its last round trip (seconds) and its loss (a share); None: not known, or it is not connected."""

    def outages(self, name: str) -> Outages | None:
        """Its outages."""

    def stream_ids(self) -> Collection[str]:
        """Request ids of what is under way."""

    def stream(self, request_id: str) -> Mapping[str, Any] | None:
        """One stream in the API's shape; None when it is gone."""

    def counted(self, request_id: str) -> tuple[Counted, float] | None:
        """What moves of one stream, and seconds since its last byte; None when it is gone."""

    def tunnel_of(self, request_id: str) -> str | None:
        """Name of the tunnel of one stream; None when it is gone."""
