"""The proxy between two joined sessions and raw services that behave."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from tests.support.loops import on_both_loops
from tests.support.tunnelled import CHUNKED, chunk, read_head, reply, tunnelled, turns_until
from tunneld.agent import pool as pool_module


async def small(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its own head."""
    while True:
        head = await read_head(reader)
        writer.write(reply(head))


async def drain_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes, bytes]:
    """One request, taken apart: head, body, trailers."""
    head = await read_head(reader)
    low = head.lower()
    if b"transfer-encoding: chunked" in low:
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        trailers = b""
        while (line := await reader.readline()) != b"\r\n":
            trailers += line
        return head, body, trailers
    if b"content-length: " in low:
        size = int(low.split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(size), b""
    return head, b"", b""


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its body, its trailers in a header."""
    while True:
        head, body, trailers = await drain_request(reader)
        extra = f"X-Chunked: {int(b'chunked' in head.lower())}\r\nX-Sent-Trailers: {trailers.decode().strip()}\r\n"
        writer.write(reply(body, extra=extra))


@on_both_loops
async def test_connections_are_used_again() -> None:
    async with tunnelled(small) as made:
        for _ in range(5):
            visitor = await made.get("/a%2Fb?c=d&e")
            assert visitor.status == 200
            assert bytes(visitor.body).startswith(b"GET /a%2Fb?c=d&e HTTP/1.1\r\nHost: 127.0.0.1:")
            assert visitor.trailers == []
        assert made.accepted == 1
        assert made.proxy.pool.idle == 1
        assert made.ended == {"done": 5}
        assert made.proxy.totals.streams == 5


@on_both_loops
async def test_several_at_a_time_have_a_connection_each() -> None:
    async with tunnelled(small) as made:
        visitors = [made.open() for _ in range(20)]
        for visitor in visitors:
            assert (await visitor.finished()).status == 200
        assert 1 < made.accepted <= 20


@on_both_loops
async def test_the_request_says_who_it_is_and_what_is_configured() -> None:
    headers = {"Host": "app.internal", "X-Key": "ours"}
    sent = [
        ("Host", "evil"),
        ("X-Key", "theirs"),
        ("Connection", "X-Drop"),
        ("X-Drop", "1"),
        ("X-Tunnel-Request-Id", "forged"),
        ("Cookie", "a=b"),
        ("TE", "trailers"),
    ]
    async with tunnelled(small, headers=headers) as made:
        visitor = await made.get("/", headers=sent)
        assert bytes(visitor.body) == (
            b"GET / HTTP/1.1\r\nHost: app.internal\r\nX-Key: ours\r\nCookie: a=b\r\n"
            b"X-Tunnel-Request-Id: r1\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
        )


@on_both_loops
async def test_what_a_service_says_of_the_tunnel_or_the_hop_is_dropped() -> None:
    async def forging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        port = writer.get_extra_info("sockname")[1]
        writer.write(
            reply(
                extra="X-Tunnel-Error: peer_lost\r\nX-Tunnel-Request-Id: x\r\nKeep-Alive: timeout=5\r\n"
                f"Connection: X-Hop\r\nX-Hop: 1\r\nUpgrade: h2c\r\nLocation: http://127.0.0.1:{port}/there?a\r\n"
                "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
            )
        )

    async with tunnelled(forging) as made:
        visitor = await made.get()
        assert visitor.heads[0][1] == [
            ("Content-Length", "0"),
            ("Location", "/there?a"),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
        ]


@on_both_loops
async def test_bodies_go_up_with_their_length() -> None:
    body = bytes(range(256)) * 4000
    async with tunnelled(echo) as made:
        visitor = made.open("POST", "/", [("Content-Length", str(len(body)))], ended=False)
        await visitor.upload(body)
        visitor.stream.send_end()
        await visitor.finished()
        assert visitor.headers["x-chunked"] == "0"
        assert hashlib.sha256(visitor.body).digest() == hashlib.sha256(body).digest()
        assert made.proxy.totals.bytes_in == made.proxy.totals.bytes_out == len(body)
        assert made.proxy.pool.idle == 1


@on_both_loops
async def test_bodies_go_up_in_chunks_with_trailers() -> None:
    body = b"abc" * 100_000
    async with tunnelled(echo) as made:
        visitor = made.open("PUT", "/", [], ended=False)
        await visitor.upload(body, 7001)
        visitor.stream.send_end([("X-Sum", "1"), ("Content-Length", "3"), ("Host", "x")])
        await visitor.finished()
        assert visitor.headers["x-chunked"] == "1"
        assert visitor.headers["x-sent-trailers"] == "X-Sum: 1"
        assert bytes(visitor.body) == body


@on_both_loops
async def test_an_empty_post_says_so() -> None:
    async with tunnelled(small) as made:
        visitor = await made.open("POST", "/", []).finished()
        assert b"\r\nContent-Length: 0\r\n" in visitor.body


@on_both_loops
async def test_expectations_are_met_by_the_service() -> None:
    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        writer.write(reply(b"thanks"))
        await reader.read()

    async with tunnelled(careful) as made:
        sent = [("Content-Length", "5"), ("Expect", "100-continue")]
        visitor = made.open("POST", "/", sent, ended=False)
        await visitor.until(lambda: len(visitor.heads) == 2)
        assert visitor.heads == [(100, []), (103, [("Link", "</a>")])]
        assert not visitor.ended
        await visitor.upload(b"hello")
        visitor.stream.send_end()
        await visitor.finished()
        assert visitor.status == 200
        assert visitor.body == b"thanks"


@on_both_loops
async def test_answers_without_bodies() -> None:
    async def bodiless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if head.startswith(b"HEAD"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")
            elif b"/204" in head:
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: x\r\n\r\n")

    async with tunnelled(bodiless) as made:
        visitor = await made.get("/", method="HEAD")
        assert (visitor.status, visitor.headers, visitor.body) == (200, {"content-length": "12345"}, b"")
        assert (await made.get("/204")).status == 204
        assert (await made.get("/304")).status == 304
        assert made.accepted == 1
        assert made.ended == {"done": 3}


@on_both_loops
async def test_events_are_passed_on_as_they_come_and_counted() -> None:
    more = asyncio.Event()

    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(CHUNKED.format("text/event-stream; charset=utf-8").encode())
        writer.write(chunk(b"id: 1\ndata: a\n\n"))
        await more.wait()
        writer.write(chunk(b"id: 2\nda"))
        writer.write(chunk(b"ta: b\n\n") + b"0\r\nX-T: 1\r\n\r\n")
        await reader.read()

    async with tunnelled(events) as made:
        visitor = made.open("GET", "/sse?x=1")
        exchange = made.proxy.exchanges
        await visitor.until(lambda: visitor.body)
        shown = exchange["r1"].fields(exchange["r1"].started + 1)
        assert shown.pop("idle_s") <= 1
        assert shown == {
            "request_id": "r1",
            "tunnel": "demo",
            "kind": "sse",
            "method": "GET",
            "path": "/sse?x=1",
            "client": "192.0.2.1",
            "state": "streaming",
            "age_s": 1.0,
            "bytes_in": 0,
            "bytes_out": 15,
            "events": 1,
            "last_event_id": "1",
            "stalled": False,
        }
        more.set()
        await visitor.finished()
        assert visitor.body == b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n"
        assert visitor.trailers == [("X-T", "1")]
        assert not exchange
        assert made.proxy.totals.events == 2
        assert made.changes == [("stream_opened", "r1", ""), ("stream_closed", "r1", "done")]


@on_both_loops
async def test_a_body_that_the_close_delimits_ends_with_it() -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100_000)

    async with tunnelled(old) as made:
        visitor = await made.get()
        assert visitor.ended
        assert len(visitor.body) == 100_000
        assert made.proxy.pool.open == 0


@on_both_loops
async def test_an_answer_may_come_byte_by_byte() -> None:
    answer = CHUNKED.format("text/plain").encode() + chunk(b"hello") + b"0\r\nA: b\r\n\r\n"

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        for i in range(len(answer)):
            writer.write(answer[i : i + 1])
            await asyncio.sleep(0)
        await reader.read()

    async with tunnelled(dribble) as made:
        visitor = await made.get()
        assert visitor.body == b"hello"
        assert visitor.trailers == [("A", "b")]


@on_both_loops
async def test_a_visitor_that_does_not_read_holds_the_service_back() -> None:
    size = 8 << 20
    written = 0

    async def big(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await read_head(reader)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size >> 16):
            writer.write(b"y" * 65536)
            await writer.drain()
            written += 65536
        await reader.read()

    async with tunnelled(big, stream_window=65536) as made:
        visitor = made.open(greedy=False)
        await visitor.until(lambda: len(visitor.body) >= 65536)
        assert len(visitor.body) == 65536
        (exchange,) = made.proxy.exchanges.values()
        assert exchange.bytes_out < 1 << 20
        other = await made.get("/", method="HEAD")  # its neighbour is not held back
        assert other.ended
        visitor.greedy = True
        visitor.take()
        await visitor.finished()
        assert len(visitor.body) == size
        assert made.ended == {"done": 2}


@on_both_loops
async def test_a_service_that_does_not_read_holds_the_visitor_back() -> None:
    size = 32 << 20
    go = asyncio.Event()

    async def lazy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await go.wait()
        writer.write(reply(hashlib.sha256(await reader.readexactly(size)).hexdigest().encode()))
        await reader.read()

    async with tunnelled(lazy) as made:
        visitor = made.open("POST", "/", [("Content-Length", str(size))], ended=False)
        upload = asyncio.ensure_future(visitor.upload(b"z" * size))
        await turns_until(lambda: len(made.proxy.stalls))
        (exchange,) = made.proxy.exchanges.values()
        assert exchange.bytes_in < size
        go.set()
        await upload
        visitor.stream.send_end()
        await visitor.finished()
        assert visitor.body == hashlib.sha256(b"z" * size).hexdigest().encode()


@on_both_loops
async def test_both_directions_flow_at_once_and_either_may_end_first() -> None:
    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(CHUNKED.format("text/plain").encode())
        for _ in range(3):
            size = int(await reader.readline(), 16)
            writer.write(chunk(await reader.readexactly(size)))
            await reader.readline()
        writer.write(b"0\r\n\r\n")
        assert await reader.readline() == b"0\r\n"
        assert await reader.readline() == b"\r\n"
        await read_head(reader)
        writer.write(reply(b"again"))
        await reader.read()

    async with tunnelled(pipe) as made:
        visitor = made.open("POST", "/", [], ended=False)
        for text in (b"one", b"two", b"three"):
            visitor.stream.send(text)
            await visitor.until(lambda text=text: visitor.body.endswith(text))
        await visitor.finished()
        assert made.proxy.exchanges["r1"].state == "uploading"
        visitor.stream.send_end()
        again = await made.get()
        assert again.body == b"again"
        assert made.accepted == 1


@on_both_loops
async def test_no_post_goes_on_a_connection_that_was_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tunnelled(small) as made:
        await made.get()
        monkeypatch.setattr(pool_module, "IDLE_UNSAFE", -1.0)
        await made.open("POST", "/", []).finished()
        assert made.accepted == 2
        await made.get()
        assert made.accepted == 2


@on_both_loops
async def test_a_connection_without_work_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = asyncio.Event()

    async def watching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(reply())
        assert await reader.read() == b""
        closed.set()

    monkeypatch.setattr(pool_module, "IDLE", 0.05)
    async with tunnelled(watching) as made:
        await made.get()
        assert made.proxy.pool.idle == 1
        await closed.wait()
        assert made.proxy.pool.idle == 0


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
@on_both_loops
async def test_a_service_that_ends_or_speaks_unasked_loses_its_connection(says: bytes) -> None:
    closed = asyncio.Event()

    async def restless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(reply())
        await asyncio.sleep(0.01)
        if says:
            writer.write(says)
        else:
            writer.write_eof()
        assert await reader.read() == b""
        closed.set()

    async with tunnelled(restless) as made:
        await made.get()
        await closed.wait()
        assert made.proxy.pool.open == 0
        assert (await made.get()).status == 200
        assert made.accepted == 2


@on_both_loops
async def test_a_body_that_is_not_what_its_length_says_goes_nowhere() -> None:
    got = b""

    async def gather(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        await read_head(reader)
        got += await reader.read(100)
        await reader.read()

    async with tunnelled(gather) as made:
        more = made.open("POST", "/", [("Content-Length", "3")], ended=False)
        more.stream.send(b"1234")
        assert (await more.finished()).reason == "visitor"
        fewer = made.open("POST", "/", [("Content-Length", "3")], ended=False)
        fewer.stream.send(b"12")
        fewer.stream.send_end()
        assert (await fewer.finished()).reason == "visitor"
        assert made.ended == {"visitor": 2}
    assert b"1234" not in got


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/a b", []),
        ("GET", "nothing", []),
        ("GET", "/\r\nX: y", []),
        ("G T", "/", []),
        ("CONNECT", "/", []),
        ("GET", "/", [("Content-Length", "5")]),
        ("GET", "/", [("Content-Length", "0"), ("Content-Length", "0")]),
        ("GET", "/", [("Content-Length", "x")]),
        ("GET", "/", [("X", "a\r\nY: b")]),
        ("GET", "/", [("X", "a\0")]),
        ("GET", "/", [("X Y", "a")]),
    ],
)
@on_both_loops
async def test_a_request_that_could_be_read_in_two_ways_reaches_no_service(
    method: str, path: str, headers: list[tuple[str, str]]
) -> None:
    async with tunnelled(small) as made:
        visitor = await made.open(method, path, headers).finished()
        assert visitor.status == 400
        assert visitor.headers["x-tunnel-error"] == "bad_request"
        assert made.accepted == 0
        assert made.ended == {"visitor": 1}
