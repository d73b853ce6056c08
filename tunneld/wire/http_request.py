"""The asking half of a visitor's connection: heads and bodies as they come, one request at a time (RFC 9112)."""

from __future__ import annotations

import asyncio
import time

from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers
from tunneld.wire.http1 import CHUNKED, ChunkedBody, RequestHead, early_fault, parse_request
from tunneld.wire.http_answer import BUSY, HEAD, IDLE, AnswerSide
from tunneld.wire.http_roles import Service

__all__ = ["RequestSide"]


class RequestSide(AnswerSide):
    """What takes input apart and hands it on. `ServerConnection` says when, and is the only subclass."""

    __slots__ = ("_buffer", "_chunked", "_deadline", "_hold", "_slow", "_timer")

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._buffer: bytearray | None = None  # input that waits: part of a head, held body, pipelined requests
        self._chunked: ChunkedBody | None = None
        self._hold = False  # the consumer takes no body for now
        self._slow = False  # the body has come at less than `min_rate` of late
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0  # monotonic seconds at which what the connection waits for is late

    def _take_head(self, data: bytes) -> None:
        while data.startswith(b"\r\n"):  # empty lines before a request line (RFC 9112, 2.2)
            data = data[2:]
        limit = self.service.limits.max_header
        end = data.find(b"\r\n\r\n")
        if end < 0 or end + 4 > limit:
            self._take_part(data, limit)
            return
        self._received = 0
        if end + 4 < len(data):
            self._buffer = bytearray(data[end + 4 :])
        try:
            head = parse_request(data[:end])
        except VisitorError as error:
            self._refuse(error)
            return
        self._phase = BUSY
        self._old = head.version == "1.0"
        self._keep = head.keep_alive
        self._head_method = head.method == "HEAD"
        self._body = head.length
        most = self.service.limits.max_body
        if head.length == CHUNKED:
            self._chunked = ChunkedBody(limit)
        elif most and head.length > most:
            self._discard = True
            self._fault(head, _too_large(most))
            return
        if head.length:
            self._arm(self.service.limits.body_timeout)
        self._serve(head)

    def _take_part(self, data: bytes, limit: int) -> None:
        """A head that is not whole, or too large."""
        error = early_fault(data)
        if error is None and len(data) > limit:
            error = VisitorError("head_too_large", f"The head is over {limit} bytes.")
        if error is not None:
            self._refuse(error)
        elif data:
            self._buffer = bytearray(data)
            self._received = len(data)
            if self._phase == IDLE:
                self._phase = HEAD
                self._arm(self.service.limits.header_timeout)
        elif self._phase == HEAD:  # an empty line that came in two pieces: no head has begun
            self._phase = IDLE
            self._received = 0

    def _refuse(self, error: VisitorError) -> None:
        """Answer what is no request, once, and end."""
        self._phase = BUSY
        self._buffer = None
        self._count()
        self._body = -1  # whatever comes is dropped
        self._discard = True
        self._keep = False
        self._fault(None, error)

    def _take_body(self, data: bytes) -> None:
        trailers: Headers = []
        if self._chunked is not None:
            taken = self._take_chunks(self._chunked, data)
            if taken is None:
                return
            piece, data, trailers = taken
        elif self._body < 0:  # after a fault
            return
        else:
            piece = data[: self._body] if self._body < len(data) else data
            self._body -= len(piece)
            data = data[len(piece) :]
        if data:
            self._buffer = bytearray(data)
        self._received += len(piece)
        if self._timer is not None and not self.congested:
            self._extend(len(piece))
        consumer = self.consumer
        if consumer is not None and not self._discard:
            if piece and not consumer.body(piece) and self._body and self.consumer is consumer:
                self._hold = True
                self._update_reading()
            if not self._body and self.consumer is consumer:
                consumer.body_end(trailers)
        if not self._body and self._answer_done and self._phase == BUSY:
            self._next()

    def _extend(self, size: int) -> None:
        """So many bytes of the body came: each gives time for more, as `min_rate` says, at most `body_timeout`."""
        limits = self.service.limits
        full = time.monotonic() + limits.body_timeout
        rated = self._deadline + size / limits.min_rate if limits.min_rate else full
        self._slow = rated < full
        self._deadline = min(full, rated)

    def _take_chunks(self, chunked: ChunkedBody, data: bytes) -> tuple[bytes, bytes, Headers] | None:
        """(bytes of the body, what comes behind it, trailers); None after a fault."""
        try:
            piece = chunked.feed(data)
            most = self.service.limits.max_body
            if most and self._received + len(piece) > most:
                raise _too_large(most)
        except VisitorError as error:
            consumer, dropped = self.consumer, self._discard
            self._chunked = None
            self._discard = True
            self._keep = False
            if consumer is not None and not dropped:
                consumer.body_fault(error)
            return None
        if not chunked.done:
            return piece, b"", []
        self._body = 0
        self._chunked = None
        return piece, chunked.rest, chunked.trailers

    def _serve(self, head: RequestHead) -> None:
        """A head came."""
        raise NotImplementedError

    def _fault(self, head: RequestHead | None, error: VisitorError) -> None:
        """What came cannot be served."""
        raise NotImplementedError

    def _arm(self, seconds: float) -> None:
        """What the connection waits for from now on is late after so many seconds."""
        raise NotImplementedError

    def _count(self) -> None:
        """Input that waits has become more or less."""
        raise NotImplementedError

    def _update_reading(self) -> None:
        """Whether to read on may have changed."""
        raise NotImplementedError


def _too_large(limit: int) -> VisitorError:
    return VisitorError("body_too_large", f"The request's body is over {limit} bytes.")
