"""A cable between two daemons that can be pulled: connections stay, bytes vanish."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from tests.support.sockets import LOOPBACK, free_port

__all__ = ["Cable"]


class _End(asyncio.Protocol):
    """One of a connection's two ends."""

    def __init__(self, cable: Cable, other: _End | None = None) -> None:
        self.cable = cable
        self.other = other
        self.transport: Any = None
        self.early: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.other is None:
            other = self.other = _End(self.cable, self)
            loop = asyncio.get_running_loop()
            self.dialling = loop.create_task(loop.create_connection(lambda: other, LOOPBACK, self.cable.to))
        else:
            for data in self.other.early:
                transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.cable.pulled:
            return
        assert self.other is not None
        if self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.cable.pulled and self.other is not None and self.other.transport is not None:
            self.other.transport.abort()


class Cable:
    """Relays TCP from `port` to the port `to` in a thread of its own."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.port = free_port()
        self.pulled = False
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="cable", daemon=True)
        self._thread.start()
        started.wait(5)

    def _run(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()

        async def serve() -> None:
            server = await self._loop.create_server(lambda: _End(self), LOOPBACK, self.port)
            started.set()
            await self._stop.wait()
            server.close()

        self._loop.run_until_complete(serve())
        self._loop.close()

    def pull(self) -> None:
        """From now on what either side sends is lost, and neither is told."""
        self.pulled = True

    def plug_in(self) -> None:
        """New bytes pass again; what was lost stays lost."""
        self.pulled = False

    def close(self) -> None:
        """End the relay."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
