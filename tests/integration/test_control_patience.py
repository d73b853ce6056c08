"""How long both APIs wait for a caller that does not end its request, or does not take its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from tests.support.control_agent import MemoryAgent, stream_info
from tunneld.control import protocol
from tunneld.control.app import create_app
from tunneld.control.listener import ControlServer
from tunneld.control.serving import MAX_CONNECTIONS

BOUND = 0.6
LATE = BOUND + 0.9  # what a busy machine may add

ASK = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n"
PUT = b"PUT /v1/log-level HTTP/1.1\r\nHost: localhost\r\n"
REFUSED = PUT + b"Origin: https://evil.example\r\n"
STREAMS = b"GET /v1/streams HTTP/1.1\r\nHost: localhost\r\n\r\n"
EVENTS = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
async def path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    monkeypatch.setattr(protocol, "IDLE", BOUND)
    agent = MemoryAgent()
    agent.add(*(stream_info(f"s{number}") for number in range(4000)))
    async with ControlServer(lambda: create_app(agent), folder / "c.sock"):
        async with calling(folder / "c.sock") as caller:
            caller.writer.write(ASK + b"\r\n")  # what serves is loaded now
            await caller.reader.readuntil(b"\r\n\r\n")
        yield folder / "c.sock"


@asynccontextmanager
async def calling(path: Path) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.began = time.monotonic()

    async def left(self) -> bytes:
        """What comes until the other side ends."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def drip(self, some: bytes) -> None:
        """Send that again and again until the other side ends."""
        while True:
            self.writer.write(some)
            await asyncio.sleep(BOUND / 10)

    @property
    def age(self) -> float:
        return time.monotonic() - self.began


@pytest.mark.parametrize(
    ("begin", "dripped", "told"),
    [
        (b"", b"", b""),
        (b"", b"\r\n", b""),
        (b"G", b"", b"408"),
        (ASK, b"", b"408"),
        (ASK + b"X: ", b"x", b"408"),
        (PUT + b"Content-Length: 60\r\n\r\n", b"", b"408"),
        (PUT + b"Content-Length: 600\r\n\r\n", b" ", b"408"),
        (PUT + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"408"),
        (PUT + b'Transfer-Encoding: chunked\r\n\r\n10\r\n{"level":"info"}\r\n0\r\n', b"X: x\r\n", b"408"),
        (REFUSED + b"Content-Length: 600\r\n\r\n", b" ", b"403"),
        (ASK + b"\r\n", b"", b"200"),
        (ASK + b"\r\n", b"\r\n", b"200"),
        (ASK + b"Content-Length: 600\r\n\r\n", b" ", b"200"),
    ],
)
async def test_a_caller_that_does_not_end_its_request_is_told_and_let_go(
    path: Path, caplog: pytest.LogCaptureFixture, begin: bytes, dripped: bytes, told: bytes
) -> None:
    async with calling(path) as caller:
        caller.writer.write(begin)
        dripping = asyncio.ensure_future(caller.drip(dripped))
        answer = await caller.left()
        age = caller.age
        dripping.cancel()
    assert BOUND - 0.05 <= age < LATE
    assert answer.count(b"HTTP/1.1") == (1 if told else 0)
    assert answer[9:12] == told
    if told == b"408":
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"content-type: application/problem+json" in head.lower()
        assert b"connection: close" in head.lower()
        assert b"content-length: %d" % len(body) in head.lower()
        assert json.loads(body)["code"] == "request_timeout"
        assert "whole within 0.6 s" in json.loads(body)["detail"]
    assert [entry for entry in caplog.records if entry.levelno >= logging.ERROR] == []


async def test_what_was_quiet_before_a_request_is_none_of_its_time(path: Path) -> None:
    async with calling(path) as caller:
        for _ in range(3):
            for part in (ASK[:10], ASK[10:] + b"\r\n"):
                await asyncio.sleep(BOUND * 0.7)
                caller.writer.write(part)
            assert b"200 OK" in await caller.reader.readuntil(b"\r\n\r\n")
            await caller.reader.readuntil(b"}")


async def test_half_a_request_behind_an_answer_that_goes_on_ends_both_untold(path: Path) -> None:
    async with calling(path) as caller:
        caller.writer.write(EVENTS + b"GE")
        assert b"408" not in await caller.left()
        assert caller.age < LATE


@pytest.mark.parametrize("behind", [b"", ASK + b"\r\n"], ids=["nothing", "a request"])
async def test_a_reader_of_what_goes_on_stays_and_what_waits_behind_it(path: Path, behind: bytes) -> None:
    async with calling(path) as caller:
        caller.writer.write(EVENTS + behind)
        await caller.reader.readuntil(b"subscribed\n\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * BOUND):
                await caller.reader.read()


@pytest.mark.parametrize("asked", [STREAMS, STREAMS * 8, STREAMS[:-2] + b"Connection: close\r\n\r\n"])
async def test_a_caller_that_does_not_take_its_answer_is_let_go(path: Path, asked: bytes) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(path))
        await loop.sock_sendall(sock, asked)
        await asyncio.sleep(2 * LATE)
        answer = bytearray()
        async with asyncio.timeout(10):
            while some := await loop.sock_recv(sock, 65536):
                answer += some
        assert b"content-length" in answer
        assert answer.count(b'"request_id"') < 4000  # so that nobody takes it for the whole


async def test_a_caller_that_takes_next_to_nothing_is_let_go(path: Path) -> None:
    """However often it does."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(path))
        await loop.sock_sendall(sock, STREAMS)
        taken, began = 0, time.monotonic()
        while time.monotonic() < began + 3 * LATE:
            taken += len(await loop.sock_recv(sock, 2048))
            await asyncio.sleep(BOUND / 8)
        async with asyncio.timeout(10):
            while some := await loop.sock_recv(sock, 65536):
                taken += len(some)
        assert taken < 1_000_000  # it is one and a half million


@pytest.mark.parametrize("patient", [False, True])
async def test_a_stream_that_nobody_reads_is_let_go_unless_it_bounds_that_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    monkeypatch.setattr(protocol, "IDLE", BOUND)
    app, ended = FastAPI(), asyncio.Event()

    @app.get("/endless")
    async def endless(request: Request) -> StreamingResponse:
        async def some() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 4096
                    await asyncio.sleep(0)
            finally:
                ended.set()

        if patient:
            request.scope["state"]["patient"] = True
        return StreamingResponse(some())

    async with ControlServer(lambda: app, folder / "e.sock"), calling(folder / "e.sock") as caller:
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        caller.writer.write(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if patient:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ended.wait(), 2 * LATE + 2)
        else:
            await asyncio.wait_for(ended.wait(), 2 * LATE + 8)


async def test_one_that_takes_it_slowly_gets_it_whole(path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(path))
        await loop.sock_sendall(sock, STREAMS)
        answer = bytearray()
        while not answer.endswith(b"]}"):
            answer += await loop.sock_recv(sock, 300_000)
            await asyncio.sleep(BOUND / 2)
        assert answer.count(b'"request_id"') == 4000


async def test_those_that_keep_others_out_are_gone_in_time(path: Path) -> None:
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(calling(path)) for _ in range(MAX_CONNECTIONS)]
        for caller in slow:
            caller.writer.write(ASK)
        async with calling(path) as other:
            other.writer.write(ASK + b"\r\n")
            assert b"503" in await other.reader.readuntil(b"\r\n\r\n")
        await asyncio.gather(*(caller.left() for caller in slow))
        async with calling(path) as other:
            other.writer.write(ASK + b"\r\n")
            assert b"200 OK" in await other.reader.readuntil(b"\r\n\r\n")
