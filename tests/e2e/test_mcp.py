"""The `mcp` package's own client and server through the tunnel, both transports, both eras of the specification.

Until 2025-11-25 a disconnection is not a cancellation and a stream is taken up again by Last-Event-ID; from
2026-07-28 closing the response stream is the cancellation. The tunnel passes on what the visitor did, so both hold.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client
from mcp.client.sse import sse_client

from tests.support.apps import AppService
from tests.support.daemons import Pair
from tests.support.processes import eventually

LEGACY, MODERN = "2025-11-25", "2026-07-28"


@dataclass
class World:
    pair: Pair
    http: AppService
    sse: AppService


@pytest.fixture(scope="module")
def world(module_folder: Path) -> Iterator[World]:
    """One agent with two MCP servers: streamable HTTP and SSE."""
    http, sse = AppService("mcp-http"), AppService("mcp-sse")
    pair = Pair(module_folder, {"mcp": http.url, "old": sse.url})
    try:
        yield World(pair, http, sse)
        pair.close()
    finally:
        pair.discard()
        http.stop()
        sse.stop()


async def converse(connect: Callable[[], Client], app: AppService, name: str) -> None:
    """The whole conversation: tools, 50 calls, progress, and a call that is given up."""
    async with connect() as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["add", "steps", "wait"]
        for number in range(50):
            result = await client.call_tool("add", {"a": number, "b": 1})
            assert result.content[0].text == str(number + 1)  # type: ignore[union-attr]
        told: list[float] = []

        async def progressed(progress: float, total: float | None = None, message: str | None = None) -> None:
            told.append(progress)

        await client.call_tool("steps", {"count": 5}, progress_callback=progressed)
        assert told == [1, 2, 3, 4, 5]
        waiting = anyio.Event()

        async def waits(progress: float, total: float | None = None, message: str | None = None) -> None:
            waiting.set()

        async with anyio.create_task_group() as group:

            async def call() -> None:
                await client.call_tool("wait", {"name": name, "seconds": 60}, progress_callback=waits)

            group.start_soon(call)
            await waiting.wait()
            group.cancel_scope.cancel()
        await asyncio.to_thread(app.process.wait_line, f'"cancelled", "id": "{name}"')
        assert (await client.call_tool("add", {"a": 1, "b": 1})).content[0].text == "2"  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["legacy", MODERN])
async def test_streamable_http(world: World, mode: str) -> None:
    address = world.pair.url("mcp", "/mcp")
    await converse(lambda: Client(address, mode=mode), world.http, f"given-up-{mode}")
    await asyncio.to_thread(eventually, lambda: world.pair.agent.streams() == [], what="free of streams")


async def test_sse_transport(world: World) -> None:
    address = world.pair.url("old", "/sse")
    await converse(lambda: Client(sse_client(address), mode="legacy"), world.sse, "given-up-sse")
    await asyncio.to_thread(eventually, lambda: world.pair.agent.streams() == [], what="free of streams")


# -- by hand: what the visitor does on the wire, and what the service is told by it


def call(name: str, number: int, arguments: dict[str, Any], **meta: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    if meta:
        params["_meta"] = meta
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


def events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, message) of each event with data."""
    last = ""
    for line in lines:
        if line.startswith("id:"):
            last = line[3:].strip()
        elif line.startswith("data:") and (text := line[5:].strip()):
            yield last, json.loads(text)


def initialize(client: httpx.Client, address: str) -> dict[str, str]:
    """The handshake of 2025-11-25; the headers that the session's requests carry."""
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "hand", "version": "1"}}
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    answer = client.post(address, json=hello, headers=HEADERS)
    answer.raise_for_status()
    session = {**HEADERS, "Mcp-Session-Id": answer.headers["mcp-session-id"], "Mcp-Protocol-Version": LEGACY}
    done = client.post(address, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
    assert done.status_code == 202
    return session


def test_until_2025_11_25_a_disconnection_is_no_cancel_and_the_stream_is_taken_up_again(world: World) -> None:
    address = world.pair.url("mcp", "/mcp")
    with httpx.Client(timeout=20) as client:
        session = initialize(client, address)
        request = call("wait", 1, {"name": "kept", "seconds": 1}, progressToken="p")
        with client.stream("POST", address, json=request, headers=session) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            last = next(number for number, message in events(answer.iter_lines()) if "method" in message)
        # left before the result: the work goes on, and the result waits for the one who comes back
        world.http.process.wait_line('"finished", "id": "kept"')
        assert world.http.process.matching('"cancelled", "id": "kept"') == []
        with client.stream("GET", address, headers={**session, "Last-Event-ID": last}) as answer:
            assert answer.status_code == 200
            result = next(message for _, message in events(answer.iter_lines()) if message.get("id") == 1)
        assert result["result"]["content"][0]["text"] == "waited for kept"
        client.delete(address, headers=session)


def test_from_2026_07_28_closing_the_response_is_the_cancel(world: World) -> None:
    address = world.pair.url("mcp", "/mcp")
    meta = {
        "progressToken": "p",
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "hand", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers = {**HEADERS, "Mcp-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "wait"}
    request = call("wait", 1, {"name": "closed", "seconds": 60}, **meta)
    with httpx.Client(timeout=20) as client:
        with client.stream("POST", address, json=request, headers=headers) as answer:
            if answer.status_code != 200:
                pytest.fail(f"{answer.status_code}: {answer.read()!r}")
            world.http.process.wait_line('"started", "id": "closed"')
            next(events(answer.iter_lines()))
        world.http.process.wait_line('"cancelled", "id": "closed"')
