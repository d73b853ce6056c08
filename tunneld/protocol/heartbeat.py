"""Liveness of one connection (PROTOCOL.md, invariant 5, and ``ping``/``pong``).

Reads no clock: every call that needs the time gets it, in seconds of any monotonic clock. The shell does three things:
it calls `Heartbeat.tick`, does what the actions say, and comes back at `Heartbeat.next_wake`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Action", "Alive", "Dead", "Heartbeat", "SendPing", "Silent", "clamp"]

_MOST_WAITING = 64  # pings that may wait for their pong; the oldest is given up
_LATE = 0.25  # seconds after which a wake-up was late enough to doubt what this side has read
_STALE = 0.05  # seconds after a doubt in which what is read may have come long before
_SECOND_LOOK = 0.01  # seconds for the shell to read what came while it did not run


@dataclass(frozen=True, slots=True)
class SendPing:
    """Send a ping with this number."""

    seq: int


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing was heard for an interval and a little: something is wrong, the peer may still come back."""


@dataclass(frozen=True, slots=True)
class Alive:
    """A peer that was silent was heard again."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Nothing was heard for interval + timeout: the peer is gone. The last action there is."""


Action = SendPing | Silent | Alive | Dead


def clamp(wish: float, low: float, high: float) -> float:
    """The value nearest to `wish` that the server's bounds allow."""
    return min(max(wish, low), high)


class Heartbeat:
    """Says when to ping, and when the peer is to be given up.

    Args:
        interval: seconds between two pings, whatever else is sent; above 0.
        timeout: seconds beyond `interval` that the peer may be silent; 0 or more.
        now: the connection stands since now; the first ping is due at once.

    Attributes:
        last_heard: when the last byte came.
        sent: pings sent.
        silent: `Silent` was said, and nothing heard since.
        dead: `Dead` was said.
    """

    __slots__ = (
        "_doubted",
        "_floor",
        "_next_ping",
        "_pinged",
        "_second_look",
        "_waiting",
        "_wake",
        "dead",
        "interval",
        "last_heard",
        "sent",
        "silent",
        "timeout",
    )

    def __init__(self, interval: float, timeout: float, now: float) -> None:
        _check(interval, timeout)
        self.interval = interval
        self.timeout = timeout
        self.last_heard = now
        self.sent = 0
        self.silent = False
        self.dead = False
        self._floor = now  # silence before this does not count: a shorter interval came into force then
        self._pinged = now  # when the last ping was due
        self._next_ping = now
        self._waiting: dict[int, float] = {}  # seq -> when sent, oldest first
        self._wake = math.inf  # what next_wake said last
        self._second_look = False
        self._doubted: tuple[float, float] | None = None  # when, and until when something must be heard

    @property
    def deadline(self) -> float:
        """When the peer is to be given up, unless something is heard."""
        deadline = max(self.last_heard, self._floor) + self.interval + self.timeout
        return deadline if self._doubted is None else min(deadline, self._doubted[1])

    @property
    def silent_since(self) -> float:
        """When the last byte came; of a connection in doubt, since when it is, where that is later."""
        return self.last_heard if self._doubted is None else max(self.last_heard, self._doubted[0])

    def doubt(self, now: float, within: float) -> None:
        """Something happened that connections do not survive: ping at once, and hear something within so many seconds.

        What waited in the socket since before is no proof; a pong, or any byte a little later, is.
        """
        if not self.dead:
            self._next_ping = now
            self._doubted = (now, now + within)

    @property
    def _silent_at(self) -> float:
        # Both sides may ping at the same moments, and then bytes come an interval apart, more or less.
        return max(self.last_heard, self._floor) + self.interval + min(1.0, self.timeout / 4)

    def heard(self, at: float) -> None:
        """The last byte came at this time; an earlier time than the one known changes nothing."""
        if at > self.last_heard:
            self.last_heard = at
        if self._doubted is not None and at > self._doubted[0] + _STALE:
            self._doubted = None

    def pong(self, seq: int, now: float) -> float | None:
        """A pong came: the seconds of its round trip, or None when it answers no ping that waits.

        One that does ends a silence by itself, and no `Alive` follows.
        """
        self.heard(now)
        sent = self._waiting.pop(seq, None)
        if sent is None:
            return None
        self.silent = False
        if self._doubted is not None and sent >= self._doubted[0]:
            self._doubted = None
        # The connection keeps order: pings before this one will not be answered any more.
        while self._waiting and (first := next(iter(self._waiting))) < seq:
            del self._waiting[first]
        return max(0.0, now - sent)

    def overdue(self, now: float) -> int:
        """Pings that wait for their pong for longer than `timeout`."""
        return sum(1 for sent in self._waiting.values() if now - sent >= self.timeout)

    def update(self, interval: float, timeout: float, now: float) -> None:
        """Let other values hold from now on.

        Shorter ones take effect from now: what was within the bound until now does not become a lost peer.
        """
        _check(interval, timeout)
        if interval + timeout < self.interval + self.timeout or interval < self.interval:
            self._floor = now
        self.interval = interval
        self.timeout = timeout
        self._next_ping = max(now, self._pinged + interval)

    def tick(self, now: float) -> list[Action]:
        """What is to be done at this time, in order; nothing after `Dead`."""
        if self.dead:
            return []
        actions: list[Action] = []
        if now >= self.deadline:
            # This side may have stood still (a stopped process, a long pause): what the peer sent meanwhile waits
            # unread in the socket. It gets one short turn to read before it calls the peer dead.
            if now - self._wake > _LATE and not self._second_look:
                self._second_look = True
                return []
            self.dead = True
            return [Dead()]
        self._second_look = False
        if now >= self._silent_at:
            if not self.silent:
                self.silent = True
                actions.append(Silent())
        elif self.silent:
            self.silent = False
            actions.append(Alive())
        if now >= self._next_ping:
            self._pinged = self._next_ping if now - self._next_ping < self.interval else now
            self._next_ping = self._pinged + self.interval
            self.sent += 1
            if len(self._waiting) >= _MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]
            self._waiting[self.sent] = now
            actions.append(SendPing(self.sent))
        return actions

    def next_wake(self, now: float) -> float:
        """When `tick` is to be called next, never before `now`; infinity once dead."""
        if self.dead:
            return math.inf
        if self._second_look:
            self._wake = now + _SECOND_LOOK
            return self._wake
        wake = min(self._next_ping, self.deadline)
        if not self.silent:
            wake = min(wake, self._silent_at)
        self._wake = max(now, wake)
        return self._wake


def _check(interval: float, timeout: float) -> None:
    if not (0 < interval < math.inf and 0 <= timeout < math.inf):
        raise ValueError(f"a heartbeat needs an interval above 0 and a timeout, not {interval!r} and {timeout!r}")
