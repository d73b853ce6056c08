"""Server, agent and the sample service on loopback, in one process and with nothing to configure."""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from tunneld import lifecycle
from tunneld.agent.daemon import AgentDaemon
from tunneld.config.load import load_agent, load_server
from tunneld.control.admin.host import ServerHost
from tunneld.control.host import AgentHost
from tunneld.demo.hosting import Hosted
from tunneld.demo.service import create_app
from tunneld.errors import ConfigError
from tunneld.telemetry import logs

__all__ = ["Demo", "run"]

_LONGEST = 80  # of a folder whose socket still fits into sockaddr_un, and into a line to paste
_START = 15.0  # seconds for the tunnel to come up
_SIDES = {
    "control": "agent",
    "daemon": "demo",
    "demo": "service",
    "ingress": "server",
    "proxy": "agent",
    "tunnel": "agent",
    "tunnels": "server",
}

_SERVER = """\
listen: {{host: 127.0.0.1, port: {public}}}
public_url: http://127.0.0.1:{public}
admin: {{listen: {{host: 127.0.0.1, port: {admin}}}}}
domain: localhost
auth: {{mode: open}}
store: "memory:"
drain_timeout: 1s
log: {{level: {level}}}
"""

_AGENT = """\
server: {{url: ws://127.0.0.1:{public}}}
drain_timeout: 1s
control: {{socket: {folder}/control.sock}}
log: {{level: {level}}}
tunnels:
  - name: demo
    service: http://127.0.0.1:{service}
"""

_WORDS = """\
tunneld demo: a server, an agent and a sample service, all on this machine

Open this page:  http://127.0.0.1:{public}/t/demo/
Dashboard:       http://127.0.0.1:{admin}/dashboard

Events as they come, until Ctrl-C:
{curl}

What is connected, and how to cancel it:
{streams}
{cancel}

Ctrl-C ends all of it. The logs of all three follow.
"""


def run(*, level: logs.Level = "info", format: logs.Format = "auto") -> int:
    """Run the demo until SIGINT or SIGTERM; returns the exit status.

    Args:
        level: of the logs.
        format: of the logs.
    """
    logs.setup(level, format)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_tell_side)
    folder = _folder()
    try:
        demo = Demo(folder, level)
        return lifecycle.run(lambda: lifecycle.serve(demo, announce=demo.announce))
    except ConfigError as error:
        return lifecycle.die(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        logs.close()


class Demo:
    """All three as one daemon.

    Args:
        folder: of the configuration files and the control socket; it is the caller's to remove.
        level: of the logs, as the configuration files say it.
    """

    drain_timeout = 0.0
    """Whoever stops a demo does not want to wait for its streams."""

    def __init__(self, folder: Path, level: logs.Level = "info") -> None:
        self._folder = folder
        self._level = level
        self._stack = AsyncExitStack()
        self._agent: AgentHost | None = None
        self._server: ServerHost | None = None
        self._leave: Callable[[], None] | None = None
        self.words = ""

    async def start(self) -> None:
        """Return when the page answers through the tunnel."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def _start(self, stack: AsyncExitStack) -> None:
        service = _listen(9000)
        stack.callback(service.close)
        ports = {"service": service.getsockname()[1]}
        self._server = await self._serve(stack, ports)
        commands = _commands(ports["public"], self._folder)
        self.words = _WORDS.format(**ports, **commands)

        hosted = Hosted(create_app(commands=commands), service)
        stack.push_async_callback(hosted.stop)
        await hosted.start()

        path = self._write("tunneld.yaml", _AGENT, ports)
        self._agent = AgentHost(load_agent(path), path)
        if self._leave is not None:
            self._agent.on_leave(self._leave)
        stack.push_async_callback(self._agent.stop)
        await self._agent.start()
        await _online(self._agent.agent)

    async def _serve(self, stack: AsyncExitStack, ports: dict[str, int]) -> ServerHost:
        """Start the server on the ports that people know, or on others where somebody takes those; adds to `ports`."""
        for public, admin in ((8440, 8441), (0, 0)):
            ports |= {"public": _free_port(public), "admin": _free_port(admin)}
            path = self._write("server.yaml", _SERVER, ports)
            server = ServerHost(load_server(path), path)
            try:
                await server.start()
            except ConfigError:  # another demo that began just now was faster
                await server.stop()
                if not public:
                    raise
            else:
                break
        stack.push_async_callback(server.stop)
        return server

    def on_leave(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the agent is asked to drain and go: the demo goes with it."""
        self._leave = leave

    async def drain(self) -> None:
        """Nothing waits for a demo."""

    async def stop(self) -> None:
        """Agent, server and service, in this order."""
        await self._stack.aclose()

    async def reload(self) -> object:
        """Both files again."""
        assert self._agent is not None
        assert self._server is not None
        return [await self._server.reload(), await self._agent.reload()]

    def status_line(self) -> str:
        """One line for an operator."""
        return "demo" if self._agent is None else f"demo: {self._agent.status_line()}"

    def announce(self) -> None:
        """Say on stdout what there is to see."""
        print(self.words, flush=True)

    def _write(self, name: str, text: str, ports: dict[str, int]) -> str:
        path = self._folder / name
        path.write_text(text.format(**ports, folder=self._folder, level=self._level), encoding="utf-8")
        path.chmod(0o600)
        return str(path)


async def _online(agent: AgentDaemon) -> None:
    """Wait until the tunnel stands."""
    (tunnel,) = agent.tunnels
    changed = asyncio.Event()
    unsubscribe = agent.subscribe(lambda _: changed.set())
    try:
        async with asyncio.timeout(_START):
            while tunnel.state != "online":
                changed.clear()
                await changed.wait()
    except TimeoutError:
        fault = tunnel.last_error or "no answer"
        raise ConfigError([f"the demo's tunnel did not come up: {fault}"]) from None
    finally:
        unsubscribe()


def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="tunneld-")
    if len(folder) > _LONGEST:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="tunneld-", dir="/tmp")
    return Path(folder)


def _listen(port: int) -> socket.socket:
    """A loopback listener, on `port` if it is free."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _free_port(wanted: int) -> int:
    with _listen(wanted) as probe:
        port: int = probe.getsockname()[1]
        return port


def _commands(port: int, folder: Path) -> dict[str, str]:
    """What a user pastes into another shell, wherever that stands."""
    tunnelctl = f"{_tunnelctl()} --socket {shlex.quote(str(folder / 'control.sock'))}"
    return {
        "curl": f"curl -N http://127.0.0.1:{port}/t/demo/sse",
        "streams": f"{tunnelctl} streams",
        "cancel": f"{tunnelctl} cancel --all",
    }


def _tunnelctl() -> str:
    ours = Path(sys.executable).with_name("tunnelctl")
    if not ours.exists():
        return f"{shlex.quote(sys.executable)} -m tunnelctl"
    found = shutil.which("tunnelctl")
    if found is not None and Path(found) == ours:
        return "tunnelctl"
    return shlex.quote(str(ours))


def _tell_side(record: logging.LogRecord) -> bool:
    """Put into each record which of the three speaks: here, and only here, they share one log."""
    room = record.name.removeprefix("tunneld.").partition(".")[0]
    record.side = _SIDES.get(room, room)
    return True
