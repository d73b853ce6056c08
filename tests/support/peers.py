"""Hand-made peers of the tunnel: an agent of few lines, and servers that answer the upgrade as they like."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.support.sockets import LOOPBACK

__all__ = ["Peer", "accept_key", "answering", "connected", "hello", "peer", "serving_tunnels"]

_dials = itertools.count(1)


def hello(**fields: Any) -> dict[str, Any]:
    """A hello that is right but for what `fields` says; None leaves a key out."""
    whole = {"type": "hello", "instance": "test", "dial": next(_dials), **fields}
    return {key: value for key, value in whole.items() if value is not None}


def connected(**fields: Any) -> dict[str, Any]:
    """A server's answer to hello."""
    return {
        "type": "connected",
        "tunnel_id": "app",
        "public_url": "http://localhost/t/app",
        "session_id": "s",
        "resume_token": "t",
        "heartbeat": {"interval": 30, "timeout": 10},
        "sse": {},
        "resume": {},
        "max_streams": 10,
        "stream_window": 65536,
        "max_header": 65536,
        **fields,
    }


class Peer:
    """A connection to ``/tunnel/connect`` whose every message is the test's."""

    def __init__(self, socket: ClientConnection | ServerConnection) -> None:
        self.socket = socket

    async def say(self, *messages: dict[str, Any] | bytes | str) -> None:
        for message in messages:
            await self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def next(self) -> Any:
        """The next message, JSON decoded; bytes as they are."""
        async with asyncio.timeout(10):
            message = await self.socket.recv()
        return json.loads(message) if isinstance(message, str) else message

    async def want(self, kind: str) -> dict[str, Any]:
        """The next text message of a type; others are passed over."""
        while True:
            message = await self.next()
            if isinstance(message, dict) and message["type"] == kind:
                return message

    async def hello(self, **fields: Any) -> dict[str, Any]:
        """Say hello; what `connected` said."""
        await self.say(hello(**fields))
        answer = await self.next()
        assert answer["type"] == "connected", answer
        return answer  # type: ignore[no-any-return]

    async def over(self) -> tuple[str | None, int, str]:
        """Read to the end: (code of the `error` message, close code, close reason)."""
        code = None
        try:
            while True:
                message = await self.next()
                if isinstance(message, dict) and message["type"] == "error":
                    code = message["code"]
        except ConnectionClosed:
            return code, self.socket.close_code or 0, self.socket.close_reason or ""


@asynccontextmanager
async def peer(url: str, name: str = "app", **options: Any) -> AsyncIterator[Peer]:
    """An agent that has upgraded and said nothing."""
    options = {"subprotocols": ["tunneld.v3"], "compression": None, "ping_interval": None, **options}
    async with connect(f"{url}/tunnel/connect?name={name}", proxy=None, close_timeout=1, **options) as socket:
        yield Peer(socket)


@asynccontextmanager
async def serving_tunnels(handler: Callable[[Peer], Awaitable[None]], **options: Any) -> AsyncIterator[str]:
    """A server whose every connection `handler` plays; yields its address."""

    async def play(socket: ServerConnection) -> None:
        try:
            await handler(Peer(socket))
        except ConnectionClosed:
            pass

    options = {"subprotocols": ["tunneld.v3"], "compression": None, "ping_interval": None, **options}
    async with serve(play, LOOPBACK, 0, close_timeout=1, **options) as server:
        yield f"ws://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def answering(answer: Callable[[str], bytes]) -> AsyncIterator[tuple[str, list[float]]]:
    """A server that gives every request's head the bytes that `answer` makes of its key, then closes.

    Yields its address and the times of its requests.
    """
    times: list[float] = []
    open_now: dict[asyncio.StreamWriter, asyncio.Task[Any]] = {}

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now[writer] = task
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            times.append(asyncio.get_running_loop().time())
            key = next(line[19:].strip() for line in head.splitlines() if line.lower().startswith("sec-websocket-key:"))
            writer.write(answer(key))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        del open_now[writer]

    server = await asyncio.start_server(play, LOOPBACK, 0)
    try:
        yield f"ws://{LOOPBACK}:{server.sockets[0].getsockname()[1]}", times
    finally:
        server.close()
        for _ in range(3):  # what was just accepted becomes a connection, and a task of it
            await asyncio.sleep(0)
        while open_now:  # a dial may come as the test ends: nothing of it is left to the collector
            for writer in open_now:
                writer.transport.abort()
            await asyncio.wait(list(open_now.values()))


def accept_key(key: str) -> str:
    """What a 101 answers to a key (RFC 6455 section 4.2.2)."""
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest).decode()
