"""What visitors may use: requests and bytes a second, streams and connections, of a tunnel, a token and an address.

An address is an IPv4 address or the /64 of an IPv6 one: whoever has one address of those has them all. Peers that are
trusted proxies bring many visitors: of them connections are not counted, and of their visitors the address that they
name is. Every refusal is counted by the name of its key in the configuration.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from time import monotonic
from typing import TYPE_CHECKING

from tunneld.config.server import ServerLimits
from tunneld.errors import VisitorError
from tunneld.protocol.rates import Bucket
from tunneld.protocol.sinks import Sink
from tunneld.server.pacing import Meter, Paced
from tunneld.server.principals import Limits, Principal

if TYPE_CHECKING:
    from tunneld.server.registry import Tunnel

__all__ = ["Guard", "Hits", "address_key"]

#: Buckets and meters that are kept of each kind; the one used longest ago goes first, and is full by then or its
#: visitor one of that many.
MAX_KEPT = 65_536
_LEAST_BURST = 64 * 1024  # bytes
_RETRY = 5  # seconds, where nobody knows when a place comes free
# What a limit is called that is told by its code alone.
_BY_CODE = {
    "body_too_large": "max_body",
    "head_too_large": "max_header",
    "request_timeout": "header_timeout",
    "too_many_streams": "max_streams",
    "too_many_tunnels": "max_tunnels",
    "too_many_waiting": "max_waiting",
    "over_memory": "memory",
}


class Hits:
    """How often each limit was hit, by its key below `limits`; a token's own as ``token_requests`` and so on,
    an owner's as ``owner_requests``."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, limit: str) -> None:
        """It was hit once more."""
        self._counts[limit] += 1

    def refused(self, error: VisitorError) -> None:
        """A visitor is answered with this."""
        limit = error.limit or _BY_CODE.get(error.code)
        if limit:
            self._counts[limit] += 1

    def __getitem__(self, limit: str) -> int:
        return self._counts[limit]

    def all(self) -> dict[str, int]:
        """Those that were hit at all."""
        return dict(self._counts)


def address_key(address: str) -> str:
    """What counts as one address."""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64" if isinstance(parsed, IPv6Address) else address


class _Kept:
    """Buckets by key, no more than `MAX_KEPT`."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: str, rate: float, least: float, now: float) -> Bucket:
        """The bucket of a key, with a burst of one second; made when there is none."""
        bucket = self._buckets.pop(key, None)
        burst = max(rate, least)
        if bucket is None:
            bucket = Bucket(rate, burst, now)
            if len(self._buckets) >= MAX_KEPT:
                del self._buckets[next(iter(self._buckets))]
        elif bucket.rate != rate:
            bucket.retune(rate, burst, now)
        self._buckets[key] = bucket
        return bucket


class Guard:
    """Keeps visitors to the limits of one server.

    Args:
        limits: what holds now; `configure` changes it.
        clock: monotonic seconds.

    Attributes:
        hits: what was refused or slowed.
        connections: open ones by address, where they are counted.
    """

    def __init__(self, limits: ServerLimits, *, clock: Callable[[], float] = monotonic) -> None:
        self.hits = Hits()
        self.connections: Counter[str] = Counter()
        self._clock = clock
        self._requests = _Kept()
        self._meters: dict[str, Meter] = {}
        self._streams: Counter[str] = Counter()
        self._entered: dict[str, tuple[str, ...]] = {}  # request id -> what it is counted under
        self.configure(limits)

    def configure(self, limits: ServerLimits) -> None:
        """Let other limits hold from now on; what is under way stays counted."""
        self._limits = limits

    # -- connections -------------------------------------------------------------------------------------

    def connected(self, address: str) -> bool:
        """Count a connection; False when it is one too many. `disconnected` is due in any case."""
        key = address_key(address)
        self.connections[key] += 1
        return not self._limits.address_connections or self.connections[key] <= self._limits.address_connections

    def disconnected(self, address: str) -> None:
        """It is over."""
        key = address_key(address)
        self.connections[key] -= 1
        if self.connections[key] <= 0:
            del self.connections[key]

    def surplus(self) -> VisitorError:
        """What a connection that is one too many is answered."""
        return VisitorError(
            "too_many_from_address",
            f"{self._limits.address_connections} connections of this address are open, the most it may have.",
            retry_after=_RETRY,
            limit="address_connections",
        )

    # -- requests ----------------------------------------------------------------------------------------

    def request(self, tunnel: Tunnel, client: str) -> None:
        """A request for a tunnel comes; raises VisitorError ``rate_limited``."""
        limits, principal = self._limits, tunnel.principal
        if not (limits.address_requests or limits.tunnel_requests or principal.limited):
            return
        now = self._clock()
        if limits.address_requests and client:
            self._take(f"a {address_key(client)}", limits.address_requests, now, "address_requests", "One address")
        for key, own, whose in _own(principal):
            if own.requests_per_s:
                self._take(key, own.requests_per_s, now, f"{whose}_requests", f"The {whose} of this tunnel")
        if limits.tunnel_requests:
            self._take(f"t {tunnel.name}", limits.tunnel_requests, now, "tunnel_requests", f"The tunnel {tunnel.name}")

    def _take(self, key: str, rate: float, now: float, limit: str, who: str) -> None:
        wait = self._requests.of(key, rate, 1.0, now).take(1.0, now)
        if wait > 0:
            raise VisitorError(
                "rate_limited", f"{who} may make {rate:g} requests a second.", retry_after=math.ceil(wait), limit=limit
            )

    # -- streams -----------------------------------------------------------------------------------------

    def enter(self, request_id: str, tunnel: Tunnel, client: str) -> None:
        """Count a request that goes under way until `leave`; raises VisitorError when it is one too many."""
        limits, principal = self._limits, tunnel.principal
        if not (limits.address_streams or principal.limited):
            return
        keys = []
        if limits.address_streams and client:
            keys.append(f"a {address_key(client)}")
            if self._streams[keys[-1]] >= limits.address_streams:
                raise VisitorError(
                    "too_many_from_address",
                    f"{limits.address_streams} requests of this address are under way, the most it may have.",
                    retry_after=_RETRY,
                    limit="address_streams",
                )
        for key, own, whose in _own(principal):
            if not own.streams:
                continue
            keys.append(key)
            if self._streams[key] >= own.streams:
                raise VisitorError(
                    "too_many_streams",
                    f"{own.streams} streams are open on the tunnels of this {whose}, the most they may carry together.",
                    retry_after=_RETRY,
                    limit=f"{whose}_streams",
                )
        for key in keys:
            self._streams[key] += 1
        self._entered[request_id] = tuple(keys)

    def leave(self, request_id: str) -> None:
        """A request is over."""
        if not self._entered:
            return
        for key in self._entered.pop(request_id, ()):
            self._streams[key] -= 1
            if self._streams[key] <= 0:
                del self._streams[key]

    def most_streams(self) -> tuple[int, int]:
        """Requests under way of the address that has most of them, and how many it may have (0: any)."""
        most = self._limits.address_streams
        counts = (count for key, count in self._streams.items() if key.startswith("a ")) if most else ()
        return max(counts, default=0), most

    def most_connections(self) -> tuple[int, int]:
        """The same of connections."""
        return max(self.connections.values(), default=0), self._limits.address_connections

    # -- bytes -------------------------------------------------------------------------------------------

    def pace(self, tunnel: Tunnel, client: str, sink: Sink) -> Paced | None:
        """What a stream's bytes are to pass through; None where nothing bounds them."""
        limits, principal = self._limits, tunnel.principal
        wanted = []
        if limits.tunnel_bytes:
            wanted.append((f"t {tunnel.name}", limits.tunnel_bytes))
        if principal.limited:
            wanted += [(key, own.bytes_per_s) for key, own, _ in _own(principal) if own.bytes_per_s]
        if limits.address_bytes and client:
            wanted.append((f"a {address_key(client)}", limits.address_bytes))
        if not wanted:
            return None
        return Paced([self._meter(key, rate) for key, rate in wanted], sink, asyncio.get_running_loop())

    def _meter(self, key: str, rate: float) -> Meter:
        """The meter of a key; those of streams that are over and whose bucket is full are let go of in time."""
        now = self._clock()
        meter = self._meters.pop(key, None)
        burst = max(rate, _LEAST_BURST)
        if meter is None:
            meter = Meter(Bucket(rate, burst, now))
            if len(self._meters) >= MAX_KEPT:
                del self._meters[next(iter(self._meters))]
        elif meter.bucket.rate != rate:
            meter.bucket.retune(rate, burst, now)
        self._meters[key] = meter
        return meter


def _own(principal: Principal) -> tuple[tuple[str, Limits, str], tuple[str, Limits, str]]:
    """(key, limits, whose) of the token that a tunnel was opened with, and of its owner."""
    token = f"p {principal.token or principal.id}", principal.limits, "token"
    return token, (f"o {principal.id}", principal.quota, "owner")
