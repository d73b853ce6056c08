"""Tunnels that come back, the visitors that wait for them, and storms that leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.peers import peer
from tests.support.running import (
    Book,
    agent_settings,
    descriptors,
    port_of,
    relay,
    running_agent,
    running_server,
    settled,
    tasks,
    url_of,
    written,
)
from tests.support.sockets import LOOPBACK, free_port
from tests.support.tunnelled import read_head, reply, serving


@pytest.fixture
async def service() -> AsyncIterator[str]:
    """Answers ``/events`` with events without end, everything else at once."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if b"/events" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                while True:
                    writer.write(b"data: tick\n\n")
                    await writer.drain()
                    await asyncio.sleep(0.01)
            writer.write(reply(b"hello"))

    async with serving(handler) as address:
        yield address


async def test_visitors_wait_for_an_agent_that_is_away_and_are_served(lines: Book, service: str) -> None:
    async with (
        running_server(limits={"hold": 8}) as server,
        relay(port_of(server)) as wire,
        httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port_of(server)}", timeout=15) as client,
    ):
        async with running_agent(f"ws://{LOOPBACK}:{wire.port}", service):
            await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
            assert (await client.get("/t/app/x")).text == "hello"
        mark = lines.mark()
        loop = asyncio.get_running_loop()
        held = [loop.create_task(client.get(f"/t/app/{number}")) for number in range(5)]
        await settled(lambda: len(server.ingress.exchanges) == 5)
        async with running_agent(f"ws://{LOOPBACK}:{wire.port}", service):
            answers = await asyncio.gather(*held)
            assert {answer.status_code for answer in answers} == {200}
            await lines.wait("✓ Tunnel established: app", by="tunneld.tunnels", after=mark)


async def test_a_visitor_that_waits_too_long_is_told_when_to_come_back(lines: Book) -> None:
    async with (
        running_server(limits={"hold": 0.1}, resume={"grace": 0}) as server,
        httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port_of(server)}") as client,
    ):
        assert (await client.get("/t/app/x")).status_code == 404
        async with peer(url_of(server)) as agent:
            await agent.hello()
        await settled(lambda: not server.connections)
        answer = await client.get("/t/app/x")
        assert answer.status_code == 503
        assert answer.headers["X-Tunnel-Error"] == "tunnel_offline"
        assert int(answer.headers["Retry-After"]) >= 1


async def test_an_agent_finds_a_server_that_starts_later(lines: Book, service: str) -> None:
    port = free_port()
    async with running_agent(f"ws://{LOOPBACK}:{port}", service, reconnect={"initial": 0.05, "max": 0.3}) as (
        _,
        tunnel,
    ):
        await lines.wait("✗ Tunnel error for app: cannot reach the server")
        for number in range(3):
            async with running_server(listen={"host": LOOPBACK, "port": port}):
                await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel", count=number + 1)
                await lines.until(lambda: tunnel.state == "online")
                assert tunnel.reconnects == number
                assert tunnel.last_error is None
            await lines.wait("✗ Tunnel disconnected: app", by="tunneld.tunnel", count=number + 1)
            assert tunnel.last_error is not None
            assert tunnel.connected_at is None


async def test_two_agents_of_one_name_do_not_hammer(lines: Book, service: str) -> None:
    async with (
        running_server() as server,
        running_agent(url_of(server), service) as (_, first),
    ):
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
        async with running_agent(url_of(server), service) as (_, second):
            await lines.wait("✗ Tunnel error for app: replaced", by="tunneld.tunnel")
            assert first.state == "failed"
            assert "another machine" in lines.find("✗ Tunnel error for app: replaced")[0].text
            await lines.until(lambda: second.state == "online")
            await settled(lambda: len(server.connections) == 1)
            assert len(lines.find("✓ Tunnel established: app", by="tunneld.tunnel")) == 2


async def test_a_service_that_is_down_shows_and_comes_back(lines: Book, folder: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # a check that only connects
            head = await read_head(reader)
            writer.write(reply(b"", status="500 Broken") if broken and b"/healthz" in head else reply(b"ok"))
        writer.close()

    broken = False
    port, path = free_port(), folder / "agent.yaml"
    one: dict[str, Any] = {"name": "app", "service": f"http://{LOOPBACK}:{port}", "service_check": {"interval": 0.05}}
    async with (
        running_server() as server,
        running_agent(url_of(server), "", path=path, tunnels=[one]) as (agent, tunnel),
    ):
        await lines.wait("The service of app fails: connection refused")
        await lines.until(lambda: tunnel.state == "degraded")
        assert tunnel.last_error == "connection refused"
        up = await asyncio.start_server(handler, LOOPBACK, port)
        await lines.wait("The service of app answers again.")
        assert tunnel.state == "online"
        assert tunnel.last_error is None
        up.close()
        await lines.wait("The service of app fails", count=2)
        assert tunnel.state == "degraded"
        up = await asyncio.start_server(handler, LOOPBACK, port)
        await lines.wait("The service of app answers again.", count=2)
        broken = True
        one["service_check"]["path"] = "/healthz"
        written(path, agent_settings(url_of(server), "", {"tunnels": [one]}))
        await agent.reload()
        await lines.wait("The service of app fails: GET /healthz was answered 500")
        assert tunnel.state == "degraded"
        up.close()


@pytest.mark.timeout(60)
async def test_a_storm_leaves_nothing_behind(lines: Book, service: str) -> None:
    """200 requests at random, visitors and connections cut at random: afterwards every count is where it was."""
    seed = random.Random(20)
    async with (
        running_server(limits={"hold": 2}) as server,
        relay(port_of(server)) as wire,
        running_agent(f"ws://{LOOPBACK}:{wire.port}", service, reconnect={"initial": 0.02, "max": 0.1}) as (
            agent,
            tunnel,
        ),
    ):
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
        loop = asyncio.get_running_loop()

        async def visit(number: int) -> None:
            try:
                reader, writer = await asyncio.open_connection(LOOPBACK, port_of(server))
            except OSError:
                return
            path = seed.choice(["/events", "/plain"])
            writer.write(f"GET /t/app{path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
            try:
                async with asyncio.timeout(seed.random() * 0.3):
                    while await reader.read(65536):
                        pass
            except (TimeoutError, OSError):
                pass
            if seed.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()

        async def storm(count: int) -> None:
            visits = set()
            for number in range(count):
                visits.add(loop.create_task(visit(number)))
                await asyncio.sleep(0.005)
                if seed.random() < 0.05:
                    wire.cut()
                if seed.random() < 0.02:
                    tunnel.reconnect()
                for request_id in [one.request_id for one in agent.exchanges() if seed.random() < 0.02]:
                    agent.cancel(request_id)
            await asyncio.gather(*visits)

        async def calm() -> tuple[int, int]:
            async with asyncio.timeout(20):
                while (
                    agent.exchanges()
                    or server.ingress.exchanges
                    or server.ingress.connections
                    or tunnel.state != "online"
                    or len(server.connections) != 1
                    or tunnel.proxy.pool.idle
                ):
                    await asyncio.sleep(0.02)
                (session,) = [connection.session for connection in server.connections]
                while session is not None and session.in_use:
                    await asyncio.sleep(0.02)
                gc.collect()
                return len(tasks()), descriptors()

        await storm(20)
        before = await calm()
        await storm(200)
        async with asyncio.timeout(10):
            while (now := await calm()) > before:
                await asyncio.sleep(0.05)
        assert now <= before
        assert server.ingress.budget.held == 0
        known = server.registry.find("app")
        assert known is not None
        assert not known.keepalive_changed


async def test_a_proxy_that_has_no_route_for_a_moment_costs_no_session(lines: Book) -> None:
    """It answers 404 for a server that restarts or moves, as many do; the agent does not wait `reconnect.max`."""
    routed, refused = True, asyncio.Event()

    async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if routed:
            await wire.serve(reader, writer)
            return
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        refused.set()

    settings = {"reconnect": {"initial": 0.05, "max": 60}}
    async with running_server() as server, relay(port_of(server)) as wire:
        proxy = await asyncio.start_server(front, LOOPBACK, 0)
        port = proxy.sockets[0].getsockname()[1]
        async with running_agent(f"ws://{LOOPBACK}:{port}", **settings) as (_, tunnel):
            await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
            mark, routed = lines.mark(), False
            wire.cut()
            await refused.wait()
            routed = True
            entry = await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel", after=mark)
            assert entry.fields["resumed"]
            assert tunnel.outages.last is not None
        proxy.close()
