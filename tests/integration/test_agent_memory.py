"""The agent's `limits.memory`: what it holds for services and for the tunnel is bounded, whoever does not read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_resume import bench, request, state
from tests.support.tunnelled import read_head, reply, serving, tunnelled, tunnelled_to, turns_until
from tunneld.agent.pool import Pool
from tunneld.protocol.windows import PIECE

MIB = 1 << 20


async def _lazy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never reads the body of an upload; answers everything else."""
    head = await read_head(reader)
    if head.startswith(b"POST"):
        await asyncio.Event().wait()
    writer.write(reply(b"here"))
    await writer.drain()


@pytest.mark.parametrize(
    ("window", "goes"), [(256 << 10, False), (512 << 10, True)], ids=["three windows fit", "two do not"]
)
async def test_services_that_do_not_read_cost_the_longest_stalled_its_stream_and_nobody_else(
    folder: Path, caplog: pytest.LogCaptureFixture, *, window: int, goes: bool
) -> None:
    limits, path = {"memory": MIB}, folder / "s.sock"
    async with (
        serving(_lazy, path=path) as address,
        tunnelled_to(address, limits=limits, stream_window=window) as made,
    ):
        budget = made.proxy.holders.budget
        visitors, uploads, most = [], [], 0
        for number in range(6):
            visitors.append(made.open("POST", f"/{number}", [("Content-Length", str(64 * MIB))], ended=False))
            uploads.append(asyncio.get_running_loop().create_task(visitors[-1].upload(bytes(4 * MIB), 64 << 10)))
            await visitors[-1].until(lambda: not visitors[-1].could_write)  # it waits for a service that reads nothing
            for _ in range(100):
                await asyncio.sleep(0)
                most = max(most, budget.held)
        gone = [visitor.reason == "limit" for visitor in visitors]
        assert any("is over limits.memory: the agent holds too much" in line for line in caplog.messages) is goes
        assert any(gone) is goes  # where three fit, the others' sources are read a piece at a time before anybody goes
        assert sorted(gone, reverse=True) == gone  # the longest stalled first
        assert not gone[-1]
        assert MIB / 2 < most <= MIB + (64 << 10)
        assert budget.held <= MIB
        assert (await made.get("/")).body == b"here"
        for visitor, upload in zip(visitors, uploads, strict=True):
            upload.cancel()
            visitor.stream.cancel("visitor")
        await turns_until(lambda: budget.held == 0)


async def test_over_the_limit_a_new_request_is_answered_503() -> None:
    async with tunnelled(_lazy, limits={"memory": MIB}) as made:
        made.proxy.holders.budget.add(2 * MIB)
        answer = await made.get("/")
        made.proxy.holders.budget.sub(2 * MIB)
        assert answer.status == 503
        assert answer.headers["x-tunnel-error"] == "over_memory"
        assert made.ended == {"limit": 1}


class _NoConnection(Pool):
    def want(self, user: Any) -> None:
        """There is none for a long time."""


async def test_uploads_that_wait_for_a_connection_count() -> None:
    async with tunnelled(_lazy, limits={"memory": MIB}) as made:
        made.proxy.pool = _NoConnection(asyncio.get_running_loop(), made.proxy.origin)
        visitor = made.open("POST", "/", [("Content-Length", str(MIB))], ended=False)
        upload = asyncio.get_running_loop().create_task(visitor.upload(bytes(MIB)))
        await turns_until(lambda: made.proxy.holders.budget.held >= 256 << 10)  # its window
        assert made.proxy.holders.budget.held <= (256 << 10) + 32 * PIECE
        upload.cancel()
        visitor.stream.cancel("visitor")
        await turns_until(lambda: made.proxy.holders.budget.held == 0)


async def test_an_outage_with_many_downloads_stays_within_the_limit_and_they_go_on() -> None:
    """Near the limit each source is read one piece at a time; what is over it nobody holds."""
    limit = 4 * MIB
    async with bench(limits={"memory": limit}) as it:
        it.relay.rate = 2_000_000
        opened = [asyncio.ensure_future(request(it, "GET", "/down/2000")) for _ in range(60)]
        await asyncio.gather(*opened)
        it.relay.refuse = True
        it.relay.cut()
        await state(it, "resuming")
        budget, most = it.agent.holders.budget, 0
        for _ in range(30):
            await asyncio.sleep(0.01)
            most = max(most, budget.held)
        assert limit / 2 < most <= limit + (256 << 10)  # one read of one source is what may go over
        assert it.agent.active_streams
        it.relay.refuse, it.relay.rate = False, 0
        await state(it, "online")
        for _, _, writer in [one.result() for one in opened]:
            writer.transport.abort()
        async with asyncio.timeout(10):
            while it.agent.active_streams:
                await asyncio.sleep(0.01)
