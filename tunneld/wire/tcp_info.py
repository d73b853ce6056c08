"""What the kernel knows of a TCP connection (``TCP_INFO``, linux/tcp.h)."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

from tunneld.wire.sockets import is_tcp

__all__ = ["TcpInfo", "read_tcp_info"]

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_RTT = 68  # offsets of struct tcp_info: fields are only ever added behind
_TOTAL_RETRANS = 100
_DATA_SEGS_OUT = 156
_DELIVERY_RATE = 160
_SIZE = 168
#: Segments sent before a share of them means anything.
_ENOUGH = 50


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """One connection, at one moment, since its beginning.

    Attributes:
        rtt: the kernel's smoothed round trip, seconds.
        rtt_variation: seconds.
        segments: with data, sent; those sent again count too.
        retransmitted: segments sent again.
        delivery_rate: bytes a second that the peer acknowledged lately; 0: not known.
    """

    rtt: float
    rtt_variation: float
    segments: int
    retransmitted: int
    delivery_rate: int

    @property
    def retransmitted_share(self) -> float | None:
        """Of all segments with data; None before enough were sent."""
        return self.retransmitted / self.segments if self.segments >= _ENOUGH else None


def read_tcp_info(transport: asyncio.BaseTransport) -> TcpInfo | None:
    """What the kernel says of the connection below; None for a Unix socket, a closed one, another kernel."""
    sock = transport.get_extra_info("socket")
    if _TCP_INFO is None or sock is None:
        return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256) if is_tcp(sock) else b""
    except OSError:  # closed meanwhile
        return None
    if len(raw) < _SIZE:
        return None
    rtt, variation = struct.unpack_from("=II", raw, _RTT)
    (again,) = struct.unpack_from("=I", raw, _TOTAL_RETRANS)
    (segments,) = struct.unpack_from("=I", raw, _DATA_SEGS_OUT)
    (rate,) = struct.unpack_from("=Q", raw, _DELIVERY_RATE)
    return TcpInfo(rtt / 1e6, variation / 1e6, segments, again, rate)
