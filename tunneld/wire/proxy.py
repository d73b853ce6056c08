"""Through a forward proxy to a host: HTTP CONNECT (RFC 9110, 9.3.6) and SOCKS5 (RFC 1928, RFC 1929).

Both ask on the socket that is used afterwards, before anything else is said on it.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Literal

from tunneld.config.proxies import Proxy
from tunneld.errors import TunneldError
from tunneld.wire.dial import dial, resolve

__all__ = ["Kind", "ProxyFailed", "connect_request", "through", "through_tls", "why"]

#: Why a proxy did not connect us: it cannot be reached; wants other credentials; may not; could not; is no proxy.
Kind = Literal["unreachable", "credentials", "forbidden", "failed", "no_proxy"]

_MAX_HEAD = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: ([^\r\n]{0,100})[^\r\n]*)?\r\n")
_VERSION, _NO_AUTH, _BY_PASSWORD, _NONE_ACCEPTED = 5, 0, 2, 255
_CONNECT, _IPV4, _NAME, _IPV6 = 1, 1, 3, 4
_REPLIES: dict[int, tuple[Kind, str]] = {
    1: ("failed", "general failure"),
    2: ("forbidden", "its rules do not allow this connection"),
    3: ("failed", "the server's network is unreachable from there"),
    4: ("failed", "the server's host is unreachable from there, or its name does not resolve there"),
    5: ("failed", "the server refused the connection"),
    6: ("failed", "the time to live ran out on the way"),
    7: ("no_proxy", "it does not know CONNECT"),
    8: ("failed", "it does not know this type of address"),
}


class ProxyFailed(TunneldError):
    """The proxy did not give us a connection. Never says a credential.

    Attributes:
        kind: see `Kind`.
        sent: credentials were sent.
    """

    def __init__(self, proxy: Proxy, kind: Kind, detail: str) -> None:
        super().__init__(f"the proxy {proxy} ({proxy.source}): {detail}")
        self.kind = kind
        self.sent = proxy.username is not None


async def through(proxy: Proxy, host: str, port: int) -> socket.socket:
    """A socket on which `host` answers, by way of a proxy that is not itself behind TLS; the caller owns it.

    Raises:
        ProxyFailed: there is none to be had.
        OSError: the server's name does not resolve here (``socks5``).
    """
    target = host
    if proxy.scheme == "socks5":
        target = (await resolve(host, port))[0][1][0]
    sock = await _reach(proxy)
    loop = asyncio.get_running_loop()

    async def read(count: int) -> bytes:
        return await loop.sock_recv(sock, count)

    async def write(data: bytes) -> None:
        await loop.sock_sendall(sock, data)

    try:
        if proxy.scheme == "http":
            await write(connect_request(proxy, host, port))
            await _read_answer(proxy, read)
        else:
            await _socks(proxy, target, port, read, write)
    except OSError as error:
        sock.close()
        raise ProxyFailed(proxy, "failed", f"it broke the connection: {why(error)}") from None
    except BaseException:
        sock.close()
        raise
    return sock


async def through_tls(proxy: Proxy, context: ssl.SSLContext, host: str, port: int) -> asyncio.Transport:
    """The same by a proxy that speaks TLS itself: a transport whose protocol is to be set. Raises ProxyFailed."""
    sock = await _reach(proxy)
    loop = asyncio.get_running_loop()
    try:
        transport, asking = await loop.create_connection(_Asking, sock=sock, ssl=context, server_hostname=proxy.host)
    except ssl.SSLCertVerificationError as error:
        sock.close()
        raise ProxyFailed(proxy, "forbidden", f"its certificate is not trusted: {error.verify_message}") from None
    except OSError as error:
        sock.close()
        raise ProxyFailed(proxy, "no_proxy", f"TLS with it failed: {why(error)}") from None
    except BaseException:
        sock.close()
        raise
    try:
        transport.write(connect_request(proxy, host, port))
        await _read_answer(proxy, asking.read)
    except BaseException:
        transport.abort()
        raise
    return transport


async def _reach(proxy: Proxy) -> socket.socket:
    try:
        return await dial(proxy.host, proxy.port)
    except (OSError, UnicodeError) as error:
        raise ProxyFailed(proxy, "unreachable", f"it cannot be reached: {why(error)}") from None


def why(error: Exception) -> str:
    """What the system says of an error, without the address that asyncio puts before it."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)


# -- HTTP CONNECT ----------------------------------------------------------------------------------------------


def connect_request(proxy: Proxy, host: str, port: int) -> bytes:
    """What is asked of an HTTP proxy."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.username is not None:
        pair = f"{proxy.username}:{proxy.password}".encode()
        lines.append(f"Proxy-Authorization: Basic {b64encode(pair).decode()}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


class _Asking(asyncio.Protocol):
    """Lets bytes of a transport be awaited, until another protocol takes it."""

    def __init__(self) -> None:
        self._data = b""
        self._over = False
        self._news = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._news.set()

    def eof_received(self) -> None:
        self._over = True
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._news.set()

    async def read(self, count: int) -> bytes:
        """At most `count` bytes; empty when no more come."""
        while not self._data and not self._over:
            self._news.clear()
            await self._news.wait()
        data, self._data = self._data[:count], self._data[count:]
        return data


async def _read_answer(proxy: Proxy, read: Callable[[int], Awaitable[bytes]]) -> None:
    """Read the answer to CONNECT; return when it is 2xx."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = await read(4096)
        if not data:
            raise ProxyFailed(proxy, "no_proxy" if head else "failed", "it closed the connection before it answered")
        head += data
        if len(head) > _MAX_HEAD or not b"HTTP/1.".startswith(head[:7]):
            raise ProxyFailed(proxy, "no_proxy", "its answer is not HTTP")
    found = _STATUS.match(head)
    if found is None:
        raise ProxyFailed(proxy, "no_proxy", "its answer is not HTTP")
    status = int(found[1])
    if 200 <= status < 300:
        if not head.endswith(b"\r\n\r\n") or head.count(b"\r\n\r\n") != 1:
            raise ProxyFailed(proxy, "no_proxy", "it sent something behind its answer, before the server was asked")
        return
    words = "".join(char for char in (found[2] or b"").decode("latin-1") if char.isprintable())
    said = f"it answered CONNECT with {status} {words}".rstrip()
    if status == 407:
        raise ProxyFailed(proxy, "credentials", said)
    if status in (401, 403, 405, 451):
        raise ProxyFailed(proxy, "forbidden", said)
    raise ProxyFailed(proxy, "failed" if status >= 429 else "no_proxy", said)


# -- SOCKS5 ----------------------------------------------------------------------------------------------------


async def _socks(
    proxy: Proxy,
    host: str,
    port: int,
    read: Callable[[int], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
) -> None:
    async def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = await read(count - len(data))
            if not piece:
                raise ProxyFailed(proxy, "failed", "it closed the connection before it answered")
            data += piece
        return data

    methods = bytes([_NO_AUTH] if proxy.username is None else [_NO_AUTH, _BY_PASSWORD])
    await write(bytes([_VERSION, len(methods)]) + methods)
    version, method = await exactly(2)
    if version != _VERSION:
        raise ProxyFailed(proxy, "no_proxy", "it does not speak SOCKS5")
    if method == _NONE_ACCEPTED or method not in methods:
        raise ProxyFailed(proxy, "credentials", "it takes none of the ways to authenticate that were offered")
    if method == _BY_PASSWORD:
        assert proxy.username is not None
        name, password = proxy.username.encode(), proxy.password.encode()
        await write(bytes([1, len(name)]) + name + bytes([len(password)]) + password)
        if (await exactly(2))[1] != 0:
            raise ProxyFailed(proxy, "credentials", "it refused the user name or the password")
    await write(bytes([_VERSION, _CONNECT, 0]) + _socks_address(host) + port.to_bytes(2, "big"))
    version, reply, _, kind = await exactly(4)
    if version != _VERSION:
        raise ProxyFailed(proxy, "no_proxy", "it does not speak SOCKS5")
    if reply:
        reason, words = _REPLIES.get(reply, ("failed", f"it answered {reply}"))
        raise ProxyFailed(proxy, reason, words)
    size = {_IPV4: 4, _IPV6: 16}.get(kind)
    if size is None:
        size = (await exactly(1))[0]
    await exactly(size + 2)  # the address that it bound: of no use


def _socks_address(host: str) -> bytes:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        name = host.encode("idna")
        return bytes([_NAME, len(name)]) + name
    return bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed
