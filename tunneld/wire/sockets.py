"""What sockets of both roles are set to, and how a connection is ended so that the peer sees a failure."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Any

__all__ = ["LOWAT", "descriptor", "hold_unsent", "is_tcp", "listening", "not_taken", "reset", "tune"]

LOWAT = 128 * 1024
"""Bytes not yet sent that the kernel takes before a socket stops being writable: what stands before a
ping. On a slow network a tunnel's takes less: see `pacing`."""

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if hasattr(socket, "TCP_QUICKACK") else None)


def is_tcp(sock: Any) -> bool:
    """Whether this socket (or a transport's view of one) is of an internet family."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def tune(sock: Any) -> None:
    """Set TCP_NODELAY, and TCP_NOTSENT_LOWAT to `LOWAT`. A Unix socket is left as it is.

    Accepted sockets inherit both, so a listener is tuned once, before its first accept.
    """
    if not is_tcp(sock):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _hold(sock, LOWAT)


def listening(family: int, kind: int, protocol: int, address: Any, *, backlog: int) -> socket.socket:
    """A socket that listens, tuned; raises OSError.

    Args:
        family: this and the next three as `socket.getaddrinfo` tells them.
        kind: stream.
        protocol: of that family.
        address: to be bound. IPv6's takes no IPv4: each family has a socket of its own.
        backlog: connections that wait to be accepted.
    """
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tune(sock)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def hold_unsent(transport: asyncio.BaseTransport, most: int) -> None:
    """Let the kernel take so many bytes that it cannot send yet; nothing happens where there is no TCP below."""
    sock = transport.get_extra_info("socket")
    if sock is not None and is_tcp(sock):
        _hold(sock, most)


def _hold(sock: Any, most: int) -> None:
    if _NOTSENT_LOWAT is not None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, most)
        except (OSError, ValueError):  # a kernel without it, or closed meanwhile: only latency behind bulk is lost
            pass


def descriptor(transport: asyncio.BaseTransport) -> int:
    """The file descriptor below a transport (TLS too); -1 when it has none, or is closed."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return -1
    try:
        return int(sock.fileno())
    except OSError:
        return -1


def not_taken(transport: asyncio.Transport) -> int:
    """Octets written that the peer's kernel has not acknowledged: those of the transport, and of our own kernel."""
    waiting = transport.get_write_buffer_size()
    fd = descriptor(transport)
    if fd >= 0:
        try:
            waiting += int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0])
        except OSError:  # no such question to this kind of socket: what the kernel has counts as taken
            pass
    return waiting


def reset(transport: asyncio.Transport) -> None:
    """End a connection at once so that its peer sees a reset, not a clean end; what was not sent is dropped.

    A Unix socket knows no reset: its peer sees the end of the stream (or ECONNRESET when it had sent what
    we never read).
    """
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            if is_tcp(sock):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except (OSError, ValueError):  # the peer was faster; uvloop's says it by a descriptor of -1
            pass
    transport.abort()
