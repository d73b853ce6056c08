"""Each fault of the network × a visitor's WebSocket: every message once and in order, and a clean close at the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.test_faults import FAULTS
from tests.chaos.world import World
from tests.support.socketed import closed, echo
from tests.support.ws_raw import BINARY, FIN, RawSocket, raw_client, raw_service, told_closes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]

COUNT = 400


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """One world for the module, before a service that says all back."""
    seed = request.config.getoption("seed")
    async with raw_service(echo) as service, World(seed, tunnel={"service": service}) as made:
        yield made


def _message(number: int) -> bytes:
    return b"%d " % number + bytes(range(256)) * (number * 7 % 20)


async def _talk(socket: RawSocket) -> None:
    for number in range(COUNT):
        socket.send(FIN | BINARY, _message(number))
        await socket.writer.drain()
        await asyncio.sleep(0.003)  # its pace


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_websocket_is_whole_after(world: World, fault: str, seed: int) -> None:
    dice = random.Random(f"{seed} {fault} websocket")
    before = world.relay.dials
    socket = await raw_client(f"ws://127.0.0.1:{world.server.port}/t/app/")
    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        talking = group.create_task(_talk(socket))

        async def break_it() -> None:
            for _ in range(2):
                await asyncio.sleep(dice.uniform(0.05, 0.3))  # when it happens
                await FAULTS[fault](world)

        breaking = group.create_task(break_it())
        for number in range(COUNT):
            got = b""
            while len(got) < len(_message(number)):
                found = await socket.receive()
                assert found is not None, f"ended ({socket.end}) at {number} --seed {seed}"
                got += found[1]
            assert got == _message(number), f"at {number} --seed {seed}"
        await talking
        await breaking
        socket.got.clear()
        assert told_closes(await closed(socket)) == [1000]
    assert world.relay.dials > before, "nothing happened"
