"""Streams of the older dialect: heads that are held, visitors that leave or stall, clients that flood or die."""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic
from typing import Any

import pytest

from tests.support.front import Client
from tests.support.legacy_client import LegacyClient, legacy
from tests.support.legacy_world import base_of, visitor, world
from tests.support.running import Book, Entry, port_of, running_server, settled
from tests.support.sockets import LOOPBACK
from tunneld.server.legacy.stream import HEAD_HOLD


def ends(lines: Book, request_id: str) -> list[Entry]:
    return lines.find(f"🧹 Cleaned up stream: {request_id}")


async def streaming(client: LegacyClient, guest: Client, path: str = "/t/my-server/sse") -> dict[str, Any]:
    """A stream whose first event has arrived."""
    guest.get(path, "Accept: text/event-stream")
    request = await client.request()
    await client.chunk(request, "data: first\n\n")
    assert (await guest.head())[0] == 200
    assert await guest.chunk() == b"data: first\n\n"
    return request


async def clean_end(guest: Client) -> None:
    assert await guest.chunk() == b""
    assert await guest.reader.readexactly(2) == b"\r\n"


async def test_a_stream_from_its_first_chunk_to_its_end(lines: Book) -> None:
    async with world(public_url="http://h") as (server, client, guest):
        guest.get("/t/my-server/api/sse?topic=a", "Accept: text/event-stream", "Last-Event-ID: 7")
        request = await client.request()
        assert request["path"] == "/api/sse?topic=a"
        assert request["headers"]["last-event-id"] == "7"
        await client.chunk(request, "id: 8\ndata: é\n\n")
        status, pairs = await guest.head()
        headers = {name.lower(): value for name, value in pairs}
        assert status == 200
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-accel-buffering"] == "no"
        assert headers["x-tunnel-request-id"] == request["request_id"]
        assert await guest.chunk() == "id: 8\ndata: é\n\n".encode()
        [exchange] = server.ingress.exchanges.values()
        assert (exchange.kind, exchange.state, exchange.events) == ("sse", "streaming", 1)
        assert exchange.last_event_id == "8"
        await client.chunk(request, "data: cut in ")
        await client.chunk(request, "two\n")
        await client.chunk(request, "\ndata: rest")
        assert await guest.chunk() == b"data: cut in two\n\n"
        await client.end(request)
        assert await guest.chunk() == b"data: rest"
        await clean_end(guest)
        await settled(lambda: ends(lines, request["request_id"]))
        assert ends(lines, request["request_id"])[0].fields["reason"] == "done"
        guest.get("/t/my-server/again")  # the connection goes on
        await client.respond(await client.request())
        assert (await guest.answer()).status == 200


async def test_a_stream_that_ends_before_its_first_chunk() -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/sse")
        await client.end(await client.request())
        answer = await guest.answer()
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"] == "text/event-stream"


async def test_a_stream_that_is_refused_before_its_first_chunk() -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/sse")
        await client.respond(await client.request(), 403, "no", content_type="text/plain")
        answer = await guest.answer()
        assert (answer.status, answer.body) == (403, b"no")
        assert answer.headers["content-type"] == "text/plain"
        assert client.of("stream_cancel") == []


async def test_a_head_is_held_for_a_second_and_no_longer() -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/sse")
        request = await client.request()
        asked = monotonic()
        status, pairs = await guest.head()
        assert HEAD_HOLD - 0.1 < monotonic() - asked < HEAD_HOLD + 2
        assert (status, dict(pairs)["Content-Type"]) == (200, "text/event-stream")
        await client.chunk(request, "data: 1\n\n")
        assert await guest.chunk() == b"data: 1\n\n"


@pytest.mark.parametrize("status", [200, 502])
async def test_a_response_after_the_head_aborts(status: int, lines: Book) -> None:
    """A failure is never told as a clean end, and the client is told to let go of what it may still run."""
    async with world() as (_, client, guest):
        request = await streaming(client, guest)
        await client.respond(request, status, "the service broke")
        await guest.reset()
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
        assert ends(lines, request["request_id"])[0].fields["reason"] == "service"
        await client.chunk(request, "data: late\n\n")
        await client.say("ping", timestamp=1)
        await client.want("pong")


async def test_a_broken_chunk_aborts_its_stream_alone() -> None:
    async with world() as (_, client, guest):
        request = await streaming(client, guest)
        await client.say("stream_chunk", request_id=request["request_id"], body=[1])
        await guest.reset()
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
        await client.say("ping", timestamp=1)
        await client.want("pong")


@pytest.mark.parametrize("kind", ["stream_chunk", "stream_end"])
async def test_a_chunk_for_a_request_that_is_no_stream(kind: str) -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/plain")
        request = await client.request()
        await client.say(kind, request_id=request["request_id"], body="x")
        answer = await guest.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "bad_answer")
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]


@pytest.mark.parametrize("how", ["leave", "crash"])
async def test_a_visitor_that_leaves_cancels_at_once(how: str, lines: Book) -> None:
    async with world() as (server, client, guest):
        request = await streaming(client, guest)
        left = monotonic()
        if how == "leave":
            await guest.leave()
        else:
            guest.crash()
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
        assert monotonic() - left < 1
        assert lines.find(f"🔌 SSE client disconnected: {request['request_id']}")
        assert ends(lines, request["request_id"])[0].fields["reason"] == "visitor"
        await client.respond(request, 502, "as clients say of what was just cancelled")
        for _ in range(50):
            await client.chunk(request, "data: under way\n\n")
        await client.end(request)
        await client.say("ping", timestamp=1)
        await client.want("pong")
        [connection] = server.connections
        assert connection.late == 52  # type: ignore[union-attr]
        assert not connection.streams  # type: ignore[union-attr]
        assert len(client.of("stream_cancel")) == 1


async def test_a_visitor_that_leaves_before_the_head() -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/sse")
        request = await client.request()
        await guest.leave()
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]


async def test_an_operator_cancels(lines: Book) -> None:
    async with world() as (server, client, guest):
        request = await streaming(client, guest)
        server.ingress.exchanges[request["request_id"]].cancel("operator")
        await clean_end(guest)
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
        guest.get("/t/my-server/sse", "Accept: text/event-stream")
        assert (await guest.answer()).status == 204  # which tells EventSource to stop
        assert ends(lines, request["request_id"])[0].fields["reason"] == "operator"


async def test_comments_keep_a_quiet_stream_alive() -> None:
    async with world(sse={"keepalive": "500ms", "min": "100ms"}) as (_, client, guest):
        request = await streaming(client, guest)
        assert await guest.chunk() == b": keepalive\n\n"
        await client.chunk(request, "data: 2\n\n")
        assert await guest.chunk() == b"data: 2\n\n"


async def test_a_visitor_that_does_not_keep_up_is_ended(lines: Book) -> None:
    """What waits is bounded, the client is told, and other streams of it notice nothing."""
    async with (
        running_server(limits={"v2_queue": "256KiB"}) as server,
        legacy(base_of(server)) as client,
        visitor(server, buffer=4096) as slow,
        visitor(server) as guest,
    ):
        slow.get("/t/my-server/sse")
        flooded = await client.request()
        quick = await streaming(client, guest)
        piece = "data: " + "x" * 32_000 + "\n\n"
        most = 0
        while not client.of("stream_cancel"):
            await client.chunk(flooded, piece)
            await client.chunk(quick, "data: tick\n\n")
            assert await guest.chunk() == b"data: tick\n\n"
            most = max(most, server.ingress.budget.held)
        assert client.of("stream_cancel") == [{"type": "stream_cancel", "request_id": flooded["request_id"]}]
        assert 0 < most <= 256 * 1024
        assert server.ingress.budget.held == 0
        assert ends(lines, flooded["request_id"])[0].fields["reason"] == "limit"
        assert lines.find(f"🛑 Cancelling stream: {flooded['request_id']}")
        with contextlib.suppress(ConnectionResetError):
            while await slow.reader.read(1 << 16):
                pass
        await client.chunk(quick, "data: still\n\n")
        assert await guest.chunk() == b"data: still\n\n"


async def test_a_visitor_that_takes_nothing_stalls(lines: Book) -> None:
    async with (
        running_server(limits={"stall": "500ms"}) as server,
        legacy(base_of(server)) as client,
        visitor(server, buffer=4096) as slow,
    ):
        slow.get("/t/my-server/sse")
        request = await client.request()
        await client.chunk(request, "data: " + "x" * 8_000_000 + "\n\n")
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
        assert ends(lines, request["request_id"])[0].fields["reason"] == "limit"


async def test_a_large_chunk_reaches_a_visitor_that_reads() -> None:
    async with world(limits={"v2_queue": "64KiB"}, sse={"max_event": "16MiB"}) as (_, client, guest):
        guest.get("/t/my-server/sse")
        request = await client.request()
        event = b"data: " + b"x" * 4_000_000 + b"\n\n"
        await client.chunk(request, event.decode())
        await guest.head()
        assert await guest.chunk() == event
        await client.end(request)
        assert await guest.chunk() == b""


async def test_a_client_that_dies_in_the_middle(lines: Book) -> None:
    async with running_server() as server, visitor(server) as guest, visitor(server) as waiting:
        async with legacy(base_of(server)) as client:
            request = await streaming(client, guest)
            waiting.get("/t/my-server/plain")
            await client.request()
            client.socket.transport.abort()
            await guest.reset()
            answer = await waiting.answer()
            assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "peer_lost")
            assert ends(lines, request["request_id"])[0].fields["reason"] == "peer_lost"
            assert not server.ingress.exchanges
        # It comes back after a while; who asks meanwhile is held for it.
        waiting.get("/t/my-server/plain")
        await settled(lambda: server.ingress.exchanges)
        async with legacy(base_of(server)) as client:
            await client.respond(await client.request(), body="back")
            assert (await waiting.answer()).body == b"back"


async def test_a_message_that_is_too_large_while_visitors_wait() -> None:
    async with (
        running_server(limits={"v2_message": "64KiB"}) as server,
        legacy(base_of(server)) as client,
        visitor(server) as guest,
        visitor(server) as waiting,
    ):
        await streaming(client, guest)
        waiting.get("/t/my-server/plain")
        await client.respond(await client.request(), body="x" * 70_000)
        assert await client.over() == (1009, "too_large")
        answer = await waiting.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "peer_lost")
        await guest.reset()


async def test_a_flood_of_chunks_for_streams_that_are_gone_costs_nothing(lines: Book) -> None:
    async with world() as (server, client, guest):
        request = await streaming(client, guest)
        await guest.leave()
        await client.want("stream_cancel")
        piece = "data: " + "x" * 60_000 + "\n\n"
        for _ in range(300):
            await client.chunk(request, piece)
        await client.say("ping", timestamp=1)
        await client.want("pong")
        [connection] = server.connections
        assert connection.late == 300  # type: ignore[union-attr]
        assert server.ingress.budget.held == 0
        assert not server.ingress.exchanges


async def test_a_hundred_streams_and_a_storm_leave_nothing(lines: Book) -> None:
    async with running_server() as server, legacy(base_of(server)) as client:
        guests = [Client(*await asyncio.open_connection(LOOPBACK, port_of(server))) for _ in range(100)]
        requests = []
        for number, guest in enumerate(guests):
            guest.get(f"/t/my-server/sse?n={number}")
            requests.append(await client.request())
        for request in requests:
            await client.chunk(request, "data: 1\n\n")
        for guest in guests:
            await guest.head()
        assert len(server.ingress.exchanges) == 100
        for number, guest in enumerate(guests):
            if number % 3 == 0:
                guest.crash()
            elif number % 3 == 1:
                await client.end(requests[number])
            else:
                await client.respond(requests[number], 500)
        await settled(lambda: not server.ingress.exchanges)
        [connection] = server.connections
        assert not connection.streams  # type: ignore[union-attr]
        assert server.ingress.budget.held == 0
        for guest in guests:
            await guest.leave()
