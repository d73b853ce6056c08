"""The agent's API on TCP, `metrics.listen`: for Prometheus and for people to look at.

Without `metrics.token_file` nothing can be changed there, `/metrics` is answered to whoever reaches it, and the rest,
which has visitors' addresses and paths in it, to this machine alone. With it every call carries the token as a bearer,
and may do what the control socket's may.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING

from tunneld.config.agent import MetricsConfig
from tunneld.config.secrets import read_secret
from tunneld.control.doors import Doors
from tunneld.control.local import page_status
from tunneld.dashboard.files import early
from tunneld.errors import ConfigError
from tunneld.wire.lookups import lookup
from tunneld.wire.sockets import listening

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

__all__ = ["ReadingServer"]

log = logging.getLogger("tunneld.metrics")

_BACKLOG = 100


class ReadingServer:
    """Serves the API on `metrics.listen`. A port that cannot be had is logged, and the agent goes on without.

    Args:
        config: `listen` is there.
        make: the application, given the secret; called in a thread, when the first connection says something.
    """

    def __init__(self, config: MetricsConfig, make: Callable[[str | None], FastAPI]) -> None:
        assert config.listen is not None
        self._listen = config.listen
        self._token_file = config.token_file
        self._make = make
        self._doors: Doors | None = None
        self._servers: list[asyncio.Server] = []

    @property
    def address(self) -> tuple[str, int] | None:
        """(host, port) as bound; None while it does not serve."""
        if not self._servers:
            return None
        host, port = self._servers[0].sockets[0].getsockname()[:2]
        return host, port

    async def start(self) -> None:
        """Bind and serve; raises ConfigError when the token cannot be read."""
        secret = None
        if self._token_file is not None:
            try:
                secret = read_secret(self._token_file)
            except ConfigError as error:
                raise ConfigError([f"metrics.token_file: {fault}" for fault in error.faults]) from None
        doors = self._doors = Doors(
            lambda: self._make(secret),
            what="API on metrics.listen",
            log=log,
            early=lambda data, peer: early(
                data, peer, lambda request: page_status(request, "metrics.token_file", token=secret is not None)
            ),
        )
        host, port = self._listen.host, self._listen.port
        try:
            await self._listen_on(host, port, doors)
        except OSError as error:
            self._close()
            log.error(
                "metrics.listen: %s port %d cannot be had (%s). Metrics are on the control socket alone; free the "
                "port or give another, then restart.",
                host,
                port,
                error.strerror or error,
            )
            return
        bound = self.address
        log.info("Listening on %s port %d for metrics", *(bound or (host, port)))

    async def _listen_on(self, host: str, port: int, doors: Doors) -> None:
        """On every address of that name that this machine has; raises OSError.

        The sockets are made here: uvloop would look the host up in four threads, which then stay.
        """
        loop, absent = asyncio.get_running_loop(), None
        for family, kind, protocol, _, address in dict.fromkeys(
            await lookup(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            try:
                sock = listening(family, kind, protocol, address, backlog=_BACKLOG)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error  # `localhost` on a machine without IPv6
            else:
                self._servers.append(await loop.create_server(doors.open, sock=sock, backlog=_BACKLOG))
        if absent is not None and not self._servers:
            raise absent

    def _close(self) -> list[asyncio.Server]:
        """Accept no more; what did."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        return servers

    async def stop(self) -> None:
        """Accept no more and end what is open. Idempotent."""
        servers = self._close()
        if self._doors is not None:
            await self._doors.stop()
        for server in servers:
            await server.wait_closed()
