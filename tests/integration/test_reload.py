"""A changed file applied to daemons that run: what changes in place, what waits, and what a bad file does not do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running import (
    Book,
    agent_settings,
    book,
    descriptors,
    port_of,
    running_agent,
    running_server,
    settled,
    tasks,
    url_of,
    written,
)
from tests.support.sockets import LOOPBACK
from tests.support.tunnelled import read_head, reply, serving
from tunneld.errors import ConfigError
from tunneld.server.daemon import ServerDaemon
from tunneld.telemetry import logs

BOUNDS = {"heartbeat": {"min": 0.05}, "sse": {"min": 0.05}}


@pytest.fixture
def lines() -> Any:
    before = logging.getLogger().level
    with book() as made:
        yield made
    logging.getLogger().setLevel(before)


@pytest.fixture
async def quiet() -> AsyncIterator[str]:
    """A service of event streams that say one thing and then nothing; ``/plain`` is answered whole."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        if head.startswith(b"GET /plain"):
            writer.write(reply(b"plain"))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: hello\n\n")
            await reader.read()

    async with serving(handler) as address:
        yield address


class Stream:
    """An open event stream of a visitor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(mark)

    def silent(self) -> bool:
        return bytes(self.reader._buffer) in (b"", b"\r\n")  # type: ignore[attr-defined]


async def stream(server: ServerDaemon, path: str = "/t/app/events") -> Stream:
    reader, writer = await asyncio.open_connection(LOOPBACK, port_of(server))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
    opened = Stream(reader, writer)
    await opened.until(b"data: hello\n\n")
    return opened


async def up(lines: Book, count: int = 1, after: int = 0) -> None:
    for by in ("tunneld.tunnel", "tunneld.tunnels"):
        await lines.wait("✓ Tunnel established", by=by, count=count, after=after)


async def test_intervals_and_keepalives_change_under_an_open_stream(lines: Book, quiet: str, folder: Path) -> None:
    path = folder / "agent.yaml"
    calm = {"heartbeat": {"interval": 30, "timeout": 10}, "sse": {"keepalive": 0}}
    async with (
        running_server(**BOUNDS) as server,
        running_agent(url_of(server), quiet, path=path, **calm) as (agent, tunnel),
    ):
        await up(lines)
        visitor = await stream(server)
        (before,) = agent.exchanges()
        brisk = {"heartbeat": {"interval": 0.1, "timeout": 5}, "sse": {"keepalive": 0.1}}
        written(path, agent_settings(url_of(server), quiet, brisk))
        applied = await agent.reload()
        assert "tunnel app: changed in place" in applied.changed
        await visitor.until(b":")
        mark = lines.mark()
        await lines.wait("💓 Heartbeat acknowledged for app", count=4, after=mark)
        assert agent.exchanges() == [before]
        assert tunnel.reconnects == 0
        known = server.registry.find("app")
        assert known is not None
        assert (known.heartbeat.interval, known.keepalive) == (0.1, 0.1)
        assert tunnel.connected is not None
        assert tunnel.connected.heartbeat.interval == 0.1
        written(path, agent_settings(url_of(server), quiet, {**brisk, "sse": {"keepalive": 0}}))
        await agent.reload()
        await settled(lambda: known.keepalive == 0)
        assert agent.exchanges() == [before]
        visitor.writer.close()


async def test_the_servers_file_changes_what_holds_too(lines: Book, quiet: str, folder: Path) -> None:
    path = folder / "server.yaml"
    base = {
        "listen": {"host": LOOPBACK, "port": 0},
        "admin": False,
        "auth": {"mode": "open"},
        "store": "memory:",
        "drain_timeout": 1,
    }
    async with running_server(path=path, **BOUNDS) as server, running_agent(url_of(server), quiet) as (_, tunnel):
        await up(lines)
        visitor = await stream(server)
        assert tunnel.connected is not None
        assert tunnel.connected.heartbeat.interval == 30
        tight = {"heartbeat": {"min": 0.05, "max": 0.2}, "sse": {"min": 0.05, "max": 0.1}}
        written(path, {**base, **tight, "limits": {"max_tunnels": 1, "hold": 1}, "log": {"level": "warning"}})
        assert await server.reload() == ["heartbeat", "limits", "log", "sse"]
        assert logging.getLogger().level == logging.WARNING
        await visitor.until(b":")
        assert tunnel.connected.heartbeat.interval == 0.2
        assert tunnel.reconnects == 0
        assert server.registry._max_tunnels == 1
        assert server.ingress.limits.hold == 1
        mark = lines.mark()
        moved = {"domain": "example.org", "public_url": "http://example.org", "log": {"format": "text"}}
        written(path, {**base, **tight, **moved})
        await server.reload()
        texts = [entry.text for entry in lines.entries[mark:]]
        assert "Reloaded, but only a restart applies domain" in texts
        assert "Reloaded, but only a restart applies public_url" in texts
        assert server.config.domain is None  # nothing of it holds by half
        assert await server.reload() == ["domain", "log.format", "public_url"]  # and it is said as long as it waits
        mark = lines.mark()
        path.write_text("listen: {host: 127.0.0.1, port: nine}\nauth: {mode: opne}\n")
        with pytest.raises(ConfigError) as caught:
            await server.reload()
        assert len(caught.value.faults) == 2
        assert server.config.heartbeat.max == 0.2
        visitor.writer.close()


async def test_only_what_was_added_removed_or_pointed_elsewhere_opens_or_closes(
    lines: Book, quiet: str, folder: Path
) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(reply(b"other"))

    path = folder / "agent.yaml"

    def tunnels(**services: str) -> dict[str, Any]:
        return {"tunnels": [{"name": name, "service": service} for name, service in services.items()]}

    async with (
        serving(other) as elsewhere,
        running_server(limits={"hold": 5}) as server,
        running_agent(url_of(server), quiet, path=path, **tunnels(app=quiet, moves=quiet, goes=quiet)) as (
            agent,
            tunnel,
        ),
        httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port_of(server)}") as client,
    ):
        await up(lines, 3)
        visitor = await stream(server)
        gone = await stream(server, "/t/goes/events")
        mark = lines.mark()
        written(path, agent_settings(url_of(server), quiet, tunnels(app=quiet, moves=elsewhere, comes=elsewhere)))
        applied = await agent.reload()
        assert applied.changed == [
            "tunnel goes: closed",
            f"tunnel moves: points to {elsewhere} now",
            "tunnel comes: opened",
        ]
        assert not applied.restart
        await lines.wait("✓ Tunnel established: comes", by="tunneld.tunnels", after=mark)
        await lines.wait("✓ Tunnel established: moves", by="tunneld.tunnels", after=mark)
        assert (await client.get("/t/moves/plain")).text == "other"
        assert (await client.get("/t/comes/plain")).text == "other"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await gone.until(b"never")
        entry = await lines.wait("🧹 Cleaned up stream", by="tunneld.ingress", after=mark)
        assert entry.fields["reason"] == "shutdown"
        assert [one.name for one in agent.tunnels] == ["app", "moves", "comes"]
        assert tunnel.reconnects == 0
        assert len(agent.exchanges("app")) == 1
        assert visitor.silent()
        visitor.writer.close()
        gone.writer.close()


BAD = [
    ("tunnels: [{name: app, service: 'ftp://x'}]\n", 2),  # no server either
    ("server: {url: ws://127.0.0.1:1}\ntunels: []\n", 1),
    ("server: [\n", 1),
    ("", 1),
    (
        "server: {url: ws://127.0.0.1:1, token_file: /nonexistent/token}\ntunnels: [{name: a, service: 'http://h:1'}]\n",
        1,
    ),
    (
        "server: {url: ws://127.0.0.1:1}\ntunnels: [{name: a, service: 'http://h:1'}]\nlog: {audit: /nonexistent/a}\n",
        1,
    ),
]


@pytest.mark.parametrize(("text", "least"), BAD)
async def test_a_bad_file_changes_nothing(lines: Book, quiet: str, folder: Path, text: str, least: int) -> None:
    path = folder / "agent.yaml"
    async with running_server() as server, running_agent(url_of(server), quiet, path=path) as (agent, tunnel):
        await up(lines)
        visitor = await stream(server)
        before = agent.config
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            await agent.reload()
        assert len(caught.value.faults) >= least
        assert agent.config is before
        assert [one.name for one in agent.tunnels] == ["app"]
        assert tunnel.state == "online"
        assert len(agent.exchanges()) == 1
        path.unlink()
        with pytest.raises(ConfigError):
            await agent.reload()
        visitor.writer.close()


async def test_a_trail_that_cannot_be_written_is_refused_by_the_server_too(folder: Path) -> None:
    path = folder / "server.yaml"
    async with running_server(path=path) as server:
        before = server.config
        base = {"listen": {"host": LOOPBACK, "port": 0}, "admin": False, "auth": {"mode": "open"}, "store": "memory:"}
        written(path, {**base, "log": {"audit": "/nonexistent/a"}})
        with pytest.raises(ConfigError, match=r"log\.audit: /nonexistent/a: cannot be written"):
            await server.reload()
        assert server.config is before


async def test_another_server_or_token_is_dialled(lines: Book, quiet: str, folder: Path) -> None:
    path, token = folder / "agent.yaml", folder / "token"
    token.write_text("one\n")
    token.chmod(0o600)
    async with (
        running_server() as first,
        running_server() as second,
        running_agent(url_of(first), quiet, path=path, server={"token_file": str(token)}) as (agent, tunnel),
    ):
        await up(lines)
        token.write_text("two\n")
        applied = await agent.reload()
        assert applied.changed == ["server: every tunnel dials anew"]
        await up(lines, 2)
        assert not (await agent.reload()).changed
        settings = agent_settings(url_of(second), quiet, {"server": {"token_file": str(token)}})
        written(path, settings)
        await agent.reload()
        await up(lines, 3)
        assert second.registry.find("app").online  # type: ignore[union-attr]
        await settled(lambda: not first.connections)
        assert tunnel.reconnects == 2


async def test_what_waits_is_said_each_time(lines: Book, quiet: str, folder: Path) -> None:
    path = folder / "agent.yaml"
    async with running_server() as server, running_agent(url_of(server), quiet, path=path) as (agent, _):
        waits = {"control": {"socket": "/nonexistent/other.sock"}, "resume": {"grace": 5}}
        waits["log"] = {"level": "error", "format": "text"}
        written(path, agent_settings(url_of(server), quiet, waits))
        applied = await agent.reload()
        assert applied.restart == ["control", "log.format"]
        assert applied.changed == ["log", "resume: holds for a tunnel from its next session on"]
        assert logging.getLogger().level == logging.ERROR
        assert (await agent.reload()).restart == ["control", "log.format"]
        logs.set_level("debug")  # an operator's, until the next reload
        await agent.reload()
        assert logging.getLogger().level == logging.ERROR


async def test_without_a_file_there_is_nothing_to_reload(quiet: str) -> None:
    async with running_server() as server, running_agent(url_of(server), quiet) as (agent, _):
        for daemon in (agent, server):
            with pytest.raises(ConfigError):
                await daemon.reload()  # type: ignore[attr-defined]


async def test_a_hundred_reloads_leave_nothing_behind(lines: Book, quiet: str, folder: Path) -> None:
    path = folder / "agent.yaml"
    async with running_server(**BOUNDS) as server, running_agent(url_of(server), quiet, path=path) as (agent, tunnel):
        await up(lines)
        visitor = await stream(server)
        await lines.until(lambda: tunnel.state == "online")
        await settled(lambda: len(agent._running) == 1)
        one = {"sse": {"keepalive": 20}, "tunnels": [{"name": "app", "service": quiet}]}
        two = {
            "sse": {"keepalive": 10},
            "reconnect": {"initial": 0.02},
            "tunnels": [
                {"name": "app", "service": quiet, "service_check": {"interval": 60}},
                {"name": "b", "service": quiet},
            ],
        }
        written(path, agent_settings(url_of(server), quiet, one))
        await agent.reload()
        before = len(tasks()), descriptors()
        for number in range(100):
            written(path, agent_settings(url_of(server), quiet, one if number % 2 else two))
            await agent.reload()
            if number % 10 == 0:
                await asyncio.sleep(0.05)
        known = server.registry.find("app")
        assert known is not None
        await settled(lambda: known.keepalive == 20)
        await settled(lambda: len(server.connections) == 1)
        async with asyncio.timeout(5):
            while len(tasks()) > before[0] or descriptors() > before[1]:
                await asyncio.sleep(0.02)
        assert len(agent.exchanges()) == 1
        assert visitor.silent()
        visitor.writer.close()
