"""Visitors that hold every byte against what it must be, and say how their stream ended.

They speak to the sample service (tests/support/services.py) through a tunnel: `events` counts up by one, `bytes` is a
known pattern, `upload` answers with a hash, `slow` with one word. A byte that is lost, doubled or out of place raises
`Wrong`; a stream that ends early is an outcome with a name.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.support.services import PATTERN, pattern
from tests.support.sockets import LOOPBACK

__all__ = ["KINDS", "Seen", "Witness", "Wrong"]


class Wrong(AssertionError):
    """A byte that no outage excuses: lost, doubled, or another than was sent.

    Attributes:
        lost: how much is known to be missing: events, or bytes.
        doubled: how much is known to have come twice.
    """

    def __init__(self, message: str, *, lost: int = 0, doubled: int = 0) -> None:
        super().__init__(message)
        self.lost = lost
        self.doubled = doubled


@dataclass
class Seen:
    """How one visitor's stream went.

    Attributes:
        outcome: ``whole`` (to the end, or to as many events as were wanted), ``aborted`` (the body or connection
            broke), ``ended`` (a clean end that came too early), or the status and code of an answer other than 200.
        sent: bytes of body that the visitor sent.
        got: bytes of body that it got.
        events: events that it got.
    """

    outcome: str = "aborted"
    sent: int = 0
    got: int = 0
    events: int = 0


class _Broke(Exception):
    """The connection or the body ended before its end."""


class Witness:
    """One visitor: a connection of its own, one request.

    Args:
        port: of the server.
        tunnel: the tunnel's name.
        host: of the server.
    """

    def __init__(self, port: int, tunnel: str = "app", host: str = LOOPBACK) -> None:
        self.seen = Seen()
        self.begun = asyncio.Event()
        self.on_event: Callable[[int], None] | None = None
        self._where = (host, port)
        self._prefix = f"/t/{tunnel}"
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._left: int | None = 0  # of a body under a Content-Length; None: chunked
        self._chunk = 0

    # -- the kinds

    async def sse(self, count: int, *, name: str, gap: float = 0.02, method: str = "GET") -> Seen:
        """Read `count` events, each one above the last."""

        async def read() -> None:
            await self._ask(method, f"/events?id={name}&gap={gap}", "Accept: text/event-stream")
            rest, expected, number = b"", 1, 0
            while self.seen.events < count:
                piece = await self._body()
                if not piece:
                    raise _Broke("ended")
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b"id: "):
                        number = int(line[4:])
                    elif line.startswith(b"data: "):
                        if number != expected or line != b"data: event %d" % number:
                            raise Wrong(
                                f"{name}: event {number} ({line!r}) came where {expected} was due",
                                lost=max(0, number - expected),
                                doubled=max(0, expected - number),
                            )
                        expected += 1
                        self.seen.events += 1
                        if self.on_event is not None:
                            self.on_event(number)

        return await self._judged(read)

    async def download(self, size: int, *, chunked: bool = False) -> Seen:
        """Read `size` bytes of the pattern."""

        async def read() -> None:
            await self._ask("GET", f"/bytes?n={size}{'&chunked=1' if chunked else ''}")
            while piece := await self._body():
                at = (self.seen.got - len(piece)) % len(PATTERN)
                if (pattern(at + len(piece)))[at:] != piece:
                    raise Wrong(f"download: other bytes than were sent, before {self.seen.got}", lost=len(piece))
            if self.seen.got != size:
                raise Wrong(f"download: a clean end after {self.seen.got} of {size} bytes", lost=size - self.seen.got)

        return await self._judged(read)

    async def upload(self, size: int, *, seed: int = 0, pause: float = 0.0) -> Seen:
        """Send `size` random bytes, and hold the service's hash against one's own."""

        async def send(digest: Any) -> None:
            dice, left = random.Random(seed), size
            while left:
                piece = dice.randbytes(min(left, 65536))
                digest.update(piece)
                self._writer.write(piece)
                await self._writer.drain()
                self.seen.sent += len(piece)
                left -= len(piece)
                if pause:
                    await asyncio.sleep(pause)

        async def both() -> None:
            digest = hashlib.sha256()
            await self._connect()
            self._write("POST", "/upload", f"Content-Length: {size}")
            self.begun.set()
            sending = asyncio.get_running_loop().create_task(send(digest))
            try:
                await self._head()
                told = json.loads(await self._rest())
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            if told != {"bytes": size, "sha256": digest.hexdigest()}:
                over = int(told.get("bytes", 0)) - size
                raise Wrong(
                    f"upload: the service got {told}, {size} bytes were sent", lost=max(1, -over), doubled=max(0, over)
                )

        return await self._judged(both)

    async def poll(self, seconds: float, *, name: str) -> Seen:
        """Wait for an answer that takes its time."""

        async def read() -> None:
            await self._ask("GET", f"/slow?s={seconds}&id={name}")
            if (told := await self._rest()) != b"late\n":
                raise Wrong(f"poll: {told!r}")

        return await self._judged(read)

    def leave(self) -> None:
        """Go away by a reset; nothing happens before there is a connection."""
        if hasattr(self, "_writer"):
            self._writer.transport.abort()

    # -- inside

    async def _judged(self, work: Callable[[], Awaitable[None]]) -> Seen:
        try:
            await work()
            self.seen.outcome = "whole"
        except _Broke as broke:
            self.seen.outcome = str(broke)
        except (OSError, asyncio.IncompleteReadError):
            self.seen.outcome = "aborted"
        finally:
            if hasattr(self, "_writer"):
                self._writer.transport.abort()
        return self.seen

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._where, limit=1 << 18)
        self._writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _write(self, method: str, path: str, *headers: str) -> None:
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"Host: {self._where[0]}", *headers, "", ""]
        self._writer.write("\r\n".join(lines).encode())

    async def _ask(self, method: str, path: str, *headers: str) -> None:
        await self._connect()
        self._write(method, path, *headers)
        self.begun.set()
        await self._head()

    async def _head(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        self._left = None if fields.get("transfer-encoding") == "chunked" else int(fields.get("content-length", 0))
        if not head.startswith("http/1.1 200"):
            raise _Broke(f"{head.split(' ')[1]} {fields.get('x-tunnel-error', '')}".strip())

    async def _body(self) -> bytes:
        """The next bytes of the body; none at its end."""
        if self._left is not None:
            piece = await self._reader.read(min(65536, self._left)) if self._left else b""
            if self._left and not piece:
                raise _Broke("aborted")
            self._left -= len(piece)
        else:
            piece = await self._chunked()
        self.seen.got += len(piece)
        return piece

    async def _chunked(self) -> bytes:
        if not self._chunk:
            size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if not size:
                await self._reader.readuntil(b"\r\n")
                return b""
            self._chunk = size + 2
        piece = await self._reader.read(min(65536, self._chunk))
        if not piece:
            raise _Broke("aborted")
        self._chunk -= len(piece)
        if self._chunk < 2:  # the line end of the chunk is no part of it
            piece = piece[: len(piece) - (2 - self._chunk)]
            await self._reader.readexactly(self._chunk)
            self._chunk = 0
            if not piece:
                return await self._chunked()
        return piece

    async def _rest(self) -> bytes:
        whole = b""
        while piece := await self._body():
            whole += piece
        return whole


KINDS = ("sse", "download", "upload", "poll")
"""Kinds of stream that the suites speak of."""
