"""`limits.memory` as the kernel sees it: real daemons amid floods that nobody reads, and an outage among them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import Agent, Server
from tests.support.faults import FaultyRelay
from tests.support.flooding import KINDS, FloodingService, flooded
from tests.support.usage import resident_bytes

MIB = 1 << 20
LIMIT = 8 * MIB
#: Ten of each kind. Their windows and marks alone would let each side hold some 20 MiB.
STREAMS = 10 * len(KINDS)
#: What resident memory may grow by beside: Python's allocator takes a MiB at a time.
ALLOWANCE = MIB


class _Watched:
    """The most that agent and server were resident since `begin`, less what they were then."""

    def __init__(self, agent: Agent, server: Server) -> None:
        self._pids = agent.process.pid, server.process.pid
        self._before = self.most = self._now()

    def _now(self) -> tuple[int, int]:
        return resident_bytes(self._pids[0]), resident_bytes(self._pids[1])

    async def watch(self, seconds: float) -> None:
        """Look for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            now = self._now()
            self.most = max(self.most[0], now[0]), max(self.most[1], now[1])
            await asyncio.sleep(0.05)

    @property
    def grown(self) -> tuple[int, int]:
        """Bytes: of the agent, of the server."""
        return self.most[0] - self._before[0], self.most[1] - self._before[1]


@pytest.mark.timeout(60)  # two daemons start, and what floods them leaves others little of the cores
async def test_floods_and_an_outage_grow_neither_side_by_more_than_its_limit(folder: Path) -> None:
    common: dict[str, Any] = {"limits": {"memory": LIMIT, "stall": 0}, "log": {"level": "info"}}
    service = await asyncio.to_thread(FloodingService)
    server = agent = None
    try:
        server = await asyncio.to_thread(Server, folder, settings=common)
        async with FaultyRelay(server.port) as relay:
            dialled = {**common, "server": {"url": f"ws://127.0.0.1:{relay.port}"}}
            agent = await asyncio.to_thread(Agent, folder, server, {"t": service.url}, settings=dialled)
            async with flooded(server.port, "/t/t", len(KINDS)):  # the first of each kind loads what it needs
                await _seen(agent, len(KINDS))
            watched = _Watched(agent, server)
            async with flooded(server.port, "/t/t", STREAMS):
                await _seen(agent, STREAMS * 3 // 4)  # the longest stalled may have had to go
                await watched.watch(1.0)
                relay.refuse = True
                relay.cut()
                await watched.watch(1.5)
                relay.refuse = False
                await asyncio.to_thread(agent.process.wait_line, '"resumed":true', timeout=15)
                await watched.watch(1.0)
            await watched.watch(0.5)
    finally:
        for one in (agent, server):
            if one is not None:
                one.process.discard()
        service.stop()
    grown = [size / MIB for size in watched.grown]
    print(f"the agent grew by {grown[0]:.1f} MiB, the server by {grown[1]:.1f} MiB, of {LIMIT / MIB:.0f}")
    assert max(watched.grown) <= LIMIT + ALLOWANCE, grown


async def _seen(agent: Agent, count: int) -> None:
    """Wait until the agent has that many streams."""
    async with asyncio.timeout(20):
        while await _streams(agent) < count:
            await asyncio.sleep(0.02)


async def _streams(agent: Agent) -> int:
    reader, writer = await asyncio.open_unix_connection(str(agent.socket))
    writer.write(b"GET /v1/streams HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.count(b'"request_id"')
