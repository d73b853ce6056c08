"""Names of hosts, looked up in threads of their own: whatever a resolver does, it holds up nothing else.

The loops' own lookups share a pool of few threads, four with uvloop: as many names whose server is silent, such as that
of a receiver of alerts, keep a tunnel from dialling. And a loop that is closed waits for them, tens of seconds.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from tunneld.wire.threads import Threads

__all__ = ["event_loop", "lookup"]

_MOST = 128
"""Lookups at a time, those that nobody waits for any more among them."""

_room = threading.BoundedSemaphore(_MOST)

_Found = list[tuple[Any, ...]]


async def lookup(
    host: bytes | str | None, port: bytes | str | int | None, *, family: int = 0, type: int = 0, proto: int = 0,
    flags: int = 0,
) -> _Found:  # fmt: skip
    """As `socket.getaddrinfo`; raises OSError. Cancelled it leaves its thread to end by itself."""
    try:
        return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name, or an address that is none
        pass
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Found] = loop.create_future()

    def settle(found: _Found | None, fault: Exception | None) -> None:
        if done.done():
            return
        if fault is not None:
            done.set_exception(fault)
        else:
            done.set_result(found or [])

    def work() -> None:
        found: _Found | None = None
        fault: Exception | None = None
        try:
            found = socket.getaddrinfo(host, port, family, type, proto, flags)
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            fault = error
        finally:
            _room.release()
        try:
            loop.call_soon_threadsafe(settle, found, fault)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    if not _room.acquire(blocking=False):
        raise socket.gaierror(socket.EAI_AGAIN, f"{_MOST} lookups of names hang: the resolver does not answer")
    try:
        threading.Thread(target=work, name="lookup", daemon=True).start()
    except RuntimeError as error:  # no more threads are to be had
        _room.release()
        raise socket.gaierror(socket.EAI_AGAIN, f"no thread for a lookup: {error}") from None
    return await done


def event_loop() -> asyncio.AbstractEventLoop:
    """A new loop that looks names up so, and whose threads end: uvloop's where it is installed, else asyncio's own."""
    base: Any
    try:
        import uvloop
    except ImportError:
        base = asyncio.SelectorEventLoop
    else:
        base = uvloop.Loop

    class Loop(base):  # type: ignore[misc]  # which of the two, only this machine knows
        async def getaddrinfo(self, host: Any, port: Any, **hints: Any) -> _Found:
            return await lookup(host, port, **hints)

    made: asyncio.AbstractEventLoop = Loop()
    made.set_default_executor(Threads())
    return made
