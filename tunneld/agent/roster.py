"""The tunnels that run, what is under way on them, and what they have carried."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter

from tunneld.agent.exchange import Exchange
from tunneld.agent.sockets import SocketExchange
from tunneld.agent.tunnel import AgentTunnel
from tunneld.errors import VisitorError

__all__ = ["Roster", "Running"]

_started = attrgetter("started")


@dataclass(slots=True)
class Running:
    """A tunnel and its task.

    Attributes:
        at_run_time: it was opened by an operator and stands in no file, not even of `tunnels.d`.
        expiry: ends it; None: nothing does.
        expires: when that is, by the loop's clock.
    """

    tunnel: AgentTunnel
    task: asyncio.Task[None]
    expiry: asyncio.Handle | None = None
    expires: float = 0.0
    at_run_time: bool = False

    def expires_in(self) -> float | None:
        """Seconds until it goes; None: it has no end of its own."""
        if self.expiry is None:
            return None
        return round(max(0.0, self.expires - asyncio.get_running_loop().time()), 3)


class Roster:
    """Tunnels by their names, in the order in which they were opened. The `AgentDaemon` is one.

    Attributes:
        totals: of tunnels that are gone: streams, bytes from visitors, bytes to visitors.
    """

    def __init__(self) -> None:
        self.totals = [0, 0, 0]
        self._events_of_gone = 0
        self._running: dict[str, Running] = {}

    @property
    def tunnels(self) -> list[AgentTunnel]:
        """In the order of the file."""
        return [running.tunnel for running in self._running.values()]

    def find(self, name: str) -> Running | None:
        """The tunnel of that name and its tasks; None when there is none."""
        return self._running.get(name)

    def running(self, name: str) -> Running:
        """The same; raises VisitorError ``no_such_tunnel``."""
        running = self._running.get(name)
        if running is None:
            raise VisitorError("no_such_tunnel", f"This agent has no tunnel named {name}.")
        return running

    @property
    def active_streams(self) -> int:
        """Streams under way on all tunnels."""
        return sum(tunnel.active_streams for tunnel in self.tunnels)

    def exchanges(self, tunnel: str | None = None, oldest: int | None = None) -> list[Exchange | SocketExchange]:
        """What is under way, oldest first; with `oldest` so many of them."""
        found = [
            exchange
            for running in self._running.values()
            if tunnel is None or running.tunnel.name == tunnel
            for exchange in islice(running.tunnel.proxy.exchanges.values(), oldest)  # in the order of their begins
        ]
        return sorted(found, key=_started)[:oldest]

    def exchange(self, request_id: str) -> Exchange | SocketExchange | None:
        """The stream of that request; None when it is gone."""
        for running in self._running.values():
            found = running.tunnel.proxy.exchanges.get(request_id)
            if found is not None:
                return found
        return None

    def cancel(self, request_id: str) -> bool:
        """Cancel a stream with reason `operator`; False when it is gone."""
        exchange = self.exchange(request_id)
        if exchange is None:
            return False
        return self._running[exchange.tunnel].tunnel.proxy.cancel(request_id, "operator")

    def events(self) -> int:
        """Events of event streams since the start."""
        return self._events_of_gone + sum(map(_events, self.tunnels))

    def sums(self) -> list[int]:
        """Streams, bytes from visitors and bytes to visitors since the start, those under way included."""
        streams, received, sent = self.totals
        for tunnel in self.tunnels:  # one by one: with a thousand of them this is a long step of a scrape
            more = _sums(tunnel)
            streams += more[0]
            received += more[1]
            sent += more[2]
        return [streams, received, sent]

    def _add_up(self, gone: AgentTunnel) -> None:
        """What a tunnel has carried counts on when it is gone."""
        self._events_of_gone += _events(gone)
        self.totals = [sum(column) for column in zip(self.totals, _sums(gone), strict=True)]


def _events(tunnel: AgentTunnel) -> int:
    proxy = tunnel.proxy
    events = proxy.totals.events
    return events + sum(exchange.events for exchange in proxy.exchanges.values()) if proxy.exchanges else events


def _sums(tunnel: AgentTunnel) -> tuple[int, int, int]:
    return tunnel.proxy.totals.streams, *tunnel.proxy.carried
