"""Both daemons with all that can be under way and all that they tell of, every receiver of which hangs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

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

__all__ = ["DRAIN", "World", "leave"]

DRAIN = 1.0
#: Seconds beyond it that everything may take to be ended: the units give ten more than `drain_timeout`.
MORE = 9.0
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
    """Both daemons with all that hangs on them.

    Args:
        folder: empty; all that the daemons make is made in it.
        stack: ends what was started.
        way: scheme of the proxy that the agent dials through.
        held: the server's TCP ports are held over its restarts, as systemd does.
        succession: whoever starts the daemons gives them `runtime` to leave there what a successor needs.
    """

    def __init__(
        self,
        folder: Path,
        stack: AsyncExitStack,
        *,
        way: str = "http",
        held: bool = False,
        succession: bool = False,
    ) -> None:
        self.folder, self.stack = folder, stack
        self.way, self._held, self.succession = way, held, succession
        self.programs = folder / "programs"
        self.temporary = folder / "tmp"
        self.runtime = folder / "run"
        for path in (self.programs, self.temporary, self.runtime):
            path.mkdir(0o700)
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
        self.context = self.authority.context("here", f"IP:{LOOPBACK}", "DNS:localhost")
        collector = Collector("hangs")
        self.stack.callback(collector.stop)
        hooks = await asyncio.start_server(self.hook.serve, LOOPBACK, 0)
        self.stack.callback(hooks.close)
        self.hook.port, self.hook.answers = hooks.sockets[0].getsockname()[1], ["500 no"]
        alerts = await self._alerts()
        held = self._hold() if self._held else []
        self.port, secure = [sock.getsockname()[1] for sock in held] or free_ports(2)
        self.listener = self.folder / "server.sock"
        tls = {"cert": str(self.authority.folder / "here.pem"), "key": str(self.authority.folder / "here.key")}
        listen: list[dict[str, Any]] = [
            {"host": LOOPBACK, "port": self.port},
            {"host": LOOPBACK, "port": secure, "tls": tls},
            {"unix": str(self.listener)},
        ]
        otlp = {"otlp": collector.url, "timeout": 30}
        common = {"drain_timeout": DRAIN, "telemetry": otlp, "alerts": alerts}
        settings = {**common, "listen": listen, "limits": {"hold": 60, "stall": 0}}
        ports = (self.port, secure)
        self.server = await asyncio.to_thread(lambda: Server(self.folder, settings=settings, ports=ports, held=held))
        self.stack.callback(lambda: self.server.process.discard())  # the one that is there by then
        behind_tls = self.context if self.way == "https" else None
        self.through = await self.stack.enter_async_context(forward_proxy(secure, tls=behind_tls))
        await self._agent(f"wss://localhost:{secure}", common)
        assert {how.split()[0] for how, _, _ in self.through.asked} == {"SOCKS5" if "socks" in self.way else "CONNECT"}
        await self.dial_as_of_old()

    def _hold(self) -> list[socket.socket]:
        return [self.stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(2)]

    async def dial_as_of_old(self) -> None:
        """A client of the older dialect, connected."""
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
                "proxy": f"{self.way}://localhost:{self.through.port}",
            },
            "control": {"readonly_socket": str(self.read_only)},
            "metrics": {"listen": f"{LOOPBACK}:{self.metrics}"},
        }
        self.agent = await asyncio.to_thread(lambda: Agent(self.folder, self.server, tunnels, settings=over))
        self.stack.callback(lambda: self.agent.process.discard())

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

    def visit(self, turn: str = "") -> None:
        """Visitors of every kind; in a thread. `turn` tells their streams from those of visitors before them."""
        accept = ("-H", "Accept: text/event-stream")
        for name, service, path in (("app", self.service, "events"), ("local", self.local, "quiet")):
            self.curl(name, self.server.url(name, f"/{path}?id={name}{turn}&n=0&gap=0.05"), *accept).wait_line("data: ")
            self.streams.append((service, name + turn))
        self.curl("secure", self.server.url("secure", "/sse"), *accept).wait_line("data: hello")
        old = self.legacy.tunnel_id
        self.curl("old", self.server.url(old, f"/quiet?x=/sse&id=old{turn}"), *accept).wait_line("data: hello")
        self.streams.append((self.service, "old" + turn))
        self.curl("slow", self.server.url("app", f"/slow?s=600&id=slow{turn}"))
        self.service.wait_open("slow" + turn)
        self.streams.append((self.service, "slow" + turn))
        unix = ("--unix-socket", str(self.listener))
        self.curl("unix", f"http://localhost/t/app/quiet?id=unix{turn}", *accept, *unix).wait_line("data: hello")
        self.streams.append((self.service, "unix" + turn))
        self.download = self.raw()
        self.download.get("/t/app/bytes?n=200000000")
        self.download.read_until(b"\r\n\r\n")
        upload = self.raw()
        upload.send(b"POST /t/app/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 100_000)
        self.raw().send(b"GET /t/app/small HTTP/1.1\r\nHos")
        behind = self.raw()
        slow = f"GET /t/app/slow?s=600&id=behind{turn} HTTP/1.1\r\nHost: x\r\n\r\n"
        behind.send(slow.encode() + b"GET /t/app/small HTTP/1.1\r\nHo")
        self.service.wait_open("behind" + turn)
        self.streams.append((self.service, "behind" + turn))

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
        for whose in ("server", "agent"):
            await self.follow(whose)
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

    async def follow(self, whose: str) -> None:
        """The feed of a daemon's dashboard."""
        port = self.server.admin_port if whose == "server" else self.metrics
        feed = self.curl(f"feed of the {whose}", f"http://{LOOPBACK}:{port}/dashboard/feed")
        await asyncio.to_thread(feed.wait_line, "data: ")

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
        await asyncio.to_thread(self.run_programs)

    def run_programs(self) -> None:
        """Both daemons run theirs; in a thread."""
        eventually(lambda: len(self.of(self.agent.process)) >= 4, timeout=20, what="run by the agent")
        eventually(lambda: len(self.of(self.server.process)) >= 2, timeout=20, what="run by the server")

    def files(self) -> set[str]:
        """What the daemons, and the services, have in the folder beside what they were given."""
        given = {"ca", "programs", "tmp", "run", "server.yaml", "agent.yaml"}
        return {path.name for path in self.folder.iterdir()} - given

    def of(self, process: Process) -> set[int]:
        """Programs of alerts that live and descend from this daemon."""
        return set(self.running()) & set(tree(process.pid))

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


def leave(process: Process, tell: Callable[[], object] | None = None) -> None:
    """It is told to go, and goes in time, well, and with a word of why; in a thread. `tell` None: by SIGTERM."""
    if tell is None:
        process.signal(signal.SIGTERM)
    else:
        tell()
    process.wait(DRAIN + MORE)
    process.assert_clean()
    assert process.matching(f"Stopping: open streams have {DRAIN:g} s to end."), process.tail()
    assert process.matching("Stopped."), process.tail()
    assert not process.matching("ResourceWarning"), process.tail(80)
    assert not process.matching('"level":"error"'), process.tail(80)
    assert not process.matching('"level":"critical"'), process.tail(80)
    lines = [json.loads(line.text) for line in process.matching("🧹 Cleaned up stream")]
    reasons = {line["reason"] for line in lines}
    assert reasons <= {"done", "shutdown", "peer_lost", "visitor"}, reasons
