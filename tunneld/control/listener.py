"""The control API on its Unix sockets."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunneld.control.doors import Doors
from tunneld.wire.unix import BoundSocket, bind

if TYPE_CHECKING:
    from types import TracebackType

    from fastapi import FastAPI

__all__ = ["ControlServer"]

log = logging.getLogger("tunneld.control")


class ControlServer:
    """Serves an application on one Unix socket, and read-only on a second one if wanted.

    ``async with ControlServer(lambda: create_app(agent), path, group="tunneld"): …``

    Args:
        make: the application; called once, in a thread, when the first connection says something.
        socket_path: where; see `sockets.bind` for what is made and what is refused.
        mode: permission bits of the socket (both, when there are two: a stream's path may hold a secret).
        group: name or number of the group that may use it; None leaves the process's own.
        readonly_socket: path of a second socket on which every change is answered 403; None for none.
    """

    def __init__(
        self,
        make: Callable[[], FastAPI],
        socket_path: Path,
        *,
        mode: int = 0o660,
        group: str | None = None,
        readonly_socket: Path | None = None,
    ) -> None:
        self._mode = mode
        self._group = group
        self._paths = [(socket_path, "control.socket", False)]
        if readonly_socket is not None:
            self._paths.append((readonly_socket, "control.readonly_socket", True))
        self._doors = Doors(make, what="control API", log=log)
        self._bound: list[BoundSocket] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Bind and serve; on return calls are accepted.

        Raises:
            ConfigError: a socket cannot be made; nothing is left behind.
        """
        loop = asyncio.get_running_loop()
        try:
            for path, key, readonly in self._paths:
                bound = bind(path, mode=self._mode, group=self._group, key=key)
                self._bound.append(bound)
                door = functools.partial(self._doors.open, readonly=readonly)
                self._servers.append(await loop.create_unix_server(door, sock=bound.sock))
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
        await self._doors.stop()
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
