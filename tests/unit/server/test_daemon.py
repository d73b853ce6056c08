"""The server around its parts: where it says it is, when it is ready, and how it ends."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from tests.support.peers import peer
from tests.support.running import port_of, running_server, settled, tasks, url_of
from tests.support.sockets import LOOPBACK
from tunneld.config.server import ServerConfig
from tunneld.errors import ConfigError
from tunneld.server.daemon import ServerDaemon


@pytest.mark.parametrize(
    ("settings", "public", "host"),
    [
        ({}, "http://127.0.0.1:PORT/t/app", None),
        ({"domain": "localhost"}, "http://127.0.0.1:PORT/t/app", "http://app.localhost:PORT"),
        ({"public_url": "https://pub.example"}, "https://pub.example/t/app", None),
        (
            {"public_url": "https://pub.example", "domain": "t.example"},
            "https://pub.example/t/app",
            "https://app.t.example",
        ),
    ],
)
async def test_where_visitors_find_a_tunnel(settings: dict[str, str], public: str, host: str | None) -> None:
    async with running_server(**settings) as server, peer(url_of(server)) as agent:
        said = await agent.hello()
        port = str(port_of(server))
        assert said["public_url"] == public.replace("PORT", port)
        assert said.get("host_url") == (host.replace("PORT", port) if host else None)


async def test_alive_and_ready() -> None:
    async with running_server() as server, httpx.AsyncClient() as client:
        base = f"http://{LOOPBACK}:{port_of(server)}"
        assert (await client.get(f"{base}/healthz")).status_code == 200
        assert (await client.get(f"{base}/readyz")).status_code == 200
        assert server.status_line() == "0 tunnels up, 0 streams"
        async with peer(url_of(server)) as agent:
            await agent.hello()
            assert server.status_line() == "1 tunnels up, 0 streams"


async def test_the_status_tells_how_far_the_agents_are() -> None:
    async with running_server(heartbeat={"interval": "100ms", "min": "100ms"}) as server, peer(url_of(server)) as agent:
        await agent.hello(heartbeat={"interval": 0.1})
        ping = await agent.want("ping")
        assert server.status_line() == "1 tunnels up, 0 streams"
        await agent.say({**ping, "type": "pong"})
        told = re.compile(r"1 tunnels up, 0 streams, rtt \d+ ms")
        await settled(lambda: told.fullmatch(server.status_line()) is not None)
        async with peer(url_of(server), "b") as second, peer(url_of(server), "c") as third:
            await second.hello()
            await third.hello()
            for name, trip in (("app", 0.0204), ("b", 0.41), ("c", 0.001)):
                tunnel = server.registry.find(name)
                assert tunnel is not None
                assert tunnel.connection is not None
                tunnel.connection.round_trip = trip
            assert server.status_line() == "3 tunnels up, 0 streams, rtt 20 ms, at worst 410 ms"


async def test_stopping_ends_connections_that_have_not_said_hello() -> None:
    before = tasks()
    async with running_server() as server, peer(url_of(server)) as silent, peer(url_of(server), "other") as agent:
        await agent.hello()
        await settled(lambda: len(server.connections) == 2)
        stopping = asyncio.get_running_loop().create_task(server.stop())
        assert (await silent.over())[:2] == ("going_away", 1001)
        assert (await agent.over())[:2] == ("going_away", 1001)
        await stopping
        assert not server.connections
    assert tasks() <= before


async def test_one_that_cannot_bind_leaves_nothing() -> None:
    async with running_server() as first:
        config = ServerConfig(listen={"host": LOOPBACK, "port": port_of(first)}, auth={"mode": "open"}, admin=False)
        with pytest.raises(ConfigError):
            await ServerDaemon(config, None).start()
