"""Visitors' connections: which are open, whose address they count for, and when the last one has gone."""

from __future__ import annotations

import asyncio

from tunneld.config.server import ServerConfig, ServerLimits
from tunneld.server.limits import Guard
from tunneld.server.offers import Listener
from tunneld.server.peers import Peers
from tunneld.server.visit import Visit
from tunneld.wire.http_server import ServerConnection
from tunneld.wire.short_reads import ShortReads
from tunneld.wire.ws_hop import Hop

__all__ = ["Connections"]


class Connections:
    """Of one server. The `Ingress` is one, rather than to have one: each of its connections calls it.

    Attributes:
        connections: every open connection that is not a tunnel.
        hops: visitors' connections that are WebSockets.
        counted: those that count for their address -> whether it may have them too.
        reads: how visitors' connections are read.
        guard: the bounds of addresses.
        peers: who stands at the other end of a connection.
    """

    def __init__(self, config: ServerConfig, reads: ShortReads) -> None:
        self.limits: ServerLimits = config.limits
        self.connections: set[ServerConnection] = set()
        self.hops: set[Hop] = set()
        self.counted: dict[ServerConnection, bool] = {}
        self._counted_hops: dict[Hop, str] = {}  # those whose address is counted
        self.reads = reads
        self.guard = Guard(config.limits)
        self.peers = Peers(config)
        self._left: asyncio.Event | None = None  # set when a connection ends, once somebody waits for it

    def opened(self, connection: ServerConnection) -> None:
        """A visitor connected."""
        self.connections.add(connection)
        self.reads.connections += 1
        if self.limits.address_connections:
            listener = connection.listener
            assert isinstance(listener, Listener)
            if not self.peers.trusts(connection, listener):
                self.counted[connection] = self.guard.connected(connection.address)

    def late(self, connection: ServerConnection, limit: str) -> None:
        """A visitor takes too little of what waits for it."""
        self.guard.hits.count(limit)
        consumer: object = connection.consumer
        if isinstance(consumer, Visit):
            consumer.over_limit(limit)

    def closed(self, connection: ServerConnection) -> None:
        """A connection is over, or became a tunnel's."""
        self.connections.discard(connection)
        self.reads.connections -= 1
        if self.counted.pop(connection, None) is not None:
            self.guard.disconnected(connection.address)
        if self._left is not None:
            self._left.set()

    def is_counted(self, connection: ServerConnection) -> bool:
        """Whether it counts towards `limits.address_connections`."""
        return connection in self.counted

    def hop_begins(self, hop: Hop, address: str | None) -> None:
        """A connection became a WebSocket's; `address`: it goes on counting as one of its."""
        self.hops.add(hop)
        self.reads.connections += 1
        if address is not None:
            self.guard.connected(address)
            self._counted_hops[hop] = address

    def hop_gone(self, hop: Hop) -> None:
        """A WebSocket's connection is over."""
        self.hops.discard(hop)
        self.reads.connections -= 1
        if (address := self._counted_hops.pop(hop, None)) is not None:
            self.guard.disconnected(address)
        if self._left is not None:
            self._left.set()

    async def emptied(self, seconds: float, *, hops: bool = True) -> None:
        """Wait until no connection is left, those of WebSockets included with `hops`, or the time is over."""
        if self._left is None:
            self._left = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                while self.connections or (hops and self.hops):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass
