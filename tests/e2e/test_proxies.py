"""The shipped nginx.conf and Caddyfile before our server: TLS and HTTP/2 visitors, events, uploads, upgrades."""

import asyncio
import hashlib
import json
import os
import queue
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from tests.e2e.conftest import APT, FLAGS, need, wait_events
from tests.support.daemons import Agent, Server
from tests.support.processes import eventually
from tests.support.proxies import Proxy
from tests.support.services import SampleService, pattern
from tests.support.sockets import LOOPBACK, Certificate, certificate, free_port
from tests.support.visitors import Curl, request_id

VISITOR = "127.0.0.5"  # any address of 127/8 is ours; the proxy itself is 127.0.0.1


class Teller(BaseHTTPRequestHandler):
    """Answers with the path that it was asked for, as it came."""

    def do_GET(self) -> None:
        text = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class World:
    """A proxy, behind it a server that trusts it, and an agent that dialled through it."""

    def __init__(self, kind: str, folder: Path, service: SampleService, ends: ExitStack) -> None:
        self.tls: Certificate = certificate(folder)
        program = need(kind, f"apt-get install {kind}")
        self.server = Server(folder, settings={"trusted_proxies": [LOOPBACK]})
        ends.callback(self.server.process.discard)
        self.proxy = Proxy(kind, program, folder, self.server.port, self.tls)
        ends.callback(self.proxy.close)
        through = {"server": {"url": f"wss://localhost:{self.proxy.port}", "ca_file": str(self.tls.cert)}}
        teller = ThreadingHTTPServer((LOOPBACK, 0), Teller)
        ends.callback(teller.server_close)
        threading.Thread(target=teller.serve_forever, daemon=True).start()
        ends.callback(teller.shutdown)
        #: The path of each visitor's WebSocket that has closed.
        self.left: queue.Queue[str] = queue.Queue()
        chat = serve(self._chat, LOOPBACK, 0, subprotocols=[Subprotocol("chat.v1")], max_size=None)
        threading.Thread(target=chat.serve_forever, daemon=True).start()
        ends.callback(chat.shutdown)
        chat_port = chat.socket.getsockname()[1]
        tunnels = {
            "app": service.url,
            "told": f"http://{LOOPBACK}:{teller.server_port}",
            "chat": f"http://{LOOPBACK}:{chat_port}",
        }
        self.agent = Agent(folder, self.server, tunnels, settings=through)
        ends.callback(self.agent.process.discard)

    def trust(self) -> ssl.SSLContext:
        """A context of its own: httpx writes into the one that it gets what it speaks."""
        return ssl.create_default_context(cafile=str(self.tls.cert))

    def _chat(self, visitor: ServerConnection) -> None:
        for message in visitor:
            visitor.send(message)
        assert visitor.request is not None
        self.left.put(visitor.request.path)

    def url(self, path: str) -> str:
        """The public address of a path of the tunnel."""
        return f"{self.proxy.url}/t/app{path}"

    def client(self) -> httpx.AsyncClient:
        """A visitor that speaks HTTP/2, from an address of its own."""
        transport = httpx.AsyncHTTPTransport(
            verify=self.trust(), http2=True, local_address=VISITOR, limits=httpx.Limits(max_connections=1)
        )
        return httpx.AsyncClient(transport=transport, timeout=20)


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, service: SampleService
) -> Iterator[World]:
    with ExitStack() as ends:
        yield World(request.param, tmp_path_factory.mktemp(request.param), service, ends)


async def test_a_visitor_over_http_2(world: World) -> None:
    """The path passes as it was sent, and who the visitor is comes from the proxy alone."""
    spoofed = {"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X-Forwarded-Proto": "http"}
    async with world.client() as client:
        answer = await client.get(world.url("/echo?q=%2F%20a&&b"), headers=spoofed)
        assert answer.http_version == "HTTP/2"
        echo = answer.json()
        # a slash that is part of a name stays one, and so do two in a row
        told = await client.get(world.url("/a%2Fb//c%20d/").replace("/t/app/", "/t/told/"))
        assert told.text == "/a%2Fb//c%20d/"
    assert echo["target"] == "/echo?q=%2F%20a&&b"
    sent = {name.lower(): value for name, value in echo["headers"]}
    assert sent["x-forwarded-for"].split(", ")[0] == VISITOR
    assert "6.6.6.6" not in json.dumps(echo)
    assert sent["x-forwarded-proto"] == "https"
    assert sent["x-forwarded-host"] == f"localhost:{world.proxy.port}"
    assert sent["x-forwarded-prefix"] == "/t/app"


def test_events_come_one_by_one_and_leaving_reaches_the_service(world: World, service: SampleService) -> None:
    need("curl", "apt-get install curl")
    mark = world.server.process.mark()
    options = ("--http2", "--cacert", str(world.tls.cert), "--interface", VISITOR)
    curl = Curl(world.url(f"/events?id=curl-{world.proxy.kind}&gap=0.2"), *options)
    try:
        head = curl.head().lower()
        assert head.startswith("http/2 200")
        one = request_id(head)
        for number in range(1, 5):
            curl.wait_line(f"data: event {number}")
            assert not curl.matching(f"data: event {number + 1}"), "events came together"
        (stream,) = world.agent.streams(request_id=one)
        assert stream["client"].startswith(VISITOR)
        left = time.monotonic_ns()
    finally:
        curl.stop()
    took = (service.wait_closed(f"curl-{world.proxy.kind}") - left) / 1e6
    assert took < 1000, f"the service saw the close after {took} ms"
    world.server.process.wait_line(f"🔌 SSE client disconnected: {one}", after=mark)


async def test_many_event_streams_on_one_connection(world: World) -> None:
    """What HTTP/1.1 browsers cannot: more than six. Each ends by itself, one leaves and disturbs no other."""

    async def read(client: httpx.AsyncClient, number: int) -> int:
        count = 0
        path = f"/events?n=10&gap=0.05&id=many-{number}"
        async with client.stream("GET", world.url(path)) as answer:
            async for line in answer.aiter_lines():
                count += line.startswith("data: event")
                if number == 0 and count == 2:
                    return count
        return count

    async with world.client() as client:
        assert (await client.get(world.url("/small"))).http_version == "HTTP/2"
        got = await asyncio.gather(*(read(client, number) for number in range(40)))
    assert got == [2, *[10] * 39]
    eventually(lambda: world.agent.streams() == [], what="free of streams")


async def test_bodies_pass_whole_and_as_they_come(world: World) -> None:
    size = 8 * 1024 * 1024
    body = os.urandom(size)
    seen = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield body[: size // 2]
        # the rest is only sent when the request has been seen at the agent: a proxy that gathers bodies never shows it
        async with asyncio.timeout(15):
            while not await asyncio.to_thread(world.agent.streams, path="/upload"):
                await asyncio.sleep(0.05)
        seen.set()
        yield body[size // 2 :]

    async with world.client() as client:
        answer = await client.post(world.url("/upload"), content=pieces())
        assert answer.json() == {"bytes": size, "sha256": hashlib.sha256(body).hexdigest()}
        assert seen.is_set()
        for query in (f"n={size}", f"n={size}&chunked=1"):
            got = await client.get(world.url(f"/bytes?{query}"))
            assert hashlib.sha256(got.content).digest() == hashlib.sha256(pattern(size)).digest()


def test_a_visitors_websocket(world: World) -> None:
    """Text and binary messages both ways, and a close that reaches the service."""
    address = f"wss://localhost:{world.proxy.port}/t/chat/room?x=1"
    with connect(address, ssl=world.trust(), subprotocols=[Subprotocol("chat.v1")], max_size=None) as visitor:
        assert visitor.subprotocol == "chat.v1"
        for message in ("hello", "ü" * 1000, os.urandom(1024 * 1024)):
            visitor.send(message)
            assert visitor.recv(timeout=20) == message
    assert world.left.get(timeout=10) == "/room?x=1"


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
@pytest.mark.parametrize("serves", [True, False])
def test_the_token_in_an_address_of_the_older_dialect_is_in_no_log(kind: str, serves: bool, folder: Path) -> None:
    """Neither of requests nor of faults; the rest of the address is there, and so is every other address."""
    tls, server = certificate(folder), Server(folder) if serves else None
    proxy = Proxy(kind, need(kind, f"apt-get install {kind}"), folder, server.port if server else free_port(), tls)
    try:
        trust = ssl.create_default_context(cafile=str(tls.cert))
        for http2 in (True, False):
            with httpx.Client(verify=trust, http2=http2, base_url=proxy.url, timeout=15) as client:
                for path in ("/v2/tnl_secret/register?x=1", "/v2/tnl_secret?y=2", "/v2/tnl_secret/tunnel/connect"):
                    client.get(path, headers={"Upgrade": "websocket"} if not http2 else None)
                client.get("/t/a/v2/b")
        eventually(lambda: proxy.logged().count("/t/a/v2/b") >= 2, what="logging requests")
        text = proxy.logged()
        assert "tnl_secret" not in text
        for shown in ("/v2/***/register?x=1", "/v2/***?y=2", "/v2/***/tunnel/connect"):
            assert text.count(shown) >= 2
    finally:
        proxy.close()
        if server is not None:
            server.process.discard()


def test_the_agents_tunnel_goes_through_it(world: World) -> None:
    status = world.agent.ask("status")
    assert status["server"] == f"wss://localhost:{world.proxy.port}"
    assert status["tunnels"][0]["state"] == "online"


def test_chromium_over_http_2(world: World, service: SampleService, tmp_path: Path) -> None:
    """A page's EventSource; more of them than HTTP/1.1 allows; the tab closes, and the service stops."""
    program, driver = need("chromium", APT), need("chromedriver", APT)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in [*FLAGS, "--ignore-certificate-errors", f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        home = browser.current_window_handle
        browser.switch_to.new_window("tab")
        name = f"chromium-{world.proxy.kind}"
        browser.get(world.url(f"/page?id={name}"))
        wait_events(browser, 3)
        protocol = browser.execute_script("return performance.getEntriesByType('navigation')[0].nextHopProtocol")
        assert protocol == "h2"
        source = "new EventSource(`events?n=0&gap=0.1&id=${arguments[0]}-${n}`)"
        more = f"window.more = [...Array(10).keys()].map(n => {source})"
        browser.execute_script(more, name)
        opened = "return window.more.filter(source => source.readyState === 1).length"
        WebDriverWait(browser, 15, poll_frequency=0.05).until(lambda one: one.execute_script(opened) == 10)
        echo = """
            const [said, done] = arguments, there = new WebSocket(`wss://${location.host}/t/chat/browser`, "chat.v1");
            there.onopen = () => there.send(said);
            there.onmessage = event => { there.close(); done(event.data); };
            there.onclose = event => done(`closed: ${event.code}`);
        """
        assert browser.execute_async_script(echo, "from a browser") == "from a browser"
        assert world.left.get(timeout=10) == "/browser"
        left = time.monotonic_ns()
        browser.close()
        took = (service.wait_closed(name) - left) / 1e6
        browser.switch_to.window(home)
        assert took < 2000, f"the service saw the close after {took} ms"
        eventually(lambda: world.agent.streams() == [], what="free of streams")
    finally:
        browser.quit()
