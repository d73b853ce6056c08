"""The heartbeat of one connection of the older dialect: our pings, marked by their time, and what their pongs say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Protocol

from tunneld.link import Pipe
from tunneld.protocol.heartbeat import Dead, Heartbeat, SendPing
from tunneld.protocol.legacy import LegacyPong, encode_ping
from tunneld.protocol.messages import HeartbeatSettings
from tunneld.wire.flights import Flight, Flights
from tunneld.wire.tcp_info import TcpInfo, read_tcp_info

__all__ = ["MAX_PINGS", "LegacyPulse", "PulseOwner", "timestamp"]

#: That may wait for their pong.
MAX_PINGS = 64


def timestamp() -> str:
    """ISO 8601 UTC; to the microsecond, so that no two pings are marked alike."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class PulseOwner(Protocol):
    """The connection."""

    def pulse_heard(self, round_trip: float, kernel: TcpInfo | None, flight: Flight, *, late: bool) -> None:
        """A ping was answered after so many seconds; `late`: not within the heartbeat's timeout."""

    def pulse_died(self, kernel: TcpInfo | None, overdue: int) -> None:
        """The client was silent for too long, and owes so many pongs."""


class LegacyPulse:
    """Beats from `start` to `stop`.

    Args:
        owner: told of what comes back.
        pipe: the WebSocket.
        beat: how often, and how long a pong may take.
        send: writes a message, or keeps it until the client reads.
    """

    def __init__(self, owner: PulseOwner, pipe: Pipe, beat: HeartbeatSettings, send: Callable[[bytes], None]) -> None:
        self._owner = owner
        self._pipe = pipe
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(beat.interval, beat.timeout, monotonic())
        self._stamps: dict[str, int] = {}  # of our pings that wait for their pong -> number
        self._flights = Flights(pipe.transport)
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def start(self) -> None:
        """Do what the heartbeat wants now, and come back when it next wants something."""
        self._timer = None
        if self._over:
            return
        now = monotonic()
        self._heartbeat.heard(self._pipe.last_heard)
        for action in self._heartbeat.tick(now):
            if isinstance(action, SendPing):
                self._ping(action.seq)
            elif isinstance(action, Dead):
                self._owner.pulse_died(read_tcp_info(self._pipe.transport), self._heartbeat.overdue(now))
                return
        self._again(self._heartbeat.next_wake(now) - now)

    def stop(self) -> None:
        """No more pings, for good."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def retune(self, beat: HeartbeatSettings) -> None:
        """Other times hold from now on."""
        if (beat.interval, beat.timeout) != (self._heartbeat.interval, self._heartbeat.timeout):
            self._heartbeat.update(beat.interval, beat.timeout, monotonic())
            self._again(0.0)

    def answered(self, pong: LegacyPong) -> None:
        """A pong came; one that answers no ping is of no consequence."""
        seq = self._stamps.pop(pong.timestamp, None) if isinstance(pong.timestamp, str) else None
        if seq is None:
            return
        trip = self._heartbeat.pong(seq, monotonic())
        if trip is not None:
            kernel = read_tcp_info(self._pipe.transport)
            late = trip > self._heartbeat.timeout
            self._owner.pulse_heard(trip, kernel, self._flights.end(seq, kernel), late=late)

    def _ping(self, seq: int) -> None:
        stamp = timestamp()
        self._stamps[stamp] = seq
        if len(self._stamps) > MAX_PINGS:
            del self._stamps[next(iter(self._stamps))]
        self._flights.begin(seq)
        self._send(encode_ping(stamp))

    def _again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, seconds), self.start)
