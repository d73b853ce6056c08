"""Clients of the older dialect: connect, requests, pings, names, and what is refused. Both ends are real."""

from __future__ import annotations

import asyncio
import re
from time import monotonic
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.support.legacy_client import forwarding, legacy, register
from tests.support.legacy_world import base_of, visitor, world
from tests.support.loops import on_both_loops
from tests.support.running import Book, Entry, port_of, relay, running_server, settled
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK


def end_of(lines: Book, request_id: str) -> Entry:
    [found] = lines.find(f"🧹 Cleaned up stream: {request_id}")
    return found


# -- connect -------------------------------------------------------------------------------------------


@on_both_loops
async def test_connected_at_once_and_shown_like_any_tunnel(lines: Book) -> None:
    async with running_server(public_url="http://pub.example", domain="pub.example") as server:
        async with legacy(base_of(server), "Größe of my Server!") as client:
            assert client.messages[0] == {
                "type": "connected",
                "tunnel_id": "grosse-of-my-server",
                "public_url": "http://pub.example/t/grosse-of-my-server",
            }
            [tunnel] = server.registry.all()
            assert (tunnel.name, tunnel.online) == ("grosse-of-my-server", True)
            assert tunnel.host_url == "http://grosse-of-my-server.pub.example"
            assert "1 tunnels up" in server.status_line()
            entry = await lines.wait("✓ Tunnel established: grosse-of-my-server", by="tunneld.tunnels")
            assert entry.fields["title"] == "Größe of my Server!"
        await lines.wait("✗ Tunnel disconnected: grosse-of-my-server", by="tunneld.tunnels")
        assert not tunnel.online


async def test_a_request_and_its_answer() -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/a%20b?x=1&y=", "X-One: 1", "Accept-Encoding: gzip", "Accept: text/html")
        request = await client.request()
        assert re.fullmatch(r"[0-9a-f]{32}", request["request_id"])
        assert request["tunnel_id"] == "my-server"
        assert (request["method"], request["path"]) == ("GET", "/a%20b?x=1&y=")
        assert request["query_params"] == {"x": "1", "y": ""}
        assert "body" not in request
        headers = request["headers"]
        assert headers["x-one"] == "1"
        assert headers["accept"] == "text/html"
        assert headers["x-forwarded-prefix"] == "/t/my-server"
        assert headers["x-forwarded-for"] == LOOPBACK
        assert not headers.keys() & {"host", "accept-encoding", "content-length", "transfer-encoding", "connection"}
        await client.say(
            "response",
            request_id=request["request_id"],
            status_code=201,
            headers={
                "content-type": "text/plain",
                "content-length": "999",
                "transfer-encoding": "chunked",
                "content-encoding": "gzip",
                "set-cookie": "a=1; Path=/; Expires=Wed, 21 Oct 2026 07:28:00 GMT, b=2; HttpOnly",
                "location": "/there",
                "x-many": "1, 2",
            },
            body="é€\n",
        )
        answer = await guest.answer()
        assert (answer.status, answer.body) == (201, "é€\n".encode())
        assert answer.headers["content-length"] == "6"
        assert "transfer-encoding" not in answer.headers
        assert "content-encoding" not in answer.headers
        assert answer.headers["x-many"] == "1, 2"
        assert answer.headers["location"] == "/t/my-server/there"
        assert [value for name, value in answer.pairs if name.lower() == "set-cookie"] == [
            "a=1; Path=/t/my-server/; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
            "b=2; HttpOnly",
        ]
        assert answer.headers["x-tunnel-request-id"] == request["request_id"]


async def test_by_host_too() -> None:
    async with world(domain="localhost") as (_, client, guest):
        guest.get("/a", host="my-server.localhost")
        request = await client.request()
        assert request["path"] == "/a"
        assert "x-forwarded-prefix" not in request["headers"]
        await client.respond(request)
        assert (await guest.answer()).body == b"ok"


@pytest.mark.parametrize("framing", ["Content-Length: 8", "Transfer-Encoding: chunked"])
async def test_a_body_arrives_whole(framing: str) -> None:
    async with world() as (server, client, guest):
        text = '{"é":1}'.encode()
        guest.get("/t/my-server/sse", framing, "Content-Type: application/json", method="POST")
        pieces = [text[:3], text[3:]]  # cut in the middle of the é
        assert len(text) == 8
        assert client.of("request") == []
        for piece in pieces:
            guest.send(piece if "Length" in framing else b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0)
        if "chunked" in framing:
            guest.send(b"0\r\n\r\n")
        request = await client.request()
        assert request["body"] == text.decode()
        assert request["headers"]["content-length"] == "8"
        assert "transfer-encoding" not in request["headers"]
        await client.respond(request, 200, None)
        answer = await guest.answer()
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")
        assert server.ingress.budget.held == 0


@pytest.mark.parametrize("body", [b"\xff\xfe", b"abc\xe2\x82", b"\xed\xa0\x80"])
async def test_a_body_that_is_no_text(body: bytes) -> None:
    async with world() as (server, client, guest):
        guest.get("/t/my-server/up", f"Content-Length: {len(body)}", method="POST")
        guest.send(body)
        answer = await guest.answer()
        assert answer.status == 415
        assert answer.headers["x-tunnel-error"] == "body_not_text"
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.of("request") == []
        assert server.ingress.budget.held == 0
        guest.get("/t/my-server/next")  # the connection goes on: the body was whole
        await client.respond(await client.request())
        assert (await guest.answer()).status == 200


async def test_a_body_that_is_no_text_is_told_before_its_end() -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/up", "Content-Length: 100000000", "Accept: text/html", method="POST")
        guest.send(b"\xff" * 10)
        answer = await guest.answer()
        assert answer.status == 415
        assert b"<h1>" in answer.body
        assert client.of("request") == []


async def test_a_body_over_the_limit() -> None:
    async with world(limits={"v2_message": "64KiB"}) as (server, client, guest):
        guest.get("/t/my-server/up", "Transfer-Encoding: chunked", "Accept: text/html", method="POST")
        for _ in range(5):
            guest.send(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        answer = await guest.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (413, "body_too_large")
        assert b"65536" in answer.body
        assert client.of("request") == []
        await settled(lambda: not server.ingress.exchanges)
        assert server.ingress.budget.held == 0


async def test_bodies_count_against_memory() -> None:
    async with world(limits={"memory": "1MiB", "v2_message": "4MiB"}) as (server, client, guest):
        guest.get("/t/my-server/up", "Content-Length: 2000000", method="POST")
        guest.send(b"x" * 1_500_000)
        answer = await guest.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (503, "over_memory")
        assert "retry-after" in answer.headers
        assert server.ingress.budget.held == 0
        assert client.of("request") == []


@pytest.mark.parametrize(
    ("method", "status", "body"),
    [("HEAD", 200, ""), ("GET", 304, ""), ("GET", 204, "dropped"), ("HEAD", 200, "dropped")],
)
async def test_answers_without_a_body(method: str, status: int, body: str) -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/", method=method)
        await client.respond(await client.request(), status, body, content_length="12", etag='"x"')
        answer = await guest.answer(method=method)
        assert (answer.status, answer.body, answer.headers["etag"]) == (status, b"", '"x"')
        assert answer.headers.get("content-length") == (None if status == 204 else "12")
        guest.get("/t/my-server/next")
        await client.respond(await client.request())
        assert (await guest.answer()).body == b"ok"


@pytest.mark.parametrize(
    "fields",
    [
        {"status_code": 99},
        {"status_code": 101},
        {"status_code": 600},
        {"status_code": -1},
        {"status_code": "200"},
        {"status_code": 200, "body": {"a": 1}},
        {"status_code": 200, "headers": {"a": {"b": 1}}},
        {"status_code": 200, "headers": {"a b": "c"}},
        {"status_code": 200, "headers": {"a": "b\r\nc: d"}},
        {"status_code": 200, "headers": ["a"]},
        {},
    ],
)
async def test_an_answer_that_is_none_costs_its_visitor_alone(fields: dict[str, Any]) -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/a")
        request = await client.request()
        await client.say("response", request_id=request["request_id"], **fields)
        answer = await guest.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "bad_answer")
        guest.get("/t/my-server/b")
        await client.respond(await client.request())
        assert (await guest.answer()).status == 200


@pytest.mark.parametrize("asked", [(), ("Origin: https://page.example",)])
async def test_a_problem_of_the_servers_own_has_each_header_once(asked: tuple[str, ...]) -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/a", *asked)
        request = await client.request()
        await client.say("response", request_id=request["request_id"], status_code=99)
        answer = await guest.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "bad_answer")
        assert answer.headers["vary"] == "Accept, Origin"
        assert ("access-control-allow-origin" in answer.headers) is bool(asked)
        assert len(answer.pairs) == len(answer.headers)


async def test_no_answer_in_time(lines: Book) -> None:
    async with world(limits={"v2_response_timeout": "200ms"}) as (_, client, guest):
        guest.get("/t/my-server/a")
        request = await client.request()
        answer = await guest.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (504, "service_timeout")
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
        assert end_of(lines, request["request_id"]).fields["reason"] == "limit"
        await client.respond(request)  # too late: of no consequence
        guest.get("/t/my-server/b")
        await client.respond(await client.request(), body="b")
        assert (await guest.answer()).body == b"b"


async def test_answers_twice_and_for_requests_that_never_were() -> None:
    async with world() as (server, client, guest):
        guest.get("/t/my-server/a")
        request = await client.request()
        await client.respond({"request_id": "0" * 32}, body="no")
        await client.respond(request, body="first")
        await client.respond(request, body="second")
        await client.chunk(request, "third")
        await client.end(request)
        assert (await guest.answer()).body == b"first"
        guest.get("/t/my-server/b")
        await client.respond(await client.request(), body="next")
        assert (await guest.answer()).body == b"next"
        [connection] = server.connections
        assert connection.late == 4  # type: ignore[union-attr]


async def test_one_client_cannot_answer_for_another() -> None:
    async with world() as (server, client, guest), legacy(base_of(server), "Other") as other:
        guest.get("/t/my-server/a")
        request = await client.request()
        await other.respond(request, body="not mine")
        await other.say("ping", timestamp="t")
        await other.want("pong")
        await client.respond(request, body="mine")
        assert (await guest.answer()).body == b"mine"


async def test_a_visitor_that_leaves_is_told(lines: Book) -> None:
    async with world() as (_, client, guest):
        guest.get("/t/my-server/a")
        request = await client.request()
        await guest.leave()
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
        await client.respond(request, 502, "the service's connection was destroyed")  # as they do
        await client.say("ping", timestamp=1)
        await client.want("pong")
        assert end_of(lines, request["request_id"]).fields["reason"] == "visitor"


async def test_many_requests_at_once_and_the_limit() -> None:
    async with running_server(limits={"max_streams": 3}) as server, legacy(base_of(server)) as client:
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.TaskGroup() as group:
            asked = [group.create_task(http.get(f"{base_of(server)}/t/my-server/{number}")) for number in range(3)]
            requests = [await client.request() for _ in range(3)]
            refused = await http.get(f"{base_of(server)}/t/my-server/4")
            assert refused.status_code == 503
            assert refused.headers["x-tunnel-error"] == "too_many_streams"
            for request in reversed(requests):
                await client.respond(request, body=request["path"])
        assert {one.result().text for one in asked} == {"/0", "/1", "/2"}


async def test_a_websocket_of_a_visitor_is_refused() -> None:
    async with world() as (_, client, guest):
        guest.get(
            "/t/my-server/ws",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        answer = await guest.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (501, "no_websocket")
        assert client.of("request") == []


# -- pings ---------------------------------------------------------------------------------------------


async def test_pings_both_ways(lines: Book) -> None:
    async with world(heartbeat={"interval": 1, "timeout": 1}) as (server, client, _):
        ping = await client.want("ping")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", ping["timestamp"])
        await lines.wait("💓 Heartbeat acknowledged for my-server", by="tunneld.tunnels")
        [connection] = server.connections
        assert connection.round_trip is not None
        trips, [shown] = server.registry.round_trips, server.registry.all()
        assert trips.whole.count == trips.queued.count == shown.quality.read(monotonic(), connected=True).pings == 1
        assert trips.whole.sum == connection.round_trip > trips.queued.sum
        await client.say("ping", timestamp="2026-01-01T00:00:00.000Z")
        assert await client.want("pong") == {"type": "pong", "timestamp": "2026-01-01T00:00:00.000Z"}
        await client.say("ping", timestamp=1767225600000)
        assert (await client.want("pong"))["timestamp"] == 1767225600000
        await client.say("pong", timestamp="never sent")
        await client.say("pong", timestamp={"a": 1})
        await client.want("ping")


async def test_a_silent_client_is_noticed(lines: Book) -> None:
    beat = {"interval": 1, "timeout": 0.5}
    async with (
        running_server(heartbeat=beat) as server,
        relay(port_of(server)) as wire,
        visitor(server) as guest,
        legacy(f"http://{LOOPBACK}:{wire.port}"),
    ):
        guest.get("/t/my-server/a")
        since = wire.blackhole()
        entry = await lines.wait("💔 Heartbeat failed for my-server", by="tunneld.tunnels")
        assert 1.2 < entry.at - since < 3.5
        answer = await guest.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "peer_lost")
        wire.restore()


async def test_a_client_that_only_pings_is_alive(lines: Book) -> None:
    """Theirs come every 25 s; any byte heard proves life."""
    beat = {"interval": 1, "timeout": 0.5}
    async with running_server(heartbeat=beat) as server, legacy(base_of(server), echo=False) as client:
        for number in range(8):
            await client.say("ping", timestamp=number)
            await asyncio.sleep(0.3)  # the pace of a client's own pings, not a wait
        assert not lines.find("💔")


# -- refuse, drain, a whole client ---------------------------------------------------------------------


async def test_refused_where_the_configuration_says_so() -> None:
    async with running_server(auth={"mode": "open", "v2": "refuse"}) as server:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(f"ws://{LOOPBACK}:{port_of(server)}/tunnel/connect?name=a", proxy=None):
                pass
        assert caught.value.response.status_code == 426
        assert caught.value.response.headers["X-Tunnel-Error"] == "upgrade_required"
        answer = await register(base_of(server))
        assert answer.status_code == 403
        assert answer.json()["error"] == answer.headers["x-tunnel-error"] == "v2_refused"
        answer = await register(f"{base_of(server)}/v2/tnl_x")
        assert answer.status_code == 403


async def test_a_stopping_server_says_so(lines: Book) -> None:
    async with running_server() as server, legacy(base_of(server)) as client, visitor(server) as guest:
        guest.get("/t/my-server/sse")
        request = await client.request()
        await client.chunk(request, "data: 1\n\n")
        assert b"data: 1" in (await guest.head(), await guest.chunk())[1]
        await server.stop()
        assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
        assert (await client.want("error"))["message"]
        assert (await client.over())[0] == 1001
        assert end_of(lines, request["request_id"]).fields["reason"] == "shutdown"


async def test_a_whole_client_before_a_real_service() -> None:
    service = await asyncio.to_thread(SampleService)
    try:
        async with running_server() as server, forwarding(base_of(server), service.url) as client:
            url = f"{base_of(server)}/t/{client.tunnel_id}"
            async with httpx.AsyncClient(trust_env=False) as http:
                echoed = (await http.post(f"{url}/echo?q=1", content="é")).json()
                assert echoed["method"] == "POST"
                answer = await http.get(f"{url}/small")
                assert answer.text == "x" * 99 + "\n"
                async with http.stream("GET", f"{url}/events?n=3&gap=0&id=x/sse") as stream:
                    assert stream.headers["content-type"] == "text/event-stream"
                    text = "".join([piece async for piece in stream.aiter_text()])
                assert text.count("data:") == 3
    finally:
        await asyncio.to_thread(service.stop)
