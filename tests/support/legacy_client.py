"""A client of the older dialect, written from its description alone (PROTOCOL.md, "v2"): JSON texts, nothing else.

`LegacyClient` says what a test tells it to, and by itself only what every client of the field does: it echoes pings.
`forwarding` is the whole of such a client before a local service.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

_TLS = ssl.create_default_context()  # made once: it reads every root of the machine

__all__ = [
    "LegacyClient",
    "forwarding",
    "legacy",
    "register",
]


class LegacyClient:
    """One connection of a client; `connected` has come."""

    def __init__(self, socket: ClientConnection, *, echo: bool = True) -> None:
        self.socket = socket
        self.connected: dict[str, Any] = {}
        #: Everything that came, in order; pings too.
        self.messages: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self.close_reason = ""
        self._echo = echo
        self._seen = 0
        self._news = asyncio.Condition()
        self._ended = False
        #: Called for each message, before a test that waits for it goes on.
        self.on_message: Callable[[dict[str, Any]], None] | None = None

    @property
    def tunnel_id(self) -> str:
        return str(self.connected["tunnel_id"])

    async def say(self, kind: str, **fields: Any) -> None:
        """Send one message."""
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def respond(
        self, request: dict[str, Any], status: int = 200, body: str | None = "ok", **headers: Any
    ) -> None:
        """Answer an ordinary request; `_` in a header's name is `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.say("response", request_id=request["request_id"], status_code=status, headers=named, body=body)

    async def chunk(self, request: dict[str, Any], body: str) -> None:
        """Send a piece of a stream."""
        await self.say("stream_chunk", request_id=request["request_id"], body=body)

    async def end(self, request: dict[str, Any]) -> None:
        """End a stream."""
        await self.say("stream_end", request_id=request["request_id"])

    async def want(self, kind: str) -> dict[str, Any]:
        """The next message of a type that this has not returned before; others before it are passed over."""
        async with asyncio.timeout(10), self._news:
            while True:
                while self._seen < len(self.messages):
                    message = self.messages[self._seen]
                    self._seen += 1
                    if message["type"] == kind:
                        return message
                if self._ended:
                    raise AssertionError(f"closed ({self.close_code} {self.close_reason}) before a {kind} came")
                await self._news.wait()

    async def request(self) -> dict[str, Any]:
        """The next request."""
        return await self.want("request")

    async def over(self) -> tuple[int | None, str]:
        """Wait for the connection's end: (close code, reason)."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: self._ended)
        return self.close_code, self.close_reason

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Every message of a type so far."""
        return [message for message in self.messages if message["type"] == kind]

    async def run(self) -> None:
        """Read to the end of the connection."""
        try:
            async for text in self.socket:
                assert isinstance(text, str), "a binary message in a dialect of texts"
                message = json.loads(text)
                if message["type"] == "ping" and self._echo:
                    await self.say("pong", timestamp=message["timestamp"])
                async with self._news:
                    self.messages.append(message)
                    if self.on_message is not None:
                        self.on_message(message)
                    self._news.notify_all()
        except ConnectionClosed:
            pass
        finally:
            self.close_code, self.close_reason = self.socket.close_code, self.socket.close_reason or ""
            self._ended = True
            async with self._news:
                self._news.notify_all()


@asynccontextmanager
async def legacy(
    base: str, name: str = "My Server", *, echo: bool = True, wait: bool = True, **options: Any
) -> AsyncIterator[LegacyClient]:
    """A client at a base address (``http://HOST`` or ``…/v2/TOKEN``); with `wait` it has heard `connected`."""
    url = f"{base.replace('http', 'ws', 1)}/tunnel/connect?name={quote(name, safe='')}"
    options = {"compression": None, "ping_interval": None, "max_size": None, "close_timeout": 1, **options}
    async with connect(url, proxy=None, **options) as socket:
        client = LegacyClient(socket, echo=echo)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(client.run())
            try:
                if wait:
                    client.connected = await client.want("connected")
                yield client
            finally:
                await socket.close()
                if socket.transport is not None:
                    socket.transport.abort()
                await reader


async def register(base: str, **fields: Any) -> httpx.Response:
    """What a client says before it connects."""
    said = {
        "name": "My Server",
        "server_key": "key-1",
        "description": "a test",
        "connection_url": "http://127.0.0.1:9000",
        **fields,
    }
    async with httpx.AsyncClient(trust_env=False, verify=_TLS) as http:
        return await http.post(f"{base}/register", json={key: value for key, value in said.items() if value is not ...})


@asynccontextmanager
async def forwarding(base: str, service: str, name: str = "My Server") -> AsyncIterator[LegacyClient]:
    """A whole client of the field: what visitors ask for is asked of `service`, streams as they come."""
    streams: dict[str, asyncio.Task[None]] = {}

    async def stream(http: httpx.AsyncClient, client: LegacyClient, request: dict[str, Any]) -> None:
        async with http.stream("GET", service + request["path"], headers=request["headers"]) as answer:
            if answer.status_code != 200:
                await answer.aread()
                await client.respond(request, answer.status_code, answer.text, **dict(answer.headers))
                return
            async for text in answer.aiter_text():
                await client.chunk(request, text)
        await client.end(request)

    async def whole(http: httpx.AsyncClient, client: LegacyClient, request: dict[str, Any]) -> None:
        answer = await http.request(
            request["method"], service + request["path"], headers=request["headers"], content=request.get("body")
        )
        headers = {key: ", ".join(answer.headers.get_list(key)) for key in answer.headers}
        await client.say(
            "response",
            request_id=request["request_id"],
            status_code=answer.status_code,
            headers=headers,
            body=answer.text,
        )

    async with (
        httpx.AsyncClient(trust_env=False, timeout=None) as http,
        legacy(base, name) as client,
        asyncio.TaskGroup() as group,
    ):

        def take(message: dict[str, Any]) -> None:
            request_id = message.get("request_id", "")
            if message["type"] == "request":
                one = stream if message["method"] == "GET" and "/sse" in message["path"] else whole
                streams[request_id] = group.create_task(one(http, client, message))
            elif message["type"] == "stream_cancel" and request_id in streams:
                streams.pop(request_id).cancel()

        client.on_message = take
        yield client
        for task in streams.values():
            task.cancel()
