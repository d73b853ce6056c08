"""An agent made by hand: our WebSocket client and JSON, so that a test can say what no agent of ours would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tunneld.config.server import ServerConfig
from tunneld.protocol import frames
from tunneld.protocol.messages import Head, encode
from tunneld.server.daemon import ServerDaemon
from tunneld.wire.websocket import WebSocket
from tunneld.wire.ws_connect import connect

__all__ = ["SMALL", "HandAgent", "Visitor", "dial", "online", "serving", "still_serves", "visit", "with_stream"]

WAIT = 5.0


class HandAgent:
    """One connection. Texts and binaries are gathered apart; pings are answered unless `mute`.

    Attributes:
        counted: binary messages that came and are counted: those that are no ACK.
        acks: counts of the ACKs that came.
        received: counted messages that came, `stream_cancel`s among them.
        over: (code, reason) once the connection is closed.
    """

    def __init__(self, port: int, pipe: WebSocket, *, mute: bool) -> None:
        self.port = port
        self.pipe = pipe
        self.mute = mute
        self.texts: list[dict[str, Any]] = []
        self.counted: list[bytes] = []
        self.acks: list[int] = []
        self.received = 0
        self.over: tuple[int | None, str] | None = None
        self._news = asyncio.Event()

    # -- WebSocketHandler

    def message(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            text = json.loads(payload)
            self.received += text["type"] == "stream_cancel"
            if text["type"] == "ping" and not self.mute:
                self.say(type="pong", timestamp=text["timestamp"], seq=text["seq"])
            else:
                self.texts.append(text)
        elif (count := frames.parse_ack(payload)) is not None:
            self.acks.append(count)
        else:
            self.counted.append(bytes(payload))
            self.received += 1
        self._news.set()

    def writable(self) -> None:
        pass

    def closed(self, code: int | None, reason: str) -> None:
        self.over = code, reason
        self._news.set()

    # -- what a test says and waits for

    def say(self, **message: Any) -> None:
        self.pipe.send(1, [json.dumps(message).encode()])

    def send(self, *parts: bytes) -> None:
        """One binary message."""
        self.pipe.send(2, [b"".join(parts)])

    def head(self, stream: int, *headers: tuple[str, str], status: int = 200) -> bytes:
        return frames.frame(frames.HEAD, stream, encode(Head(status, list(headers))))

    async def until(self, what: Any) -> Any:
        """Wait until `what(self)` is true; returns it."""
        async with asyncio.timeout(WAIT):
            while not (found := what(self)):
                assert self.over is None, f"closed with {self.over} while waiting; said was {self.texts}"
                self._news.clear()
                await self._news.wait()
        return found

    async def text(self, kind: str) -> dict[str, Any]:
        """Take the first text of that type, waiting for it."""
        found: dict[str, Any] = await self.until(lambda it: next((t for t in it.texts if t["type"] == kind), None))
        self.texts.remove(found)
        return found

    async def ended(self) -> tuple[int | None, str]:
        async with asyncio.timeout(WAIT):
            while self.over is None:
                self._news.clear()
                await self._news.wait()
        return self.over

    async def refused(self) -> tuple[str, int | None]:
        """The code of the `error` that comes, and the close code."""
        code, _ = await self.ended()
        told = [text["code"] for text in self.texts if text["type"] == "error"]
        assert len(told) == 1
        assert not any(text["type"] == "connected" for text in self.texts)
        return told[0], code

    async def hello(self, dial: int, *, instance: str = "hand", **more: Any) -> dict[str, Any]:
        """Say hello; what `connected` says."""
        self.say(type="hello", instance=instance, dial=dial, **more)
        return await self.text("connected")

    async def resume(self, dial: int, said: dict[str, Any], received: int, **more: Any) -> dict[str, Any]:
        """Say a hello that resumes what an earlier `connected` said."""
        asked = {"session_id": said["session_id"], "resume_token": said["resume_token"], "received": received}
        return await self.hello(dial, **{**asked, **more})

    async def opened(self, number: int = 1) -> int:
        """Wait for so many OPENs; the id of the last."""

        def ids(it: HandAgent) -> list[int]:
            found = [frame for message in it.counted for frame in frames.split(message)]
            return [stream for kind, stream, _ in found if kind & 0x7F == frames.OPEN]

        await self.until(lambda it: len(ids(it)) >= number)
        return ids(self)[number - 1]

    def bytes_of(self, stream: int) -> bytes:
        """The DATA of a stream that came."""
        found = [frame for message in self.counted for frame in frames.split(message)]
        return b"".join(bytes(data) for kind, one, data in found if one == stream and kind & 0x7F == frames.DATA)

    def cut(self) -> None:
        self.pipe.abort()


async def dial(server: ServerDaemon, *, name: str = "t", mute: bool = False) -> HandAgent:
    port = int(server.listening[0][1].rpartition(":")[2])
    pipe = await connect(
        f"ws://127.0.0.1:{port}/tunnel/connect?name={name}",
        headers=[],
        subprotocols=["tunneld.v3"],
        max_message=1 << 20,
        ssl_context=None,
        timeout=WAIT,
    )
    agent = HandAgent(port, pipe, mute=mute)
    pipe.handler = agent
    return agent


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[ServerDaemon]:
    """A server in this process; nothing of it is left afterwards."""
    server = ServerDaemon(
        ServerConfig.model_validate(
            {
                "listen": {"host": "127.0.0.1", "port": 0},
                "auth": {"mode": "open"},
                "store": "memory:",
                "drain_timeout": 0,
                **settings,
            }
        ),
        None,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
    assert not server.ingress.exchanges
    assert not server.connections


class Visitor:
    """A raw connection of a visitor's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        async with asyncio.timeout(WAIT):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def broken(self) -> None:
        """The answer is aborted, not ended."""
        async with asyncio.timeout(WAIT):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionResetError:
                return
        raise AssertionError("the answer ended as if it were whole")

    def leave(self) -> None:
        self.writer.transport.abort()


async def visit(server: ServerDaemon, target: str = "/x", *, method: str = "GET", headers: str = "") -> Visitor:
    """Ask for `target` of tunnel t."""
    port = int(server.listening[0][1].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} /t/t{target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    return Visitor(reader, writer)


SMALL = {"resume": {"grace": "30s", "buffer": "64KiB"}}


async def online(server: ServerDaemon, number: int = 1) -> tuple[HandAgent, dict[str, Any]]:
    agent = await dial(server)
    return agent, await agent.hello(number)


async def with_stream(server: ServerDaemon) -> tuple[HandAgent, dict[str, Any], Visitor, int]:
    """An agent with one stream whose answer has begun."""
    agent, said = await online(server)
    visitor = await visit(server)
    stream = await agent.opened()
    agent.send(agent.head(stream, ("Content-Type", "text/plain")), frames.frame(frames.DATA, stream, b"one "))
    await visitor.head()
    return agent, said, visitor, stream


async def still_serves(agent: HandAgent, visitor: Visitor, stream: int) -> None:
    """The stream goes on, over this connection."""
    agent.send(frames.frame(frames.DATA, stream, b"still here"))
    async with asyncio.timeout(5):
        await visitor.reader.readuntil(b"still here")
