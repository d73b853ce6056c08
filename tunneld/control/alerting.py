"""What the agent's alerts look at, gathered from the running daemon; and what operators see of them."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING

from tunneld.agent.daemon import AgentDaemon
from tunneld.alerts.facts import Facts, TunnelFacts
from tunneld.alerts.watch import AlertWatch
from tunneld.telemetry.metrics import descriptors
from tunneld.wire.certificates import describe

if TYPE_CHECKING:
    from tunneld.control.models import AlertsStatus

__all__ = ["AgentFacts", "alerts_status", "certificate_end"]

_UP = frozenset({"online", "degraded", "draining"})
_LOOK_AT_FILES = 3600.0
"""Seconds between two looks at certificates on the disk."""
log = logging.getLogger("tunneld.alerts")


class AgentFacts:
    """Callable: the agent's facts now."""

    def __init__(self, daemon: AgentDaemon) -> None:
        self._daemon = daemon
        self._ends: dict[str, float] = {}  # of certificates on the disk, seconds of the epoch
        self._looked_at = float("-inf")

    def __call__(self) -> Facts:
        """Gather them; costs some microseconds a tunnel."""
        daemon, now = self._daemon, monotonic()
        tunnels = []
        for tunnel in daemon.tunnels:
            reading = tunnel.read_quality(now)
            tunnels.append(
                TunnelFacts(
                    tunnel.name,
                    up=tunnel.state in _UP,
                    state=tunnel.state,
                    why=tunnel.last_error or "",
                    service_fault=tunnel.service_fault,
                    reconnects=tunnel.reconnects,
                    streams_lost=tunnel.outages.streams_lost,
                    rtt=reading.p95,
                    loss=reading.loss,
                )
            )
        return Facts(tuple(tunnels), self._limits(), self._expiries(now))

    def _limits(self) -> dict[str, float]:
        daemon = self._daemon
        budget = daemon.holders.budget
        _, used, most = descriptors()
        found = {
            "memory": budget.held / budget.limit if budget.limit else 0.0,
            "descriptors": used / most if most else 0.0,
        }
        shares = [tunnel.active_streams / tunnel.config.limits.max_streams for tunnel in daemon.tunnels]
        found["streams of a tunnel"] = max(shares, default=0.0)
        return found

    def _expiries(self, now: float) -> dict[str, float]:
        if now - self._looked_at > _LOOK_AT_FILES:
            self._looked_at = now
            self._ends = {}
            path = self._daemon.config.server.client_cert
            if path is not None and (end := certificate_end(path)) is not None:
                self._ends["the client certificate"] = end
        ends = dict(self._ends)
        for tunnel in self._daemon.tunnels:
            if (end := tunnel.server_certificate_end) is not None:
                ends["the server's certificate"] = end
                break
        at = time()
        return {what: end - at for what, end in ends.items()}


def certificate_end(path: str) -> float | None:
    """When the first certificate of a PEM file ends, seconds of the epoch; None when it cannot be read."""
    try:
        _, end = describe(Path(path).read_bytes())
    except OSError as error:
        log.warning("%s: its end cannot be read: %s", path, error.strerror)
        return None
    return None if end is None else end.timestamp()


def alerts_status(watch: AlertWatch) -> AlertsStatus:
    """The answer of ``GET /v1/alerts``."""
    firing = [
        {
            "alert": one.alert,
            "subject": one.subject,
            "state": one.state,
            "since": datetime.fromtimestamp(one.since, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "message": one.message,
        }
        for one in watch.shown()
    ]
    return {
        "alerts": firing,  # type: ignore[typeddict-item]
        "rules": [
            {"name": rule.name, "when": rule.when, "over": rule.over, "for_s": rule.held or 0.0} for rule in watch.rules
        ],
        "receivers": [
            {
                "name": delivery.name,
                "queued": delivery.queued,
                "sent": delivery.sent,
                "failed": delivery.failed,
                "last_error": delivery.last_error,
            }
            for delivery in watch.deliveries
        ],
    }
