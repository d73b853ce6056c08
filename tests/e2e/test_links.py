"""The tunnel's own connection: over TLS with a private CA, a wrong CA, and a cable that is pulled."""

import hashlib
import os
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import MakePair, need
from tests.e2e.test_failures import ABORTED, FAST, listen, noticed
from tests.support.daemons import Agent, Pair, Server
from tests.support.processes import eventually
from tests.support.relay import Cable
from tests.support.services import SampleService
from tests.support.sockets import certificate, free_port
from tests.support.visitors import Curl, request_id


def trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


def test_the_tunnel_over_tls_on_a_listener_of_its_own(make_pair: MakePair, own: SampleService, folder: Path) -> None:
    need("openssl", "apt-get install openssl")
    pair: Pair = make_pair({"app": own.url}, tls=certificate(folder))
    curl = listen(pair, "tls")
    data = os.urandom(5_000_000)
    done = httpx.post(pair.url("app", "/upload"), content=data, timeout=20).json()
    assert done["sha256"] == hashlib.sha256(data).hexdigest()
    curl.stop()
    own.wait_closed("tls")
    # each listener serves what it was made for
    inside = f"https://127.0.0.1:{pair.server.tunnel_port}/t/app/small"
    assert httpx.get(inside, verify=trusting(folder / "cert.pem"), timeout=10).status_code >= 400
    outside = httpx.get(f"http://127.0.0.1:{pair.server.port}/tunnel/connect?name=app", timeout=10)
    assert outside.status_code == 404
    # plain HTTP, or anything, at the TLS port ends that one connection
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{pair.server.tunnel_port}/", timeout=10)
    assert httpx.get(pair.url("app", "/small"), timeout=10).status_code == 200


def test_visitors_over_tls(make_pair: MakePair, own: SampleService, folder: Path) -> None:
    need("openssl", "apt-get install openssl")
    made, port = certificate(folder), free_port()
    plain = free_port()
    listen_on = [
        {"host": "127.0.0.1", "port": plain, "serve": ["tunnels"]},
        {
            "host": "127.0.0.1",
            "port": port,
            "tls": {"cert": str(made.cert), "key": str(made.key)},
            "serve": ["visitors"],
        },
    ]
    server = Server(folder, settings={"listen": listen_on}, ports=(port, plain))
    agent = Agent(folder, server, {"app": own.url})
    try:
        curl = Curl(f"https://127.0.0.1:{port}/t/app/events?id=https&gap=0.05", "--cacert", str(made.cert))
        curl.wait_line("data: event 3")
        one = request_id(curl.head())
        curl.stop()
        own.wait_closed("https")
        server.process.wait_line(f"🔌 SSE client disconnected: {one}")
        size = 8_000_000
        got = subprocess.run(
            ["curl", "-sS", "--cacert", str(made.cert), f"https://127.0.0.1:{port}/t/app/bytes?n={size}"],
            capture_output=True, check=True, timeout=20,
        )  # fmt: skip
        assert len(got.stdout) == size
        echo = httpx.get(f"https://127.0.0.1:{port}/t/app/echo", verify=trusting(made.cert), timeout=10).json()
        assert dict(echo["headers"])["X-Forwarded-Proto"] == "https"
        for process in (agent.process, server.process):
            process.stop()
            process.assert_clean()
    finally:
        agent.process.discard()
        server.process.discard()


def test_a_wrong_ca_is_told_and_visitors_are_told_offline(
    make_pair: MakePair, own: SampleService, folder: Path
) -> None:
    need("openssl", "apt-get install openssl")
    pair: Pair = make_pair({"app": own.url}, tls=certificate(folder), server={"limits": {"hold": "0.1s"}})
    other = folder / "other"
    other.mkdir()
    settings = {"server": {"ca_file": str(certificate(other).cert)}, "reconnect": {"max": "60s"}}
    stranger = Agent(folder, pair.server, {"else": own.url}, settings=settings, online=False, name="stranger")
    try:
        line = stranger.process.wait_line("✗ Tunnel error for else")
        assert "certificate" in line.text.lower()
        (tunnel,) = stranger.ask("status")["tunnels"]
        assert tunnel["state"] != "online"
        assert "certificate" in tunnel["last_error"].lower()
        assert httpx.get(pair.url("else", "/small"), timeout=10).status_code == 404
        stranger.process.stop()
        stranger.process.assert_clean()
    finally:
        stranger.process.discard()


def test_a_pulled_cable_is_noticed_by_both(make_pair: MakePair, own: SampleService, folder: Path) -> None:
    pair: Pair = make_pair(
        {"app": own.url}, server={**FAST, "resume": {"grace": 0}, "limits": {"hold": "0.2s"}}, agent=FAST
    )
    cable = Cable(pair.server.tunnel_port)
    settings = {**FAST, "server": {"url": f"ws://127.0.0.1:{cable.port}"}}
    agent = Agent(folder, pair.server, {"far": own.url}, settings=settings, name="far")
    server = pair.server.process
    try:
        far = Curl(pair.url("far", "/events?id=far&gap=0.05"), "-H", "Accept: text/event-stream")
        near = listen(pair, "near")
        far.wait_line("data: event 3")
        marks = agent.process.mark(), server.mark()
        since = time.monotonic()
        cable.pull()
        noticed(agent.process, since, marks[0], "far")
        noticed(server, since, marks[1], "far")
        assert far.wait() in ABORTED
        own.wait_closed("far")
        # the other agent's stream saw nothing of it
        near.wait_line("data: event", after=near.mark(), count=5)
        cable.plug_in()
        agent.process.wait_line("✓ Tunnel established: far", after=marks[0])
        eventually(lambda: httpx.get(pair.url("far", "/small"), timeout=10).status_code == 200)
        near.stop()
        agent.process.stop()
        agent.process.assert_clean()
    finally:
        agent.process.discard()
        cable.close()
