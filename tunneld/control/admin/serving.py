"""uvicorn's HTTP protocol for the admin API, on sockets and shutdown of our own (see `control.listener` for why)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tunneld.control.listener import GRACE, IDLE, MAX_CONNECTIONS, MAX_HEAD

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Serving"]


class _AdminProtocol(H11Protocol):
    """Bounds a quiet first request; a way to abort stands in the request's state."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self.timeout_keep_alive_task = self.loop.call_later(IDLE, self.timeout_keep_alive_handler)


class Serving:
    """What makes protocols for one application.

    Args:
        app: to serve.
        loop: that the connections live on; this may be made in another thread.
    """

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._state = ServerState()
        self._config = Config(
            app,
            http=_AdminProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=int(IDLE),
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        self._config.load()

    def protocol(self) -> asyncio.Protocol:
        """For one connection."""
        state: dict[str, Any] = {}
        return _AdminProtocol(self._config, self._state, state, self._loop)

    async def stop(self) -> None:
        """Give calls under way `GRACE` seconds, then end every connection. Idempotent."""
        for connection in tuple(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=GRACE)
        for connection in tuple(self._state.connections):
            connection.transport.abort()
        for task in tuple(self._state.tasks):
            task.cancel()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=GRACE)
