"""Time limits for what the doctor asks: a name, a connection, an answer; however slowly the other side goes on."""

from __future__ import annotations

import errno
import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["addresses", "at_most", "authority", "connected", "dial", "secured"]

Address = tuple[socket.AddressFamily, Any]


def addresses(host: str, port: int, seconds: float) -> list[Address]:
    """What the resolver says of a host, which has a patience of its own that nobody can set.

    Raises:
        TimeoutError: it says nothing in time.
        OSError: there is no address, or that is no name of a host.
    """
    answers: queue.SimpleQueue[list[Address] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put([(family, address) for family, _, _, _, address in found])
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, "the resolver does not answer") from None
    if isinstance(found, UnicodeError):
        raise OSError(errno.EINVAL, "that is no name of a host") from None
    if isinstance(found, Exception):
        raise found
    return found


def dial(host: str, port: int, seconds: float, *, segment: int | None = None) -> socket.socket:
    """A connection to the first address that takes it, all of it within so long.

    Args:
        host: a name or an address.
        port: there.
        seconds: for all addresses together.
        segment: octets that a segment may have, either way; None: as many as the way takes.

    Raises:
        TimeoutError: nobody answers.
        OSError: nobody takes it.
    """
    deadline = time.monotonic() + seconds
    found = addresses(host, port, seconds)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, "there is no address")
    for index, (family, address) in enumerate(found):
        left = max(0.1, deadline - time.monotonic())
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(left / (len(found) - index))
            if segment is not None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
            continue
        sock.settimeout(seconds)
        return sock
    raise failure


@contextmanager
def at_most(seconds: float, sock: socket.socket) -> Iterator[None]:
    """What is done on that connection inside ends after so long, by a TimeoutError: a timeout of its own is for each
    read, and who sends a byte now and then never runs into it.
    """
    over = threading.Event()

    def end() -> None:
        over.set()
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the plain one of a connection over TLS, too

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, ValueError, http.client.HTTPException):
        if not over.is_set():
            raise
    finally:
        timer.cancel()
    if over.is_set():
        raise TimeoutError(errno.ETIMEDOUT, "timed out")


def secured(sock: socket.socket, context: ssl.SSLContext, host: str, seconds: float) -> ssl.SSLSocket:
    """A connection over TLS, its handshake within so long; raises OSError, the connection then being closed."""
    made = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        made.settimeout(seconds)
        with at_most(seconds, made):
            made.do_handshake()
    except BaseException:
        made.close()
        raise
    return made


def connected(scheme: str, host: str, port: int, seconds: float) -> http.client.HTTPConnection:
    """A client of ``http`` or ``https`` that is connected, each step within so long; raises OSError."""
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=seconds)
    sock = dial(host, port, seconds)
    connection.sock = secured(sock, ssl.create_default_context(), host, seconds) if scheme == "https" else sock
    return connection


def authority(host: str, port: int) -> str:
    """A host and its port as a request names them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
