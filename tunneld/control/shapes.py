"""What both APIs, the agent's and the server's, show in the same shape."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import cast

from tunneld.control.models.tunnels import OutagesStatus, OutageStatus, Quality, Throughput
from tunneld.protocol.quality import Reading
from tunneld.telemetry.flow import Flow
from tunneld.telemetry.outages import Outages
from tunneld.wire.tcp_info import TcpInfo

__all__ = ["absolute", "outages_status", "quality_status", "throughput_status"]


@lru_cache(maxsize=256)
def absolute(path: str) -> str:
    """A file's path from the root. A daemon stays in its folder, and `tunnelctl top` asks each second."""
    return str(Path(path).absolute())


def quality_status(reading: Reading, kernel: TcpInfo | None) -> Quality:
    """A connection's quality in the API's shape."""
    shown: Quality = {
        "rtt_ms": {"last": _ms(reading.last), "p50": _ms(reading.p50), "p95": _ms(reading.p95)},
        "jitter_ms": _ms(reading.jitter),
        "queue_ms": _ms(reading.queued),
        "loss": None if reading.loss is None else round(reading.loss, 4),
        "grade": reading.grade,
        "reason": reading.reason,
        "pings": reading.pings,
        "pings_lost": reading.lost,
    }
    if kernel is not None:
        shown["tcp"] = {
            "rtt_ms": round(kernel.rtt * 1000, 3),
            "least_rtt_ms": round(kernel.least_rtt * 1000, 3),
            "segments": kernel.segments,
            "retransmitted": kernel.retransmitted,
            "delivery_rate": kernel.delivery_rate,
        }
    return shown


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def throughput_status(flow: Flow, now: float, received: int, sent: int) -> Throughput | None:
    """A tunnel's throughput in the API's shape; None: not known yet. As `Flow.rates`."""
    rates = flow.rates(now, received, sent)
    return None if rates is None else {"in_bytes_s": round(rates[0], 1), "out_bytes_s": round(rates[1], 1)}


def outages_status(outages: Outages) -> OutagesStatus:
    """A tunnel's outages in the API's shape."""
    last = outages.last
    return {
        "count": outages.count,
        "seconds": round(outages.seconds, 3),
        "replayed_bytes": outages.replayed_bytes,
        "streams_lost": outages.streams_lost,
        "last": None if last is None else cast(OutageStatus, asdict(last)),
    }
