"""What the chaos suite breaks: a server, an agent behind a relay, and a service, each a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.support.daemons import Agent, Server, merged
from tests.support.faults import FaultyRelay
from tests.support.processes import Process
from tests.support.services import SampleService
from tests.support.sockets import short_dir
from tests.support.witness import Seen, Witness

__all__ = ["BEAT", "GRACE", "World"]

BEAT = {"interval": "400ms", "timeout": "300ms"}
#: Seconds after which a silent peer is known to be gone.
SILENCE = 0.7
GRACE = 20.0


class World:
    """Made by `async with World(seed, …)`: the tunnel `app` is online, its connection goes through `relay`.

    Args:
        seed: of the relay's dice.
        resume: of both files.
        tunnel: keys of the tunnel's section.
        server: laid over the server's file.
        agent: laid over the agent's file.
        module: what `python -m` runs as both daemons.
    """

    server: Server
    agent: Agent
    service: SampleService
    relay: FaultyRelay

    def __init__(
        self,
        seed: int,
        *,
        resume: dict[str, Any] | None = None,
        tunnel: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        agent: dict[str, Any] | None = None,
        module: str = "tunneld",
    ) -> None:
        self._module = module
        self._seed = seed
        self._resume = resume or {"grace": f"{GRACE}s", "buffer": "256KiB"}
        self._tunnel = tunnel or {}
        self._more = (server or {}, agent or {})
        self._stack = AsyncExitStack()
        self._names = 0

    async def __aenter__(self) -> World:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        async with self._stack:
            if kind is None:
                for process in (self.agent.process, self.server.process):
                    if process.running:
                        await asyncio.to_thread(process.stop)
                    killed = process.returncode == -9
                    process.assert_clean(codes=(-9,) if killed else (0,))

    async def _start(self) -> None:
        common = {"resume": self._resume, "drain_timeout": 0, "log": {"level": "info"}}
        folder = self._stack.enter_context(short_dir())
        self.service = await asyncio.to_thread(SampleService)
        self._stack.callback(self.service.process.discard)
        self.server = await asyncio.to_thread(self._server, folder, common)
        self._stack.callback(lambda: self.server.process.discard())
        self.relay = await self._stack.enter_async_context(FaultyRelay(self.server.port, seed=self._seed))
        self.agent = await asyncio.to_thread(self._agent, folder, common)
        self._stack.callback(lambda: self.agent.process.discard())

    def _server(self, folder: Path, common: dict[str, Any]) -> Server:
        settings = {**common, "heartbeat": {**BEAT, "min": "100ms"}, "limits": {"hold": "3s"}}
        kind = type("Server", (Server,), {"module": self._module})
        made: Server = kind(folder, settings=merged(settings, self._more[0]))
        return made

    def _agent(self, folder: Path, common: dict[str, Any]) -> Agent:
        settings = {
            **common,
            "server": {"url": f"ws://127.0.0.1:{self.relay.port}"},
            "heartbeat": BEAT,
            "reconnect": {"initial": "10ms", "max": "200ms"},
        }
        tunnels = {"app": {"service": self.service.url, **self._tunnel}}
        kind = type("Agent", (Agent,), {"module": self._module})
        made: Agent = kind(folder, self.server, tunnels, settings=merged(settings, self._more[1]))
        return made

    # -- visitors

    def witness(self) -> Witness:
        """A new visitor."""
        return Witness(self.server.port)

    def visit(self, kind: str) -> tuple[Witness, Awaitable[Seen]]:
        """A visitor of a kind of `KINDS`, long enough for a few faults."""
        self._names += 1
        name, one = f"{kind}{self._names}", self.witness()
        work: dict[str, Callable[[], Awaitable[Seen]]] = {
            "sse": lambda: one.sse(80, name=name, gap=0.02),
            "download": lambda: one.download(12 << 20),
            "upload": lambda: one.upload(12 << 20, seed=self._seed, pause=0.005),
            "poll": lambda: one.poll(1.5, name=name),
        }
        return one, work[kind]()

    def opened(self, name: str) -> int:
        """How often the service saw that stream's request."""
        return len(self.service.process.matching(f'"event": "open", "id": "{name}"'))

    # -- the tunnel

    async def line(self, process: Process, text: str, *, after: int = 0, timeout: float = 10.0) -> dict[str, Any]:
        """Wait for a line of a daemon; its fields."""
        found = await asyncio.to_thread(process.wait_line, text, after=after, timeout=timeout)
        return dict(json.loads(found.text))

    async def up(self, *, timeout: float = 30.0) -> None:
        """Wait until the tunnel stands, as the agent's log has it: a fault that waits for its loss needs that."""
        agent = self.agent.process

        def stands() -> bool:
            made, lost = agent.matching("✓ Tunnel established: app"), agent.matching("✗ Tunnel disconnected: app")
            return bool(made) and (not lost or made[-1].at > lost[-1].at)

        await asyncio.to_thread(agent.wait_until, stands, timeout=timeout, what="the tunnel up")

    async def back(self, mark: int, *, timeout: float = 15.0) -> dict[str, Any]:
        """Wait until the agent has its tunnel again; the fields of the line that says so.

        A dial that fell into a hole is given up after 10 s only.
        """
        return await self.line(self.agent.process, "✓ Tunnel established: app", after=mark, timeout=timeout)
