"""OpenTelemetry traces: a span for each request's way through this daemon, sent to a collector by OTLP over HTTP.

On the loop a span costs two ids, two headers and a tuple; all else, the SDK's objects, protobuf and HTTP, happens in a
thread. A collector that is down, slow or silent loses spans, which are counted, and touches nothing else. The SDK is
the optional extra ``otlp``; this module alone imports it, and nothing imports this module where traces are off.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import time_ns
from typing import Any

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from tunneld import __version__
from tunneld.telemetry.tracecontext import SAMPLED, Headers, TraceParent, begun, continued, read

__all__ = ["Tracer", "traces_address"]

log = logging.getLogger("tunneld.traces")

_BATCH = 128  # spans of one request: what the thread does in one go stays in milliseconds
_GATHER = 1.0  # seconds from the first of a batch until it is sent, when no more come
_CLOSING = 1.0  # seconds that the last of them have when the daemon ends
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
#: Ends that are nobody's fault.
_FINE = frozenset(("done", "visitor", "operator"))

Attributes = dict[str, str | int | float]


def traces_address(base: str) -> str:
    """Where spans are posted: `base` as the file has it, with OTLP's own path when it does not stand there."""
    return base if base.rstrip("/").endswith("/v1/traces") else f"{base.rstrip('/')}/v1/traces"


@dataclass(frozen=True, slots=True)
class _Hop:
    """A request whose span is open.

    Attributes:
        parent: where it came from; None: it began the trace.
        span: its own.
        begun: nanoseconds since the epoch.
        name: method and route, which have a bound.
        about: what was known at its begin.
    """

    parent: TraceParent | None
    span: TraceParent
    state: str
    begun: int
    name: str
    about: Attributes


@dataclass(frozen=True, slots=True)
class _Ended:
    """What came of it.

    Attributes:
        kind: ``http``, ``sse`` or ``websocket``.
        reason: ``done``, or why it ended.
        status: of the answer; 0: there was none.
        code: of our own error; empty: there was none.
    """

    kind: str
    reason: str
    status: int
    bytes_in: int
    bytes_out: int
    events: int
    code: str


class Tracer:
    """The spans of one daemon. Made, used and closed on the loop.

    Args:
        address: of the collector, see `traces_address`.
        role: ``server`` or ``agent``.
        queue: spans that may wait; what comes beyond them is lost.
        timeout: seconds that the collector has for one request, tries again included.
        sample: share of new traces that are recorded, 0 to 1; a visitor's own trace says for itself.

    Attributes:
        sent: spans that the collector took.
        lost: those that it did not, or that found no room.
    """

    def __init__(self, address: str, *, role: str, queue: int, timeout: float, sample: float) -> None:
        self._address = address
        self._kind = SpanKind.SERVER if role == "server" else SpanKind.CLIENT
        self._sample = sample
        self._open: dict[str, _Hop] = {}
        self._queue: deque[tuple[_Hop, _Ended, int]] = deque()
        self.limit = queue
        self.sent = 0
        self._failed = 0  # written by the thread
        self._dropped = 0  # written by the loop
        self._failing = False
        self._closing = False
        self._some = threading.Event()  # spans wait
        self._hurry = threading.Event()  # a whole batch does, or this ends
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        for name in ("opentelemetry.exporter", "opentelemetry.sdk"):  # they log each try; said here once
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._exporter = OTLPSpanExporter(endpoint=traces_address(address), timeout=timeout)
        self._spans = _Spans(role)
        threading.Thread(target=self._work, name="traces", daemon=True).start()

    @property
    def lost(self) -> int:
        """Spans that the collector has not."""
        return self._failed + self._dropped

    @property
    def waiting(self) -> int:
        """Spans that wait to be sent."""
        return len(self._queue)

    # -- on the loop -----------------------------------------------------------------------------------

    def begin(self, request_id: str, headers: Headers, name: str, method: str, about: Attributes) -> Headers:
        """Open a request's span; returns its headers with that span as where it comes from.

        Args:
            name: the rest of the span's name behind the method; with a bound, so no path.
        """
        parent, state = read(headers)
        if parent is not None and not parent.sampled:
            return headers
        if parent is None and self._sample < 1 and random.random() >= self._sample:  # noqa: S311 - no secret
            return continued(headers, begun(sampled=False), "")
        span = parent.child() if parent is not None else begun(sampled=True)
        about["tunneld.request_id"] = request_id
        if method in _METHODS:
            about["http.request.method"] = method
        else:
            about["http.request.method"] = "_OTHER"
            about["http.request.method_original"] = method
            method = "HTTP"
        self._open[request_id] = _Hop(parent, span, state, time_ns(), f"{method} {name}", about)
        return continued(headers, span, state)

    def end(
        self,
        request_id: str,
        *,
        kind: str,
        reason: str,
        status: int,
        bytes_in: int,
        bytes_out: int,
        events: int,
        code: str = "",
    ) -> None:
        """A request is over (see `_Ended`); nothing happens when it has no span."""
        hop = self._open.pop(request_id, None)
        if hop is None:
            return
        if len(self._queue) >= self.limit or self._closing:
            self._dropped += 1
            return
        self._queue.append((hop, _Ended(kind, reason, status, bytes_in, bytes_out, events, code), time_ns()))
        if len(self._queue) == 1:
            self._some.set()
        elif len(self._queue) >= _BATCH and not self._hurry.is_set():
            self._hurry.set()

    async def close(self) -> None:
        """Send what waits while the collector takes it, for a moment at most, and end."""
        self._closing = True
        self._hurry.set()
        self._some.set()
        if self._failing:  # it takes nothing: no more tries
            await self._stop_sending(0.2)
            return
        try:
            async with asyncio.timeout(_CLOSING):
                await self._over.wait()
        except TimeoutError:
            await self._stop_sending(0.2)

    async def _stop_sending(self, within: float) -> None:
        """Break off the thread's waits; what it still does in a system call ends with the process."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(within):
                await self._over.wait()
        except TimeoutError:
            log.debug("Left the collector's connection behind.", extra={"collector": self._address})

    def _told(self, failing: bool) -> None:
        if failing:
            log.warning(
                "Traces are lost: %s does not take them. They are sent again as soon as it does.",
                self._address,
                extra={"collector": self._address},
            )
        else:
            log.info("Traces are taken again by %s.", self._address, extra={"collector": self._address})

    # -- in the thread ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while not (self._closing and not self._queue):
            self._some.wait()
            self._hurry.wait(_GATHER)
            self._some.clear()
            self._hurry.clear()
            while self._queue:
                self._send([self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))])
        self._tell(self._over.set)

    def _send(self, batch: Sequence[tuple[_Hop, _Ended, int]]) -> None:
        spans = [self._spans.made(hop, ended, at, self._kind) for hop, ended, at in batch]
        taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
        if taken:
            self.sent += len(spans)
        else:
            self._failed += len(spans)
        if taken is self._failing:
            self._failing = not taken
            self._tell(self._told, self._failing)

    def _tell(self, what: Any, *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *values)
        except RuntimeError:  # the loop has ended without us
            pass


class _Given(IdGenerator):
    """Gives out the ids that stand in the headers already."""

    trace = span = 0

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self.span


class _Last(SpanProcessor):
    """Keeps the span that ended last."""

    span: ReadableSpan

    def on_end(self, span: ReadableSpan) -> None:
        self.span = span


class _Spans:
    """Makes the SDK's spans of our own, in the thread alone."""

    def __init__(self, role: str) -> None:
        self._ids = _Given()
        self._last = _Last()
        resource = Resource.create({"service.name": f"tunneld-{role}", "service.version": __version__})
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(self._last)
        self._tracer = provider.get_tracer("tunneld", __version__)

    def made(self, hop: _Hop, ended: _Ended, at: int, kind: SpanKind) -> ReadableSpan:
        """The span, ended."""
        context = Context()
        if hop.parent is not None:
            flags, state = TraceFlags(SAMPLED), TraceState.from_header([hop.state] if hop.state else [])
            parent = SpanContext(hop.parent.trace, hop.parent.span, True, flags, state)
            context = api.set_span_in_context(NonRecordingSpan(parent), context)
        self._ids.trace, self._ids.span = hop.span.trace, hop.span.span
        attributes = {**hop.about, **_told_of(ended)}
        span = self._tracer.start_span(hop.name, context, kind, attributes, start_time=hop.begun)
        fault = _fault(ended, kind)
        if fault:
            span.set_attribute("error.type", fault)
            span.set_status(Status(StatusCode.ERROR, None if fault.isdigit() else fault))
        span.end(max(at, hop.begun))
        return self._last.span


def _told_of(ended: _Ended) -> Attributes:
    told: Attributes = {
        "tunneld.end_reason": ended.reason,
        "tunneld.stream.kind": ended.kind,
        "http.request.body.size": ended.bytes_in,
        "http.response.body.size": ended.bytes_out,
    }
    if ended.status:
        told["http.response.status_code"] = ended.status
    if ended.kind == "sse":
        told["tunneld.stream.events"] = ended.events
    return told


def _fault(ended: _Ended, kind: SpanKind) -> str:
    """`error.type`, by the conventions: an answer is a fault from 500 on, to a client from 400 on; empty: none."""
    if ended.code:
        return ended.code
    if ended.reason not in _FINE:
        return ended.reason
    least = 500 if kind is SpanKind.SERVER else 400
    return str(ended.status) if ended.status >= least else ""
