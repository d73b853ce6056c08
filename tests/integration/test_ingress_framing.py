"""How requests and answers are framed on a visitor's connection, and what is no request at all."""

from __future__ import annotations

import pytest

from tests.support.front import front
from tests.support.loops import on_both_loops

POST = b"POST /t/demo/up HTTP/1.1\r\nHost: h\r\n"


@on_both_loops
async def test_a_body_of_unknown_length_goes_in_chunks_with_trailers():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", "TE: trailers")
        served = await it.served()
        assert served.headers["te"] == "trailers"
        served.stream.send_head(200, [("Trailer", "X-Sum")])
        served.stream.send(b"a" * 10)
        served.stream.send(b"b" * 40_000)
        served.stream.send_end([("X-Sum", "7"), ("Content-Length", "9"), ("Transfer-Encoding", "x")])
        answer = await client.answer()
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.body == b"a" * 10 + b"b" * 40_000
        assert answer.trailers == [("X-Sum", "7")]
        client.get("/healthz")
        assert (await client.answer()).status == 200


@on_both_loops
async def test_http10_gets_the_connections_end_as_the_bodys():
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", version="1.0")
        served = await it.served()
        served.stream.send_head(103, [("Link", "x")])
        served.stream.send_head(200, [])
        served.stream.send(b"whole")
        served.stream.send_end()
        answer = await client.answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.body == b"whole"

        client = await it.client()
        client.get("/t/demo/", "Connection: keep-alive", version="1.0")
        (await it.served()).answer()
        assert (await client.answer()).headers["connection"] == "keep-alive"
        client.send(b"GET /t/demo/ HTTP/1.0\r\n\r\n")
        (await it.served()).answer()
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed() == b""


@pytest.mark.parametrize(
    ("method", "status", "headers", "length"),
    [
        ("HEAD", 200, [("Content-Length", "5")], "5"),
        ("HEAD", 200, [], None),
        ("GET", 204, [], None),
        ("GET", 204, [("Content-Length", "0")], None),
        ("GET", 304, [("Content-Length", "5"), ("ETag", "x")], "5"),
        ("GET", 200, [("Content-Length", "0")], "0"),
        ("OPTIONS", 200, [("Content-Length", "0")], "0"),
    ],
)
async def test_answers_without_a_body(method, status, headers, length):
    async with front() as it:
        client = await it.client()
        client.get("/t/demo/", method=method)
        served = await it.served()
        served.stream.send_head(status, headers, end=True)
        answer = await client.answer(method=method)
        assert (answer.status, answer.headers.get("content-length")) == (status, length)
        assert "transfer-encoding" not in answer.headers
        client.get("/healthz")
        assert (await client.answer()).status == 200


async def test_heads_with_1xx_are_passed_on_and_100_lets_the_body_come():
    async with front() as it:
        client = await it.client()
        client.send(POST + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        served = await it.served()
        assert not served.ended
        assert served.headers["expect"] == "100-continue"
        served.stream.send_head(103, [("Link", "</a>")])
        assert await client.head() == (103, [("Link", "</a>")])
        served.stream.send_head(100, [])
        assert await client.head() == (100, [])
        client.send(b"body")
        assert await served.whole() == b"body"
        served.answer()
        assert (await client.answer()).body == b"ok"
        client.get("/healthz")
        assert (await client.answer()).status == 200


async def test_an_expectation_that_is_refused_ends_the_connection():
    async with front() as it:
        client = await it.client()
        client.send(POST + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        served = await it.served()
        served.answer(413, body=b"no")
        served.stream.stop()
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"no", "close")
        assert await client.closed() == b""
        await client.leave()
        await it.settle()


@on_both_loops
async def test_pipelined_requests_are_served_one_at_a_time_in_order():
    async with front() as it:
        client = await it.client()
        first = (
            POST + b"Content-Length: 3\r\n\r\none" + POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
        )
        client.send(b"\r\n" + first + b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" * 40 + b"GET /t/demo/ HTTP/1.1\r\nHo")
        for body in (b"one", b"two"):
            served = await it.served()
            assert await served.whole() == body
            assert it.requests.empty()
            served.answer(body=body)
            assert (await client.answer()).body == body
        for _ in range(40):
            assert (await client.answer()).body == b"ok\n"
        client.send(b"st: h\r\n\r\n")
        (await it.served()).answer()
        assert (await client.answer()).body == b"ok"


@on_both_loops
async def test_a_flood_behind_a_request_pauses_reading_and_is_served_later():
    async with front() as it:
        client = await it.client()
        one = b"GET /healthz HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 60 + b"\r\n\r\n"
        client.get("/t/demo/")
        served = await it.served()
        client.send(one * 2000)
        connection = next(iter(it.ingress.connections))
        async with _pause(connection):
            served.answer()
        assert (await client.answer()).body == b"ok"
        for _ in range(2000):
            assert (await client.answer()).status == 200


class _pause:
    def __init__(self, connection) -> None:
        self.connection = connection

    async def __aenter__(self) -> None:
        import asyncio

        async with asyncio.timeout(10):
            while self.connection._reading:
                await asyncio.sleep(0)

    async def __aexit__(self, *_) -> None:
        pass


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_cuts_do_not_matter(step):
    raw = POST + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
    raw += POST + b"Content-Length: 4\r\n\r\nlast"
    async with front() as it:
        client = await it.client()
        for at in range(0, len(raw), step):
            client.send(raw[at : at + step])
            await client.writer.drain()
        served = await it.served()
        assert await served.whole() == b"abcde"
        assert served.trailers == [("X-T", "1")]
        served.answer()
        assert (await client.answer()).status == 200
        served = await it.served()
        assert await served.whole() == b"last"
        served.answer()
        assert (await client.answer()).status == 200


@on_both_loops
async def test_an_early_answer_to_an_upload_goes_out_whole():
    async with front() as it:
        client = await it.client()
        client.send(POST + b"Content-Length: 10000000\r\n\r\n" + b"x" * 200_000)
        served = await it.served()
        served.answer(413, body=b"too much " * 1000)
        served.stream.stop()
        client.send(b"x" * 2_000_000)
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"too much " * 1000)
        assert answer.headers["connection"] == "close"
        await client.leave()
        await it.settle()


async def test_an_answer_before_the_uploads_end_without_stop_lets_the_upload_go_on():
    async with front() as it:
        client = await it.client()
        client.send(POST + b"Content-Length: 6\r\n\r\nabc")
        served = await it.served()
        await served.until(lambda: served.body)
        served.answer()
        assert (await client.answer()).body == b"ok"
        client.send(b"def")
        assert await served.whole() == b"abcdef"
        assert await client.closed() == b""
        await client.leave()
        await it.settle()


async def test_a_body_over_its_limit_is_413_at_once_or_on_the_way():
    async with front(limits={"max_body": 1000}) as it:
        client = await it.client()
        client.send(POST + b"Content-Length: 1001\r\n\r\nx")
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (413, "body_too_large")
        assert await client.closed() == b""
        assert it.requests.empty()
        client = await it.client()
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n200\r\n" + b"x" * 512 + b"\r\n")
        served = await it.served()
        client.send(b"200\r\n" + b"x" * 512 + b"\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (413, "body_too_large")
        assert await served.cancel_reason() == "limit"
        client = await it.client()
        client.send(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)
        served = await it.served()
        assert len(await served.whole()) == 1000
        served.answer()
        assert (await client.answer()).status == 200


async def test_a_chunked_body_that_breaks_is_400_and_cancelled():
    async with front() as it:
        client = await it.client()
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        served = await it.served()
        client.send(b"3\r\nabcdefg\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (400, "bad_request")
        assert await served.cancel_reason() == "visitor"
        assert await client.closed() == b""


async def test_heads_have_a_size_and_a_time():
    async with front(limits={"max_header": 4096, "header_timeout": 0.1}) as it:
        client = await it.client()
        client.get("/healthz", "X: " + "x" * 3900)
        assert (await client.answer()).status == 200
        client.get("/healthz", "X: " + "x" * 4096)
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (431, "head_too_large")
        client = await it.client()
        client.send(b"GET /" + b"a" * 5000)
        assert (await client.answer()).status == 431
        client = await it.client()
        client.send(b"GET /healthz HTTP/1.1\r\nHos")
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (408, "request_timeout")
        assert await client.closed() == b""


async def test_a_connection_that_never_asks_is_closed_when_a_head_was_due():
    async with front(limits={"header_timeout": 0.1, "idle_timeout": 75}) as it:
        client = await it.client()
        assert await client.closed() == b""
        client = await it.client()
        client.get("/healthz")
        assert (await client.answer()).status == 200
        client.get("/healthz", "Connection: close")
        assert (await client.answer()).status == 200
        await it.settle()


@on_both_loops
async def test_an_idle_connection_is_closed_without_a_word():
    async with front(limits={"idle_timeout": 0.1}) as it:
        client = await it.client()
        assert await client.closed() == b""
        client = await it.client()
        client.get("/healthz")
        assert (await client.answer()).status == 200
        assert await client.closed() == b""
        await it.settle()


H = b"Host: h\r\n"
GET = b"GET /t/demo/ HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /t/demo/x", 400, "bad_request"),
        (POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400, "bad_request"),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n", 501, "unsupported_coding"),
        (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400, "bad_request"),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n", 400, "bad_request"),
        (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n", 400, "bad_request"),
        (POST + b"X: a\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_request"),
        (POST + b"X: a\rb\r\n\r\n", 400, "bad_request"),
        (GET + H + H + b"\r\n", 400, "bad_host"),
        (GET + b"\r\n", 400, "bad_host"),
        (b"GET http://h/t/demo/ HTTP/1.1\r\n" + H + b"\r\n", 400, "bad_path"),
        (b"CONNECT h:443 HTTP/1.1\r\n" + H + b"\r\n", 400, "bad_request"),
        (b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", 400, "bad_path"),
        (b"GET /t/demo/%2e%2E/x HTTP/1.1\r\n" + H + b"\r\n", 400, "bad_path"),
        (b"GET /t/demo/../other/ HTTP/1.1\r\n" + H + b"\r\n", 400, "bad_path"),
        (b"GET /t/demo/\r\n", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version_not_supported"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (b"\x00\x01\x02\x03", 400, "bad_request"),
        (b"\xde\xad\xbe\xef" * 100, 400, "bad_request"),
        (GET + H + b"Expect: nonsense\r\n\r\n", 417, "expectation_failed"),
    ],
)
async def test_what_is_smuggled_reaches_nobody(raw, status, code):
    async with front() as it:
        client = await it.client()
        client.send(raw)
        answer = await client.answer()
        assert (answer.status, answer.headers["x-tunnel-error"]) == (status, code)
        assert await client.closed() == b""
        assert it.requests.empty()
        await client.leave()
        await it.settle()


async def test_a_service_cannot_smuggle_either():
    async with front() as it:
        for headers in (
            [("X", "a\r\nSet-Cookie: b=c")],
            [("X\r\nY", "a")],
            [("Content-Length", "1"), ("Content-Length", "2")],
            [("Content-Length", "-1")],
            [("X", "a\0")],
        ):
            client = await it.client()
            client.get("/t/demo/")
            served = await it.served()
            served.stream.send_head(200, headers)
            answer = await client.answer()
            assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "bad_answer")
            assert await served.cancel_reason() == "service"
        client = await it.client()
        client.get("/t/demo/")
        served = await it.served()
        served.stream.send_head(101, [("Upgrade", "x")])
        assert (await client.answer()).status == 502
