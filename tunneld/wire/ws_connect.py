"""The client's half of the upgrade (RFC 6455 section 4.1): resolve, connect, TLS, request, answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import cast

import httptools
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidURI, WebSocketException
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI, parse_uri

from tunneld.config.proxies import Proxy
from tunneld.errors import TunneldError
from tunneld.wire.dial import dial
from tunneld.wire.proxy import through, through_tls
from tunneld.wire.ws_protocol import WebSocket

__all__ = [
    "MAX_BODY",
    "MAX_HEAD",
    "ConnectTimeout",
    "SubprotocolRemoved",
    "UpgradeFailed",
    "UpgradeRefused",
    "connect",
]

MAX_HEAD = 64 * 1024
"""Octets of the longest head of an answer that is read."""
MAX_BODY = 64 * 1024
"""Octets of a refusal's body that are kept."""
_MAX_INTERIM = 8
_BODY_TIME = 2.0  # seconds that a refusal's body may take: what has come by then must do


class UpgradeFailed(TunneldError):
    """The server's answer to the upgrade is not one that a WebSocket server gives."""


class SubprotocolRemoved(UpgradeFailed):
    """The upgrade was accepted without the subprotocol: something on the way removed it."""


class UpgradeRefused(UpgradeFailed):
    """The server answered the upgrade with another status than 101.

    Attributes:
        status: the HTTP status.
        headers: names and values as latin-1 text, in order.
        body: at most `MAX_BODY` octets of it.
        code: of ``X-Tunnel-Error``; None when something else than a tunnel server answered.
        retry_after: seconds of ``Retry-After``; None when it has none, or a date.
    """

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.code = self.header("x-tunnel-error")
        after = self.header("retry-after") or ""
        self.retry_after = int(after) if after.isascii() and after.isdigit() and len(after) < 10 else None
        super().__init__(
            f"The server refused the tunnel with status {status}" + (f", {self.code}." if self.code else ".")
        )

    def header(self, name: str) -> str | None:
        """The first header of that name, given in lower case."""
        return next((value for key, value in self.headers if key.lower() == name), None)


class ConnectTimeout(TimeoutError):
    """Opening took too long.

    Attributes:
        step: what was under way, for people.
    """

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step


async def connect(
    url: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    max_message: int,
    ssl_context: ssl.SSLContext | None = None,
    timeout: float,
    local_addr: tuple[str, int] | None = None,
    proxy: Proxy | None = None,
    proxy_context: ssl.SSLContext | None = None,
) -> WebSocket:
    """Open a WebSocket.

    Nothing is read before its ``handler`` is set: do that at once.

    Args:
        url: ``ws://`` or ``wss://``.
        headers: more headers of the request.
        subprotocols: offered, the best first; the answer must take one of them.
        max_message: octets of the largest message that is taken.
        ssl_context: for ``wss://``; None takes the system's roots.
        timeout: seconds for all of it.
        local_addr: address and port to connect from; not with a proxy.
        proxy: to go through; None: directly.
        proxy_context: for a proxy that speaks TLS itself; None takes the system's roots.

    Raises:
        ValueError: the URL is not one of a WebSocket.
        UpgradeRefused, SubprotocolRemoved, UpgradeFailed: what the server answered.
        ProxyFailed: the proxy gave no connection.
        ConnectTimeout: it took too long.
        OSError: resolving, connecting or TLS failed (``socket.gaierror``, ``ssl.SSLError`` among them).
    """
    try:
        uri = parse_uri(url)
    except (InvalidURI, ValueError) as error:
        raise ValueError(f"{url} is not the URL of a WebSocket: {error}") from None
    context = (ssl_context or ssl.create_default_context()) if uri.secure else None
    loop = asyncio.get_running_loop()
    upgrade = _Upgrade(loop, uri, subprotocols, headers)
    step = "connecting" if proxy is None else f"connecting through the proxy {proxy}"
    try:
        async with asyncio.timeout(timeout):
            if proxy is not None and proxy.scheme == "https":
                own = proxy_context or ssl.create_default_context()
                outer = await through_tls(proxy, own, uri.host, uri.port)
                step = "the TLS handshake" if context else "the upgrade"
                await _wrap_again(loop, outer, uri, context, upgrade)
            else:
                if proxy is not None:
                    sock = await through(proxy, uri.host, uri.port)
                else:
                    sock = await dial(uri.host, uri.port, local_addr=local_addr)
                step = "the TLS handshake" if context else "the upgrade"
                await _wrap(loop, sock, uri, context, upgrade)
            step = "the upgrade"
            subprotocol, early = await upgrade.settled()
    except TimeoutError as error:
        if error.errno:  # the system's own, of a connect
            raise
        raise ConnectTimeout(step) from None
    return WebSocket(loop, upgrade.transport, early, client=True, max_message=max_message, subprotocol=subprotocol)


async def _wrap(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    uri: WebSocketURI,
    context: ssl.SSLContext | None,
    upgrade: _Upgrade,
) -> None:
    try:
        await loop.create_connection(
            lambda: upgrade, sock=sock, ssl=context, server_hostname=uri.host if context else None
        )
    except BaseException:
        sock.close()
        raise


async def _wrap_again(
    loop: asyncio.AbstractEventLoop,
    outer: asyncio.Transport,
    uri: WebSocketURI,
    context: ssl.SSLContext | None,
    upgrade: _Upgrade,
) -> None:
    """The same on a transport that is TLS already."""
    if context is None:
        outer.set_protocol(upgrade)
        upgrade.connection_made(outer)
        return
    try:
        inner = await loop.start_tls(outer, upgrade, context, server_hostname=uri.host)
    except BaseException:
        outer.abort()
        raise
    if inner is None:
        raise ConnectionResetError("the connection was lost in the TLS handshake")
    upgrade.connection_made(inner)


class _Upgrade(asyncio.Protocol):
    """Sends the request and reads the answer's head, and a refusal's body.

    Attributes:
        done: becomes (subprotocol, octets behind the head), or fails.
        lost: the connection is gone, whatever `done` says.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        uri: WebSocketURI,
        subprotocols: Sequence[str],
        headers: Iterable[tuple[str, str]],
    ) -> None:
        self.done: asyncio.Future[tuple[str | None, bytes]] = loop.create_future()
        self.lost = False
        self.transport: asyncio.Transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        names = [Subprotocol(name) for name in subprotocols]
        self._client = ClientProtocol(uri, subprotocols=names or None)
        self._request = self._client.connect()
        for name, value in headers:
            self._request.headers[name] = value
        self._wanted = bool(names)
        self._read = bytearray()
        self._interim = 0
        self._refusal: _Refusal | None = None

    async def settled(self) -> tuple[str | None, bytes]:
        """What `done` becomes; the transport is aborted when that is a failure."""
        try:
            found = await self.done
            if self.lost:
                raise ConnectionResetError("the server closed the connection after the upgrade")
        except BaseException:
            self.transport.abort()
            raise
        return found

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of the class that they stand for
        self.transport = cast(asyncio.Transport, transport)
        self._client.send_request(self._request)
        self.transport.write(b"".join(self._client.data_to_send()))

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        try:
            self._take(data)
        except UpgradeFailed as error:
            self.done.set_exception(error)
        if self.done.done():
            self._settled()
            self.transport.pause_reading()

    def _take(self, data: bytes) -> None:
        if self._refusal is not None:
            self._refusal.feed(data)
            return
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head, rest = bytes(self._read[: end + 4]), bytes(self._read[end + 4 :])
            if end > MAX_HEAD:
                break
            status = head[9:12]
            if status == b"101":
                self.done.set_result((self._accepted(head), rest))
                return
            if status[:1] != b"1":
                self._read.clear()
                self._refusal = _Refusal()
                self._timer = self._loop.call_later(_BODY_TIME, self._end, None)
                self._refusal.feed(head + rest)
                return
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise UpgradeFailed("The server sends interim answers without end.")
            self._read = bytearray(rest)
        if len(self._read) > MAX_HEAD:
            raise UpgradeFailed(f"The head of the server's answer is longer than {MAX_HEAD} octets.")

    def _accepted(self, head: bytes) -> str | None:
        """Check a 101 (RFC 6455 section 4.1) and return the subprotocol."""
        client = self._client
        client.receive_data(head)
        if client.handshake_exc is not None:
            raise UpgradeFailed(f"The server's upgrade answer is not valid: {_words(client.handshake_exc)}.")
        if client.state is not State.OPEN:
            raise UpgradeFailed("The server's upgrade answer is not whole.")
        if self._wanted and client.subprotocol is None:
            raise SubprotocolRemoved("The server's upgrade answer names no subprotocol.")
        return client.subprotocol

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._end(exc)

    def _end(self, exc: Exception | None) -> None:
        """Nothing more comes, or is waited for."""
        self._settled()
        if self.done.done():
            return
        if self._refusal is not None:
            self.done.set_exception(self._refusal.error())
        else:
            lost = ConnectionResetError("the server closed the connection before it answered")
            self.done.set_exception(exc or lost)

    def _settled(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _words(error: Exception) -> str:
    return str(error.__cause__ or error) if isinstance(error, WebSocketException) else str(error)


class _Refusal:
    """An answer that is not 101. Its `feed` raises `UpgradeRefused` once it is whole, or long enough."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()
        self._whole = False

    def feed(self, data: bytes) -> None:
        """Take octets as they come."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._whole = True
        except httptools.HttpParserError:
            self._whole = True  # what came before the fault must do
        if self._whole or len(self._body) >= MAX_BODY:
            raise self.error()

    def error(self) -> UpgradeFailed:
        """What the answer comes to so far."""
        if not self._status:
            return UpgradeFailed("The server's answer is not HTTP.")
        return UpgradeRefused(self._status, self._headers, bytes(self._body))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body += body[: MAX_BODY - len(self._body)]

    def on_message_complete(self) -> None:
        self._whole = True
