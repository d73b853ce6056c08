"""A visitor's WebSocket, once the service has taken the upgrade: what an `Exchange` becomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from tunneld.agent.record import STALL_CHECKS, Record
from tunneld.protocol.messages import Open
from tunneld.protocol.streams import Stream
from tunneld.protocol.windows import PIECE
from tunneld.wire.ws_bridge import Bridge
from tunneld.wire.ws_hop import Hop

if TYPE_CHECKING:
    from tunneld.agent.proxy import Proxy

__all__ = ["SocketExchange"]


class SocketExchange(Record, Bridge):
    """`Sink` of its stream and `HopUser` of the service's connection; what `Record` says of it is kept up to date.

    Args:
        was: what asked for it; it is over without a word.
        stream: whose HEAD 101 was sent.
        transport: of the service's connection, reading.
    """

    __slots__ = ("_blocked_checks", "_ending", "_held", "_passed", "_proxy", "_untaken", "hop", "stream")

    NEAR = "service"
    FAR = "visitor"
    CLOSES: ClassVar[dict[str, tuple[int, str]]] = {
        "operator": (1001, "cancelled by the operator"),
        "shutdown": (1001, "the tunnel is closing"),
    }

    def __init__(self, proxy: Proxy, was: Record, stream: Stream, transport: asyncio.Transport) -> None:
        super().__init__(was.tunnel, Open(was.request_id, was.method, was.path, [], was.client))
        self.kind = "websocket"
        self.state = "streaming"
        self.status = 101
        self.started = was.started
        self.opening, self.answer, self.seen = was.opening, was.answer, was.seen
        self.stream = stream
        loop = asyncio.get_running_loop()
        self.hop = Hop(loop, transport, client=True, user=self, reads=proxy.pool.reads)
        self._proxy = proxy
        self._ending = ""
        self._untaken = 0  # credit that is withheld until the service takes bytes
        self._held = 0  # bytes of memory that it stands for
        self._passed = 0
        self._blocked_checks = 0

    def begin(self) -> Callable[[bytes], None]:
        """Carry it; returns what takes the octets that came behind the service's head."""
        stream = self.stream
        stream.sink = self
        stream.when_sent = self._ended
        self._proxy.upgraded(self)
        self.hop.begin(b"", paused=False)
        if stream.receiving_ended:  # the visitor was gone before it could know
            self.end([])
        return self.hop.data_received

    def cancel(self, reason: str) -> None:
        """End it now; `reason` is one of the protocol's REASONS."""
        if not self.reason:
            Bridge.cancel(self, reason)

    def frame(self, first: int, payload: bytes) -> bool:
        """See `HopUser`."""
        if self.seen is not None:
            self.seen.frame("service", first, payload)
        if super().frame(first, payload):
            return True
        self._proxy.holders.add(self._held_up, slow=False)
        return bool(self.reason)

    def data(self, data: bytes) -> None:
        """See `Sink`."""
        if self.seen is not None:
            self.seen.frame("visitor", data[0], memoryview(data)[1:])
        super().data(data)

    def writable(self) -> None:
        """See `Sink`."""
        self._proxy.holders.discard(self._held_up)
        super().writable()

    def lost(self) -> None:
        """See `HopUser`."""
        if self.hop.fault:
            detail = f"The service broke the rules of WebSockets: {self.hop.fault}."
            self._proxy.tell_fault(self, detail, self.NEAR)
        super().lost()

    def gone(self) -> None:
        """See `HopUser`."""
        super().gone()
        self._proxy.hop_gone(self.hop)

    # -- a service that is slow --------------------------------------------------------------------------

    def blocked(self) -> None:
        """See `HopUser`."""
        self._blocked_checks = STALL_CHECKS
        self._passed = self.hop.passed_on
        self._proxy.stalls.add(self)

    def drained(self) -> None:
        """See `HopUser`."""
        self._proxy.stalls.discard(self)
        untaken, self._untaken = self._untaken, 0
        if untaken:
            self._let_go()
            self.stream.took(untaken)

    def _let_go(self) -> None:
        held, self._held = self._held, 0
        self._proxy.holders.budget.sub(held)
        self._proxy.holders.discard(self._give_up)

    def _give_up(self) -> None:
        """The process holds too much, and the service of this one takes nothing."""
        self._proxy.tell_limit(self, "memory")
        self.cancel("limit")

    def _held_up(self) -> None:
        """As `_give_up`, for frames of the service that wait for the tunnel."""
        self._proxy.tell_limit(self, "memory")
        self.cancel("limit")

    def stall_check(self) -> None:
        """A part of `limits.stall` is over since the service was last seen to take bytes."""
        before, self._passed = self._passed, self.hop.passed_on
        self._blocked_checks = STALL_CHECKS if self._passed > before else self._blocked_checks - 1
        if self._blocked_checks > 0:
            self._proxy.stalls.add(self)
        else:
            self._proxy.tell_limit(self, "stall")
            self.cancel("limit")

    # -- what a bridge has counted and listed ------------------------------------------------------------

    def _came(self, size: int) -> None:
        self.bytes_out += size
        self.active = time.monotonic()

    def _went(self, size: int) -> None:
        self.bytes_in += size
        self.active = time.monotonic()

    def _owe(self, size: int) -> None:
        self._untaken += size
        self._held += size + PIECE
        self._proxy.holders.budget.add(size + PIECE)
        self._proxy.holders.add(self._give_up, slow=True)

    def _note(self, reason: str) -> None:
        self._ending = self._ending or reason

    def _ended(self) -> None:
        """Both directions have ended."""
        self._over(self._ending or "done")

    def _over(self, reason: str) -> None:
        """The one place where it ends."""
        if not self.reason:
            self.reason = reason
            self.state = "closed"
            self._let_go()
            self._proxy.holders.discard(self._held_up)
            self._proxy.over(self)
