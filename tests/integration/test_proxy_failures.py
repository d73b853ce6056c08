"""The proxy and services that fail in every way: each has its own answer, and none ends cleanly that was not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.joined import Visitor
from tests.support.loops import on_both_loops
from tests.support.sockets import free_port
from tests.support.tunnelled import (
    Reader,
    Tunnelled,
    Writer,
    assert_problem,
    read_head,
    reply,
    tunnelled,
    tunnelled_to,
    turns_until,
)
from tunneld.config.agent import AgentConfig
from tunneld.config.link import ServerLink
from tunneld.config.tunnel import AgentLimits, TunnelConfig
from tunneld.wire.sockets import reset

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def says(*parts: bytes, then: str = "wait") -> Callable[[Reader, Writer], Coroutine[Any, Any, None]]:
    """A service that answers whatever it is asked with these bytes, and then waits, closes or resets."""

    async def service(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then == "wait":
            await reader.read()
        elif then == "reset":
            await asyncio.sleep(0.01)  # so that what was written is there before the reset is
            reset(writer.transport)  # type: ignore[arg-type]

    return service


@pytest.mark.parametrize(
    ("service", "code"),
    [
        pytest.param(says(then="close"), "service_broke", id="closes"),
        pytest.param(says(then="reset"), "service_broke", id="resets"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nA: ", then="close"), "service_broke", id="closes in its head"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nA: ", then="reset"), "service_broke", id="resets in its head"),
        pytest.param(says(b"HTTP/1.1 100 Continue\r\n\r\n", then="close"), "service_broke", id="closes after 100"),
        pytest.param(says(b"SSH-2.0-OpenSSH\r\n"), "bad_answer", id="another protocol"),
        pytest.param(says(b"\0" * 100_000), "bad_answer", id="zeros"),
        pytest.param(says(b"HTTP/1.1 200 OK\nA: b\n\nhello"), "bad_answer", id="bare LF"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "bad_answer", id="no length"),
        pytest.param(
            says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
            "bad_answer",
            id="switches protocols",
        ),
        pytest.param(says(b"HTTP/1.1 102 Processing\r\n\r\n" * 9), "bad_answer", id="1xx for ever"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000), "answer_too_large", id="huge head"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n"), "answer_too_large", id="fields"),
        pytest.param(
            says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: " + b'"' * 100_000 + b"\r\n\r\n"),
            "answer_too_large",
            id="huge head once encoded",
        ),
    ],
)
@on_both_loops
async def test_a_failure_before_the_head_has_its_own_answer(service: Any, code: str) -> None:
    async with tunnelled(service) as made:
        visitor = await made.open().finished()
        await assert_problem(visitor, code, made)
        assert made.accepted == 1


@on_both_loops
async def test_a_problem_to_head_has_no_body() -> None:
    async with tunnelled(says(then="close")) as made:
        visitor = await made.get(method="HEAD")
        assert visitor.status == 502
        assert visitor.body == b""


@on_both_loops
async def test_a_service_that_stays_down_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tunneld.agent")
    async with tunnelled_to(f"http://127.0.0.1:{free_port()}") as made:
        for _ in range(3):
            await made.get()
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warned] == ["The service cannot be reached: connection refused."]
    assert warned[0].__dict__["code"] == "service_unreachable"


@on_both_loops
async def test_a_service_that_does_not_answer_times_out() -> None:
    async with tunnelled(says(), limits={"response_timeout": 0.1}) as made:
        await assert_problem(await made.get(), "service_timeout", made)


@on_both_loops
async def test_the_time_to_answer_begins_when_the_upload_is_over() -> None:
    async with tunnelled(says(), limits={"response_timeout": 0.1}) as made:
        visitor = made.open("POST", "/", [], ended=False)
        visitor.stream.send(b"x")
        await turns_until(lambda: made.proxy.totals.streams)
        await turns_until(lambda: made.proxy.exchanges["r1"].bytes_in)
        await asyncio.sleep(0.2)  # longer than the limit: nothing happens
        assert not visitor.over
        visitor.stream.send_end()
        await assert_problem(await visitor.finished(), "service_timeout", made)


@on_both_loops
async def test_a_new_limit_holds_for_what_is_open() -> None:
    async with tunnelled(says()) as made:
        visitor = made.open()
        await turns_until(lambda: made.proxy.exchanges)
        await turns_until(lambda: made.proxy.exchanges["r1"].state == "waiting")
        config = TunnelConfig(
            name="demo",
            service=made.proxy.service,
            limits=AgentLimits(response_timeout=0.05),
            headers={"X-New": "1"},
        )
        made.proxy.update(config)
        await assert_problem(await visitor.finished(), "service_timeout", made)
    assert AgentConfig(server=ServerLink(url="ws://127.0.0.1:1"), tunnels=(config,)).tunnels


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", id="length"),
        pytest.param(SSE + b"5\r\nhello\r\n", id="chunks"),
        pytest.param(SSE + b"5\r\nhello\r\n0\r\n", id="trailers"),
        pytest.param(SSE + b"9\r\nhello", id="in a chunk"),
    ],
)
@pytest.mark.parametrize("then", ["close", "reset"])
@on_both_loops
async def test_a_body_that_breaks_off_is_no_clean_end(begin: bytes, then: str) -> None:
    async with tunnelled(says(begin, then=then)) as made:
        visitor = await made.get()
        assert visitor.status == 200
        assert visitor.reason == "service"
        assert not visitor.ended
        assert made.ended == {"service": 1}


@on_both_loops
async def test_a_reset_is_no_clean_end_even_where_the_close_would_be() -> None:
    async with tunnelled(says(b"HTTP/1.1 200 OK\r\n\r\nhello", then="reset")) as made:
        visitor = await made.get()
        assert visitor.body == b"hello"
        assert visitor.reason == "service"


@on_both_loops
async def test_a_bad_chunk_is_no_clean_end() -> None:
    async with tunnelled(says(SSE + b"5\r\nhello\r\n", b"nonsense\r\n")) as made:
        visitor = await made.get()
        assert visitor.reason == "service"
        assert not visitor.ended


@on_both_loops
async def test_trailers_over_the_limit_are_dropped() -> None:
    trailers = b"A: " + b"x" * 200_000 + b"\r\n\r\n"
    async with tunnelled(says(SSE + b"5\r\nhello\r\n0\r\n" + trailers)) as made:
        visitor = await made.get()
        assert visitor.body == b"hello"
        assert visitor.trailers == []
        assert made.ended == {"done": 1}
        assert made.proxy.pool.open == 0


@on_both_loops
async def test_a_connection_closed_as_the_request_goes_out_is_tried_once_more() -> None:
    seen: list[bytes] = []

    async def fickle(reader: Reader, writer: Writer) -> None:
        """Answers one request a connection, and closes at the second."""
        seen.append((await read_head(reader))[:9])
        writer.write(reply(b"first"))
        seen.append((await read_head(reader))[:9])

    async with tunnelled(fickle) as made:
        for path in ("/1", "/2", "/3"):
            visitor = await made.get(path)
            assert visitor.body == b"first"
        assert made.ended == {"done": 3}
        assert made.accepted == 3
        visitor = await made.open("POST", "/4", []).finished()
        assert visitor.headers["x-tunnel-error"] == "service_broke"
        assert made.ended == {"done": 3, "service": 1}
        assert made.accepted == 3
    assert seen == [b"GET /1 HT", b"GET /2 HT", b"GET /2 HT", b"GET /3 HT", b"GET /3 HT", b"POST /4 H"]


@on_both_loops
async def test_a_second_failure_is_told() -> None:
    count = 0

    async def dying(reader: Reader, writer: Writer) -> None:
        nonlocal count
        await read_head(reader)
        count += 1
        if count == 1:
            writer.write(reply())
            await read_head(reader)

    async with tunnelled(dying) as made:
        await made.get()
        visitor = await made.get()
        assert visitor.headers["x-tunnel-error"] == "service_broke"
        assert made.accepted == 2


@on_both_loops
async def test_a_body_that_began_is_not_sent_again() -> None:
    async def dying(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(reply())
        await read_head(reader)
        await reader.readexactly(1)

    async with tunnelled(dying) as made:
        await made.get()
        visitor = made.open("PUT", "/", [], ended=False)
        visitor.stream.send(b"x" * 10)
        await visitor.finished()
        assert visitor.headers["x-tunnel-error"] == "service_broke"
        assert visitor.stop
        assert made.accepted == 1


@on_both_loops
async def test_an_empty_body_in_chunks_is_ended_again_when_it_is_sent_again() -> None:
    async def fickle(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        assert (await reader.readline(), await reader.readline()) == (b"0\r\n", b"\r\n")
        writer.write(reply(b"first"))
        await read_head(reader)
        await reader.readexactly(5)

    async with tunnelled(fickle) as made:
        for _ in range(2):
            visitor = made.open("PUT", "/", [], ended=False)
            visitor.stream.send_end()
            await visitor.finished()
            assert visitor.body == b"first"
        assert made.accepted == 2


@on_both_loops
async def test_what_comes_before_there_is_a_connection_is_sent_whole() -> None:
    async def gather(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        body = await reader.readuntil(b"0\r\nX-Sum: 1\r\n\r\n")
        writer.write(reply(body))

    async with tunnelled(gather) as made:
        visitor = made.open("POST", "/", [], ended=False)
        visitor.stream.send(b"hello")
        visitor.stream.send_end([("X-Sum", "1")])
        await turns_until(lambda: made.proxy.exchanges)
        assert made.proxy.exchanges["r1"].state == "connecting"
        await visitor.finished()
        assert visitor.body == b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"


@pytest.mark.parametrize("polite", [True, False])
@on_both_loops
async def test_an_early_answer_goes_out_whole_and_the_upload_is_stopped(polite: bool) -> None:
    body = b"too much" * 5000

    async def early(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        await reader.readexactly(1000)
        extra = "Connection: close\r\n" if polite else ""
        writer.write(reply(body, status="413 Content Too Large", extra=extra))
        await writer.drain()
        # and closes with the upload unread, which is a reset

    async with tunnelled(early) as made:
        visitor = made.open("POST", "/", [("Content-Length", str(64 << 20))], ended=False)
        await visitor.upload(b"x" * (64 << 20))
        await visitor.finished()
        assert visitor.status == 413
        assert bytes(visitor.body) == body
        await visitor.until(lambda: visitor.stop)
        await turns_until(lambda: not made.proxy.exchanges)
        assert made.ended == {"done": 1}
        await turns_until(lambda: not made.joined.agent.streams)
        assert made.proxy.pool.open == 0


@on_both_loops
async def test_a_service_that_takes_nothing_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    release = asyncio.Event()

    async def deaf(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await release.wait()

    async with tunnelled(deaf, limits={"stall": 0.2}) as made:
        visitor = made.open("POST", "/", [], ended=False)
        await visitor.upload(b"x" * (64 << 20))
        await visitor.finished()
        assert visitor.reason == "limit"
        assert made.ended == {"limit": 1}
        assert any("is over limits.stall: its service takes nothing" in line for line in caplog.messages)
        release.set()


@on_both_loops
async def test_a_service_that_takes_little_is_not_given_up() -> None:
    size = 8 << 20

    async def slow(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        left = size
        for _ in range(8):
            await asyncio.sleep(0.05)
            left -= len(await reader.readexactly(size // 8))
        assert not left
        writer.write(reply(b"thanks"))
        await reader.read()

    async with tunnelled(slow, limits={"stall": 0.2}) as made:
        visitor = made.open("POST", "/", [("Content-Length", str(size))], ended=False)
        await visitor.upload(b"x" * size)
        visitor.stream.send_end()
        await visitor.finished()
        assert visitor.body == b"thanks"


async def _paused(made: Tunnelled) -> Visitor:
    """A visitor that takes nothing; returns when reading from the service is paused."""
    visitor = made.open(greedy=False)
    await visitor.answered()
    await turns_until(lambda: made.proxy.exchanges["r1"]._connection.paused)  # type: ignore[union-attr]
    return visitor


@pytest.mark.parametrize("how", ["reset", "short", "short chunk"])
@on_both_loops
async def test_a_failure_while_reading_is_paused_is_noticed(how: str) -> None:
    fail = asyncio.Event()

    async def failing(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        if how == "short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n989680\r\n")
        writer.write(b"x" * 150_000)
        await fail.wait()
        if how == "reset":
            reset(writer.transport)  # type: ignore[arg-type]

    async with tunnelled(failing, stream_window=65536) as made:
        visitor = await _paused(made)
        fail.set()
        await visitor.finished()
        assert visitor.reason == "service"
        assert made.ended == {"service": 1}


@pytest.mark.parametrize("framed", [True, False])
@on_both_loops
async def test_a_clean_end_while_reading_is_paused_waits_for_the_visitor(framed: bool) -> None:
    size = 1_000_000
    end, ended = asyncio.Event(), asyncio.Event()

    async def ending(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % size if framed else b"\r\n")
        writer.write(b"x" * size)
        await writer.drain()
        await end.wait()
        writer.close()
        ended.set()

    async with tunnelled(ending, stream_window=65536) as made:
        visitor = await _paused(made)
        end.set()
        await ended.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not visitor.over
        visitor.greedy = True
        visitor.take()
        await visitor.finished()
        assert visitor.ended
        assert len(visitor.body) == size
        assert made.ended == {"done": 1}
