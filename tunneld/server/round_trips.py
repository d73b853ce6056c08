"""Round trips of the heartbeats of all tunnels of a server, and what of each was waiting."""

from __future__ import annotations

from tunneld.protocol.quality import Kernel, Peer, Quality
from tunneld.telemetry.metrics import LATENCY, Histogram

__all__ = ["RoundTrips"]


class RoundTrips:
    """Counted in seconds.

    Attributes:
        whole: each round trip.
        queued: what each waited, behind other bytes or for its turn, of those whose connection the kernel knows.
    """

    __slots__ = ("queued", "whole")

    def __init__(self) -> None:
        self.whole = Histogram(LATENCY)
        self.queued = Histogram(LATENCY)

    def answered(
        self,
        quality: Quality,
        now: float,
        round_trip: float,
        kernel: Kernel | None,
        *,
        late: bool,
        beside: int = 0,
        held: bool = False,
        peer: Peer | None = None,
    ) -> None:
        """A ping was answered.

        Args:
            quality: of its tunnel's connection, which is told.
            now: monotonic seconds.
            round_trip: seconds.
            kernel: what it knows of the connection; None: nothing.
            late: it took longer than the heartbeat's timeout, which counts as lost.
            beside: bytes that the connection carried meanwhile, both ways.
            held: segments were sent again meanwhile.
            peer: what its kernel knew when it answered; None: it does not say.
        """
        self.whole.observe(round_trip)
        quality.carried(kernel)
        quality.answered(now, round_trip, late=late, beside=beside, held=held, peer=peer)
        if quality.queued is not None:
            self.queued.observe(quality.queued)
