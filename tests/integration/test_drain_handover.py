"""Leaving: `tunnelctl drain`, SIGTERM once and twice, of real daemons with streams open."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import httpx
import pytest

from tests.support.daemons import Pair
from tests.support.services import SampleService

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def service() -> AsyncIterator[SampleService]:
    made = await asyncio.to_thread(SampleService)
    yield made
    made.stop()


class Bench:
    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    async def lines(self, path: str, seen: asyncio.Queue[str]) -> str:
        """Read a stream to its end; how it ended."""
        try:
            async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", self.pair.url("app", path)) as got:
                async for line in got.aiter_lines():
                    seen.put_nowait(line)
        except httpx.HTTPError as error:
            return type(error).__name__
        return "ended"


async def bench(folder: Path, service: SampleService, drain: str = "30s") -> Bench:
    pair = await asyncio.to_thread(
        Pair,
        folder,
        {"app": service.url},
        agent={"drain_timeout": drain},
        server={"drain_timeout": drain, "limits": {"hold": "200ms"}},
    )
    return Bench(pair)


async def test_what_is_open_after_drain_timeout_is_cancelled_shutdown(folder: Path, service: SampleService) -> None:
    it = await bench(folder, service, drain="1s")
    try:
        seen: asyncio.Queue[str] = asyncio.Queue()
        stream = asyncio.ensure_future(it.lines("/events?id=b&gap=0.1", seen))
        await seen.get()
        began = monotonic()
        it.pair.agent.process.signal(signal.SIGTERM)
        assert await stream != "ended"  # the truth is a failure
        assert 0.8 < monotonic() - began < 5
        assert await asyncio.to_thread(it.pair.agent.process.wait, 10) == 0
        await asyncio.to_thread(
            it.pair.server.process.wait_line, lambda line: "Cleaned up" in line and '"reason":"shutdown"' in line
        )
    finally:
        await asyncio.to_thread(it.pair.discard)


@pytest.mark.parametrize("role", ["agent", "server"])
async def test_a_second_sigterm_leaves_at_once(folder: Path, service: SampleService, role: str) -> None:
    it = await bench(folder, service)
    try:
        process = getattr(it.pair, role).process
        seen: asyncio.Queue[str] = asyncio.Queue()
        stream = asyncio.ensure_future(it.lines("/events?id=c&gap=0.1", seen))
        await seen.get()
        process.signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait_line, "Stopping: open streams have 30 s to end")
        for _ in range(8):
            await seen.get()  # it goes on while it drains
        began = monotonic()
        process.signal(signal.SIGTERM)
        assert await stream != "ended"
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert monotonic() - began < 5
    finally:
        await asyncio.to_thread(it.pair.discard)


async def test_an_agent_comes_back_after_the_server_has_restarted(folder: Path, service: SampleService) -> None:
    it = await bench(folder, service, drain="1s")
    try:
        agent, server = it.pair.agent.process, it.pair.server
        mark = agent.mark()
        assert await asyncio.to_thread(server.process.stop) == 0
        await asyncio.to_thread(server.restart)
        await asyncio.to_thread(agent.wait_line, "✓ Tunnel established: app", after=mark)
        async with httpx.AsyncClient(timeout=10) as client:
            assert (await client.get(it.pair.url("app", "/small"))).status_code == 200
    finally:
        await asyncio.to_thread(it.pair.discard)
