"""Every limit hit at a real ingress: its answer, its Retry-After, its count; and others notice nothing."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import InvalidStatus

from tests.integration.test_ingress_flow import pour, slow_client, turns
from tests.support.front import Client, Front, front
from tests.support.loops import on_both_loops
from tests.support.running import book, port_of, running_agent, running_server, settled, url_of
from tests.support.sockets import LOOPBACK
from tunneld.server.principals import Limits, Principal

POST = b"POST /t/demo/up HTTP/1.1\r\nHost: h\r\n"


async def answered(it: Front, client: Client, *lines: str) -> None:
    """A request that is let through."""
    client.get("/t/demo/", *lines)
    (await it.served()).answer()
    assert (await client.answer()).status == 200


async def refused(client: Client, code: str, *lines: str) -> int:
    """A request that is not; returns its status."""
    client.get("/t/demo/", *lines)
    answer = await client.answer()
    assert answer.headers["x-tunnel-error"] == code
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status


async def test_requests_a_second_of_a_tunnel():
    async with front(limits={"tunnel_requests": 2}) as it:
        client = await it.client()
        for _ in range(2):
            await answered(it, client)
        assert await refused(client, "rate_limited") == 429
        assert it.ingress.guard.hits["tunnel_requests"] == 1
        client.get("/healthz")  # the connection goes on, and our own addresses are not the tunnel's
        assert (await client.answer()).status == 200
        it.ingress.configure(
            it.config.model_copy(update={"limits": it.config.limits.model_copy(update={"tunnel_requests": 0.0})})
        )
        await answered(it, client)


async def test_an_address_behind_a_trusted_proxy_is_the_visitors():
    async with front(limits={"address_requests": 1, "address_streams": 1}, trusted_proxies=["127.0.0.1"]) as it:
        client, other = await it.client(), await it.client()
        await answered(it, client, "X-Forwarded-For: 192.0.2.1")
        assert await refused(client, "rate_limited", "X-Forwarded-For: 192.0.2.1") == 429
        await answered(it, client, "X-Forwarded-For: 192.0.2.2")
        client.get("/t/demo/", "X-Forwarded-For: 2001:db8::1")
        held = await it.served()
        await asyncio.sleep(1.05)  # a token comes back: what follows is refused for its streams
        assert await refused(other, "too_many_from_address", "X-Forwarded-For: 2001:db8::2") == 429
        assert it.ingress.guard.hits.all() == {"address_requests": 1, "address_streams": 1}
        held.answer()
        assert (await client.answer()).status == 200


@on_both_loops
async def test_connections_of_an_address():
    async with front(limits={"address_connections": 2}) as it:
        one, two, three = [await it.client() for _ in range(3)]
        await answered(it, one)
        await answered(it, two)
        assert await refused(three, "too_many_from_address") == 429
        assert await three.closed() == b""
        assert it.ingress.guard.hits["address_connections"] == 1
        await two.leave()
        while it.ingress.guard.connections["127.0.0.1"] > 1:
            await asyncio.sleep(0)
        await answered(it, await it.client())
        await answered(it, one)
    assert not it.ingress.guard.connections


@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
async def test_a_body_that_pauses_for_too_long(framing: bytes):
    async with front(limits={"body_timeout": 0.2, "min_rate": 0}) as it:
        client = await it.client()
        client.send(POST + framing)
        served = await it.served()
        begun = monotonic()
        for _ in range(3):  # slow, but it comes
            await asyncio.sleep(0.1)
            client.send(b"x" if framing.startswith(b"C") else b"1\r\nx\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (408, "request_timeout")
        assert monotonic() - begun > 0.45
        assert await served.cancel_reason() == "limit"
        assert bytes(served.body) == b"xxx"
        assert await client.closed() == b""
        assert it.ingress.guard.hits.all() == {"body_timeout": 1}
        await client.leave()
        await it.settle()


async def test_a_body_that_comes_too_slowly():
    async with front(limits={"body_timeout": 1, "min_rate": 1000}) as it:
        client, steady = await it.client(), await it.client()
        client.send(POST + b"Content-Length: 1000\r\n\r\n")
        served = await it.served()
        steady.send(POST + b"Content-Length: 10000\r\n\r\n")
        other = await it.served()
        for _ in range(10):  # no pause of the one is too long; the other is quick enough all the while
            await asyncio.sleep(0.15)
            if served.reason is None:
                client.send(b"x")
            steady.send(b"x" * 1000)
        assert len(await other.whole()) == 10_000
        other.answer()
        assert (await steady.answer()).status == 200
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (408, "request_timeout")
        assert await served.cancel_reason() == "limit"
        assert 2 <= len(served.body) < 10
        assert it.ingress.guard.hits.all() == {"min_rate": 1}
        await client.leave()
        await steady.leave()
        await it.settle()


@pytest.mark.parametrize("rate", [1, 1 << 40])
async def test_a_visitor_that_takes_too_little_is_reset(caplog: pytest.LogCaptureFixture, rate: int):
    async with front(limits={"stall": 0.5, "min_rate": rate}) as it:
        slow = await slow_client(it)
        slow.get("/t/demo/big")
        served = await it.served()
        served.stream.send_head(200, [])
        while not served.stream.pending:
            pour(served, 16_384)
            await turns(20)
        begun = monotonic()
        while served.reason is None and monotonic() - begun < 1.2:
            try:
                await slow.reader.readexactly(16_384)
            except ConnectionResetError:  # it may come while it reads
                break
            await asyncio.sleep(0.05)
        if rate == 1:
            assert served.reason is None
            assert not it.ingress.guard.hits.all()
            slow.crash()
        else:
            assert await served.cancel_reason() == "limit"
            assert it.ingress.guard.hits.all() == {"min_rate": 1}
            assert any("is over limits.min_rate: its visitor takes too little" in line for line in caplog.messages)
        await it.settle()


async def test_a_body_may_pause_once_its_answer_has_begun_and_while_it_is_held():
    async with front(limits={"body_timeout": 0.1}) as it:
        client = await it.client()
        client.send(POST + b"Content-Length: 2\r\n\r\n")
        served = await it.served()
        served.stream.send_head(200, [])
        assert (await client.head())[0] == 200
        await asyncio.sleep(0.3)
        client.send(b"ab")
        assert await served.whole() == b"ab"
        served.stream.send_end()
        assert await client.chunk() == b""
        other = await it.client()
        other.send(POST + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
        held = await it.served()
        held.greedy = False  # the service takes nothing: that is not the visitor's fault
        await asyncio.sleep(0.3)
        held.greedy = True
        held.take()
        assert len(await held.whole()) == 3_000_000
        held.answer()
        assert (await other.answer()).status == 200
        assert not it.ingress.guard.hits.all()


@on_both_loops
async def test_bytes_a_second_of_a_tunnel_down_and_up():
    size, rate = 1_500_000, 1_000_000
    async with front(limits={"tunnel_bytes": rate}) as it:
        client = await it.client()
        begun = monotonic()
        client.get("/t/demo/")
        served = await it.served()
        served.stream.send_head(200, [("Content-Length", str(size))])
        served.stream.send(b"x" * size)
        served.stream.send_end()
        assert len((await client.answer()).body) == size
        took = monotonic() - begun
        # a burst of a second's worth, and a window's that is under way
        assert (size - rate - 262_144) / rate * 0.9 < took < 5
        begun = monotonic()
        client.send(POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        served = await it.served()
        assert len(await served.whole()) == size
        assert (size - 600_000) / rate * 0.9 < monotonic() - begun < 10
        served.answer()
        assert (await client.answer()).status == 200


async def test_a_token_has_limits_of_its_own():
    async with front() as it:
        own = Limits(streams=1, requests_per_s=2.0, bytes_per_s=1_000_000)
        it.tunnel.principal = Principal("t1", "one of many", limits=own)
        client, other = await it.client(), await it.client()
        client.get("/t/demo/")
        held = await it.served()
        assert await refused(other, "too_many_streams") == 503
        assert await refused(other, "rate_limited") == 429
        assert it.ingress.guard.hits.all() == {"token_streams": 1, "token_requests": 1}
        begun = monotonic()
        held.stream.send_head(200, [])
        held.stream.send(b"x" * 1_500_000)
        held.stream.send_end()
        assert len((await client.answer()).body) == 1_500_000
        assert monotonic() - begun > 0.2


async def test_a_websocket_keeps_to_the_bytes_of_its_tunnel_and_is_counted_as_a_stream():
    async def echo(socket):
        async for message in socket:
            await socket.send(message)

    limits = {"tunnel_bytes": 4_000_000, "address_streams": 1, "stream_window_max": "256KiB"}
    with book() as lines:
        async with serve(echo, LOOPBACK, 0, max_size=None) as service, running_server(limits=limits) as server:
            address = f"http://{LOOPBACK}:{service.sockets[0].getsockname()[1]}"
            url = f"ws://{LOOPBACK}:{port_of(server)}/t/app/"
            async with running_agent(url_of(server), address):
                await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
                async with connect(url, max_size=None, proxy=None) as socket:
                    begun = monotonic()
                    for _ in range(8):  # twice what the first second allows
                        await socket.send(b"x" * 500_000)
                        assert await socket.recv() == b"x" * 500_000
                    assert monotonic() - begun > 0.5
                    with pytest.raises(InvalidStatus) as caught:
                        await connect(url, proxy=None)
                    assert caught.value.response.status_code == 429
                guard = server.ingress.guard
                await settled(lambda: not guard._entered)
                assert guard.hits.all() == {"address_streams": 1}
                async with connect(url, proxy=None) as socket:
                    await socket.send("again")
                    assert await socket.recv() == "again"


async def test_a_websocket_goes_on_counting_as_a_connection_of_its_address():
    async def echo(socket):
        async for message in socket:
            await socket.send(message)

    async with serve(echo, LOOPBACK, 0) as service, running_server(limits={"address_connections": 1}) as server:
        url = f"ws://{LOOPBACK}:{port_of(server)}/t/app/"
        address = f"http://{LOOPBACK}:{service.sockets[0].getsockname()[1]}"
        async with running_agent(url_of(server), address) as (_, tunnel):
            await settled(lambda: tunnel.state == "online")
            guard = server.ingress.guard
            assert not guard.connections  # an agent's connection is none of a visitor's
            async with connect(url, proxy=None) as socket:
                assert guard.connections == {LOOPBACK: 1}
                with pytest.raises(InvalidStatus) as caught:
                    await connect(url, proxy=None)
                assert caught.value.response.status_code == 429
                assert caught.value.response.headers["X-Tunnel-Error"] == "too_many_from_address"
                await socket.send("still")
                assert await socket.recv() == "still"
            await settled(lambda: not guard.connections)
            async with connect(url, proxy=None) as socket:
                await socket.send("again")
                assert await socket.recv() == "again"
            await settled(lambda: not guard.connections)


async def test_a_limit_that_is_told_by_its_code_is_counted():
    async with front(limits={"max_header": 1024, "max_body": 10, "header_timeout": 0.1, "max_waiting": 1}) as it:
        client = await it.client()
        client.get("/healthz", "X: " + "x" * 2000)
        assert (await client.answer()).status == 431
        client = await it.client()
        client.send(POST + b"Content-Length: 11\r\n\r\n")
        assert (await client.answer()).status == 413
        client = await it.client()
        client.send(b"GET /")
        assert (await client.answer()).status == 408
        assert it.ingress.guard.hits.all() == {"max_header": 1, "max_body": 1, "header_timeout": 1}
