"""The admin API's own listener. What serves it, FastAPI and uvicorn, is loaded at the first connection.

A server that nobody asks costs 10 MiB less so. Loading takes a second or two of a thread, while the loop turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tunneld.config.server import ListenConfig, ServerConfig
from tunneld.errors import ConfigError
from tunneld.server.listeners import Listeners

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tunneld.control.admin.serving import Serving

__all__ = ["AdminListener", "admin_secret", "warn_if_exposed"]

log = logging.getLogger("tunneld.admin")

_MAX_WAITING = 128
"""Connections that may stand before what serves them is loaded."""
_MAX_EARLY = 256 * 1024
"""Bytes that one of them may send meanwhile."""


class AdminListener:
    """Serves an application on `admin.listen`.

    Args:
        config: the server's; `admin` is there.
        make: the application; called once, in a thread, at the first connection.
    """

    def __init__(self, config: ServerConfig, make: Callable[[], FastAPI]) -> None:
        assert config.admin is not None
        self._listeners = Listeners(config, admin=config.admin)
        self._make = make
        self._serving: Serving | None = None
        self._loading: asyncio.Future[Serving] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._doors: set[_Door] = set()
        self._closed = False

    @property
    def addresses(self) -> list[tuple[ListenConfig, str]]:
        """(listener, address as bound) of each socket."""
        return self._listeners.addresses

    async def start(self) -> None:
        """Bind and accept; raises ConfigError."""
        self._listeners.open()
        await self._listeners.serve(lambda listener, tls: lambda: _Door(self))
        for _, address in self.addresses:
            log.info("Listening on %s for the admin API", address, extra={"address": address})

    async def stop(self) -> None:
        """Accept no more and end what is open; calls under way have a moment. Idempotent."""
        self._closed = True
        self._listeners.close()
        for door in list(self._doors):
            door.shut()
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._thread is not None:
            self._thread.shutdown(wait=False)
        if self._serving is not None:
            await self._serving.stop()

    # -- what a door asks --------------------------------------------------------------------------------

    def enter(self, door: _Door) -> asyncio.Protocol | None:
        """What speaks HTTP on a new connection; None: it is not loaded yet, and the door is told when it is."""
        if self._serving is not None:
            return self._serving.protocol()
        self._doors.add(door)
        if self._loading is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="tunneld admin")
            loop = asyncio.get_running_loop()
            self._loading = loop.run_in_executor(self._thread, self._load, loop)
            self._loading.add_done_callback(self._loaded)
        return None

    def leave(self, door: _Door) -> None:
        """It waits no longer."""
        self._doors.discard(door)

    @property
    def crowded(self) -> bool:
        """As many wait as may."""
        return self._closed or len(self._doors) >= _MAX_WAITING

    def _load(self, loop: asyncio.AbstractEventLoop) -> Serving:
        from tunneld.control.admin.serving import Serving

        return Serving(self._make(), loop)

    def _loaded(self, done: asyncio.Future[Serving]) -> None:
        doors, self._doors = self._doors, set()
        if done.cancelled() or done.exception() is not None:
            log.error("The admin API cannot be served.", exc_info=None if done.cancelled() else done.exception())
            for door in doors:
                door.shut()
            return
        self._serving = done.result()
        for door in doors:
            door.open(self._serving.protocol())


class _Door(asyncio.Protocol):
    """A connection until what serves it is there."""

    def __init__(self, listener: AdminListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait, or go in."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's are not asyncio's
        if self._listener.crowded:
            self.shut()
            return
        if (protocol := self._listener.enter(self)) is not None:
            self.open(protocol)

    def data_received(self, data: bytes) -> None:
        """Keep it. Not by pausing: uvloop begins to read after `connection_made`, paused there or not."""
        self._came += data
        if len(self._came) > _MAX_EARLY:
            self.shut()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left before."""
        self._transport = None
        self._listener.leave(self)

    def open(self, protocol: asyncio.Protocol) -> None:
        """Hand the connection over."""
        transport, self._transport = self._transport, None
        if transport is None or transport.is_closing():
            return
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._came:
            protocol.data_received(bytes(self._came))
            self._came.clear()

    def shut(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()


def warn_if_exposed(config: ServerConfig) -> None:
    """Say when a bearer token would go over a network in plain text."""
    admin = config.admin
    if admin is None or admin.token_file is None or admin.listen.loopback or admin.listen.tls or config.tls:
        return
    log.warning(
        "The admin listener %s speaks plain HTTP: its bearer token can be read on the way. Set admin.listen.tls, or "
        "let it listen on loopback behind a proxy that speaks TLS.",
        admin.listen,
    )


def admin_secret(config: ServerConfig) -> str | None:
    """The content of `admin.token_file`; None without one. Raises ConfigError."""
    from tunneld.config.secrets import read_secret

    if config.admin is None or config.admin.token_file is None:
        return None
    try:
        return read_secret(config.admin.token_file)
    except ConfigError as error:
        raise ConfigError([f"admin.token_file: {fault}" for fault in error.faults]) from None
