"""A collector: takes spans by OTLP over HTTP, decodes them with OpenTelemetry's own messages, or fails as told."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.daemons import Pair
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_port, short_dir

__all__ = ["SPAN", "TRACE", "Collector", "Received", "Traced", "both", "echoed"]

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
"""Of the standard's own example."""


@dataclass(frozen=True, slots=True)
class Received:
    """A span as it came; ids in hex, `parent` empty for the first of a trace."""

    service: str
    name: str
    kind: str
    trace: str
    span: str
    parent: str
    state: str
    begun: int
    ended: int
    attributes: dict[str, Any]
    failed: bool


class Collector:
    """A receiver on a port of its own.

    Attributes:
        mood: ``takes`` them, ``refuses`` with 503, or ``hangs``: reads and never answers.
        requests: how many have come, whatever became of them.
    """

    def __init__(self, mood: Literal["takes", "refuses", "hangs"] = "takes") -> None:
        self.mood = mood
        self.requests = 0
        self.spans: list[Received] = []
        self._news = threading.Condition()
        self._end = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = collector.take(self.path, self.headers, body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """What `telemetry.otlp` says."""
        return f"http://{LOOPBACK}:{self._server.server_port}"

    def take(self, path: str, headers: Any, body: bytes) -> int:
        """Called by the handler's thread for each request; returns the status."""
        assert path == "/v1/traces"
        assert headers["Content-Type"] == "application/x-protobuf"
        with self._news:
            self.requests += 1
            self._news.notify_all()
        if self.mood == "hangs":
            self._end.wait()
        if self.mood != "takes":
            return 503
        message = ExportTraceServiceRequest()
        message.ParseFromString(gzip.decompress(body) if headers["Content-Encoding"] == "gzip" else body)
        with self._news:
            self.spans += _spans(message)
            self._news.notify_all()
        return 200

    def wait(self, enough: Callable[[], object], *, timeout: float = 10.0) -> None:
        """Until what has come is enough."""
        with self._news:
            assert self._news.wait_for(enough, timeout), f"{self.requests} requests, spans: {self.spans}"

    def named(self, service: str) -> list[Received]:
        """The spans of `tunneld-server` or `tunneld-agent`."""
        return [span for span in self.spans if span.service == service]

    def stop(self) -> None:
        """End it; what hangs is let go."""
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


_KINDS = {2: "server", 3: "client"}


def _spans(message: ExportTraceServiceRequest) -> list[Received]:
    found = []
    for resource in message.resource_spans:
        service = _attributes(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            found += [
                Received(
                    service,
                    span.name,
                    _KINDS[span.kind],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.trace_state,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _attributes(span.attributes),
                    span.status.code == 2,
                )
                for span in scope.spans
            ]
    return found


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class Traced:
    """Daemons that trace to collectors, and services behind them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.folder = stack.enter_context(short_dir())
        self.service = SampleService()
        stack.callback(self.service.stop)

    def collector(self, mood: Any = "takes") -> Collector:
        made = Collector(mood)
        self._stack.callback(made.stop)
        return made

    def pair(self, *, server: str | None = None, agent: str | None = None, **more: Any) -> Pair:
        """Both daemons; `server` and `agent`: where each sends its spans."""
        url = f"http://127.0.0.1:{self.service.port}"
        made = Pair(
            self.folder,
            {"demo": url, "gone": f"http://127.0.0.1:{free_port()}"},
            server={"telemetry": {"otlp": server, **more}} if server else None,
            agent={"telemetry": {"otlp": agent, **more}} if agent else None,
        )
        self._stack.callback(made.discard)
        return made


def echoed(pair: Pair, headers: dict[str, str], path: str = "/echo") -> dict[str, str]:
    """What the service saw of a request's headers."""
    answer = httpx.get(pair.url("demo", path), headers=headers)
    assert answer.status_code == 200
    return {name.lower(): value for name, value in answer.json()["headers"]}


def both(collector: Collector, count: int = 1) -> tuple[Received, Received]:
    """The newest span of each daemon, once `count` of each have come."""
    collector.wait(lambda: min(len(collector.named(f"tunneld-{role}")) for role in ("server", "agent")) >= count)
    return collector.named("tunneld-server")[-1], collector.named("tunneld-agent")[-1]
