"""What the dashboard asks of the daemon that carries it: the server's view and the agent's both answer it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from tunneld.telemetry.outages import Outages

__all__ = ["AlertBrief", "Brief", "Counted", "Source"]


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


class Counted(NamedTuple):
    """What moves of one stream while it goes on, in the API's words; cheap to read of hundreds once a second."""

    bytes_in: int
    bytes_out: int
    events: int
    last_event_id: str | None
    state: str
    kind: str


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
