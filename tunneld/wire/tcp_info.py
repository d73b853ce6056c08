"""What the kernel knows of a TCP connection (``TCP_INFO``, linux/tcp.h)."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import NamedTuple

__all__ = ["TcpInfo", "ports", "read_tcp_info"]

_TCP_INFO = getattr(socket, "TCP_INFO", None)
# Of struct tcp_info, whose fields are only ever added behind: ca_state at 1, unacked at 24, rtt and rttvar at 68,
# snd_cwnd at 80, total_retrans at 100, bytes_acked and bytes_received at 120, min_rtt at 148, data_segs_in and
# data_segs_out at 152, delivery_rate at 160, dsack_dups at 216, rcv_ooopack (since Linux 5.4) at 224.
_FIELDS = struct.Struct("=xB22xI40xII4xI16xI16xQQ12xIIIQ48xI4xI")


_RECOVERY = 3  # of ca_state: segments were lost and are sent again (4: a timer said so)
_INITIAL_WINDOW = 10  # segments (RFC 6928)


class TcpInfo(NamedTuple):
    """One connection, at one moment, since its beginning.

    Attributes:
        rtt: the kernel's smoothed round trip, seconds.
        rtt_variation: seconds.
        least_rtt: the shortest round trip of the last minutes, seconds: without delayed acknowledgements and queues.
        carried: bytes that came, and those that the peer acknowledged.
        arrived: segments with data that came; those that came twice count twice.
        segments: with data, sent; those sent again count too.
        retransmitted: segments sent again.
        unneeded: of the segments sent again, that the peer had already, as it says.
        disordered: segments that came before one that was sent earlier, which was late or lost.
        delivery_rate: bytes a second that the peer acknowledged lately; 0: not known.
        mending: a loss is being made up for: what is written now may wait for that, or for a window made small by it.
    """

    rtt: float
    rtt_variation: float
    least_rtt: float
    carried: int
    arrived: int
    segments: int
    retransmitted: int
    unneeded: int
    disordered: int
    delivery_rate: int
    mending: bool = False

    @property
    def lost(self) -> int:
        """Segments that were lost on the way: sent again, and needed."""
        return max(0, self.retransmitted - self.unneeded)


def read_tcp_info(transport: asyncio.BaseTransport) -> TcpInfo | None:
    """What the kernel says of the connection below; None for a Unix socket, a closed one, another kernel.

    Asked at each heartbeat, and of a thousand tunnels at each scrape: by a view of the descriptor, since uvloop's own
    sockets copy it for each call.
    """
    sock = transport.get_extra_info("socket")
    if _TCP_INFO is None or sock is None:
        return None
    try:
        view = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, sock.fileno())
    except (OSError, ValueError):  # closed meanwhile: its descriptor is -1 then
        return None
    try:
        raw = view.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
    except OSError:  # no TCP
        return None
    finally:
        view.detach()
    if len(raw) < _FIELDS.size:
        return None
    state, unacked, rtt, variation, window, again, sent, came, least, arrived, segments, rate, unneeded, disordered = (
        _FIELDS.unpack_from(raw)
    )
    seconds = rtt / 1e6, variation / 1e6, least / 1e6
    mending = state >= _RECOVERY or unacked >= window < _INITIAL_WINDOW
    return TcpInfo(*seconds, sent + came, arrived, segments, again, unneeded, disordered, rate, mending)


def ports(transport: asyncio.BaseTransport) -> tuple[int, int] | None:
    """The connection's own port and its peer's, as this side sees them; None where there are none."""
    own, peer = (transport.get_extra_info(name) for name in ("sockname", "peername"))
    if isinstance(own, tuple) and isinstance(peer, tuple) and len(own) >= 2 and len(peer) >= 2:
        return own[1], peer[1]
    return None
