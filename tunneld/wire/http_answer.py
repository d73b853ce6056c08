"""The answering half of a visitor's connection: how an answer is framed, and how it ends (RFC 9112, 6)."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from tunneld.protocol.headers import Headers, encode_head
from tunneld.wire import sockets
from tunneld.wire.http_roles import Consumer, Service

__all__ = ["BUSY", "CLOSING", "HEAD", "IDLE", "LINGERING", "OFFERED", "OVER", "AnswerSide"]

#: Phases of a connection: between requests; part of a head came; a request is under way; answered, and what comes
#: is dropped; offered to become a tunnel; closes once all is sent; over.
IDLE, HEAD, BUSY, LINGERING, OFFERED, CLOSING, OVER = range(7)
# Framing of an answer: not begun, no body, Content-Length, chunks, the connection's end.
_NOT_BEGUN, _NO_BODY, _LENGTH, _CHUNKS, _CLOSE = range(5)
_COPIED = 16 * 1024  # a chunk up to this size is copied into its frame: cheaper than three buffers
#: The first lines of small chunks: to make one anew costs as much as to write it.
_CHUNK_LINES = [b"%x\r\n" % size for size in range(1024)]
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}


class AnswerSide(asyncio.Protocol):
    """What a consumer writes with. `RequestSide` is the other half, and the only subclass."""

    __slots__ = (
        "_answer_done",
        "_body",
        "_cork",
        "_discard",
        "_framing",
        "_head_method",
        "_keep",
        "_old",
        "_phase",
        "_received",
        "_room",
        "_written",
        "congested",
        "consumer",
        "service",
        "transport",
    )

    def __init__(self, service: Service) -> None:
        self.service = service
        self.transport: asyncio.Transport | None = None
        #: Serves the request under way; None when none is, or it was answered at once.
        self.consumer: Consumer | None = None
        #: The transport holds more than it should: what is written waits.
        self.congested = False
        self._phase = IDLE
        self._written = 0  # bytes given to the transport
        self._cork: list[bytes] | None = None  # a head, and what follows it in the same turn of the loop
        self._reset_request()

    def _reset_request(self) -> None:
        self._body = 0  # bytes of the request's body still to come; below 0 while that is not known
        self._received = 0  # of the body; of a head that is not whole, what was looked at
        self._discard = False  # what still comes of the body interests nobody
        self._keep = self._old = self._head_method = False
        self._framing = _NOT_BEGUN
        self._room = 0
        self._answer_done = False

    @property
    def answered(self) -> bool:
        """A final head has been sent for the request under way."""
        return self._framing != _NOT_BEGUN

    @property
    def closed(self) -> bool:
        """Nothing can be written any more."""
        return self._phase >= CLOSING

    @property
    def has_body(self) -> bool:
        """The answer may have a body: no HEAD, 204 or 304."""
        return self._framing > _NO_BODY

    @property
    def takes_trailers(self) -> bool:
        """The answer's framing has room for trailers."""
        return self._framing == _CHUNKS

    @property
    def whole(self) -> bool:
        """The answer has a head, and as many bytes as its Content-Length says."""
        return not self._room if self._framing == _LENGTH else self._framing != _NOT_BEGUN

    def send_informational(self, status: int, headers: Headers) -> None:
        """Send a head with 1xx; HTTP/1.0 knows none. Raises BadHeader."""
        if not self._old and self._framing == _NOT_BEGUN:
            self._write(encode_head(_STATUS_LINES.get(status) or f"HTTP/1.1 {status} ", headers))

    def send_head(self, status: int, headers: Headers, *, length: int | None) -> None:
        """Send the answer's head.

        Args:
            headers: those of the framing and of the connection are added, but for Content-Length.
            length: what Content-Length says; None without it.

        Raises:
            BadHeader: nothing was sent.
        """
        if self.service.draining or self._body:
            self._keep = False  # an answer before the upload's end: the rest of it may never come
        if self._head_method or status in (204, 304):
            framing = _NO_BODY
            if status == 204 and length is not None:
                headers = [pair for pair in headers if pair[0].lower() != "content-length"]
        elif length is not None:
            framing = _LENGTH
        elif self._old:
            framing = _CLOSE
            self._keep = False
        else:
            framing = _CHUNKS
            headers.append(("Transfer-Encoding", "chunked"))
        if not self._keep:
            headers.append(("Connection", "close"))
        elif self._old:
            headers.append(("Connection", "keep-alive"))
        self._cork = [encode_head(_STATUS_LINES.get(status) or f"HTTP/1.1 {status} ", headers)]
        self.service.loop.call_soon(self._uncork)
        self._framing = framing
        self._room = length or 0

    def send(self, data: bytes) -> bool:
        """Send bytes of the answer's body; False when they are more than Content-Length says: reset then."""
        framing = self._framing
        size = len(data)
        if framing == _CHUNKS:
            if size <= _COPIED:
                line = _CHUNK_LINES[size] if size < len(_CHUNK_LINES) else b"%x\r\n" % size
                self._write(b"".join((line, data, b"\r\n")))
            elif self.transport is not None and self._phase == BUSY:
                self._uncork()
                self._written += size
                self.transport.writelines((b"%x\r\n" % size, data, b"\r\n"))
        elif framing == _LENGTH:
            if size > self._room:
                return False
            self._room -= size
            self._write(data)
        elif framing == _CLOSE:
            self._write(data)
        return True

    def finish(self, trailers: Headers) -> None:
        """End the answer cleanly; `whole` must hold.

        Raises:
            BadHeader: trailers that cannot be sent; nothing was.
        """
        if self._framing == _CHUNKS:
            self._write(encode_head("0", trailers) if trailers else b"0\r\n\r\n")
        self._uncork()
        self._answer_done = True
        if not self._body:
            self._next()
        elif self.consumer is None or self._discard:
            self._linger()

    def reset(self) -> None:
        """End the connection so that the visitor sees a failure. The consumer is told nothing."""
        self.consumer = None
        self._uncork()
        if self._phase != OVER and self.transport is not None:
            self._leave(OVER)
            sockets.reset(self.transport)

    def abort(self) -> None:
        """End the connection at once; what waits to be sent is dropped. The consumer is told nothing."""
        self.consumer = None
        if self.transport is not None:
            self._leave(OVER)
            self.transport.abort()

    def _write(self, data: bytes) -> None:
        if self._cork is not None:
            self._cork.append(data)
            if len(data) > _COPIED:
                self._uncork()
        elif self._phase == BUSY and self.transport is not None:
            self._written += len(data)
            self.transport.write(data)

    def _uncork(self) -> None:
        """Write a head and what came of its body meanwhile in one go: a system call, and often a packet, for both."""
        cork, self._cork = self._cork, None
        if cork is not None:
            self._write(cork[0] if len(cork) == 1 else b"".join(cork))

    def _passed_on(self) -> int:
        """Bytes that the visitor's kernel has taken so far; with TLS, near enough."""
        assert self.transport is not None
        return self._written - sockets.not_taken(self.transport)

    def _next(self) -> None:
        """Request and answer are done."""
        raise NotImplementedError

    def _linger(self) -> None:
        """The answer is done, the request is not and will not be."""
        raise NotImplementedError

    def _leave(self, phase: int) -> None:
        """Let go of everything but the transport."""
        raise NotImplementedError
