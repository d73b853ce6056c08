"""What a tunnel's outages cost: how many there were, how long they took, what was sent again, what was lost.

An outage begins when a session loses its connection, and where that fell silent with the last byte that was heard: a
visitor waited from then on. It ends when the session is resumed, or is over. Pure: the time is passed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ["Outage", "Outages"]

_RECENT = 8  # kept one by one


@dataclass(frozen=True, slots=True)
class Outage:
    """One outage that is over.

    Attributes:
        at: when the connection was lost or fell silent, ISO 8601 UTC.
        seconds: until the session was resumed, or was over.
        resumed: the session lived on.
        replayed_bytes: that this side sent again.
        streams_lost: streams that ended with the session; 0 when it was resumed.
    """

    at: str
    seconds: float
    resumed: bool
    replayed_bytes: int
    streams_lost: int


class Outages:
    """The outages of one tunnel, in sums since the start and the last one by itself.

    Attributes:
        count: that began.
        seconds: in sum, of those that are over.
        replayed_bytes: in sum.
        resumes: sessions that went on with another connection.
        streams_lost: in sum.
        last: the last one that is over; None before there was any.
        over: how many are over.
        recent: the newest of these, for who looks every few seconds.
        since: monotonic seconds since when the connection is lost or silent; None while it stands.
    """

    __slots__ = (
        "_at",
        "count",
        "last",
        "over",
        "recent",
        "replayed_bytes",
        "resumes",
        "seconds",
        "since",
        "streams_lost",
    )

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.replayed_bytes = 0
        self.resumes = 0
        self.streams_lost = 0
        self.last: Outage | None = None
        self.over = 0
        self.recent: deque[Outage] | tuple[()] = ()
        self.since: float | None = None
        self._at = ""

    def begin(self, now: float, wall: float, silent: float = 0.0) -> None:
        """The connection is lost; nothing happens when it is already.

        Args:
            now: monotonic seconds.
            wall: seconds since the epoch.
            silent: seconds for which nothing had been heard by then, where that is why it is lost.
        """
        if self.since is None:
            self.count += 1
            self.since = now - silent
            at = datetime.fromtimestamp(wall - silent, UTC)
            self._at = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def resumed(self, now: float, replayed_bytes: int) -> Outage | None:
        """The session goes on; returns the outage, None where a takeover left no time without a connection."""
        self.resumes += 1
        self.replayed_bytes += replayed_bytes
        return self._over(now, True, replayed_bytes, 0)

    def lost(self, now: float, streams: int) -> Outage | None:
        """The session is over, and `streams` with it; returns the outage, None where there was none."""
        self.streams_lost += streams
        return self._over(now, False, 0, streams)

    def _over(self, now: float, resumed: bool, replayed: int, streams: int) -> Outage | None:
        since, self.since = self.since, None
        if since is None:
            return None
        seconds = max(0.0, now - since)
        self.seconds += seconds
        self.last = Outage(self._at, round(seconds, 3), resumed, replayed, streams)
        self.over += 1
        if not isinstance(self.recent, deque):
            self.recent = deque(maxlen=_RECENT)
        self.recent.append(self.last)
        return self.last
