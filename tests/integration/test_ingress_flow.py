"""Backpressure both ways, slow visitors, memory, and the comments that keep quiet events alive."""

from __future__ import annotations

import asyncio
import socket

from tests.support.front import Client, Front, front
from tests.support.loops import on_both_loops
from tunneld.protocol.messages import HeartbeatSettings, SseSettings

POST = b"POST /t/demo/up HTTP/1.1\r\nHost: h\r\n"
WINDOW = 256 * 1024


async def slow_client(it: Front) -> Client:
    """A visitor that reads nothing by itself, with a small receive buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", it.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    client = Client(reader, writer)
    it.clients.append(client)
    return client


def pour(served, most: int) -> int:
    """Send as long as the stream takes it; returns the bytes."""
    total = 0
    while total < most and served.stream.send(b"x" * 16_384):
        total += 16_384
    return total + 16_384


async def turns(count: int = 200) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@on_both_loops
async def test_an_upload_stops_at_the_window_and_goes_on():
    size = 3_000_000
    async with front() as it:
        client = await it.client()
        client.send(POST + b"Content-Length: %d\r\n\r\n" % size)
        served = await it.served()
        served.greedy = False
        client.send(b"y" * size)
        connection = next(iter(it.ingress.connections))
        async with asyncio.timeout(10):
            while connection._reading:
                await asyncio.sleep(0)
        await served.until(lambda: len(served.body) >= WINDOW)
        assert len(served.body) == WINDOW
        exchange = next(iter(it.ingress.exchanges.values()))
        assert exchange.bytes_in < 3 * WINDOW
        served.greedy = True
        served.take()
        assert len(await served.whole()) == size
        served.answer()
        assert (await client.answer()).status == 200


@on_both_loops
async def test_a_slow_visitor_holds_no_more_than_its_window_and_others_go_on():
    async with front(limits={"stream_window_max": WINDOW}) as it:
        slow = await slow_client(it)
        slow.get("/t/demo/big")
        served = await it.served()
        served.stream.send_head(200, [])
        while not served.stream.pending:
            pour(served, 16_384)
            await turns(20)
        budget = it.ingress.budget
        assert 0 < budget.held <= WINDOW + WINDOW // 1024 * 16  # what its pieces cost is in it
        held = budget.held
        client = await it.client()
        for _ in range(3):
            client.get("/t/demo/")
            (await it.served()).answer()
            assert (await client.answer()).status == 200
        assert budget.held == held
        got = 0
        served.stream.send_end()
        await slow.head()
        async with asyncio.timeout(10):
            while piece := await slow.chunk():
                got += len(piece)
        assert got > WINDOW
        assert served.stream.pending == 0
        assert budget.held == 0


@on_both_loops
async def test_a_visitor_that_takes_nothing_is_reset_after_stall(caplog):
    async with front(limits={"stall": 0.2}) as it:
        slow = await slow_client(it)
        slow.get("/t/demo/big")
        served = await it.served()
        served.stream.send_head(200, [])
        while not served.stream.pending:
            pour(served, 16_384)
            await turns(20)
        assert await served.cancel_reason() == "limit"
        assert [record.limit for record in caplog.records if "is over limits.stall: " in record.message] == ["stall"]
        await it.settle()


async def test_over_the_memory_limit_the_longest_stalled_goes(caplog):
    async with front(limits={"stall": 60}) as it:
        it.ingress.budget.limit = 300_000  # of two windows, less what the kernel takes
        stalled = []
        for number in range(2):
            slow = await slow_client(it)
            slow.get(f"/t/demo/{number}")
            served = await it.served()
            served.stream.send_head(200, [])
            stalled.append(served)
            while not served.stream.pending and served.reason is None and stalled[0].reason is None:
                pour(served, 16_384)
                await turns(20)
        assert await stalled[0].cancel_reason() == "limit"
        assert stalled[1].reason is None
        assert it.ingress.budget.held <= 300_000
        assert [record.limit for record in caplog.records if "is over limits." in record.message] == ["memory"]


@on_both_loops
async def test_events_come_at_once_and_whole_under_their_prefix():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/sse")
        served = await it.served()
        served.events(("Content-Length", "1000"), ("X-Accel-Buffering", "yes"))
        status, pairs = await client.head()
        headers = {name.lower(): value for name, value in pairs}
        assert status == 200
        assert headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers
        served.stream.send(b"event: endpoint\ndata: /messages?id=1\n\nda")
        assert await client.chunk() == b"event: endpoint\ndata: /t/demo/messages?id=1\n\n"
        served.stream.send(b"ta: x\n")
        served.stream.send(b"\nid: 1\n")
        assert await client.chunk() == b"data: x\n\n"
        served.stream.send_end()
        assert await client.chunk() == b"id: 1\n"
        assert await client.chunk() == b""


async def test_encoded_events_pass_as_they_are():
    async with front(sse=SseSettings(keepalive=0.05)) as it:
        client = await it.client()
        client.get("/t/demo/sse")
        served = await it.served()
        served.events(("Content-Encoding", "gzip"))
        _, pairs = await client.head()
        assert ("X-Accel-Buffering", "no") in pairs
        served.stream.send(b"\x1f\x8b")
        assert await client.chunk() == b"\x1f\x8b"
        assert not it.tunnel.keepalive_changed
        assert next(iter(it.ingress.exchanges.values())).kind == "sse"


@on_both_loops
async def test_a_comment_comes_when_events_are_quiet_and_never_inside_one():
    async with front(sse=SseSettings(keepalive=0.05, max_event=1024)) as it:
        client = await it.client()
        client.get("/t/demo/sse")
        served = await it.served()
        served.events()
        await client.head()
        assert await client.chunk() == b": keepalive\n\n"
        served.stream.send(b"data: half")
        assert await client.chunk() == b": keepalive\n\n"
        served.stream.send(b"x" * 2000)
        oversize = await client.chunk()
        assert oversize == b"data: half" + b"x" * 2000
        timer = next(iter(it.ingress.exchanges.values()))._events._timer
        async with asyncio.timeout(10):
            while next(iter(it.ingress.exchanges.values()))._events._timer is timer:
                await asyncio.sleep(0.01)
        served.stream.send(b"\n\n")
        assert await client.chunk() == b"\n\n"
        assert await client.chunk() == b": keepalive\n\n"


async def test_keepalives_change_live_and_can_be_off():
    async with front(sse=SseSettings(keepalive=0)) as it:
        client = await it.client()
        client.get("/t/demo/sse")
        served = await it.served()
        served.events()
        await client.head()
        exchange = next(iter(it.ingress.exchanges.values()))
        assert exchange._events._timer is None
        it.tunnel.retune(HeartbeatSettings(30, 10), SseSettings(keepalive=0.05))
        assert await client.chunk() == b": keepalive\n\n"
        it.tunnel.retune(HeartbeatSettings(30, 10), SseSettings(keepalive=0))
        assert exchange._events._timer is None
        served.stream.send_end()
        while await client.chunk():
            pass


async def test_events_push_the_comment_back_without_touching_the_timer():
    async with front(sse=SseSettings(keepalive=30)) as it:
        client = await it.client()
        client.get("/t/demo/sse")
        served = await it.served()
        served.events()
        await client.head()
        exchange = next(iter(it.ingress.exchanges.values()))
        timer = exchange._events._timer
        for _ in range(5):
            served.stream.send(b"data: 1\n\n")
            await client.chunk()
        assert exchange._events._timer is timer
        assert not timer.cancelled()
