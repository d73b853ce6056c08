"""A visitor's WebSocket, once the service has taken the upgrade: what an `Exchange` becomes."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, ClassVar

from tunneld.protocol.messages import Open
from tunneld.protocol.streams import Stream
from tunneld.server.events import NOBODY
from tunneld.server.visit import Visit
from tunneld.wire.ws_bridge import Bridge
from tunneld.wire.ws_hop import Hop

if TYPE_CHECKING:
    from tunneld.server.ingress import Ingress
    from tunneld.server.registry import Tunnel

__all__ = ["SocketVisit"]

log = logging.getLogger("tunneld.ingress")


class SocketVisit(Visit, Bridge):
    """`Sink` of its stream and `HopUser` of the visitor's connection.

    Args:
        request: that asked for it.
        stream: whose HEAD 101 has come.
        transport: of the visitor's connection; its 101 is written.
        started: of the request, monotonic seconds.
    """

    __slots__ = ("_ending", "_passed", "_timer", "hop", "stream")

    NEAR = "visitor"
    FAR = "service"
    #: 1012 asks to come back, after a moment that the client chooses at random: the server is stopping.
    CLOSES: ClassVar[dict[str, tuple[int, str]]] = {
        "operator": (1001, "cancelled by the operator"),
        "shutdown": (1012, "the tunnel is restarting"),
    }

    def __init__(
        self,
        ingress: Ingress,
        tunnel: Tunnel,
        request: Open,
        stream: Stream,
        transport: asyncio.Transport,
        *,
        started: float,
    ) -> None:
        super().__init__(ingress, NOBODY, tunnel, request)
        self.kind = "websocket"
        self.state = "streaming"
        self.status = 101
        self.started = started
        self.stream = stream
        self.hop = Hop(ingress.loop, transport, client=False, user=self, reads=ingress.reads)
        self._ending = ""
        self._timer: asyncio.TimerHandle | None = None  # until it is looked whether the visitor takes anything
        self._passed = 0

    def begin(self, early: bytes, *, paused: bool) -> None:
        """Carry it; see `Hop.begin`."""
        self.stream.sink = self
        self.stream.when_sent = self._ended
        self._ingress.exchanges[self.request_id] = self
        self.hop.begin(early, paused=paused)

    def cancel(self, reason: str) -> None:
        """End it from this side: `operator`, `limit` or `shutdown`. Nothing happens once it is over."""
        if not self.reason:
            log.info("🛑 Cancelling stream: %s", self.request_id, extra={**self._fields(), "reason": reason})
            Bridge.cancel(self, reason)

    def frame(self, first: int, payload: bytes) -> bool:
        """A frame from the visitor."""
        if super().frame(first, payload):
            return True
        self._ingress.holders.add(self.held_up, slow=False)
        return bool(self.reason)

    def writable(self) -> None:
        """The tunnel takes more."""
        self._ingress.holders.discard(self.held_up)
        super().writable()

    def held_up(self) -> None:
        """The process holds too much, frames of this visitor's that wait for the tunnel among it."""
        self.over_limit("memory")
        self.cancel("limit")

    def stalled(self) -> None:
        """The visitor takes nothing, for too long or with too much waiting."""
        self.cancel("limit")

    def blocked(self) -> None:
        """The visitor is slow."""
        self._passed = self.hop.passed_on
        self._look_later()

    def drained(self) -> None:
        """The visitor takes bytes again: their credit goes back."""
        self._stop_timer()
        if self._owed:
            owed = self._owed
            self._settle()
            self.stream.took(owed)

    def gone(self) -> None:
        """The visitor's connection is closed."""
        super().gone()
        self._ingress.hop_gone(self.hop)

    def _look_later(self) -> None:
        self._stop_timer()
        if (stall := self._ingress.limits.stall) > 0:
            self._timer = self._ingress.loop.call_later(stall, self._look)

    def _look(self) -> None:
        """Whether the visitor has taken in `limits.stall` seconds what `limits.min_rate` asks for."""
        limits = self._ingress.limits
        before, self._passed = self._passed, self.hop.passed_on
        moved = self._passed - before
        if moved > 0 and moved >= limits.min_rate * limits.stall:
            self._look_later()
        else:
            limit = "min_rate" if moved else "stall"
            self._ingress.guard.hits.count(limit)
            self.over_limit(limit)
            self.stalled()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- what a bridge has counted and listed ------------------------------------------------------------

    def _came(self, size: int) -> None:
        self.bytes_in += size
        self.active = monotonic()

    def _went(self, size: int) -> None:
        self.bytes_out += size
        self.active = monotonic()

    def _note(self, reason: str) -> None:
        self._ending = self._ending or reason

    def _ended(self) -> None:
        """Both directions have ended."""
        self._over(self._ending or "done")

    def _over(self, reason: str) -> None:
        """The one place where a visitor's WebSocket ends."""
        if self.reason:
            return
        self.reason = reason
        self.state = "done"
        self._stop_timer()
        self._let_go()
        self._ingress.forget(self)
        if log.isEnabledFor(logging.INFO):
            extra = self._fields()
            if self.hop.fault:
                extra["fault"] = self.hop.fault
            log.info("🧹 Cleaned up stream: %s", self.request_id, extra=extra)
