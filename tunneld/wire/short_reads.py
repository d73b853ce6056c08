"""How much one read of a connection brings: what there is, or little where many such reads would not fit in memory.

A transport reads as much as the kernel has, up to 256 KiB, before anybody can ask it to pause. A thousand sources that
begin at one time are 256 MiB then, whatever `limits.memory` says. Where that could be, a connection is read into a
small buffer, a piece at a time; everywhere else nothing stands between it and its protocol.
"""

from __future__ import annotations

import asyncio

from tunneld.protocol.windows import MemoryBudget

__all__ = ["MOST", "ROOM", "UNCOUNTED", "ShortReads"]

#: Bytes that one read may bring otherwise: uvloop's buffer, and asyncio's.
MOST = 256 * 1024
#: Bytes that a short read brings at most.
ROOM = 16 * 1024
#: The high-water mark of the connections of visitors and services: what waits in a transport below it is not counted
#: piece by piece (`windows.STREAM` has room for it). Larger, a thousand slow readers hold what nobody knows of.
UNCOUNTED = 4 * 1024


class _Short(asyncio.BufferedProtocol):
    """Stands between a transport and a protocol that takes bytes, which each read brings at most `ROOM` of."""

    __slots__ = ("_protocol", "_room")

    def __init__(self, protocol: asyncio.Protocol, room: memoryview) -> None:
        self._protocol = protocol
        self._room = room

    def get_buffer(self, sizehint: int) -> memoryview:
        """A transport asks, reads and tells in one go, so that all may share one buffer."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio."""
        self._protocol.data_received(bytes(self._room[:nbytes]))

    def eof_received(self) -> bool | None:
        """See asyncio."""
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._protocol.resume_writing()


class ShortReads:
    """Decides for all connections of one kind that a loop runs.

    Args:
        budget: of the process's memory.

    Attributes:
        connections: how many there are; whoever makes them keeps it.
    """

    __slots__ = ("_room", "budget", "connections")

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.connections = 0
        self._room: memoryview | None = None

    @property
    def due(self) -> bool:
        """One whole read of each connection, beside what is held, would make memory short."""
        budget = self.budget
        return budget.held + self.connections * MOST >= budget.near_at

    def mind(self, transport: asyncio.Transport, protocol: asyncio.Protocol, *, short: bool, reading: bool) -> bool:
        """Read the connection as it is to be read now.

        Args:
            transport: which.
            protocol: that takes its bytes.
            short: what the last call returned; False before it.
            reading: the transport is not paused.

        Returns:
            Whether its reads are short from now on.
        """
        due = self.due
        if due != short:
            self.set(transport, protocol, short=due, reading=reading)
        return due

    def set(self, transport: asyncio.Transport, protocol: asyncio.Protocol, *, short: bool, reading: bool) -> None:
        """Read it shortly, or as it comes."""
        if transport.is_closing():
            return
        if reading:  # uvloop fixes at the start of reading which kind of protocol it reads for
            transport.pause_reading()
        if not short:
            transport.set_protocol(protocol)
        else:
            if self._room is None:
                self._room = memoryview(bytearray(ROOM))
            transport.set_protocol(_Short(protocol, self._room))
        if reading:
            transport.resume_reading()
