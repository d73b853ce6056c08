"""The agent as the control API shows it: the daemon's own objects as the shapes of `models`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from secrets import token_hex
from time import monotonic, time
from typing import Any, cast

from tunneld import __version__
from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.telling import Streams
from tunneld.agent.tunnel import AgentTunnel
from tunneld.alerts.facts import Facts
from tunneld.config.load import load_tunnel
from tunneld.control.alerting import Alerts
from tunneld.control.metrics import agent_metrics
from tunneld.control.models.agent import Check, Drained, Health, HealthStatus, LogLevelName, Reloaded, Status
from tunneld.control.models.alerts import AlertsStatus, AlertsTested
from tunneld.control.models.events import Event
from tunneld.control.models.permissions import NewPermissions, PermissionInfo
from tunneld.control.models.streams import Replayed, SeenRequest, StreamInfo
from tunneld.control.models.tunnels import Link, NewTunnel, Reconnected, TunnelClosed, TunnelStatus
from tunneld.control.shapes import absolute, outages_status, quality_status, throughput_status
from tunneld.errors import VisitorError
from tunneld.telemetry import logs
from tunneld.telemetry.exposition import Written

__all__ = ["AgentView", "tunnel_status"]

#: Seconds that the answer to "open" waits for the new tunnel to be up.
_OPENING = 5.0
#: Seconds that receivers of a test have.
_TESTING = 8.0
#: Seconds that a service has to answer a request that is sent again.
_REPLAYING = 8.0
_TUNNEL_HEALTH: dict[str, HealthStatus] = {"online": "ok", "degraded": "degraded", "resuming": "degraded"}


class AgentView:
    """An `AgentFacade` over a running daemon.

    Args:
        daemon: it is running.
        alerts: of the host; None: it has none.
    """

    def __init__(self, daemon: AgentDaemon, alerts: Alerts | None = None) -> None:
        self._daemon = daemon
        self._alerts = alerts or Alerts((), lambda asked: Facts(), role="agent")
        self._written = Written()  # of the last scrape
        self._level: str = daemon.config.log.level

    def status(self) -> Status:
        """Everything that ``tunnelctl status`` shows."""
        daemon, now = self._daemon, monotonic()
        tunnels = daemon.tunnels
        streams, bytes_in, bytes_out = daemon.sums()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(now - daemon.started, 3),
            "config_file": daemon.path and absolute(daemon.path),
            "server": daemon.config.server.url,
            "tunnels": [self._shown(tunnel, now) for tunnel in tunnels],
            "totals": {
                "tunnels": len(tunnels),
                "online": sum(1 for tunnel in tunnels if tunnel.state in ("online", "degraded")),
                "active_streams": daemon.active_streams,
                "streams": streams,
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
            },
        }

    def health(self) -> Health:
        """Ok: every tunnel is; down: none is up though there are some; degraded: anything between."""
        checks: list[Check] = [
            {
                "name": f"tunnel {tunnel.name}",
                "status": _TUNNEL_HEALTH.get(tunnel.state, "down"),
                "detail": _in_words(tunnel),
            }
            for tunnel in self._daemon.tunnels
        ]
        found = {check["status"] for check in checks}
        overall: HealthStatus = "ok"
        if found == {"down"}:
            overall = "down"
        elif found - {"ok"}:
            overall = "degraded"
        return {"status": overall, "checks": checks}

    def streams(
        self, tunnel: str | None = None, kind: str | None = None, *, oldest: int | None = None
    ) -> list[StreamInfo]:
        """Streams under way, oldest first."""
        now = monotonic()
        found = self._daemon.exchanges(tunnel, oldest if kind is None else None)
        if kind is not None:
            found = [exchange for exchange in found if exchange.kind == kind][:oldest]
        shown: list[Any] = [exchange.fields(now) for exchange in found]  # `cast` would be a call for each
        return shown

    def stream(self, request_id: str) -> StreamInfo | None:
        """One of them."""
        exchange = self._daemon.exchange(request_id)
        return None if exchange is None else cast(StreamInfo, exchange.fields(monotonic()))

    def cancel(self, request_ids: Collection[str]) -> list[str]:
        """Cancel these; the ids that were there."""
        return [request_id for request_id in request_ids if self._daemon.cancel(request_id)]

    async def reload(self) -> Reloaded:
        """Apply the changed file; raises ConfigError."""
        applied = await self._daemon.reload()
        self._level = self._daemon.config.log.level
        return {"changed": applied.changed, "restart": applied.restart}

    def reconnect(self, name: str) -> Reconnected:
        """Dial anew; raises VisitorError."""
        return {"tunnel": name, "was": self._daemon.reconnect(name)}

    def tunnel(self, name: str) -> TunnelStatus:
        """One tunnel; raises VisitorError."""
        return self._shown(self._daemon.running(name).tunnel, monotonic())

    async def open_tunnel(self, wanted: NewTunnel) -> TunnelStatus:
        """Open one that stands in no file, and see how it goes; raises ConfigError, VisitorError."""
        section: dict[str, Any] = {key: value for key, value in wanted.items() if key not in ("for_s", "save")}
        config = load_tunnel(section, self._daemon.config)
        if wanted.get("save"):
            tunnel = await self._daemon.open_saved(config, section)
        else:
            tunnel = self._daemon.open_tunnel(config, wanted.get("for_s"))
        settled = asyncio.Event()

        def look(event: Event) -> None:
            if event["type"] == "tunnel" and event["tunnel"] == tunnel.name:
                settled.set()

        unsubscribe = self._daemon.subscribe(look)
        try:
            async with asyncio.timeout(_OPENING):
                while tunnel.state == "connecting":
                    settled.clear()
                    await settled.wait()
        except TimeoutError:
            pass
        finally:
            unsubscribe()
        return self._shown(tunnel, monotonic())

    def share(self, name: str, path: str, seconds: float) -> Link:
        """See `AgentFacade`; so are all below."""
        until = int(time() + seconds)
        url = self._daemon.running(name).tunnel.share(path, until)
        return {"url": url, "expires": datetime.fromtimestamp(until, UTC).isoformat().replace("+00:00", "Z")}

    async def permissions(self, name: str) -> list[PermissionInfo]:  # noqa: D102
        tunnel, found, more = self._daemon.running(name).tunnel, list[Any](), True
        while more:
            said = await tunnel.permit("list", after=found[-1]["id"] if found else 0)
            found += said.permissions
            more = said.more and bool(said.permissions)
        return found

    async def grant(self, name: str, wanted: NewPermissions) -> list[PermissionInfo]:  # noqa: D102
        said = await self._daemon.running(name).tunnel.permit(
            "grant",
            emails=wanted["emails"],
            level=wanted.get("access_level"),
            expires_s=wanted.get("expires_s"),
            notes=wanted.get("notes"),
        )
        return said.permissions  # type: ignore[return-value]

    async def revoke_permission(self, name: str, email: str) -> PermissionInfo:  # noqa: D102
        said = await self._daemon.running(name).tunnel.permit("revoke", emails=[email])
        return said.permissions[0]  # type: ignore[return-value]

    def close_tunnel(self, name: str) -> TunnelClosed:
        """Close one that was opened at run time; raises VisitorError."""
        streams = self._daemon.running(name).tunnel.active_streams
        self._daemon.close_tunnel(name)
        return {"closed": name, "streams": streams}

    def _shown(self, tunnel: AgentTunnel, now: float) -> TunnelStatus:
        shown = tunnel_status(tunnel, now)
        running = self._daemon.find(tunnel.name)
        if running is not None:
            shown["configured"] = not running.at_run_time
            shown["expires_s"] = running.expires_in()
            file = self._daemon.config.source(tunnel.name) or self._daemon.path
            shown["file"] = absolute(file) if file and not running.at_run_time else None
        return shown

    def drain(self) -> Drained:
        """Begin to drain; the process leaves when that is done."""
        streams = self._daemon.begin_drain()
        self._daemon.leave()
        return {"draining": True, "streams": streams, "timeout_s": self._daemon.drain_timeout}

    def set_log_level(self, level: LogLevelName) -> str:
        """Log from this level on."""
        before, self._level = self._level, level
        logs.set_level(level)
        return before

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:
        """Prometheus's text, and its media type."""
        return await agent_metrics(self._daemon, self._alerts, self._written, accept)

    def requests(self, tunnel: str | None) -> list[SeenRequest]:
        """Newest first."""
        found: list[SeenRequest] = []
        for one in self._daemon.tunnels:
            if tunnel in (None, one.name) and (inspector := one.proxy.inspector) is not None:
                found += [cast(SeenRequest, seen.shown(one.name)) for seen in inspector.all()]
        found.sort(key=lambda seen: cast(float, seen["at"]), reverse=True)
        for seen in found:
            at = datetime.fromtimestamp(cast(float, seen["at"]), UTC)
            seen["at"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return found

    async def replay(self, request_id: str) -> Replayed:
        """Send one again; raises VisitorError."""
        for one in self._daemon.tunnels:
            inspector = one.proxy.inspector
            if inspector is not None and (seen := inspector.find(request_id)) is not None:
                answer = await one.proxy.resend(seen, token_hex(16), timeout=_REPLAYING)
                return cast(Replayed, answer)
        raise VisitorError("no_such_request", f"The request {request_id[:128]} is not kept.")

    def tail(self, request_id: str, tell: Callable[[dict[str, Any]], None]) -> tuple[Callable[[], None], int]:
        """Tell of what passes; raises VisitorError."""
        exchange = self._daemon.exchange(request_id)
        if exchange is None:
            raise VisitorError("no_such_stream", f"No stream {request_id[:128]} is under way.")
        inspector = self._daemon.running(exchange.tunnel).tunnel.proxy.inspector
        if inspector is None:
            raise VisitorError("not_inspected", f"The tunnel {exchange.tunnel} has no `inspect: true`.")
        seen = inspector.of(exchange)
        if seen is None:
            raise VisitorError("not_inspected", f"It began before {exchange.tunnel} had `inspect: true`.")
        between = exchange.counter is None or exchange.counter.between_blocks
        return inspector.watch(seen, tell, between=between), inspector.config.waiting

    def alerts(self) -> AlertsStatus:
        """What the alerts say now."""
        return self._alerts.status()

    async def test_alerts(self, name: str | None) -> AlertsTested:
        """Send a test; raises VisitorError."""
        return await self._alerts.test(name)

    def subscribe(self, listener: Callable[[Event], None], streams: Streams = None) -> Callable[[], None]:
        """Call `listener` for each event, `streams` in its place for those of streams."""
        return self._daemon.subscribe(listener, streams)


def tunnel_status(tunnel: AgentTunnel, now: float) -> TunnelStatus:
    """One tunnel in the API's shape; `now` is monotonic seconds."""
    said = tunnel.connected
    wished, heard = tunnel.config.heartbeat, tunnel.heard_at
    received, sent = tunnel.proxy.carried
    return {
        "name": tunnel.name,
        "state": tunnel.state,
        "tunnel_id": said.tunnel_id if said else None,
        "public_url": said.public_url if said else None,
        "host_url": said.host_url if said else None,
        "service": str(tunnel.config.service),
        "server_version": said.server_version or None if said else None,
        "token_expires_s": None if tunnel.token_end is None else round(tunnel.token_end - time(), 3),
        "connected_s": None if tunnel.connected_at is None else round(now - tunnel.connected_at, 3),
        "reconnects": tunnel.reconnects,
        "last_error": tunnel.last_error,
        "active_streams": tunnel.active_streams,
        "bytes_in": received,
        "bytes_out": sent,
        "throughput": throughput_status(tunnel.flow, now, received, sent),
        "heartbeat": {
            "interval_s": said.heartbeat.interval if said else wished.interval,
            "timeout_s": said.heartbeat.timeout if said else wished.timeout,
            "last_pong_s": None if tunnel.last_pong_at is None else round(now - tunnel.last_pong_at, 3),
            "last_byte_s": None if heard is None else round(max(0.0, now - heard), 3),
        },
        "quality": quality_status(tunnel.read_quality(now), tunnel.kernel),
        "outages": outages_status(tunnel.outages),
    }


def _in_words(tunnel: AgentTunnel) -> str:
    if tunnel.state == "online":
        return "The tunnel is up and its service answers."
    why = (tunnel.last_error or "").rstrip(".")
    return f"The tunnel is {tunnel.state}: {why}." if why else f"The tunnel is {tunnel.state}."
