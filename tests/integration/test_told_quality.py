"""What each end is told of the connection by the other's kernel, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from tests.support.front import Client
from tests.support.legacy_client import legacy
from tests.support.running import Book, port_of, relay, running_agent, running_server, url_of
from tests.support.sockets import LOOPBACK
from tunneld.link import Link
from tunneld.server.legacy.connection import LegacyConnection
from tunneld.server.tunnels import TunnelConnection

_OFTEN = {"interval": 0.05, "timeout": 5}
_ACKNOWLEDGED = "💓 Heartbeat acknowledged for app"


@contextlib.asynccontextmanager
async def links(lines: Book, *, between: bool) -> AsyncIterator[list[Link]]:
    """The links of both ends once each heard a few pongs; with `between` a relay of TCP stands there."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_server(heartbeat={**_OFTEN, "min": 0.01}))
        url = url_of(server)
        if between:
            url = f"ws://{LOOPBACK}:{(await stack.enter_async_context(relay(port_of(server)))).port}"
        _, tunnel = await stack.enter_async_context(running_agent(url, heartbeat=_OFTEN))
        await lines.wait(_ACKNOWLEDGED, count=20)
        [connection] = server.connections
        assert isinstance(connection, TunnelConnection)
        link = tunnel._connections.link
        assert link is not None
        assert connection.link is not None
        yield [link, connection.link]


async def test_both_kernels_of_one_connection_count_alike(lines: Book) -> None:
    async with links(lines, between=False) as both:
        for link in both:
            assert link.peer is not None
            assert link.peer.missing is not None
            assert -50 < link.peer.missing <= 0, "nothing is lost, and a few may have come behind the ping"


async def test_what_came_over_a_proxys_connection_is_not_counted(lines: Book) -> None:
    async with links(lines, between=True) as both:
        assert [link.peer and (link.peer.missing, link.peer.resent >= 0) for link in both] == [(None, True)] * 2


async def test_a_ping_of_the_older_dialect_beside_bulk_counts_without_what_it_waited() -> None:
    """The client reads a request of 2 MB before it answers a ping, as one whose line that fills does."""
    async with (
        running_server(heartbeat={"interval": 0.2, "timeout": 5, "min": 0.01}) as server,
        legacy(f"http://{LOOPBACK}:{port_of(server)}", echo=False) as client,
    ):
        guest = Client(*await asyncio.open_connection(LOOPBACK, port_of(server), limit=1 << 24))
        ping = await client.want("ping")
        guest.get("/t/my-server/upload", "Content-Length: 2000000", "Content-Type: text/plain", method="POST")
        guest.send(b"x" * 2_000_000)
        request = await client.request()
        await asyncio.sleep(0.3)  # the line's own time
        await client.say("pong", timestamp=ping["timestamp"])
        await client.respond(request)
        assert (await guest.answer()).body == b"ok"
        [connection] = server.connections
        assert isinstance(connection, LegacyConnection)
        assert connection.tunnel is not None
        assert connection.round_trip is not None
        assert connection.round_trip >= 0.3
        reading = connection.tunnel.quality.read(monotonic(), connected=True)
        assert reading.queued == pytest.approx(connection.round_trip, abs=0.05)
        assert reading.last is not None
        assert reading.last < 0.05
        assert reading.grade == "excellent"
        await guest.leave()
