"""Two real sessions joined in memory: a test stands where the server's ingress would, the proxy where it is."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from tunneld.protocol.messages import Headers, Open, StreamCancel
from tunneld.protocol.session import BINARY, Session, SessionSettings
from tunneld.protocol.sinks import Sink
from tunneld.protocol.streams import Stream
from tunneld.protocol.windows import MemoryBudget

__all__ = ["Joined", "Visitor"]


class Visitor:
    """The sink of one stream at the server's end; gathers what comes, and gives credit as it is told to."""

    def __init__(self, greedy: bool = True) -> None:
        self.stream: Stream = None  # type: ignore[assignment]
        self.heads: list[tuple[int, Headers]] = []
        self.body = bytearray()
        self.trailers: Headers | None = None
        self.ended = False
        self.stop = False
        self.reason: str | None = None
        self.greedy = greedy
        self.untaken = 0
        self.could_write = True
        self._changed = asyncio.Event()

    def head(self, status: int, headers: Headers) -> None:
        self.heads.append((status, headers))
        self._changed.set()

    def data(self, data: bytes) -> None:
        self.body += data
        self.untaken += len(data)
        if self.greedy:
            self.take()
        self._changed.set()

    def end(self, trailers: Headers) -> None:
        assert not self.ended
        self.ended = True
        self.trailers = trailers
        self._changed.set()

    def stopped(self) -> None:
        self.stop = True
        self._changed.set()

    def cancelled(self, reason: str) -> None:
        assert self.reason is None
        self.reason = reason
        self._changed.set()

    def writable(self) -> None:
        self.could_write = True
        self._changed.set()

    def take(self) -> None:
        count, self.untaken = self.untaken, 0
        self.stream.took(count)

    @property
    def status(self) -> int:
        return self.heads[-1][0]

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.heads[-1][1]}

    @property
    def over(self) -> bool:
        return self.ended or self.reason is not None

    async def until(self, done: Callable[[], object], timeout: float = 10) -> None:
        async with asyncio.timeout(timeout):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    async def answered(self) -> Visitor:
        await self.until(lambda: self.over or (self.heads and self.status >= 200))
        return self

    async def finished(self) -> Visitor:
        await self.until(lambda: self.over)
        return self

    async def upload(self, data: bytes, size: int = 16384) -> None:
        """Send bytes as fast as credit allows; returns when all are queued or the stream is over."""
        for at in range(0, len(data), size):
            if self.stream.closed or self.stop:
                return
            if not self.stream.send(data[at : at + size]):
                self.could_write = False
                self._changed.set()
                await self.until(lambda: self.could_write or self.stop or self.stream.closed)


class Joined:
    """A server's session and an agent's, each handed what the other writes in the next turn of the loop.

    Args:
        budget: of the agent's memory.
    """

    def __init__(
        self, accept: Callable[[Stream, Open, bool], Sink], *, budget: MemoryBudget | None = None, **settings: int
    ) -> None:
        self.loop = asyncio.get_running_loop()
        chosen = replace(SessionSettings(), **settings)  # type: ignore[arg-type]
        self.server = Session(chosen)
        self.agent = Session(chosen, accept=accept, budget=budget)
        self._numbers = itertools.count(1)
        self._server_epoch = self.server.attach(0, lambda: self._soon(self._to_agent))
        self._agent_epoch = self.agent.attach(0, lambda: self._soon(self._to_server))

    def _soon(self, pump: Callable[[], None]) -> None:
        self.loop.call_soon(pump)

    def _to_agent(self) -> None:
        self._pump(self.server, self._server_epoch, self.agent, self._agent_epoch)

    def _to_server(self) -> None:
        self._pump(self.agent, self._agent_epoch, self.server, self._server_epoch)

    def _pump(self, source: Session, epoch: int, target: Session, target_epoch: int) -> None:
        while (message := source.next_message(epoch, time.monotonic())) is not None:
            opcode, parts = message
            payload = b"".join(bytes(part) for part in parts)
            if opcode == BINARY:
                target.receive(target_epoch, payload, time.monotonic())
            else:
                said = msgspec.json.decode(payload, type=StreamCancel)
                target.receive_cancel(target_epoch, said, time.monotonic())

    def open(
        self,
        method: str = "GET",
        path: str = "/",
        headers: Headers | None = None,
        *,
        ended: bool = True,
        greedy: bool = True,
    ) -> Visitor:
        visitor = Visitor(greedy)
        request = Open(f"r{next(self._numbers)}", method, path, headers or [], "192.0.2.1")
        visitor.stream = self.server.open(request, visitor, ended=ended)
        return visitor

    async def get(self, path: str = "/", headers: Headers | None = None, method: str = "GET") -> Visitor:
        return await self.open(method, path, headers).finished()
