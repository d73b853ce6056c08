"""The server as its dashboard sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from tunneld import __version__
from tunneld.control.admin.states import tunnel_state
from tunneld.dashboard.source import AlertBrief, Brief, Counted, counted
from tunneld.server.carried import IDLE, Live, under_way
from tunneld.telemetry.outages import Outages

if TYPE_CHECKING:
    from tunneld.control.alerting import Alerts
    from tunneld.server.daemon import ServerDaemon
    from tunneld.server.registry import Tunnel

__all__ = ["WatchedServer"]


class WatchedServer:
    """A `dashboard.Source` over a running server."""

    role = "server"

    def __init__(self, daemon: ServerDaemon, alerts: Alerts) -> None:
        self._daemon = daemon
        self._alerts = alerts
        self._live: dict[str, Live] = {}  # as the briefs found it last

    def head(self) -> Mapping[str, Any]:
        """As `Source`; so are all below."""
        daemon = self._daemon
        return {
            "version": __version__,
            "server": daemon.public_url,
            "uptime_s": round(monotonic() - daemon.started, 1),
        }

    def draining(self) -> bool:  # noqa: D102
        return self._daemon.draining

    def alerts(self) -> list[AlertBrief]:  # noqa: D102
        return self._alerts.brief()

    def briefs(self) -> list[Brief]:  # noqa: D102
        live = self._live = under_way(self._daemon.ingress.exchanges.values())
        return [
            _brief(tunnel, live.get(tunnel.name, IDLE))
            for tunnel in sorted(self._daemon.registry.all(), key=lambda tunnel: tunnel.name)
        ]

    def details(self, name: str) -> Mapping[str, Any] | None:  # noqa: D102
        from tunneld.control.admin.shapes import tunnel_info

        tunnel = self._daemon.registry.find(name)
        return None if tunnel is None else tunnel_info(tunnel, self._live.get(name, IDLE), monotonic())

    def measured(self, name: str) -> tuple[float | None, float | None]:  # noqa: D102
        tunnel = self._daemon.registry.find(name)
        if tunnel is None or not tunnel.online:
            return None, None
        reading = tunnel.read_quality(monotonic())
        return reading.last, reading.loss

    def outages(self, name: str) -> Outages | None:  # noqa: D102
        tunnel = self._daemon.registry.find(name)
        return None if tunnel is None else tunnel.outages

    def stream_ids(self) -> Collection[str]:  # noqa: D102
        return self._daemon.ingress.exchanges.keys()

    def stream(self, request_id: str) -> Mapping[str, Any] | None:  # noqa: D102
        from tunneld.control.admin.shapes import stream_info

        visit = self._daemon.ingress.exchanges.get(request_id)
        return None if visit is None else stream_info(visit, monotonic())

    def counted(self, request_id: str) -> tuple[Counted, float] | None:  # noqa: D102
        return counted(self._daemon.ingress.exchanges.get(request_id))

    def tunnel_of(self, request_id: str) -> str | None:  # noqa: D102
        visit = self._daemon.ingress.exchanges.get(request_id)
        return None if visit is None else visit.tunnel.name


def _brief(tunnel: Tunnel, live: Live) -> Brief:
    state, streams, received, sent = tunnel_state(tunnel), *live
    return Brief(tunnel.name, state, streams, tunnel.bytes_in + received, tunnel.bytes_out + sent)
