"""A forward proxy: HTTP CONNECT and SOCKS5 on one port, told apart by the first byte; maybe behind TLS itself."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from tests.support.sockets import LOOPBACK

__all__ = ["ForwardProxy", "forward_proxy"]


class ForwardProxy:
    """Connects every authority that it is asked for to `target` on loopback.

    Attributes:
        asked: (how, host, port) of each request.
        credentials: what it wants, ``user:password``; None: nothing.
        status: what CONNECT is answered where it is not 200.
        reply: what SOCKS5 is answered where it is not 0.
        greets: bytes sent right behind a good answer.
        silent: it takes connections and says nothing.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.asked: list[tuple[str, str, int]] = []
        self.credentials: str | None = None
        self.status = 200
        self.reply = 0
        self.greets = b""
        self.silent = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def open(self) -> int:
        """Connections that came to it and stand, with what they are passed on by."""
        return len(self._writers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.silent:
                await reader.read()
                return
            first = await reader.readexactly(1)
            answered = await (self._socks(reader, writer) if first == b"\5" else self._connect(first, reader, writer))
            if answered:
                await self._pass(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _connect(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        host, _, port = line.split(" ")[1].rpartition(":")
        self.asked.append(("CONNECT", host, int(port)))
        headers = dict(field.split(": ", 1) for field in fields)
        assert headers["Host"] == f"{host}:{port}"
        sent = headers.get("Proxy-Authorization", "").removeprefix("Basic ")
        status = self.status
        if self.credentials is not None and b64decode(sent).decode() != self.credentials:
            status = 407
        body = b"" if status == 200 else b"no, says the proxy"
        length = b"" if status == 200 else b"Content-Length: %d\r\n" % len(body)
        writer.write(b"HTTP/1.1 %d Words of it\r\n%b\r\n%b" % (status, length, body + self.greets))
        await writer.drain()
        return status == 200

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        wanted = 0 if self.credentials is None else 2
        if wanted not in methods:
            writer.write(b"\5\xff")
            return False
        writer.write(bytes([5, wanted]))
        if wanted:
            pair = []
            assert await reader.readexactly(1) == b"\1"
            for _ in range(2):
                pair.append((await reader.readexactly((await reader.readexactly(1))[0])).decode())
            good = ":".join(pair) == self.credentials
            writer.write(b"\1\0" if good else b"\1\1")
            if not good:
                return False
        assert await reader.readexactly(3) == b"\5\1\0"
        kind = (await reader.readexactly(1))[0]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = str(ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append((f"SOCKS5 {kind}", host, port))
        bound = b"\3\4name" if kind == 3 else b"\1\x7f\0\0\1"
        writer.write(bytes([5, self.reply, 0]) + bound + b"\0\1" + self.greets)
        await writer.drain()
        return self.reply == 0

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(LOOPBACK, self.target)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, back), copy(there, writer))
        with contextlib.suppress(OSError):
            await back.wait_closed()

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def forward_proxy(target: int, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[ForwardProxy]:
    """A running proxy; it ends with its connections."""
    made = ForwardProxy(target)
    server = await asyncio.start_server(made.serve, LOOPBACK, 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
