"""Fair turns in reading: a connection that has much to say lets the others of its loop have theirs.

libuv reads a socket that fills each buffer 32 times before it looks at the next one: eight MiB of one peer before one
byte of another. A connection whose read was a large one pauses until the loop has come round once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["LARGE", "ROUNDS_ALONE", "SHARE", "let_others"]

LARGE: Final = 64 * 1024
"""A read of so many octets, or more, was a turn."""
SHARE: Final = 32 * 1024
"""Octets that one of several tunnels' connections reads in a turn."""
ROUNDS_ALONE: Final = 256
"""Turns without a word of another connection after which one has the loop to itself, and reads as much as there is."""


def let_others(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, wanted: Callable[[], bool]) -> None:
    """Read no more of this transport until the loop has come round, and then only if that is `wanted`."""
    if transport.is_closing():
        return
    transport.pause_reading()
    loop.call_soon(_go_on, transport, wanted)


def _go_on(transport: asyncio.Transport, wanted: Callable[[], bool]) -> None:
    if wanted() and not transport.is_closing():
        transport.resume_reading()
