"""Requests of visitors through a real ingress: which address goes where, and the server's own answers."""

from __future__ import annotations

import asyncio
import json
from email.utils import parsedate_to_datetime
from time import time
from types import SimpleNamespace

import pytest

from tests.support.front import front
from tests.support.loops import on_both_loops
from tests.support.running import settled
from tunneld.config.server import ListenConfig
from tunneld.errors import CODES, VisitorError
from tunneld.protocol.messages import SseSettings
from tunneld.server import exchange


@on_both_loops
async def test_a_get_reaches_the_service_and_its_answer_the_visitor():
    async with front() as it:
        client = await it.client()
        for number in range(3):
            client.get(f"/t/demo/items/{number}%2Fx?", "Accept: */*")
            served = await it.served()
            assert served.request.path == f"/items/{number}%2Fx?"
            assert served.request.client == "127.0.0.1"
            assert served.ended
            assert served.headers["x-forwarded-prefix"] == "/t/demo"
            served.answer(200, [("Content-Type", "text/plain"), ("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2")])
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"ok")
            assert [value for name, value in answer.pairs if name == "Set-Cookie"] == ["a=1; Path=/t/demo/", "b=2"]
            assert answer.headers["x-tunnel-request-id"] == served.request.request_id
        await client.leave()
        await it.settle()


@pytest.mark.parametrize("said", [None, "date", "Date"])
@pytest.mark.parametrize("status", [200, 404, 503])
async def test_an_answer_without_a_date_gets_that_of_its_arrival(said: str | None, status: int):
    given = "Sun, 06 Nov 1994 08:49:37 GMT"
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/")
        served = await it.served()
        served.answer(status, [(said, given)] if said else [])
        answer = await client.answer()
        dates = [value for name, value in answer.pairs if name.lower() == "date"]
        if said:
            assert dates == [given]
        else:
            assert len(dates) == 1
            assert abs(parsedate_to_datetime(dates[0]).timestamp() - time()) < 3
        await client.leave()
        await it.settle()


async def test_events_are_dated_too():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/sse")
        served = await it.served()
        served.events()
        _, pairs = await client.head()
        assert [name for name, _ in pairs].count("Date") == 1


async def test_an_unknown_tunnel_is_404_with_its_code():
    async with front() as it:
        answer = await it.get("/t/other/")
        assert answer.status == 404
        assert answer.headers["x-tunnel-error"] == "no_such_tunnel"
        assert answer.headers["content-type"] == "application/problem+json"
        document = json.loads(answer.body)
        assert document["code"] == "no_such_tunnel"
        assert document["status"] == 404
        assert document["request_id"] == answer.headers["x-tunnel-request-id"]


async def test_a_person_gets_a_page_and_markup_in_names_stays_text():
    async with front() as it:
        answer = await it.get("/t/<script>/", "Accept: text/html,application/xhtml+xml,*/*;q=0.8")
        assert answer.headers["content-type"].startswith("text/html")
        assert b"<script>" not in answer.body
        assert b"no_such_tunnel" in answer.body
        assert answer.headers["x-tunnel-error"] == "no_such_tunnel"


async def test_the_agents_own_errors_keep_their_code_and_become_pages_too():
    async with front() as it:
        client = await it.client()
        problem = [("Content-Type", "application/problem+json"), ("X-Tunnel-Error", "service_unreachable")]
        client.get("/t/demo/", "Origin: https://app.example")
        (await it.served()).answer(502, problem, b"{}")
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"], answer.body) == (502, "service_unreachable", b"{}")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "X-Tunnel-Error" in answer.headers["access-control-expose-headers"]
        client.get("/t/demo/", "Accept: text/html")
        (await it.served()).answer(502, problem, b"{}")
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "service_unreachable")
        assert CODES["service_unreachable"].title.encode() in answer.body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"detail": "Nothing listens at <127.0.0.1:9000>."}', "<p>Nothing listens at &lt;127.0.0.1:9000&gt;.</p>"),
        (b'{"detail": "half a \\ud800 surrogate"}', "<p>half a ? surrogate</p>"),
        (b'{"detail": ["no text"]}', "<p></p>"),
        (b'"no object"', "<p></p>"),
        (b"\xff no text", "<p></p>"),
        (b"[" * 16_000, "<p></p>"),
        (b'{"detail": "' + b"x" * 20_000 + b'"}', "<p></p>"),
    ],
)
async def test_the_page_of_an_agents_own_error_says_what_its_document_does(body, said):
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", "Accept: text/html")
        served = await it.served()
        served.stream.send_head(502, [("X-Tunnel-Error", "service_unreachable"), ("Retry-After", "2")])
        for at in range(0, len(body), 5000):
            served.stream.send(body[at : at + 5000])
        served.stream.send_end()
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "service_unreachable")
        assert answer.headers["retry-after"] == "2"
        assert f"<h1>{CODES['service_unreachable'].title}</h1>{said}" in answer.body.decode()
        client.get("/healthz")
        assert (await client.answer()).body == b"ok\n"


async def test_an_agents_own_error_is_a_page_though_its_document_never_comes_whole():
    async with front() as it:
        for ends in (lambda served: served.stream.cancel("service"), lambda _: it.lose_agent()):
            client = await it.client()
            client.get("/t/demo/", "Accept: text/html", "Content-Length: 9", method="POST")
            served = await it.served()
            served.stream.send_head(504, [("X-Tunnel-Error", "service_timeout")])
            served.stream.send(b'{"detail": "so')
            await asyncio.sleep(0.05)
            ends(served)
            answer = await client.answer()
            assert (answer.status, answer.headers["x-tunnel-error"]) == (504, "service_timeout")
            assert answer.headers["content-type"].startswith("text/html")
        await settled(lambda: not it.ingress.exchanges)


async def test_nobody_waits_for_a_document_that_does_not_come(monkeypatch):
    monkeypatch.setattr(exchange, "PATIENCE", 0.2)
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", "Accept: text/html")
        served = await it.served()
        served.stream.send_head(502, [("X-Tunnel-Error", "service_unreachable")])
        served.stream.send(b'{"detail": "so')
        async with asyncio.timeout(2):
            answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "service_unreachable")
        await settled(lambda: not it.ingress.exchanges)
        await settled(lambda: served.stream.closed)


async def test_who_leaves_before_the_document_is_forgotten_at_once(monkeypatch):
    monkeypatch.setattr(exchange, "PATIENCE", 30.0)
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", "Accept: text/html")
        served = await it.served()
        served.stream.send_head(502, [("X-Tunnel-Error", "service_unreachable")])
        await settled(lambda: any(one._timer for one in it.ingress.exchanges.values()))
        (visit,) = it.ingress.exchanges.values()
        await client.leave()
        await settled(lambda: not it.ingress.exchanges)
        assert visit._timer is None


async def test_head_of_an_agents_own_error_is_answered():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", "Accept: text/html", method="HEAD")
        (await it.served()).stream.send_head(502, [("X-Tunnel-Error", "service_unreachable")], end=True)
        answer = await client.answer(method="HEAD")
        assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "service_unreachable")


async def test_a_head_and_what_is_there_of_its_body_are_one_write():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/")
        served = await it.served()
        (connection,) = it.ingress.connections
        written, own = [], connection.transport
        connection.transport = SimpleNamespace(write=lambda data: (written.append(data), own.write(data)))
        served.answer(200, [], b"hi")
        assert (await client.answer()).body == b"hi"
        connection.transport = own
        (whole,) = written
        assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
        assert whole.endswith(b"\r\n\r\nhi")


async def test_another_origins_script_may_read_a_problem():
    async with front() as it:
        answer = await it.get("/t/other/", "Origin: https://app.example")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "X-Tunnel-Error" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-origin" not in (await it.get("/t/other/")).headers


async def test_a_problem_has_no_body_for_head_and_the_connection_goes_on():
    async with front() as it:
        client = await it.client()
        client.get("/t/other/", method="HEAD")
        answer = await client.answer(method="HEAD")
        assert (answer.status, int(answer.headers["content-length"]) > 0) == (404, True)
        client.get("/healthz")
        assert (await client.answer()).body == b"ok\n"


@pytest.mark.parametrize(
    ("target", "location"), [("/t/demo", "/t/demo/"), ("/t/demo?", "/t/demo/?"), ("/t/demo?a=/b", "/t/demo/?a=/b")]
)
async def test_the_bare_name_is_sent_to_its_slash(target, location):
    async with front() as it:
        answer = await it.get(target)
        assert (answer.status, answer.headers["location"]) == (308, location)


@pytest.mark.parametrize(
    "target", ["/", "/t/", "/t//x", "/t/?x", "/t", "/T/demo/", "//t/demo/", "/tunnel", "/x?/t/demo/"]
)
async def test_other_addresses_are_not_found(target):
    async with front() as it:
        answer = await it.get(target)
        assert (answer.status, answer.headers["x-tunnel-error"]) == (404, "not_found")


async def test_a_host_of_the_domain_is_a_tunnel_with_every_path():
    async with front(domain="tunnel.example.org", public_url="https://www.tunnel.example.org") as it:
        client = await it.client()
        for host in ("demo.tunnel.example.org", "DEMO.tunnel.example.org:8440", "demo.tunnel.example.org."):
            for path in ("/healthz", "/t/other/", "/tunnel/connect", "/"):
                client.get(path, host=host)
                served = await it.served()
                assert served.request.path == path
                assert "x-forwarded-prefix" not in served.headers
                served.answer(200, [("Location", "/a")])
                assert (await client.answer()).headers["location"] == "/a"
        for host in ("tunnel.example.org", "www.tunnel.example.org", "demo.other.org", "[::1]:80"):
            client.get("/healthz", host=host)
            assert (await client.answer()).body == b"ok\n"
        for host in ("nobody.tunnel.example.org", "a.demo.tunnel.example.org", ".tunnel.example.org"):
            client.get("/healthz", host=host)
            assert (await client.answer()).headers["x-tunnel-error"] == "no_such_tunnel"


async def test_health_and_readiness():
    async with front() as it:
        assert (await it.get("/healthz?x")).status == 200
        assert (await it.get("/readyz")).status == 200
        it.ready = False
        answer = await it.get("/readyz")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        answer = await it.get("/healthz", method="DELETE")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert (await it.get("/healthz", method="HEAD")).status == 200


async def test_a_listener_serves_what_it_is_told_to():
    async with front(listen=ListenConfig(port=0, serve=("tunnels",))) as it:
        assert (await it.get("/t/demo/")).headers["x-tunnel-error"] == "not_found"
        assert (await it.get("/t/demo")).status == 404
        assert (await it.get("/healthz")).status == 200
    async with front(listen=ListenConfig(port=0, serve=("visitors",))) as it:
        assert (await it.get("/tunnel/connect?name=x")).headers["x-tunnel-error"] == "not_found"


@on_both_loops
async def test_an_offered_connection_is_answered_or_taken():
    async with front() as it:
        client = await it.client()
        client.send(b"GET /tunnel/connect?name=x HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\nearly")
        await client.writer.drain()
        async with _until(lambda: it.offers):
            offer, head, leftover = it.offers.pop()
        assert (head.target, head.upgrade, leftover) == ("/tunnel/connect?name=x", "websocket", b"early")
        assert (offer.client, offer.closed) == ("127.0.0.1", False)
        offer.problem(VisitorError("unauthorized"), [("WWW-Authenticate", "Bearer")])
        answer = await client.answer()
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.headers["connection"] == "close"
        assert offer.closed
        offer.problem(VisitorError("unauthorized"))
        assert await client.closed() == b""

        client = await it.client()
        client.get("/tunnel/connect?name=x")
        async with _until(lambda: it.offers):
            offer, _, leftover = it.offers.pop()
        transport = offer.take()
        assert offer.closed
        assert leftover == b""
        assert not any(connection.transport is transport for connection in it.ingress.connections)
        transport.write(b"mine")
        assert await client.reader.readexactly(4) == b"mine"
        transport.abort()
        await client.leave()

        client = await it.client()
        client.get("/tunnel/connect?name=x")
        async with _until(lambda: it.offers):
            offer, _, _ = it.offers.pop()
        await client.leave()
        async with _until(lambda: offer.closed):
            offer.problem(VisitorError("unauthorized"))


class _until:
    """Turns of the loop until something holds."""

    def __init__(self, holds) -> None:
        self.holds = holds

    async def __aenter__(self) -> None:
        import asyncio

        async with asyncio.timeout(10):
            while not self.holds():
                await asyncio.sleep(0)

    async def __aexit__(self, *_) -> None:
        pass


async def test_an_upgrade_to_anything_but_a_websocket_is_let_be():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        served = await it.served()
        assert not {"upgrade", "connection", "http2-settings"} & set(served.headers)
        served.answer()
        assert (await client.answer()).status == 200


async def test_only_a_trusted_proxy_is_believed():
    lines = ("X-Forwarded-For: 203.0.113.9, 198.51.100.7", "X-Forwarded-Proto: https", "Forwarded: for=1.2.3.4")
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", *lines)
        served = await it.served()
        assert served.request.client == "127.0.0.1"
        assert served.headers["x-forwarded-for"] == "127.0.0.1"
        assert served.headers["x-forwarded-proto"] == "http"
        served.answer()
        await client.answer()
    async with front(trusted_proxies=["127.0.0.0/8", "198.51.100.7"]) as it:
        client = await it.client()
        client.get("/t/demo/", *lines)
        served = await it.served()
        assert served.request.client == "203.0.113.9"
        assert served.headers["x-forwarded-proto"] == "https"
        served.answer()
        await client.answer()


@pytest.mark.parametrize(
    ("proxy", "seen"),
    [
        ("127.0.0.1", "/out/t/demo"),
        ("198.51.100.7", "/t/demo"),
    ],
)
async def test_the_prefix_that_a_trusted_proxy_took_off_is_given_back_too(proxy, seen):
    async with front(trusted_proxies=[proxy]) as it:
        client = await it.client()
        client.get("/t/demo/", "X-Forwarded-Prefix: /out")
        served = await it.served()
        assert served.headers["x-forwarded-prefix"] == seen
        # One service minds what it is told, the other does not.
        served.answer(302, [("Location", f"{seen}/a"), ("Content-Location", "/b"), ("Set-Cookie", "c=1; Path=/")])
        answer = await client.answer()
        assert (answer.headers["location"], answer.headers["content-location"]) == (f"{seen}/a", f"{seen}/b")
        assert answer.headers["set-cookie"] == f"c=1; Path={seen}/"
        client.get("/t/demo", "X-Forwarded-Prefix: /out")
        assert (await client.answer()).headers["location"] == f"{seen}/"
        client.get("/t/demo/", "X-Forwarded-Prefix: /out")
        served = await it.served()
        served.events()
        await client.head()
        served.stream.send(b"event: endpoint\ndata: /messages\n\n")
        assert await client.chunk() == f"event: endpoint\ndata: {seen}/messages\n\n".encode()


@pytest.mark.parametrize("replay", [0, 60])
@pytest.mark.parametrize(
    ("host", "path", "address", "seen"),
    [
        ("pub.example.org", "/t/demo/sse", "http://localhost:8080/message?s=1", "/t/demo/message?s=1"),
        ("pub.example.org", "/t/demo/sse", "http://pub.example.org/message", "http://pub.example.org/t/demo/message"),
        ("demo.tunnel.example.org", "/sse", "http://localhost:8080/message?s=1", "/message?s=1"),
    ],
)
async def test_a_whole_address_in_an_endpoint_event_is_the_visitors(replay, host, path, address, seen):
    async with front(domain="tunnel.example.org", sse=SseSettings(keepalive=0, replay=replay)) as it:
        client = await it.client()
        client.get(path, host=host)
        served = await it.served()
        served.events()
        await client.head()
        served.stream.send(f"event: endpoint\ndata: {address}\n\n".encode())
        assert await client.chunk() == f"event: endpoint\ndata: {seen}\n\n".encode()


async def test_an_address_by_which_a_trusted_proxy_was_reached_gets_the_prefix():
    async with front(trusted_proxies=["127.0.0.1"]) as it:
        client = await it.client()
        client.get("/t/demo/", "X-Forwarded-Host: pub.example.org", "X-Forwarded-Proto: https")
        served = await it.served()
        served.answer(302, [("Location", "https://pub.example.org/a")])
        assert (await client.answer()).headers["location"] == "https://pub.example.org/t/demo/a"


async def test_events_lose_their_accept_encoding_and_nothing_else_does():
    async with front() as it:
        client = await it.client()
        for accept, kept in (("text/event-stream", False), ("*/*", True)):
            client.get("/t/demo/", f"Accept: {accept}", "Accept-Encoding: gzip")
            served = await it.served()
            assert ("accept-encoding" in served.headers) is kept
            served.answer()
            await client.answer()


async def test_a_request_is_listed_while_it_lives():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/sse?q=1")
        served = await it.served()
        exchange = it.ingress.exchanges[served.request.request_id]
        assert (exchange.kind, exchange.state, exchange.method, exchange.path) == ("http", "open", "GET", "/sse?q=1")
        served.events()
        served.stream.send(b"id: 7\ndata: x\n\ndata: part")
        assert b"data: x" in await _first_chunk(client)
        assert (exchange.kind, exchange.state) == ("sse", "streaming")
        assert (exchange.events, exchange.last_event_id, exchange.bytes_out) == (1, "7", 25)
        await client.leave()
        assert await served.cancel_reason() == "visitor"
        assert not it.ingress.exchanges
        assert exchange.reason == "visitor"


async def _first_chunk(client) -> bytes:
    await client.head()
    return await client.chunk()


async def test_a_changed_configuration_holds_at_once():
    async with front() as it:
        client = await it.client()
        client.get("/healthz", host="demo.example.org")
        assert (await client.answer()).body == b"ok\n"
        changed = it.config.model_copy(
            update={"domain": "example.org", "limits": it.config.limits.model_copy(update={"max_body": 3})}
        )
        it.ingress.configure(changed)
        client.get("/healthz", host="demo.example.org")
        (await it.served()).answer()
        assert (await client.answer()).body == b"ok"
        client.send(b"POST /t/demo/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nabcd")
        assert (await client.answer()).status == 413
