"""What the server's alerts look at, gathered from the running daemon."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from time import monotonic, time

from tunneld.alerts.facts import Facts, TunnelFacts
from tunneld.config.advice import certificates
from tunneld.control.admin.states import tunnel_state
from tunneld.control.alerting import CertificateEnds
from tunneld.server.daemon import ServerDaemon
from tunneld.server.registry import Tunnel
from tunneld.server.usage import server_usage
from tunneld.telemetry.usage import Shares

__all__ = ["ServerFacts"]

_UP = frozenset({"connecting", "online", "degraded", "draining"})
_OVER = 7 * 86400.0
"""Seconds for which a token that has ended is told of: nobody takes an old one out of the store."""


class ServerFacts:
    """Callable: the server's facts now. Its tunnels are gathered as they are gone through: there may be thousands."""

    def __init__(self, daemon: ServerDaemon) -> None:
        self._daemon = daemon
        self._files = CertificateEnds()
        self._shares = Shares(lambda: server_usage(daemon))

    def __call__(self, asked: Collection[str]) -> Facts:
        """Gather what these conditions ask for."""
        return Facts(
            self._tunnels(measured="rtt" in asked or "loss" in asked),
            self._shares.read(monotonic()) if "limit_near" in asked else {},
            self._expiries() if "expiring" in asked else {},
        )

    def _tunnels(self, *, measured: bool) -> Iterator[TunnelFacts]:
        for tunnel in self._daemon.registry.all():
            yield _facts(tunnel, measured=measured)

    def _expiries(self) -> dict[str, float]:
        daemon, at = self._daemon, time()
        config = daemon.config
        ends = dict(
            self._files.read(
                monotonic(),
                config,
                lambda: [(f"the certificate {pair.cert} ({where})", pair.cert) for where, pair in certificates(config)],
            )
        )
        for token in daemon.access.credentials.all():
            if token.expires is not None and token.revoked is None and token.expires > at - _OVER:
                ends[f"the token {token.name} ({token.id})"] = token.expires
        return {what: end - at for what, end in ends.items()}


def _facts(tunnel: Tunnel, *, measured: bool) -> TunnelFacts:
    state = tunnel_state(tunnel)
    reading = tunnel.read_quality(monotonic()) if measured and tunnel.online else None
    return TunnelFacts(
        tunnel.name,
        up=state in _UP,
        state=state,
        service_fault=tunnel.proof.fault if tunnel.online else None,
        reconnects=max(0, tunnel.connects - 1),
        streams_lost=tunnel.outages.streams_lost,
        rtt=None if reading is None else reading.p95,
        loss=None if reading is None else reading.loss,
    )
