"""A tunnel before a service, for visitors' WebSockets, and what is left of it when it is quiet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tests.support.running import port_of, running_agent, running_server, settled, url_of
from tests.support.ws_raw import CLOSE, FIN, PING, PONG, RawSocket, close_payload
from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.sockets import SocketExchange
from tunneld.agent.tunnel import AgentTunnel
from tunneld.server.daemon import ServerDaemon
from tunneld.server.sockets import SocketVisit

__all__ = ["World", "closed", "echo", "through"]


@dataclass
class World:
    """What a test works with."""

    server: ServerDaemon
    agent: AgentDaemon
    tunnel: AgentTunnel

    @property
    def port(self) -> int:
        return port_of(self.server)

    @property
    def url(self) -> str:
        """The tunnel's address, for WebSockets."""
        return f"ws://127.0.0.1:{self.port}/t/app/"

    def only(self) -> tuple[SocketVisit, SocketExchange]:
        """The one WebSocket, at the server and at the agent."""
        (visit,) = self.server.ingress.exchanges.values()
        (exchange,) = self.agent.exchanges()
        assert isinstance(visit, SocketVisit)
        assert isinstance(exchange, SocketExchange)
        return visit, exchange

    async def quiet(self) -> None:
        """Nothing is under way, and no connection of a WebSocket is left."""
        await settled(lambda: not self.agent.exchanges() and not self.server.ingress.exchanges)
        await settled(lambda: not self.tunnel.proxy.hops and not self.server.ingress.hops)


@contextlib.asynccontextmanager
async def through(service: str, *, dial: int = 0, **settings: Any) -> AsyncIterator[World]:
    """A tunnel before the service; nothing may be left at its end.

    Args:
        dial: the port that the agent dials, where that is not the server's own.
        settings: of the agent; `server` of the server.
    """
    async with (
        running_server(**settings.pop("server", {})) as server,
        running_agent(f"ws://127.0.0.1:{dial}" if dial else url_of(server), service, **settings) as (agent, tunnel),
    ):
        await settled(lambda: tunnel.state in ("online", "degraded"))
        world = World(server, agent, tunnel)
        yield world
        await world.quiet()


async def echo(socket: RawSocket) -> None:
    """Say all back frame by frame, answer pings and the close, as a service should; then end the connection."""
    while (found := await socket.receive()) is not None:
        first, payload = found
        opcode = first & 0x0F
        if opcode == PING:
            socket.send(FIN | PONG, payload)
        elif opcode != PONG:
            socket.send(first, payload)
        await socket.writer.drain()
        if opcode == CLOSE:
            return


async def closed(socket: RawSocket, code: int = 1000, reason: str = "done") -> list[tuple[int, bytes]]:
    """Close in order; what came until the end."""
    socket.send(FIN | CLOSE, close_payload(code, reason))
    got = await socket.until_end()
    socket.close()
    await asyncio.sleep(0)
    return got
