"""`metrics.listen`: metrics for whoever scrapes, the rest for this machine, changes with `metrics.token_file` alone."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest

from tests.support.commands import tunnelctl
from tests.support.daemons import Pair
from tests.support.processes import eventually
from tests.support.receivers import hooked, listening
from tests.support.running import Book, agent_settings
from tests.support.sockets import LOOPBACK, free_port
from tests.support.usage import threads
from tunneld.config.agent import AgentConfig
from tunneld.config.common import QualityConfig
from tunneld.control import metrics
from tunneld.control.admin import quality_metrics
from tunneld.control.host import AgentHost
from tunneld.errors import ConfigError
from tunneld.server.registry import Tunnel
from tunneld.wire.lookups import lookup

SECRET = "the-scraper's-own"


@asynccontextmanager
async def hosted(
    folder: Path, *, log: dict[str, Any] | None = None, **metrics: Any
) -> AsyncIterator[tuple[AgentHost, httpx.AsyncClient]]:
    """An agent whose server is not there, and a client of its `metrics.listen`."""
    over = {"control": {"socket": str(folder / "c.sock")}, "metrics": {"listen": f"{LOOPBACK}:0", **metrics}}
    over["log"] = log or {}
    host = AgentHost(AgentConfig(**agent_settings("ws://127.0.0.1:9", "http://127.0.0.1:9", over)), None)
    await host.start()
    try:
        address = host.metrics_address
        assert address is not None
        async with httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{address[1]}") as client:
            yield host, client
    finally:
        await host.stop()


def secret_file(folder: Path) -> str:
    path = folder / "token"
    path.write_text(SECRET)
    path.chmod(0o600)
    return str(path)


async def test_without_a_token_everything_is_read_and_nothing_changed(folder: Path, lines: Book) -> None:
    async with hosted(folder) as (host, client):
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        assert "tunneld_tunnel_up" in answer.text
        assert (await client.get("/v1/status")).json()["tunnels"][0]["name"] == "app"
        refused = await client.post("/v1/tunnels/app/reconnect")
        assert (refused.status_code, refused.headers["x-tunnel-error"]) == (403, "read_only")
        assert (await client.put("/v1/log-level", json={"level": "error"})).status_code == 403
        assert host.agent.tunnels[0].name == "app"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "misdirected"),
        ({"X-Forwarded-For": "203.0.113.7"}, "local_only"),
        ({"Sec-Fetch-Site": "cross-site"}, "web_page_refused"),
    ],
)
async def test_without_a_token_what_names_visitors_is_for_this_machine_alone(
    folder: Path, headers: dict[str, str], code: str
) -> None:
    async with hosted(folder) as (_, client):
        for target in ("/v1/streams", "/v1/status?streams=true"):
            refused = await client.get(target, headers=headers)
            assert refused.headers["x-tunnel-error"] == code
        scraped = await client.get("/metrics", headers=headers)
        assert scraped.status_code == (403 if code == "web_page_refused" else 200)


async def test_with_a_token_every_call_needs_it_and_changes_are_done(folder: Path, lines: Book) -> None:
    async with hosted(folder, token_file=secret_file(folder)) as (_, client):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {SECRET}"}):
            for target in ("/metrics", "/v1/status?streams=true"):
                refused = await client.get(target, headers=headers)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        bearer = {"Authorization": f"Bearer {SECRET}"}
        assert (await client.get("/metrics", headers=bearer)).status_code == 200
        changed = await client.post("/v1/tunnels/app/reconnect", headers=bearer)
        assert changed.json()["tunnel"] == "app"
        await lines.wait("tunnel app dials again, by metrics.token_file from 127.0.0.1")
        assert not lines.find(SECRET)


async def test_wrong_tokens_are_counted_by_address_and_the_right_one_passes(folder: Path, lines: Book) -> None:
    over = {"token_file": secret_file(folder), "max_failures": 3, "failure_window": "1h"}
    async with hosted(folder, **over) as (_, client):
        wrong = {"Authorization": "Bearer guess"}
        assert [(await client.get("/metrics", headers=wrong)).status_code for _each in range(3)] == [401] * 3
        beyond = await client.get("/v1/status", headers=wrong)
        assert (beyond.status_code, beyond.headers["x-tunnel-error"]) == (429, "rate_limited")
        assert 1 <= int(beyond.headers["retry-after"]) <= 1200
        assert (await client.post("/v1/reload")).status_code == 429  # none at all is a try too
        right = {"Authorization": f"Bearer {SECRET}"}
        assert (await client.get("/metrics", headers=right)).status_code == 200
        assert (await client.get("/metrics", headers=wrong)).status_code == 429
        assert (await client.get("/dashboard")).status_code == 401  # the page that asks for it is no try
        # From another address it begins anew.
        transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with httpx.AsyncClient(base_url=client.base_url, transport=transport) as other:
            assert (await other.get("/metrics", headers=wrong)).status_code == 401
    assert len(lines.find("Refused a credential on metrics.listen from 127.0.0.1")) == 3
    assert len(lines.find("Refused a credential on metrics.listen from 127.0.0.2")) == 1
    assert not lines.find("guess")


async def test_a_port_that_is_taken_is_said_and_the_agent_goes_on(folder: Path, lines: Book) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        over = {"control": {"socket": str(folder / "c.sock")}, "metrics": {"listen": f"{LOOPBACK}:{port}"}}
        host = AgentHost(AgentConfig(**agent_settings("ws://127.0.0.1:9", "http://127.0.0.1:9", over)), None)
        await host.start()
        try:
            await lines.wait(f"metrics.listen: 127.0.0.1 port {port} cannot be had")
            assert host.metrics_address is None
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(folder / "c.sock"))) as client:
                assert (await client.get("http://localhost/metrics")).status_code == 200
        finally:
            await host.stop()


async def test_a_name_is_listened_on_at_each_of_its_addresses(folder: Path) -> None:
    async with hosted(folder, listen="localhost:0") as (host, _):
        assert host.metrics_address is not None
        listening = await lookup("localhost", 0, type=socket.SOCK_STREAM)
        reading = host._reading
        assert reading is not None
        assert 1 <= len(reading._servers) <= len(listening)
        for server in reading._servers:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()


def test_no_thread_is_left_of_what_answers(folder: Path) -> None:
    """That the API was loaded, and an address listened on, leaves each daemon with its one thread."""
    metrics = free_port()
    pair = Pair(folder, {"demo": f"http://{LOOPBACK}:9"}, agent={"metrics": {"listen": f"{LOOPBACK}:{metrics}"}})
    try:
        for port in (metrics, pair.server.admin_port):
            assert httpx.get(f"http://{LOOPBACK}:{port}/metrics").status_code == 200
        assert pair.agent.ask("status")["tunnels"]
        for process in pair.processes:
            (pid,) = process.family()
            eventually(lambda pid=pid: threads(pid) == 1, what=f"{process.name} has one thread")
    finally:
        pair.discard()


@pytest.mark.timeout(60)
async def test_no_thread_is_left_of_what_blocks(folder: Path) -> None:
    """Nor of the audit of a change, a webhook, a file that is saved, and a password. The store keeps its one."""
    async with listening() as hook:
        rules, trails = [{"when": "rtt", "to": [hooked(hook)]}], [folder / "agent.log", folder / "server.log"]
        users = folder / "users"
        users.write_text(f"ann:{bcrypt.hashpw(b'word', bcrypt.gensalt(4)).decode()}\n")
        access = {"mode": "basic", "users_file": str(users)}
        over = [{"log": {"audit": str(trail)}, "alerts": rules} for trail in trails]
        tunnels = {"demo": {"service": f"http://{LOOPBACK}:9", "access": access}}
        pair = await asyncio.to_thread(Pair, folder, tunnels, agent=over[0], server=over[1])

        def act() -> None:
            line = ["--server", f"http://{LOOPBACK}:{pair.server.admin_port}"]
            for done in (pair.agent.tunnelctl, lambda *words: tunnelctl(*line, *words)):
                assert done("reload").returncode == 0
                assert done("alerts", "test").returncode == 0
            assert pair.agent.tunnelctl("open", "kept", "9", "--save").returncode == 0
            assert httpx.get(pair.url("demo"), auth=("ann", "word")).status_code == 502
            assert all("reload" in trail.read_text() for trail in trails)
            for process, left in zip(pair.processes, (1, 2), strict=True):
                (pid,) = process.family()
                at_rest = f"{process.name} with {left} threads"
                eventually(lambda pid=pid, left=left: threads(pid) == left, timeout=2, what=at_rest)

        try:
            await asyncio.to_thread(act)
            assert len(hook.bodies) == 2
        finally:
            await asyncio.to_thread(pair.discard)


async def test_a_token_that_others_can_read_is_refused(folder: Path) -> None:
    path = secret_file(folder)
    Path(path).chmod(0o644)
    with pytest.raises(ConfigError, match=r"metrics\.token_file"):
        async with hosted(folder, token_file=path):
            pass


async def test_the_dashboard_is_read_only_without_a_token(folder: Path, lines: Book) -> None:
    async with hosted(folder) as (_, client):
        page = await client.get("/dashboard")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        about = await first_message(client)
        assert (about["role"], about["api"], about["changes"]) == ("agent", "v1", False)
        assert [tunnel["name"] for tunnel in about["tunnels"]] == ["app"]
        assert (await client.post("/v1/tunnels/app/reconnect")).status_code == 403


async def test_with_a_token_the_dashboard_asks_for_it_and_changes(folder: Path, lines: Book) -> None:
    async with hosted(folder, token_file=secret_file(folder)) as (_, client):
        assert (await client.get("/dashboard")).status_code == 401
        assert (await client.get("/dashboard/app.js")).status_code == 200
        assert (await client.get("/dashboard/app.js", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
        assert (await client.get("/dashboard/sparks")).status_code == 401
        client.headers["Authorization"] = f"Bearer {SECRET}"
        assert (await client.get("/dashboard")).status_code == 200
        assert (await first_message(client))["changes"] is True
        answer = await client.post("/v1/tunnels/app/reconnect", headers={"X-Tunneld-Request": "dashboard"})
        assert answer.json()["tunnel"] == "app"


async def first_message(client: httpx.AsyncClient) -> dict[str, Any]:
    async with client.stream("GET", "/dashboard/feed") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                return dict(json.loads(line[6:]))
    raise AssertionError("the feed told nothing")


async def test_refused_changes_of_one_caller_have_one_line_and_the_others_are_counted(
    folder: Path, lines: Book
) -> None:
    audit = folder / "audit.log"
    async with hosted(folder, log={"audit": str(audit)}) as (_, client):
        for _ in range(4):
            refused = await client.delete(f"/v1/streams/{'x' * 1000}")
            assert refused.status_code == 403
        found = [json.loads(line) for line in audit.read_text().splitlines()]
        assert [(line["actor"], line["action"], line["ok"]) for line in found] == [
            ("somebody at 127.0.0.1", "refused", False)
        ]
        assert found[0]["detail"].endswith("x…': read_only")
        assert len(found[0]["detail"]) < 300
    last = json.loads(audit.read_text().splitlines()[-1])
    assert last["detail"] == f"3 more within 60 s like this: {found[0]['detail']}", "told when it leaves at the latest"


@pytest.mark.parametrize("most", [0, 1])
async def test_what_the_kernel_knows_is_told_of_few_tunnels_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Of thousands it would be a third of a scrape."""
    monkeypatch.setattr(metrics, "KERNEL_TUNNELS", most)
    async with hosted(folder) as (_, client):
        text = (await client.get("/metrics")).text
    assert ("# TYPE tunneld_connection_rtt_seconds" in text) == bool(most)
    assert "# TYPE tunneld_heartbeat_rtt_seconds" in text
    assert "# TYPE tunneld_connection_last_byte_timestamp_seconds" in text


@pytest.mark.parametrize("most", [1, 2])
def test_so_it_is_at_the_server(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(quality_metrics, "KERNEL_TUNNELS", most)
    tunnels = [
        Tunnel(name, now=0, public_url="", host_url=None, max_waiting=1, thresholds=QualityConfig()) for name in "ab"
    ]
    told = {family.name for family in quality_metrics.quality_families(tunnels) if family is not None}
    assert ("tunneld_known_connection_rtt_seconds" in told) == (most == 2)
    assert "tunneld_known_heartbeat_rtt_seconds" in told
