"""The bench's visitors: raw asyncio protocols, so cheap that the two cores are left to what is measured."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Visitor", "Where", "ask_paced", "close_streams", "download", "get", "open_streams", "percentile"]

_STAMP = re.compile(rb"data: (\d{9,20}) ")
_TAIL = 32  # bytes kept of a piece so that a stamp cut in two is still found


@dataclass(frozen=True)
class Where:
    """Where visitors go: the address, what stands before each path, and the Host they name."""

    port: int
    prefix: str = ""
    host: str = "127.0.0.1"

    def request(self, path: str) -> bytes:
        """A GET of `path` as bytes."""
        accept = "text/event-stream" if path.startswith(("/paced", "/quiet", "/events")) else "*/*"
        return f"GET {self.prefix}{path} HTTP/1.1\r\nHost: {self.host}\r\nAccept: {accept}\r\n\r\n".encode()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie; NaN when there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Tally:
    """What all event visitors of one measurement saw together."""

    measuring: bool = False
    events: int = 0
    latencies_ns: list[int] = field(default_factory=list)


class Visitor(asyncio.Protocol):
    """One SSE visitor: `first` is done once its first event came, `lost` once its connection ended."""

    __slots__ = ("first", "lost", "request", "tail", "tally", "transport")

    def __init__(self, request: bytes, tally: Tally) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.tally = tally
        self.tail = b""
        self.first: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.first.done():
            self.tail += data
            if b"data: " in self.tail:
                self.first.set_result(None)
                self.tail = b""
            elif b"\r\n\r\n" in self.tail and not self.tail.startswith(b"HTTP/1.1 200"):
                self.first.set_exception(RuntimeError(f"visitor was answered {self.tail[:200]!r}"))
            return
        now = time.monotonic_ns()
        data = self.tail + data
        last = 0
        tally = self.tally
        for found in _STAMP.finditer(data):
            last = found.end()
            if tally.measuring:
                tally.events += 1
                tally.latencies_ns.append(now - int(found[1]))
        self.tail = data[max(last, len(data) - _TAIL) :]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.first.done():
            self.first.set_exception(exc or ConnectionError("closed before the first event"))
        if not self.lost.done():
            self.lost.set_result(None)


async def open_streams(where: Where, paths: Iterable[str], tally: Tally, *, at_once: int = 50) -> list[Visitor]:
    """Open one SSE stream a path, `at_once` at a time, each seen to answer its first event."""
    loop = asyncio.get_running_loop()
    wanted = iter(paths)
    opened: list[Visitor] = []

    async def some() -> None:
        for path in wanted:
            make = functools.partial(Visitor, where.request(path), tally)
            _, visitor = await loop.create_connection(make, "127.0.0.1", where.port)
            opened.append(visitor)
            await asyncio.wait_for(visitor.first, 30)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(some())
    return opened


async def close_streams(visitors: Iterable[Visitor]) -> None:
    """Close them all and wait until each is closed."""
    gone = list(visitors)
    for visitor in gone:
        visitor.transport.abort()
    for visitor in gone:
        await visitor.lost


class _Whole(asyncio.Protocol):
    """One GET whose body is counted: under a Content-Length, or until `0 CRLF CRLF` where it is chunked."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.head = b""
        self.body = 0
        self.length: int | None = None
        self.status = 0
        self.text = b""
        self.tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.status:
            self.head += data
            head, end, rest = self.head.partition(b"\r\n\r\n")
            if not end:
                return
            self.status = int(head[9:12])
            found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            self.length = int(found[1]) if found else None
            data = rest
        self.body += len(data)
        if len(self.text) < 4096:
            self.text += data
        if self.length is None:
            self.tail = (self.tail + data[-5:])[-5:]
        over = self.body >= self.length if self.length is not None else self.tail == b"0\r\n\r\n"
        if over and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(f"closed after {self.body} bytes"))


async def download(where: Where, path: str) -> tuple[int, float]:
    """GET `path`; the number of body bytes (with chunk framing, where chunked) and the seconds it took."""
    loop = asyncio.get_running_loop()
    begun = time.monotonic()
    transport, visitor = await loop.create_connection(lambda: _Whole(where.request(path)), "127.0.0.1", where.port)
    try:
        await asyncio.wait_for(visitor.done, 120)
        if visitor.status != 200:
            raise RuntimeError(f"{path} was answered {visitor.status}: {visitor.text[:200]!r}")
        return visitor.body, time.monotonic() - begun
    finally:
        transport.abort()


async def get(where: Where, path: str) -> bytes:
    """GET a small `path`; its body. An answer other than 200 is a RuntimeError."""
    loop = asyncio.get_running_loop()
    transport, visitor = await loop.create_connection(lambda: _Whole(where.request(path)), "127.0.0.1", where.port)
    try:
        await asyncio.wait_for(visitor.done, 10)
        if visitor.status != 200:
            raise RuntimeError(f"{path} was answered {visitor.status}: {visitor.text[:200]!r}")
        return visitor.text
    finally:
        transport.abort()


class _Asker(asyncio.Protocol):
    """One connection that asks the same again and again, when it is told to."""

    __slots__ = ("answered", "busy", "data", "fault", "request", "transport")

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.data = b""
        self.busy = False
        self.answered = 0
        self.fault = ""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self) -> None:
        """Once more; it is not busy."""
        self.busy = True
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if found is None or not head.startswith(b"HTTP/1.1 200"):
            self.fault = f"it was answered {head[:200]!r}"
        elif len(body) >= int(found[1]):
            self.data, self.busy = b"", False
            self.answered += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.fault = self.fault or f"its connection ended: {exc}"


async def ask_paced(where: Where, path: str, *, rate: float, seconds: float, connections: int = 32) -> int:
    """GET `path` so often a second; returns how many were answered.

    Raises:
        RuntimeError: an answer other than 200, or less than half of them were answered.
    """
    loop = asyncio.get_running_loop()
    request = where.request(path)
    made = [await loop.create_connection(lambda: _Asker(request), "127.0.0.1", where.port) for _ in range(connections)]
    askers = [asker for _, asker in made]
    try:
        begun, asked, at = time.monotonic(), 0, 0
        while (now := time.monotonic() - begun) < seconds:
            for _ in range(min(int(now * rate) - asked, connections)):
                at = (at + 1) % connections
                if not askers[at].busy:
                    askers[at].ask()
                    asked += 1
            await asyncio.sleep(0.001)
        while any(asker.busy and not asker.fault for asker in askers):
            await asyncio.sleep(0.001)
        if faults := [asker.fault for asker in askers if asker.fault]:
            raise RuntimeError(f"a request of {path}: {faults[0]}")
        answered = sum(asker.answered for asker in askers)
        if answered < 0.9 * rate * seconds:
            raise RuntimeError(f"{answered / seconds:.0f} requests a second were answered instead of {rate:.0f}")
        return answered
    finally:
        for transport, _ in made:
            transport.abort()
