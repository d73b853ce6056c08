"""What the agent's alerts look at, gathered from the running daemon."""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic, time

from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.tunnel import AgentTunnel
from tunneld.agent.usage import agent_usage
from tunneld.alerts.facts import Facts, TunnelFacts
from tunneld.control.alerting import CertificateEnds
from tunneld.telemetry.usage import Shares

__all__ = ["AgentFacts"]

_UP = frozenset({"online", "degraded", "draining"})


class AgentFacts:
    """Callable: the agent's facts now."""

    def __init__(self, daemon: AgentDaemon) -> None:
        self._daemon = daemon
        self._files = CertificateEnds()
        self._shares = Shares(lambda: agent_usage(daemon))

    def __call__(self, asked: Collection[str]) -> Facts:
        """Gather what these conditions ask for; costs some microseconds a tunnel."""
        now = monotonic()
        measured = "rtt" in asked or "loss" in asked
        return Facts(
            tuple(_facts(tunnel, now, measured=measured) for tunnel in self._daemon.tunnels),
            self._shares.read(now) if "limit_near" in asked else {},
            self._expiries(now) if "expiring" in asked else {},
        )

    def _expiries(self, now: float) -> dict[str, float]:
        config = self._daemon.config
        path = config.server.client_cert
        ends = dict(self._files.read(now, config, lambda: [("the client certificate", path)] if path else []))
        of_servers = [tunnel.server_certificate_end for tunnel in self._daemon.tunnels]
        if (end := min((one for one in of_servers if one is not None), default=None)) is not None:
            ends["the server's certificate"] = end
        of_tokens = [tunnel.token_end for tunnel in self._daemon.tunnels]
        if (end := min((one for one in of_tokens if one is not None), default=None)) is not None:
            ends["the agent's token"] = end
        at = time()
        return {what: end - at for what, end in ends.items()}


def _facts(tunnel: AgentTunnel, now: float, *, measured: bool) -> TunnelFacts:
    reading = tunnel.read_quality(now) if measured else None
    return TunnelFacts(
        tunnel.name,
        up=tunnel.state in _UP,
        state=tunnel.state,
        why=tunnel.last_error or "",
        service_fault=tunnel.health.fault,
        reconnects=tunnel.reconnects,
        streams_lost=tunnel.outages.streams_lost,
        rtt=None if reading is None else reading.p95,
        loss=None if reading is None else reading.loss,
    )
