"""The control API on its Unix sockets: uvicorn's HTTP protocol on sockets and shutdown of our own.

uvicorn's `Server` is left out on purpose: it takes SIGINT and SIGTERM over, wakes ten times a second to look whether
it should end, and ends the process when it cannot start. Its `Config` and its h11 protocol do all that is needed. h11
rather than httptools, because it bounds the head and refuses a missing or doubled Host; no call here is hot.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tunneld.wire.unix import BoundSocket, bind, credentials

if TYPE_CHECKING:
    from types import TracebackType

    from fastapi import FastAPI

__all__ = ["ControlServer"]

IDLE = 30.0
"""Seconds that a connection may stand without a request."""
MAX_CONNECTIONS = 128
MAX_HEAD = 64 * 1024
GRACE = 2.0
"""Seconds that calls under way have to end when the server stops."""

log = logging.getLogger("tunneld.control")


class _ControlProtocol(H11Protocol):
    """Puts the peer's credentials and a way to abort into the request's state; bounds a quiet first request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = credentials(transport.get_extra_info("socket"))
        self.app_state = {**self.app_state, "peer": peer, "abort": transport.abort}
        self.timeout_keep_alive_task = self.loop.call_later(IDLE, self.timeout_keep_alive_handler)


class ControlServer:
    """Serves `app` on one Unix socket, and read-only on a second one if wanted.

    ``async with ControlServer(create_app(agent), path, group="tunneld"): …``

    Args:
        app: of `create_app`.
        socket_path: where; see `sockets.bind` for what is made and what is refused.
        mode: permission bits of the socket (both, when there are two: a stream's path may hold a secret).
        group: name or number of the group that may use it; None leaves the process's own.
        readonly_socket: path of a second socket on which every change is answered 403; None for none.
    """

    def __init__(
        self,
        app: FastAPI,
        socket_path: Path,
        *,
        mode: int = 0o660,
        group: str | None = None,
        readonly_socket: Path | None = None,
    ) -> None:
        self._app = app
        self._mode = mode
        self._group = group
        self._paths = [(socket_path, "control.socket", False)]
        if readonly_socket is not None:
            self._paths.append((readonly_socket, "control.readonly_socket", True))
        self._state = ServerState()
        self._bound: list[BoundSocket] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Bind and serve; on return calls are accepted.

        Raises:
            ConfigError: a socket cannot be made; nothing is left behind.
        """
        config = Config(
            self._app,
            http=_ControlProtocol,
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
        config.load()
        loop = asyncio.get_running_loop()
        try:
            for path, key, readonly in self._paths:
                bound = bind(path, mode=self._mode, group=self._group, key=key)
                self._bound.append(bound)
                state: dict[str, Any] = {"readonly": readonly}

                def protocol(state: dict[str, Any] = state) -> _ControlProtocol:
                    return _ControlProtocol(config, self._state, state, loop)

                self._servers.append(await loop.create_unix_server(protocol, sock=bound.sock))
        except BaseException:
            await self.stop()
            raise
        for bound in self._bound:
            log.info("control socket %s", bound.path)

    async def stop(self) -> None:
        """Take the sockets away, end event streams, give calls under way `GRACE` seconds. Idempotent."""
        for bound in self._bound:
            bound.remove()
        for _ in range(3):
            # A client that was accepted in this very turn of the loop becomes a connection that can be closed;
            # asyncio would leave its socket open when the server is closed between accept and transport.
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        if len(self._servers) < len(self._bound):
            self._bound[-1].sock.close()  # bound, but its server never came to be
        self._app.state.subscribers.close()
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
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        self._bound.clear()

    async def __aenter__(self) -> ControlServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
