"""A pair of daemons whose tunnel goes through a relay that a test cuts, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.daemons import Agent, Server
from tests.support.faults import FaultyRelay

__all__ = ["Cuttable"]


class Cuttable:
    """A server, a relay and an agent; `cut` ends the tunnel's connection and waits until the session goes on."""

    def __init__(self, folder: Path, tunnels: Mapping[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        common = {"drain_timeout": 0}
        self.server = Server(folder, settings={**common, "resume": {"grace": "60s"}})
        self._relay = FaultyRelay(self.server.port)
        self._on_loop(self._relay.__aenter__())
        settings = {
            **common,
            "server": {"url": f"ws://127.0.0.1:{self._relay.port}"},
            "reconnect": {"initial": "50ms", "max": "1s"},
        }
        try:
            self.agent = Agent(folder, self.server, tunnels, settings=settings)
        except BaseException:
            self.server.process.discard()
            raise

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def cut(self, *, reset: bool = True) -> float:
        """Cut now; seconds that the agent was without its connection."""

        async def now() -> None:
            self._relay.cut(reset=reset)

        mark = self.agent.process.mark()
        self._on_loop(now())
        lost = self.agent.process.wait_line("✗ Tunnel disconnected", after=mark)
        back = self.agent.process.wait_line('"resumed":true', after=mark)
        return back.at - lost.at

    def url(self, tunnel: str, path: str = "/") -> str:
        """The public address of a path of a tunnel."""
        return self.server.url(tunnel, path)

    def close(self) -> None:
        """Stop and judge both daemons."""
        try:
            for process in (self.agent.process, self.server.process):
                process.stop()
                process.assert_clean()
        finally:
            self.agent.process.discard()
            self.server.process.discard()
            self._on_loop(self._relay.__aexit__())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()
