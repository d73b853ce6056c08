"""Receivers of alerts: a webhook that answers as it is told, and a delivery that says how a message went."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import time
from typing import Any

from tests.support.sockets import LOOPBACK
from tunneld.alerts.delivery import Delivery, Outcome
from tunneld.alerts.messages import Message, Telling

__all__ = ["MESSAGE", "Hook", "delivering", "hooked", "listening"]

MESSAGE = Message(
    "tunnel_down", "firing", time(), "host (agent)", (Telling("a", "The tunnel a is offline <why>.", time()),)
)


class Hook:
    """A receiver of webhooks: answers as `answers` says, the last of them for good."""

    def __init__(self) -> None:
        self.answers = ["200 OK"]
        self.bodies: list[Any] = []
        self.heads: list[str] = []
        self.raw: list[bytes] = []
        self.port = 0
        self.came = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(next(line for line in head.lower().splitlines() if line.startswith("content-length:"))[15:])
            body = await reader.readexactly(length)
            self.heads.append(head)
            self.raw.append(body)
            self.bodies.append(json.loads(body))
            self.came.set()
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if answer == "hang":
                await reader.read()
            else:
                writer.write(
                    f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\nLocation: /x\r\nConnection: close\r\n\r\n".encode()
                )
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def until(self, count: int) -> None:
        while len(self.bodies) < count:
            self.came.clear()
            await self.came.wait()


@asynccontextmanager
async def listening() -> AsyncIterator[Hook]:
    """A `Hook` on a port of its own."""
    made = Hook()
    server = await asyncio.start_server(made.serve, LOOPBACK, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def hooked(hook: Hook, **keys: Any) -> dict[str, Any]:
    """The target that tells it."""
    return {"webhook": f"http://{LOOPBACK}:{hook.port}/secret-path", **keys}


@asynccontextmanager
async def delivering(target: Any) -> AsyncIterator[tuple[Delivery, Callable[[Message], Awaitable[Outcome]]]]:
    """A delivery, and how a message to it went."""
    made = Delivery(target)
    made.start()

    async def put(message: Message) -> Outcome:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        made.put(message, 60.0, done.set_result)
        return await done

    try:
        yield made, put
    finally:
        await made.stop()
