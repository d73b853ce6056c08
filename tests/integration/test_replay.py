"""Visitors that come back to their event stream, by a real ingress; the test plays agent and service."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.front import Client, Front, Served, front
from tunneld.protocol.messages import SseSettings
from tunneld.server.replay import COOKIE

REPLAY = SseSettings(keepalive=0, replay=60.0)


def event(number: int | str) -> bytes:
    return f"id: {number}\ndata: {number}\n\n".encode()


def header(pairs: list[tuple[str, str]], name: str) -> str:
    return next(value for key, value in pairs if key.lower() == name)


def cookie_of(pairs: list[tuple[str, str]]) -> str:
    said = header(pairs, "set-cookie")
    assert said.startswith(f"{COOKIE}=")
    assert said.endswith("; Path=/t/demo/sse; HttpOnly; SameSite=Lax")
    return said.partition(";")[0]


async def begun(it: Front, *lines: str, last: int = 3) -> tuple[Client, Served, str]:
    """A visitor who has events 1 to `last`: (it, its request, its cookie)."""
    client = await it.client()
    client.get("/t/demo/sse?x=1", "Accept: text/event-stream", *lines)
    served = await it.served()
    served.events(("Access-Control-Allow-Origin", "*"), ("Set-Cookie", "own=1"))
    status, pairs = await client.head()
    assert status == 200
    pairs = [pair for pair in pairs if "own=1" not in pair[1]]
    for number in range(1, last + 1):
        served.stream.send(event(number))
        assert await client.chunk() == event(number)
    return client, served, cookie_of(pairs)


async def kept(it: Front, count: int = 1) -> None:
    """So many streams wait for their visitors."""
    async with asyncio.timeout(10):
        while sum(1 for one in it.ingress.exchanges.values() if one.state == "kept") != count:
            await asyncio.sleep(0)


async def gets(client: Client, *events: bytes) -> None:
    """Exactly these come next, however they are cut into chunks."""
    wanted = b"".join(events)
    got = b""
    while len(got) < len(wanted):
        got += await client.chunk()
    assert got == wanted


async def again(it: Front, cookie: str, last_id: str, *lines: str, path: str = "/t/demo/sse?x=1") -> Client:
    """A visitor asks with this cookie and id."""
    client = await it.client()
    client.get(path, "Accept: text/event-stream", f"Cookie: {cookie}", f"Last-Event-ID: {last_id}", *lines)
    return client


async def test_it_goes_on_with_the_next_event_sent_or_not() -> None:
    async with front(sse=REPLAY) as it:
        client, served, cookie = await begun(it)
        await client.leave()
        await kept(it)
        assert len(it.ingress.exchanges) == 1
        served.stream.send(event(4))
        served.stream.send(event(5) + b"id: 6\n")
        client = await again(it, cookie, "2")  # the third went into a connection that was dead already
        status, pairs = await client.head()
        assert status == 200
        assert header(pairs, "x-tunnel-request-id") == served.request.request_id
        assert header(pairs, "access-control-allow-origin") == "*"
        assert header(pairs, "content-type") == "text/event-stream"
        assert cookie_of(pairs) == cookie
        assert [name for name, _ in pairs].count("Date") == 1
        await gets(client, event(3), event(4), event(5))
        served.stream.send(b"data: 6\n\n")
        assert await client.chunk() == event(6)
        assert it.requests.empty()
        assert served.reason is None
        served.stream.send_end()
        assert await client.chunk() == b""


async def test_it_takes_over_from_a_connection_that_still_looks_open() -> None:
    async with front(sse=REPLAY) as it:
        client, served, cookie = await begun(it)
        second = await again(it, cookie, "3")
        await second.head()
        await client.reset()
        served.stream.send(event(4))
        assert await second.chunk() == event(4)
        assert it.requests.empty()


async def test_twenty_returns_lose_and_double_nothing() -> None:
    async with front(sse=REPLAY) as it:
        client, served, cookie = await begun(it)
        for number in range(4, 24):
            client.crash()
            served.stream.send(event(number))
            client = await again(it, cookie, str(number - 1))
            await client.head()
            assert await client.chunk() == event(number)
        assert it.requests.empty()


async def test_one_that_does_not_return_is_cancelled() -> None:
    async with front(sse=SseSettings(keepalive=0, replay=0.1)) as it:
        client, served, cookie = await begun(it)
        await client.leave()
        await kept(it)
        assert await served.cancel_reason() == "visitor"
        await it.settle()
        client = await again(it, cookie, "3")
        assert (await it.served()).headers["last-event-id"] == "3"


@pytest.mark.parametrize("lines", [(), ("MCP-Protocol-Version: 2025-11-25",)])
async def test_without_replay_a_leaving_is_passed_on_at_once(lines: tuple[str, ...]) -> None:
    async with front(sse=SseSettings(keepalive=0)) as it:
        client = await it.client()
        client.get("/t/demo/sse", *lines, f"Cookie: a=1; {COOKIE}=x")
        served = await it.served()
        served.events()
        served.stream.send(event(1))
        _, pairs = await client.head()
        assert "set-cookie" not in {name.lower() for name, _ in pairs}
        await client.leave()
        assert await served.cancel_reason() == "visitor"


@pytest.mark.parametrize(
    ("method", "lines"),
    [("POST", ("Content-Length: 0",)), ("GET", ("MCP-Protocol-Version: 2026-07-28",))],
)
async def test_where_closing_is_cancelling_it_is_passed_on_at_once(method: str, lines: tuple[str, ...]) -> None:
    async with front(sse=REPLAY) as it:
        client = await it.client()
        client.get("/t/demo/sse", *lines, method=method)
        served = await it.served()
        served.events()
        served.stream.send(event(1))
        _, pairs = await client.head()
        assert "set-cookie" not in {name.lower() for name, _ in pairs}
        await client.chunk()
        await client.leave()
        assert await served.cancel_reason() == "visitor"


async def test_a_stream_that_sent_no_id_is_not_kept() -> None:
    async with front(sse=REPLAY) as it:
        client, served, _ = await begun(it, last=0)
        served.stream.send(b"data: x\n\n")
        await client.chunk()
        await client.leave()
        assert await served.cancel_reason() == "visitor"


STRANGERS: dict[str, dict[str, Any]] = {
    "no cookie": {"cookie": "a=b"},
    "another's cookie": {"cookie": f"{COOKIE}=AAAAAAAAAAAAAAAAAAAAAA"},
    "an id that was not sent": {"last_id": "9"},
    "no id": {"last_id": ""},
    "another query": {"path": "/t/demo/sse?x=2"},
    "another path": {"path": "/t/demo/sse/?x=1"},
    "by Host": {"path": "/sse?x=1"},
    "another Authorization": {"lines": ("Authorization: Bearer b",)},
    "another cookie of the page": {"lines": ("Cookie: user=2",)},
    "another Origin": {"lines": ("Origin: http://evil.example",)},
}


@pytest.mark.parametrize("kind", STRANGERS)
async def test_a_stranger_gets_a_new_stream(kind: str) -> None:
    how = STRANGERS[kind]
    async with front(sse=REPLAY, domain="localhost") as it:
        client, served, cookie = await begun(it)
        await client.leave()
        await kept(it)
        stranger = await it.client()
        stranger.get(
            how.get("path", "/t/demo/sse?x=1"),
            f"Cookie: {how.get('cookie', cookie)}",
            f"Last-Event-ID: {how.get('last_id', '3')}",
            *how.get("lines", ()),
            host="demo.localhost" if kind == "by Host" else "h",
        )
        new = await it.served()
        assert new.request.request_id != served.request.request_id
        assert COOKIE not in new.headers.get("cookie", "")
        new.events()
        await stranger.head()
        await kept(it)
        assert served.reason is None
        back = await again(it, cookie, "3")
        await back.head()
        served.stream.send(event(4))
        assert await back.chunk() == event(4)


async def test_the_same_credentials_come_back() -> None:
    async with front(sse=REPLAY) as it:
        who = ("Authorization: Bearer a", "Origin: http://page")
        client, served, cookie = await begun(it, *who, "Cookie: user=1")
        assert served.headers["cookie"] == "user=1"
        client.crash()
        back = await again(it, f"user=1; {cookie}", "1", *who)
        await back.head()
        await gets(back, event(2), event(3))


async def test_two_streams_that_sent_the_same_id_are_none() -> None:
    async with front(sse=REPLAY) as it:
        client, _, cookie = await begun(it)
        _, _, same = await begun(it, f"Cookie: {cookie}")
        assert same == cookie
        client.crash()
        await kept(it)
        await again(it, cookie, "3")
        assert (await it.served()).headers["last-event-id"] == "3"


async def test_two_streams_of_a_browser_are_told_by_their_ids() -> None:
    async with front(sse=REPLAY) as it:
        client, served, cookie = await begun(it)
        _, other, _ = await begun(it, f"Cookie: {cookie}", last=0)
        other.stream.send(event("b1"))
        client.crash()
        await kept(it)
        back = await again(it, cookie, "3")
        await back.head()
        served.stream.send(event(4))
        assert await back.chunk() == event(4)
        assert it.requests.empty()


async def test_a_stranger_cannot_choose_the_cookie() -> None:
    async with front(sse=REPLAY) as it:
        chosen = f"{COOKIE}=chosen"
        assert (await begun(it, f"Cookie: {chosen}"))[2] != chosen
        _, _, evil = await begun(it, "Authorization: Bearer evil")
        assert (await begun(it, f"Cookie: {evil}"))[2] != evil


async def test_what_is_no_longer_kept_is_told() -> None:
    async with front(sse=SseSettings(keepalive=0, replay=60.0, replay_buffer=2 * len(event(1)))) as it:
        client, served, cookie = await begun(it)
        await client.leave()
        await kept(it)
        served.stream.send(event(4))
        served.stream.send(event(5))
        back = await again(it, cookie, "2")
        await back.head()
        gap = b'event: tunnel-gap\ndata: {"last_event_id": "2"}\n\n'
        await gets(back, gap, event(4), event(5))
        back.crash()
        back = await again(it, cookie, "3")  # the last before those that are kept
        await back.head()
        await gets(back, event(4), event(5))


async def test_an_oversize_event_is_a_gap_but_its_own_id_is_none() -> None:
    async with front(sse=SseSettings(keepalive=0, replay=60.0, max_event=100)) as it:
        client, served, cookie = await begun(it)
        await client.leave()
        await kept(it)
        served.stream.send(b"id: 4\ndata: " + b"x" * 200)
        exchange = next(iter(it.ingress.exchanges.values()))
        taken = exchange.bytes_out
        while exchange.bytes_out == taken:  # what comes in one piece is kept in one
            await asyncio.sleep(0)
        served.stream.send(b"\n\n")
        while exchange.bytes_out <= taken + 212:
            await asyncio.sleep(0)
        served.stream.send(event(5))
        back = await again(it, cookie, "3")
        await back.head()
        await gets(back, b'event: tunnel-gap\ndata: {"last_event_id": "3"}\n\n', event(5))
        back.crash()
        back = await again(it, cookie, "4")
        await back.head()
        assert await back.chunk() == event(5)


async def test_all_recordings_together_are_bounded() -> None:
    size = len(event(1))
    async with front(agent=False) as it:
        it.ingress.replays.total = 4 * size
        it.connect_agent(REPLAY)
        streams = [await begun(it) for _ in range(3)]
        assert it.ingress.replays.held == it.ingress.budget.held == 4 * size
        assert all(one.log.size for one in it.ingress.replays._turns)  # none starves
        for client, _, _ in streams:
            await client.leave()


async def test_what_the_service_ended_meanwhile_is_still_given() -> None:
    async with front(sse=REPLAY) as it:
        client, served, cookie = await begun(it)
        await client.leave()
        await kept(it)
        served.stream.send(event(4))
        served.stream.send_end()
        back = await again(it, cookie, "3")
        answer = await back.answer()
        assert answer.body == event(4)
        await back.leave()
        await it.settle()


async def test_what_an_operator_ended_is_answered_204() -> None:
    async with front(sse=REPLAY) as it:
        client, served, cookie = await begun(it)
        await client.leave()
        await kept(it)
        served.stream.cancel("operator")
        await it.settle()
        answer = await (await again(it, cookie, "3")).answer()
        assert answer.status == 204
        client, served, cookie = await begun(it, "Cookie: other=1")
        back = await again(it, f"other=1; {cookie}", "3")
        await back.head()
        served.stream.cancel("operator")
        assert await back.chunk() == b""
        assert (await (await again(it, f"{cookie}; other=1", "3")).answer()).status == 204


async def test_it_is_recovered_while_its_visitor_is_away() -> None:
    async with front(sse=REPLAY) as it:
        it.tunnel.grace = 20
        client, _, cookie = await begun(it)
        await client.leave()
        await kept(it)
        it.lose_agent(grace=20)
        it.connect_agent(REPLAY)
        fresh = await it.served()
        assert fresh.headers["last-event-id"] == "3"
        fresh.events()
        fresh.stream.send(event(4))
        back = await again(it, cookie, "2")
        await back.head()
        await gets(back, event(3), event(4))


async def test_the_oldest_without_a_visitor_goes_first() -> None:
    async with front(agent=False) as it:
        it.connect_agent(REPLAY, max_streams=8)
        streams = [await begun(it) for _ in range(3)]
        for client, _, _ in streams:
            await client.leave()
        assert await streams[0][1].cancel_reason() == "visitor"
        await kept(it, 2)


async def test_a_visitor_that_stalls_may_come_back() -> None:
    async with front(sse=REPLAY, limits={"stall": "300ms"}) as it:
        client, served, cookie = await begun(it)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        number = 4
        exchange = next(iter(it.ingress.exchanges.values()))
        while exchange.state != "kept":
            served.stream.send(b"id: %d\ndata: %b\n\n" % (number, b"x" * 10_000))
            number += 1
            await asyncio.sleep(0.001)
        assert served.reason is None
        while exchange.last_event_id != str(number - 1):
            await asyncio.sleep(0)
        back = await again(it, cookie, str(number - 1))
        await back.head()
        served.stream.send(event(number))
        assert await back.chunk() == event(number)


async def test_a_large_catch_up_is_counted_until_it_is_taken() -> None:
    async with front(sse=REPLAY) as it:
        client, served, cookie = await begun(it)
        await client.leave()
        await kept(it)
        for number in range(4, 84):
            served.stream.send(b"id: %d\ndata: %b\n\n" % (number, b"x" * 10_000))
            await asyncio.sleep(0)
        while (one := next(iter(it.ingress.exchanges.values()))).last_event_id != "83":
            await asyncio.sleep(0)
        held = it.ingress.budget.held
        back = await again(it, cookie, "3")
        await back.head()
        for number in range(4, 84):
            assert (await back.chunk()).startswith(b"id: %d\n" % number)
        async with asyncio.timeout(5):
            while it.ingress.budget.held > held:
                await asyncio.sleep(0)
        served.stream.send(event(84))
        assert await back.chunk() == event(84)
        assert one.state == "streaming"


async def test_a_server_that_stops_keeps_nothing() -> None:
    async with front(sse=REPLAY) as it:
        client, served, _ = await begun(it)
        await client.leave()
        await kept(it)
        await it.ingress.close(0)
        assert await served.cancel_reason() == "visitor"
