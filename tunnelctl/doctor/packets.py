"""How large packets may be on the way, and whether large ones vanish there: a black hole, where ICMP is dropped.

Small packets pass it, so that a tunnel comes up, and stalls with the first event that is larger. Nothing but a large
request and its large answer shows it.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tunnelctl.doctor.bounds import at_most, authority, dial, secured
from tunnelctl.doctor.findings import Finding, fail, ok, skip, warn

__all__ = ["SMALL", "Packets", "mtu"]

SMALL: Final = 536
"""Octets of a segment that every way takes (RFC 9293, 3.7.1)."""
_USUAL: Final = 1220
"""Of one that fits the least MTU of IPv6."""
_PATIENCE: Final = 4.0
"""Seconds for a request and its answer: a lost packet is sent again three times in it."""
_LARGE: Final = 4000
"""Octets of the request, and of the answer where the server repeats the address: more than one packet."""
_IP_MTU, _IPV6_MTU = 14, 24  # Linux's numbers of the options; the socket module has no names for them
_LEAST_MTU = 1280


@dataclass(frozen=True, slots=True)
class Packets:
    """What was found.

    Attributes:
        finding: of it.
        segment: octets that a connection's segments may have to get through; None: any.
    """

    finding: Finding
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class _Sent:
    """Of one large request: whether it was answered in time, and what the kernel then said of sizes; 0: nothing."""

    answered: bool
    packet: int = 0
    segment: int = 0


def mtu(host: str, port: int, *, tls: bool, path: str = "") -> Packets:
    """Send a large request, as it is and in smaller packets, at a time.

    Args:
        host: of the server, or of a proxy before it.
        port: of it.
        tls: it is spoken there. Nothing secret is sent: who shows which certificate is looked at elsewhere.
        path: under which the server is.
    """
    segments = (None, _USUAL, SMALL)
    with ThreadPoolExecutor(len(segments)) as pool:
        whole, usual, small = pool.map(lambda segment: _sent(host, port, segment, tls=tls, path=path), segments)
    if whole is None:
        return Packets(skip("mtu", f"{authority(host, port)} took no further connection, to send a large request on."))
    if whole.answered:
        return Packets(_of_sizes(whole))
    for segment, sent in ((_USUAL, usual), (SMALL, small)):
        if sent is not None and sent.answered:
            return Packets(_hole(segment), segment)
    return Packets(skip("mtu", f"{authority(host, port)} answers no large request, in packets of whatever size."))


def _hole(segment: int) -> Finding:
    return fail(
        "mtu",
        f"Large packets vanish on the way: a request in segments of {segment} bytes is answered, a larger one not.",
        "A firewall or VPN there drops ICMP's 'fragmentation needed': let it pass, or give this machine's interface a "
        f"smaller MTU (ip link set dev NAME mtu {segment + 60}), or sysctl net.ipv4.tcp_mtu_probing=1 at both ends.",
    )


def _of_sizes(sent: _Sent) -> Finding:
    if not sent.packet:
        return skip("mtu", "The kernel does not say how large packets may be; large ones pass.")
    said = f"The way takes packets of {sent.packet} bytes, segments of {sent.segment}."
    if sent.packet < _LEAST_MTU:
        return warn("mtu", said, "A tunnel or VPN on the way makes them small: let ICMP pass, or raise its MTU.")
    return ok("mtu", said)


def _sent(host: str, port: int, segment: int | None, *, tls: bool, path: str) -> _Sent | None:
    """What became of a large request in segments of that size, None: as large as the way seems to take.

    None: there was no connection to send it on.
    """
    try:
        sock = dial(host, port, _PATIENCE, segment=segment)
    except OSError:
        return None
    packet = largest = 0
    try:
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = secured(sock, context, host, _PATIENCE)
        with at_most(_PATIENCE, sock):
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            connection.request("GET", f"{path}/t/doctor?{'.' * _LARGE}", headers={"Connection": "close"})
            answer = connection.getresponse()
            packet, largest = _sizes(sock)  # the end of the answer takes the connection away
            answer.read(2 * _LARGE)
    except TimeoutError:
        return _Sent(answered=False)
    except (OSError, http.client.HTTPException):
        pass  # whatever it is that they are answered, large packets have passed
    finally:
        sock.close()
    return _Sent(answered=True, packet=packet, segment=largest)


def _sizes(sock: socket.socket) -> tuple[int, int]:
    """Octets of a packet and of a segment, as the kernel has learnt by now; 0 each: it does not say."""
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            packet = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        else:
            packet = sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        return packet, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    return 0, 0
