"""A resume that is itself cut: after each of its messages, at byte offsets of the whole exchange, and split there.

One recorded resume says how many bytes go each way until the first DATA of the new connection; an offset in them is
tried by the seed, or each of them with `--thorough`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.world import World
from tests.support.witness import KINDS, Seen, Witness

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]
#: Offsets that a run tries of each direction unless it is to be thorough.
SOME = 60


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Dials follow each other quickly here: a cut costs one."""
    async with World(request.config.getoption("seed"), agent={"reconnect": {"initial": "10ms", "max": "20ms"}}) as made:
        yield made


class Listener:
    """A visitor that gets events through all of it."""

    def __init__(self, world: World, name: str) -> None:
        self.witness = Witness(world.server.port)
        self.events = 0
        self._news = asyncio.Event()
        self.witness.on_event = self._event
        self.task: asyncio.Task[Seen] = asyncio.ensure_future(self.witness.sse(1 << 30, name=name, gap=0.005))

    def _event(self, number: int) -> None:
        self.events = number
        self._news.set()

    async def more(self, count: int) -> None:
        """Wait for so many events more; what is wrong with one is raised here."""
        wanted = self.events + count
        while self.events < wanted:
            self._news.clear()
            waiting = asyncio.ensure_future(self._news.wait())
            await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED, timeout=10)
            if not waiting.done():
                waiting.cancel()
                assert self.task.done(), f"no event for 10 s, after {self.events}"
                raise AssertionError(f"the visitor's stream ended: {self.task.result()}")

    async def leave(self) -> None:
        self.witness.leave()
        await self.task


class Others:
    """A download, an upload and a long poll beside the events.

    Args:
        anew: each begins again when it is whole, until `over`. Not where new requests are refused for a while.
    """

    def __init__(self, world: World, *, anew: bool = True) -> None:
        self._world = world
        self._over = not anew
        self.tasks = [asyncio.ensure_future(self._again(kind)) for kind in KINDS if kind != "sse"]

    async def _again(self, kind: str) -> int:
        turns = 0
        while not (turns and self._over):
            seen = await self._world.visit(kind)[1]
            assert seen.outcome == "whole", f"{kind}: {seen}"
            turns += 1
        return turns

    async def over(self) -> None:
        """Wait for those under way; each kind must have been whole, and at least once."""
        self._over = True
        assert all(await asyncio.wait_for(asyncio.gather(*self.tasks), 30))


async def recorded(world: World, listener: Listener) -> dict[str, int]:
    """The bytes each way of one whole resume, until an event came through it."""
    world.relay.cut()
    mark = world.agent.process.mark()
    await world.back(mark)
    await listener.more(2)
    return dict(world.relay.passed)


def offsets(seed: int, direction: str, until: int, thorough: bool) -> list[int]:
    everything = range(1, until + 1)
    return list(everything) if thorough else sorted(random.Random(f"{seed}{direction}").sample(everything, SOME))


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_cut_at_byte_offsets(world: World, direction: str, seed: int, request: pytest.FixtureRequest) -> None:
    listener = Listener(world, f"cut-{direction}")
    await listener.more(1)
    until = (await recorded(world, listener))[direction]
    others = Others(world)
    for at in offsets(seed, direction, until, request.config.getoption("thorough")):
        dials = world.relay.dials
        world.relay.cut_next = (direction, at)
        world.relay.cut()
        while world.relay.dials < dials + 2:  # the one that is cut, and the one after it
            world.relay.accepted.clear()
            await asyncio.wait_for(world.relay.accepted.wait(), 10)
            world.relay.cut_next = None
        await listener.more(2)
    await others.over()
    await listener.leave()
    assert world.opened(f"cut-{direction}") == 1


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_split_at_byte_offsets(world: World, direction: str, seed: int, request: pytest.FixtureRequest) -> None:
    listener = Listener(world, f"split-{direction}")
    await listener.more(1)
    until = (await recorded(world, listener))[direction]
    others = Others(world)
    for at in offsets(seed, direction, until, request.config.getoption("thorough")):
        world.relay.split_next = (direction, at)
        world.relay.accepted.clear()
        world.relay.cut()
        await asyncio.wait_for(world.relay.accepted.wait(), 10)
        await listener.more(2)
    world.relay.split_next = None
    await others.over()
    await listener.leave()
    assert world.opened(f"split-{direction}") == 1


async def test_cut_again_and_again_before_the_agent_says_anything(world: World) -> None:
    """`connected` is lost many times in a row: every token that it carried is lost with it."""
    listener = Listener(world, "storm")
    others = Others(world, anew=False)
    await listener.more(10)  # by then the others are under way, and far from their ends
    for _ in range(30):
        dials = world.relay.dials
        world.relay.cut_next = ("down", 180)  # the upgrade's answer, and the beginning of `connected`
        world.relay.cut()
        while world.relay.dials < dials + 3:
            world.relay.accepted.clear()
            await asyncio.wait_for(world.relay.accepted.wait(), 10)
        world.relay.cut_next = None
    await listener.more(3)
    await others.over()
    await listener.leave()
    assert world.opened("storm") == 1
