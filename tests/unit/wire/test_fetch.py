"""One request of our own against servers that answer well, badly, too much or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.sockets import LOOPBACK, Certificate, certificate
from tunneld.wire.fetch import FetchFailed, fetch
from tunneld.wire.tls import client_context, server_context


@asynccontextmanager
async def answering(
    *pieces: bytes, hang: bool = False, cert: Certificate | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that says this to the first request; its address, and what it was asked."""
    asked: list[bytes] = []
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if hang:
                await over.wait()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    context = server_context(cert.cert, cert.key) if cert is not None else None
    server = await asyncio.start_server(serve, LOOPBACK, 0, ssl=context)
    try:
        yield f"{'https' if cert else 'http'}://{LOOPBACK}:{server.sockets[0].getsockname()[1]}", asked
    finally:
        over.set()
        server.close()


async def ask(url: str, **how: object) -> tuple[int, bytes]:
    whole = {"context": client_context(), "timeout": 5.0, "most": 10, **how}
    return await fetch("GET", url, [("Accept", "x")], **whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n"),
        (b"HTTP/1.0 200 OK\r\n\r\nhe", b"llo"),
        (b"HTTP/1.1 103 Early\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ],
)
async def test_answers_in_every_framing(pieces: tuple[bytes, ...]) -> None:
    async with answering(*pieces) as (url, asked):
        assert await ask(f"{url}/a?b=c") == (200, b"hello")
        assert asked[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n",), "longer than 10 bytes"),
        ((b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 5, b"x" * 6), "longer than 10 bytes"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",), "before its answer was whole"),
        ((b"",), "before its answer was whole"),
        ((b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",), "compressed"),
        ((b"SSH-2.0-OpenSSH\r\n\r\n",), "cannot be read"),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,), "cannot be read"),
    ],
)
async def test_what_cannot_be_taken(pieces: tuple[bytes, ...], words: str) -> None:
    async with answering(*pieces) as (url, _):
        with pytest.raises(FetchFailed, match=words):
            await ask(url)


async def test_redirects_are_answers() -> None:
    async with answering(b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n") as (
        url,
        asked,
    ):
        assert await ask(url) == (302, b"")
        assert len(asked) == 1


async def test_the_time_is_for_all_of_it() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n", hang=True) as (url, _):
        with pytest.raises(FetchFailed, match=r"does not answer within 0\.1 s"):
            await ask(url, timeout=0.1)
    with pytest.raises(FetchFailed, match=r"cannot be reached: .*refused"):
        await ask("http://127.0.0.1:1/")


async def test_a_server_must_be_who_its_certificate_says(tmp_path: Path) -> None:
    made = certificate(tmp_path, LOOPBACK)
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", cert=made) as (url, _):
        with pytest.raises(FetchFailed, match="certificate is not trusted"):
            await ask(url)
        assert await ask(url, context=client_context(ca_file=str(made.cert))) == (200, b"ok")
