"""Who stands around a visitor's connection (http_server.py): what it is held to, who serves it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers

if TYPE_CHECKING:
    from tunneld.wire.http1 import RequestHead
    from tunneld.wire.http_server import ServerConnection
    from tunneld.wire.short_reads import ShortReads

__all__ = ["Consumer", "HttpLimits", "Service"]


class HttpLimits(Protocol):
    """What a connection is held to: seconds and bytes (`limits` of the server's configuration)."""

    @property
    def max_header(self) -> int:
        """Of a head, request line included."""

    @property
    def header_timeout(self) -> float:
        """From a head's first byte to its last."""

    @property
    def idle_timeout(self) -> float:
        """Between requests."""

    @property
    def body_timeout(self) -> float:
        """Between two pieces of a request's body, before its answer has begun; 0 is no limit."""

    @property
    def min_rate(self) -> int:
        """Bytes a second of a body that is due, and of what waits for a visitor; 0 is no limit."""

    @property
    def max_body(self) -> int:
        """Of a request's body; 0 is no limit."""

    @property
    def stall(self) -> float:
        """In which a visitor takes no byte of those that wait for it."""


class Consumer(Protocol):
    """What serves one request. Calls are made from the transport's callbacks and must not raise."""

    def body(self, data: bytes) -> bool:
        """Bytes of the request's body; False asks to hold the rest until `ServerConnection.resume_body`."""

    def body_end(self, trailers: Headers) -> None:
        """The request is whole."""

    def body_fault(self, error: VisitorError) -> None:
        """The body is not valid, or over its limit: answer, or reset."""

    def drained(self) -> None:
        """After `ServerConnection.congested` was true: the visitor takes bytes again."""

    def stalled(self) -> None:
        """The visitor took none of the bytes that wait for it in `stall` seconds."""

    def gone(self) -> None:
        """The visitor has left. The last call."""


class Service(Protocol):
    """What all connections of a listener share."""

    loop: asyncio.AbstractEventLoop
    draining: bool  #: no answer keeps its connection alive
    reads: ShortReads  #: how connections are read, and where what waits in them counts

    @property
    def limits(self) -> HttpLimits:
        """What holds now."""

    def request(self, connection: ServerConnection, head: RequestHead) -> None:
        """A head came: answer, or `begin` with a consumer, or `offer` the connection."""

    def fault(self, connection: ServerConnection, head: RequestHead | None, error: VisitorError) -> None:
        """Answer with a problem. `head` None: the request could not be read."""

    def late(self, connection: ServerConnection, limit: str) -> None:
        """A visitor takes too little of what waits for it; its consumer is told next. `limit`: stall or min_rate."""

    def opened(self, connection: ServerConnection) -> None:
        """A visitor connected."""

    def closed(self, connection: ServerConnection) -> None:
        """The connection is over, or taken over."""
