"""uvicorn's HTTP protocol on sockets and shutdown of our own, for both APIs: the agent's and the server's.

uvicorn's `Server` is left out on purpose: it takes SIGINT and SIGTERM over, wakes ten times a second to look whether
it should end, and ends the process when it cannot start. Its `Config` and its protocol (`control.protocol`) do all that
is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from tunneld.control.doors import IDLE
from tunneld.control.guard import Problem
from tunneld.control.protocol import ApiProtocol, until_closed

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Message, Receive, Scope, Send

__all__ = ["Serving"]

MAX_CONNECTIONS = 128
GRACE = 2.0
"""Seconds that calls under way have to end when the server stops."""


class Serving:
    """What makes protocols for one application.

    Args:
        app: to serve. What streams to readers (`app.state.subscribers`, `app.state.dashboard`) ends first when this
            stops.
        loop: that the connections live on; this may be made in another thread.
    """

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._loop = loop
        self._state = ServerState()
        self._unanswered: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._gone = asyncio.Event()
        self._config = Config(
            self._call,
            interface="asgi3",
            http=ApiProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=int(IDLE),
        )
        self._config.load()

    def protocol(self, state: dict[str, Any]) -> asyncio.Protocol:
        """For one connection, whose requests carry this state."""
        made = ApiProtocol(self._config, self._state, state, self._loop)
        made.gone = self._gone
        return made

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call of the application; one that is cut off by the stop is no fault, and is answered where that can be.

        (uvicorn would log a traceback of it.)
        """
        task = asyncio.current_task()
        assert task is not None
        self._unanswered.add(task)
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _head_alone(send)
        elif scope["http_version"] == "1.0":
            scope, send = {**scope}, until_closed(scope, send)

        async def answering(message: Message) -> None:
            self._unanswered.discard(task)
            await send(message)

        try:
            await self._app(scope, receive, answering)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            if task in self._unanswered:
                await Problem("shutdown", "This daemon stops.", headers={"Retry-After": "1"})(scope, receive, send)
        finally:
            self._unanswered.discard(task)

    async def stop(self) -> None:
        """End event streams, give calls under way `GRACE` seconds, then end every connection. Idempotent."""
        for readers in (getattr(self._app.state, name, None) for name in ("subscribers", "dashboard")):
            if readers is not None:
                readers.close()
        for connection in tuple(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=GRACE)
        self._stopping = True
        await self._cut(tuple(self._unanswered))
        for connection in tuple(self._state.connections):
            connection.transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while self._state.connections:  # what it is told then goes nowhere, which is no fault any more
                    self._gone.clear()
                    await self._gone.wait()
        await self._cut(tuple(self._state.tasks))

    @staticmethod
    async def _cut(tasks: tuple[asyncio.Task[None], ...]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE)


def _head_alone(send: Send) -> Send:
    """Of the answer to a HEAD: what GET would have, without its body (RFC 9110, 9.3.2), and at once.

    An answer that goes on learns by `receive` that its reader is gone.
    """
    over = False

    async def sending(message: Message) -> None:
        nonlocal over
        if over:
            return
        await send(message)
        if message["type"] == "http.response.start":
            over = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return sending
