"""Recovery by real daemons: agents that are killed and started again, services that restart, servers that do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.daemons import Pair
from tests.support.resumable import ResumableService, read_events
from tests.support.sockets import short_dir

pytestmark = pytest.mark.timeout(60)


class World:
    """A pair of daemons as processes, and the service behind them."""

    pair: Pair
    service: ResumableService

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []

    async def visit(self, path: str, *lines: str) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        """(head, reader, writer) of a visitor."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.pair.server.port)
        self.writers.append(writer)
        writer.write("\r\n".join([f"GET /t/app{path} HTTP/1.1", "Host: h", *lines, "", ""]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert " 200 " in head, head
        return head, reader, writer

    async def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Something that waits, beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(None, functools.partial(call, *args))

    async def outages(self) -> dict[str, Any]:
        """Of the tunnel, as the server's API says."""
        async with httpx.AsyncClient() as client:
            said = await client.get(f"http://127.0.0.1:{self.pair.server.admin_port}/api/v1/tunnels/app")
        return dict(said.json()["outages"])

    async def kill_agent(self) -> None:
        """SIGKILL, and a new one."""
        self.pair.agent.process.kill()
        await self.run(self.pair.agent.process.wait)
        await self.run(self.pair.agent.restart)


@asynccontextmanager
async def world(
    *, server: dict[str, Any] | None = None, sse: dict[str, Any] | None = None, judge: bool = True
) -> AsyncIterator[World]:
    it = World()
    it.service = ResumableService()
    await it.service.start()
    with short_dir() as folder:
        tunnels = {"app": {"service": it.service.url, "sse": sse or {}}}
        it.pair = await it.run(
            functools.partial(
                Pair,
                Path(folder),
                tunnels,
                server={"resume": {"grace": "60s"}, **(server or {})},
                agent={"drain_timeout": "2s"},
            )
        )
        try:
            yield it
            if judge:
                await it.run(it.pair.close)
        finally:
            await it.run(it.pair.discard)
            for writer in it.writers:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await it.service.close()


async def fails(reader: asyncio.StreamReader) -> None:
    """The body ends, and not cleanly."""
    data = b""
    try:
        async with asyncio.timeout(15):
            while piece := await reader.read(65536):
                data = data[-100:] + piece
    except ConnectionResetError:
        return
    assert not data.endswith(b"0\r\n\r\n"), "a clean end"
    raise AssertionError("the connection was closed in order")


@pytest.mark.parametrize("path", ["/resume", "/repeat"])
async def test_an_agent_that_is_killed_and_started_again(path: str) -> None:
    async with world() as it:
        head, reader, writer = await it.visit(path)
        last = await read_events(reader, 20, after=0)
        for _ in range(2):
            await it.kill_agent()
            last = await read_events(reader, 20, after=last)
        request_id = next(line[21:] for line in head.split("\r\n") if line.lower().startswith("x-tunnel-request-id: "))
        streams = await it.run(it.pair.agent.streams)
        assert [one["request_id"] for one in streams] == [request_id]
        assert len(it.pair.server.process.matching("Event stream recovered")) == 2
        assert [asked for asked, _ in it.service.asked] == [path] * 3
        # Each outage is told once, and nobody is told of a loss where there was none.
        server = it.pair.server.process
        for line in ("✗ Tunnel disconnected: app", "The session of app is over"):
            assert len(server.matching(line)) == 2
        outages = await it.outages()
        assert (outages["count"], outages["streams_lost"], outages["last"]["resumed"]) == (2, 0, False)
        writer.close()
        await it.run(it.pair.server.process.wait_line, "🔌 SSE client disconnected")


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_twenty_agents_are_killed_in_turn() -> None:
    async with world() as it:
        visitors = [await it.visit("/resume") for _ in range(5)]
        for _, reader, _ in visitors:  # what has no id yet cannot go on
            last = await read_events(reader, 1, after=0)
        for _ in range(20):
            await it.kill_agent()
            ends = [await read_events(reader, 20, after=last) for _, reader, _ in visitors]
            assert len(set(ends)) == 1
            last = ends[0]
        for _, _, writer in visitors:
            writer.close()


async def test_what_does_not_resume_fails_visibly() -> None:
    async with world() as it:
        visitors = {path: await it.visit(path) for path in ("/anew", "/none", "/empty", "/plain")}
        last = await read_events(visitors["/anew"][1], 5, after=0)
        assert last == 5
        it.pair.agent.process.kill()
        await it.run(it.pair.agent.process.wait)
        await it.run(it.pair.agent.restart)
        for _, reader, writer in visitors.values():
            await fails(reader)
            writer.close()
        assert (await it.outages())["streams_lost"] == len(visitors)
        assert [asked for asked in it.service.asked if asked[1] is not None] == [("/anew", str_last(it))]


def str_last(it: World) -> str:
    """The id that was asked for after the loss."""
    found = [last for path, last in it.service.asked if path == "/anew" and last is not None]
    assert len(found) == 1
    return found[0]


async def test_the_grace_is_over() -> None:
    async with world(server={"resume": {"grace": "500ms"}}) as it:
        _, reader, writer = await it.visit("/resume")
        await read_events(reader, 5, after=0)
        it.pair.agent.process.kill()
        await it.run(it.pair.agent.process.wait)
        await fails(reader)
        writer.close()
        assert len(it.service.asked) == 1


async def test_an_agent_that_stops_ends_it_at_once() -> None:
    async with world() as it:
        _, reader, writer = await it.visit("/resume")
        await read_events(reader, 5, after=0)
        loop = asyncio.get_running_loop()
        it.pair.agent.process.signal(15)
        await it.run(it.pair.agent.process.wait_line, "no new streams are taken")
        it.pair.agent.process.signal(15)  # leave at once
        before = loop.time()
        await fails(reader)
        assert loop.time() - before < 10
        await it.run(it.pair.agent.process.wait)
        writer.close()
        assert len(it.service.asked) == 1


async def test_a_service_that_restarts_is_asked_to_go_on_where_that_is_wished() -> None:
    async with world(sse={"recover": True}) as it:
        _, reader, writer = await it.visit("/resume")
        last = await read_events(reader, 5, after=0)
        for _ in range(3):
            it.service.stop()
            await asyncio.sleep(0.3)  # the time it is away
            await it.service.start()
            last = await read_events(reader, 20, after=last)
        writer.close()
        assert len(it.service.asked) == 4


async def test_a_service_that_restarts_breaks_its_streams_else() -> None:
    async with world() as it:
        _, reader, writer = await it.visit("/resume")
        await read_events(reader, 5, after=0)
        it.service.stop()
        await fails(reader)
        await it.service.start()
        writer.close()


async def test_when_the_server_restarts_the_visitors_id_reaches_the_service() -> None:
    async with world() as it:
        _, reader, writer = await it.visit("/resume")
        last = await read_events(reader, 5, after=0)
        it.pair.server.process.kill()
        await it.run(it.pair.server.process.wait)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 24)
        writer.close()
        mark = it.pair.agent.process.mark()
        await it.run(it.pair.server.restart)
        await it.run(functools.partial(it.pair.agent.process.wait_line, "✓ Tunnel established", after=mark, timeout=20))
        _, reader, writer = await it.visit("/resume", f"Last-Event-ID: {last}")
        await read_events(reader, 5, after=last)
        assert it.service.asked[-1] == ("/resume", str(last))
        writer.close()


async def test_a_visitor_that_left_comes_back_to_its_stream() -> None:
    async with world(sse={"replay": "30s"}) as it:
        head, reader, writer = await it.visit("/resume")
        cookie = next(line[12:].partition(";")[0] for line in head.split("\r\n") if line.startswith("Set-Cookie: "))
        last = await read_events(reader, 5, after=0)
        for _ in range(5):
            writer.transport.abort()
            _, reader, writer = await it.visit("/resume", f"Cookie: {cookie}", f"Last-Event-ID: {last}")
            last = await read_events(reader, 10, after=last)
        assert it.service.asked == [("/resume", None)]
        writer.transport.abort()
        await it.kill_agent()  # and its stream goes on while nobody is there
        _, reader, writer = await it.visit("/resume", f"Cookie: {cookie}", f"Last-Event-ID: {last}")
        await read_events(reader, 10, after=last)
        assert [path for path, _ in it.service.asked] == ["/resume"] * 2
        streams = await it.run(it.pair.agent.streams)
        assert len(streams) == 1
        writer.close()
        line = (await it.run(it.pair.server.process.wait_line, "↩ SSE client is back")).text
        assert json.loads(line)["request_id"] == streams[0]["request_id"]
