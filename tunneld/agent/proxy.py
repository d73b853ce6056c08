"""One tunnel's proxy: takes the streams that its session opens to the service, and knows each of them."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Reversible
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tunneld.agent import tracing
from tunneld.agent.deadlines import Deadlines
from tunneld.agent.exchange import Exchange
from tunneld.agent.heads import Heads
from tunneld.agent.inspection import Seen
from tunneld.agent.inspector import Inspector
from tunneld.agent.origin import Origin
from tunneld.agent.pool import Pool
from tunneld.agent.probe import ServiceProbe
from tunneld.agent.record import STALL_CHECKS, Record
from tunneld.agent.resending import resend
from tunneld.agent.sockets import SocketExchange
from tunneld.config.agent import InspectionConfig
from tunneld.config.service import Service
from tunneld.config.tunnel import AgentLimits, TunnelConfig
from tunneld.protocol.messages import Open
from tunneld.protocol.sinks import NOBODY, Sink
from tunneld.protocol.streams import Stream
from tunneld.protocol.windows import Holders, MemoryBudget
from tunneld.telemetry.metrics import StreamCounts
from tunneld.wire.ws_hop import CLOSE_TIMEOUT, Hop

if TYPE_CHECKING:
    from tunneld.telemetry.traces import Tracer

__all__ = ["Proxy", "StreamTold", "Totals"]

log = logging.getLogger("tunneld.agent")

_MAX_HEADER = 64 * 1024  # bytes; the server's default, until `connected` says what holds
#: What is wrong where an exchange goes over a limit that has no code of its own.
_OVER = {
    "stall": "its service takes nothing",
    "memory": "the agent holds too much, and of it this has waited the longest",
}
_OWN = frozenset(("done", "service"))  # ends that are not a cancelling of work under way


class StreamTold(Protocol):
    """Who is told of streams; it must not raise."""

    def follow(self, live: Reversible[Record]) -> Callable[[], None]:
        """See `Teller.follow`."""

    def opened(self, record: Record) -> None:
        """One began."""

    def upgraded(self, record: Record) -> None:
        """It is a WebSocket from now on."""

    def closed(self, record: Record, now: float) -> None:
        """It is over; `now` is monotonic seconds."""


@dataclass(slots=True)
class Totals:
    """What exchanges that are over amounted to.

    Attributes:
        streams: how many were accepted.
        bytes_in: visitor to service.
        bytes_out: service to visitor.
        events: of SSE answers.
        ended: reason to how many.
    """

    streams: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    events: int = 0
    ended: dict[str, int] = field(default_factory=dict)


class Proxy:
    """Made in the loop that runs it; `close` and then `wait_closed` end it.

    Args:
        name: the tunnel's.
        service: where requests go.
        limits: `max_streams`, `stall`, `connect_timeout` and `response_timeout` of it are minded here.
        headers: request headers to set, name to value; ``Host`` among them replaces the service's own.
        tls: for ``https`` services; None: the system's authorities.
        told: of each exchange's begin and end; None: nobody is.
        counts: of the process, for its metrics; None: counted here alone.
        holders: of the process, whose memory is bounded; None: bounded by `limits` for this proxy alone.

    Attributes:
        exchanges: request id to exchange, or to the WebSocket that became of it, from its first byte to its last.
        hops: connections to the service that are WebSockets.
        totals: of those that are over.
        head_limit: bytes that an answer's head may have, raw; set it to twice what `connected` says of
            `max_header`. (Encoded it may have as many; the session minds that.)
        log_queries: query strings are written to the log, too.
    """

    def __init__(
        self,
        name: str,
        service: Service,
        limits: AgentLimits,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        told: StreamTold | None = None,
        counts: StreamCounts | None = None,
        holders: Holders | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.service = service
        self.exchanges: dict[str, Exchange | SocketExchange] = {}
        self.hops: set[Hop] = set()
        self.totals = Totals()
        self.counts = counts if counts is not None else StreamCounts()
        self.heads = Heads(service, headers or {})
        self.head_limit = 2 * _MAX_HEADER
        self.origin = Origin(service, tls=tls)
        self.connects: Deadlines[Exchange] = Deadlines(loop, limits.connect_timeout, Exchange.connect_expired)
        self.answers: Deadlines[Exchange] = Deadlines(loop, limits.response_timeout, Exchange.answer_expired)
        self.stalls: Deadlines[Exchange | SocketExchange] = Deadlines(loop, limits.stall / STALL_CHECKS, _stall_check)
        self.holders = holders or Holders(MemoryBudget(limits.memory))
        self.pool = Pool(loop, self.origin, self.holders.budget)
        self.log_queries = False
        #: Looks into its streams; None: nobody may.
        self.inspector: Inspector | None = None
        #: Makes a span of each request; None: nobody wants them.
        self.tracer: Tracer | None = None
        self._headers = dict(headers or {})
        self._failing = ""  # the code of the last failure, while nothing has gone well since
        self._max_streams = limits.max_streams
        self._told = told
        self._leave = told.follow(self.exchanges.values()) if told is not None else None
        self._closed = False
        self._hop_gone = asyncio.Event()

    def update(self, config: TunnelConfig) -> None:
        """Let a reloaded file's limits and headers hold from now on; open exchanges mind new timeouts too."""
        limits = config.limits
        self._max_streams = limits.max_streams
        self.connects.after = limits.connect_timeout
        self.answers.after = limits.response_timeout
        self.stalls.after = limits.stall / STALL_CHECKS
        self._headers = dict(config.headers)
        self.heads = Heads(self.service, config.headers)

    def inspect(self, config: InspectionConfig | None) -> None:
        """Look into streams from now on, as `config` says; None: no more, and forget what was seen."""
        if config is None:
            self.inspector = None
            for exchange in self.exchanges.values():
                exchange.opening, exchange.answer = b"", ""
                seen, exchange.seen = exchange.seen, None
                if seen is not None:
                    seen.over("not_inspected", time.monotonic())
        elif self.inspector is None:
            self.inspector = Inspector(config, self.exchanges)
        else:
            self.inspector.config = config

    async def resend(self, seen: Seen, request_id: str, *, timeout: float) -> dict[str, Any]:
        """Send a request that was seen to the service again; raises VisitorError."""
        return await resend(seen, request_id, self.origin, self._headers, timeout=timeout)

    async def probe(self, path: str | None = None, *, timeout: float | None = None) -> str | None:
        """Whether the service is well: None, or why not.

        Args:
            path: to GET, with the tunnel's headers; None: that it takes a connection is enough.
            timeout: seconds; None: those of a connect.
        """
        probe = ServiceProbe(self.origin, path=path, headers=self._headers)
        return await probe.probe(self.connects.after if timeout is None else timeout)

    def accept(self, stream: Stream, request: Open, ended: bool) -> Sink:
        """Take a stream on and send its request; the session calls this for each OPEN.

        Args:
            stream: just opened.
            request: its head.
            ended: the request has no body.

        Returns:
            What consumes the stream. The stream may be cancelled, or answered whole, by then.
        """
        if self._closed or len(self.exchanges) >= self._max_streams or stream.request_id in self.exchanges:
            log.info(
                "refusing stream %s: %d are under way",
                stream.request_id,
                len(self.exchanges),
                extra={"tunnel": self.name, "request_id": stream.request_id, "reason": "refused"},
            )
            self._count("refused")
            stream.cancel("refused")
            return NOBODY
        if self.tracer is not None:
            request = tracing.begin(self.tracer, request, self.service, self.name)
        exchange = Exchange(self, stream, request, ended)
        self.exchanges[stream.request_id] = exchange
        self.totals.streams += 1
        self.holders.budget.opened()
        if self._told is not None:
            self._told.opened(exchange)
        exchange.start(request)
        return exchange

    def cancel(self, request_id: str, reason: str = "operator") -> bool:
        """End an exchange now; False when there is none of that id."""
        exchange = self.exchanges.get(request_id)
        if exchange is None:
            return False
        exchange.cancel(reason)
        return True

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes from visitors and to them since the start, of requests under way too."""
        over, live = self.totals, self.exchanges
        if not live:
            return over.bytes_in, over.bytes_out
        return (
            over.bytes_in + sum(exchange.bytes_in for exchange in live.values()),
            over.bytes_out + sum(exchange.bytes_out for exchange in live.values()),
        )

    def hold(self) -> None:
        """The tunnel has no connection: that time counts for no answer and no stall."""
        self.answers.hold()
        self.stalls.hold()

    def go_on(self) -> None:
        """It has one again, or its session is over."""
        self.answers.go_on()
        self.stalls.go_on()

    def close(self, reason: str = "shutdown") -> None:
        """End all exchanges with `reason` and close every connection; streams that still come are refused."""
        self._closed = True
        for exchange in list(self.exchanges.values()):
            exchange.cancel(reason)
        self.pool.close()
        for deadlines in (self.connects, self.answers, self.stalls):
            deadlines.clear()
        if self._leave is not None:
            self._leave()

    async def wait_closed(self) -> None:
        """After `close`: wait until nothing of this proxy runs any more."""
        await self.pool.wait_closed()
        try:
            async with asyncio.timeout(2 * CLOSE_TIMEOUT):
                await self._hops_gone()
        except TimeoutError:
            for hop in list(self.hops):
                hop.abort()
            await self._hops_gone()

    async def _hops_gone(self) -> None:
        while self.hops:
            self._hop_gone.clear()
            await self._hop_gone.wait()

    def upgraded(self, socket: SocketExchange) -> None:
        """An exchange became a WebSocket."""
        self.exchanges[socket.request_id] = socket
        self.hops.add(socket.hop)
        if self._told is not None:
            self._told.upgraded(socket)

    def hop_gone(self, hop: Hop) -> None:
        """A WebSocket's connection is closed."""
        self.hops.discard(hop)
        self._hop_gone.set()

    def cancel_came(self, request_id: str) -> None:
        """The server cancels that request's stream: count how long it takes until the service's connection is closed.

        What is aborted in this turn of the loop is closed in the next, before what is asked for after it.
        """
        loop, began = asyncio.get_running_loop(), time.monotonic()

        def closed() -> None:
            self.counts.cancels.observe(time.monotonic() - began, request_id)

        loop.call_soon(lambda: loop.call_soon(closed))

    def over(self, exchange: Exchange | SocketExchange) -> None:
        """An exchange has let go of its connection; it calls this once."""
        if isinstance(exchange, Exchange):
            self.connects.discard(exchange)
            self.answers.discard(exchange)
        self.stalls.discard(exchange)
        self.exchanges.pop(exchange.request_id, None)
        now = time.monotonic()
        if exchange.opening and self.inspector is not None:
            self.inspector.over(exchange, now)
        if self.tracer is not None:
            tracing.end(self.tracer, exchange)
        self.holders.budget.closed()
        totals = self.totals
        totals.bytes_in += exchange.bytes_in
        totals.bytes_out += exchange.bytes_out
        totals.events += exchange.events
        self._count(exchange.reason)
        self.counts.over(exchange.kind, exchange.reason, now - exchange.started, exchange.request_id)
        if exchange.reason == "done":
            self._failing = ""
        self._log_end(exchange)
        if self._told is not None:
            self._told.closed(exchange, now)

    def tell_fault(self, exchange: Record, detail: str, reason: str) -> None:
        """Log why an exchange failed: as a warning the first time, and again once the service has done well."""
        code = exchange.code or "service"
        level = logging.DEBUG if code == self._failing else logging.WARNING
        self._failing = code
        log.log(level, "%s", detail, extra=self.described(exchange, reason))

    def tell_limit(self, exchange: Record, limit: str) -> None:
        """Say which key of `limits` ends an exchange: `reason` has one word for them all."""
        extra = {**self.described(exchange, "limit"), "limit": limit}
        log.warning("The request %s is over limits.%s: %s", exchange.request_id, limit, _OVER[limit], extra=extra)

    def described(self, exchange: Record, reason: str) -> dict[str, object]:
        """The fields of a log line about an exchange."""
        extra: dict[str, object] = {
            "tunnel": self.name,
            "request_id": exchange.request_id,
            "reason": reason,
            "kind": exchange.kind,
            "client": exchange.client,
            "method": exchange.method,
            "path": exchange.path if self.log_queries else exchange.path.partition("?")[0],
            "duration_s": round(time.monotonic() - exchange.started, 4),
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
        }
        if exchange.code:
            extra["code"] = exchange.code
        if exchange.kind == "sse":
            extra["events"] = exchange.events
        return extra

    def _count(self, reason: str) -> None:
        ended = self.totals.ended
        ended[reason] = ended.get(reason, 0) + 1

    def _log_end(self, exchange: Record) -> None:
        reason = exchange.reason
        level = logging.DEBUG if reason == "done" and exchange.kind == "http" else logging.INFO
        if not log.isEnabledFor(level):
            return
        extra = self.described(exchange, reason)
        if reason not in _OWN:
            log.info("🛑 Cancelling stream: %s", exchange.request_id, extra=extra)
        log.log(level, "🧹 Cleaned up stream: %s", exchange.request_id, extra=extra)


def _stall_check(exchange: Exchange | SocketExchange) -> None:
    exchange.stall_check()
