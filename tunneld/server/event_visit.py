"""A visit whose answer is an event stream: it may outlive its visitor's connection, and the stream that carries it."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, cast

from tunneld.protocol.headers import Headers, is_encoded, lower
from tunneld.protocol.messages import Open, encode
from tunneld.protocol.sse import REMEMBERED
from tunneld.server.events import NOBODY, EventBody
from tunneld.server.recovery import Recovery
from tunneld.server.replay import Missed, Recording, gap_event
from tunneld.server.stops import stop_key
from tunneld.server.visit import Visit
from tunneld.wire.http_date import date

if TYPE_CHECKING:
    from tunneld.server.carriers import Carried
    from tunneld.server.exchange import Exchange
    from tunneld.server.ingress import Ingress
    from tunneld.server.registry import Tunnel
    from tunneld.wire.http_server import ServerConnection

__all__ = ["EventVisit"]

log = logging.getLogger("tunneld.ingress")


class EventVisit(Visit):
    """The part of an `Exchange` that is for event streams alone; of any other answer it does nothing.

    Its visitor may leave and come back (`replay`), its service or session may be lost and another answer go on where
    it was (`recovery`), and an operator may end it so that its client stays away (`stops`).

    Args:
        prefix: of the public address, that the service does not know.
        host: where the service is reached.
        cookies: that a visitor who comes back may be known by; None: nobody may.
    """

    __slots__ = (
        "_answered", "_cookies", "_host", "_opened", "_prefix", "_recording", "_recovery", "_stop", "_stream",
    )  # fmt: skip

    def __init__(
        self,
        ingress: Ingress,
        connection: ServerConnection,
        tunnel: Tunnel,
        request: Open,
        *,
        prefix: str,
        host: str,
        cookies: list[str] | None,
    ) -> None:
        Visit.__init__(self, ingress, connection, tunnel, request)  # `super` costs as much again
        self._prefix = prefix
        self._host = host
        self._cookies = cookies
        self._stream: Carried | None = None
        self._answered = False  # the answer is whole
        self._opened: bytes | None = None  # the request of an event stream, for its recovery
        self._recovery: Recovery | None = None
        self._recording: Recording | None = None
        self._stop: tuple[bytes, Headers] | None = None  # for the list of clients that are told to stop

    def drained(self) -> None:
        """The visitor takes bytes again: their credit goes back."""
        raise NotImplementedError

    def _over(self, reason: str) -> None:
        """The one place where an exchange ends."""
        raise NotImplementedError

    def _begin_events(self, status: int, headers: Headers, request: Open) -> None:
        self.kind = "sse"
        self.connection.settle()
        if self.method == "GET":
            key = stop_key(self.tunnel.name, self.path, self.client, request.headers)
            self._stop = key, [pair for pair in headers if lower(pair[0]).startswith(("access-control-", "vary"))]
        if status == 200 and self.method != "HEAD" and not is_encoded(headers):
            if self.method == "GET" and self.tunnel.grace > 0:
                self._opened = encode(request)
            if self._recording is not None:
                self._events = self._recording.begin(self.connection, self._prefix, self._host)
            else:
                remember = REMEMBERED if self._opened is not None else 0
                self._events = EventBody(
                    self._ingress.loop, self.connection, self.tunnel, self._prefix, self._host, remember=remember
                )

    # -- visitors that come back -------------------------------------------------------------------------

    def _keep(self) -> bool:
        """Keep the stream for a visitor that has left; False when it is to end."""
        kept = self._recording.keep() if self._recording is not None and not self._answered else 0
        if not kept or self._events is None:
            return False
        self.connection.consumer = None
        self.connection = NOBODY
        self._events.detach()
        self.state = "kept"
        self.drained()
        self._log_left(kept)
        return True

    def come_back(self, connection: ServerConnection, client: str, event_id: str, missed: Missed) -> None:
        """The visitor is back, maybe before its old connection looked dead: go on with the next event."""
        recording, events = self._recording, self._events
        assert recording is not None
        assert events is not None
        old, self.connection = self.connection, connection
        old.reset()
        self.drained()
        recording.returned()
        self.client = client
        if self._stop is not None:
            self._stop = stop_key(self.tunnel.name, self.path, client, recording.asked), self._stop[1]
        connection.begin(cast("Exchange", self))
        connection.send_head(self.status, [*recording.headers, ("Date", date())], length=None)
        connection.settle()
        events.attach(connection)
        self.state = "streaming" if self._stream is not None or recording.whole else "recovering"
        size = sum(map(len, missed.chunks))
        extra = {**self._fields(), "bytes_replayed": size, "gap": missed.gap}
        log.info("↩ SSE client is back: %s", self.request_id, extra=extra)
        if missed.gap:
            connection.send(gap_event(event_id))
        for chunk in missed.chunks:
            connection.send(chunk)
        if recording.whole:
            self._answered = True
            self._over("done")
            connection.finish([])
        elif connection.congested:
            self._ahead += size
            self._ingress.holds(self, size)

    def leave(self) -> None:
        """The visitor that left will not come back in time."""
        self._cancel_stream("visitor")
        self._over("visitor")

    def _log_left(self, kept: float) -> None:
        if self.kind == "sse":
            extra = {**self._fields(), "reason": "visitor", **({"kept_s": kept} if kept else {})}
            log.info("🔌 SSE client disconnected: %s", self.request_id, extra=extra)

    # -- answers that go on in another -------------------------------------------------------------------

    def go_on(self, stream: Carried | None) -> None:
        """Another stream serves the request from now on; None: none does for a while (server/recovery.py)."""
        self._stream = stream
        self._ahead += self._owed  # what waits for the visitor was another stream's: no credit goes back for it
        self._owed = 0

    def recovered(self) -> None:
        """The stream that goes on has a good head."""
        self.state = "kept" if self.connection is NOBODY else "streaming"

    def pass_on(self, events: bytes, size: int) -> None:
        """Events of the stream that goes on, for which it sent `size` bytes."""
        if self.reason or self._events is None:
            return
        self.bytes_out += size
        self.active = monotonic()
        self._events.feed(events, self.active)
        if not self._hold_partial():
            return
        if self.connection.congested:
            self._owe(size)
        elif self._stream is not None:
            self._stream.took(size)

    def _recovers(self, reason: str) -> bool:
        """Whether the event stream that was lost may go on in another answer."""
        if self._recovery is None and self._opened is not None and self._events is not None:
            if not self._events.splitter.recoverable:
                return False
            self._recovery = Recovery(cast("Exchange", self), self._events, self._opened)
        return self._recovery is not None and self._recovery.lost(reason)

    def give_up(self, reason: str) -> None:
        """The event stream that was lost does not go on."""
        self._cancel_stream("service")
        self._abort(reason)

    # -- ends --------------------------------------------------------------------------------------------

    def _tell_to_stop(self) -> None:
        """An operator ended an event stream: cleanly, and its client is told not to come back for a while."""
        connection = self.connection
        if self._stop is not None:
            self._ingress.stops.add(*self._stop, monotonic())
        self._over("operator")
        connection.finish([])

    def _abort(self, reason: str) -> None:
        connection = self.connection
        self._over(reason)
        connection.reset()

    def _cancel_stream(self, reason: str) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel(reason)
