"""Services as users have them: FastAPI, aiohttp, nginx, a Unix socket."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import MakePair, need
from tests.support.apps import AppService, Nginx
from tests.support.daemons import Pair
from tests.support.processes import eventually
from tests.support.services import SampleService
from tests.support.visitors import Curl, request_id


@dataclass
class World:
    pair: Pair
    fastapi: AppService
    aiohttp: AppService
    unix: SampleService


@pytest.fixture(scope="module")
def world(module_folder: Path) -> Iterator[World]:
    """One agent with three tunnels."""
    services = AppService("fastapi"), AppService("aiohttp"), SampleService(unix=str(module_folder / "app.sock"))
    pair = Pair(module_folder, {"fast": services[0].url, "aio": services[1].url, "unix": services[2].url})
    try:
        yield World(pair, *services)
        pair.close()
    finally:
        pair.discard()
        for service in services:
            service.stop()


@pytest.mark.parametrize("tunnel", ["fast", "aio"])
def test_a_generator_is_closed_when_its_visitor_leaves(world: World, tunnel: str) -> None:
    service = world.fastapi if tunnel == "fast" else world.aiohttp
    curl = Curl(world.pair.url(tunnel, f"/events?id=gone-{tunnel}"), "-H", "Accept: text/event-stream")
    curl.wait_line("data: 3")
    one = request_id(curl.head())
    curl.stop()
    service.wait_closed(f"gone-{tunnel}")
    world.pair.agent.process.wait_line(f"🧹 Cleaned up stream: {one}")


@pytest.mark.parametrize("tunnel", ["fast", "aio"])
def test_an_operator_cancels_and_the_visitor_sees_a_clean_end(world: World, tunnel: str) -> None:
    service = world.fastapi if tunnel == "fast" else world.aiohttp
    url = world.pair.url(tunnel, f"/events?id=told-{tunnel}")
    curl = Curl(url, "-H", "Accept: text/event-stream")
    curl.wait_line("data: 3")
    one = request_id(curl.head())
    assert world.pair.agent.ask("cancel", one[:12]) == {"cancelled": [one]}
    assert curl.wait() == 0
    service.wait_closed(f"told-{tunnel}")
    again = httpx.get(url, headers={"Accept": "text/event-stream", "User-Agent": "curl"}, timeout=10)
    assert again.status_code == 204
    other = Curl(world.pair.url(tunnel, f"/events?id=else-{tunnel}"), "-H", "Accept: text/event-stream")
    other.wait_line("data: 2")
    other.stop()
    service.wait_closed(f"else-{tunnel}")


def test_fastapi_answers_forms_cookies_and_redirects(world: World) -> None:
    with httpx.Client(timeout=10) as client:
        data = os.urandom(3_000_000)
        done = client.post(world.pair.url("fast", "/file"), files={"file": ("name.bin", data)}).json()
        assert done == {"name": "name.bin", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        item = client.get(world.pair.url("fast", "/items/a%20b?q=c%26d"))
        assert item.json() == {"item": "a b", "q": "c&d"}
        cookies = item.headers.get_list("set-cookie")
        assert len(cookies) == 2
        assert "Path=/t/fast/" in cookies[0]
        assert "Path=/t/fast/items" in cookies[1]
        moved = client.get(world.pair.url("fast", "/away"), follow_redirects=True)
        assert moved.json()["item"] == "moved"
        assert moved.url.path == "/t/fast/items/moved"


@pytest.mark.parametrize("tunnel", ["fast", "aio"])
def test_bodies_stream_up(world: World, tunnel: str) -> None:
    def pieces() -> Iterator[bytes]:
        for number in range(200):
            yield bytes([number]) * 20_000

    whole = b"".join(pieces())
    done = httpx.post(world.pair.url(tunnel, "/raw"), content=pieces(), timeout=20).json()
    assert done == {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}


def test_aiohttp_sees_the_path_as_it_was_sent(world: World) -> None:
    raw = httpx.get(world.pair.url("aio", "/items/a%2Fb%20c?x=%41&y"), timeout=10).json()["raw"]
    assert raw == "/items/a%2Fb%20c?x=%41&y"


def test_a_service_on_a_unix_socket(world: World) -> None:
    assert httpx.get(world.pair.url("unix", "/small"), timeout=10).status_code == 200
    curl = Curl(world.pair.url("unix", "/events?id=unix"), "-H", "Accept: text/event-stream")
    curl.wait_line("data: event 3")
    curl.stop()
    world.unix.wait_closed("unix")
    eventually(lambda: world.pair.agent.streams(tunnel="unix") == [], what="free of streams")


def test_a_static_site_by_nginx(make_pair: MakePair, folder: Path) -> None:
    need("nginx", "apt-get install nginx")
    site = folder / "site"
    (site / "docs").mkdir(parents=True)
    (site / "index.html").write_text("<h1>home</h1>")
    (site / "docs" / "index.html").write_text("<h1>docs</h1>")
    (site / "long.txt").write_text("all work and no play\n" * 1000)
    large = os.urandom(8_000_000)
    (site / "large.bin").write_bytes(large)
    nginx = Nginx(site, folder)
    try:
        pair = make_pair({"site": nginx.url})
        with httpx.Client(timeout=20) as client:
            home = client.get(pair.url("site", "/"))
            assert home.text == "<h1>home</h1>"
            tag = {"If-None-Match": home.headers["etag"]}
            assert client.get(pair.url("site", "/"), headers=tag).status_code == 304
            assert client.get(pair.url("site", "/large.bin")).content == large
            part = client.get(pair.url("site", "/large.bin"), headers={"Range": "bytes=100-299"})
            assert (part.status_code, part.content) == (206, large[100:300])
            squeezed = client.get(pair.url("site", "/long.txt"))
            assert squeezed.headers["content-encoding"] == "gzip"
            assert squeezed.text.count("play") == 1000
            moved = client.get(pair.url("site", "/docs"), follow_redirects=True)
            assert (moved.url.path, moved.text) == ("/t/site/docs/", "<h1>docs</h1>")
            assert client.get(pair.url("site", "/none")).status_code == 404
            head = client.head(pair.url("site", "/large.bin"))
            assert head.headers["content-length"] == str(len(large))
            bare = client.get(pair.server.url("site", ""))
            assert bare.status_code == 308
            assert bare.headers["location"].endswith("/t/site/")
    finally:
        nginx.stop()
