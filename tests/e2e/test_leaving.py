"""A daemon is told to go while all that it can carry is under way, and all that it tells of hangs: it goes in time.

Behind it stand a download and an upload that stall, streams of events over TCP, TLS and a Unix socket, a WebSocket, a
client of the older dialect, a slow request, half a head, a visitor who waits for a tunnel that is away, a reader that
reads nothing, readers of events and of one stream, `top`, both dashboards' feeds, a collector of traces that hangs,
alerts that are tried again, hang, and run a program that does not want to end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.authority import Authority
from tests.support.daemons import Agent, Server
from tests.support.forward_proxies import forward_proxy
from tests.support.legacy_client import forwarding
from tests.support.otlp import Collector
from tests.support.processes import Process, eventually, python_module
from tests.support.receivers import Hook, hooked
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_port, free_ports
from tests.support.terminal import Terminal
from tests.support.tunnelled import read_head, serving
from tests.support.usage import tree
from tests.support.visitors import Curl, RawVisitor, request_id
from tests.support.ws_raw import RawSocket, raw_client, raw_service

pytestmark = pytest.mark.timeout(120)

DRAIN = 1.0
#: Seconds beyond it that everything may take to be ended: the units give ten more than `drain_timeout`.
MORE = 9.0
ABORTED = (18, 56)
_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

#: A program that is told of alerts: it wants to stay, and so does what it started.
_STAYS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
with open(f"{sys.argv[1]}/{os.getpid()}", "w"):
    pass
time.sleep(600)
"""


class World:
    """Both daemons with all that hangs on them."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.programs = folder / "programs"
        self.temporary = folder / "tmp"
        for path in (self.programs, self.temporary):
            path.mkdir()
        self.authority = Authority(folder / "ca")
        self.hook = Hook()
        self.curls: dict[str, Curl] = {}
        self.tools: dict[str, Process] = {}
        self.streams: list[tuple[SampleService, str]] = []
        stack.callback(self._end_programs)

    async def build(self) -> None:
        """All programs, each seen at its work."""
        self.service = await self._own(lambda: SampleService())
        self.local = await self._own(lambda: SampleService(unix=str(self.folder / "app.sock")))
        made = self.authority.issue("here", f"IP:{LOOPBACK}", "DNS:localhost")
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(made.cert, made.key)
        collector = Collector("hangs")
        self.stack.callback(collector.stop)
        hooks = await asyncio.start_server(self.hook.serve, LOOPBACK, 0)
        self.stack.callback(hooks.close)
        self.hook.port, self.hook.answers = hooks.sockets[0].getsockname()[1], ["500 no"]
        alerts = await self._alerts()
        self.port, secure = free_ports(2)
        self.listener = self.folder / "server.sock"
        tls = {"cert": str(made.cert), "key": str(made.key)}
        listen: list[dict[str, Any]] = [
            {"host": LOOPBACK, "port": self.port},
            {"host": LOOPBACK, "port": secure, "tls": tls},
            {"unix": str(self.listener)},
        ]
        otlp = {"otlp": collector.url, "timeout": 30}
        common = {"drain_timeout": DRAIN, "telemetry": otlp, "alerts": alerts}
        settings = {**common, "listen": listen, "limits": {"hold": 60, "stall": 0}}
        self.server = await asyncio.to_thread(lambda: Server(self.folder, settings=settings, ports=(self.port, secure)))
        self.stack.callback(self.server.process.discard)
        self.through = await self.stack.enter_async_context(forward_proxy(secure))
        await self._agent(f"wss://localhost:{secure}", common)
        self.legacy = await self.stack.enter_async_context(
            forwarding(f"http://{LOOPBACK}:{self.port}", self.service.url, "old one")
        )

    async def _own(self, make: Any) -> Any:
        made = await asyncio.to_thread(make)
        self.stack.push_async_callback(asyncio.to_thread, made.stop)
        return made

    async def _alerts(self) -> list[dict[str, Any]]:
        """Everything that can be told of, and every receiver that holds one up."""

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.mail.set()
            await reader.read()

        self.mail = asyncio.Event()
        address = await self.stack.enter_async_context(serving(silent))
        smtp = address.replace("http", "smtp")
        program = [sys.executable, "-c", _STAYS, str(self.programs)]
        to = [
            hooked(self.hook),
            {"email": "ops@example.org", "smtp": smtp, "timeout": 60},
            {"command": program, "timeout": 60},
        ]
        return [{"when": "service_failing", "for": 0, "group": 0, "to": to}]

    async def _agent(self, url: str, common: dict[str, Any]) -> None:
        async def socket_(raw: RawSocket) -> None:
            while await raw.receive() is not None:
                raw.send(0x81, b"again")

        async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_head(reader)
            writer.write(_EVENTS + b"d\r\ndata: hello\n\n\r\n")
            await reader.read()

        sockets = await self.stack.enter_async_context(raw_service(socket_))
        secured = await self.stack.enter_async_context(serving(events, ssl=self.context))
        tunnels = {
            "app": {"service": self.service.url, "inspect": True},
            "local": self.local.url,
            "ws": sockets,
            "secure": secured.replace("http:", "https:").replace("127.0.0.1", "localhost"),
            "failing": {
                "service": f"http://{LOOPBACK}:{free_port()}",
                "service_check": {"interval": "500ms", "timeout": "500ms"},
            },
        }
        self.metrics = free_port()
        self.read_only = self.folder / "read.sock"
        over = {
            **common,
            "server": {
                "url": url,
                "ca_file": str(self.authority.cert),
                "proxy": f"http://{LOOPBACK}:{self.through.port}",
            },
            "control": {"readonly_socket": str(self.read_only)},
            "metrics": {"listen": f"{LOOPBACK}:{self.metrics}"},
        }
        self.agent = await asyncio.to_thread(lambda: Agent(self.folder, self.server, tunnels, settings=over))
        self.stack.callback(self.agent.process.discard)

    # -- what is under way

    def curl(self, name: str, url: str, *options: str) -> Curl:
        made = self.curls[name] = Curl(url, *options)
        self.stack.callback(made.discard)
        return made

    def tool(self, name: str, *words: str) -> Process:
        made = Process(python_module("tunnelctl", "--socket", str(self.agent.socket), *words), name=name)
        self.tools[name] = made
        self.stack.callback(made.discard)
        return made

    def raw(self) -> RawVisitor:
        made = RawVisitor(self.port, receive_buffer=4096)
        self.stack.callback(made.leave)
        return made

    def visit(self) -> None:
        """Visitors of every kind; in a thread."""
        accept = ("-H", "Accept: text/event-stream")
        for name, service, path in (("app", self.service, "events"), ("local", self.local, "quiet")):
            self.curl(name, self.server.url(name, f"/{path}?id={name}&n=0&gap=0.05"), *accept).wait_line("data: ")
            self.streams.append((service, name))
        self.curl("secure", self.server.url("secure", "/sse"), *accept).wait_line("data: hello")
        old = self.legacy.tunnel_id
        self.curl("old", self.server.url(old, "/quiet?x=/sse&id=old"), *accept).wait_line("data: hello")
        self.streams.append((self.service, "old"))
        self.curl("slow", self.server.url("app", "/slow?s=600&id=slow"))
        self.service.wait_open("slow")
        self.streams.append((self.service, "slow"))
        unix = ("--unix-socket", str(self.listener))
        self.curl("unix", "http://localhost/t/app/quiet?id=unix", *accept, *unix).wait_line("data: hello")
        self.streams.append((self.service, "unix"))
        self.download = self.raw()
        self.download.get("/t/app/bytes?n=200000000")
        self.download.read_until(b"\r\n\r\n")
        upload = self.raw()
        upload.send(b"POST /t/app/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 100_000)
        self.raw().send(b"GET /t/app/small HTTP/1.1\r\nHos")
        behind = self.raw()
        behind.send(b"GET /t/app/slow?s=600&id=behind HTTP/1.1\r\nHost: x\r\n\r\nGET /t/app/small HTTP/1.1\r\nHo")
        self.service.wait_open("behind")
        self.streams.append((self.service, "behind"))

    async def visit_socket(self) -> None:
        """A WebSocket through the tunnel."""
        self.web_socket = await raw_client(f"ws://{LOOPBACK}:{self.port}/t/ws/x")
        self.stack.callback(self.web_socket.abort)
        self.web_socket.send(0x81, b"hello")
        assert (await self.web_socket.receive()) is not None

    async def watch(self) -> None:
        """Operators of every kind."""
        events, tail = self.tool("events", "events"), self.tool("tail", "tail", self._id("app"))
        await asyncio.to_thread(tail.wait_line, "event", timeout=20)
        await asyncio.to_thread(eventually, lambda: self._asked(events), timeout=20, what="telling of a request")
        for name, base in (
            ("feed of the server", f"http://{LOOPBACK}:{self.server.admin_port}"),
            ("feed of the agent", f"http://{LOOPBACK}:{self.metrics}"),
        ):
            feed = self.curl(name, f"{base}/dashboard/feed")
            await asyncio.to_thread(feed.wait_line, "data: ")
        unread = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        unread.connect(str(self.read_only))
        unread.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        half = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        half.connect(str(self.agent.socket))
        half.sendall(b"POST /v1/streams/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{")
        self.screen = Terminal()
        self.stack.callback(self.screen.close)
        self.stack.push_async_callback(self._over)
        self.top = await self.screen.run("tunnelctl", "top", "--socket", str(self.agent.socket))
        await self.screen.until("quiet")
        self.tool("a test of the alerts", "alerts", "test")

    async def _over(self) -> None:
        if self.top.returncode is None:
            self.top.kill()
        await self.top.wait()

    def _asked(self, events: Process) -> object:
        assert httpx.get(self.server.url("app", "/small"), timeout=20).status_code == 200
        return events.matching("stream")

    def _id(self, name: str) -> str:
        return request_id(self.curls[name].head())

    async def hang(self) -> None:
        """Every receiver of alerts has been asked, and holds its message; both daemons run their program.

        The agent does so twice: for a test of its alerts as well. Each has started another.
        """
        async with asyncio.timeout(30):
            await self.hook.until(3)
            await self.mail.wait()
        await asyncio.to_thread(
            eventually, lambda: len(self.running()) >= 6, timeout=20, what="running the programs of both"
        )

    def running(self) -> list[int]:
        """Programs of alerts that live, and what they started."""
        mine = str(self.programs).encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mine in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it went
                pass
        return found

    def _end_programs(self) -> None:
        """Those of a daemon that was killed outlive it."""
        for pid in self.running():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        made = World(folder, stack)
        monkeypatch.setenv("SSL_CERT_FILE", str(made.authority.cert))
        monkeypatch.setenv("TMPDIR", str(made.temporary))
        await made.build()
        await asyncio.to_thread(made.visit)
        await made.visit_socket()
        await made.watch()
        await made.hang()
        yield made


def leave(process: Process) -> None:
    """It is told to go, and goes in time, well, and with a word of why; in a thread."""
    process.signal(signal.SIGTERM)
    process.wait(DRAIN + MORE)
    process.assert_clean()
    assert process.matching(f"Stopping: open streams have {DRAIN:g} s to end."), process.tail()
    assert process.matching("Stopped."), process.tail()
    assert not process.matching('"level":"error"'), process.tail(80)
    assert not process.matching('"level":"critical"'), process.tail(80)
    lines = [json.loads(line.text) for line in process.matching("🧹 Cleaned up stream")]
    reasons = {line["reason"] for line in lines}
    assert reasons <= {"done", "shutdown", "peer_lost", "visitor"}, reasons


async def ended(world: World) -> None:
    """Whoever hung on them knows of their end; nothing is left behind."""
    for name, curl in world.curls.items():
        status = await asyncio.to_thread(curl.wait)
        assert name == "slow" or name.startswith("feed") or status in ABORTED, (name, status, curl.tail())
    for service, stream in world.streams:
        await asyncio.to_thread(service.wait_closed, stream)
    assert await world.web_socket.until_end() is not None
    with pytest.raises((ConnectionError, TimeoutError)):  # a body that was cut is no body that ended
        await asyncio.to_thread(world.download.read_all)
    for name, status in (("events", 3), ("tail", 0), ("a test of the alerts", 1)):
        tool = world.tools[name]
        assert await asyncio.to_thread(tool.wait) in (status, 3), tool.tail()
        assert not tool.tracebacks(), tool.tail()
    world.screen.type("q")
    assert await world.top.wait() == 0
    assert "Traceback" not in world.screen.shown
    assert not world.running()
    assert [path.name for path in world.folder.glob("*.sock")] == ["app.sock"]  # which is the service's
    assert not list(world.temporary.iterdir())


@pytest.mark.parametrize("first", ["agent", "server"])
async def test_each_leaves_and_so_does_the_other(world: World, first: str) -> None:
    both = [world.agent.process, world.server.process]
    for process in both if first == "agent" else reversed(both):
        await asyncio.to_thread(leave, process)
    await ended(world)


async def test_an_agent_leaves_whose_server_is_silent(world: World) -> None:
    world.server.process.pause()
    await asyncio.to_thread(leave, world.agent.process)
    world.server.process.resume()
    await asyncio.to_thread(leave, world.server.process)
    await ended(world)


async def test_a_server_leaves_that_waits_for_its_agent(world: World) -> None:
    """Sessions are kept, and visitors held, for an agent that was killed."""
    orphans = set(world.running()) & set(tree(world.agent.process.pid))
    world.agent.process.kill()
    await asyncio.to_thread(lambda: world.server.process.wait_line("the connection was lost", count=5))
    await asyncio.to_thread(leave, world.server.process)
    for name in ("app", "local", "secure", "unix", "old"):
        assert await asyncio.to_thread(world.curls[name].wait) in ABORTED
    assert orphans
    assert set(world.running()) == orphans  # of the agent, which could do nothing any more
