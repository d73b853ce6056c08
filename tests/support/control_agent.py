"""A small agent in memory: what the control API and tunnelctl are tested against. Also runs as a program.

``python -m tests.support.control_agent SOCKET [STREAMS]`` serves it until SIGTERM, for trying tunnelctl by hand.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tunneld.agent.telling import Streams
from tunneld.control.app import create_app
from tunneld.control.listener import ControlServer
from tunneld.control.models.agent import Drained, Health, LogLevelName, Reloaded, Status
from tunneld.control.models.events import Event
from tunneld.control.models.permissions import NewPermissions, PermissionInfo
from tunneld.control.models.streams import StreamInfo
from tunneld.control.models.tunnels import NewTunnel, Reconnected, TunnelClosed, TunnelStatus
from tunneld.errors import ConfigError, VisitorError


def stream_info(request_id: str, **changes: Any) -> StreamInfo:
    values: dict[str, Any] = {
        "request_id": request_id,
        "tunnel": "demo",
        "kind": "sse",
        "method": "GET",
        "path": "/sse?user=1",
        "client": "127.0.0.1:40000",
        "state": "open",
        "age_s": 12.5,
        "idle_s": 0.5,
        "bytes_in": 0,
        "bytes_out": 2048,
        "events": 7,
        "last_event_id": "7",
        "stalled": False,
    }
    assert changes.keys() <= values.keys()
    return values | changes  # type: ignore[return-value]


def tunnel_status(name: str, **changes: Any) -> TunnelStatus:
    values: dict[str, Any] = {
        "name": name,
        "state": "online",
        "tunnel_id": name,
        "public_url": f"http://127.0.0.1:8440/t/{name}/",
        "host_url": f"http://{name}.localhost:8440/",
        "service": "http://127.0.0.1:9000",
        "connected_s": 61.0,
        "reconnects": 0,
        "last_error": None,
        "active_streams": 0,
        "bytes_in": 0,
        "bytes_out": 0,
        "throughput": None,
        "heartbeat": {"interval_s": 30.0, "timeout_s": 10.0, "last_pong_s": 3.2, "last_byte_s": 0.4},
        "quality": {
            "rtt_ms": {"last": None, "p50": None, "p95": None},
            "jitter_ms": None,
            "loss": None,
            "grade": None,
        },
        "outages": {"count": 0, "seconds": 0.0, "replayed_bytes": 0, "streams_lost": 0, "last": None},
        "configured": True,
        "file": "/etc/tunneld/tunneld.yaml",
        "expires_s": None,
        "server_version": "0.1.0",
        "token_expires_s": None,
    }
    assert changes.keys() <= values.keys()
    return values | changes  # type: ignore[return-value]


def permission(email: str, **changes: Any) -> PermissionInfo:
    values: dict[str, Any] = {
        "id": 1,
        "server_id": "demo",
        "allowed_email": email,
        "user_id": None,
        "status": "pending",
        "access_level": "read_write",
        "granted_at": "2026-01-01T00:00:00.000Z",
        "granted_by_ip": None,
        "activated_at": None,
        "revoked_at": None,
        "expires_at": None,
        "notes": None,
    }
    return values | changes  # type: ignore[return-value]


class MemoryAgent:
    """Has streams, tunnels and listeners in plain containers; keeps what it was asked."""

    def __init__(self) -> None:
        self.tunnels: dict[str, TunnelStatus] = {"demo": tunnel_status("demo")}
        self.live: dict[str, StreamInfo] = {}
        self.listeners: set[Callable[[Event], None]] = set()
        self.subscribed = asyncio.Event()
        self.tells_streams = False  # to the last that subscribed
        self.level = "info"
        self.faults: list[str] = []
        self.changed: list[str] = []
        self.draining = False
        self.health_status: Any = "ok"
        self._ids = itertools.count(1)

    def add(self, *streams: StreamInfo) -> None:
        for one in streams:
            self.live[one["request_id"]] = one

    def publish(self, kind: str, **fields: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = {"id": next(self._ids), "type": kind, "time": now, **fields}
        for listener in tuple(self.listeners):
            listener(event)

    def status(self) -> Status:
        return {
            "version": "0.1.0",
            "pid": 4242,
            "uptime_s": 3725.0,
            "config_file": "/etc/tunneld/tunneld.yaml",
            "server": "ws://127.0.0.1:8440",
            "tunnels": list(self.tunnels.values()),
            "totals": {
                "tunnels": len(self.tunnels),
                "online": sum(one["state"] == "online" for one in self.tunnels.values()),
                "active_streams": len(self.live),
                "streams": 12,
                "bytes_in": 300,
                "bytes_out": 5_242_880,
            },
        }

    def health(self) -> Health:
        detail = "connected to ws://127.0.0.1:8440"
        return {
            "status": self.health_status,
            "checks": [{"name": "tunnel demo", "status": self.health_status, "detail": detail}],
        }

    def streams(
        self, tunnel: str | None = None, kind: str | None = None, *, oldest: int | None = None
    ) -> list[StreamInfo]:
        found = (one for one in self.live.values() if tunnel in (None, one["tunnel"]) and kind in (None, one["kind"]))
        return list(found)[:oldest]

    def stream(self, request_id: str) -> StreamInfo | None:
        return self.live.get(request_id)

    def cancel(self, request_ids: Collection[str]) -> list[str]:
        done = [one for one in request_ids if self.live.pop(one, None)]
        for request_id in done:
            self.publish("stream_closed", request_id=request_id, reason="operator")
        return done

    async def reload(self) -> Reloaded:
        if self.faults:
            raise ConfigError(self.faults)
        return {"changed": self.changed}

    def reconnect(self, name: str) -> Reconnected:
        if name not in self.tunnels:
            raise VisitorError("no_such_tunnel", f"no tunnel {name!r}; there are: {', '.join(self.tunnels)}")
        return {"tunnel": name, "was": self.tunnels[name]["state"]}

    def tunnel(self, name: str) -> TunnelStatus:
        if name not in self.tunnels:
            raise VisitorError("no_such_tunnel", f"This agent has no tunnel named {name}.")
        return self.tunnels[name]

    async def permissions(self, name: str) -> list[PermissionInfo]:
        self.tunnel(name)
        return [permission("ann@example.org")]

    async def grant(self, name: str, wanted: NewPermissions) -> list[PermissionInfo]:
        self.tunnel(name)
        return [permission(email, access_level=wanted.get("access_level", "read_write")) for email in wanted["emails"]]

    async def revoke_permission(self, name: str, email: str) -> PermissionInfo:
        self.tunnel(name)
        return permission(email, status="revoked")

    async def open_tunnel(self, wanted: NewTunnel) -> TunnelStatus:
        if wanted["name"] in self.tunnels:
            raise VisitorError("tunnel_exists", f"This agent has a tunnel named {wanted['name']} already.")
        if self.faults:
            raise ConfigError(self.faults)
        opened = self.tunnels[wanted["name"]] = tunnel_status(wanted["name"], service=wanted["service"])
        opened["configured"], opened["file"], opened["expires_s"] = False, None, wanted.get("for_s")
        return opened

    def close_tunnel(self, name: str) -> TunnelClosed:
        if self.tunnel(name).get("configured", True):
            raise VisitorError("tunnel_configured", f"The tunnel {name} stands in the configuration.")
        del self.tunnels[name]
        return {"closed": name, "streams": 0}

    def drain(self) -> Drained:
        self.draining = True
        return {"draining": True, "streams": len(self.live), "timeout_s": 30.0}

    def set_log_level(self, level: LogLevelName) -> str:
        was, self.level = self.level, level
        return was

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:
        return b"# HELP tunneld_tunnels Tunnels.\n", "text/plain; version=0.0.4; charset=utf-8"

    def requests(self, tunnel: str | None) -> Any:
        return []

    async def replay(self, request_id: str) -> Any:
        raise VisitorError("no_such_request")

    def tail(self, request_id: str, tell: Any) -> Any:
        raise VisitorError("not_inspected")

    def alerts(self) -> Any:
        return {"alerts": [], "rules": [], "receivers": []}

    async def test_alerts(self, name: str | None) -> Any:
        if name is not None:
            raise VisitorError("no_such_alert")
        return {"told": [{"receiver": "webhook hooks.example.org", "fault": None}]}

    def subscribe(self, listener: Callable[[Event], None], streams: Streams = None) -> Callable[[], None]:
        self.listeners.add(listener)
        self.tells_streams = streams is not False
        self.subscribed.set()
        return lambda: self.listeners.discard(listener)


async def _main(path: str, streams: int) -> None:
    agent = MemoryAgent()
    agent.add(*(stream_info(f"{number:08x}{'ab' * 4}", age_s=float(number)) for number in range(streams)))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with ControlServer(lambda: create_app(agent), Path(path)):
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3))
