"""Real daemons in this process on ports of their own, what they log, and a wire between them that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import yaml

from tests.support.daemons import merged
from tests.support.sockets import LOOPBACK
from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.tunnel import AgentTunnel
from tunneld.config.agent import AgentConfig
from tunneld.config.load import load_agent, load_server
from tunneld.config.server import ServerConfig
from tunneld.server.daemon import ServerDaemon

__all__ = [
    "Book",
    "Relay",
    "agent_settings",
    "book",
    "descriptors",
    "port_of",
    "relay",
    "running_agent",
    "running_server",
    "settled",
    "tasks",
    "url_of",
    "written",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log."""

    logger: str
    level: int
    text: str
    fields: dict[str, Any]
    at: float


class Book(logging.Handler):
    """All lines of this process, and a way to wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self._news = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.entries.append(Entry(record.name, record.levelno, record.getMessage(), record.__dict__, monotonic()))
        self._news.set()

    def find(self, text: str, *, by: str | None = None, after: int = 0) -> list[Entry]:
        """Lines from the mark on that hold the text, of one logger if wanted."""
        return [entry for entry in self.entries[after:] if text in entry.text and by in (None, entry.logger)]

    def mark(self) -> int:
        return len(self.entries)

    async def wait(self, text: str, *, by: str | None = None, after: int = 0, count: int = 1) -> Entry:
        """The `count`th such line."""
        await self.until(lambda: len(self.find(text, by=by, after=after)) >= count)
        return self.find(text, by=by, after=after)[count - 1]

    async def until(self, done: Callable[[], object], timeout: float = 12) -> None:
        """Wait for a state that comes with some line of the log."""
        try:
            async with asyncio.timeout(timeout):
                while not done():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError("not seen:\n" + "\n".join(entry.text for entry in self.entries[-30:])) from None


@contextlib.contextmanager
def book() -> Any:
    """A `Book` of everything from debug on."""
    made = Book()
    root = logging.getLogger("tunneld")
    before = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(made)
    try:
        yield made
    finally:
        root.removeHandler(made)
        root.setLevel(before)


def tasks() -> set[asyncio.Task[Any]]:
    """Tasks of this loop other than the present one."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def settled(done: Callable[[], object]) -> None:
    """Let the loop turn until `done`: for what nobody is told of."""
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0)


def port_of(server: ServerDaemon, index: int = 0) -> int:
    """The TCP port of a listener."""
    return int(server.listening[index][1].rpartition(":")[2])


def url_of(server: ServerDaemon) -> str:
    """What an agent dials."""
    return f"ws://{LOOPBACK}:{port_of(server)}"


@asynccontextmanager
async def running_server(*, path: Path | None = None, **settings: Any) -> AsyncIterator[ServerDaemon]:
    """A server; at the end nothing of it may be left."""
    base: dict[str, Any] = {
        "listen": {"host": LOOPBACK, "port": 0},
        "admin": False,
        "auth": {"mode": "open"},
        "store": "memory:",
        "drain_timeout": 1,
    }
    whole = merged(base, settings)
    config = ServerConfig(**whole) if path is None else load_server(written(path, whole))
    server = ServerDaemon(config, str(path) if path else None)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        assert not server.connections
        assert not server.ingress.exchanges
        assert not server.ingress.connections
        for tunnel in server.registry.all():
            assert tunnel.connection is None
            assert not tunnel.online


def agent_settings(url: str, service: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The keys of an agent's file with one tunnel, ``app``, and `settings` laid over them."""
    base: dict[str, Any] = {
        "server": {"url": url},
        "reconnect": {"initial": 0.05, "max": 5},
        "tunnels": [{"name": "app", "service": service}],
        "control": {"socket": "/nonexistent/control.sock"},
    }
    return merged(base, settings)


def written(path: Path, settings: dict[str, Any]) -> str:
    """Write a configuration file; returns its path."""
    path.write_text(yaml.safe_dump(settings))
    path.chmod(0o600)
    return str(path)


@asynccontextmanager
async def running_agent(
    url: str, service: str = "http://127.0.0.1:9", /, *, path: Path | None = None, **settings: Any
) -> AsyncIterator[tuple[AgentDaemon, AgentTunnel]]:
    """An agent with the tunnel ``app``; at the end nothing of it may be left."""
    whole = agent_settings(url, service, settings)
    config = AgentConfig(**whole) if path is None else load_agent(written(path, whole))
    agent = AgentDaemon(config, str(path) if path else None)
    await agent.start()
    tunnel = agent.tunnels[0]
    try:
        yield agent, tunnel
    finally:
        await agent.stop()
        assert not agent.tunnels
        assert tunnel.state == "closed"
        assert not tunnel.proxy.exchanges


class Relay:
    """Passes bytes between its clients and a port, until it is told to let them vanish."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.accepted: list[float] = []
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def blackhole(self) -> float:
        """Pass nothing on and keep both sockets open; returns when."""
        self._open.clear()
        return monotonic()

    def restore(self) -> None:
        """Pass bytes on again, those that were held first."""
        self._open.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted.append(monotonic())
        try:
            there, back = await asyncio.open_connection(LOOPBACK, self.target)
            self._writers |= {writer, back}
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, back))
                    group.create_task(self._pass(there, writer))
            finally:
                for each in (writer, back):
                    self._writers.discard(each)
                    each.transport.abort()
        except* (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        await self._open.wait()
        writer.transport.abort()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def relay(target: int) -> AsyncIterator[Relay]:
    """A running `Relay` to a port of loopback."""
    made = Relay(target)
    server = await asyncio.start_server(made.serve, LOOPBACK, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))
