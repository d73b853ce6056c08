"""The agent's numbers as Prometheus's metric families. Rows are made as they are written, so that the loop can turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from time import monotonic, time
from typing import TYPE_CHECKING, get_args

from tunneld.agent.daemon import AgentDaemon
from tunneld.control.alert_metrics import alert_families
from tunneld.control.models import STREAM_KINDS, TunnelState
from tunneld.protocol.quality import GRADES, Reading
from tunneld.telemetry.exposition import Family, counter, gauge, histogram, near, of_traces, render, spans, tallied
from tunneld.telemetry.metrics import descriptors

if TYPE_CHECKING:
    from tunneld.agent.tunnel import AgentTunnel
    from tunneld.control.alerting import Alerts

__all__ = ["agent_metrics"]

_STATES: tuple[str, ...] = get_args(TunnelState)
_TUNNEL = ("tunnel",)


async def agent_metrics(daemon: AgentDaemon, alerts: Alerts, accept: str = "") -> tuple[bytes, str]:
    """Prometheus's text for a running agent, and its type. `tunnel` is a label: the configuration bounds how many."""
    started = time() - (monotonic() - daemon.started)
    return await render(_families(daemon, alerts), role="agent", started=started, accept=accept)


def _families(daemon: AgentDaemon, alerts: Alerts) -> Iterator[Family]:
    tunnels = daemon.tunnels
    yield from _of_tunnels(tunnels)
    yield from _of_quality(tunnels)
    yield from _of_streams(daemon, tunnels)
    yield from _of_outages(tunnels)
    budget = daemon.holders.budget
    yield gauge("tunneld_memory_held_bytes", "Bytes that wait for a reader, the tunnel or an ACK.", (), [
        ((), budget.used)
    ])  # fmt: skip
    yield gauge("tunneld_memory_limit_bytes", "The most that may wait: limits.memory.", (), [((), budget.limit)])
    streams = [(tunnel.active_streams, tunnel.config.limits.max_streams) for tunnel in tunnels]
    fullest = max(streams, key=_share, default=(0, 0))
    yield near(
        [("memory", budget.held, budget.limit), ("tunnel_streams", *fullest), descriptors(), spans(daemon.tracer)]
    )
    yield from of_traces(daemon.tracer)
    yield histogram("tunneld_loop_lag_seconds", "How late timers run.", (), [((), daemon.lag.seen)])
    yield from alert_families(alerts, "agent")


def _share(pair: tuple[int, int]) -> float:
    used, most = pair
    return used / most if most else 0.0


def _of_tunnels(tunnels: list[AgentTunnel]) -> Iterator[Family]:
    yield gauge("tunneld_tunnels", "Tunnels by state.", ("state",), tallied(tunnels, lambda each: each.state, _STATES))
    yield gauge("tunneld_tunnel_up", "1 while connected, whatever its service does.", _TUNNEL, (
        ((tunnel.name,), tunnel.state in ("online", "degraded", "draining")) for tunnel in tunnels
    ))  # fmt: skip
    yield gauge("tunneld_service_up", "1 while the service answers, probed through the whole tunnel.", _TUNNEL, (
        ((tunnel.name,), tunnel.service_fault is None) for tunnel in tunnels
    ))  # fmt: skip
    yield counter("tunneld_reconnects", "Connections after the first.", _TUNNEL, (
        ((tunnel.name,), tunnel.reconnects) for tunnel in tunnels
    ))  # fmt: skip


def _of_quality(tunnels: list[AgentTunnel]) -> Iterator[Family]:
    now, readings = monotonic(), dict[str, Reading]()

    def read(tunnel: AgentTunnel) -> Reading:
        """Once for all families: it asks the kernel."""
        found = readings.get(tunnel.name)
        if found is None:
            found = readings[tunnel.name] = tunnel.read_quality(now)
        return found

    yield gauge("tunneld_heartbeat_rtt_seconds", "Round trips of the window, and the last.", ("tunnel", "stat"), (
        ((tunnel.name, stat), value)
        for tunnel in tunnels
        for reading in (read(tunnel),)
        for stat, value in (("p50", reading.p50), ("p95", reading.p95), ("last", reading.last))
        if value is not None
    ))  # fmt: skip
    yield gauge("tunneld_heartbeat_jitter_seconds", "RFC 3550's estimate.", _TUNNEL, (
        ((tunnel.name,), jitter) for tunnel in tunnels if (jitter := read(tunnel).jitter) is not None
    ))  # fmt: skip
    yield gauge("tunneld_connection_loss_ratio", "Share of pings lost, or of segments sent again.", _TUNNEL, (
        ((tunnel.name,), loss) for tunnel in tunnels if (loss := read(tunnel).loss) is not None
    ))  # fmt: skip
    yield gauge("tunneld_connection_grade", "1 for the grade that holds.", ("tunnel", "grade"), (
        ((tunnel.name, grade), read(tunnel).grade == grade) for tunnel in tunnels for grade in GRADES
    ))  # fmt: skip


def _kinds(tunnel: AgentTunnel) -> dict[str, int]:
    """How many of its streams are of each kind."""
    exchanges = tunnel.proxy.exchanges
    return Counter(each.kind for each in exchanges.values()) if exchanges else {}


def _of_streams(daemon: AgentDaemon, tunnels: list[AgentTunnel]) -> Iterator[Family]:
    yield gauge("tunneld_streams", "Streams under way.", ("tunnel", "kind"), (
        ((tunnel.name, kind), live.get(kind, 0))
        for tunnel in tunnels
        for live in (_kinds(tunnel),)
        for kind in STREAM_KINDS
    ))  # fmt: skip
    yield gauge("tunneld_streams_limit", "Streams that a tunnel may carry at one time.", _TUNNEL, (
        ((tunnel.name,), tunnel.config.limits.max_streams) for tunnel in tunnels
    ))  # fmt: skip
    counts = daemon.counts
    yield counter("tunneld_streams_ended", "Streams that ended, and why.", ("kind", "reason"), [
        (key, count) for key, count in sorted(counts.ended.items())
    ])  # fmt: skip
    yield histogram("tunneld_stream_duration_seconds", "From a stream's begin to its end.", ("kind",), [
        ((kind,), life) for kind, life in sorted(counts.life.items())
    ])  # fmt: skip
    yield histogram("tunneld_first_byte_seconds", "From a request's begin to the head of the service's answer.", (), [
        ((), counts.first_byte)
    ])  # fmt: skip
    yield histogram("tunneld_cancel_seconds", "From a cancel's arrival until the service's connection is closed.", (), [
        ((), counts.cancels)
    ])  # fmt: skip
    yield gauge("tunneld_streams_stalled", "Streams whose reader takes nothing that waits.", _TUNNEL, (
        ((tunnel.name,), sum(1 for each in tunnel.proxy.exchanges.values() if each.stuck)) for tunnel in tunnels
    ))  # fmt: skip
    streams, received, sent = daemon.sums()
    yield counter("tunneld_streams_opened", "Streams since the start.", (), [((), streams)])
    yield counter("tunneld_visitor_received_bytes", "Bodies of requests.", (), [((), received)])
    yield counter("tunneld_visitor_sent_bytes", "Bodies of answers.", (), [((), sent)])
    yield counter("tunneld_events", "Events of event streams.", (), [((), daemon.events())])


def _of_outages(tunnels: list[AgentTunnel]) -> Iterator[Family]:
    rows = [((tunnel.name,), tunnel.outages) for tunnel in tunnels]
    yield counter("tunneld_outages", "Times without a connection.", _TUNNEL, ((at, each.count) for at, each in rows))
    yield counter("tunneld_outage_seconds", "Time without a connection.", _TUNNEL, (
        (at, each.seconds) for at, each in rows
    ))  # fmt: skip
    yield counter("tunneld_resumes", "Sessions that went on after an outage.", _TUNNEL, (
        (at, each.resumes) for at, each in rows
    ))  # fmt: skip
    yield counter("tunneld_replayed_bytes", "Sent again after outages.", _TUNNEL, (
        (at, each.replayed_bytes) for at, each in rows
    ))  # fmt: skip
    yield counter("tunneld_streams_lost", "Streams that ended with their session.", _TUNNEL, (
        (at, each.streams_lost) for at, each in rows
    ))  # fmt: skip
