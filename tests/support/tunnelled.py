"""A proxy between two joined sessions and a service of the test's own making."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Reversible
from dataclasses import dataclass, field
from typing import Any

from tests.support.joined import Joined, Visitor
from tunneld.agent.proxy import Proxy
from tunneld.agent.record import Record
from tunneld.config.service import parse_service
from tunneld.config.tunnel import AgentLimits
from tunneld.errors import CODES

__all__ = [
    "CHUNKED",
    "Handler",
    "Reader",
    "Tunnelled",
    "Writer",
    "assert_problem",
    "chunk",
    "read_head",
    "reply",
    "serving",
    "tunnelled",
    "tunnelled_to",
    "turns_until",
]

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Tunnelled:
    """What a test works with."""

    proxy: Proxy
    joined: Joined
    accepted: int = 0
    changes: list[tuple[str, str, str]] = field(default_factory=list)

    def open(self, *args: Any, **kwargs: Any) -> Visitor:
        return self.joined.open(*args, **kwargs)

    async def get(self, path: str = "/", **kwargs: Any) -> Visitor:
        return await self.joined.get(path, **kwargs)

    @property
    def ended(self) -> dict[str, int]:
        return self.proxy.totals.ended


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """One request's head."""
    return await reader.readuntil(b"\r\n\r\n")


def reply(body: bytes = b"", *, status: str = "200 OK", extra: str = "") -> bytes:
    """A whole answer with a length."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


async def turns_until(done: Callable[[], object]) -> None:
    """Let the loop turn until `done` says so: for what nobody is told of."""
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0)


class _Told:
    """Notes what a proxy tells of its streams."""

    def __init__(self, changes: list[tuple[str, str, str]]) -> None:
        self._changes = changes
        self._live: Reversible[Record] = ()

    def follow(self, live: Reversible[Record]) -> Callable[[], None]:
        self._live = live
        return lambda: None

    def opened(self, record: Record) -> None:
        assert next(iter(reversed(self._live))) is record, "it is not the last of those under way"
        self._changes.append(("stream_opened", record.request_id, record.reason))

    def upgraded(self, record: Record) -> None:
        begun = [one.started for one in reversed(self._live)]
        assert begun == sorted(begun, reverse=True), "not in the order of their begins"
        self._changes.append(("stream_upgraded", record.request_id, record.reason))

    def closed(self, record: Record, now: float) -> None:
        assert all(one is not record for one in reversed(self._live)), "it is under way still"
        self._changes.append(("stream_closed", record.request_id, record.reason))


@contextlib.asynccontextmanager
async def tunnelled_to(service: str, **kwargs: Any) -> AsyncIterator[Tunnelled]:
    """A proxy to an address; at the end nothing may be left of it."""
    settings = {key: kwargs.pop(key) for key in ("stream_window", "max_streams", "max_header") if key in kwargs}
    limits = AgentLimits(**kwargs.pop("limits", {}))
    changes: list[tuple[str, str, str]] = []
    proxy = Proxy(
        "demo",
        parse_service(service),
        limits,
        told=_Told(changes),
        **kwargs,
    )
    made = Tunnelled(proxy, Joined(proxy.accept, budget=proxy.holders.budget, **settings), changes=changes)
    try:
        yield made
    finally:
        proxy.close()
        await proxy.wait_closed()
        assert not proxy.exchanges
        assert not proxy.pool.open
        assert not proxy.pool.idle
        assert not proxy.pool.connecting
        assert proxy.holders.budget.held == sum(stream.held for stream in made.joined.agent.streams.values())
        opened = [request_id for kind, request_id, _ in changes if kind == "stream_opened"]
        closed = [request_id for kind, request_id, _ in changes if kind == "stream_closed"]
        assert sorted(opened) == sorted(closed)


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, *, path: Any = None, ssl: Any = None, count: Callable[[], None] = lambda: None
) -> AsyncIterator[str]:
    """A raw service: `handler` is run for each of its connections and cancelled at the end. Yields its address.

    Args:
        path: of a Unix socket; None: a TCP port.
        ssl: the context of its side.
        count: called for each connection.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count()
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError, OSError):
            await writer.wait_closed()
        tasks.discard(task)

    if path is None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096, ssl=ssl)
        port = server.sockets[0].getsockname()[1]
        address = f"https://localhost:{port}" if ssl else f"http://127.0.0.1:{port}"
    else:
        server = await asyncio.start_unix_server(serve, path)
        address = f"unix:{path}"
    try:
        yield address
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        while tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()


@contextlib.asynccontextmanager
async def tunnelled(handler: Handler, **kwargs: Any) -> AsyncIterator[Tunnelled]:
    """A proxy to a raw TCP service; see `serving`."""
    accepted = 0

    def count() -> None:
        nonlocal accepted
        accepted += 1
        made.accepted = accepted

    async with serving(handler, count=count) as address, tunnelled_to(address, **kwargs) as made:
        yield made


CHUNKED = "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


Writer = asyncio.StreamWriter
Reader = asyncio.StreamReader


async def assert_problem(visitor: Visitor, code: str, made: Tunnelled) -> dict[str, Any]:
    assert visitor.ended
    assert visitor.reason is None
    assert visitor.status == CODES[code].status
    assert visitor.headers["x-tunnel-error"] == code
    assert visitor.headers["content-type"] == "application/problem+json"
    assert int(visitor.headers["content-length"]) == len(visitor.body)
    document: dict[str, Any] = json.loads(bytes(visitor.body))
    assert document["code"] == code
    assert document["status"] == visitor.status
    assert document["request_id"] == visitor.stream.request_id
    assert "127.0.0.1" not in document["detail"]
    await turns_until(lambda: not made.proxy.exchanges)
    assert made.ended == {"service": 1}
    return document
