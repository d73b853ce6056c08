"""What is under way, by tunnel: one pass over all requests, for whoever looks at many tunnels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tunneld.server.registry import Tunnel
    from tunneld.server.visit import Visit
    from tunneld.telemetry.flow import Flow

__all__ = ["IDLE", "Live", "flows", "under_way"]


class Live(NamedTuple):
    """Requests of one tunnel that are under way: how many, and bytes of their bodies both ways so far."""

    streams: int
    bytes_in: int
    bytes_out: int


IDLE = Live(0, 0, 0)


def under_way(visits: Iterable[Visit]) -> dict[str, Live]:
    """By the name of their tunnel; a name without any is not there."""
    sums: dict[str, list[int]] = {}
    for visit in visits:
        name = visit.tunnel.name
        found = sums.get(name)
        if found is None:
            found = sums[name] = [0, 0, 0]
        found[0] += 1
        found[1] += visit.bytes_in
        found[2] += visit.bytes_out
    return {name: Live(*found) for name, found in sums.items()}


def flows(tunnels: Iterable[Tunnel], live: dict[str, Live]) -> Iterator[tuple[Flow, int, int]]:
    """As a `FlowTimer` reads them."""
    for tunnel in tunnels:
        _, received, sent = live.get(tunnel.name, IDLE)
        yield tunnel.flow, tunnel.bytes_in + received, tunnel.bytes_out + sent
