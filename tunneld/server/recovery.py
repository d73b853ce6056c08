"""Event streams that go on in another answer: the session was lost, or the service broke (PROTOCOL.md, recovery).

The request is opened again under its own id: the old session, or at least its stream, is gone on both sides by
then, and so the visitor's ``X-Tunnel-Request-Id``, both logs and ``tunnelctl streams`` go on naming one stream.
A stream is never cancelled from here to be opened again in the same session, since that cancel could meet the new one;
an agent that was started anew cancels what its predecessor had open, and that is known here before anything is opened.
"""

from __future__ import annotations

import asyncio
import logging
import random
from time import monotonic
from typing import TYPE_CHECKING

from tunneld.errors import VisitorError
from tunneld.protocol.continuing import Continuation
from tunneld.protocol.headers import Headers, get, is_encoded, is_event_stream, lower
from tunneld.protocol.messages import Open, decode_open

if TYPE_CHECKING:
    from tunneld.server.carriers import Carried
    from tunneld.server.events import EventBody
    from tunneld.server.exchange import Exchange

__all__ = ["Recovery"]

log = logging.getLogger("tunneld.ingress")

_FIRST_DELAY = 0.25  # seconds before the second attempt, doubled with each, each somewhat random
_LONGEST_DELAY = 10.0


class Recovery:
    """Opens an exchange's request again, and is the `Sink` of its new stream until that has shown that it goes on.

    One object serves an exchange from its first loss to its end.

    Args:
        exchange: whose event stream was lost, or may be.
        events: its body.
        opened: its request, as `Open` encoded.
    """

    __slots__ = (
        "_attempts",
        "_begun",
        "_continuation",
        "_due",
        "_events",
        "_exchange",
        "_expiry",
        "_opened",
        "_outage",
        "_reason",
        "_refusal",
        "_stream",
        "_timer",
        "_until",
    )

    def __init__(self, exchange: Exchange, events: EventBody, opened: bytes) -> None:
        self._exchange = exchange
        self._events = events
        self._opened = opened
        self._reason = ""  # why the last stream was lost
        self._outage = False  # it was lost with its session
        self._attempts = 0  # since there was progress
        self._begun = (-1, 0.0)  # events sent, and the time, when the last stream began
        self._due = self._until = 0.0  # when the next attempt may be, and when it is too late for any
        self._refusal: str | None = None  # the agent's own answer: the code of its problem
        self._continuation: Continuation | None = None
        self._stream: Carried | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def lost(self, reason: str) -> bool:
        """The stream was cancelled for `reason`; False when it cannot or may not go on: abort it."""
        tunnel, splitter = self._exchange.tunnel, self._events.splitter
        if not splitter.recoverable:
            return False
        now = monotonic()
        if reason == "peer_lost" and tunnel.kept is not None:  # the session goes on: the agent was started anew
            lost_at, until = now, now + tunnel.grace
        elif reason == "peer_lost":
            lost_at, until = tunnel.lost_at, tunnel.recover_until
        elif reason == "service" and tunnel.sse.recover:
            lost_at, until = now, now + tunnel.grace
        else:
            return False
        events, at = self._begun
        progress = splitter.events > events or now - at > tunnel.grace
        if progress:
            self._attempts = 0
        else:
            self._attempts += 1
            if reason == "service":
                until = min(until, self._until)
        self._reason, self._until = reason, until
        self._outage = reason == "peer_lost"
        self._due = lost_at + self._pause(at_once=reason == "peer_lost")
        if self._due >= until or now >= until:
            return False
        splitter.begin_anew()
        self._exchange.state = "recovering"
        log.info("⏸ Event stream lost, to be recovered: %s", self._exchange.request_id, extra=self._fields())
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(until - now, self._too_late)
        self._next()
        return True

    def close(self) -> None:
        """The exchange is over."""
        self._exchange.tunnel.recovering.pop(self, None)
        self._stream = None
        self._stop_timers()

    # -- waiting -----------------------------------------------------------------------------------------

    def _pause(self, *, at_once: bool) -> float:
        """Seconds before the next attempt: the service's ``retry:`` at least, longer with each that fails."""
        retry = (self._events.splitter.retry or 0) / 1000
        if at_once and not self._attempts:
            return retry
        bound = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(self._attempts, 10))
        return max(retry, random.uniform(bound / 2, bound))  # noqa: S311 - spreads them

    def _next(self) -> None:
        """Wait for the tunnel, then for the moment, then open."""
        if not self._exchange.tunnel.online:
            self._exchange.tunnel.recovering[self] = None
            return
        left = self._due - monotonic()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._open)
        else:
            self._open()

    def back(self) -> None:
        """See `Recovering`."""
        if not self._exchange.reason:
            self._next()

    def forsaken(self) -> None:
        """See `Recovering`."""
        self._fail("the agent has left")

    def _too_late(self) -> None:
        self._expiry = None
        self._fail("the time for it is over")

    def _again(self, why: str) -> None:
        """An attempt failed in a way that may pass."""
        self._continuation = None
        self._attempts += 1
        self._due = monotonic() + self._pause(at_once=False)
        fields = {**self._fields(), "why": why, "attempt": self._attempts}
        log.info("The event stream %s is not recovered yet", self._exchange.request_id, extra=fields)
        if self._due >= self._until:
            self._fail(why)
            return
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(self._until - monotonic(), self._too_late)
        self._next()

    def _open(self) -> None:
        self._timer = None
        exchange = self._exchange
        self._refusal = None
        self._continuation = None
        try:
            self._stream = exchange.tunnel.open(self._request(), self, ended=True)
        except VisitorError as error:
            if error.code == "tunnel_offline":
                self._next()
            elif error.code == "too_many_streams":
                self._again(error.code)
            else:
                self._fail(error.code)
            return
        exchange.go_on(self._stream)

    def _request(self) -> Open:
        """The visitor's request, with the last id that it was sent instead of its own."""
        request = decode_open(self._opened)
        headers = [pair for pair in request.headers if lower(pair[0]) != "last-event-id"]
        headers.append(("Last-Event-ID", self._events.splitter.last_id.decode("latin-1")))
        request.headers = headers
        return request

    # -- Sink of the new stream --------------------------------------------------------------------------

    def head(self, status: int, headers: Headers) -> None:
        """The service's new answer must be one that can go on, else the visitor's is aborted."""
        if status < 200 and status != 101:
            return
        self._refusal = get(headers, "x-tunnel-error")
        if self._refusal is not None:
            return  # the agent's own answer; its end is waited for, and then the next attempt
        if status != 200 or not is_event_stream(headers) or is_encoded(headers):
            self._fail(f"the service answered {status} and no event stream that could go on")
            return
        splitter = self._events.splitter
        self._continuation = Continuation(splitter.last_id, splitter.sent_so_far(), self._exchange.tunnel.max_event)
        self._begun = splitter.events, monotonic()
        self._stop_timers()
        self._exchange.recovered()
        log.info("▶ Event stream recovered: %s", self._exchange.request_id, extra=self._fields())

    def data(self, data: bytes) -> None:
        """Events of the new answer: those that were sent before are left out."""
        exchange, stream, continuation = self._exchange, self._stream, self._continuation
        assert stream is not None
        if continuation is None:
            stream.took(len(data))
            return
        new = continuation.feed(data)
        if continuation.began_anew:
            self._reason = "service"
            self._fail("the service did not resume but began anew")
            return
        if continuation.settled:
            stream.sink = exchange
            self._continuation = self._stream = None
            exchange.pass_on(new, len(data))
            new, data = continuation.rest(), b""
        exchange.pass_on(new, len(data))

    def end(self, trailers: Headers) -> None:
        """The new answer is whole."""
        self._stream = None
        continuation, self._continuation = self._continuation, None
        if continuation is None:
            self._exchange.go_on(None)
            self._again(self._refusal or "service_broke")
            return
        self._exchange.pass_on(continuation.rest(), 0)
        if not self._exchange.reason:
            self._exchange.end(trailers)

    def stopped(self) -> None:
        """A GET has no body."""

    def writable(self) -> None:
        """A GET has no body."""

    def cancelled(self, reason: str) -> None:
        """The new stream is lost as well."""
        exchange = self._exchange
        if exchange.reason:
            return
        begun = self._continuation is not None
        self._stream = self._continuation = None
        if reason in ("operator", "limit", "shutdown") or (begun and reason in ("service", "peer_lost")):
            exchange.cancelled(reason)  # which asks `lost` again
            return
        exchange.go_on(None)
        if reason == "peer_lost":
            self._until = exchange.tunnel.recover_until
            self._stop_timers()
        self._again(reason)

    # -- ends --------------------------------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        exchange = self._exchange
        if exchange.reason:
            return
        log.warning("The event stream %s ends", exchange.request_id, extra={**self._fields(), "why": why})
        if self._outage:
            exchange.tunnel.outages.streams_lost += 1
        exchange.give_up(self._reason)

    def _stop_timers(self) -> None:
        for timer in (self._timer, self._expiry):
            if timer is not None:
                timer.cancel()
        self._timer = self._expiry = None

    def _fields(self) -> dict[str, object]:
        return {
            "tunnel": self._exchange.tunnel.name,
            "request_id": self._exchange.request_id,
            "reason": self._reason,
            "events": self._events.splitter.events,
        }
