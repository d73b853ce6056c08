"""How much of its bulk a connection holds before the network has it: what a ping, a cancel and a new head wait for.

On a fast network a fixed amount is no time at all; on a slow one it is the longest part of a heartbeat's round trip.
So it follows the rate at which the kernel sees its bytes arrive, and on a slow network so do the messages' sizes.
"""

from __future__ import annotations

import asyncio

from tunneld.wire.sockets import LOWAT, hold_unsent
from tunneld.wire.tcp_info import read_tcp_info

__all__ = ["MOST", "WAIT", "Pace", "held"]

WAIT = 0.02
"""Seconds of bulk that may wait on this side, in the kernel and in the transport together."""
MOST = 64 * 1024
"""Octets in the transport, and of a message, on a network that is fast enough; the kernel then holds `LOWAT`."""
_LEAST = 16 * 1024  # of either: less is an answer's head, and the loop has to come round before it is sent
_EVERY = 0.1  # seconds between two looks at the rate
_NEAR = 0.001  # seconds: so short a way is no slow network; what is slow there is a reader, or this machine
_FORGETS = 0.9  # what is left of a rate at the next look, where none as high was seen: one low sample proves nothing


def held(rate: float) -> int:
    """Octets that the transport may hold at so many octets a second; the kernel may hold twice as many."""
    return max(_LEAST, min(MOST, int(rate * WAIT / 3)))


class Pace:
    """Of one connection. Asked whenever its transport has drained, which is when there is bulk.

    Attributes:
        held: octets that the transport may hold, and a message be long.
    """

    __slots__ = ("_again", "_rate", "_transport", "held")

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._again = 0.0
        self._rate = 0.0
        self.held = MOST

    def look(self, now: float) -> bool:
        """Whether another amount holds from now (monotonic seconds) on; the kernel's is set already."""
        if now < self._again:
            return False
        self._again = now + _EVERY
        kernel = read_tcp_info(self._transport)
        if kernel is None or not kernel.delivery_rate or kernel.least_rtt < _NEAR:
            return False
        first = not self._rate
        self._rate = max(float(kernel.delivery_rate), self._rate * _FORGETS)
        if first:  # of the little that passed before there was bulk
            return False
        wanted = held(self._rate)
        if 0.8 * self.held <= wanted <= 1.25 * self.held and wanted not in (_LEAST, MOST):
            return False
        if wanted == self.held:
            return False
        self.held = wanted
        hold_unsent(self._transport, min(LOWAT, 2 * wanted))
        return True
