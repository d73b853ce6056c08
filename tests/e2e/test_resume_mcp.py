"""The `mcp` package's client with a call under way while the tunnel's connection is cut, both transports."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mcp import Client
from mcp.client.sse import sse_client

from tests.e2e.resumed import Cuttable
from tests.support.apps import AppService


@dataclass
class World:
    cuttable: Cuttable
    http: AppService
    sse: AppService


@pytest.fixture(scope="module")
def world(module_folder: Path) -> Iterator[World]:
    http, sse = AppService("mcp-http"), AppService("mcp-sse")
    made = Cuttable(module_folder, {"mcp": http.url, "old": sse.url})
    yield World(made, http, sse)
    made.close()
    http.stop()
    sse.stop()


async def call_through_cuts(connect: Callable[[], Client], world: World, app: AppService, name: str) -> None:
    """The call's result comes, and its progress, while the connection is cut three times."""
    async with connect() as client:
        started = asyncio.Event()

        async def progressed(progress: float, total: float | None = None, message: str | None = None) -> None:
            started.set()

        call = asyncio.ensure_future(
            client.call_tool("wait", {"name": name, "seconds": 1.5}, progress_callback=progressed)
        )
        await asyncio.wait_for(started.wait(), 10)
        for _ in range(3):
            await asyncio.to_thread(world.cuttable.cut)
            await asyncio.sleep(0.1)  # the cuts are spread over the call
        assert not call.done()
        result = await asyncio.wait_for(call, 15)
        assert result.content[0].text == f"waited for {name}"  # type: ignore[union-attr]
        assert (await client.call_tool("add", {"a": 1, "b": 1})).content[0].text == "2"  # type: ignore[union-attr]
    assert len(app.process.matching(f'"started", "id": "{name}"')) == 1
    assert app.process.matching(f'"cancelled", "id": "{name}"') == []


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_streamable_http(world: World, mode: str) -> None:
    address = world.cuttable.url("mcp", "/mcp")
    await call_through_cuts(lambda: Client(address, mode=mode), world, world.http, f"cut-{mode}")


async def test_sse_transport(world: World) -> None:
    address = world.cuttable.url("old", "/sse")
    await call_through_cuts(lambda: Client(sse_client(address), mode="legacy"), world, world.sse, "cut-sse")
