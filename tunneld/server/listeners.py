"""The server's listening sockets: TCP on IPv4 and IPv6, Unix, each with or without TLS, bound here or by systemd."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunneld.config.server import AdminConfig, ListenConfig, ServerConfig, TlsConfig
from tunneld.errors import ConfigError
from tunneld.wire import sockets
from tunneld.wire.certificates import Certificates, Pair
from tunneld.wire.filewatch import FileWatch
from tunneld.wire.inherited import Inherited
from tunneld.wire.tls import server_context
from tunneld.wire.unix import BoundSocket, bind

__all__ = ["Listeners"]

log = logging.getLogger("tunneld.server")

_BACKLOG = 4096
_HINTS = {
    errno.EADDRINUSE: "another process listens there: stop it, or choose another port",
    errno.EACCES: "this user may not: choose a port from 1024 on, or let systemd bind it",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


class _Absent(ConfigError):
    """This machine has no such address."""


class Listeners:
    """All listeners of one server, bound or adopted from systemd by `open`, served by `serve`.

    Args:
        config: the server's.
        admin: the one of the admin API instead of those of visitors and agents.
    """

    def __init__(self, config: ServerConfig, *, admin: AdminConfig | None = None) -> None:
        self._config = config
        self._listen = config.listen if admin is None else (admin.listen,)
        self._key = "listen" if admin is None else "admin.listen"
        self._sockets: list[tuple[ListenConfig, ssl.SSLContext | None, socket.socket]] = []
        self._unix: list[BoundSocket] = []
        self._servers: list[asyncio.Server] = []
        self._inherited: Inherited
        self._certificates: dict[str, Certificates] = {}  # by the configuration key
        self._watch: FileWatch | None = None

    @property
    def addresses(self) -> list[tuple[ListenConfig, str]]:
        """(listener, ``host:port`` or ``unix:path`` as bound) of each socket."""
        return [(config, _address(sock)) for config, _, sock in self._sockets]

    def open(self) -> None:
        """Adopt what systemd holds, bind the rest; raises ConfigError with one line a fault, and then none is bound."""
        self._inherited = Inherited()
        faults: list[str] = []
        for index, config in enumerate(self._listen):
            try:
                self._open(index, config)
            except ConfigError as error:
                faults += error.faults
        faults += [
            f"listen: systemd holds {address} for this server, which no listener names; "
            "let the file and ListenStream= of tunneld-server.socket say the same"
            for address in self._inherited.left()
        ]
        self._inherited.close()
        if faults:
            self._close_sockets()
            raise ConfigError(faults)

    def _open(self, index: int, config: ListenConfig) -> None:
        where = f"listen[{index}]" if self._key == "listen" else self._key
        tls = config.tls or self._config.tls
        if self._key != "listen" and config.tls is None and config.loopback:
            tls = None  # a certificate of the public name is of no use there, and nothing leaves this machine
        context = self._context("tls" if config.tls is None else f"{where}.tls", tls)
        if config.unix is not None:
            adopted = self._inherited.take_unix(config.unix)
            if adopted is not None:  # its path, mode and group are systemd's
                self._sockets.append((config, context, adopted))
                return
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
            if self._covered(where, config, family, address):
                continue
            try:
                sock = self._inherited.take_tcp(family, *address[:2])
                if sock is not None:
                    sockets.tune(sock)
                else:
                    sock = _bind_tcp(where, config, family, kind, protocol, address)
            except _Absent as error:  # `localhost` on a machine without IPv6
                faults.append(error)
            else:
                self._sockets.append((config, context, sock))
        if len(faults) == len(set(found)):
            raise faults[0]

    def _covered(self, where: str, config: ListenConfig, family: int, address: tuple[Any, ...]) -> bool:
        """Whether a wildcard socket of systemd's, adopted for another listener, takes this one's visitors as well."""
        taken = self._inherited.covering(family, *address[:2])
        if taken is None:
            return False
        other = next(owner for owner, _, sock in self._sockets if sock is taken)
        if (other.serve, other.tls) != (config.serve, config.tls):
            raise ConfigError([f"{where}: {config} and {other} differ, but systemd holds one socket for both of them"])
        return True

    def _context(self, where: str, tls: TlsConfig | None) -> ssl.SSLContext | None:
        """What a listener shows its peers; one for all that take the server's own `tls`."""
        if tls is None:
            return None
        if where not in self._certificates:
            pairs = [Pair(tls.cert, tls.key, where, tls.client_ca)]
            for index, pair in enumerate(tls.sni):
                pairs.append(Pair(pair.cert, pair.key, f"{where}.sni[{index}]", tls.client_ca))
            self._certificates[where] = Certificates(pairs, _make_context)
        return self._certificates[where].context

    def reload_certificates(self) -> None:
        """Read the certificates' files again, where they changed; what cannot be used changes nothing and is logged."""
        for certificates in self._certificates.values():
            try:
                if certificates.reload():
                    log.info("Certificate read again: %s", certificates.where, extra={"key": certificates.where})
                    _warn_of_expiry(certificates)
            except ConfigError as error:
                log.error("The certificate stays as it was: %s", "; ".join(error.faults))

    def _watch_certificates(self) -> None:
        if not self._certificates:
            return
        for certificates in self._certificates.values():
            _warn_of_expiry(certificates)
        paths = [path for certificates in self._certificates.values() for path in certificates.paths]
        self._watch = FileWatch(paths, self.reload_certificates)
        if not self._watch.active:
            log.warning("Files cannot be watched here: after a certificate changed, send SIGHUP.")

    async def serve(self, factory: Callable[[ListenConfig, bool], Callable[[], asyncio.BaseProtocol]]) -> None:
        """Accept connections; `factory` makes the protocol factory of (listener, it speaks TLS)."""
        loop = asyncio.get_running_loop()
        self._watch_certificates()
        for config, context, sock in self._sockets:
            make = factory(config, context is not None)
            # As long as a head may take: a handshake is what comes instead of one.
            patience = self._config.limits.header_timeout if context is not None else None
            create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            server = await create(make, sock=sock, ssl=context, backlog=_BACKLOG, ssl_handshake_timeout=patience)
            self._servers.append(server)

    def close(self) -> None:
        """Accept no more. Connections that stand go on."""
        if self._watch is not None:
            self._watch.close()
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


def _make_context(pair: Pair) -> ssl.SSLContext:
    return server_context(pair.cert, pair.key, client_ca=pair.client_ca, where=pair.where)


def _warn_of_expiry(certificates: Certificates) -> None:
    for path, until in certificates.until:
        if until < datetime.now(UTC):
            log.warning(
                "The certificate %s expired on %s: agents and visitors refuse it; renew it.", path, until.date()
            )


def _bind_tcp(
    where: str, config: ListenConfig, family: int, kind: int, protocol: int, address: tuple[object, ...]
) -> socket.socket:
    try:
        return sockets.listening(family, kind, protocol, address, backlog=_BACKLOG)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, error.strerror)
        absent = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        raise (_Absent if absent else ConfigError)([f"{where}: cannot listen on {config}: {hint}"]) from None


def _address(sock: socket.socket) -> str:
    with contextlib.suppress(OSError):
        name = sock.getsockname()
        if isinstance(name, tuple):
            return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
        return f"unix:{name}"
    return "closed"
