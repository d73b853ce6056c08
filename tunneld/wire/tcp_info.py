"""What the kernel knows of a TCP connection (``TCP_INFO``, linux/tcp.h)."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

from tunneld.wire.sockets import is_tcp

__all__ = ["TcpInfo", "read_tcp_info"]

_TCP_INFO = getattr(socket, "TCP_INFO", None)
# Of struct tcp_info, whose fields are only ever added behind: rtt and rttvar at 68, total_retrans at 100, bytes_acked
# and bytes_received at 120, min_rtt at 148, data_segs_out at 156, delivery_rate at 160, dsack_dups at 216, rcv_ooopack
# (since Linux 5.4) at 224.
_FIELDS = struct.Struct("=68xII24xI16xQQ12xI4xIQ48xI4xI")


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """One connection, at one moment, since its beginning.

    Attributes:
        rtt: the kernel's smoothed round trip, seconds.
        rtt_variation: seconds.
        least_rtt: the shortest round trip of the last minutes, seconds: without delayed acknowledgements and queues.
        carried: bytes that came, and those that the peer acknowledged.
        segments: with data, sent; those sent again count too.
        retransmitted: segments sent again.
        unneeded: of the segments sent again, that the peer had already, as it says.
        disordered: segments that came before one that was sent earlier, which was late or lost.
        delivery_rate: bytes a second that the peer acknowledged lately; 0: not known.
    """

    rtt: float
    rtt_variation: float
    least_rtt: float
    carried: int
    segments: int
    retransmitted: int
    unneeded: int
    disordered: int
    delivery_rate: int

    @property
    def lost(self) -> int:
        """Segments that were lost on the way: sent again, and needed."""
        return max(0, self.retransmitted - self.unneeded)


def read_tcp_info(transport: asyncio.BaseTransport) -> TcpInfo | None:
    """What the kernel says of the connection below; None for a Unix socket, a closed one, another kernel."""
    sock = transport.get_extra_info("socket")
    if _TCP_INFO is None or sock is None:
        return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256) if is_tcp(sock) else b""
    except (OSError, ValueError):  # closed meanwhile; a transport of uvloop's has a descriptor of -1 then
        return None
    if len(raw) < _FIELDS.size:
        return None
    rtt, variation, again, sent, came, least, segments, rate, unneeded, disordered = _FIELDS.unpack_from(raw)
    return TcpInfo(rtt / 1e6, variation / 1e6, least / 1e6, sent + came, segments, again, unneeded, disordered, rate)
