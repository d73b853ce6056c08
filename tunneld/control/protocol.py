"""uvicorn's HTTP protocol on httptools, as both APIs speak it, with what that leaves open closed.

httptools reads a head in a fifth of h11's time, which is most of what a short answer costs: `tunnelctl top` asks each
second. What h11 did beside is done here: a head has a bound, `Host` is there once, and what is told to HTTP/1.0 ends
with the connection.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tunneld.control.doors import IDLE
from tunneld.wire.unix import credentials

if TYPE_CHECKING:
    from starlette.types import Message, Scope, Send

__all__ = ["ApiProtocol", "until_closed"]

MAX_HEAD = 64 * 1024
"""Bytes of a request's target and fields."""
MAX_HELD = 64 * 1024
"""Bytes of answers that wait for the end of a turn of the loop."""


class ApiProtocol(HttpToolsProtocol):
    """Puts into the request's state a Unix peer's credentials, and its `Written`; bounds a quiet first request.

    Attributes:
        gone: set when it has ended.
    """

    gone: asyncio.Event
    _begun: int | None = None  # bytes that came of a head that is not whole; None: none is under way

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Serve a connection."""
        sock = transport.get_extra_info("socket")
        peer = credentials(sock) if sock.family == socket.AF_UNIX else None
        written = Written(transport, self.loop)
        super().connection_made(written)
        self.app_state = {**self.app_state, "peer": peer, "abort": transport.abort, "write": written.write}
        self.timeout_keep_alive_task = self.loop.call_later(IDLE, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        super().connection_lost(exc)
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        """Read on, unless a head is too large already: the parser keeps what it has of one, however much that is."""
        if self._begun is not None:
            self._begun += len(data)
            if self._begun > MAX_HEAD:
                self._unset_keepalive_if_required()
                self.send_400_response(f"The request's head is larger than {MAX_HEAD} bytes.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begun = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole: serve it, or raise, which the caller is answered 400 for."""
        self._begun = None
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            raise ValueError("head too large")
        hosts = sum(name == b"host" for name, _ in self.headers)
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or hosts > 1 or (hosts == 0 and version == "1.1"):
            raise ValueError("another version, or Host is not there once")
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # nothing here is upgraded to, and the parser reads no request after it


class Written(asyncio.Transport):
    """A transport that writes what an answer says in one turn of the loop together: a head, and all of a short body.

    Each write by itself wakes who reads it, which costs as much as the rest of a short answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._to = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> None:
        """See `asyncio.WriteTransport`; so is the rest."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._size += len(data)
        if self._size > MAX_HELD:
            self._flush()  # whoever writes much in one turn is to learn of a reader that takes nothing

    def _flush(self) -> None:
        held, self._held, self._size = self._held, [], 0
        if held and not self._to.is_closing():
            self._to.writelines(held)

    def close(self) -> None:
        self._flush()
        self._to.close()

    def abort(self) -> None:
        self._to.abort()

    def is_closing(self) -> bool:
        return self._to.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._to.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._to.pause_reading()

    def resume_reading(self) -> None:
        self._to.resume_reading()


def until_closed(scope: Scope, send: Send) -> Send:
    """Of an answer to HTTP/1.0 that says no length: what goes out unframed, and ends with its connection.

    uvicorn would send it in chunks, which HTTP/1.0 has not (RFC 9112, 6.1). Of a HEAD it sends the head alone, and its
    body, which is none, at the pace of the reader: it takes this for one.
    """
    write = scope["state"]["write"]
    bare = False

    async def sending(message: Message) -> None:
        nonlocal bare
        if message["type"] == "http.response.start":
            bare = all(name.lower() != b"content-length" for name, _ in message["headers"])
            if bare:
                scope["method"] = "HEAD"
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        elif bare:
            write(message.get("body", b""))
            message = {**message, "body": b""}
        await send(message)

    return sending
