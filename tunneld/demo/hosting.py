"""uvicorn inside a program that has a loop and signals of its own."""

from __future__ import annotations

import asyncio
import socket

from fastapi import FastAPI
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

__all__ = ["Hosted"]

_GRACE = 2.0  # seconds for handlers to end once their connections are gone


class Hosted:
    """Serves `app` on a listening socket.

    uvicorn's own `Server` takes SIGINT and SIGTERM over and may end the process, so only its protocol is used.
    """

    def __init__(self, app: FastAPI, sock: socket.socket) -> None:
        self._app = app
        self._sock = sock
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accept connections."""
        config = Config(self._app, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False)
        config.load()
        loop = asyncio.get_running_loop()
        state = self._state

        def protocol() -> H11Protocol:
            return H11Protocol(config, state, {}, loop)

        self._server = await loop.create_server(protocol, sock=self._sock)

    async def stop(self) -> None:
        """Close every connection and wait for the handlers, `_GRACE` seconds at most."""
        if self._server is None:
            self._sock.close()
            return
        self._server.close()
        for connection in tuple(self._state.connections):
            connection.transport.abort()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=_GRACE)
        await self._server.wait_closed()
