"""The agent's numbers as Prometheus's metric families. Rows are made as they are written, so that the loop can turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic, time
from typing import TYPE_CHECKING, get_args

from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.usage import agent_usage
from tunneld.control.alert_metrics import alert_families
from tunneld.control.models.streams import STREAM_KINDS
from tunneld.control.models.tunnels import TunnelState
from tunneld.protocol.grades import GRADES, Grade, cause_of
from tunneld.protocol.quality import Reading
from tunneld.telemetry import causes as service
from tunneld.telemetry.exposition import (
    KERNEL_TUNNELS,
    Family,
    Things,
    Written,
    counter,
    gauge,
    histogram,
    near,
    of_each,
    of_ended,
    of_some,
    of_traces,
    render,
    tallied,
)

if TYPE_CHECKING:
    from tunneld.agent.tunnel import AgentTunnel
    from tunneld.control.alerting import Alerts
    from tunneld.wire.tcp_info import TcpInfo

    Named = Things[AgentTunnel]

__all__ = ["agent_metrics"]

_STATES: tuple[str, ...] = get_args(TunnelState)


async def agent_metrics(daemon: AgentDaemon, alerts: Alerts, written: Written, accept: str = "") -> tuple[bytes, str]:
    """Prometheus's text for a running agent, and its type. `tunnel` is a label: the configuration bounds how many."""
    started = time() - (monotonic() - daemon.started)
    return await render(_families(daemon, alerts, written), role="agent", started=started, accept=accept)


def _families(daemon: AgentDaemon, alerts: Alerts, written: Written) -> Iterator[Family | None]:
    tunnels = daemon.tunnels
    named = written.of(tunnels, lambda each: f'tunnel="{each.name}"')  # a DNS label: nothing to escape
    yield from _of_tunnels(tunnels, named)
    yield from _of_quality(named)
    if len(tunnels) <= KERNEL_TUNNELS:
        yield from _of_kernel(named)
    yield _heard(named)
    yield from _of_streams(daemon, tunnels, named)
    yield from _of_outages(named)
    budget = daemon.holders.budget
    yield gauge("tunneld_memory_held_bytes", "Bytes that wait for a reader, the tunnel or an ACK.", (), [
        ((), budget.used)
    ])  # fmt: skip
    yield gauge("tunneld_memory_limit_bytes", "The most that may wait: limits.memory.", (), [((), budget.limit)])
    yield from near(agent_usage(daemon))
    yield from of_traces(daemon.tracer)
    yield histogram("tunneld_loop_lag_seconds", "How late timers run.", (), [((), daemon.lag.seen)])
    yield from alert_families(alerts, "agent")


def _of_tunnels(tunnels: list[AgentTunnel], named: Named) -> Iterator[Family]:
    yield gauge("tunneld_tunnels", "Tunnels by state.", ("state",), tallied(tunnels, lambda each: each.state, _STATES))
    yield of_each("gauge", "tunneld_tunnel_up", "1 while connected, whatever its service does.", named, ("", _is_up))
    yield of_each(
        "gauge", "tunneld_service_up", "1 while the service answers, probed through the whole tunnel.",
        named, ("", lambda each: 1 if each.health.fault is None else 0),
    )  # fmt: skip
    yield of_some("tunneld_service_fault", "1 for why the service fails, while it does.", named, _fails_by)
    yield of_each(
        "counter", "tunneld_tunnel_received_bytes", "Bodies of requests, by tunnel.", named,
        ("", lambda each: each.proxy.carried[0]),
    )  # fmt: skip
    yield of_each(
        "counter", "tunneld_tunnel_sent_bytes", "Bodies of answers, by tunnel.", named,
        ("", lambda each: each.proxy.carried[1]),
    )  # fmt: skip
    yield of_each(
        "counter", "tunneld_reconnects", "Connections after the first.", named, ("", lambda each: each.reconnects)
    )


def _fails_by(tunnel: AgentTunnel) -> str | None:
    fault = tunnel.health.fault
    return None if fault is None else f'cause="{service.cause_of(fault)}",'


def _is_up(tunnel: AgentTunnel) -> int:
    return 1 if tunnel.state in ("online", "degraded", "draining") else 0


def _of_quality(named: Named) -> Iterator[Family]:
    now = monotonic()
    readings: dict[AgentTunnel, Reading] = {}

    def read(tunnel: AgentTunnel) -> Reading:
        """Once for all families: it asks the kernel."""
        found = readings.get(tunnel)
        if found is None:
            found = readings[tunnel] = tunnel.read_quality(now)
        return found

    yield of_each(
        "gauge", "tunneld_heartbeat_rtt_seconds", "Round trips of the window, and the last.", named,
        ('stat="p50",', lambda each: read(each).p50),
        ('stat="p95",', lambda each: read(each).p95),
        ('stat="last",', lambda each: read(each).last),
    )  # fmt: skip
    yield of_each(
        "gauge", "tunneld_heartbeat_jitter_seconds", "RFC 3550's estimate.", named, ("", lambda each: read(each).jitter)
    )
    yield of_each(
        "gauge", "tunneld_heartbeat_queue_seconds", "The last round trip beyond the shortest that the kernel saw.",
        named, ("", lambda each: read(each).queued),
    )  # fmt: skip
    yield of_each(
        "gauge", "tunneld_connection_loss_ratio", "Share of pings lost, or of segments sent again.",
        named, ("", lambda each: read(each).loss),
    )  # fmt: skip

    def holds(grade: Grade) -> Callable[[AgentTunnel], int]:
        return lambda each: 1 if read(each).grade == grade else 0

    yield of_each(
        "gauge", "tunneld_connection_grade", "1 for the grade that holds.", named,
        *((f'grade="{grade}",', holds(grade)) for grade in GRADES),
    )  # fmt: skip

    def no_better_for(tunnel: AgentTunnel) -> str | None:
        reason = read(tunnel).reason
        return f'cause="{cause_of(reason)}",' if reason else None

    yield of_some(
        "tunneld_connection_grade_cause",
        "1 for what the grade is no better for.",
        named,
        no_better_for,
    )


def _of_kernel(named: Named) -> Iterator[Family]:
    """What the kernel knows of the connections that stand."""
    known: dict[AgentTunnel, TcpInfo | None] = {}

    def of(value: Callable[[TcpInfo], float]) -> Callable[[AgentTunnel], float | None]:
        def read(tunnel: AgentTunnel) -> float | None:
            """Once for all families."""
            if tunnel not in known:
                known[tunnel] = tunnel.kernel
            info = known[tunnel]
            return None if info is None else value(info)

        return read

    yield of_each(
        "gauge", "tunneld_connection_rtt_seconds",
        "The kernel's round trip, smoothed, and the least of late; of agents with up to 256 tunnels.", named,
        ('stat="smoothed",', of(lambda info: info.rtt)),
        ('stat="least",', of(lambda info: info.least_rtt)),
    )  # fmt: skip
    yield of_each(
        "counter", "tunneld_connection_segments", "Segments sent on the connection that stands, by the kernel's count.",
        named, ("", of(lambda info: info.segments)),
    )  # fmt: skip
    yield of_each(
        "counter", "tunneld_connection_retransmitted_segments", "Of these, sent again.",
        named, ("", of(lambda info: info.retransmitted)),
    )  # fmt: skip
    yield of_each(
        "gauge", "tunneld_connection_delivery_bytes_per_second", "What the peer acknowledged lately; 0: not known.",
        named, ("", of(lambda info: info.delivery_rate)),
    )  # fmt: skip


def _heard(named: Named) -> Family:
    wall = time() - monotonic()

    def heard(tunnel: AgentTunnel) -> float | None:
        at = tunnel.heard_at
        return None if at is None else round(at + wall, 3)

    return of_each(
        "gauge", "tunneld_connection_last_byte_timestamp_seconds", "When the last byte came.", named, ("", heard)
    )


def _of_streams(daemon: AgentDaemon, tunnels: list[AgentTunnel], named: Named) -> Iterator[Family]:
    def live(kind: str) -> Callable[[AgentTunnel], int]:
        def count(tunnel: AgentTunnel) -> int:
            exchanges = tunnel.proxy.exchanges
            return sum(1 for each in exchanges.values() if each.kind == kind) if exchanges else 0

        return count

    yield of_each(
        "gauge", "tunneld_streams", "Streams under way.", named,
        *((f'kind="{kind}",', live(kind)) for kind in STREAM_KINDS),
    )  # fmt: skip
    yield of_each(
        "gauge", "tunneld_streams_limit", "Streams that a tunnel may carry at one time.",
        named, ("", lambda each: each.config.limits.max_streams),
    )  # fmt: skip
    yield of_each(
        "gauge", "tunneld_streams_stalled", "Streams whose reader takes nothing that waits.",
        named, ("", lambda each: sum(1 for one in each.proxy.exchanges.values() if one.stuck)),
    )  # fmt: skip
    counts = daemon.counts
    yield from of_ended(counts)
    yield histogram("tunneld_first_byte_seconds", "From a request's begin to the head of the service's answer.", (), [
        ((), counts.first_byte)
    ])  # fmt: skip
    yield histogram("tunneld_cancel_seconds", "From a cancel's arrival until the service's connection is closed.", (), [
        ((), counts.cancels)
    ])  # fmt: skip
    streams, received, sent = daemon.sums()
    yield counter("tunneld_streams_opened", "Streams since the start.", (), [((), streams)])
    yield counter("tunneld_visitor_received_bytes", "Bodies of requests.", (), [((), received)])
    yield counter("tunneld_visitor_sent_bytes", "Bodies of answers.", (), [((), sent)])
    yield counter("tunneld_events", "Events of event streams.", (), [((), daemon.events())])


def _of_outages(named: Named) -> Iterator[Family]:
    for name, help_, value in _OUTAGES:
        yield of_each("counter", name, help_, named, ("", value))


_OUTAGES: tuple[tuple[str, str, Callable[[AgentTunnel], float]], ...] = (
    ("tunneld_outages", "Times without a connection.", lambda each: each.outages.count),
    ("tunneld_outage_seconds", "Time without a connection.", lambda each: each.outages.seconds),
    ("tunneld_resumes", "Sessions that went on after an outage.", lambda each: each.outages.resumes),
    ("tunneld_replayed_bytes", "Sent again after outages.", lambda each: each.outages.replayed_bytes),
    ("tunneld_streams_lost", "Streams that ended with their session.", lambda each: each.outages.streams_lost),
)
