"""Event streams that go on in another answer, by a real ingress; the test plays agent and service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.support.front import Client, Front, Served, front
from tunneld.protocol.messages import SseSettings

GRACE = 20.0


def event(number: int | str) -> bytes:
    return f"id: {number}\ndata: {number}\n\n".encode()


async def begun(it: Front, *lines: str, last: int = 3) -> tuple[Client, Served]:
    """A visitor who has events 1 to `last`."""
    it.tunnel.grace = it.tunnel.grace or GRACE
    client = await it.client()
    client.get("/t/demo/sse?x=1", "Accept: text/event-stream", *lines)
    served = await it.served()
    served.events()
    status, _ = await client.head()
    assert status == 200
    for number in range(1, last + 1):
        served.stream.send(event(number))
        assert await client.chunk() == event(number)
    return client, served


async def came_back(it: Front, **lost: float) -> Served:
    """The agent's session is lost and a fresh one comes: the request as it is opened again."""
    it.lose_agent(grace=lost.get("grace", GRACE))
    it.connect_agent(SSE)
    return await it.served()


SSE = SseSettings(keepalive=0)
RECOVER = SseSettings(keepalive=0, recover=True)


async def test_it_goes_on_in_the_same_response_with_the_next_event() -> None:
    async with front(sse=SSE) as it:
        client, served = await begun(it, "Last-Event-ID: 0", "X-Mine: 1")
        served.stream.send(b"id: 4\ndata: par")
        again = await came_back(it)
        assert again.request.request_id == served.request.request_id
        assert again.headers["last-event-id"] == "3"
        assert [name.lower() for name, _ in again.request.headers].count("last-event-id") == 1
        assert again.headers["x-mine"] == "1"
        assert (again.request.path, again.request.method) == ("/sse?x=1", "GET")
        again.events()
        for piece in (b"id: 3\nda", b"ta: 3\n\nid: 4", b"\ndata: 4\n\nid: 5\n"):
            again.stream.send(piece)
        assert await client.chunk() == event(4)
        again.stream.send(b"data: 5\n\n")
        assert await client.chunk() == event(5)
        assert next(iter(it.ingress.exchanges.values())).events == 5
        again.stream.send_end()
        assert await client.chunk() == b""


async def test_it_goes_on_twenty_times() -> None:
    async with front(sse=SSE) as it:
        client, _ = await begun(it)
        for number in range(4, 24):
            again = await came_back(it)
            assert again.headers["last-event-id"] == str(number - 1)
            again.events()
            again.stream.send(event(number))
            assert await client.chunk() == event(number)
        await client.leave()
        assert await again.cancel_reason() == "visitor"


async def test_a_visitor_hears_comments_meanwhile() -> None:
    async with front(sse=SseSettings(keepalive=0.02)) as it:
        client, _ = await begun(it)
        it.lose_agent(grace=GRACE)
        for _ in range(3):
            assert await client.chunk() == b": keepalive\n\n"


async def test_a_visitor_that_leaves_meanwhile_is_forgotten() -> None:
    async with front(sse=SSE) as it:
        client, _ = await begun(it)
        it.lose_agent(grace=GRACE)
        await client.leave()
        await it.settle()
        assert not it.tunnel.recovering
        it.connect_agent(SSE)
        assert it.requests.empty()


Answering = Callable[[Served], None]


def began_anew(again: Served) -> None:
    again.events()
    again.stream.send(event(1))


def refused(again: Served) -> None:
    again.answer(503)


def stops(again: Served) -> None:
    again.answer(204, body=None)


def encoded(again: Served) -> None:
    again.events(("Content-Encoding", "gzip"))


def no_events(again: Served) -> None:
    again.answer(200, [("Content-Type", "text/plain")])


@pytest.mark.parametrize("answering", [began_anew, refused, stops, encoded, no_events])
async def test_what_does_not_go_on_is_aborted_and_never_ended_cleanly(answering: Answering) -> None:
    async with front(sse=SSE) as it:
        client, _ = await begun(it)
        answering(await came_back(it))
        await client.reset()


@pytest.mark.parametrize(
    "events",
    [b"data: 1\n\n", b"id\ndata: 1\n\n", b"id: 1\ndata: 1\n\ndata: 2\n\n", b"id: " + b"x" * 1025 + b"\ndata: 1\n\n"],
    ids=["none", "empty", "not the last", "too long"],
)
async def test_without_an_id_of_the_last_event_it_is_aborted_at_once(events: bytes) -> None:
    async with front(sse=SSE) as it:
        client, served = await begun(it, last=0)
        served.stream.send(events)
        assert await client.chunk() == events
        it.lose_agent(grace=GRACE)
        await client.reset()


async def test_after_an_oversize_event_it_is_aborted() -> None:
    async with front(sse=SseSettings(keepalive=0, max_event=100)) as it:
        client, served = await begun(it)
        large = b"data: " + b"x" * 200 + b"\n\n"
        served.stream.send(large[:150])
        assert await client.chunk() == large[:150]
        served.stream.send(large[150:] + event(4))
        assert await client.chunk() == large[150:] + event(4)
        it.lose_agent(grace=GRACE)
        await client.reset()


async def test_other_streams_end_with_an_error() -> None:
    async with front(sse=SSE) as it:
        client = await it.client()
        client.get("/t/demo/download")
        served = await it.served()
        served.stream.send_head(200, [("Content-Type", "text/plain")])
        served.stream.send(b"some")
        await client.head()
        assert await client.chunk() == b"some"
        post = await it.client()
        post.get("/t/demo/mcp", "Content-Length: 0", method="POST")
        served = await it.served()
        served.events()
        served.stream.send(event(1))
        await post.head()
        await post.chunk()
        waiting = await it.client()
        waiting.get("/t/demo/poll")
        await it.served()
        it.lose_agent(grace=GRACE)
        await client.reset()
        await post.reset()
        assert (await waiting.answer()).headers["x-tunnel-error"] == "peer_lost"


async def test_without_grace_nothing_is_held_for_it_and_it_is_aborted_at_once() -> None:
    async with front(sse=SSE) as it:
        client = await it.client()
        client.get("/t/demo/sse", "Accept: text/event-stream")
        served = await it.served()
        served.events()
        await client.head()
        served.stream.send(event(1))
        assert await client.chunk() == event(1)
        (exchange,) = it.ingress.exchanges.values()
        assert exchange._opened is None
        assert exchange._events is not None
        assert not exchange._events.splitter.has_ids
        it.lose_agent()
        await client.reset()
        assert not it.ingress.exchanges


async def test_the_time_for_it_is_the_servers_grace() -> None:
    async with front(sse=SSE) as it:
        client, _ = await begun(it)
        it.lose_agent(grace=0.1)
        await client.reset()
        await it.settle()
        it.connect_agent(SSE)
        assert it.requests.empty()


async def test_an_agent_that_left_for_good_ends_it_at_once() -> None:
    async with front(sse=SSE) as it:
        client, _ = await begun(it)
        it.lose_agent(grace=GRACE, for_good=True)
        await client.reset()
        it.connect_agent(SSE)
        client, _ = await begun(it)
        it.lose_agent(grace=GRACE)
        it.tunnel.lose(0.0, for_good=True)  # it came back and left before the stream was opened again
        await client.reset()


async def test_retry_is_obeyed() -> None:
    async with front(sse=SSE) as it:
        client, served = await begun(it)
        served.stream.send(b"retry: 300\n\n")
        await client.chunk()
        loop = asyncio.get_running_loop()
        lost_at = loop.time()
        again = await came_back(it)
        assert loop.time() - lost_at >= 0.29
        again.events()
        again.stream.send(event(4))
        assert await client.chunk() == event(4)
        again.stream.send(b"retry: 60000\n\n")
        await client.chunk()
        it.lose_agent(grace=GRACE)  # the visitor will be back as early, and need not wait for it here
        await client.reset()


async def test_a_service_that_is_not_up_yet_is_asked_again() -> None:
    async with front(sse=SSE) as it:
        client, _ = await begun(it)
        again = await came_back(it)
        for _ in range(2):
            again.answer(502, [("X-Tunnel-Error", "service_unreachable")])
            again = await it.served()
            assert again.headers["last-event-id"] == "3"
        again.events()
        again.stream.send(event(4))
        assert await client.chunk() == event(4)


async def test_a_service_that_broke_is_asked_again_where_that_is_wished() -> None:
    async with front(sse=RECOVER) as it:
        it.tunnel.grace = GRACE
        client, served = await begun(it)
        served.stream.cancel("service")
        again = await it.served()
        assert again.request.request_id == served.request.request_id
        again.events()
        again.stream.cancel("service")
        again = await it.served()
        again.events()
        again.stream.send(event(3) + event(4))
        assert await client.chunk() == event(4)


async def test_a_service_that_broke_is_not_asked_again_else() -> None:
    async with front(sse=SSE) as it:
        it.tunnel.grace = GRACE
        client, served = await begun(it)
        served.stream.cancel("service")
        await client.reset()
        client, _ = await begun(it)
        again = await came_back(it)
        again.events()
        again.stream.send(event(4))
        assert await client.chunk() == event(4)
        again.stream.cancel("service")
        await client.reset()


async def test_a_service_that_breaks_for_ever_is_given_up_after_the_grace() -> None:
    async with front(sse=RECOVER) as it:
        it.tunnel.grace = 1.0
        client, served = await begun(it)
        served.stream.cancel("service")
        gone = asyncio.get_running_loop().create_task(client.reset())
        asked = 0
        while not gone.done():
            waiting = asyncio.get_running_loop().create_task(it.requests.get())
            await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                asked += 1
                waiting.result().events()
                waiting.result().stream.cancel("service")
            waiting.cancel()
        await gone
        assert 1 <= asked <= 4


async def test_an_operator_ends_one_that_waits_cleanly() -> None:
    async with front(sse=SSE) as it:
        client, _ = await begun(it)
        it.lose_agent(grace=GRACE)
        next(iter(it.ingress.exchanges.values())).cancel("operator")
        assert await client.chunk() == b""
        assert (await it.get("/t/demo/sse?x=1", "Accept: text/event-stream")).status == 204


async def test_credit_goes_back_for_what_is_left_out() -> None:
    async with front(sse=SSE) as it:
        client, _ = await begun(it)
        again = await came_back(it)
        again.events()
        big = b"id: 3\ndata: " + b"x" * 60_000 + b"\n\n"
        for _ in range(20):  # far more than a window
            again.stream.send(big)
            await asyncio.sleep(0)
        again.stream.send(event(4))
        assert await client.chunk() == event(4)


async def test_credit_of_the_lost_stream_is_not_given_to_the_new_one() -> None:
    async with front(sse=SSE) as it:
        client, served = await begun(it)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        exchange = next(iter(it.ingress.exchanges.values()))
        number = 4
        while not exchange.connection.congested:
            served.stream.send(b"id: %d\ndata: %b\n\n" % (number, b"x" * 10_000))
            number += 1
            await asyncio.sleep(0)
        while exchange.last_event_id != str(number - 1):
            await asyncio.sleep(0)
        again = await came_back(it)
        assert again.headers["last-event-id"] == str(number - 1)
        again.events()
        again.stream.send(event(number))
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        while await client.chunk() != event(number):
            pass
        again.stream.send(event(number + 1))
        assert await client.chunk() == event(number + 1)
        assert again.stream._credit <= it.joined.server.settings.stream_window
