"""uvicorn's HTTP protocol on httptools, as both APIs speak it, with what that leaves open closed.

With it and one write for a short answer `tunnelctl top`, which asks each second, costs an agent at rest a quarter less
than with h11. What h11 did beside is done here: heads and trailers have a bound, `Host` is there once, few requests
wait behind one, and what is told to HTTP/1.0 ends with the connection. So do bounds of time that neither has: an API
takes few connections, and a caller that never ends its request, or never takes its answer, would keep one for good.
An answer that bounds a reader who takes nothing by itself says so: ``patient`` in its request's state.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tunneld.control.doors import IDLE
from tunneld.control.guard import Problem
from tunneld.wire.unix import credentials

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Message, Scope, Send

__all__ = ["ApiProtocol", "until_closed"]

MAX_HEAD = 64 * 1024
"""Bytes of a request's target and fields; of trailers, too."""
MAX_BEHIND = 16
"""Requests that a caller may send behind one that is not answered yet."""
MAX_HELD = 64 * 1024
"""Bytes of answers that wait for the end of a turn of the loop."""
MIN_TAKEN = 32 * 1024
"""Bytes of what waits for a caller that it takes within `IDLE` at least, or all of it."""
_GRAIN = 0.002  # seconds: uvloop's clock has milliseconds, so that a timer may come one before its moment


class ApiProtocol(HttpToolsProtocol):
    """Puts into a request's state a Unix peer's credentials, and what aborts and writes; bounds who keeps it waiting.

    Within `IDLE` a request comes, and from its first byte on is whole, and `MIN_TAKEN` of what is answered is taken.

    Attributes:
        gone: set when it has ended.
    """

    gone: asyncio.Event
    _in_head = _in_body = False
    _moved = False  # the segment that is read had the end of a head, or some of a body
    _unread = 0  # bytes of segments since one had

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Serve a connection."""
        sock = transport.get_extra_info("socket")
        peer = credentials(sock) if sock.family == socket.AF_UNIX else None
        written = self._written = Written(transport, self.loop)
        super().connection_made(written)
        self.app_state = {**self.app_state, "peer": peer, "abort": transport.abort, "write": written.write}
        self._owes: float | None = self.loop.time()  # since when its caller does: a request, or the rest of one
        self._due, self._due_since = 0, self._owes  # bytes that it will have taken `IDLE` after that
        self._look_at(self._owes + IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._timer.cancel()
        super().connection_lost(exc)
        self.gone.set()

    # -- bounds of time: one timer, which each request moves by a number alone ------------------------------

    def _look_at(self, moment: float) -> None:
        self._timer = self.loop.call_at(moment, self._look)

    def _look(self) -> None:
        """End what is due, and look again when something may be."""
        now = self.loop.time()
        cycle, written = self._under_way(), self._written
        patient = cycle is not None and "patient" in cycle.scope["state"]
        if patient or written.taken >= self._due:
            self._due, self._due_since = written.taken + min(MIN_TAKEN, written.get_write_buffer_size()), now
        elif now >= self._due_since + IDLE:
            self.transport.abort()
            return
        if self._owes is not None and now >= self._owes + IDLE:
            self._owes = None
            self._late()
        first = self._due_since if self._owes is None else min(self._owes, self._due_since)
        self._look_at(max(now + _GRAIN, first + IDLE))

    def _under_way(self) -> RequestResponseCycle | None:
        """The last request of which a head came, where it is not answered yet."""
        if self.cycle and not self.cycle.response_complete:  # type: ignore[truthy-bool]  # None before the first
            return self.cycle
        return None

    def _late(self) -> None:
        """It sent no request, or not the whole of one: that is told where no other answer is under way."""
        cycle = self._under_way()
        if self._in_head:
            told = cycle is None
        else:
            told = self._in_body and cycle is not None and not (cycle.response_started or self.pipeline)
        if told and not self.transport.is_closing():
            text = f"The request did not come whole within {IDLE:g} s; its connection ends."
            self.transport.write(_alone(Problem("request_timeout", text, headers={"Connection": "close"})))
        self.transport.close()

    # -- the parser's word -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Read on. The parser keeps what it has of a head, or of trailers, however much that is: it is bounded here."""
        self._moved = False
        super().data_received(data)
        self._unread = 0 if self._moved else self._unread + len(data)
        if self._unread > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The request's head, or its trailers, are larger than {MAX_HEAD} bytes.")

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= MAX_BEHIND:
            raise ValueError("too many requests behind one")
        self._in_head, self._owes = True, self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head. A trailer's is left out: it could say what a proxy in between took away."""
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        self._moved = True
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Its head is whole: serve it, or raise, which the caller is answered 400 for."""
        self._in_head, self._in_body, self._moved = False, True, True
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            raise ValueError("head too large")
        hosts = sum(name == b"host" for name, _ in self.headers)
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or hosts > 1 or (hosts == 0 and version == "1.1"):
            raise ValueError("another version, or Host is not there once")
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # nothing here is upgraded to, and the parser reads no request after it

    def on_message_complete(self) -> None:
        """A request is whole."""
        super().on_message_complete()
        self._in_body, self._owes = False, None
        if self._under_way() is None:
            self._owes = self.loop.time()

    def on_response_complete(self) -> None:
        """A request is answered."""
        super().on_response_complete()
        if self._owes is None and self._under_way() is None:
            self._owes = self.loop.time()


def _alone(answer: Response) -> bytes:
    """An answer that no application gave, as it is sent."""
    fields = b"".join(b"%b: %b\r\n" % field for field in answer.raw_headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (
        answer.status_code, HTTPStatus(answer.status_code).phrase.encode(), fields, bytes(answer.body),
    )  # fmt: skip


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
        self._written = 0  # bytes, those that are held among them

    def write(self, data: Any) -> None:
        """See `asyncio.WriteTransport`; so is the rest."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._size += len(data)
        self._written += len(data)
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

    @property
    def taken(self) -> int:
        """Bytes that the socket took so far."""
        return self._written - self.get_write_buffer_size()

    def get_write_buffer_size(self) -> int:
        return self._size + self._to.get_write_buffer_size()

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
            bare = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if bare:
                scope["method"] = "HEAD"
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        elif bare:
            write(message.get("body", b""))
            message = {**message, "body": b""}
        await send(message)

    return sending
