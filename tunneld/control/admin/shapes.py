"""The server's own objects in the shapes of its admin API."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from tunneld.control.admin.models import ServerTunnel, TokenInfo
from tunneld.control.admin.states import tunnel_state
from tunneld.control.models.streams import StreamInfo
from tunneld.control.shapes import outages_status, quality_status, throughput_status
from tunneld.server.carried import Live
from tunneld.server.principals import OPEN_OWNER
from tunneld.server.registry import Tunnel
from tunneld.server.store.records import Token
from tunneld.server.visit import Visit

__all__ = ["iso", "stream_info", "token_info", "tunnel_info"]


def token_info(token: Token, now: float) -> TokenInfo:
    """A credential, as people may see it."""
    return {
        "id": token.id,
        "name": token.name,
        "tunnels": list(token.tunnels),
        "scopes": list(token.scopes),  # type: ignore[arg-type]
        "state": token.state(now),  # type: ignore[typeddict-item]
        "certificate": token.certificate,
        "owner": token.owner,
        "created": iso(token.created),
        "expires": None if token.expires is None else iso(token.expires),
        "revoked": None if token.revoked is None else iso(token.revoked),
        "limits": asdict(token.limits),  # type: ignore[typeddict-item]
    }


def tunnel_info(tunnel: Tunnel, live: Live, now: float) -> ServerTunnel:
    """One known name in the API's shape; `live`: what it carries, `now`: monotonic seconds."""
    received, sent = tunnel.bytes_in + live.bytes_in, tunnel.bytes_out + live.bytes_out
    connection = tunnel.connection
    seen = connection.seen(now) if connection is not None else None
    principal = tunnel.principal
    waits = tunnel.kept is not None and tunnel.kept.lost_at is not None
    return {
        "name": tunnel.name,
        "state": tunnel_state(tunnel),
        "tunnel_id": tunnel.name,
        "public_url": tunnel.public_url,
        "host_url": tunnel.host_url,
        "service": "",
        "connected_s": seen.connected_s if seen is not None and not waits else None,
        "reconnects": tunnel.connects - 1 if tunnel.connects else 0,
        "last_error": tunnel.proof.fault,
        "active_streams": live.streams,
        "bytes_in": received,
        "bytes_out": sent,
        "throughput": throughput_status(tunnel.flow, now, received, sent),
        "heartbeat": {
            "interval_s": tunnel.heartbeat.interval,
            "timeout_s": tunnel.heartbeat.timeout,
            "last_pong_s": seen.last_pong_s if seen is not None else None,
            "last_byte_s": seen.last_heard_s if seen is not None and not waits else None,
        },
        "quality": quality_status(tunnel.read_quality(now), seen.kernel if seen is not None else None),
        "outages": outages_status(tunnel.outages),
        "peer": seen.peer if seen is not None else None,
        "agent_version": seen.agent_version if seen is not None else None,
        "probe_ms": None if tunnel.proof.took is None else round(tunnel.proof.took * 1000, 3),
        "owner": principal.id,
        "owner_name": principal.owner_name,
        "token": "" if principal.id == OPEN_OWNER else principal.name,
    }


def stream_info(exchange: Visit, now: float) -> StreamInfo:
    """One stream in the API's shape; `now` monotonic seconds."""
    idle = now - exchange.active
    return {
        "request_id": exchange.request_id,
        "tunnel": exchange.tunnel.name,
        "kind": exchange.kind,  # type: ignore[typeddict-item]
        "method": exchange.method,
        "path": exchange.path,
        "client": exchange.client,
        "state": exchange.state,
        "age_s": int((now - exchange.started) * 1000 + 0.5) / 1000,  # `round` is a third of what all of it costs
        "idle_s": int(idle * 1000 + 0.5) / 1000 if idle > 0 else 0.0,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "events": exchange.events,
        "last_event_id": exchange.last_event_id,
        "stalled": exchange.stuck,
    }


def iso(at: float) -> str:
    """Seconds of the epoch as ISO 8601 UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
