"""Listening sockets that the service manager holds and hands over (sd_listen_fds(3)): the one place they are adopted.

They stay bound while this process restarts: closing one here closes this process's descriptor of it only.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from tunneld.errors import ConfigError

__all__ = ["Inherited"]

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Inherited:
    """What was handed over, until each socket is taken by the listener that its address belongs to.

    Args:
        environ: where the manager's word stands; it is taken out, so that no child believes it. None: this process's.

    Raises:
        ConfigError: something other than a listening stream socket was handed over; all are closed.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        self._left: list[socket.socket] = []
        self._shared: list[socket.socket] = []
        faults = []
        for fd, name in _handed_over(os.environ if environ is None else environ):
            try:
                self._left.append(_adopt(fd))
            except OSError as error:
                faults.append(f"{name or f'descriptor {fd}'}: systemd passes something that cannot listen: {error}")
        if faults:
            self.close()
            raise ConfigError(faults)

    def take_tcp(self, family: int, host: str, port: int) -> socket.socket | None:
        """The socket of this address; None when none was handed over.

        A wildcard of IPv6 that takes IPv4 as well stands for both.
        """
        for sock in self._left:
            if sock.family == family and sock.getsockname()[:2] == (host, port):
                return self._taken(sock)
        for sock in self._left:
            if (family, host) == (socket.AF_INET, "0.0.0.0") and _takes_both(sock, port):  # noqa: S104 - compared only
                return self._taken(sock)
        return None

    def covering(self, family: int, host: str, port: int) -> socket.socket | None:
        """The socket, taken already, that answers this address as well; None when there is none."""
        if host != ("0.0.0.0" if family == socket.AF_INET else "::"):  # noqa: S104 - compared only
            return None
        return next((sock for sock in self._shared if _takes_both(sock, port)), None)

    def take_unix(self, path: str) -> socket.socket | None:
        """The socket of this path; None when none was handed over."""
        for sock in self._left:
            if sock.family == socket.AF_UNIX and sock.getsockname() == path:
                return self._taken(sock)
        return None

    def left(self) -> list[str]:
        """The addresses that nobody took."""
        return [_shown(sock) for sock in self._left]

    def close(self) -> None:
        """Let go of what nobody took."""
        for sock in self._left:
            sock.close()
        self._left.clear()

    def _taken(self, sock: socket.socket) -> socket.socket:
        self._left.remove(sock)
        self._shared.append(sock)
        return sock


def _handed_over(environ: MutableMapping[str, str]) -> list[tuple[int, str]]:
    """(descriptor, the manager's name of it) of each."""
    pid, count, names = (environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isascii() or not count.isdecimal():
        return []
    labels = [*names.split(":"), *[""] * int(count)]
    return [(_FIRST + number, labels[number]) for number in range(int(count))]


def _adopt(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise OSError("it is no stream socket that listens (ListenStream=, Accept=no)")
    sock.setblocking(False)
    return sock


def _takes_both(sock: socket.socket, port: int) -> bool:
    if sock.family != socket.AF_INET6 or sock.getsockname()[:2] != ("::", port):
        return False
    return not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _shown(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    return f"unix:{name}"
