"""Each side notices by itself that the other is gone, in time and never early; and both let go of everything."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from tests.support.daemons import Pair
from tests.support.processes import Process
from tests.support.running import Book, port_of, relay, running_agent, running_server, settled
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK
from tests.support.tunnelled import read_head, serving
from tests.support.visitors import Curl

INTERVAL, TIMEOUT = 1.0, 0.5
SLACK = 1.0  # a shared machine's scheduling
EARLY = 0.1  # a byte of the last ping may have come this long before the line went dead
BEAT = {"heartbeat": {"interval": INTERVAL, "timeout": TIMEOUT}}


@pytest.fixture
async def quiet() -> AsyncIterator[str]:
    """A service whose every answer is an event stream of one event and then nothing."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: hello\n\n")
        await reader.read()

    async with serving(handler) as address:
        yield address


class Listener:
    """A visitor of an event stream that knows how it ended."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self.came = asyncio.Event()
        self.fault: Exception | None = None
        self.task = asyncio.get_running_loop().create_task(self._listen(client, url))

    async def _listen(self, client: httpx.AsyncClient, url: str) -> None:
        try:
            async with client.stream("GET", url, headers={"Accept": "text/event-stream"}) as answer:
                async for _ in answer.aiter_raw():
                    self.came.set()
        except httpx.HTTPError as error:
            self.fault = error


async def test_bytes_that_vanish_are_noticed_by_both_sides(lines: Book, quiet: str) -> None:
    async with (
        running_server(heartbeat={"min": 0.1}, limits={"hold": 0}, resume={"grace": 0}) as server,
        relay(port_of(server)) as wire,
        running_agent(f"ws://{LOOPBACK}:{wire.port}", quiet, **BEAT) as (agent, tunnel),
        httpx.AsyncClient(timeout=20) as client,
    ):
        states: list[tuple[str, float]] = []
        agent.subscribe(lambda event: states.append((event.get("state", ""), monotonic())))
        await lines.wait("💓 Heartbeat acknowledged for app", count=2)
        visitor = Listener(client, f"http://{LOOPBACK}:{port_of(server)}/t/app/x")
        await visitor.came.wait()
        mark, since = lines.mark(), wire.blackhole()
        await lines.wait("💔 Heartbeat failed for app", by="tunneld.link", after=mark, count=2)
        for by in ("tunneld.tunnel", "tunneld.tunnels"):
            entry = await lines.wait("✗ Tunnel disconnected: app", by=by, after=mark)
            assert TIMEOUT - EARLY <= entry.at - since <= INTERVAL + TIMEOUT + SLACK
        await visitor.task
        assert isinstance(visitor.fault, httpx.RemoteProtocolError | httpx.ReadError)
        cleaned = await lines.wait("🧹 Cleaned up stream:", by="tunneld.ingress", after=mark)
        assert cleaned.fields["reason"] == "peer_lost"
        cleaned = await lines.wait("🧹 Cleaned up stream:", by="tunneld.agent", after=mark)
        assert cleaned.fields["reason"] == "peer_lost"
        assert not agent.exchanges()
        assert not server.ingress.exchanges
        await settled(lambda: not server.connections)
        heard = [state for state, _ in states if state]
        assert heard[heard.index("resuming") :][:2] == ["resuming", "offline"]
        assert tunnel.reconnects == 0
        wire.restore()
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnels", after=mark)
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel", after=mark)
        await settled(lambda: tunnel.state == "online")
        assert tunnel.reconnects == 1
        await settled(lambda: len(server.connections) == 1)


async def test_the_silence_is_measured_from_the_last_byte(lines: Book) -> None:
    async with (
        running_server(heartbeat={"min": 0.1}) as server,
        relay(port_of(server)) as wire,
        running_agent(f"ws://{LOOPBACK}:{wire.port}", **BEAT),
    ):
        await lines.wait("💓 Heartbeat acknowledged for app", count=2)
        (connection,) = server.connections
        mark = lines.mark()
        wire.blackhole()
        last = connection.link.pipe.last_heard
        entry = await lines.wait("✗ Tunnel disconnected: app", by="tunneld.tunnels", after=mark)
        assert INTERVAL + TIMEOUT <= entry.at - last <= INTERVAL + TIMEOUT + SLACK


async def test_an_outage_is_as_long_as_the_silence_that_told_of_it(lines: Book) -> None:
    async with (
        running_server(heartbeat={"min": 0.1}) as server,
        relay(port_of(server)) as wire,
        running_agent(f"ws://{LOOPBACK}:{wire.port}", **BEAT) as (_, tunnel),
    ):
        await lines.wait("💓 Heartbeat acknowledged for app", count=2)
        mark = lines.mark()
        wire.blackhole()
        await lines.wait("💔 Heartbeat failed for app", by="tunneld.link", after=mark, count=2)
        wire.restore()
        for by in ("tunneld.tunnel", "tunneld.tunnels"):
            entry = await lines.wait("✓ Tunnel established: app", by=by, after=mark)
            assert entry.fields["resumed"]
            assert entry.fields["outage_s"] >= INTERVAL + TIMEOUT
        assert tunnel.outages.last is not None
        assert tunnel.outages.last.seconds >= INTERVAL + TIMEOUT


async def test_a_short_silence_is_shown_and_forgiven(lines: Book, quiet: str) -> None:
    async with (
        running_server(heartbeat={"min": 0.1}) as server,
        relay(port_of(server)) as wire,
        running_agent(f"ws://{LOOPBACK}:{wire.port}", quiet, heartbeat={"interval": 0.4, "timeout": 8}) as (
            agent,
            tunnel,
        ),
        httpx.AsyncClient(timeout=20) as client,
    ):
        await lines.wait("💓 Heartbeat acknowledged for app", count=2)
        visitor = Listener(client, f"http://{LOOPBACK}:{port_of(server)}/t/app/x")
        await visitor.came.wait()
        news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        agent.subscribe(news.put_nowait)
        wire.blackhole()
        event = await news.get()
        while event["type"] != "tunnel":
            event = await news.get()
        assert (event["state"], event["was"]) == ("resuming", "online")
        wire.restore()
        event = await news.get()
        while event["type"] != "tunnel":
            event = await news.get()
        assert (event["state"], event["was"]) == ("online", "resuming")
        assert len(agent.exchanges()) == 1  # the stream lived through it
        assert tunnel.reconnects == 0
        assert not lines.find("💔")
        visitor.task.cancel()


async def test_a_reset_is_noticed_at_once(lines: Book, quiet: str) -> None:
    async with (
        running_server() as server,
        relay(port_of(server)) as wire,
        running_agent(f"ws://{LOOPBACK}:{wire.port}", quiet) as (_, tunnel),
    ):
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
        mark, since = lines.mark(), monotonic()
        wire.cut()
        for by in ("tunneld.tunnel", "tunneld.tunnels"):
            assert (await lines.wait("✗ Tunnel disconnected: app", by=by, after=mark)).at - since < SLACK
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel", after=mark)
        assert monotonic() - since < SLACK  # the first dial is at once
        assert tunnel.reconnects == 1


# -- processes that stand still


@pytest.fixture
async def pair(folder: Path) -> AsyncIterator[tuple[Pair, SampleService]]:
    def make() -> tuple[Pair, SampleService]:
        service = SampleService()
        settings = {**BEAT, "reconnect": {"initial": 0.1, "max": 1}}
        server = {"heartbeat": {"min": 0.1}, "limits": {"hold": 0.1}, "resume": {"grace": 0}}
        return Pair(folder, {"app": service.url}, server=server, agent=settings), service

    made, service = await asyncio.to_thread(make)
    yield made, service
    await asyncio.to_thread(made.close)
    await asyncio.to_thread(service.stop)


async def noticed(process: Process, since: float, mark: int) -> None:
    for text in ("💔 Heartbeat failed for app", "✗ Tunnel disconnected: app"):
        line = await asyncio.to_thread(process.wait_line, text, after=mark)
        assert TIMEOUT - EARLY <= line.at - since <= INTERVAL + TIMEOUT + SLACK


@pytest.mark.parametrize("who", ["agent", "server"])
async def test_a_process_that_stands_still_is_noticed_and_comes_back(
    pair: tuple[Pair, SampleService], who: str
) -> None:
    made, service = pair
    frozen = made.agent.process if who == "agent" else made.server.process
    other = made.server.process if who == "agent" else made.agent.process
    await asyncio.to_thread(other.wait_line, "💓 Heartbeat acknowledged for app", count=2)
    curl = Curl(made.url("app", "/quiet?id=q"), "-H", "Accept: text/event-stream")
    await asyncio.to_thread(service.wait_open, "q")
    await asyncio.to_thread(curl.wait_line, "data: hello")
    marks, since = (frozen.mark(), other.mark()), monotonic()
    frozen.pause()
    await noticed(other, since, marks[1])
    if who == "server":
        status = await asyncio.to_thread(made.agent.ask, "status")
        (tunnel,) = status["tunnels"]
        assert tunnel["state"] in ("offline", "connecting")
        assert tunnel["active_streams"] == 0
        assert tunnel["connected_s"] is None
        await asyncio.to_thread(service.wait_closed, "q")
        os.kill(curl.pid, 15)  # its server cannot tell it
    else:
        assert await asyncio.to_thread(curl.wait) in (18, 56)
    frozen.resume()
    for process, mark in zip((frozen, other), marks, strict=True):
        await asyncio.to_thread(process.wait_line, "✓ Tunnel established: app", after=mark)
    await asyncio.to_thread(service.wait_closed, "q")
    async with httpx.AsyncClient() as client:
        answer = await client.get(made.url("app", "/small"))
        assert answer.status_code == 200
    status = await asyncio.to_thread(made.agent.ask, "status")
    (tunnel,) = status["tunnels"]
    assert (tunnel["state"], tunnel["reconnects"], tunnel["active_streams"]) == ("online", 1, 0)
    curl.discard()
