"""WebSockets octet by octet: a client and a service that say what a test wants, right or wrong.

Written from RFC 6455 alone, with nothing of the product's codec in it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = [
    "BINARY", "CLOSE", "CONT", "FIN", "PING", "PONG", "TEXT", "Frame", "RawSocket", "accept_of", "close_payload",
    "frame", "masked", "raw_client", "raw_service", "told_closes",
]  # fmt: skip

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80
WAIT = 10.0
Frame = tuple[int, bytes]
Script = Callable[["RawSocket"], Awaitable[None]]


def accept_of(key: str) -> str:
    """The Sec-WebSocket-Accept that answers a key."""
    return base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()


def masked(payload: bytes, key: bytes) -> bytes:
    """The payload under a mask, or from under it."""
    size = len(payload)
    repeated = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ repeated).to_bytes(size, "big")


def frame(first: int, payload: bytes = b"", *, mask: bool, form: int = 0) -> bytes:
    """One frame; `form` 16 or 64 takes that long form of the length whatever it is."""
    size = len(payload)
    bit = 0x80 if mask else 0
    if form == 64 or (not form and size > 0xFFFF):
        head = struct.pack("!BBQ", first, bit | 127, size)
    elif form == 16 or size > 125:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BB", first, bit | size)
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + masked(payload, key)


def close_payload(code: int, reason: str | bytes = b"") -> bytes:
    """The payload of a close frame, whatever the code."""
    return code.to_bytes(2, "big") + (reason.encode() if isinstance(reason, str) else reason)


def told_closes(frames: Iterable[Frame]) -> list[int | None]:
    """The codes of the close frames among these; None for one without."""
    return [
        int.from_bytes(payload[:2], "big") if payload else None for first, payload in frames if first & 0x0F == CLOSE
    ]


@dataclass
class RawSocket:
    """One end, its upgrade done.

    Attributes:
        head: of the request (at the service) or of the answer (at the client).
        got: frames that came, as they came: (first octet, payload unmasked).
        end: ``eof`` or ``reset`` once the peer's direction is over.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    client: bool
    head: str = ""
    got: list[Frame] = field(default_factory=list)
    end: str = ""

    def header(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return None

    def send(self, first: int, payload: bytes = b"", **kwargs: int) -> None:
        self.writer.write(frame(first, payload, mask=self.client, **kwargs))

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> Frame | None:
        """The next frame; None at the end."""
        try:
            first, size = await self.reader.readexactly(2)
            has_mask, size = size & 0x80, size & 0x7F
            if size > 125:
                more = 2 if size == 126 else 8
                size = int.from_bytes(await self.reader.readexactly(more), "big")
            key = await self.reader.readexactly(4) if has_mask else b""
            payload = await self.reader.readexactly(size)
        except asyncio.IncompleteReadError:
            self.end = "eof"
            return None
        except OSError:
            self.end = "reset"
            return None
        assert bool(has_mask) is not self.client, "masked where it may not be, or not where it must"
        found = first, masked(payload, key) if key else payload
        self.got.append(found)
        return found

    async def until_end(self) -> list[Frame]:
        """All that comes."""
        async with asyncio.timeout(WAIT):
            while await self.receive() is not None:
                pass
        return self.got

    async def until(self, opcode: int) -> Frame:
        """The next frame of that opcode."""
        async with asyncio.timeout(WAIT):
            while (found := await self.receive()) is not None:
                if found[0] & 0x0F == opcode:
                    return found
        raise AssertionError(f"ended ({self.end}) before opcode {opcode}: {self.got}")

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        """A reset."""
        sock = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER
        self.writer.transport.abort()


async def raw_client(
    url: str, *, extra: str = "", key: str | None = None, sent: bytes = b"", host: str = "", ssl: object = None
) -> RawSocket:
    """Ask for an upgrade; what comes back is in `head`, whether 101 or not.

    Args:
        url: ``ws://`` or ``wss://``.
        extra: header lines, each with its CRLF.
        sent: octets that go with the request, before its answer.
        host: the Host header; empty: the URL's.
    """
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=ssl)  # type: ignore[arg-type]
    key = key or base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET {target or '/'} HTTP/1.1\r\nHost: {host or parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{extra}\r\n".encode("latin-1")
        + sent
    )
    async with asyncio.timeout(WAIT):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    found = RawSocket(reader, writer, client=True, head=head)
    if head.startswith("HTTP/1.1 101"):
        assert found.header("sec-websocket-accept") == accept_of(key)
    return found


@contextlib.asynccontextmanager
async def raw_service(
    script: Script, *, answer: str = "", ssl: object = None, unix: str | None = None
) -> AsyncIterator[str]:
    """A service that takes every upgrade and runs `script`; yields its address, for `service:`.

    Args:
        answer: header lines of its 101, each with its CRLF.
    """
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        socket = RawSocket(reader, writer, client=False)
        try:
            socket.head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            accept = accept_of(socket.header("sec-websocket-key") or "")
            writer.write(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept}\r\n{answer}\r\n".encode("latin-1")
            )
            await script(socket)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            running.discard(task)

    if unix is not None:
        server = await asyncio.start_unix_server(serve, unix)
        address = f"unix:{unix}"
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ssl, backlog=4096)  # type: ignore[arg-type]
        scheme, host = ("https", "localhost") if ssl else ("http", "127.0.0.1")
        address = f"{scheme}://{host}:{server.sockets[0].getsockname()[1]}"
    try:
        yield address
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        while running:
            await asyncio.wait(running)
        await server.wait_closed()
