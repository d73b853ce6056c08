"""Bodies that the server itself reads on the public listener: small, bounded in size and time, taken whole.

A `Form` stands where an exchange would. What the callers need of a framework is this and a JSON decoder; their
answers have shapes of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers

if TYPE_CHECKING:
    from tunneld.server.ingress import Ingress
    from tunneld.wire.http1 import RequestHead
    from tunneld.wire.http_server import ServerConnection

__all__ = ["Form"]


class Form:
    """A request whose body is read for the server: `Consumer` of its connection.

    Args:
        ingress: that answers.
        connection: whose request it is.
        head: of the request.
        whole: called with this and the body, once it is whole; the answer may come then or later.
        refuse: makes the answer of an error.

    Raises:
        VisitorError: ``body_too_large``: it says that it is larger than `limits.max_form`. Nothing has begun.
    """

    __slots__ = ("_body", "_ingress", "_limit", "_refuse", "_timer", "_whole", "connection", "head")

    def __init__(
        self,
        ingress: Ingress,
        connection: ServerConnection,
        head: RequestHead,
        *,
        whole: Callable[[Form, bytes], None],
        refuse: Callable[[Form, VisitorError], None],
    ) -> None:
        self._limit = ingress.limits.max_form
        if head.length > self._limit:
            raise self._too_large()
        self.connection = connection
        self.head = head
        self._ingress = ingress
        self._whole = whole
        self._refuse = refuse
        self._body = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Read the body."""
        self.connection.begin(self)
        if not self.head.length:
            self._whole(self, b"")
            return
        if self.head.expect:
            self.connection.send_informational(100, [])
        self._timer = self._ingress.loop.call_later(self._ingress.limits.header_timeout, self._late)

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer it; nothing happens when the peer has left, or it was answered."""
        if self.connection.consumer is self:
            self._stop_timer()
            self.connection.consumer = None
            self._ingress.answer_whole(self.connection, status, headers, body)

    # -- Consumer ----------------------------------------------------------------------------------------

    def body(self, data: bytes) -> bool:
        """A piece of it."""
        self._body += data
        if len(self._body) > self._limit:
            self._fail(self._too_large())
        return True

    def body_end(self, trailers: Headers) -> None:
        """It is whole."""
        self._stop_timer()
        body, self._body = bytes(self._body), bytearray()
        self._whole(self, body)

    def body_fault(self, error: VisitorError) -> None:
        """It is not valid."""
        self._fail(error)

    def drained(self) -> None:
        """Nothing waits for that."""

    def stalled(self) -> None:
        """The peer does not take its answer."""
        self.connection.reset()

    def gone(self) -> None:
        """The peer has left."""
        self._stop_timer()

    # -- inside ------------------------------------------------------------------------------------------

    def _late(self) -> None:
        self._timer = None
        self._fail(VisitorError("request_timeout", "The request's body did not come in time."))

    def _fail(self, error: VisitorError) -> None:
        self._stop_timer()
        self._body = bytearray()
        self.connection.discard_body()
        self._refuse(self, error)

    def _too_large(self) -> VisitorError:
        return VisitorError("body_too_large", f"This address takes bodies of {self._limit} bytes.")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
