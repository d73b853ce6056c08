"""Signing in with a real OpenID provider: Chromium, visitors by hand, and the `mcp` package's own OAuth client."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.conftest import need, wait_events
from tests.support.apps import AppService
from tests.support.daemons import Pair
from tests.support.processes import Process, eventually
from tests.support.services import SampleService
from tests.support.signing_in import NODE, SECRET, Walker, issuing, names_of_localhost, rotate
from tests.support.sockets import free_ports

LOGIN = {"mode": "login", "emails": ["ann@example.org"], "domains": ["good.example"]}


@dataclass
class World:
    pair: Pair
    issuer: Process
    service: SampleService
    mcp: AppService

    def host(self, name: str, path: str = "/") -> str:
        """An address of a tunnel by its host."""
        return f"http://{name}.localhost:{self.pair.server.port}{path}"

    def sessions(self, lasting: str) -> None:
        """Let sign-ins last so long from now on."""
        server = self.pair.server
        mark = server.process.mark()
        server.rewrite({"login": {"session": lasting}})
        server.process.signal(signal.SIGHUP)
        server.process.wait_line("Reloaded: login", after=mark)

    def reload(self, name: str, **access: Any) -> None:
        """Let another `access` hold for a tunnel."""
        tunnels = [
            {**tunnel, "access": {**LOGIN, **access}} if tunnel["name"] == name else tunnel
            for tunnel in self.pair.agent.settings["tunnels"]
        ]
        self.pair.agent.rewrite({"tunnels": tunnels})
        done = self.pair.agent.tunnelctl("reload")
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def world(module_folder: Path, service: SampleService) -> Iterator[World]:
    """Three tunnels that are signed in to, one with an MCP server behind it."""
    node = need("node", "apt-get install nodejs npm")
    if not (NODE / "node_modules" / "oidc-provider").exists():
        pytest.skip("the `oidc-provider` package is missing: make test-e2e installs it")
    (port,) = free_ports(1)
    secret = module_folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    mcp = AppService("mcp-http")
    tunnels = {
        name: {"service": url, "access": LOGIN}
        for name, url in (("app", service.url), ("other", service.url), ("mcp", mcp.url))
    }
    login = {"issuer": f"http://localhost:{port}", "client_id": "tunneld", "client_secret_file": str(secret)}
    pair = Pair(module_folder, tunnels, server={"login": {**login, "rest": "0.3s", "session": "1h"}})
    domain = f"localhost:{pair.server.port}"
    redirect = f"http://127.0.0.1:{pair.server.port}/login/callback"
    try:
        with issuing(node, port, redirect, domain) as issuer, names_of_localhost():
            yield World(pair, issuer, service, mcp)
        pair.close()
    finally:
        pair.discard()
        mcp.stop()


def sign_in(browser: webdriver.Chrome, url: str, email: str) -> None:
    """Open a page and sign in on the provider's own."""
    browser.get(url)
    field = WebDriverWait(browser, 15).until(lambda driver: driver.find_element(By.NAME, "login"))
    field.send_keys(email)
    browser.find_element(By.NAME, "password").send_keys("x")
    browser.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
    agree(browser)


def agree(browser: webdriver.Chrome) -> None:
    """The provider's question whether the server may know who they are, where it asks."""

    def done(driver: webdriver.Chrome) -> bool:
        if "/interaction/" not in driver.current_url:
            return True
        fields = driver.find_elements(By.CSS_SELECTOR, "input[name=prompt][value=consent]")
        if fields:
            driver.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
        return False

    WebDriverWait(browser, 15, poll_frequency=0.1).until(done)


def body(browser: webdriver.Chrome) -> str:
    return str(browser.find_element(By.TAG_NAME, "body").text)


def test_chromium_signs_in_streams_and_signs_out(browser: webdriver.Chrome, world: World) -> None:
    sign_in(browser, world.host("app", "/echo?a=1"), "ann@example.org")
    assert browser.current_url == world.host("app", "/echo?a=1")
    headers = {name.lower(): value for name, value in json.loads(body(browser))["headers"]}
    assert (headers["x-tunnel-user"], headers["x-tunnel-access"]) == ("ann@example.org", "read_write")
    assert "tunnel-session" not in headers.get("cookie", "")
    assert browser.execute_script("return document.cookie") == "", "no script sees the session"
    browser.get(world.host("app", "/page?id=signed-in"))
    wait_events(browser, 3)
    browser.switch_to.new_window("tab")
    browser.get(world.host("other", "/echo"))
    agree(browser)
    assert "ann@example.org" in body(browser), "the provider knows her: no question at another tunnel"
    browser.get(world.host("app", "/.tunnel/sign-out"))
    browser.find_element(By.TAG_NAME, "button").click()
    WebDriverWait(browser, 10).until(lambda driver: "Signed out of app" in driver.title)
    eventually(lambda: world.pair.agent.streams(kind="sse") == [], what="free of her streams")
    browser.get(world.host("other", "/echo"))
    assert "ann@example.org" in body(browser), "of one tunnel alone"
    assert httpx.get(world.host("app", "/echo")).status_code == 401


def test_chromium_with_an_address_that_is_not_let_in(browser: webdriver.Chrome, world: World) -> None:
    browser.get(world.host("app", "/.tunnel/sign-in"))
    sign_in(browser, world.host("app", "/.tunnel/sign-in"), "eve@bad.example")
    assert "eve@bad.example may not visit" in body(browser)
    browser.find_element(By.LINK_TEXT, "Sign in with another address").click()
    sign_in(browser, browser.current_url, "bob@good.example")
    browser.get(world.host("app", "/echo"))
    assert "bob@good.example" in body(browser)


def test_chromium_whose_address_is_taken_back_while_it_streams(browser: webdriver.Chrome, world: World) -> None:
    sign_in(browser, world.host("app", "/.tunnel/sign-in"), "cat@good.example")
    browser.get(world.host("app", "/page?id=taken-back"))
    wait_events(browser, 3)
    (stream,) = [one for one in world.pair.agent.streams(kind="sse") if "taken-back" in one["path"]]
    mark = world.pair.server.process.mark()
    try:
        world.reload("app", domains=[])
        ended = world.pair.server.process.wait_line(f"🧹 Cleaned up stream: {stream['request_id']}", after=mark)
        told = world.pair.server.process.wait_line("The access of", after=mark)
        assert ended.at - told.at < 1
        browser.get(world.host("app", "/echo"))
        assert "may not visit" in body(browser)
    finally:
        world.reload("app")


def test_a_permission_that_is_revoked_ends_the_stream_that_it_let_in(world: World) -> None:
    def access(*args: str) -> None:
        done = world.pair.agent.tunnelctl("access", *args)
        assert done.returncode == 0, done.stderr

    access("grant", "app", "dan@else.example", "--level", "read_only")
    with Walker("dan@else.example") as walker:
        assert walker.open(world.host("app", "/echo")).status_code == 200
        assert walker.client.post(world.host("app", "/echo")).headers["x-tunnel-error"] == "read_only"
        (held,) = world.pair.agent.ask("access", "list", "app")["permissions"]
        assert held["status"] == "active"
        with walker.client.stream("GET", world.host("app", "/events?n=0&gap=0.05&id=revoked")) as stream:
            assert stream.status_code == 200
            pieces = stream.iter_bytes()
            next(pieces)
            mark = world.pair.server.process.mark()
            access("revoke", "app", "dan@else.example")
            for _ in pieces:
                pass
        told = world.pair.server.process.wait_line("The access of", after=mark)
        ended = world.pair.server.process.wait_line("🧹 Cleaned up stream", after=mark)
        assert ended.at - told.at < 1
        assert walker.client.get(world.host("app", "/echo")).headers["x-tunnel-error"] == "login_denied"


def test_a_session_that_is_over_ends_its_stream_and_is_signed_in_to_again(world: World) -> None:
    world.sessions("2s")
    try:
        with Walker() as walker:
            assert walker.open(world.host("app", "/echo")).status_code == 200
            with walker.client.stream("GET", world.host("app", "/events?n=0&gap=0.05&id=over")) as stream:
                assert stream.status_code == 200
                for _ in stream.iter_bytes():
                    pass
            late = walker.client.get(world.host("app", "/events"), headers={"Accept": "text/event-stream"})
            assert late.status_code == 401
            assert walker.open(world.host("app", "/echo")).status_code == 200
    finally:
        world.sessions("1h")


def test_codes_that_were_used_and_another_tunnels_cookie(world: World) -> None:
    with Walker() as walker:
        assert walker.open(world.host("app", "/echo")).status_code == 200
        for used in ("/login/callback", "/.tunnel/sign-in?code="):
            refused = walker.client.get(walker.asked(used))
            assert (refused.status_code, refused.headers["x-tunnel-error"]) == (400, "login_begin_again")
        cookie = walker.client.cookies.get("tunnel-session", domain="app.localhost")
    headers = {"Cookie": f"tunnel-session={cookie}"}
    assert httpx.get(world.host("app", "/echo"), headers=headers).status_code == 200
    other = httpx.get(world.host("other", "/echo"), headers=headers)
    assert (other.status_code, other.headers["x-tunnel-error"]) == (401, "login_failed")
    assert "another tunnel" in other.json()["detail"]


def test_a_forged_state_and_a_way_back_that_somebody_else_began(world: World) -> None:
    with Walker() as attacker, Walker("victim@good.example") as victim:
        stopped = attacker.open(world.host("app", "/echo"), until=f"http://127.0.0.1:{world.pair.server.port}/login/")
        fresh = stopped.headers["location"]
        refused = attacker.client.get(fresh.replace("state=", "state=AAAA"))
        assert (refused.status_code, refused.headers["x-tunnel-error"]) == (400, "login_begin_again")
        lured = victim.open(fresh)
        assert (lured.status_code, lured.headers["x-tunnel-error"]) == (400, "login_begin_again")
        assert "tunnel-session" not in victim.client.cookies


class Storage:
    """What the MCP client keeps."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


REDIRECT = "http://localhost:9/callback"


def provider(world: World, email: str, storage: Storage) -> OAuthClientProvider:
    """The package's own OAuth client, whose person signs in at the provider's pages."""
    arrived: list[str] = []

    async def redirect(url: str) -> None:
        with Walker(email) as walker:
            last = await asyncio.to_thread(walker.open, url, until=REDIRECT)
        arrived.append(last.headers["location"])

    async def callback() -> AuthorizationCodeResult:
        query = {name: values[0] for name, values in parse_qs(urlsplit(arrived.pop()).query).items()}
        return AuthorizationCodeResult(code=query["code"], state=query.get("state"), iss=query.get("iss"))

    metadata = OAuthClientMetadata(redirect_uris=[REDIRECT], client_name="the tests", scope="openid email")  # type: ignore[list-item]
    return OAuthClientProvider(world.host("mcp", "/mcp"), metadata, storage, redirect, callback)


async def add(world: World, email: str, storage: Storage) -> str:
    async with (
        httpx2.AsyncClient(auth=provider(world, email, storage), timeout=20) as http,
        Client(streamable_http_client(world.host("mcp", "/mcp"), http_client=http), mode="legacy") as client,
    ):
        result = await client.call_tool("add", {"a": 1, "b": 2})
        return str(result.content[0].text)  # type: ignore[union-attr]


async def test_the_mcp_clients_own_oauth_works_through_the_tunnel_and_lives_through_other_keys(world: World) -> None:
    storage = Storage()
    assert await add(world, "ann@example.org", storage) == "3"
    assert storage.tokens is not None
    token = storage.tokens.access_token
    assert await add(world, "ann@example.org", storage) == "3", "the token is still good"
    assert storage.tokens.access_token == token
    for host, path, status in (("mcp", "/mcp", 200), ("app", "/echo", 401)):
        answer = httpx.get(world.host(host, path), headers={"Authorization": f"Bearer {token}", "Accept": "*/*"})
        assert (answer.status_code == 401) == (status == 401), f"{host}: {answer.status_code}"
    await asyncio.to_thread(rotate, world.issuer)
    assert await add(world, "ann@example.org", Storage()) == "3", "signed by a key that the server had not seen"
    with Walker() as walker:
        assert (await asyncio.to_thread(walker.open, world.host("app", "/echo"))).status_code == 200


async def test_the_mcp_client_of_somebody_who_may_not_come_is_refused(world: World) -> None:
    with pytest.raises(BaseExceptionGroup):
        await add(world, "eve@bad.example", Storage())
    answer = await asyncio.to_thread(httpx.post, world.host("mcp", "/mcp"), json={})
    where = answer.headers["www-authenticate"].partition('resource_metadata="')[2].partition('"')[0]
    assert (await asyncio.to_thread(httpx.get, where)).json()["resource"] == world.host("mcp", "/mcp")
