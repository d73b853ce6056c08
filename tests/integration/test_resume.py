"""A tunnel that drops, resumes with the byte that was next: real daemons, a relay that fails as networks do."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import FaultyRelay
from tests.support.sockets import short_dir
from tunneld.agent.daemon import AgentDaemon
from tunneld.config.agent import AgentConfig
from tunneld.config.server import ServerConfig
from tunneld.server.daemon import ServerDaemon

CHUNK = 8192


def block(number: int) -> bytes:
    """The bytes of one place of a body: different at each."""
    return hashlib.sha256(str(number).encode()).digest() * (CHUNK // 32)


class Bench:
    """A server, an agent behind a relay, and a service of raw asyncio."""

    server: ServerDaemon
    agent: AgentDaemon
    relay: FaultyRelay
    port: int

    def __init__(self) -> None:
        self.service_connections = 0
        self.handlers: set[asyncio.Task[None]] = set()
        self.visitors: list[asyncio.StreamWriter] = []
        self.serving: set[asyncio.Task[None] | None] = set()
        self.uploads: list[str] = []
        self.events_every = 0.01
        self.aborted = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.service_connections += 1
        task = asyncio.current_task()
        self.serving.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.serving.discard(task)
            writer.transport.abort()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = head.split(b" ", 2)[1].decode()
        if path.startswith("/sse"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            number = 0
            while True:
                writer.write(f"id: {number}\ndata: {number}\n\n".encode())
                await writer.drain()
                number += 1
                await asyncio.sleep(self.events_every)
                if writer.transport.is_closing():
                    self.aborted += 1
                    return
        elif path.startswith("/down"):
            blocks = int(path.rpartition("/")[2])
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {blocks * CHUNK}\r\n\r\n".encode())
            for number in range(blocks):
                writer.write(block(number))
                await writer.drain()
        elif path.startswith("/up"):
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            seen = hashlib.sha256()
            while size:
                data = await reader.read(min(65536, size))
                if not data:
                    raise ConnectionError
                seen.update(data)
                size -= len(data)
            digest = seen.hexdigest().encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest)
        elif path.startswith("/poll"):
            await asyncio.sleep(0.5)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npoll")
        await writer.drain()


@asynccontextmanager
async def bench(*, grace: str = "30s", **agent_settings: Any) -> AsyncIterator[Bench]:
    it = Bench()
    service = await asyncio.start_server(it.serve, "127.0.0.1", 0, backlog=1024)
    resume = {"grace": grace, "buffer": "64KiB"}
    it.server = ServerDaemon(
        ServerConfig.model_validate(
            {
                "listen": {"host": "127.0.0.1", "port": 0},
                "auth": {"mode": "open"},
                "store": "memory:",
                "resume": resume,
                "drain_timeout": 0,
                "heartbeat": {"min": "100ms"},
            }
        ),
        None,
    )
    await it.server.start()
    it.port = int(it.server.listening[0][1].rpartition(":")[2])
    with short_dir() as folder:
        async with FaultyRelay(it.port) as relay:
            it.relay = relay
            document: dict[str, Any] = {
                "server": {"url": f"ws://127.0.0.1:{relay.port}"},
                "resume": resume,
                "reconnect": {"initial": "20ms", "max": "200ms"},
                "heartbeat": {"interval": "300ms", "timeout": "200ms"},
                "control": {"socket": str(Path(folder) / "c.sock")},
                "tunnels": [{"name": "t", "service": f"http://127.0.0.1:{service.sockets[0].getsockname()[1]}"}],
                **agent_settings,
            }
            it.agent = AgentDaemon(AgentConfig.model_validate(document), None)
            await it.agent.start()
            await state(it, "online")
            try:
                yield it
            finally:
                await it.agent.stop()
                await it.server.stop()
                service.close()
                for task in list(it.handlers):
                    task.cancel()
                if it.handlers:
                    await asyncio.wait(list(it.handlers))
                for writer in it.visitors:
                    writer.transport.abort()
                for _ in range(3):  # a transport that was aborted is closed in the next turns of the loop
                    await asyncio.sleep(0)
                if left := [task for task in it.serving if task is not None]:
                    for task in left:
                        task.cancel()
                    await asyncio.wait(left)
                await asyncio.sleep(0)  # transports that were aborted go
    assert not it.server.ingress.exchanges
    assert not it.server.connections
    assert it.server.ingress.budget.held == it.agent.holders.budget.held == 0


async def state(it: Bench, wanted: str) -> None:
    """Wait until the tunnel is in this state."""
    changed = asyncio.Event()
    unsubscribe = it.agent.subscribe(lambda _: changed.set())
    try:
        async with asyncio.timeout(10):
            while it.agent.tunnels[0].state != wanted:
                changed.clear()
                await changed.wait()
    finally:
        unsubscribe()


async def request(it: Bench, method: str, path: str, body: bytes = b"") -> tuple[bytes, asyncio.StreamReader, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    it.visitors.append(writer)
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    writer.write(f"{method} /t/t{path} HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode())

    async def send() -> None:
        for start in range(0, len(body), 65536):
            writer.write(body[start : start + 65536])
            await writer.drain()

    if body:
        writer.sending = asyncio.get_running_loop().create_task(send())  # type: ignore[attr-defined]
    head = await reader.readuntil(b"\r\n\r\n")
    return head, reader, writer


async def sse(it: Bench, count: int) -> None:
    """Read so many events, each exactly one above the one before."""
    head, reader, writer = await request(it, "GET", "/sse")
    assert b" 200 " in head
    seen = 0
    while seen < count:
        line = await reader.readline()
        assert line, "the visitor's stream ended"
        if line.startswith(b"data: "):
            assert int(line[6:]) == seen, "an event was lost or doubled"
            seen += 1
    writer.close()


async def download(it: Bench, blocks: int) -> None:
    head, reader, writer = await request(it, "GET", f"/down/{blocks}")
    assert b" 200 " in head
    for number in range(blocks):
        assert await reader.readexactly(CHUNK) == block(number)
    writer.close()


async def upload(it: Bench, blocks: int) -> None:
    body = b"".join(map(block, range(blocks)))
    head, reader, writer = await request(it, "POST", "/up", body)
    assert b" 200 " in head
    assert (await reader.readexactly(64)).decode() == hashlib.sha256(body).hexdigest()
    writer.close()


async def poll(it: Bench, _: int) -> None:
    head, reader, writer = await request(it, "GET", "/poll")
    assert b" 200 " in head
    assert await reader.readexactly(4) == b"poll"
    writer.close()


KINDS: dict[str, tuple[Callable[[Bench, int], Awaitable[None]], int]] = {
    "sse": (sse, 120),
    "download": (download, 800),
    "upload": (upload, 800),
    "poll": (poll, 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["rst", "fin", "server-side", "agent-side", "blackhole", "refused a while"])
async def test_every_kind_survives_every_fault(kind: str, fault: str) -> None:
    visit, amount = KINDS[kind]
    async with bench() as it:
        it.relay.split = 1000
        it.relay.rate = 20_000_000 if kind in ("download", "upload") else 0
        visitor = asyncio.get_running_loop().create_task(visit(it, amount))
        done = asyncio.Event()
        visitor.add_done_callback(lambda _: done.set())
        faults = 0
        while not done.is_set() and faults < 6:
            try:
                async with asyncio.timeout(0.15 + 0.1 * random.random()):
                    await done.wait()
                break
            except TimeoutError:
                pass
            faults += 1
            await inflict(it, fault)
        async with asyncio.timeout(15):
            await visitor
        assert faults, "it was over before anything happened"
        assert it.agent.tunnels[0].reconnects >= 1


async def inflict(it: Bench, fault: str) -> None:
    if fault == "rst":
        it.relay.cut()
    elif fault == "fin":
        it.relay.cut(reset=False)
    elif fault == "server-side":
        it.relay.cut(ends="server")
    elif fault == "agent-side":
        it.relay.cut(ends="agent")
    elif fault == "blackhole":
        it.relay.blackhole()
        await state(it, "resuming")
        it.relay.heal()
        await state(it, "online")
    else:
        it.relay.refuse = True
        it.relay.cut()
        await asyncio.sleep(0.2)
        it.relay.refuse = False
        await state(it, "online")


async def test_a_visitor_that_leaves_during_an_outage_is_cancelled_at_the_service_after_it() -> None:
    async with bench() as it:
        _, _, writer = await request(it, "GET", "/sse")
        it.relay.refuse = True
        it.relay.cut()
        await state(it, "resuming")
        writer.transport.abort()
        while it.server.ingress.exchanges:
            await asyncio.sleep(0)
        assert it.agent.active_streams == 1
        it.relay.refuse = False
        await state(it, "online")
        async with asyncio.timeout(5):
            while it.agent.active_streams:
                await asyncio.sleep(0.01)


async def test_what_outlasts_the_grace_ends_on_both_sides() -> None:
    async with bench(grace="300ms") as it:
        _, reader, writer = await request(it, "GET", "/sse")
        it.relay.refuse = True
        it.relay.cut()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(5):
                await reader.readexactly(1 << 30)
        async with asyncio.timeout(5):
            while it.agent.active_streams:
                await asyncio.sleep(0.01)
        it.relay.refuse = False
        await state(it, "online")
        writer.close()
        await poll(it, 0)


async def test_without_grace_a_cut_ends_streams_at_once() -> None:
    async with bench(grace="0") as it:
        _, reader, writer = await request(it, "GET", "/sse")
        it.relay.cut()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(2):
                await reader.readexactly(1 << 30)
        writer.close()
