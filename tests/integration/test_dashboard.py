"""The dashboard's addresses on a running server: the page, its files, who gets them, its past and its live feed."""

import asyncio
import json
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest

from tests.integration.test_admin_api import CHANGE, busy, hosted, problem, token_file
from tests.support.running import settled
from tunneld.config.common import DashboardConfig
from tunneld.dashboard.source import COUNTED, Brief


class Reader:
    """An open feed: its messages one by one."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()

    async def next(self) -> dict[str, Any]:
        async for line in self._lines:
            if line.startswith("data: "):
                return dict(json.loads(line[6:]))
        raise EOFError

    async def until(self, key: str) -> Any:
        """The next message that has this key."""
        while True:
            found = await self.next()
            if key in found:
                return found[key]


@asynccontextmanager
async def feed(client: httpx.AsyncClient, **headers: str) -> AsyncIterator[Reader]:
    async with client.stream("GET", "/dashboard/feed", headers=headers) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        yield Reader(answer)


async def test_the_page_and_its_files() -> None:
    async with hosted() as (_, client):
        page = await client.get("/dashboard")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script>| style=| on[a-z]+=", page.text)
        (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
        assert f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
        named = re.findall(r'(?:src|href)="(dashboard/[^"]+)"', page.text)
        # Each script that another one names, and start.js names all of them.
        (listed,) = re.findall(r"const MODULES = \[(.*)\]", (await client.get("/dashboard/start.js")).text)
        first = re.findall(r'"(\w+)"', listed)
        for module in first:
            found = re.findall(r'from "\./(\w+)\.js"', (await client.get(f"/dashboard/{module}.js")).text)
            assert set(found) <= set(first), module
        named += [f"dashboard/{module}.js" for module in first]
        named += re.findall(r'"(dashboard/[^"]+)"', (await client.get("/dashboard/curves.js")).text)
        assert {"dashboard/icon.svg", "dashboard/feed.js", "dashboard/uPlot.iife.min.js"} <= set(named)
        for name in named:
            found = await client.get(f"/{name}")
            assert (found.status_code, found.headers["x-content-type-options"]) == (200, "nosniff"), name
            again = await client.get(f"/{name}", headers={"If-None-Match": found.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert not re.search(r"(src|href)=.?https?:", page.text)
        assert (await client.get("/dashboard/", follow_redirects=True)).text == page.text
        assert (await client.get("/dashboard/nothing.js")).status_code == 404
        assert (await client.get("/dashboard/..%2f..%2froutes.py")).status_code == 404


async def test_with_a_token_file_the_page_asks_for_it(tmp_path: Path) -> None:
    admin = {"listen": {"host": "127.0.0.1", "port": 0}, "token_file": str(token_file(tmp_path))}
    async with hosted(admin=admin) as (_, client):
        page = await client.get("/dashboard")
        assert (page.status_code, page.headers["www-authenticate"]) == (401, "Bearer")
        assert 'id="sign-in"' in page.text
        assert (await client.get("/dashboard/app.js")).status_code == 200
        for path in ("feed", "sparks", "history?tunnel=x"):
            problem(await client.get(f"/dashboard/{path}"), "unauthorized")
        wrong = {"Authorization": "Bearer wrong"}
        problem(await client.get("/dashboard", headers=wrong), "unauthorized")
        right = {"Authorization": f"Bearer {(tmp_path / 'admin-token').read_text()}"}
        assert (await client.get("/dashboard", headers=right)).status_code == 200
        async with feed(client, **right) as reader:
            assert (await reader.next())["changes"] is True
        made = (await client.post("/api/v1/tokens", json={"name": "eyes", "scopes": ["read"]}, headers=right)).json()
        async with feed(client, Authorization=f"Bearer {made['secret']}") as reader:
            assert (await reader.next())["changes"] is False


async def test_the_page_does_not_wait_for_what_serves_the_api(tmp_path: Path) -> None:
    async with hosted() as (_, client):
        answer = await client.get("/dashboard")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        problem(await client.get("/dashboard", headers={"Sec-Fetch-Site": "cross-site"}), "web_page_refused")
        assert (await client.get("/dashboard")).headers.get("connection") != "close"  # it is loaded now
    admin = {"listen": {"host": "127.0.0.1", "port": 0}, "token_file": str(token_file(tmp_path))}
    async with hosted(admin=admin) as (_, client):
        page = await client.get("/dashboard")
        assert (page.status_code, page.headers["connection"]) == (401, "close")


async def test_another_sites_page_gets_nothing() -> None:
    async with hosted() as (_, client):
        for path in ("", "/app.js", "/feed"):
            answer = await client.get(f"/dashboard{path}", headers={"Sec-Fetch-Site": "cross-site"})
            problem(answer, "web_page_refused")
        problem(await client.get("/dashboard", headers={"Host": "evil.example"}), "misdirected")


async def test_the_feed_tells_what_the_api_says_and_an_end_within_two_seconds() -> None:
    async with busy() as (host, client, watch), feed(client) as reader:
        first = await reader.next()
        (tunnel,) = (await client.get("/api/v1/tunnels")).json()["tunnels"]
        (shown,) = first["tunnels"]
        for key in ("name", "state", "public_url", "reconnects", "owner", "outages"):
            assert shown[key] == tunnel[key], key
        assert (first["api"], first["role"], first["changes"]) == ("api/v1", "server", True)
        async with watch() as visitor:
            pieces = visitor.aiter_bytes()
            await anext(pieces)
            (begun,) = await reader.until("open")
            (stream,) = (await client.get("/api/v1/streams")).json()["streams"]
            for key in ("request_id", "tunnel", "method", "path", "client", "kind"):
                assert begun[key] == stream[key], key
            assert host.sampler is not None
            counted, idle = host.sampler.source.counted(stream["request_id"]) or pytest.fail("it is not known")
            assert counted == tuple(stream[key] for key in COUNTED)
            assert stream["idle_s"] <= idle < stream["idle_s"] + 2
            assert host.sampler.source.tunnel_of(stream["request_id"]) == "app"
            await client.delete(f"/api/v1/streams/{stream['request_id']}", headers=CHANGE)
            cancelled = time.monotonic()
            assert await reader.until("end") == [begun["i"]]
            assert time.monotonic() - cancelled < 2
            assert host.sampler.source.counted(stream["request_id"]) is None
            assert host.sampler.source.tunnel_of(stream["request_id"]) is None


async def test_a_reconnect_keeps_the_session_and_stands_on_the_timeline() -> None:
    async with busy() as (host, client, watch), watch() as visitor:
        pieces = visitor.aiter_bytes()
        await anext(pieces)
        (tunnel,) = host.server.registry.all()
        answer = await client.post("/api/v1/tunnels/app/reconnect", headers=CHANGE)
        assert answer.json() == {"tunnel": "app", "was": "online"}
        await settled(lambda: tunnel.online and tunnel.outages.resumes == 1)
        (stream,) = (await client.get("/api/v1/streams")).json()["streams"]
        assert stream["state"] == "streaming"
        problem(await client.post("/api/v1/tunnels/nix/reconnect", headers=CHANGE), "no_such_tunnel")
        problem(await client.post("/api/v1/tunnels/app/reconnect"), "web_page_refused")
        assert host.sampler is not None
        (brief,) = host.sampler.source.briefs()
        host.sampler.sample(brief)
        async with feed(client) as reader:
            outages = [event for event in (await reader.next())["events"] if "seconds" in event]
        assert [(event["tunnel"], event["resumed"]) for event in outages] == [("app", True)]
        entries = (await client.get("/api/v1/audit")).json()["entries"]
        assert [entry["action"] for entry in entries] == ["tunnel.reconnect"]
        curves = (await client.get("/dashboard/history", params={"tunnel": "app", "span": 1})).json()
        assert (curves["step"], len(curves["rtt"])) == (60, 120)
        assert (await client.get("/dashboard/history?tunnel=app&span=9")).status_code == 400
        assert set((await client.get("/dashboard/sparks")).json()) == {"app"}


async def test_a_feed_ends_when_the_server_stops() -> None:
    async with hosted() as (host, client), feed(client) as reader:
        await reader.next()
        await asyncio.gather(host.stop(), _to_the_end(reader))


async def test_no_more_pages_than_viewers_may_be_open() -> None:
    async with hosted(dashboard={"viewers": 2}) as (_, client), AsyncExitStack() as pages:
        readers = [await pages.enter_async_context(feed(client)) for _ in range(2)]
        for reader in readers:
            await reader.next()
        answer = await client.get("/dashboard/feed")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        assert "2 pages" in answer.text
        assert "dashboard.viewers" in answer.text
        await pages.aclose()

        async def is_let_in() -> bool:
            async with client.stream("GET", "/dashboard/feed") as again:
                return again.status_code == 200

        async with asyncio.timeout(10):
            while not await is_let_in():  # until the daemon has noticed that the others left
                pass


async def test_the_past_of_no_more_tunnels_and_events_than_configured_is_kept() -> None:
    bounds = {"tunnels": 2, "events": 3}
    async with hosted(dashboard=bounds) as (host, client):
        assert host.sampler is not None
        for name in ("one", "two", "app"):
            for state in ("offline", "online"):
                host.sampler.sample(Brief(name, state, 0, 0, 0))
        assert set(host.sampler.history.sparks(["one", "two", "app"], host.sampler.now())) == {"two", "app"}
        async with feed(client) as reader:
            told = [(event["tunnel"], event["state"]) for event in (await reader.next())["events"]]
        # Three events, and before them the state of the one that was known before the oldest of these.
        assert told == [("two", "offline"), ("two", "online"), ("app", "offline"), ("app", "online")]
    assert (DashboardConfig().tunnels, DashboardConfig().events, DashboardConfig().viewers) == (1000, 2000, 16)


def test_an_agent_without_metrics_listen_and_a_server_without_admin_load_no_dashboard() -> None:
    code = """
        import sys
        link = {"url": "ws://localhost"}
        from tunneld.config.agent import AgentConfig
        from tunneld.config.server import ServerConfig
        from tunneld.control.host import AgentHost
        AgentHost(AgentConfig.model_validate({"server": link}), None)
        print(sorted(name for name in sys.modules if name.startswith("tunneld.dashboard.")))
        from tunneld.control.admin.host import ServerHost
        server = {"admin": False, "store": "memory:", "auth": {"mode": "open"}}
        print(ServerHost(ServerConfig.model_validate(server), None).sampler)
        AgentHost(AgentConfig.model_validate({"server": link, "metrics": {"listen": "127.0.0.1:0"}}), None)
        print("tunneld.dashboard.history" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.splitlines() == ["[]", "None", "True"]


async def _to_the_end(reader: Reader) -> None:
    try:
        while True:
            await reader.next()
    except EOFError:
        pass
