"""Everything around a tunnel fails at once, in whole processes: one clear line each, and the tunnel goes on.

What each receiver does by itself stands in `test_alerts.py`, `test_alert_mail.py` and `test_metrics_listener.py`.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemons import Pair
from tests.support.processes import Process, eventually
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_port, short_dir
from tests.support.visitors import Curl


class _Receiver(BaseHTTPRequestHandler):
    """A webhook: `/hangs` never answers, `/fails` answers 500, `/moved` redirects to `/fine`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers["Content-Length"]))
        server.came.append(self.path)
        if self.path == "/hangs":
            server.over.wait()
        status = {"/fails": 500, "/moved": 302}.get(self.path, 200)
        self.send_response(status)
        self.send_header("Location", f"http://{LOOPBACK}:{server.server_port}/fine")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiver() -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that were asked for."""
    server: Any = ThreadingHTTPServer((LOOPBACK, 0), _Receiver)
    server.daemon_threads, server.came, server.over = True, [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}", server.came
    finally:
        server.over.set()
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextmanager
def refusing_mail() -> Iterator[int]:
    """The port of a mail server that takes nobody."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        over = threading.Event()

        def serve() -> None:
            while True:
                with listener.accept()[0] as talk:
                    if over.is_set():
                        return
                    talk.sendall(b"554 no service here\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join(10)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def said(process: Process, *words: str) -> list[str]:
    """The lines of its log with all of these words in the message."""
    return [line.text for line in process.lines if all(word in line.text for word in words)]


def wait_for(what: Callable[[], object], name: str) -> None:
    eventually(lambda: bool(what()), timeout=30, what=name)


@pytest.mark.timeout(90)
def test_receivers_that_fail_and_a_port_that_is_taken_disturb_no_tunnel(stack: ExitStack) -> None:
    folder = stack.enter_context(short_dir())
    service = SampleService()
    stack.callback(service.stop)
    hook, came = stack.enter_context(receiver())
    mail = stack.enter_context(refusing_mail())
    taken = stack.enter_context(socket.create_server((LOOPBACK, 0))).getsockname()[1]
    once = {"retry_for": 0}
    receivers: list[dict[str, Any]] = [{"webhook": f"{hook}/hangs", "timeout": "500ms", **once}]
    receivers += [{"webhook": f"{hook}/{path}", "timeout": "30s", **once} for path in ("fails", "moved", "fine")]
    receivers.append({"email": "ops@example.org", "smtp": f"smtp://{LOOPBACK}:{mail}", **once})
    rule = {"when": "service_failing", "for": 0, "repeat": 0, "to": receivers}
    pair = Pair(
        folder,
        {
            "demo": service.url,
            "gone": {"service": f"http://{LOOPBACK}:{free_port()}", "service_check": {"interval": "100ms"}},
        },
        agent={"alerts": [rule], "metrics": {"listen": f"{LOOPBACK}:{taken}"}},
        server={"alerts": [rule]},
    )
    stack.callback(pair.discard)
    curl = Curl(pair.url("demo", "/events?id=goes-on&gap=0.02"))
    stack.callback(curl.stop)
    agent, server = pair.processes
    for process in (agent, server):
        for words in (
            ("webhook", "given up", "within 0.5 s"),
            ("webhook", "given up", "answered 500"),
            ("webhook", "given up", "a redirect is not followed"),
            ("ops@example.org", "given up", "answered 554"),
        ):
            wait_for(functools.partial(said, process, *words), f"{process.name}: {words}")
            assert len(said(process, *words)) == 1, said(process, *words)
    assert came.count("/fine") == 2, "each daemon's good receiver is told; that of the redirect is another's word"
    (line,) = said(agent, "metrics.listen", str(taken))
    assert "in use" in line
    # everything else goes on
    curl.wait_line("data: event 50")
    assert httpx.get(pair.url("demo", "/small")).status_code == 200
    states = {one["name"]: one["state"] for one in pair.agent.ask("status")["tunnels"]}
    assert states == {"demo": "online", "gone": "degraded"}
    # a rule with an unknown field: a line, nothing changes
    pair.agent.rewrite({"alerts": [{**rule, "wen": "now"}]})
    reload = pair.agent.tunnelctl("reload")
    assert reload.returncode == 1
    (fault,) = reload.stderr.splitlines()
    assert "alerts[0].wen: unknown key" in fault
    assert [one["name"] for one in pair.agent.ask("alerts")["rules"]] == ["service_failing"]
    # a value of a label with quotes passes as it is; one with a line end is refused, and nothing changes
    pair.agent.rewrite({"alerts": [{**rule, "name": 'of "gone"\n{x="1"} 1'}]})
    reload = pair.agent.tunnelctl("reload")
    assert reload.returncode == 1
    (fault,) = reload.stderr.splitlines()
    assert "alerts[0].name: expected one line of plain text" in fault
    assert [one["name"] for one in pair.agent.ask("alerts")["rules"]] == ["service_failing"]
    pair.agent.rewrite({"alerts": [{**rule, "name": 'of "gone" \\n {x="1"} 1'}]})
    assert pair.agent.tunnelctl("reload").returncode == 0
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(pair.agent.socket))) as scrape:
        families = list(text_string_to_metric_families(scrape.get("http://localhost/metrics").text))
    (firing,) = (one for one in families if one.name == "tunneld_alerts_firing")
    assert [sample.labels for sample in firing.samples] == [{"alert": 'of "gone" \\n {x="1"} 1'}]
    curl.wait_line("data: event 60")
    for process in (agent, server):
        assert not process.tracebacks()


@pytest.mark.timeout(60)
def test_a_browser_without_a_token_gets_a_page_that_asks_and_nothing_else(stack: ExitStack) -> None:
    folder = stack.enter_context(short_dir())
    service = SampleService()
    stack.callback(service.stop)
    token = folder / "admin"
    token.write_text("an-admin-token-of-this-test")
    token.chmod(0o600)
    port = free_port()
    admin = {"listen": {"host": LOOPBACK, "port": port}, "token_file": str(token)}
    pair = Pair(folder, {"demo": service.url}, server={"admin": admin})
    stack.callback(pair.discard)
    browser = {"Accept": "text/html", "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}
    with httpx.Client(base_url=f"http://{LOOPBACK}:{port}", headers=browser) as client:
        page = client.get("/dashboard")
        assert (page.status_code, page.headers["Content-Type"]) == (401, "text/html; charset=utf-8")
        assert '<input id="token" type="password"' in page.text, "it asks for the token"
        assert "demo" not in page.text, "nothing is told before the token"
        for path in ("/api/v1/status", "/api/v1/tunnels", "/api/v1/streams", "/metrics"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["X-Tunnel-Error"]) == (401, "unauthorized"), path
            assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        right = {"Authorization": "Bearer an-admin-token-of-this-test"}
        assert client.get("/api/v1/status", headers=right).status_code == 200
    assert httpx.get(pair.url("demo", "/small")).status_code == 200
    for process in pair.processes:
        assert not process.tracebacks()
