"""SIGKILL, SIGSTOP and SIGCONT on each process × each kind of stream: a named outcome each. README.md has the table."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.chaos.world import SILENCE, World
from tests.support import usage
from tests.support.daemons import Agent
from tests.support.processes import NotSeen
from tests.support.witness import KINDS, Seen

pytestmark = pytest.mark.timeout(60)

RESUME: dict[str, Any] = {"grace": "20s", "buffer": "256KiB"}


async def visits(world: World, seed: int) -> dict[str, asyncio.Task[Seen]]:
    """One visitor of each kind, under way."""
    world.relay.rate = 6_000_000
    made = {}
    for kind in KINDS:
        one, visit = world.visit(kind)
        made[kind] = asyncio.ensure_future(visit)
        await one.begun.wait()
    await asyncio.sleep(0.3 + random.Random(seed).uniform(0, 0.2))  # into the middle of each
    assert not any(task.done() for task in made.values())
    return made


async def outcomes(made: dict[str, asyncio.Task[Seen]], timeout: float = 20.0) -> dict[str, str]:
    seen = await asyncio.wait_for(asyncio.gather(*made.values()), timeout)
    told = {kind: one.outcome for kind, one in zip(made, seen, strict=True)}
    print(told)
    return told


def expect(seen: dict[str, str], **wanted: str) -> None:
    assert seen == wanted, f"{seen}, expected {wanted}"


WHOLE = dict.fromkeys(KINDS, "whole")
#: The session is gone: a body that began is cut, and where no head was sent yet, the answer says what happened.
LOST = {"sse": "aborted", "download": "aborted", "upload": "502 peer_lost", "poll": "502 peer_lost"}
#: The same where a fresh session came within grace: events that have ids go on in the same response.
RECOVERED = {**LOST, "sse": "whole"}
#: The service itself broke.
BROKE = {"sse": "aborted", "download": "aborted", "upload": "502 service_broke", "poll": "502 service_broke"}


async def test_an_agent_killed_and_started_again(seed: int) -> None:
    """SSE with ids goes on in the same response; everything else fails, and says so."""
    async with World(seed) as world:
        made = await visits(world, seed)
        world.agent.process.kill()
        await asyncio.to_thread(world.agent.restart)
        expect(await outcomes(made), **RECOVERED)
        assert world.opened("sse1") == 2, "the service was asked again with Last-Event-ID"


async def test_an_agent_killed_for_good(seed: int) -> None:
    async with World(seed, resume={"grace": "1s", "buffer": "256KiB"}) as world:
        made = await visits(world, seed)
        world.agent.process.kill()
        expect(await outcomes(made), **LOST)


async def test_a_server_killed_and_started_again(seed: int) -> None:
    """The visitors' own connections are gone; they come back, and their Last-Event-ID reaches the service."""
    async with World(seed) as world:
        made = await visits(world, seed)
        mark = world.agent.process.mark()
        world.server.process.kill()
        expect(await outcomes(made), **dict.fromkeys(KINDS, "aborted"))
        await asyncio.to_thread(world.server.restart)
        await world.back(mark)
        await asyncio.to_thread(world.service.wait_closed, "sse1")
        assert (await world.witness().sse(3, name="again")).outcome == "whole"


async def test_a_service_killed(seed: int) -> None:
    """Without `sse.recover` nobody may guess what a service that died would have said."""
    async with World(seed) as world:
        made = await visits(world, seed)
        world.service.process.kill()
        expect(await outcomes(made), **BROKE)


@pytest.mark.parametrize("who", ["agent", "server", "service"])
async def test_a_nap_that_nobody_notices(who: str, seed: int) -> None:
    """Shorter than interval + timeout: nothing was lost, so nothing resumes."""
    async with World(seed) as world:
        made = await visits(world, seed)
        process = getattr(world, who).process
        mark = world.agent.process.mark()
        process.pause()
        await asyncio.sleep(SILENCE / 3)
        process.resume()
        expect(await outcomes(made), **WHOLE)
        if who == "service":
            assert not world.agent.process.matching("✗ Tunnel disconnected", after=mark)


@pytest.mark.parametrize("who", ["agent", "server"])
async def test_a_long_sleep_within_grace(who: str, seed: int) -> None:
    """The other side knows after interval + timeout, keeps the session, and goes on when the sleeper wakes."""
    async with World(seed) as world:
        made = await visits(world, seed)
        sleeper = getattr(world, who).process
        other = world.server.process if who == "agent" else world.agent.process
        mark = other.mark()
        sleeper.pause()
        try:
            await world.line(other, "✗ Tunnel disconnected: app", after=mark, timeout=5)
            await asyncio.sleep(0.5)
        finally:
            sleeper.resume()
        await world.line(other, "✓ Tunnel established: app", after=mark)
        expect(await outcomes(made), **WHOLE)


async def test_a_sleep_longer_than_grace(seed: int) -> None:
    async with World(seed, resume={"grace": "1s", "buffer": "256KiB"}) as world:
        made = await visits(world, seed)
        mark = world.server.process.mark()
        world.agent.process.pause()
        try:
            seen = await outcomes(made)
        finally:
            world.agent.process.resume()
        expect(seen, **LOST)
        await world.line(world.server.process, "✓ Tunnel established: app", after=mark)
        assert (await world.witness().poll(0.1, name="after")).outcome == "whole"


async def test_without_grace_a_cut_is_the_end(seed: int) -> None:
    async with World(seed, resume={"grace": "0", "buffer": "256KiB"}) as world:
        made = await visits(world, seed)
        world.relay.cut()
        expect(await outcomes(made), **LOST)


async def test_a_second_agent_takes_the_name(seed: int) -> None:
    """A fresh hello from another process while the old connection still looks alive: the newer one serves at once."""
    async with World(seed) as world:
        made = await visits(world, seed)
        mark = world.server.process.mark()
        world.agent.process.pause()
        second = await asyncio.to_thread(
            Agent,
            world.agent.folder,
            world.server,
            {"app": world.service.url},
            name="second",
            settings={"drain_timeout": 0},
        )
        try:
            await world.line(world.server.process, "✓ Tunnel established: app", after=mark)
            assert (await world.witness().poll(0.1, name="newer")).outcome == "whole"
            expect(await outcomes(made), **RECOVERED)
        finally:
            world.agent.process.resume()
            try:
                await asyncio.to_thread(second.process.stop)
            except NotSeen:
                second.process.discard()
                raise


async def test_a_session_that_a_killed_agent_left_takes_no_new_bytes(seed: int) -> None:
    """Buffers meet resume: an upload into an outage stops at its windows, memory does not grow with it."""
    async with World(seed) as world:
        world.relay.refuse = True
        one = world.witness()
        upload = asyncio.ensure_future(one.upload(64 << 20))
        await one.begun.wait()
        await asyncio.sleep(0.2)
        before = usage.resident_bytes(world.server.process.pid)
        world.relay.cut()
        await asyncio.sleep(0.7)  # an outage into which the visitor pours
        sent = one.seen.sent
        grown = usage.resident_bytes(world.server.process.pid) - before
        await asyncio.sleep(0.3)
        assert one.seen.sent == sent, "the visitor is not held back"
        assert grown < 16 << 20
        world.relay.refuse = False
        assert (await asyncio.wait_for(upload, 30)).outcome == "whole"
