"""How close a server is to its bounds. Takes a millisecond for some thousand tunnels; nothing is asked of the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from time import time
from typing import TYPE_CHECKING

from tunneld.telemetry.metrics import descriptors, spans
from tunneld.telemetry.usage import Pair, Usage, fullest

if TYPE_CHECKING:
    from tunneld.server.daemon import ServerDaemon

__all__ = ["server_usage"]


def server_usage(daemon: ServerDaemon) -> Iterator[Usage]:
    """Each bound of the configuration that something is counted for."""
    ingress, limits, access = daemon.ingress, daemon.config.limits, daemon.access
    yield Usage("memory", ingress.budget.held, limits.memory)
    yield Usage("replay", ingress.replays.held, ingress.replays.total)
    yield Usage("tunnels", len(daemon.registry), limits.max_tunnels)
    yield fullest("tunnel_streams", _streams(daemon))
    tunnels = daemon.registry.all()
    yield fullest("tunnel_waiting", ((one.waiting, one.max_waiting) for one in tunnels))
    kept = (one.kept for one in tunnels)
    yield fullest("resume_buffer", (one.session.unacknowledged for one in kept if one is not None), gives_way=True)
    yield Usage("address_streams", *ingress.guard.most_streams())
    yield Usage("address_connections", *ingress.guard.most_connections())
    yield Usage("store_waiting", *access.store.waiting())
    yield Usage("names", *access.names.fullest(time()))
    yield Usage("permissions", *access.permissions.fullest())
    yield Usage("v2_clients", *daemon.labels_kept(), gives_way=True)
    desk = ingress.desk
    yield Usage("password_checks", *desk.passwords.checks())
    yield Usage("passwords", *desk.passwords.kept(), gives_way=True)
    if desk.login is not None:
        yield Usage("login_waiting", *desk.login.waiting())
        yield Usage("login_remembered", *desk.login.remembered(), gives_way=True)
    yield Usage(*descriptors())
    yield Usage(*spans(ingress.tracer))
    for more in daemon.usage:
        yield from more()


def _streams(daemon: ServerDaemon) -> Iterator[Pair]:
    busy = Counter(exchange.tunnel.name for exchange in daemon.ingress.exchanges.values())
    for name, count in busy.items():
        if (found := daemon.registry.find(name)) is not None:
            yield count, found.max_streams
    if not busy:
        yield 0, daemon.config.limits.max_streams
