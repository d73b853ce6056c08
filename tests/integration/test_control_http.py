"""HTTP/1 as both APIs speak it, by raw bytes on a real socket: what clients of every kind send and are sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from tests.support.control_agent import MemoryAgent, stream_info
from tunneld.control.app import create_app
from tunneld.control.listener import ControlServer
from tunneld.control.protocol import MAX_BEHIND, MAX_HEAD, MAX_HELD

ASK = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
async def agent(folder: Path) -> AsyncIterator[MemoryAgent]:
    made = MemoryAgent()
    made.add(*(stream_info(f"s{number}") for number in range(800)))

    def make() -> FastAPI:
        apps.append(create_app(made))
        return apps[-1]

    async with ControlServer(make, folder / "c.sock"):
        yield made
    apps.clear()


apps: list[FastAPI] = []


@pytest.fixture
async def connection(agent: MemoryAgent, folder: Path) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_unix_connection(folder / "c.sock")
    yield Connection(reader, writer)
    writer.close()


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> tuple[bytes, dict[bytes, bytes]]:
        """Status line and fields of the next answer."""
        async with asyncio.timeout(20):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        return first, {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}

    async def rest(self) -> bytes:
        """All that comes until the other side ends."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    async def answer(self, asked: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
        """One with a length."""
        self.writer.write(asked)
        first, fields = await self.head()
        return first, fields, await self.reader.readexactly(int(fields[b"content-length"]))


async def test_a_head_of_almost_the_bound_is_served_and_a_larger_one_is_not(connection: Connection) -> None:
    first, *_ = await connection.answer(ASK + b"X: " + b"x" * (MAX_HEAD - 100) + b"\r\n\r\n")
    assert first == b"HTTP/1.1 200 OK"
    connection.writer.write(ASK + b"X: " + b"x" * MAX_HEAD + b"\r\n\r\n")
    assert (await connection.head())[0] == b"HTTP/1.1 400 Bad Request"
    assert b"Invalid HTTP" in await connection.rest()


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nX"])
async def test_a_head_without_end_is_ended_at_the_bound(agent: MemoryAgent, folder: Path, start: bytes) -> None:
    loop, sent = asyncio.get_running_loop(), 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(folder / "c.sock"))
        await loop.sock_sendall(sock, ASK + b"\r\n")
        assert b"200 OK" in await loop.sock_recv(sock, 65536)  # what serves it is there
        await loop.sock_sendall(sock, start)
        with contextlib.suppress(BrokenPipeError):
            while sent < 20 * MAX_HEAD:  # that, and what both sockets hold, is less
                await loop.sock_sendall(sock, b"x" * 1000)
                sent += 1000
        assert MAX_HEAD <= sent < 20 * MAX_HEAD
        assert b"larger than 65536 bytes" in await loop.sock_recv(sock, 65536)


PUT = b"PUT /v1/log-level HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = PUT + b'Transfer-Encoding: chunked\r\n\r\n10\r\n{"level":"info"}\r\n'


@pytest.mark.parametrize("line", [b"X: " + b"x" * 90 + b"\r\n", b"x" * 100], ids=["many", "one"])
async def test_trailers_without_end_are_ended_at_the_bound(connection: Connection, line: bytes) -> None:
    connection.writer.write(CHUNKED + b"0\r\nX: ")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 20 * MAX_HEAD and not connection.reader.at_eof():
            connection.writer.write(line)
            await connection.writer.drain()
            await asyncio.sleep(0)
            sent += len(line)
    assert MAX_HEAD <= sent < 20 * MAX_HEAD


async def test_what_a_trailer_says_is_no_field_of_the_request(connection: Connection) -> None:
    first, *_ = await connection.answer(CHUNKED + b"0\r\nOrigin: https://evil.example\r\nHost: other\r\n\r\n")
    assert first == b"HTTP/1.1 200 OK"


async def test_a_body_behind_the_second_part_of_a_head_is_none_of_the_head(connection: Connection) -> None:
    connection.writer.write(PUT[:10])
    await connection.writer.drain()
    await asyncio.sleep(0.1)
    body = b'{"level":"info"' + b" " * 50_000 + b"}"
    first, *_ = await connection.answer(PUT[10:] + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert first in (b"HTTP/1.1 200 OK", b"HTTP/1.1 413 Content Too Large", b"HTTP/1.1 413 Request Entity Too Large")


async def test_few_requests_wait_behind_one(connection: Connection) -> None:
    connection.writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await connection.head()
    connection.writer.write(2 * MAX_BEHIND * (ASK + b"\r\n"))
    assert b"Invalid HTTP request" in await connection.rest()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/health HTTP/1.1\r\n",
        ASK + b"Host: localhost\r\n",
        b"GET /v1/health HTTP/1.0\r\nHost: localhost\r\nHost: other\r\n",
        ASK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        ASK + b"Content-Length: 1\r\nContent-Length: 2\r\n",
        ASK + b"X: a\x00b\r\n",
        ASK + b"X : a\r\n",
        ASK + b" folded\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /v1/health HTTP/2.0\r\nHost: localhost\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_no_request_is_answered_400_and_ends_the_connection(connection: Connection, head: bytes) -> None:
    connection.writer.write(head + b"\r\n")
    first, fields = await connection.head()
    assert (first, fields[b"connection"]) == (b"HTTP/1.1 400 Bad Request", b"close")
    assert b"HTTP/1.1" not in await connection.rest()  # nothing behind it is answered


async def test_two_requests_at_once_are_answered_in_turn(connection: Connection) -> None:
    connection.writer.write(ASK + b"\r\n" + b"GET /v1/streams/s7 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for expected in (b'"status"', b'"request_id":"s7"'):
        first, fields = await connection.head()
        assert first == b"HTTP/1.1 200 OK"
        assert expected in await connection.reader.readexactly(int(fields[b"content-length"]))


async def test_a_body_in_pieces_and_one_that_waits_to_be_asked_for(agent: MemoryAgent, connection: Connection) -> None:
    put = b"PUT /v1/log-level HTTP/1.1\r\nHost: localhost\r\n"
    chunks = b'9\r\n{"level":\r\n8\r\n"debug"}\r\n0\r\n\r\n'
    first, _, body = await connection.answer(put + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert (first, b"debug" in body) == (b"HTTP/1.1 200 OK", True)
    connection.writer.write(put + b"Content-Length: 16\r\nExpect: 100-continue\r\n\r\n")
    assert (await connection.head())[0] == b"HTTP/1.1 100 Continue"
    assert (await connection.answer(b'{"level":"info"}'))[0] == b"HTTP/1.1 200 OK"


async def test_a_head_and_its_short_body_are_written_together(agent: MemoryAgent, folder: Path) -> None:
    """Whoever asks is woken once."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(folder / "c.sock"))
        for _ in range(20):
            await loop.sock_sendall(sock, ASK + b"\r\n")
            answer = await loop.sock_recv(sock, 65536)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"content-length: %d" % len(body) in head


async def test_a_long_answer_comes_whole(connection: Connection) -> None:
    for _ in range(3):
        first, _, body = await connection.answer(b"GET /v1/streams HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first == b"HTTP/1.1 200 OK"
        assert len(body) > 2 * MAX_HELD
        assert (body.count(b'"request_id"'), body[-2:]) == (800, b"]}")


async def test_http_1_0_gets_a_stream_unframed_until_the_connection_ends(
    agent: MemoryAgent, connection: Connection
) -> None:
    connection.writer.write(b"GET /v1/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
    first, fields = await connection.head()
    assert first == b"HTTP/1.1 200 OK"
    assert b"transfer-encoding" not in fields
    assert fields[b"connection"] == b"close"
    assert await connection.reader.readuntil(b"\n\n") == b": subscribed\n\n"
    for number in (1, 2):
        agent.publish("tunnel_up", tunnel=f"t{number}")
        block = await connection.reader.readuntil(b"\n\n")
        assert block.startswith(b"id: ")
        assert b'"tunnel":"t%d"' % number in block


async def test_http_1_0_gets_a_short_answer_with_its_length(connection: Connection) -> None:
    first, fields, body = await connection.answer(b"GET /v1/health HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert (first, fields[b"connection"]) == (b"HTTP/1.1 200 OK", b"close")
    assert body
    assert await connection.rest() == b""


async def test_who_leaves_a_stream_of_http_1_0_is_noticed(agent: MemoryAgent, connection: Connection) -> None:
    connection.writer.write(b"GET /v1/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
    await connection.head()
    assert len(apps[0].state.subscribers) == 1
    connection.writer.transport.abort()
    async with asyncio.timeout(10):
        while len(apps[0].state.subscribers):
            await asyncio.sleep(0.01)


async def test_a_wish_to_upgrade_is_passed_over_and_ends_the_connection(connection: Connection) -> None:
    """As `curl --http2` asks: it may not put its next request on a connection whose parser has stopped."""
    first, fields, body = await connection.answer(ASK + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert (first, fields[b"connection"]) == (b"HTTP/1.1 200 OK", b"close")
    assert body
    assert await connection.rest() == b""
