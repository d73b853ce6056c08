"""Exchanges that are cancelled at any moment leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random

from tests.support.joined import Visitor
from tests.support.loops import on_both_loops
from tests.support.tunnelled import Tunnelled, read_head, reply, serving, tunnelled_to, turns_until
from tunneld.wire.closewatch import CloseWatch
from tunneld.wire.sockets import reset

_COUNT = 2000
_AT_ONCE = 60


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Does what the path asks for, and many things at that."""
    while True:
        head = await read_head(reader)
        what = head.split(b" ", 2)[1]
        if what == b"/small":
            writer.write(reply(b"x" * 100))
        elif what == b"/hang":
            await reader.read()
            return
        elif what == b"/reset":
            reset(writer.transport)  # type: ignore[arg-type]
            return
        elif what == b"/events":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"9\r\ndata: 1\n\n\r\n")
                await asyncio.sleep(0.002)
            return
        elif what == b"/big":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n")
            for _ in range(300):
                writer.write(b"y" * 10_000)
                await writer.drain()
        if b"chunked" in head:
            return  # closes with the upload unread
        if what == b"/early":
            writer.write(reply(b"too much", status="413 No", extra="Connection: close\r\n"))
            return


async def _one(made: Tunnelled, rng: random.Random) -> None:
    path = rng.choice(["/small", "/hang", "/reset", "/events", "/big", "/early"])
    uploads = rng.random() < 0.4
    visitor: Visitor = made.open("POST" if uploads else "GET", path, [], ended=not uploads, greedy=rng.random() < 0.7)
    for _ in range(rng.choice([0, 0, 1, 2, 5, 30])):
        if uploads and not visitor.stop and not visitor.stream.closed and visitor.stream.pending < 100_000:
            visitor.stream.send(b"z" * rng.choice([1, 1000, 20_000]))
        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003]))
    how = rng.random()
    if how < 0.6:
        visitor.stream.cancel(rng.choice(["visitor", "peer_lost"]))
    elif how < 0.8:
        made.proxy.cancel(visitor.stream.request_id)
    elif how < 0.9:
        visitor.stream.stop()
    elif uploads and not visitor.stop and not visitor.stream.closed:
        visitor.stream.send_end()
        await asyncio.sleep(0.002)
    visitor.stream.cancel("visitor")


@on_both_loops
async def test_two_thousand_exchanges_cancelled_anywhen_leave_nothing() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(False)  # debug mode makes 2,000 of them a minute's work
    rng = random.Random(20)
    async with serving(_service) as address, tunnelled_to(address) as made:
        await made.get("/small")
        CloseWatch.of(loop)
        gc.collect()
        before = _descriptors()
        tasks = len(asyncio.all_tasks())
        for _ in range(_COUNT // _AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(_one(made, rng))
        await turns_until(lambda: not made.proxy.exchanges)
        await turns_until(lambda: not made.joined.agent.streams and not made.joined.server.streams)
        await turns_until(lambda: not made.proxy.pool.connecting)
        for deadlines in (made.proxy.connects, made.proxy.answers, made.proxy.stalls):
            assert not len(deadlines)
        assert made.proxy.pool.open == made.proxy.pool.idle
        assert not len(CloseWatch.of(loop))
        assert sum(made.ended.values()) == made.proxy.totals.streams + made.ended.get("refused", 0)
        await turns_until(lambda: len(asyncio.all_tasks()) <= tasks + made.proxy.pool.idle)
        # each connection that is kept has two ends here
        await turns_until(lambda: _descriptors() <= before + 2 * made.proxy.pool.idle)
