"""Who leaves, and what the other side is told: visitors, services, agents, operators, and the server itself."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.support.front import Front, front
from tests.support.loops import on_both_loops
from tunneld.protocol.messages import SseSettings

POST = b"POST /t/demo/up HTTP/1.1\r\nHost: h\r\n"


async def begin_events(it: Front, *lines: str, path: str = "/t/demo/sse", client=None):
    """(client, served) with one event passed."""
    client = client or await it.client()
    client.get(path, *lines)
    served = await it.served()
    served.events()
    served.stream.send(b"data: 1\n\n")
    await client.head()
    assert await client.chunk() == b"data: 1\n\n"
    return client, served


@on_both_loops
async def test_a_visitor_of_events_that_leaves_cancels_the_stream():
    async with front() as it:
        for crash in (False, True):
            client, served = await begin_events(it)
            if crash:
                client.crash()
            else:
                await client.leave()
            assert await served.cancel_reason() == "visitor"
            await it.settle()


async def test_leaving_and_the_end_are_logged_without_the_query(caplog):
    caplog.set_level(logging.DEBUG, "tunneld")
    async with front() as it:
        client, served = await begin_events(it, path="/t/demo/sse?token=secret")
        await client.leave()
        await served.cancel_reason()
        client = await it.client()
        client.get("/t/demo/plain?token=secret")
        plain = await it.served()
        plain.answer()
        await client.answer()
    messages = {(record.message, record.levelname) for record in caplog.records}
    assert (f"🔌 SSE client disconnected: {served.request.request_id}", "INFO") in messages
    assert (f"🧹 Cleaned up stream: {served.request.request_id}", "INFO") in messages
    assert (f"🧹 Cleaned up stream: {plain.request.request_id}", "DEBUG") in messages
    ended = next(r for r in caplog.records if r.message.endswith(served.request.request_id) and "🧹" in r.message)
    assert (ended.tunnel, ended.reason, ended.path, ended.kind) == ("demo", "visitor", "/sse", "sse")
    assert "secret" not in str([vars(record) for record in caplog.records])


@on_both_loops
async def test_a_visitor_leaves_while_its_upload_is_paused():
    async with front() as it:
        client = await it.client()
        client.send(POST + b"Content-Length: 100000000\r\n\r\n")
        served = await it.served()
        served.greedy = False
        await it.send_until_paused(client)
        await client.writer.drain()
        client.crash()
        assert await served.cancel_reason() == "visitor"
        await it.settle()


@on_both_loops
async def test_a_visitor_leaves_with_a_pipelined_request_behind():
    async with front() as it:
        for extra in (1, 1000):
            client, served = await begin_events(it)
            client.send(b"GET /t/demo/next HTTP/1.1\r\nHost: h\r\n\r\n" * extra)
            await client.writer.drain()
            await client.leave()
            assert await served.cancel_reason() == "visitor"
            await it.settle()
        assert it.requests.empty()


@on_both_loops
async def test_a_visitor_leaves_in_the_middle_of_a_head_or_a_body():
    async with front() as it:
        client = await it.client()
        client.send(b"GET /t/demo/ HTTP/1.1\r\nHos")
        await client.writer.drain()
        await client.leave()
        await it.settle()
        client = await it.client()
        client.send(POST + b"Content-Length: 10\r\n\r\nhalf")
        served = await it.served()
        await client.leave()
        assert await served.cancel_reason() == "visitor"
        await it.settle()


@pytest.mark.parametrize("framing", ["chunks", "length", "close"])
@on_both_loops
async def test_a_body_that_breaks_is_never_ended_cleanly(framing):
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", version="1.0" if framing == "close" else "1.1")
        served = await it.served()
        served.stream.send_head(200, [("Content-Length", "100")] if framing == "length" else [])
        served.stream.send(b"some")
        await client.head()
        served.stream.cancel("service")
        await client.reset()
        await it.settle()


async def test_an_answer_of_another_size_than_it_said_is_broken():
    async with front() as it:
        for body in (b"short", b"longer than ten"):
            client = await it.client()
            client.get("/t/demo/")
            served = await it.served()
            served.stream.send_head(200, [("Content-Length", "10")])
            served.stream.send(body)
            served.stream.send_end()
            await client.head()
            await client.reset()
        await it.settle()


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("service", 502, "service_broke"),
        ("limit", 504, "service_timeout"),
        ("operator", 503, "cancelled"),
        ("shutdown", 503, "shutdown"),
        ("refused", 503, "refused"),
    ],
)
async def test_a_cancel_before_the_head_is_an_answer(reason, status, code):
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/")
        (await it.served()).stream.cancel(reason)
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (status, code)
        assert ("retry-after" in answer.headers) == (reason in ("shutdown", "refused"))
        client.get("/healthz")
        assert (await client.answer()).status == 200


@on_both_loops
async def test_an_agent_that_dies_ends_its_streams():
    async with front() as it:
        events, _ = await begin_events(it)
        waiting = await it.client()
        waiting.get("/t/demo/")
        await it.served()
        it.lose_agent()
        answer = await waiting.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "peer_lost")
        await events.reset()
        assert not it.ingress.exchanges


# -- waiting for a tunnel -----------------------------------------------------------------------------------


@on_both_loops
async def test_a_visitor_waits_for_a_tunnel_that_comes_back():
    async with front() as it:
        it.lose_agent()
        client = await it.client()
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        other = await it.client()
        other.get("/t/demo/get")
        async with asyncio.timeout(10):
            while [exchange.state for exchange in it.ingress.exchanges.values()] != ["waiting"] * 2:
                await asyncio.sleep(0)
        it.connect_agent()
        for _ in range(2):
            served = await it.served()
            served.answer(body=await served.whole() or b"got")
        assert {(await client.answer()).body, (await other.answer()).body} == {b"body", b"got"}


async def test_a_tunnel_offline_for_longer_than_hold_is_503():
    async with front(limits={"hold": 0.1}) as it:
        it.lose_agent()
        for _ in range(2):
            answer = await it.get("/t/demo/")
            assert (answer.status, answer.headers["x-tunnel-error"]) == (503, "tunnel_offline")
            assert int(answer.headers["retry-after"]) > 0
        assert not it.tunnel._waiting


async def test_who_waits_is_bounded_and_may_leave():
    async with front(limits={"max_waiting": 1}) as it:
        it.lose_agent()
        first = await it.client()
        first.get("/t/demo/")
        async with asyncio.timeout(10):
            while not it.tunnel._waiting:
                await asyncio.sleep(0)
        answer = await it.get("/t/demo/")
        assert (answer.status, answer.headers["x-tunnel-error"]) == (503, "too_many_waiting")
        await first.leave()
        await it.settle()
        assert not it.tunnel._waiting


async def test_a_request_that_crossed_the_agents_goaway_waits_for_the_next():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/")
        served = await it.served()
        it.tunnel.leave(it.agent, it.ingress.exchanges[served.request.request_id].started)
        served.stream.cancel("refused")
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while not it.tunnel._waiting:
                await asyncio.sleep(0)
        it.connect_agent()
        again = await it.served()
        assert again.request.request_id == served.request.request_id
        again.answer()
        assert (await client.answer()).status == 200


async def test_a_full_tunnel_is_503():
    async with front(agent=False) as it:
        it.connect_agent(max_streams=1)
        await begin_events(it)
        answer = await it.get("/t/demo/")
        assert (answer.status, answer.headers["x-tunnel-error"]) == (503, "too_many_streams")
        assert answer.headers["retry-after"] == "1"


# -- operators ----------------------------------------------------------------------------------------------


@on_both_loops
async def test_an_operators_cancel_ends_events_cleanly_and_tells_that_client_to_stop():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/sse?a", "Authorization: Bearer x", "Cookie: a=b")
        served = await it.served()
        served.events(("Access-Control-Allow-Origin", "https://app"), ("Vary", "Origin"), ("X-Else", "y"))
        served.stream.send(b"data: 1\n\ndata: half")
        await client.head()
        await client.chunk()
        served.stream.cancel("operator")
        assert await client.chunk() == b""
        assert await client.reader.readexactly(2) == b"\r\n"

        client.get("/t/demo/sse?a", "Authorization: Bearer x", "Cookie: a=b")
        answer = await client.answer()
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == "https://app"
        assert answer.headers["vary"] == "Origin"
        assert "x-else" not in answer.headers
        assert answer.headers["x-tunnel-request-id"]
        assert [name for name, _ in answer.pairs].count("Date") == 1
        for path, *lines in (
            ("/t/demo/sse?b", "Authorization: Bearer x", "Cookie: a=b"),
            ("/t/demo/sse?a", "Authorization: Bearer y", "Cookie: a=b"),
            ("/t/demo/sse?a", "Authorization: Bearer x"),
        ):
            client.get(path, *lines)
            (await it.served()).answer()
            assert (await client.answer()).status == 200


async def test_an_operator_on_the_servers_own_side(caplog):
    caplog.set_level(logging.INFO, "tunneld")
    async with front() as it:
        client, served = await begin_events(it)
        it.ingress.exchanges[served.request.request_id].cancel("operator")
        assert await client.chunk() == b""
        assert await served.cancel_reason() == "operator"
        plain = await it.client()
        plain.get("/t/demo/")
        served = await it.served()
        served.stream.send_head(200, [])
        await plain.head()
        it.ingress.exchanges[served.request.request_id].cancel("operator")
        await plain.reset()
    assert "🛑 Cancelling stream:" in caplog.text


# -- the server's own end -----------------------------------------------------------------------------------


@on_both_loops
async def test_draining_lets_requests_finish_and_then_ends_what_is_left():
    async with front() as it:
        idle = await it.client()
        idle.get("/healthz")
        await idle.answer()
        short = await it.client()
        short.get("/t/demo/")
        served = await it.served()
        closing = asyncio.ensure_future(it.ingress.close(10))
        assert await idle.closed() == b""
        served.answer()
        answer = await short.answer()
        assert answer.headers["connection"] == "close"
        await closing
    async with front() as it:
        events, served = await begin_events(it)
        waiting = await it.client()
        waiting.get("/t/demo/")
        await it.served()
        await it.ingress.close(0)
        assert await served.cancel_reason() == "shutdown"
        await events.reset()
        assert (await waiting.answer()).headers["x-tunnel-error"] == "shutdown"


async def test_new_requests_while_draining_are_503():
    async with front() as it:
        events, _ = await begin_events(it)
        client = await it.client()
        client.send(b"GET /t/demo/ HTTP/1.1\r\nHo")
        other = await it.client()
        other.get("/readyz")
        assert (await other.answer()).status == 200
        it.ingress.draining = True
        other.get("/readyz")
        assert (await other.answer()).status == 503
        client.send(b"st: h\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (503, "shutdown")
        await events.leave()


@on_both_loops
async def test_a_storm_of_visitors_leaves_nothing_behind():
    async with front(sse=SseSettings(keepalive=5)) as it:

        async def one(number: int) -> None:
            client = await it.client()
            if number % 3 == 0:
                client.get(f"/t/demo/{number}")
            else:
                client.send(POST + b"Content-Length: 10\r\n\r\nhalf")
            served = await it.served()
            if number % 2:
                served.events()
                served.stream.send(b"data: x\n\n" * (number % 7))
            if number % 5 == 0:
                client.crash()
                return
            if number % 5 == 1:
                served.stream.cancel("service")
            await client.leave()

        for start in range(0, 200, 50):
            await asyncio.gather(*(one(number) for number in range(start, start + 50)))
        await it.settle()
        assert not it.joined.server.streams
