"""A real ingress on a loopback port, its tunnel two real sessions joined in memory, the service played by the test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from tests.support.joined import Joined
from tunneld.config.server import ListenConfig, ServerConfig
from tunneld.protocol.messages import Headers, HeartbeatSettings, Open, SseSettings
from tunneld.protocol.streams import Stream
from tunneld.server.ingress import Ingress
from tunneld.server.offers import TunnelOffer
from tunneld.server.registry import Registry
from tunneld.wire.http1 import RequestHead

__all__ = ["Answer", "Client", "Front", "Served", "front"]


class Served:
    """One request as it reached the agent's end; the test answers it through `stream`."""

    def __init__(self, stream: Stream, request: Open, ended: bool) -> None:
        self.stream = stream
        self.request = request
        self.body = bytearray()
        self.pieces = 0
        self.ended = ended
        self.trailers: Headers = []
        self.stop = False
        self.reason: str | None = None
        self.greedy = True
        self.untaken = 0
        self._changed = asyncio.Event()

    def head(self, status: int, headers: Headers) -> None:
        raise AssertionError("a HEAD to the agent")

    def data(self, data: bytes) -> None:
        self.body += data
        self.pieces += 1
        self.untaken += len(data)
        if self.greedy:
            self.take()
        self._changed.set()

    def take(self) -> None:
        count, self.untaken = self.untaken, 0
        self.stream.took(count)

    def end(self, trailers: Headers) -> None:
        self.ended = True
        self.trailers = trailers
        self._changed.set()

    def stopped(self) -> None:
        self.stop = True
        self._changed.set()

    def cancelled(self, reason: str) -> None:
        self.reason = reason
        self._changed.set()

    def writable(self) -> None:
        self._changed.set()

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    async def cancel_reason(self) -> str:
        await self.until(lambda: self.reason is not None)
        assert self.reason is not None
        return self.reason

    async def whole(self) -> bytes:
        await self.until(lambda: self.ended)
        return bytes(self.body)

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.request.headers}

    def answer(self, status: int = 200, headers: Headers | None = None, body: bytes | None = b"ok") -> None:
        """A whole answer; Content-Length is added where there is a body."""
        head = list(headers or [])
        if body:
            head.append(("Content-Length", str(len(body))))
        self.stream.send_head(status, head, end=not body)
        if body:
            self.stream.send(body)
            self.stream.send_end()

    def events(self, *headers: tuple[str, str]) -> None:
        """Begin an event stream."""
        self.stream.send_head(200, [("Content-Type", "text/event-stream"), *headers])


class Answer:
    """An answer as a client read it. `clean`: its end was that of its framing."""

    def __init__(self, status: int, headers: Headers, body: bytes, trailers: Headers) -> None:
        self.status = status
        self.pairs = headers
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body
        self.trailers = trailers


class Client:
    """A visitor on a plain connection: sends what it is told and takes answers apart."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def get(self, path: str, *lines: str, method: str = "GET", version: str = "1.1", host: str = "h") -> None:
        head = [f"{method} {path} HTTP/{version}", f"Host: {host}", *lines, "", ""]
        self.send("\r\n".join(head).encode("latin-1"))

    async def head(self) -> tuple[int, Headers]:
        async with asyncio.timeout(10):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        assert version == "HTTP/1.1", first
        pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return int(status), pairs

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; empty for the last."""
        async with asyncio.timeout(10):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size)
            if size:
                assert await self.reader.readexactly(2) == b"\r\n"
            return data

    async def answer(self, *, method: str = "GET") -> Answer:
        """The next final answer, whole."""
        status, pairs = await self.head()
        headers = {name.lower(): value for name, value in pairs}
        trailers: Headers = []
        body = b""
        if status < 200 or status in (204, 304) or method == "HEAD":
            return Answer(status, pairs, b"", [])
        async with asyncio.timeout(10):
            if "chunked" in headers.get("transfer-encoding", ""):
                while piece := await self.chunk():
                    body += piece
                while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                    name, _, value = line.decode("latin-1").partition(":")
                    trailers.append((name, value.strip()))
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self.reader.read()
        return Answer(status, pairs, body, trailers)

    async def closed(self) -> bytes:
        """What still comes before a clean end; raises ConnectionResetError for another."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    async def reset(self) -> None:
        """The end that is none."""
        try:
            rest = await self.closed()
        except ConnectionResetError:
            return
        raise AssertionError(f"a clean end, after {rest[-100:]!r}")

    async def leave(self) -> None:
        """Close, with a FIN."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def crash(self) -> None:
        """Close, with a RST."""
        from tunneld.wire.sockets import reset

        reset(self.writer.transport)  # type: ignore[arg-type]


class _Agent:
    peer = "192.0.2.9"
    round_trip: float | None = None

    def replaced(self, *, resumed: bool) -> None:
        pass


class Front:
    """An ingress, one tunnel named ``demo``, and the requests that came through it.

    Args:
        overrides: keys of the server's configuration.
    """

    def __init__(self, overrides: dict[str, Any]) -> None:
        self.config = ServerConfig(**overrides)
        self.registry = Registry(
            max_tunnels=100,
            max_waiting=self.config.limits.max_waiting,
            urls=self._urls,
            quality=self.config.quality,
        )
        self.offers: list[tuple[TunnelOffer, RequestHead, bytes]] = []
        self.ready = True
        self.ingress = Ingress(
            self.config,
            self.registry,
            connect_tunnel=lambda *offer: self.offers.append(offer),
            ready=lambda: self.ready,
        )
        self.requests: asyncio.Queue[Served] = asyncio.Queue()
        self.tunnel = self.registry.claim("demo", monotonic())
        self.agent = _Agent()
        self.clients: list[Client] = []
        self.port = 0
        self._numbers = itertools.count(1)

    def _urls(self, name: str) -> tuple[str, str | None]:
        public, domain = self.config.public_url or "http://h", self.config.domain
        return f"{public}/t/{name}", f"{public.partition(':')[0]}://{name}.{domain}" if domain else None

    def accept(self, stream: Stream, request: Open, ended: bool) -> Served:
        served = Served(stream, request, ended)
        self.requests.put_nowait(served)
        return served

    def connect_agent(self, sse: SseSettings | None = None, **settings: int) -> Joined:
        """The agent comes, with a new session."""
        self.joined = Joined(self.accept, **settings)
        self.tunnel.take(self.agent, resumed=False)
        self.tunnel.serve(self.joined.server, HeartbeatSettings(30, 10), sse or SseSettings(keepalive=0))
        return self.joined

    def lose_agent(self, *, grace: float = 0, for_good: bool = False) -> None:
        """The agent's session is lost; within `grace` seconds (the server's) event streams may go on in another."""
        self.tunnel.leave(self.agent, monotonic())
        self.tunnel.grace = grace
        self.tunnel.lose(monotonic(), for_good=for_good)
        self.joined.server.end("peer_lost")

    async def client(self) -> Client:
        """A visitor connects."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24))
        self.clients.append(client)
        return client

    async def send_until_paused(self, client: Client) -> None:
        """The only visitor there is sends a body until nobody reads its connection any more."""
        connection = next(iter(self.ingress.connections))
        async with asyncio.timeout(10):
            while connection._reading:
                client.send(b"x" * 16_384)
                await asyncio.sleep(0)

    async def served(self) -> Served:
        """The next request at the agent's end."""
        async with asyncio.timeout(10):
            return await self.requests.get()

    async def get(self, path: str, *lines: str, **how: str) -> Answer:
        """One request that the ingress answers by itself."""
        client = await self.client()
        client.get(path, *lines, **how)
        answer = await client.answer(method=how.get("method", "GET"))
        await client.leave()
        return answer

    async def settle(self) -> None:
        """Nothing is under way any more."""
        async with asyncio.timeout(10):
            while self.ingress.exchanges or self.ingress.connections:
                await asyncio.sleep(0)


@asynccontextmanager
async def front(
    *, agent: bool = True, listen: ListenConfig | None = None, sse: SseSettings | None = None, **overrides: Any
) -> AsyncIterator[Front]:
    """A running `Front`; at its end everything must be gone."""
    it = Front(overrides)
    if agent:
        it.connect_agent(sse)
    loop = asyncio.get_running_loop()
    faults: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    server = await loop.create_server(it.ingress.protocol_factory(listen or it.config.listen[0]), "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
        server.close()
        await it.ingress.close(0)
        assert not it.ingress.exchanges
        assert not it.ingress.connections
        assert it.ingress.budget.held == 0
        assert not faults
        if agent:
            assert not it.tunnel.keepalive_changed
    finally:
        server.close()
        for client in it.clients:
            await client.leave()
