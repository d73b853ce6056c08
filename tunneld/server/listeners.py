"""The server's listening sockets: TCP on IPv4 and IPv6, Unix, each with or without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from tunneld.config.server import ListenConfig, ServerConfig
from tunneld.errors import ConfigError
from tunneld.wire import sockets
from tunneld.wire.tls import server_context
from tunneld.wire.unix import BoundSocket, bind

__all__ = ["Listeners"]

_BACKLOG = 4096
_HINTS = {
    errno.EADDRINUSE: "another process listens there: stop it, or choose another port",
    errno.EACCES: "this user may not: choose a port from 1024 on, or let systemd bind it",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


class _Absent(ConfigError):
    """This machine has no such address."""


class Listeners:
    """All listeners of one server, bound by `open`, served by `serve`.

    Args:
        config: the server's.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._sockets: list[tuple[ListenConfig, ssl.SSLContext | None, socket.socket]] = []
        self._unix: list[BoundSocket] = []
        self._servers: list[asyncio.Server] = []

    @property
    def addresses(self) -> list[tuple[ListenConfig, str]]:
        """(listener, ``host:port`` or ``unix:path`` as bound) of each socket."""
        return [(config, _address(sock)) for config, _, sock in self._sockets]

    def open(self) -> None:
        """Bind every listener; raises ConfigError with one line a fault, and then none is bound."""
        faults: list[str] = []
        for index, config in enumerate(self._config.listen):
            try:
                self._open(index, config)
            except ConfigError as error:
                faults += error.faults
        if faults:
            self._close_sockets()
            raise ConfigError(faults)

    def _open(self, index: int, config: ListenConfig) -> None:
        where = f"listen[{index}]"
        pair = config.tls or self._config.tls
        context = None
        if pair is not None:
            key = "tls" if config.tls is None else f"{where}.tls"
            context = server_context(pair.cert, pair.key, client_ca=pair.client_ca, where=key)
        if config.unix is not None:
            bound = bind(Path(config.unix), mode=config.mode, group=None, key=f"{where}.unix")
            self._unix.append(bound)
            self._sockets.append((config, context, bound.sock))
            return
        try:
            found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ConfigError([f"{where}.host: {config.host} cannot be resolved: {error.strerror}"]) from None
        faults: list[_Absent] = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sock = _bind_tcp(where, config, family, kind, protocol, address)
            except _Absent as error:  # `localhost` on a machine without IPv6
                faults.append(error)
            else:
                self._sockets.append((config, context, sock))
        if len(faults) == len(set(found)):
            raise faults[0]

    async def serve(self, factory: Callable[[ListenConfig, bool], Callable[[], asyncio.BaseProtocol]]) -> None:
        """Accept connections; `factory` makes the protocol factory of (listener, it speaks TLS)."""
        loop = asyncio.get_running_loop()
        for config, context, sock in self._sockets:
            make = factory(config, context is not None)
            # As long as a head may take: a handshake is what comes instead of one.
            patience = self._config.limits.header_timeout if context is not None else None
            create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            server = await create(make, sock=sock, ssl=context, backlog=_BACKLOG, ssl_handshake_timeout=patience)
            self._servers.append(server)

    def close(self) -> None:
        """Accept no more. Connections that stand go on."""
        for bound in self._unix:
            bound.remove()
        for server in self._servers:
            server.close()
        if not self._servers:
            self._close_sockets()

    def _close_sockets(self) -> None:
        for bound in self._unix:
            bound.remove()
        for _, _, sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._unix.clear()


def _bind_tcp(
    where: str, config: ListenConfig, family: int, kind: int, protocol: int, address: tuple[object, ...]
) -> socket.socket:
    sock = None
    try:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sockets.tune(sock)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        hint = _HINTS.get(error.errno or 0, error.strerror)
        absent = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        raise (_Absent if absent else ConfigError)([f"{where}: cannot listen on {config}: {hint}"]) from None
    return sock


def _address(sock: socket.socket) -> str:
    with contextlib.suppress(OSError):
        name = sock.getsockname()
        if isinstance(name, tuple):
            return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
        return f"unix:{name}"
    return "closed"
