"""The heartbeats of one tunnel over all its connections, and how good they say that the way to the server is."""

from __future__ import annotations

from time import monotonic

from tunneld.link import Link
from tunneld.protocol.grades import Thresholds
from tunneld.protocol.quality import Quality, Reading

__all__ = ["Pulse"]


class Pulse:
    """What the link tells of pings that were answered, and of those that were not.

    Attributes:
        silent: nothing is heard of the server, which is not given up yet.
        last_pong_at: monotonic seconds; None: there was none.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self.silent = False
        self.last_pong_at: float | None = None
        self._quality = Quality(thresholds)

    def update(self, thresholds: Thresholds) -> None:
        """Judge by these from now on."""
        self._quality.thresholds = thresholds

    def answered(self, link: Link, round_trip: float) -> None:
        """A pong came, after so many seconds."""
        self.last_pong_at = now = monotonic()
        if link.heartbeat is not None:
            link.count_segments(self._quality)
            late = round_trip > link.heartbeat.timeout
            flight = link.flight
            self._quality.answered(now, round_trip, late=late, beside=flight.beside, held=flight.held, peer=link.peer)

    def died(self, link: Link) -> None:
        """The server is given up: the pings that it still owed are lost."""
        if link.heartbeat is not None:
            now = monotonic()
            link.count_segments(self._quality)
            self._quality.lost(now, link.heartbeat.overdue(now))

    def read(self, now: float, *, connected: bool) -> Reading:
        """How good the way is (`now`: monotonic seconds); `connected`: a connection stands."""
        return self._quality.read(now, connected=connected and not self.silent)
