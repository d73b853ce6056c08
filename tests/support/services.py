"""The sample service behind the tunnels: one raw asyncio program, cheap enough not to be what is measured.

`python -m tests.support.services --port N` serves

| address | what |
| --- | --- |
| `/small` | 200 with a body of 100 bytes |
| `/quiet?id=` | SSE: one event, then silence |
| `/paced?id=` | SSE: one event, then its turn of all paced streams' events: `data: NANOSECONDS pad`, 120 bytes each |
| `/pace?rate=R&tick=S` | sets the rate of all paced streams together, in events a second, sent every S seconds |
| `/events?n=&gap=&id=&retry=` | SSE: n numbered events with ids, gap seconds apart, then the end; n=0: for ever |
| `/bytes?n=&chunked=` | n bytes of a known pattern, under a Content-Length or chunked |
| `/upload` | the number and SHA-256 of the body's bytes, as JSON |
| `/echo` | the request as it came, as JSON |
| `/slow?s=&id=` | an answer after s seconds |
| `/break?n=&how=` | n bytes of a longer answer, then a reset; `how`: length, chunked, sse, head (no answer at all) |
| `/page?id=` | an HTML page whose EventSource reads `events` of that id and counts in the title |
| `/status?code=` | an empty answer with that status |
| `/stats` | open connections, live streams, all requests so far |

On stdout, one JSON object a line: `{"event": "open"|"close", "id", "path", "at"}` for each stream (quiet, paced,
events, slow), `at` in `time.monotonic()` nanoseconds: the clock is one for all processes of a host.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import json
import signal
import sys
import time
from collections import deque
from typing import Any
from urllib.parse import parse_qsl

import httptools

from tests.support.processes import Process, python_module
from tests.support.programs import raise_limit, run
from tests.support.sockets import LOOPBACK, free_port

__all__ = ["EVENT_BYTES", "PATTERN", "SampleService", "Service", "ToldService", "pattern"]

EVENT_BYTES = 120
SMALL = b"x" * 99 + b"\n"
PATTERN = bytes(range(256)) * 256  # 64 KiB
_SSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


_PAGE = b"""<!doctype html><meta charset=utf-8><title>0</title><pre id=log></pre><script>
const id = new URLSearchParams(location.search).get("id");
let count = 0;
window.source = new EventSource(`events?n=0&gap=0.05&retry=200&id=${id}`);
source.onmessage = event => { document.title = ++count; document.getElementById("log").textContent = event.data; };
// Chromium keeps a page that was left for 60 s, its EventSource open, in case the user comes back, even a no-store one
addEventListener("pagehide", () => source.close());
</script>
"""


def pattern(n: int) -> bytes:
    """The first n bytes of what `/bytes` answers."""
    return (PATTERN * (n // len(PATTERN) + 1))[:n]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _timed_event() -> bytes:
    head = b"data: %d " % time.monotonic_ns()
    return head + b"." * (EVENT_BYTES - 2 - len(head)) + b"\n\n"


class Service:
    """What all connections share: the ring of paced streams, the counts, where openings and closings are told."""

    def __init__(self, told: Any) -> None:
        self.told = told
        self.ring: deque[Connection] = deque()
        self.rate = 0.0
        self.tick = 0.001
        self.connections: set[Connection] = set()
        self.requests = 0
        self._due = 0.0
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, event: str, stream: str, path: str) -> None:
        """Say that a stream opened or closed, and when."""
        line = {"event": event, "id": stream, "path": path, "at": time.monotonic_ns()}
        self.told(json.dumps(line) + "\n")

    def pace(self, rate: float, tick: float = 0.001) -> None:
        """Spread `rate` events a second over all paced streams, those due every `tick` seconds; 0 stops them."""
        self.rate = rate
        self.tick = tick
        self._due = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if rate > 0:
            self._last = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(self.tick, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self._due = min(self._due + (now - self._last) * self.rate, self.rate / 10)
        self._last = now
        ring = self.ring
        while self._due >= 1 and ring:
            connection = ring.popleft()
            if connection.live is not None:  # one that closed drops out when its turn comes
                self._due -= 1
                ring.append(connection)
                connection.transport.write(_chunk(_timed_event()))
        self._timer = asyncio.get_running_loop().call_later(self.tick, self._tick)


class Connection(asyncio.Protocol):
    """One connection of the service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.parser = httptools.HttpRequestParser(self)
        self.live: tuple[str, str] | None = None  # (id, path) of the stream under way
        self.timer: asyncio.TimerHandle | None = None
        self.left = 0  # bytes of a /bytes answer still to be written
        self.sent = 0
        self.chunked = False
        self.writable = True

    # -- asyncio

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=256 * 1024)
        self.service.connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.service.connections.discard(self)
        if self.timer is not None:
            self.timer.cancel()
        self._over()
        del self.parser  # it and this hold each other, and no collector runs here

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._pour()

    # -- httptools

    def on_message_begin(self) -> None:
        self.target = b""
        self.headers: list[tuple[str, str]] = []
        self.body = 0
        self.digest: Any = None

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if any(name.lower() == "expect" and value.lower() == "100-continue" for name, value in self.headers):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self.body += len(data)
        if self.digest is None:
            self.digest = hashlib.sha256()
        self.digest.update(data)

    def on_message_complete(self) -> None:
        self.service.requests += 1
        path, _, query = self.target.decode("latin-1").partition("?")
        if path == "/small":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" + SMALL)
            return
        arguments = dict(parse_qsl(query))
        answer = getattr(self, "get_" + path.strip("/").replace("/", "_"), None)
        if answer is None:
            self._answer(404, b"not here\n")
        else:
            answer(arguments)

    # -- answers

    def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        head = f"HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\n"
        if status not in (204, 304):
            head += f"Content-Length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"\r\n" + body)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode() + b"\n", "application/json")

    def _begin(self, arguments: dict[str, str]) -> None:
        path = self.target.decode("latin-1")
        self.live = (arguments.get("id", path), path)
        self.service.tell("open", *self.live)

    def _over(self) -> None:
        if self.live is not None:
            self.service.tell("close", *self.live)
            self.live = None

    def get_quiet(self, arguments: dict[str, str]) -> None:
        self._begin(arguments)
        self.transport.write(_SSE + _chunk(b"data: hello\n\n"))

    def get_paced(self, arguments: dict[str, str]) -> None:
        self._begin(arguments)
        self.transport.write(_SSE + _chunk(b"data: hello\n\n"))
        self.service.ring.append(self)

    def get_pace(self, arguments: dict[str, str]) -> None:
        self.service.pace(float(arguments["rate"]), float(arguments.get("tick", 0.001)))
        self._json({"rate": self.service.rate, "streams": len(self.service.ring)})

    def get_events(self, arguments: dict[str, str]) -> None:
        self._begin(arguments)
        last = {name.lower(): value for name, value in self.headers}.get("last-event-id", "")
        self.transport.write(_SSE)
        if "retry" in arguments:
            self.transport.write(_chunk(b"retry: %d\n\n" % int(arguments["retry"])))
        self._event(int(last or 0) + 1, int(arguments.get("n", 0)), float(arguments.get("gap", 0.1)))

    def _event(self, number: int, until: int, gap: float) -> None:
        if until and number > until:
            self.transport.write(b"0\r\n\r\n")
            self._over()
            return
        self.transport.write(_chunk(b"id: %d\ndata: event %d\n\n" % (number, number)))
        self.timer = asyncio.get_running_loop().call_later(gap, self._event, number + 1, until, gap)

    def get_bytes(self, arguments: dict[str, str]) -> None:
        self.left, self.sent, self.chunked = int(arguments["n"]), 0, "chunked" in arguments
        length = "Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {self.left}"
        self.transport.write(f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{length}\r\n\r\n".encode())
        if self.left:
            self._pour()

    def _pour(self) -> None:
        while self.left and self.writable:
            at = self.sent % len(PATTERN)
            piece = PATTERN[at : at + self.left] if at or self.left < len(PATTERN) else PATTERN
            self.sent += len(piece)
            self.left -= len(piece)
            self.transport.write(_chunk(piece) if self.chunked else piece)
            if self.chunked and not self.left:
                self.transport.write(b"0\r\n\r\n")

    def get_upload(self, arguments: dict[str, str]) -> None:
        digest = self.digest or hashlib.sha256()
        self._json({"bytes": self.body, "sha256": digest.hexdigest()})

    def get_echo(self, arguments: dict[str, str]) -> None:
        method = self.parser.get_method().decode()
        self._json(
            {"method": method, "target": self.target.decode("latin-1"), "headers": self.headers, "body": self.body}
        )

    def get_slow(self, arguments: dict[str, str]) -> None:
        self._begin(arguments)
        self.timer = asyncio.get_running_loop().call_later(float(arguments["s"]), self._late)

    def _late(self) -> None:
        self._answer(200, b"late\n")
        self._over()

    def get_break(self, arguments: dict[str, str]) -> None:
        n, how = int(arguments.get("n", 0)), arguments.get("how", "length")
        if how == "length":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (n + 1000) + pattern(n))
        elif how == "chunked":
            self.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + _chunk(pattern(n)))
        elif how == "sse":
            self.transport.write(_SSE + _chunk(b"data: one\n\n") + _chunk(b"data: two\n\n"))
        # what was written reaches the peer before the connection is closed without its end
        self.timer = asyncio.get_running_loop().call_later(float(arguments.get("after", 0.05)), self.transport.close)

    def get_page(self, arguments: dict[str, str]) -> None:
        self._answer(200, _PAGE, "text/html")

    def get_status(self, arguments: dict[str, str]) -> None:
        self._answer(int(arguments["code"]), b"")

    def get_stats(self, arguments: dict[str, str]) -> None:
        connections = self.service.connections
        live = sum(1 for connection in connections if connection.live is not None)
        self._json({"connections": len(connections) - 1, "streams": live, "requests": self.service.requests})


async def _serve(port: int, unix: str | None) -> None:
    loop = asyncio.get_running_loop()
    service = Service(sys.stdout.write)
    if unix:
        server = await loop.create_unix_server(lambda: Connection(service), unix, backlog=4096)
    else:
        server = await loop.create_server(lambda: Connection(service), LOOPBACK, port, backlog=4096)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.stdout.write('{"event": "ready"}\n')
    await stop.wait()
    server.close()
    for connection in list(service.connections):
        connection.transport.abort()


class ToldService:
    """A service in a process of its own that tells of its streams in lines of JSON, and what it told."""

    def __init__(self, argv: list[str], *, name: str, url: str) -> None:
        self.url = url
        self.opened: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.process = Process(argv, name=name, spoken=self._spoken)
        try:
            self.process.wait_line('"ready"', timeout=20)
        except BaseException:
            self.process.discard()
            raise

    def _spoken(self, text: str, at: float) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            {"open": self.opened, "close": self.closed}[line["event"]][line["id"]] = line["at"]

    def wait_open(self, stream: str, timeout: float = 10.0) -> int:
        """When the service saw the stream's request (monotonic nanoseconds). Raises NotSeen."""
        self.process.wait_line(f'"event": "open", "id": "{stream}"', timeout=timeout)
        return self.opened[stream]

    def wait_closed(self, stream: str, timeout: float = 10.0) -> int:
        """When the service saw the stream's connection close (monotonic nanoseconds). Raises NotSeen."""
        self.process.wait_line(f'"event": "close", "id": "{stream}"', timeout=timeout)
        return self.closed[stream]

    def stop(self) -> None:
        """SIGTERM; connections are reset."""
        try:
            if self.process.running:
                self.process.stop()
        finally:
            self.process.discard()


class SampleService(ToldService):
    """This module's service, on a loopback port or a Unix socket."""

    def __init__(self, *, port: int | None = None, unix: str | None = None) -> None:
        self.port = port or free_port()
        where = ["--unix", unix] if unix else ["--port", str(self.port)]
        url = f"unix:{unix}" if unix else f"http://{LOOPBACK}:{self.port}"
        super().__init__(python_module("tests.support.services", *where), name="service", url=url)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--unix")
    options = parser.parse_args()
    raise_limit()
    gc.disable()  # nothing here makes cycles that grow; a collection would show as latency
    run(_serve(options.port, options.unix))


if __name__ == "__main__":
    main()
