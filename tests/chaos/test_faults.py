"""Each fault of the network × each kind of stream: whole, byte for byte. README.md has the table."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.chaos.world import World
from tests.support.witness import KINDS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """One world for the module: none of these faults outlives itself."""
    async with World(request.config.getoption("seed")) as made:
        yield made


async def rst(world: World) -> None:
    world.relay.cut()


async def fin(world: World) -> None:
    world.relay.cut(reset=False)


async def agent_gone(world: World) -> None:
    """The agent's side is reset; the server's stays open and silent: only the new hello tells."""
    world.relay.half_open("agent")


async def server_gone(world: World) -> None:
    """The server's side is reset; the agent's stays open and silent: only its heartbeat tells."""
    mark = world.agent.process.mark()
    world.relay.half_open("server")
    await world.back(mark)


async def blackhole(world: World) -> None:
    mark = world.agent.process.mark()
    world.relay.blackhole()
    try:
        await world.line(world.agent.process, "✗ Tunnel disconnected: app", after=mark)
    finally:
        world.relay.heal()
    await world.back(mark)


async def refused(world: World) -> None:
    mark = world.agent.process.mark()
    world.relay.refuse = True
    world.relay.cut()
    await asyncio.sleep(0.3)  # the outage
    world.relay.refuse = False
    await world.back(mark)


async def duplicated(world: World) -> None:
    """What the new connection says is played to the server again: a stale hello, which harms nothing."""
    mark = world.agent.process.mark()
    world.relay.duplicate = True
    world.relay.cut()
    await world.back(mark)
    world.relay.duplicate = False


async def twice(world: World) -> None:
    """A cut in the middle of what is sent again."""
    world.relay.cut()
    world.relay.accepted.clear()
    await world.relay.accepted.wait()
    await asyncio.sleep(0.02)
    world.relay.cut()


async def slow(world: World) -> None:
    world.relay.delay = 0.05
    await asyncio.sleep(0.3)
    world.relay.cut()
    await asyncio.sleep(0.3)
    world.relay.delay = 0.0


async def throttled(world: World) -> None:
    world.relay.rate = 1_000_000
    await asyncio.sleep(0.3)
    world.relay.cut()
    await asyncio.sleep(0.3)
    world.relay.rate = 0


async def crumbs(world: World) -> None:
    """Every piece is written in crumbs, and cut between them."""
    world.relay.split = 7
    world.relay.cut()
    await asyncio.sleep(0.2)
    world.relay.cut()
    world.relay.split = 0


FAULTS: dict[str, Callable[[World], Awaitable[None]]] = {
    one.__name__: one
    for one in (rst, fin, agent_gone, server_gone, blackhole, refused, duplicated, twice, slow, throttled, crumbs)
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_stream_is_whole_after(world: World, fault: str, kind: str, seed: int) -> None:
    dice = random.Random(f"{seed} {fault} {kind}")
    world.relay.rate = 8_000_000 if kind in ("download", "upload") else 0
    before = world.relay.dials
    one, visit = world.visit(kind)
    visitor = asyncio.ensure_future(visit)
    await one.begun.wait()
    for _ in range(2):
        await asyncio.sleep(dice.uniform(0.05, 0.3))  # when it happens
        if not visitor.done():
            await world.up()
            await FAULTS[fault](world)
    world.relay.rate = 0
    seen = await asyncio.wait_for(visitor, 30)
    assert seen.outcome == "whole", (
        f"{seen} --seed {seed}\n{world.agent.process.tail(8)}\n{world.server.process.tail(8)}"
    )
    assert world.relay.dials > before, "nothing happened"


async def test_all_kinds_at_once_through_every_fault_in_turn(world: World, seed: int) -> None:
    dice = random.Random(f"{seed} all")
    visitors = [asyncio.ensure_future(world.visit(kind)[1]) for kind in KINDS * 3]
    for fault in dice.sample(sorted(FAULTS), len(FAULTS)):
        await world.up()
        await FAULTS[fault](world)
        await asyncio.sleep(dice.uniform(0, 0.1))
    seen = await asyncio.wait_for(asyncio.gather(*visitors), 30)
    assert {one.outcome for one in seen} == {"whole"}, f"{seen} --seed {seed}"


async def test_the_counts_return_to_where_they_were(world: World) -> None:
    async def calm() -> None:
        while await asyncio.to_thread(world.agent.streams):
            await asyncio.sleep(0.05)

    await asyncio.wait_for(calm(), 10)
