"""A visitor's connection: requests in, one at a time, and answers out (RFC 9112). No task, no queue.

Bytes go from the transport's callback to the request's `Consumer`, and from its calls to the transport. While a
consumer takes nothing, or input waits behind the request under way, reading pauses and `CloseWatch` tells of the
visitor's close. An answer whose body failed midway is never ended cleanly: the visitor sees a reset.

``Expect: 100-continue`` is not answered here: it goes to the service like any header, and its 100 comes back.
"""

from __future__ import annotations

import asyncio
import time

from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers, encode_head, normal_address
from tunneld.wire import sockets
from tunneld.wire.closewatch import CloseWatch
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_answer import BUSY, CLOSING, HEAD, IDLE, LINGERING, OFFERED, OVER
from tunneld.wire.http_request import RequestSide
from tunneld.wire.http_roles import Consumer, Service
from tunneld.wire.short_reads import UNCOUNTED
from tunneld.wire.tls import Certificate, peer_certificate
from tunneld.wire.turns import LARGE, let_others

__all__ = ["ServerConnection"]

_PIPELINED = 16 * 1024  # bytes held behind the request under way before reading pauses
_LINGER = 5.0  # seconds in which the rest of an upload is dropped, so that no reset eats its early answer
_CLOSE = 60.0  # seconds without progress after which a close is forced where `limits.stall` is off


class ServerConnection(RequestSide):
    """One connection of a visitor.

    Args:
        service: what serves its requests.
        listener: what the service knows the listener by.

    Attributes:
        address: the peer's address; empty for a Unix socket.
    """

    __slots__ = (
        "__weakref__",
        "_fd",
        "_kept",
        "_mark",
        "_pumping",
        "_reading",
        "_short",
        "_timer_at",
        "_yields",
        "address",
        "listener",
    )

    def __init__(self, service: Service, listener: object) -> None:
        super().__init__(service)
        self.listener = listener
        self.address = ""
        self._kept = 0  # bytes of it, as they were counted last
        self._short = False  # it is read a little at a time
        self._reading = True
        self._fd = -1  # watched for its close while reading is paused
        self._pumping = False
        self._yields = False  # others have their turn before this one reads on
        self._timer_at = 0.0
        self._mark = 0  # what the transport had passed on at the last look

    # -- what a service does -----------------------------------------------------------------------------

    def begin(self, consumer: Consumer) -> None:
        """Let `consumer` serve the request under way."""
        self.consumer = consumer

    def hold_body(self) -> None:
        """Give the consumer no body until `resume_body`."""
        if self._body:
            self._hold = True
            self._update_reading()
            self._count()

    def resume_body(self) -> None:
        """Go on reading the request's body."""
        if self._hold:
            self._hold = False
            self._pump()

    def discard_body(self) -> None:
        """The rest of the request's body interests nobody; after the answer the connection ends."""
        if self._body:
            self._discard = True
            self._keep = False
            self.resume_body()
            if self._answer_done:
                self._linger()

    def offer(self) -> bytes:
        """The connection waits for `take` or for an answer, and reads nothing more.

        Returns:
            What came behind the head.
        """
        self._phase = OFFERED
        leftover, self._buffer = bytes(self._buffer or b""), None
        self._update_reading()
        self._count()
        return leftover

    @property
    def offered(self) -> bool:
        """It was offered, and neither taken nor answered."""
        return self._phase == OFFERED

    @property
    def certificate(self) -> Certificate | None:
        """What the peer showed in its TLS handshake, if it was asked for that."""
        assert self.transport is not None
        return peer_certificate(self.transport)

    def take(self) -> asyncio.Transport:
        """Hand the connection that was offered over: its transport, which may be paused, for `set_protocol`."""
        assert self._phase == OFFERED
        assert self.transport is not None
        self._leave(OVER)
        self.service.closed(self)
        return self.transport

    def answer_offer(self) -> None:
        """An answer will be sent to the connection that was offered."""
        assert self._phase == OFFERED
        self._phase = BUSY
        self._keep = False

    def switch(self, headers: Headers) -> tuple[asyncio.Transport, bytes, bool]:
        """Answer the request under way with 101 and hand the connection over, for `set_protocol`.

        Returns:
            Its transport; what came behind the head; whether reading is paused.

        Raises:
            BadHeader: nothing was sent.
        """
        assert self._phase == BUSY
        assert self.transport is not None
        self._write(encode_head("HTTP/1.1 101 Switching Protocols", headers))
        early = bytes(self._buffer or b"")
        self.consumer = None
        if self._short:
            self._short = False
            self.service.reads.set(self.transport, self, short=False, reading=self._reading and not self._yields)
        self._leave(OVER)
        self.service.closed(self)
        return self.transport, early, self._yields or not self._reading

    def end_after_answer(self) -> None:
        """No further request is taken on this connection."""
        self._keep = False

    def settle(self) -> None:
        """The answer will be long: let go of what only a next request needs."""
        if self._timer is not None and not self.congested:
            self._timer.cancel()
            self._timer = None

    def end_idle(self) -> None:
        """Close, if no request is under way."""
        if self._phase in (IDLE, HEAD):
            self._hang_up()

    # -- input -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A visitor connected."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's are not asyncio's
        peer = transport.get_extra_info("peername")
        self.address = (normal_address(peer[0]) or peer[0]) if isinstance(peer, tuple) else ""
        self.service.opened(self)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(high=UNCOUNTED)
        self._short = self.service.reads.mind(self.transport, self, short=False, reading=False)
        limits = self.service.limits  # the first head is due at once, not some time after a request
        self._arm(min(limits.header_timeout, limits.idle_timeout))

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._buffer is not None:
            self._buffer += data
        elif self._phase == IDLE or self._may_consume(len(data)):
            self._pumping = True
            self._consume(data)
            self._pumping = False
            if len(data) >= LARGE and self._reading and self._phase == BUSY and not self._yields:
                assert self.transport is not None
                self._yields = True
                let_others(self.service.loop, self.transport, self._goes_on)
        elif self._phase < CLOSING:
            self._buffer = bytearray(data)
        if self._buffer is not None or self._hold or not self._reading:
            self._pump()

    def _goes_on(self) -> bool:
        """Whether to read on now that others had their turn; no more is read for who took the connection over."""
        self._yields = False
        return self._reading and self._phase < OVER

    def _may_consume(self, size: int) -> bool:
        phase = self._phase
        if phase == BUSY:
            return self._body != 0 and not self._hold
        if phase == HEAD:
            return size > self._received
        return phase in (IDLE, LINGERING)

    def _pump(self) -> None:
        """Take what waits, as far as the request under way allows; then read on, or pause."""
        if self._pumping:
            return
        self._pumping = True
        while self._buffer and self._may_consume(len(self._buffer)):
            data = bytes(self._buffer)
            self._buffer = None
            self._consume(data)
        self._pumping = False
        self._update_reading()
        self._count()

    def _count(self) -> None:
        """Input that waits is held for somebody who does not take it."""
        kept = len(self._buffer) if self._buffer is not None else 0
        if kept != self._kept:
            self.service.reads.budget.held += kept - self._kept
            self._kept = kept

    def _consume(self, data: bytes) -> None:
        if self._phase == BUSY:
            self._take_body(data)
        elif self._phase != LINGERING:
            self._take_head(data)

    def _serve(self, head: RequestHead) -> None:
        self.service.request(self, head)

    def _fault(self, head: RequestHead | None, error: VisitorError) -> None:
        self.service.fault(self, head, error)

    def _update_reading(self) -> None:
        """Pause or resume reading, whatever stands; a paused socket is watched for its close."""
        transport = self.transport
        if self._phase >= CLOSING or transport is None or transport.is_closing():
            return
        waiting = self._phase == BUSY and self._buffer is not None and len(self._buffer) > _PIPELINED
        reading = not (self._hold or waiting or self._phase == OFFERED)
        if reading == self._reading:
            return
        self._reading = reading
        if reading:
            if self._timer is not None and not self.congested and self._phase == BUSY:
                self._deadline = time.monotonic() + self.service.limits.body_timeout  # what was held here is not late
            self._unwatch()
            self._short = self.service.reads.mind(transport, self, short=self._short, reading=False)
            transport.resume_reading()
        else:
            transport.pause_reading()
            self._fd = sockets.descriptor(transport)
            CloseWatch.of(self.service.loop).watch(self._fd, self._peer_closed)

    def _unwatch(self) -> None:
        if self._fd >= 0:
            CloseWatch.of(self.service.loop).unwatch(self._fd)
            self._fd = -1

    # -- ends --------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """The request and its answer are done: on to the next, or close."""
        if not self._keep:
            self._hang_up()
            return
        self._phase = IDLE
        self._hold = False
        self._reset_request()
        self._arm(self.service.limits.idle_timeout)
        if self._buffer is not None or not self._reading:
            self._pump()

    def _hang_up(self) -> None:
        """Close, once all is sent. Input that nobody read would turn the close into a reset."""
        if self._buffer or not self._reading:
            self._linger()
            return
        self._leave(CLOSING)
        assert self.transport is not None
        self.transport.close()
        self._arm(self.service.limits.stall or _CLOSE)

    def _linger(self) -> None:
        """End the answer's direction, and drop what comes until the visitor closes or the time is over."""
        transport = self.transport
        if self._phase >= CLOSING or self._phase == LINGERING or transport is None:
            return
        self.consumer = None
        self._phase = LINGERING
        self._buffer = None
        self._count()
        self._hold = False
        self._chunked = None
        self._update_reading()
        try:
            if transport.can_write_eof():
                transport.write_eof()
        except OSError:  # the visitor has reset the connection, and the loop has not read of it yet
            transport.abort()
            return
        self._arm(_LINGER)

    def eof_received(self) -> bool | None:
        """The visitor closed, or its half: either way it has left. What an idle connection holds goes out."""
        if self._phase in (BUSY, OFFERED):
            self._peer_closed(0)
        elif self._phase < CLOSING:
            self._leave(CLOSING)
            self._arm(self.service.limits.stall or _CLOSE)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        if self.consumer is not None:
            self._peer_closed(0)
        self._leave(OVER)
        self.service.closed(self)

    def _peer_closed(self, events: int) -> None:
        """The visitor has left while a request was under way."""
        consumer = self.consumer
        self.abort()
        if consumer is not None:
            consumer.gone()

    def _leave(self, phase: int) -> None:
        self._phase = phase
        self._buffer = None
        self._count()
        self._chunked = None
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- time --------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The transport holds more than it should."""
        self.congested = True
        if self._phase == BUSY:
            self._mark = self._passed_on()
            self._arm(self.service.limits.stall)

    def resume_writing(self) -> None:
        """The visitor takes bytes again."""
        self.congested = False
        if self.consumer is not None:
            self.consumer.drained()

    def _arm(self, seconds: float) -> None:
        """One timer for all that a connection waits for; it is left alone when it fires early enough."""
        if seconds <= 0:
            return
        self._deadline = time.monotonic() + seconds
        if self._timer is not None:
            if self._timer_at <= self._deadline:
                return
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self.service.loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        phase = self._phase
        if phase in (OVER, OFFERED) or (phase == BUSY and not self.congested and not self._body_is_due()):
            return
        left = self._deadline - time.monotonic()
        if left > 0.001:
            self._arm(left)
        elif phase == HEAD:
            self._refuse(VisitorError("request_timeout"))
        elif phase == BUSY and not self.congested:
            self._body_is_late()
        elif self._moves():
            self._arm(self.service.limits.stall or _CLOSE)  # slow, but not too slow
        elif phase == BUSY and self.consumer is not None:
            self.service.late(self, "min_rate" if self._slow else "stall")
            self.consumer.stalled()
        elif phase == IDLE and self.transport is not None and not self.transport.get_write_buffer_size():
            self._hang_up()
        else:
            self.abort()

    def _body_is_due(self) -> bool:
        """The visitor is to send more of a body whose answer has not begun."""
        return self._body != 0 and not self._discard and not self.answered and self.consumer is not None

    def _body_is_late(self) -> None:
        """The body has paused for `body_timeout`, unless it is held here."""
        if self._hold or not self._reading:
            self._arm(self.service.limits.body_timeout)
            return
        consumer = self.consumer
        assert consumer is not None
        self._chunked = None
        self._discard = True
        self._keep = False
        consumer.body_fault(
            VisitorError("request_timeout", "The request's body comes too slowly.", limit="min_rate")
            if self._slow
            else VisitorError("request_timeout", "The request's body paused for too long.", limit="body_timeout")
        )

    def _moves(self) -> bool:
        """The visitor took as many of the bytes that wait for it since the last look as `min_rate` asks for."""
        assert self.transport is not None
        before, self._mark = self._mark, self._passed_on()
        limits = self.service.limits
        moved, least = self._mark - before, limits.min_rate * (limits.stall or _CLOSE)
        self._slow = 0 < moved < least
        return self.transport.get_write_buffer_size() > 0 and moved > 0 and not self._slow
