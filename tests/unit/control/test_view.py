"""The control API of a real agent through its real socket: the fields of the contract, to the letter."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running import Book, agent_settings, port_of, running_server, settled, url_of, written
from tests.support.sockets import LOOPBACK
from tests.support.tunnelled import read_head, serving
from tunneld import __version__
from tunneld.config.load import load_agent
from tunneld.control.host import AgentHost
from tunneld.errors import ConfigError

NOT_KNOWN = {
    "rtt_ms": {"last": None, "p50": None, "p95": None},
    "jitter_ms": None,
    "queue_ms": None,
    "loss": None,
    "grade": None,
    "reason": "",
    "pings": 0,
    "pings_lost": 0,
}


@pytest.fixture
async def events() -> AsyncIterator[str]:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nid: 7\ndata: hello\n\n")
        await reader.read()

    async with serving(handler) as address:
        yield address


@asynccontextmanager
async def hosted(
    folder: Path, url: str, service: str, **settings: Any
) -> AsyncIterator[tuple[AgentHost, httpx.AsyncClient]]:
    path = folder / "agent.yaml"
    written(path, agent_settings(url, service, {"control": {"socket": str(folder / "c.sock")}, **settings}))
    host = AgentHost(load_agent(str(path)), str(path))
    await host.start()
    transport = httpx.AsyncHTTPTransport(uds=str(folder / "c.sock"))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=10) as client:
            yield host, client
    finally:
        await host.stop()
    assert not (folder / "c.sock").exists()


async def test_status_and_health_before_there_is_a_server(lines: Book, folder: Path) -> None:
    async with hosted(folder, f"ws://{LOOPBACK}:1", f"http://{LOOPBACK}:1", reconnect={"initial": 30, "max": 30}) as (
        _,
        client,
    ):
        await lines.wait("✗ Tunnel error for app")
        await lines.wait("The service of app fails")
        status = (await client.get("/v1/status")).json()
        assert status.pop("uptime_s") >= 0
        (tunnel,) = status.pop("tunnels")
        assert status == {
            "version": __version__,
            "pid": os.getpid(),
            "config_file": str(folder / "agent.yaml"),
            "server": f"ws://{LOOPBACK}:1",
            "totals": {"tunnels": 1, "online": 0, "active_streams": 0, "streams": 0, "bytes_in": 0, "bytes_out": 0},
        }
        assert tunnel.pop("last_error")
        assert tunnel == {
            "name": "app",
            "state": "offline",
            "tunnel_id": None,
            "public_url": None,
            "host_url": None,
            "service": f"http://{LOOPBACK}:1",
            "server_version": None,
            "token_expires_s": None,
            "connected_s": None,
            "reconnects": 0,
            "active_streams": 0,
            "bytes_in": 0,
            "bytes_out": 0,
            "throughput": None,
            "heartbeat": {"interval_s": 30.0, "timeout_s": 10.0, "last_pong_s": None, "last_byte_s": None},
            "quality": NOT_KNOWN,
            "configured": True,
            "file": str(folder / "agent.yaml"),
            "expires_s": None,
            "outages": {"count": 0, "seconds": 0.0, "replayed_bytes": 0, "streams_lost": 0, "last": None},
        }
        answer = await client.get("/v1/health")
        assert answer.status_code == 503
        health = answer.json()
        assert health["status"] == "down"
        (check,) = health["checks"]
        assert set(check) == {"name", "status", "detail"}
        assert (check["name"], check["status"]) == ("tunnel app", "down")
        assert ".." not in check["detail"]


async def test_a_tunnel_that_is_up_and_its_stream(lines: Book, folder: Path, events: str) -> None:
    async with (
        running_server(domain="localhost") as server,
        hosted(folder, url_of(server), events) as (host, client),
        client.stream("GET", "/v1/events") as told,
    ):
        said = told.aiter_lines()
        await lines.wait("💓 Heartbeat acknowledged for app", count=2)
        reader, writer = await asyncio.open_connection(LOOPBACK, port_of(server))
        writer.write(b"GET /t/app/sse?q=1 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        await reader.readuntil(b"data: hello\n\n")
        (tunnel,) = (await client.get("/v1/status")).json()["tunnels"]
        public = f"http://{LOOPBACK}:{port_of(server)}/t/app"
        assert (tunnel["state"], tunnel["tunnel_id"], tunnel["public_url"]) == ("online", "app", public)
        assert tunnel["host_url"] == f"http://app.localhost:{port_of(server)}"
        assert tunnel["last_error"] is None
        assert tunnel["connected_s"] >= 0
        assert tunnel["active_streams"] == 1
        assert tunnel["heartbeat"]["last_pong_s"] >= 0
        quality = tunnel["quality"]
        assert 0 < quality["rtt_ms"]["last"] < 5000
        assert quality["rtt_ms"]["p50"] <= quality["rtt_ms"]["p95"]
        assert (quality["loss"], quality["pings_lost"]) == (0, 0)
        assert quality["grade"] in ("excellent", "good", "fair", "poor")
        assert quality["tcp"]["segments"] > 0
        health = (await client.get("/v1/health")).json()
        assert health["status"] == "ok"
        (stream,) = (await client.get("/v1/streams")).json()["streams"]
        assert set(stream) == {
            *("request_id", "tunnel", "kind", "method", "path", "client", "state", "age_s", "idle_s"),
            *("bytes_in", "bytes_out", "events", "last_event_id", "stalled"),
        }
        assert (stream["tunnel"], stream["kind"], stream["method"], stream["path"]) == ("app", "sse", "GET", "/sse?q=1")
        assert (stream["client"], stream["events"], stream["last_event_id"]) == (LOOPBACK, 1, "7")
        one = (await client.get(f"/v1/streams/{stream['request_id']}")).json()
        assert one["request_id"] == stream["request_id"]
        assert (await client.delete(f"/v1/streams/{stream['request_id']}")).json() == {
            "cancelled": [stream["request_id"]]
        }
        entry = await lines.wait(f"🧹 Cleaned up stream: {stream['request_id']}", by="tunneld.ingress")
        assert entry.fields["reason"] == "operator"
        assert (await client.delete(f"/v1/streams/{stream['request_id']}")).status_code == 404
        kinds: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(10):
            while "stream_closed" not in kinds:
                line = await anext(said)
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    kinds[event["type"]] = event
        assert {"heartbeat", "tunnel", "stream_opened", "stream_closed"} >= set(kinds) > {"stream_opened"}
        closed = kinds["stream_closed"]
        assert set(closed) == {
            *("id", "type", "time", "tunnel", "request_id", "kind", "method", "path", "client"),
            *("reason", "age_s", "bytes_in", "bytes_out"),
        }
        assert closed["reason"] == "operator"
        assert (await client.post("/v1/tunnels/app/reconnect")).json() == {"tunnel": "app", "was": "online"}
        assert (await client.post("/v1/tunnels/nope/reconnect")).status_code == 404
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel", count=2)
        assert (await client.get("/v1/status")).json()["tunnels"][0]["reconnects"] == 1
        totals = (await client.get("/v1/status")).json()["totals"]
        assert totals["streams"] == 1
        assert totals["bytes_out"] > 0
        writer.close()
        await settled(lambda: not server.ingress.connections)
        assert host.status_line().startswith("1 of 1 tunnels up, 0 streams")


async def test_changes(lines: Book, folder: Path, events: str) -> None:
    async with running_server() as server, hosted(folder, url_of(server), events) as (_, client):
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
        assert (await client.post("/v1/reload")).json() == {"changed": [], "restart": []}
        assert (await client.put("/v1/log-level", json={"level": "debug"})).json() == {"level": "debug", "was": "info"}
        await client.post("/v1/reload")
        assert (await client.put("/v1/log-level", json={"level": "error"})).json() == {"level": "error", "was": "info"}
        (folder / "agent.yaml").write_text("tunels: []\n")
        refused = await client.post("/v1/reload")
        assert refused.status_code >= 400
        assert refused.json()["faults"]
        assert (await client.post("/v1/drain")).json() == {"draining": True, "streams": 0, "timeout_s": 30.0}
        (tunnel,) = (await client.get("/v1/status")).json()["tunnels"]
        assert tunnel["state"] == "draining"


async def test_a_second_agent_on_a_live_socket_never_dials(lines: Book, folder: Path) -> None:
    async with hosted(folder, f"ws://{LOOPBACK}:1", f"http://{LOOPBACK}:1") as (host, client):
        second = AgentHost(host.agent.config, None)
        with pytest.raises(ConfigError) as caught:
            await second.start()
        assert f"pid {os.getpid()}" in str(caught.value)
        assert not second.agent.tunnels
        assert (await client.get("/v1/health")).status_code == 503
