"""One visitor's request on its way: the visitor's connection on one side, a tunnel's stream on the other.

Bytes pass in the callbacks of either side; nothing is queued here. What a slow visitor has not taken is in its
transport, counted against `limits.memory`, and its credit is withheld. Each end has one reason, the same word in
the log and in every API: ``done`` for a clean one, else one of `REASONS`.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, cast

from tunneld.errors import CODES, VisitorError
from tunneld.protocol.fields import Names
from tunneld.protocol.headers import BadHeader, Headers, get, is_encoded, lower, prefers_html, to_visitor
from tunneld.protocol.messages import Open
from tunneld.protocol.streams import Stream
from tunneld.server.event_visit import EventVisit
from tunneld.server.events import NOBODY
from tunneld.server.pacing import Paced
from tunneld.server.problems import common
from tunneld.server.refusals import PATIENCE, Refusal
from tunneld.server.sockets import SocketVisit
from tunneld.server.visit import passable
from tunneld.wire.http_date import date

if TYPE_CHECKING:
    from tunneld.server.ingress import Ingress
    from tunneld.server.registry import Tunnel
    from tunneld.wire.http_server import ServerConnection
    from tunneld.wire.ws_upgrade import Asked

__all__ = ["Exchange"]

log = logging.getLogger("tunneld.ingress")

_RETRY_AFTER = 5  # seconds, where the tunnel may be back any moment
# What a stream that was cancelled before its head is answered: reason -> (code, seconds of Retry-After).
_BEFORE_HEAD = {
    "service": ("service_broke", None),
    "peer_lost": ("peer_lost", None),
    "limit": ("service_timeout", None),
    "operator": ("cancelled", None),
    "shutdown": ("shutdown", _RETRY_AFTER),
    "refused": ("refused", 1),
}


def _minded(name: str) -> str:
    low = lower(name)
    return low if low in ("content-type", "content-length", "x-tunnel-error", "date") else ""


#: What of an answer's head is read here: the name in lower case, empty for any other.
_MINDED = Names(_minded)


class Exchange(EventVisit):
    """A request under way; `Sink` of its stream and `Consumer` of its connection."""

    __slots__ = (
        "_request",
        "_timer",
        "_upgrade",
        "_whole",
    )

    def __init__(
        self,
        ingress: Ingress,
        connection: ServerConnection,
        tunnel: Tunnel,
        request: Open,
        *,
        whole: bool,
        upgrade: Asked | None = None,
        prefix: str,
        host: str,
        cookies: list[str] | None = None,
    ) -> None:
        EventVisit.__init__(  # `super` costs as much again
            self, ingress, connection, tunnel, request, prefix=prefix, host=host, cookies=cookies
        )
        self._request: Open | None = request  # until the answer's head
        self._whole = whole  # our direction of the stream has ended
        self._upgrade = upgrade  # the WebSocket that was asked for, until the answer's head
        self._timer: asyncio.TimerHandle | None = None

    # -- to the tunnel -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the stream, now or when the tunnel is back."""
        if self.tunnel.online:
            self._open()
        else:
            self._wait()

    def _open(self) -> None:
        assert self._request is not None
        self.state = "open"
        try:
            if self._upgrade is not None and self.tunnel.online and not self.tunnel.websockets:
                raise VisitorError("no_websocket")
            self._stream = self.tunnel.open(self._request, self, ended=self._whole)
        except VisitorError as error:
            self._answer(error, "limit" if error.code != "tunnel_offline" else "peer_lost")
            return
        if not self._whole:
            self.connection.resume_body()

    def _wait(self) -> None:
        """Wait for the tunnel, as long as `limits.hold` allows."""
        until = min(self.tunnel.offline_since, self.started) + self._ingress.limits.hold
        left = until - monotonic()
        self.state = "waiting"
        if left <= 0:
            self._hold_over()
            return
        try:
            self.tunnel.wait(self._back)
        except VisitorError as error:
            self._answer(error, "limit")
            return
        self.connection.hold_body()
        self._timer = self._ingress.loop.call_later(left, self._hold_over)

    def _hold_over(self) -> None:
        detail = f"The tunnel {self.tunnel.name} is not connected."
        self._answer(VisitorError("tunnel_offline", detail, retry_after=_RETRY_AFTER), "peer_lost")

    def _back(self) -> None:
        self._stop_timer()
        self._open()

    # -- Consumer: the visitor ---------------------------------------------------------------------------

    def body(self, data: bytes) -> bool:
        """Bytes of the request's body."""
        self.bytes_in += len(data)
        if self._stream is None or self._stream.send(data):
            return True
        self._ingress.holders.add(self.held_up, slow=False)
        return bool(self.reason)

    def body_end(self, trailers: Headers) -> None:
        """The request is whole."""
        self._whole = True
        if self._stream is not None and not self._stream.send_end(passable(trailers)):
            log.warning("trailers of %s are too large and were dropped", self.request_id, extra=self._fields())
        if self._answered:
            self._over("done")

    def body_fault(self, error: VisitorError) -> None:
        """The body is not valid, or over its limit."""
        reason = "limit" if error.code in ("body_too_large", "request_timeout") else "visitor"
        self._cancel_stream(reason)
        self._answer(error, reason)

    def drained(self) -> None:
        """The visitor takes bytes again: their credit goes back."""
        if self._owed or self._ahead:
            owed = self._owed
            self._settle()
            if self._stream is not None:
                self._stream.took(owed)

    def stalled(self) -> None:
        """The visitor takes nothing, for too long or with too much waiting."""
        connection = self.connection
        if self._keep():
            connection.reset()
        else:
            self.cancel("limit")

    def held_up(self) -> None:
        """The process holds too much, bytes of this request's body that wait for the tunnel among it."""
        self.over_limit("memory")
        self._cancel_stream("limit")
        self._answer(VisitorError("over_memory", retry_after=_RETRY_AFTER), "limit")

    def gone(self) -> None:
        """The visitor has left."""
        if not self._keep():
            self._cancel_stream("visitor")
            self._log_left(0)
            self._over("visitor")

    # -- Sink: the service -------------------------------------------------------------------------------

    def head(self, status: int, headers: Headers) -> None:
        """The answer's head, or one with 1xx."""
        request = self._request
        if request is None:
            return
        try:
            if status == 101:
                self._switch(headers)
            elif status < 200:
                self.connection.send_informational(status, to_visitor(headers, prefix=self._prefix))
            else:
                self._head(status, headers, request)
        except BadHeader as error:
            log.warning("bad answer to %s: %s", self.request_id, error, extra=self._fields())
            self._cancel_stream("service")
            self._answer(VisitorError("bad_answer"), "service")

    @staticmethod
    def _wants_page(content_type: str, request: Open) -> bool:
        """Whether the agent's own error goes to a person, and is no page yet (v2's is)."""
        return prefers_html(get(request.headers, "accept") or "") and not content_type.startswith("text/html")

    def refused(self, error: VisitorError) -> None:
        """The agent answered by itself, to a person."""
        if not self.reason:
            self._cancel_stream("service")
            self._answer(error, "service")

    def _switch(self, headers: Headers) -> None:
        """The service takes the upgrade: another object carries the WebSocket from here on."""
        stream, request = self._stream, self._request
        carried = stream.carried if isinstance(stream, Paced) else stream
        if self._upgrade is None or not isinstance(carried, Stream) or request is None:
            raise BadHeader("a 101 to a request without upgrade")
        answer = self._upgrade.answer(to_visitor(headers, prefix=self._prefix, authority=self._host))
        answer.append(("X-Tunnel-Request-Id", self.request_id))
        address = self.connection.address if self._ingress.is_counted(self.connection) else None
        transport, early, paused = self.connection.switch(answer)
        self._stream = self._request = None
        paced = cast(Stream, stream)  # or what stands for it
        visit = SocketVisit(self._ingress, self.tunnel, request, paced, transport, started=self.started)
        visit.grant = self.grant
        self._ingress.hop_begins(visit.hop, address)
        visit.begin(early, paused=paused)

    def _head(self, status: int, headers: Headers, request: Open) -> None:
        content_type, length, code, dated = "", None, None, False
        kinds = _MINDED
        for name, value in headers:
            kind = kinds[name]
            if not kind:
                pass
            elif kind == "content-type":
                content_type = value
            elif kind == "content-length":
                if length is not None or not (value.isascii() and value.isdigit() and len(value) <= 18):
                    raise BadHeader("Content-Length is not one decimal number")
                length = int(value)
            elif kind == "date":
                dated = True
            else:
                code = value
        sse = content_type[:17].lower() == "text/event-stream" and content_type[17:18] in ("", ";", " ", "\t")
        if code is not None and code in CODES and self._wants_page(content_type, request):
            assert self._stream is not None
            self._stream.sink = refusal = Refusal(self, self._stream, code, headers)
            self._timer = self._ingress.loop.call_later(PATIENCE, refusal.late)
            return
        cleaned = to_visitor(headers, prefix=self._prefix, authority=self._host, event_stream=sse)
        cleaned.append(("X-Tunnel-Request-Id", self.request_id))
        if not dated:  # who forwards an answer says when it came (RFC 9110, 6.6.1)
            cleaned.append(("Date", date()))
        if code in CODES:
            cleaned.append(("X-Tunnel-Error", code))
            cleaned += [pair for pair in common(request.headers) if pair not in cleaned]  # v2's has them already
        if self._cookies is not None and sse and status == 200 and not is_encoded(headers):
            replays = self._ingress.replays
            self._recording = replays.record(self, request, cleaned, prefix=self._prefix, cookies=self._cookies)
        self.connection.send_head(status, cleaned, length=None if sse else length)
        self._ingress.counts.first_byte.observe(monotonic() - self.started, self.request_id)
        self.status = status
        self.state = "streaming"
        if sse:
            self._begin_events(status, headers, request)
        self._request = None
        if self._upgrade is not None:  # it was not taken
            self._upgrade = None
            self._whole = True
            if self._stream is not None:
                self._stream.send_end()

    def data(self, data: bytes) -> None:
        """Bytes of the answer's body."""
        size = len(data)
        self.bytes_out += size
        self.active = monotonic()
        connection = self.connection
        if self._events is not None:
            self._events.feed(data, self.active)
            if self._events.splitter.held != self._partial and not self._hold_partial():
                return
        elif not connection.send(data):
            self._break("the answer is longer than its Content-Length")
            return
        if connection.congested:
            self._owe(size)
        elif self._stream is not None:
            self._stream.took(size)

    def end(self, trailers: Headers) -> None:
        """The answer is whole."""
        connection = self.connection
        if self._events is not None:
            self._events.end()
        if not connection.whole:
            self._break("the answer is shorter than its Content-Length, or has no head")
            return
        if connection is NOBODY and self._recording is not None:
            self._stream = None
            self._recording.whole = True
            return
        self._answered = True
        if self._whole:
            self._over("done")
        try:
            connection.finish(passable(trailers) if trailers and connection.takes_trailers else [])
        except BadHeader:
            connection.finish([])

    def stopped(self) -> None:
        """The service takes no more of the request's body."""
        if self.reason:
            return
        self._whole = True
        if self._answered:
            self._over("done")
        self.connection.discard_body()

    def cancelled(self, reason: str) -> None:
        """The stream is over on both sides."""
        if self.reason:
            return
        self._stream = None
        if self._request is not None:
            if reason == "refused" and not self.tunnel.online and not self.bytes_in:
                self._wait()
                return
            code, seconds = _BEFORE_HEAD.get(reason, ("service_broke", None))
            self._answer(VisitorError(code, retry_after=seconds), reason)
        elif reason == "operator" and self.kind == "sse":
            self._tell_to_stop()
        elif not self._recovers(reason):
            self._abort(reason)

    def writable(self) -> None:
        """The tunnel takes more of the request's body."""
        if not self.reason:
            self._ingress.holders.discard(self.held_up)
            self.connection.resume_body()

    # -- ends --------------------------------------------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """End it from this side: `operator`, `limit` or `shutdown`. Nothing happens once it is over."""
        if self.reason:
            return
        log.info("🛑 Cancelling stream: %s", self.request_id, extra={**self._fields(), "reason": reason})
        self._cancel_stream(reason)
        self.cancelled(reason)

    def shut_out(self) -> None:
        """See `Visit`. Who waits for a tunnel came before its rules were known, and may be let in that asks again."""
        if self.state == "waiting":
            detail = f"The tunnel {self.tunnel.name} has just come back."
            self._answer(VisitorError("tunnel_offline", detail, retry_after=1), "operator")
        else:
            self.cancel("operator")

    def _break(self, detail: str) -> None:
        """The answer is not what it said it was."""
        log.warning("%s", detail, extra=self._fields())
        self._cancel_stream("service")
        self._answer(VisitorError("bad_answer"), "service")

    def _answer(self, error: VisitorError, reason: str) -> None:
        """Answer with a problem, or abort what was begun."""
        connection = self.connection
        request, self._request = self._request, None
        if connection.answered or request is None:
            self._abort(reason)
            return
        self.status = error.status
        self._over(reason)
        self._ingress.answer(connection, error, self.request_id, request.headers)

    def _over(self, reason: str) -> None:
        """The one place where an exchange ends."""
        if self.reason:
            return
        self.reason = reason
        if self.state == "waiting":
            self.tunnel.unwait(self._back)
        self.state = "done"
        self._stream = None
        self._request = None
        self._let_go()
        self._stop_timer()
        if self._events is not None:
            self._events.close()
        if self._recovery is not None:
            self._recovery.close()
        if self._recording is not None:
            self._recording.close()
        if self.connection.consumer is self:
            self.connection.consumer = None
        self._ingress.forget(self)
        plain = reason == "done" and self.kind == "http"
        if log.isEnabledFor(logging.DEBUG if plain else logging.INFO):
            level = logging.DEBUG if plain else logging.INFO
            log.log(level, "🧹 Cleaned up stream: %s", self.request_id, extra=self._fields())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
