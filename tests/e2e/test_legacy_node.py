"""A client of the older dialect in TypeScript (Node.js, `ws`, Node's own `http`) before a real service, unchanged."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import need
from tests.support.daemons import Server
from tests.support.processes import ROOT, Process, python_module
from tests.support.services import SampleService
from tests.support.visitors import Curl, request_id

PROGRAM = ROOT / "tests" / "e2e" / "node" / "dist" / "main.js"
KEY = "visitors-may-come"  # what the client registers for its visitors, each time it has connected
VISITOR = httpx.Client(headers={"X-API-Key": KEY}, trust_env=False)
SHOWN = ("-H", f"X-API-Key: {KEY}")
STREAM = "/events?n=0&gap=0.05&id={}&as=/sse"  # what makes it a stream to the dialect stands in the query


class NodeClient(Process):
    """The client's program; `told` are its lines."""

    def __init__(self, **options: str) -> None:
        if not PROGRAM.exists():
            pytest.skip("the TypeScript client is not built: `make test-e2e` does, where there is npm")
        super().__init__([need("node", "apt install nodejs"), str(PROGRAM), json.dumps(options)], name="node")

    def told(self, event: str, *, after: int = 0, count: int = 1, timeout: float = 15.0) -> dict[str, Any]:
        line = self.wait_line(f'{{"event":"{event}"', after=after, count=count, timeout=timeout)
        return json.loads(line.text)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def server(module_folder: Path) -> Iterator[Server]:
    """A server that wants tokens, its store a file."""
    store = f"sqlite:///{module_folder}/server.db"
    made = Server(module_folder, settings={"auth": {"mode": "token"}, "store": store})
    try:
        yield made
        made.process.stop()
        made.process.assert_clean()
    finally:
        made.process.discard()


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    argv = ("server", "token", "create", "node", "--tunnels", "my-*", "--config", str(server.file))
    process = Process(python_module("tunneld", *argv), name="token")
    assert process.wait() == 0, process.tail()
    [secret] = [line.text for line in process.lines if line.text.startswith("tnl_")]
    return secret


@pytest.fixture(scope="module")
def client(server: Server, token: str, service: SampleService) -> Iterator[NodeClient]:
    """Registered and connected."""
    base = f"http://127.0.0.1:{server.port}/v2/{token}"
    made = NodeClient(base=base, name="My Server", service=service.url, serverKey="a-key-of-the-tests")
    try:
        made.told("connected")
        yield made
        if made.running:
            made.stop()
        made.assert_clean()
    finally:
        made.discard()


def test_registration_and_connect(client: NodeClient, server: Server) -> None:
    new, again = client.told("registered"), client.told("registered-again")
    assert new["status"] == 201
    assert new["body"]["success"] is True
    assert new["body"]["name"] == "My Server"
    assert again["status"] == 200
    assert again["body"]["is_reregistration"] is True
    assert again["body"]["id"] == new["body"]["id"]
    said = client.told("connected")
    assert said["tunnel_id"] == "my-server"
    assert said["public_url"] == server.url("my-server", "")


def test_the_key_that_it_registered_is_what_visitors_need(client: NodeClient, server: Server) -> None:
    mark = client.mark()
    client.signal(signal.SIGHUP)
    client.told("pong", after=mark)  # behind the key, which it sent at once
    address = server.url("my-server", "/small")
    assert httpx.get(address, trust_env=False).status_code == 401
    assert httpx.get(address, headers={"X-API-Key": "another-key"}, trust_env=False).status_code == 401
    assert httpx.get(address, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).status_code == 200
    assert not server.process.matching(KEY)


def test_ordinary_requests(client: NodeClient, server: Server) -> None:
    echoed = VISITOR.post(server.url("my-server", "/echo?q=1"), content="né€")
    assert echoed.status_code == 200
    said = echoed.json()
    assert said["method"] == "POST"
    assert VISITOR.get(server.url("my-server", "/small")).text == "x" * 99 + "\n"
    assert VISITOR.get(server.url("my-server", "/status?code=404")).status_code == 404
    bad = VISITOR.post(server.url("my-server", "/echo"), content=b"\xff")
    assert bad.status_code == 415


def test_events_pass_and_a_visitor_that_leaves_stops_the_services_work(
    client: NodeClient, server: Server, service: SampleService
) -> None:
    need("curl", "apt install curl")
    mark = client.mark()
    curl = Curl(server.url("my-server", STREAM.format("node-1")), *SHOWN, "-H", "Accept: text/event-stream")
    curl.wait_line("data: event 5")
    one = request_id(curl.head())
    assert client.told("request", after=mark)["request_id"] == one
    curl.stop()
    service.wait_closed("node-1")
    assert client.told("cancelled", after=mark)["request_id"] == one
    server.process.wait_line(f"🧹 Cleaned up stream: {one}")
    # Node's own error of the request that was destroyed came as a `response` 502 by now or comes: nobody minds.
    assert VISITOR.get(server.url("my-server", "/small")).status_code == 200


def test_a_refused_stream_is_the_visitors_answer(client: NodeClient, server: Server) -> None:
    answer = VISITOR.get(server.url("my-server", "/status?code=403&as=/sse"))
    assert answer.status_code == 403


def test_pings(client: NodeClient) -> None:
    mark = client.mark()
    client.signal(signal.SIGHUP)
    assert client.told("pong", after=mark)["timestamp"].endswith("Z")


def test_a_cut_and_a_reconnect(client: NodeClient, server: Server, service: SampleService) -> None:
    curl = Curl(server.url("my-server", STREAM.format("node-2")), *SHOWN, "-H", "Accept: text/event-stream")
    curl.wait_line("data: event 2")
    mark = client.mark()
    client.signal(signal.SIGUSR2)
    assert curl.wait() != 0  # a failure, and told as one
    service.wait_closed("node-2")
    client.told("closed", after=mark)
    client.told("connected", after=mark)  # after its own 5 s
    assert VISITOR.get(server.url("my-server", "/small")).status_code == 200


def test_the_token_is_in_no_line_of_the_server(client: NodeClient, server: Server, token: str) -> None:
    assert server.process.matching("✓ Tunnel established: my-server")
    assert server.process.matching("Registered My Server")
    assert not server.process.matching(token[6:])
    assert not server.process.matching("a-key-of-the-tests")
