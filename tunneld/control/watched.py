"""The agent as its dashboard sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from tunneld import __version__
from tunneld.dashboard.source import AlertBrief, Brief, Counted, counted
from tunneld.telemetry.outages import Outages

if TYPE_CHECKING:
    from tunneld.agent.daemon import AgentDaemon
    from tunneld.agent.tunnel import AgentTunnel
    from tunneld.control.alerting import Alerts

__all__ = ["WatchedAgent"]


class WatchedAgent:
    """A `dashboard.Source` over a running agent."""

    role = "agent"

    def __init__(self, daemon: AgentDaemon, alerts: Alerts) -> None:
        self._daemon = daemon
        self._alerts = alerts

    def head(self) -> Mapping[str, Any]:
        """As `Source`; so are all below."""
        daemon = self._daemon
        return {
            "version": __version__,
            "server": daemon.config.server.url,
            "uptime_s": round(monotonic() - daemon.started, 1),
        }

    def draining(self) -> bool:  # noqa: D102
        return self._daemon.draining

    def alerts(self) -> list[AlertBrief]:  # noqa: D102
        return self._alerts.brief()

    def briefs(self) -> list[Brief]:  # noqa: D102
        return [_brief(tunnel) for tunnel in sorted(self._daemon.tunnels, key=lambda tunnel: tunnel.name)]

    def details(self, name: str) -> Mapping[str, Any] | None:  # noqa: D102
        from tunneld.control.view import tunnel_status

        tunnel = self._find(name)
        if tunnel is None:
            return None
        return {**tunnel_status(tunnel, monotonic()), "inspect": tunnel.config.inspect}

    def measured(self, name: str) -> tuple[float | None, float | None]:  # noqa: D102
        tunnel = self._find(name)
        if tunnel is None or tunnel.state not in ("online", "degraded"):
            return None, None
        reading = tunnel.read_quality(monotonic())
        return reading.last, reading.loss

    def outages(self, name: str) -> Outages | None:  # noqa: D102
        tunnel = self._find(name)
        return None if tunnel is None else tunnel.outages

    def stream_ids(self) -> Collection[str]:  # noqa: D102
        return [exchange.request_id for exchange in self._daemon.exchanges(None)]

    def stream(self, request_id: str) -> Mapping[str, Any] | None:  # noqa: D102
        exchange = self._daemon.exchange(request_id)
        return None if exchange is None else exchange.fields(monotonic())

    def counted(self, request_id: str) -> tuple[Counted, float] | None:  # noqa: D102
        return counted(self._daemon.exchange(request_id))

    def tunnel_of(self, request_id: str) -> str | None:  # noqa: D102
        exchange = self._daemon.exchange(request_id)
        return None if exchange is None else exchange.tunnel

    def _find(self, name: str) -> AgentTunnel | None:
        running = self._daemon.find(name)
        return None if running is None else running.tunnel


def _brief(tunnel: AgentTunnel) -> Brief:
    return Brief(tunnel.name, tunnel.state, tunnel.active_streams, *tunnel.proxy.carried)
