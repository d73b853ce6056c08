"""The body of an event stream on its way to its visitor: whole events, and comments while it is quiet."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, cast

from tunneld.protocol.sse import REMEMBERED, EventSplitter

if TYPE_CHECKING:
    from tunneld.protocol.headers import Headers
    from tunneld.server.registry import Tunnel
    from tunneld.wire.http_server import ServerConnection

__all__ = ["KEEPALIVE", "NOBODY", "EventBody"]

#: The comment that keeps a quiet event stream alive.
KEEPALIVE = b": keepalive\n\n"


class _Nobody:
    """Stands where the connection of a visitor that left would: it takes everything, and nothing becomes of it."""

    __slots__ = ()

    congested = False
    answered = True
    whole = True
    takes_trailers = False
    consumer = None

    def send(self, data: bytes) -> bool:
        """Drop it."""
        return True

    def finish(self, trailers: Headers) -> None:
        """Nobody sees the end."""

    def reset(self) -> None:
        """Nobody sees the end."""

    def resume_body(self) -> None:
        """A kept stream's request has no body."""

    def discard_body(self) -> None:
        """A kept stream's request has no body."""


#: The one there is. An exchange does with it what it does with a connection on which an answer is under way.
NOBODY = cast("ServerConnection", _Nobody())


class EventBody:
    """Passes events on as they are complete, and keeps the connection from looking dead between them.

    The timer is set for the earliest moment at which a comment can be due; events do not touch it.

    Args:
        loop: for the timer.
        connection: the visitor's; its answer's head has been sent.
        tunnel: whose `keepalive` and `max_event` hold, as they change.
        prefix: ``/t/NAME`` that the address in ``endpoint`` events gets; empty: none.
        authority: host and port by which the visitor reached us.
        remember: ids that `EventSplitter.sent` knows.
    """

    __slots__ = ("_connection", "_loop", "_quiet_since", "_timer", "_tunnel", "splitter")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: ServerConnection,
        tunnel: Tunnel,
        prefix: str,
        authority: str,
        *,
        remember: int = REMEMBERED,
    ) -> None:
        self.splitter = EventSplitter(tunnel.max_event, prefix=prefix, authority=authority, remember=remember)
        self._loop = loop
        self._connection = connection
        self._tunnel = tunnel
        self._quiet_since = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        tunnel.keepalive_changed.add(self._changed)
        self._arm()

    def feed(self, data: bytes, now: float) -> None:
        """Bytes of the answer, at `now` (monotonic seconds). What is held of them counts as taken."""
        data = self.splitter.feed(data)
        if data:
            self._connection.send(data)
            self._quiet_since = now

    def attach(self, connection: ServerConnection) -> None:
        """The visitor is back, by this connection; the answer's head has been sent."""
        self.detach()
        self._connection = connection
        self._quiet_since = monotonic()
        self._tunnel.keepalive_changed.add(self._changed)
        self._arm()

    def detach(self) -> None:
        """The visitor has left; what comes reaches nobody."""
        self.close()
        self._connection = NOBODY

    def end(self) -> None:
        """The answer is whole: its rest goes out as it came."""
        self.close()
        rest = self.splitter.end()
        if rest:
            self._connection.send(rest)

    def close(self) -> None:
        """No more comments."""
        self._tunnel.keepalive_changed.discard(self._changed)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _changed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._arm()

    def _arm(self) -> None:
        keepalive = self._tunnel.keepalive
        if keepalive > 0:
            left = max(0.0, self._quiet_since + keepalive - monotonic())
            self._timer = self._loop.call_later(left, self._due)

    def _due(self) -> None:
        self._timer = None
        now = monotonic()
        if now - self._quiet_since >= self._tunnel.keepalive - 0.002:  # the loop's clock is coarser
            if self.splitter.between_events and not self._connection.congested:
                self._connection.send(KEEPALIVE)
            self._quiet_since = now
        self._arm()
