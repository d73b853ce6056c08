"""How a request's end reaches the service, and what the log says of it: visitors that leave, sessions that are lost."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tests.support.loops import on_both_loops
from tests.support.tunnelled import CHUNKED, Tunnelled, chunk, read_head, reply, tunnelled, turns_until


class Events:
    """Answers each request with one event and then waits; `closed` counts the connections that were closed to it."""

    def __init__(self) -> None:
        self.closed = asyncio.Semaphore(0)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(CHUNKED.format("text/event-stream").encode() + chunk(b"data: 1\n\n"))
        try:
            await reader.readexactly(1)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed.release()


@on_both_loops
async def test_more_than_max_streams_are_refused() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with tunnelled(hang, limits={"max_streams": 2}) as made:
        first, second, third = made.open(), made.open(), made.open()
        await third.finished()
        assert third.reason == "refused"
        assert len(made.proxy.exchanges) == 2
        assert made.ended == {"refused": 1}
        assert not first.over
        assert not second.over


@on_both_loops
async def test_ends_are_logged_once_with_their_reason(caplog: pytest.LogCaptureFixture) -> None:
    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if b"/sse" in head:
                writer.write(CHUNKED.format("text/event-stream").encode() + chunk(b"data: 1\n\n"))
            else:
                writer.write(reply())

    caplog.set_level(logging.DEBUG, "tunneld.agent")
    async with tunnelled(events) as made:
        await made.get("/?token=secret")
        visitor = made.open("GET", "/sse")
        await visitor.until(lambda: visitor.body)
        assert made.proxy.cancel("r2")
        assert not made.proxy.cancel("r2")
        await visitor.finished()
        assert visitor.reason == "operator"

    assert not any("secret" in str(record.__dict__) for record in caplog.records)

    def said(record: logging.LogRecord) -> tuple[Any, ...]:
        return (record.getMessage(), record.levelname, record.__dict__["reason"], record.__dict__["tunnel"])

    assert [said(record) for record in caplog.records if record.name == "tunneld.agent"] == [
        ("🧹 Cleaned up stream: r1", "DEBUG", "done", "demo"),
        ("🛑 Cancelling stream: r2", "INFO", "operator", "demo"),
        ("🧹 Cleaned up stream: r2", "INFO", "operator", "demo"),
    ]


async def _cancelled_at(made: Tunnelled, closed: asyncio.Event, visitor: Any) -> None:
    visitor.stream.cancel("visitor")
    await asyncio.wait_for(closed.wait(), 2)
    assert not made.proxy.exchanges
    assert made.ended == {"visitor": 1}


@pytest.mark.parametrize("when", ["waiting", "streaming", "paused", "uploading"])
@on_both_loops
async def test_a_visitor_that_leaves_closes_the_services_connection(when: str) -> None:
    closed, reached = asyncio.Event(), asyncio.Event()

    async def working(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        try:
            if when in ("streaming", "paused"):
                writer.write(CHUNKED.format("text/event-stream").encode() + chunk(b"data: 1\n\n"))
            reached.set()
            if when == "uploading":
                await closed.wait()
            while when == "paused":
                writer.write(chunk(b"data: " + b"x" * 8000 + b"\n\n"))
                await writer.drain()
            await reader.readexactly(1)
        except (ConnectionError, asyncio.IncompleteReadError):
            closed.set()
            raise

    async with tunnelled(working, stream_window=65536) as made:
        if when == "uploading":
            visitor = made.open("POST", "/", [], ended=False)
            upload = asyncio.ensure_future(visitor.upload(b"x" * (32 << 20)))
            await reached.wait()
            await turns_until(lambda: len(made.proxy.stalls))
            visitor.stream.cancel("visitor")
            visitor.could_write = True
            visitor._changed.set()
            await upload
            closed.set()
            await asyncio.sleep(0)
            return
        visitor = made.open("GET", "/", greedy=when != "paused")
        await reached.wait()
        if when == "streaming":
            await visitor.until(lambda: visitor.body)
        elif when == "paused":
            await visitor.until(lambda: len(visitor.body) == 65536)
        await _cancelled_at(made, closed, visitor)


@on_both_loops
async def test_a_visitor_that_stops_the_answer_closes_the_services_connection() -> None:
    events = Events()
    async with tunnelled(events) as made:
        visitor = made.open()
        await visitor.until(lambda: visitor.body)
        visitor.stream.stop()
        await events.closed.acquire()
        assert made.ended == {"visitor": 1}
        assert not made.joined.agent.streams


@on_both_loops
async def test_a_lost_session_closes_the_services_connections() -> None:
    events = Events()
    async with tunnelled(events) as made:
        visitors = [made.open() for _ in range(5)]
        for visitor in visitors:
            await visitor.until(lambda visitor=visitor: visitor.body)
        made.joined.agent.end("peer_lost")
        for _ in visitors:
            await events.closed.acquire()
        assert made.ended == {"peer_lost": 5}


@on_both_loops
async def test_closing_ends_everything() -> None:
    events = Events()
    async with tunnelled(events) as made:
        visitor = made.open()
        await visitor.until(lambda: visitor.body)
        made.proxy.close()
        assert (await visitor.finished()).reason == "shutdown"
        await events.closed.acquire()
        assert (await made.get()).reason == "refused"


@pytest.mark.parametrize("then", ["taken", "operator", "visitor"])
@on_both_loops
async def test_an_exchange_lives_until_its_last_byte_is_written(then: str) -> None:
    body = b"tail" * 10_000  # the window takes a part of it, the rest waits for credit

    async def quick(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(reply(body))
        await writer.drain()

    async with tunnelled(quick, stream_window=16384) as made:
        visitor = made.open(greedy=False)
        await turns_until(lambda: [one.state for one in made.proxy.exchanges.values()] == ["sending"])
        await turns_until(lambda: not made.proxy.pool.open or made.proxy.pool.idle)  # the service is done with it
        if then == "taken":
            visitor.greedy = True
            visitor.take()
            await visitor.finished()
            assert bytes(visitor.body) == body
        elif then == "operator":
            assert made.proxy.cancel("r1")
            await visitor.until(lambda: visitor.reason)
            assert visitor.reason == "operator"
        else:
            visitor.stream.cancel("visitor")
        await turns_until(lambda: not made.proxy.exchanges)
        assert made.ended == {"done" if then == "taken" else then: 1}
