"""The server's numbers as Prometheus's metric families. No label is a tunnel's name: there may be any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from time import monotonic, time
from typing import TYPE_CHECKING, get_args

from tunneld.control.admin.models import ServerTunnelState
from tunneld.control.admin.quality_metrics import quality_families
from tunneld.control.admin.states import tunnel_state
from tunneld.control.alert_metrics import alert_families
from tunneld.control.models.streams import STREAM_KINDS
from tunneld.server.daemon import ServerDaemon
from tunneld.server.registry import Tunnel
from tunneld.server.usage import server_usage
from tunneld.telemetry.exposition import Family, counter, gauge, histogram, near, of_ended, of_traces, render, tallied

if TYPE_CHECKING:
    from tunneld.control.alerting import Alerts

__all__ = ["server_metrics"]


async def server_metrics(daemon: ServerDaemon, alerts: Alerts, accept: str = "") -> tuple[bytes, str]:
    """Prometheus's text for a running server, and its media type."""
    started = time() - (monotonic() - daemon.started)
    return await render(_families(daemon, alerts), role="server", started=started, accept=accept)


def _families(daemon: ServerDaemon, alerts: Alerts) -> Iterator[Family | None]:
    yield from _of_tunnels(daemon)
    yield from _of_streams(daemon)
    yield from _of_limits(daemon)
    yield from alert_families(alerts, "server")
    admin = daemon.config.admin
    if admin is not None and admin.owner_metrics:
        yield from _of_owners(daemon, admin.owner_metrics)


def _of_tunnels(daemon: ServerDaemon) -> Iterator[Family | None]:
    tunnels = daemon.registry.all()
    yield gauge(
        "tunneld_tunnels",
        "Known tunnels by state; online: a probe came back from the service.",
        ("state",),
        tallied(tunnels, tunnel_state, get_args(ServerTunnelState)),
    )
    yield histogram("tunneld_service_probe_seconds", "From a probe's begin to its answer, the service's in it.", (), [
        ((), daemon.registry.probes)
    ])  # fmt: skip
    yield gauge("tunneld_tunnel_connections", "Connections of agents.", (), [((), len(daemon.connections))])
    yield from quality_families(tunnels)
    yield histogram("tunneld_heartbeat_rtt_seconds", "Round trips of heartbeats.", (), [
        ((), daemon.registry.round_trips.whole)
    ])  # fmt: skip
    yield histogram(
        "tunneld_heartbeat_queue_seconds", "Their round trips beyond the shortest that the kernel saw.", (),
        [((), daemon.registry.round_trips.queued)],
    )  # fmt: skip
    outages = [tunnel.outages for tunnel in tunnels]
    for name, help_, values in (
        (
            "reconnects",
            "Connections after the first, of tunnels that are known.",
            [max(0, tunnel.connects - 1) for tunnel in tunnels],
        ),
        ("outages", "Times without a connection, of tunnels that are known.", [each.count for each in outages]),
        ("outage_seconds", "Time without a connection.", [each.seconds for each in outages]),
        ("resumes", "Sessions that went on after an outage.", [each.resumes for each in outages]),
        ("replayed_bytes", "Sent again after outages.", [each.replayed_bytes for each in outages]),
        ("streams_lost", "Streams that were lost with their session.", [each.streams_lost for each in outages]),
    ):
        yield gauge(f"tunneld_known_{name}", help_, (), [((), sum(values))])


def _of_streams(daemon: ServerDaemon) -> Iterator[Family]:
    ingress = daemon.ingress
    live = Counter(exchange.kind for exchange in ingress.exchanges.values())
    yield gauge("tunneld_streams", "Streams under way.", ("kind",), [((kind,), live[kind]) for kind in STREAM_KINDS])
    counts, totals = ingress.counts, ingress.totals
    yield from of_ended(counts)
    yield histogram("tunneld_first_byte_seconds", "From a request's begin to the head of its answer.", (), [
        ((), counts.first_byte)
    ])  # fmt: skip
    yield histogram("tunneld_cancel_seconds", "From a cancel until the agent had it, its ACK's way back in it.", (), [
        ((), daemon.registry.cancels)
    ])  # fmt: skip
    yield gauge("tunneld_streams_stalled", "Streams whose visitor takes nothing that waits.", (), [
        ((), sum(1 for exchange in ingress.exchanges.values() if exchange.stuck))
    ])  # fmt: skip
    yield counter("tunneld_streams_opened", "Streams since the start.", (), [((), totals.streams)])
    yield counter("tunneld_visitor_received_bytes", "Bodies of requests.", (), [((), totals.bytes_in)])
    yield counter("tunneld_visitor_sent_bytes", "Bodies of answers.", (), [((), totals.bytes_out)])
    yield counter("tunneld_events", "Events of event streams.", (), [((), totals.events)])
    yield gauge("tunneld_visitor_connections", "Connections of visitors.", (), [((), len(ingress.connections))])


def _of_owners(daemon: ServerDaemon, most: int) -> Iterator[Family]:
    """By owner's name: the `most` oldest, the others as ``other``, tunnels whose token is its own as ``none``."""
    owners = sorted(daemon.access.credentials.owners(), key=lambda owner: owner.created)
    labels = {owner.id: owner.name for owner in [one for one in owners if one.removed is None][:most]}
    series = [*labels.values(), *(name for name in ("other", "none") if name not in labels.values())]
    tunnels, streams, received, sent = (dict.fromkeys(series, 0) for _ in range(4))

    def label(tunnel: Tunnel) -> str:
        return labels.get(tunnel.principal.id, "other") if tunnel.principal.owned else "none"

    for tunnel in daemon.registry.all():
        mine = label(tunnel)
        tunnels[mine] += 1
        received[mine] += tunnel.bytes_in
        sent[mine] += tunnel.bytes_out
    for visit in daemon.ingress.exchanges.values():
        mine = label(visit.tunnel)
        streams[mine] += 1
        received[mine] += visit.bytes_in
        sent[mine] += visit.bytes_out
    for name, help_, values in (
        ("tunnels", "Known tunnels.", tunnels),
        ("streams", "Streams under way.", streams),
        ("received_bytes", "Bodies of requests, of tunnels that are known.", received),
        ("sent_bytes", "Bodies of answers, of tunnels that are known.", sent),
    ):
        yield gauge(f"tunneld_owner_{name}", help_, ("owner",), [((one,), values[one]) for one in series])


def _of_limits(daemon: ServerDaemon) -> Iterator[Family | None]:
    ingress, limits = daemon.ingress, daemon.config.limits
    yield counter("tunneld_limit_hits", "How often each limit was hit.", ("limit",), [
        ((limit,), count) for limit, count in sorted(ingress.guard.hits.all().items())
    ])  # fmt: skip
    yield gauge("tunneld_held_bytes", "Held for slow readers and for resume.", (), [((), ingress.budget.used)])
    yield gauge("tunneld_held_bytes_limit", "What may be held (limits.memory).", (), [((), limits.memory)])
    yield from near(server_usage(daemon))
    yield from of_traces(ingress.tracer)
    yield histogram("tunneld_loop_lag_seconds", "How late timers run.", (), [((), daemon.lag.seen)])
    yield gauge("tunneld_tunnels_limit", "Tunnels that may be known (limits.max_tunnels).", (), [
        ((), limits.max_tunnels)
    ])  # fmt: skip
