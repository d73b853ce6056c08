"""A connection to a local service: one asyncio protocol that carries one exchange at a time.

No task belongs to a connection; everything is a callback. Who uses it is told what comes by an
`AnswerReader`, and how the connection itself fares by the methods of `User`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import select
import socket
import ssl
import struct
import termios
from typing import TYPE_CHECKING, Protocol

from tunneld.config.service import Service
from tunneld.wire.closewatch import CloseWatch
from tunneld.wire.dial import dial
from tunneld.wire.http_client import AnswerReader, AnswerSink, BadAnswer
from tunneld.wire.short_reads import UNCOUNTED
from tunneld.wire.sockets import descriptor, reset
from tunneld.wire.turns import LARGE, let_others

if TYPE_CHECKING:
    from tunneld.agent.pool import Pool

__all__ = ["Connection", "Origin", "User", "why"]

_SHUTDOWN = 1.0  # s that a service may take to answer TLS's close_notify
_READ = 64 * 1024


class User(AnswerSink, Protocol):
    """The exchange that a connection carries, as the connection and the pool see it."""

    def connected(self, connection: Connection) -> None:
        """A connection that was asked for is there and is the user's."""

    def unreachable(self, detail: str) -> None:
        """There is none to be had; `detail` is fit for a visitor's eyes."""

    def bad_answer(self, fault: BadAnswer) -> None:
        """What came is not an answer that can be used."""

    def service_gone(self) -> None:
        """The service closed or broke the connection, and the answer did not end by it."""

    def upload_flows(self) -> None:
        """The service takes bytes again, after `Connection.blocked` was true."""

    def upload_blocked(self) -> None:
        """The service takes no more bytes at present."""


class Origin:
    """Where a tunnel's service is, and how to connect to it.

    Args:
        service: its address.
        tls: for ``https``; None: the system's authorities, and the certificate must name the host.
    """

    __slots__ = ("service", "tls")

    def __init__(self, service: Service, *, tls: ssl.SSLContext | None = None) -> None:
        self.service = service
        self.tls = (tls or ssl.create_default_context()) if service.scheme == "https" else None

    async def connect(self, loop: asyncio.AbstractEventLoop, pool: Pool | None = None) -> Connection:
        """Make one connection; raises OSError, or UnicodeError for a name that no resolver takes."""
        service = self.service
        connection = Connection(loop, pool)
        if service.scheme == "unix":
            sock = await _connect_unix(service.path)
            await loop.create_unix_connection(lambda: connection, sock=sock)
        else:
            # By a socket of our own: the loops' own dial looks names up in the few threads that they have for all.
            sock = await dial(service.host, service.port)
            try:
                await self._over(sock, connection, loop)
            except BaseException:
                sock.close()
                raise
        return connection

    async def _over(self, sock: socket.socket, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Use a socket that is connected."""
        if self.tls is None:
            await loop.create_connection(lambda: connection, sock=sock)
        else:
            await loop.create_connection(
                lambda: connection,
                sock=sock,
                ssl=self.tls,
                server_hostname=self.service.host,
                ssl_shutdown_timeout=_SHUTDOWN,
            )


async def _connect_unix(path: str) -> socket.socket:
    """Connect to a Unix socket, waiting while its backlog is full.

    Such a connect is never under way: it succeeds, fails, or says EAGAIN for a full backlog. asyncio's own
    would take that for a connection, uvloop's for a failure; and no event tells when there is room, so it is
    tried again, ever more seldom, until the caller's time is over.
    """
    delay = 0.005
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(path)
        except BlockingIOError:
            sock.close()
        except OSError:
            sock.close()
            raise
        else:
            return sock
        await asyncio.sleep(delay)
        delay = min(2 * delay, 0.1)


class Connection(asyncio.Protocol):
    """One connection, idle in its pool or carrying one exchange.

    Attributes:
        user: whose exchange it carries; None when idle or over.
        blocked: the service takes no bytes at present.
        paused: reading from it is paused; its close is watched meanwhile.
        reused: it has carried an exchange before this one.
        short: it is read a little at a time (wire/short_reads.py).
        tls: what the kernel holds of it is not what will be read.
    """

    __slots__ = ("_fd", "_loop", "_pool", "blocked", "paused", "reader", "reused", "short", "tls", "transport", "user")

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool | None) -> None:
        self._loop = loop
        self._pool = pool
        self._fd = -1
        self.transport: asyncio.Transport | None = None
        self.reader: AnswerReader | None = None
        self.user: User | None = None
        self.blocked = False
        self.paused = False
        self.reused = False
        self.short = False
        self.tls = False

    # -- what a user does ------------------------------------------------------------------------------

    def begin(self, user: User, reader: AnswerReader, head: bytes) -> None:
        """Send a request's head; its answer goes to `reader`."""
        self.user = user
        self.reader = reader
        self._mind_memory(reading=not self.paused)
        self.write(head)

    def _mind_memory(self, *, reading: bool) -> None:
        if self._pool is not None and self.transport is not None:
            self.short = self._pool.reads.mind(self.transport, self, short=self.short, reading=reading)

    def write(self, data: bytes) -> None:
        """Send bytes of the request; look at `blocked` afterwards."""
        assert self.transport is not None
        self.transport.write(data)

    @property
    def waiting(self) -> int:
        """Bytes given to `write` that the kernel has not taken."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def pause(self) -> None:
        """Read no more for now."""
        transport = self.transport
        if self.paused or transport is None or transport.is_closing():
            return
        self.paused = True
        transport.pause_reading()
        CloseWatch.of(self._loop).watch(self._fd, self._closed_while_paused)

    def resume(self) -> None:
        """Read on."""
        if self.paused:
            self._unwatch()
            if self.transport is not None and not self.transport.is_closing():
                self._mind_memory(reading=False)
                self.transport.resume_reading()

    def leave(self, *, reusable: bool) -> None:
        """The exchange is over: the connection goes back to its pool, or is closed without a reset."""
        self.user = self.reader = None
        self.resume()
        self.reused = True
        transport = self.transport
        if transport is None:
            return
        if transport.get_write_buffer_size():
            self.kill()  # the service has no use for it, and may never take it
        elif reusable and self._pool is not None and not transport.is_closing():
            self._pool.release(self)
        else:
            self.close()

    def hand_over(self) -> asyncio.Transport:
        """Let go of the transport, which is reading, for `set_protocol`: what it carries is no HTTP any more."""
        transport, self.transport = self.transport, None
        assert transport is not None
        self.user = self.reader = None
        if self._pool is not None:
            if self.short:
                self._pool.reads.set(transport, self, short=False, reading=True)
            self._pool.forget(self)
        return transport

    def close(self) -> None:
        """Close it once what was written is out."""
        self.user = self.reader = None
        self._unwatch()
        if self._pool is not None:
            self._pool.forget(self)
        if self.transport is not None:
            self.transport.close()

    def kill(self) -> None:
        """Close it now, by a reset where there is one, so that the service notices at once."""
        self.user = self.reader = None
        self._unwatch()
        if self._pool is not None:
            self._pool.forget(self)
        if self.transport is not None:
            reset(self.transport)

    def fresh(self) -> bool:
        """Nothing has come, its end neither, that the loop has not read yet."""
        if self._fd < 0:
            return False
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return not poller.poll(0)

    # -- what the loop calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = transport  # type: ignore[assignment]
        self._fd = descriptor(transport)
        self.tls = transport.get_extra_info("sslcontext") is not None
        assert self.transport is not None
        self.transport.set_write_buffer_limits(high=UNCOUNTED)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        reader = self.reader
        if reader is None:  # nobody asked: what follows would be taken for the next request's answer
            self.close()
            return
        try:
            reader.feed(data)
        except BadAnswer as fault:
            if self.user is not None:
                self.user.bad_answer(fault)
            return
        if len(data) >= LARGE and self.transport is not None and not self.paused:
            let_others(self._loop, self.transport, self._goes_on)

    def _goes_on(self) -> bool:
        return not self.paused

    def eof_received(self) -> None:
        """See asyncio: the transport closes itself after this."""
        if self._pool is not None:
            self._pool.forget(self)
        if self.reader is not None and not (self.tls and self._cut()):
            self.reader.eof()
        if self.user is not None:
            self.user.service_gone()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._unwatch()
        if self._pool is not None:
            self._pool.forget(self)
        if exc is not None and self.user is not None and not self.tls:
            self._rescue()
        self.transport = None
        self._fd = -1
        if self.user is not None:
            self.user.service_gone()
        self.user = self.reader = None

    def pause_writing(self) -> None:
        """See asyncio."""
        self.blocked = True
        if self.user is not None:
            self.user.upload_blocked()

    def resume_writing(self) -> None:
        """See asyncio."""
        self.blocked = False
        if self.user is not None:
            self.user.upload_flows()

    # -- ends ------------------------------------------------------------------------------------------

    def _cut(self) -> bool:
        """TLS ended without its close_notify: anyone on the way may have cut it, so it is no clean end.

        asyncio (3.11) tells both ends alike; reading once more tells them apart.
        """
        if self.transport is None:
            return False
        inner: ssl.SSLObject = self.transport.get_extra_info("ssl_object")
        try:
            return bool(inner.read(1))
        except ssl.SSLZeroReturnError:
            return False
        except ssl.SSLError:
            return True

    def _unwatch(self) -> None:
        if self.paused:
            self.paused = False
            CloseWatch.of(self._loop).unwatch(self._fd)

    def _closed_while_paused(self, events: int) -> None:
        """The service closed while we do not read; what it had sent before may still be in the kernel."""
        user, reader = self.user, self.reader
        if user is None or reader is None:
            return
        broken = events & (select.EPOLLERR | select.EPOLLHUP)
        if broken or (reader.left > 0 and not self.tls and _unread(self._fd) < reader.left):
            user.service_gone()

    def _rescue(self) -> None:
        """Read what came before the connection broke.

        A service that answers early and closes with an upload unread resets the connection: our next write
        fails, and the transport drops its answer unread although the kernel still has it.
        """
        while self.user is not None and self.reader is not None and not self.paused:
            try:
                data = os.read(self._fd, _READ)
            except OSError:
                return
            if not data:
                return
            self.data_received(data)


def _unread(fd: int) -> int:
    """Bytes that the kernel holds for reading from a socket."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
    except OSError:
        return 0


_REASONS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENOENT: "its socket does not exist",
    errno.EACCES: "permission denied",
    errno.EHOSTUNREACH: "no route to its host",
    errno.ENETUNREACH: "no route to its network",
    errno.ETIMEDOUT: "connection timed out",
    errno.ECONNRESET: "connection reset",
    errno.EMFILE: "the agent has no file descriptors left",
    errno.ENFILE: "the agent's machine has no file descriptors left",
}


#: By OpenSSL's number (X509_V_ERR_…): what the one who keeps the service can mend at once.
_BAD_CERTIFICATES = {9: "its certificate is not valid yet", 10: "its certificate has expired"}


def why(fault: Exception) -> str:
    """Why a connect failed, in words that name no address: they are shown to visitors."""
    if isinstance(fault, ssl.SSLCertVerificationError):
        return _BAD_CERTIFICATES.get(
            getattr(fault, "verify_code", 0), "its certificate is not valid for its address, or not trusted"
        )
    if isinstance(fault, ssl.SSLError):
        return "TLS failed"
    if isinstance(fault, socket.gaierror | UnicodeError):
        return "its name does not resolve"
    numbers = {int(found) for found in re.findall(r"\[Errno (\d+)\]", str(fault))}
    number = fault.errno if isinstance(fault, OSError) and fault.errno else min(numbers, default=0)
    return _REASONS.get(number, "connection failed")
