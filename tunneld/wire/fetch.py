"""One HTTP request of our own, whole: for the few that a daemon makes, where a client library would cost megabytes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from urllib.parse import urlsplit

from tunneld.config.proxies import Proxy
from tunneld.errors import ProtocolError, TunneldError
from tunneld.protocol.headers import Headers, encode_head
from tunneld.wire.dial import dial
from tunneld.wire.http_client import AnswerReader
from tunneld.wire.proxy import ProxyFailed, through, why

__all__ = ["FetchFailed", "fetch"]

_MAX_HEAD = 64 << 10
_READ = 64 << 10


class FetchFailed(TunneldError):
    """There is no answer, or none that can be taken; says nothing of what was sent."""


class _Answer:
    """`AnswerSink` that keeps a bounded body."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.status = 0
        self.body = bytearray()

    def answer_head(self, status: int, headers: Headers, length: int) -> None:
        """One head; of several the last one counts."""
        self.status = status
        if length > self._most:
            raise FetchFailed(f"its answer is longer than {self._most} bytes")
        if any(name.lower() == "content-encoding" and value != "identity" for name, value in headers):
            raise FetchFailed("its answer is compressed, which was not asked for")

    def answer_data(self, data: bytes) -> None:
        """Bytes of the body."""
        self.body += data
        if len(self.body) > self._most:
            raise FetchFailed(f"its answer is longer than {self._most} bytes")

    def answer_end(self, trailers: Headers) -> None:
        """Trailers say nothing here."""


async def fetch(
    method: str,
    url: str,
    headers: Headers,
    body: bytes = b"",
    *,
    context: ssl.SSLContext,
    timeout: float,
    most: int,
    proxy: Proxy | None = None,
) -> tuple[int, bytes]:
    """The status and the body of an answer; redirects are not followed.

    Args:
        url: ``http://`` or ``https://``.
        context: for the latter.
        timeout: seconds for all of it.
        most: bytes of the body.
        proxy: to go through; one that speaks TLS itself is not taken.

    Raises:
        FetchFailed: see there.
    """
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    authority = parts.netloc.rpartition("@")[2]
    said: Headers = [("Host", authority), ("Connection", "close"), ("User-Agent", "tunneld"), *headers]
    if body:
        said.append(("Content-Length", str(len(body))))
    answer = _Answer(most)
    try:
        async with asyncio.timeout(timeout):
            sock = await (dial(host, port) if proxy is None else through(proxy, host, port))
            request = encode_head(f"{method} {target} HTTP/1.1", said) + body
            await _ask(sock, context if secure else None, host, request, answer)
    except TimeoutError:
        raise FetchFailed(f"it does not answer within {timeout:g} s") from None
    except ProxyFailed as error:
        raise FetchFailed(str(error)) from None
    except ProtocolError as error:
        raise FetchFailed(f"its answer cannot be read: {error}") from None
    except ssl.SSLCertVerificationError as error:
        raise FetchFailed(f"its certificate is not trusted: {error.verify_message}") from None
    except (OSError, UnicodeError) as error:
        raise FetchFailed(f"it cannot be reached: {why(error)}") from None
    return answer.status, bytes(answer.body)


async def _ask(sock: socket.socket, context: ssl.SSLContext | None, host: str, request: bytes, answer: _Answer) -> None:
    """Say the request on a connected socket, read the answer to its end, and close."""
    try:
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname=host if context is not None else None
        )
    except BaseException:
        sock.close()
        raise
    try:
        writer.write(request)
        await _read(reader, AnswerReader(answer, to_head=False, limit=_MAX_HEAD))
    finally:
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader, parser: AnswerReader) -> None:
    while not parser.done:
        data = await reader.read(_READ)
        if data:
            parser.feed(data)
        elif not parser.eof():
            raise FetchFailed("it ended the connection before its answer was whole")
