"""Connections to an API before what serves it is there: FastAPI and uvicorn are loaded at the first word of one.

A daemon that nobody asks costs 15 MiB less so, and an agent dials half a second sooner: one that only looks whether
somebody listens asks nothing. Loading takes a second or two of a thread on a small machine, while the loop turns.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunneld.wire.threads import Threads

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tunneld.control.serving import Serving

__all__ = ["IDLE", "Doors"]

IDLE = 30.0
"""Seconds that a connection may stand without a request."""

_MAX_WAITING = 128
"""Connections that may stand before what serves them is loaded."""
_MAX_EARLY = 256 * 1024
"""Bytes that one of them may send meanwhile."""


class Doors:
    """Every connection to one application.

    Args:
        make: the application; called once, in a thread, when the first connection says something.
        what: it is, for people.
        log: that says why it cannot be served.
        early: given what came on a connection and its peer, the whole answer, where none of that is needed for it.
    """

    def __init__(
        self,
        make: Callable[[], FastAPI],
        *,
        what: str,
        log: logging.Logger,
        early: Callable[[bytes, object], bytes | None] | None = None,
    ) -> None:
        self.early = early
        self._make = make
        self._what = what
        self._log = log
        self._serving: Serving | None = None
        self._loading: asyncio.Future[Serving] | None = None
        self._waiting: set[_Door] = set()
        self._closed = False

    def open(self, **state: Any) -> asyncio.Protocol:
        """What a new connection talks to; its requests carry this state."""
        return _Door(self, state)

    async def stop(self) -> None:
        """End what is open; calls under way have a moment. Idempotent."""
        self._closed = True
        for door in list(self._waiting):
            door.shut()
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._serving is not None:
            await self._serving.stop()

    # -- what a door asks --------------------------------------------------------------------------------

    def enter(self, door: _Door) -> Serving | None:
        """What serves a new connection; None: it is not loaded yet, and the door is told when it is."""
        if self._serving is None:
            self._waiting.add(door)
        return self._serving

    def knock(self) -> None:
        """Somebody has said something: load what answers it, if that has not begun."""
        if self._serving is None and self._loading is None:
            loop = asyncio.get_running_loop()
            self._loading = loop.run_in_executor(Threads(1, "tunneld api"), self._load, loop)
            self._loading.add_done_callback(self._loaded)

    def leave(self, door: _Door) -> None:
        """It waits no longer."""
        self._waiting.discard(door)

    @property
    def crowded(self) -> bool:
        """As many wait as may."""
        return self._closed or len(self._waiting) >= _MAX_WAITING

    def _load(self, loop: asyncio.AbstractEventLoop) -> Serving:
        from tunneld.control.serving import Serving

        return Serving(self._make(), loop)

    def _loaded(self, done: asyncio.Future[Serving]) -> None:
        doors, self._waiting = self._waiting, set()
        if done.cancelled() or done.exception() is not None:
            fault = None if done.cancelled() else done.exception()
            self._log.error("The %s cannot be served.", self._what, exc_info=fault)
            self._loading = None  # whoever comes next tries again: a machine out of descriptors has some later
            for door in doors:
                door.shut()
            return
        self._serving = done.result()
        if gc.get_freeze_count():
            # In a daemon the collector leaves what was imported at the start alone, and this too, which stays as long:
            # it took 10 to 50 ms of each full collection, in which no byte moved. What else lives at this moment is
            # left alone with it, once for each application.
            gc.freeze()
        for door in doors:
            door.go_in(self._serving)


class _Door(asyncio.Protocol):
    """A connection until what serves it is there."""

    def __init__(self, doors: Doors, state: dict[str, Any]) -> None:
        self._doors = doors
        self._state = state
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait, or go in."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's are not asyncio's
        if self._doors.crowded:
            self.shut()
        elif (serving := self._doors.enter(self)) is not None:
            self.go_in(serving)
        else:
            self._idle = asyncio.get_running_loop().call_later(IDLE, self.shut)

    def data_received(self, data: bytes) -> None:
        """Keep it. Not by pausing: uvloop begins to read after `connection_made`, paused there or not."""
        self._came += data
        if len(self._came) > _MAX_EARLY:
            self.shut()
        elif self._doors.early is not None and self._came.endswith(b"\r\n\r\n"):
            self._answer(self._doors.early)
        if self._transport is not None and not self._transport.is_closing():
            self._stop_idle()
            self._doors.knock()

    def _answer(self, early: Callable[[bytes, object], bytes | None]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        answer = early(bytes(self._came), transport.get_extra_info("peername"))
        if answer is not None:
            self._doors.leave(self)
            self._stop_idle()
            self._transport = None
            transport.write(answer)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left before."""
        self._transport = None
        self._stop_idle()
        self._doors.leave(self)

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def go_in(self, serving: Serving) -> None:
        """Hand the connection over."""
        self._stop_idle()
        transport, self._transport = self._transport, None
        if transport is None or transport.is_closing():
            return
        protocol = serving.protocol(self._state)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._came:
            protocol.data_received(bytes(self._came))
            self._came.clear()

    def shut(self) -> None:
        """End it."""
        self._stop_idle()
        if self._transport is not None:
            self._transport.abort()
