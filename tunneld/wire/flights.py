"""What a connection did while a ping was under way, as its kernel knows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tunneld.wire.tcp_info import TcpInfo, read_tcp_info

__all__ = ["NOTHING", "Flight", "Flights"]

_MOST = 64  # pings whose begin is remembered; no more wait for their pong either


@dataclass(frozen=True, slots=True)
class Flight:
    """From a ping to its pong.

    Attributes:
        beside: bytes that the connection carried, both ways.
        held: segments were sent again meanwhile, or a loss was being made up for when the ping was sent: TCP held it
            back, or something before its answer.
        sent: segments that had been sent when the ping was; None: the kernel knows nothing of the connection.
        most: that have been sent now.
    """

    beside: int = 0
    held: bool = False
    sent: int | None = None
    most: int = 0


NOTHING = Flight()


class Flights:
    """The pings of one connection that wait for their pongs.

    Args:
        transport: of the connection.
    """

    __slots__ = ("_begun", "_transport")

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._begun: dict[int, TcpInfo] = {}  # number -> what the kernel knew when it was sent

    def begin(self, seq: int) -> None:
        """A ping of that number is about to be sent; numbers rise."""
        if len(self._begun) < _MOST and (kernel := read_tcp_info(self._transport)) is not None:
            self._begun[seq] = kernel

    def end(self, seq: int, now: TcpInfo | None) -> Flight:
        """Its pong is here, and this is what the kernel knows now; those before it will not be answered any more."""
        before = self._begun.pop(seq, None)
        self._begun = {later: known for later, known in self._begun.items() if later > seq}
        if before is None or now is None:
            return NOTHING
        held = before.mending or now.retransmitted != before.retransmitted
        return Flight(now.carried - before.carried, held, before.segments, now.segments)
