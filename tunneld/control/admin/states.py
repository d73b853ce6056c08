"""What the server calls the state of a tunnel."""

from __future__ import annotations

from tunneld.control.admin.models import ServerTunnelState
from tunneld.server.registry import Tunnel

__all__ = ["tunnel_state"]


def tunnel_state(tunnel: Tunnel) -> ServerTunnelState:
    """As `ServerTunnel.state`."""
    if tunnel.online:
        proof = tunnel.proof
        if proof.fault is not None:
            return "degraded"
        return "connecting" if proof.asked and not proof.proved else "online"
    if tunnel.kept is not None and tunnel.kept.lost_at is not None:
        return "resuming"
    return "offline" if tunnel.connection is None else "draining"
