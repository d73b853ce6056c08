"""Chromium's own WebSocket: through the tunnel a page and its service see of each other what they see direct."""

from __future__ import annotations

import http
import queue
import threading
import time
from collections.abc import Iterator
from socket import SHUT_RDWR
from typing import Any

import pytest
from selenium import webdriver
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from tests.e2e.conftest import MakePair
from tests.support.daemons import Pair

#: Opens a WebSocket, sends, and says how it ended: (url, protocols, what to send, [code, reason] or null).
PAGE = """
const [url, protocols, sends, close, done] = arguments;
const seen = {messages: [], protocol: null, error: false};
const socket = new WebSocket(url, protocols);
socket.binaryType = "arraybuffer";
socket.onopen = () => {
  seen.protocol = socket.protocol + "/" + socket.extensions;
  for (const one of sends) socket.send(typeof one === "number" ? new Uint8Array(one) : one);
  if (close && !sends.length) socket.close(...close);
};
socket.onmessage = (event) => {
  seen.messages.push(typeof event.data === "string" ? event.data : event.data.byteLength);
  if (close && seen.messages.length === sends.length) socket.close(...close);
};
socket.onerror = () => { seen.error = true; };
socket.onclose = (event) => done({...seen, code: event.code, reason: event.reason, clean: event.wasClean});
"""


class Service:
    """A WebSocket service in a thread; what it does is said by the path, what it saw is in `seen`."""

    def __init__(self) -> None:
        self.seen: queue.Queue[tuple[str, int | None, str | None, float]] = queue.Queue()
        self.open: queue.Queue[str] = queue.Queue()
        self._server: Server = serve(
            self.handle, "127.0.0.1", 0, subprotocols=None, compression=None, max_size=32 << 20,
            process_request=self._request, select_subprotocol=lambda _, offered: offered[0] if offered else None,
        )  # fmt: skip
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(http.HTTPStatus.FORBIDDEN, "no") if request.path == "/refused" else None

    def handle(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        path = socket.request.path
        self.open.put(path)
        try:
            if path == "/closes":
                socket.close(4001, "enough of that")
            elif path == "/aborts":
                socket.socket.shutdown(SHUT_RDWR)
            elif path == "/bits":
                socket.socket.sendall(b"\x81\x02hi\xc1\x01x")
            elif path == "/utf8":
                socket.socket.sendall(b"\x81\x02\xff\xff")
            elif path == "/fragments":
                socket.socket.sendall(b"\x01\x02fr\x89\x01p\x00\x02ag\x80\x04ment")
                socket.close(1000, "done")
            for message in socket:
                socket.send(message)
        except (ConnectionClosed, OSError):
            pass
        self.seen.put((path, socket.close_code, socket.close_reason, time.monotonic()))

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


@pytest.fixture
def tunnel(service: Service, make_pair: MakePair) -> Pair:
    return make_pair({"app": f"http://127.0.0.1:{service.port}"})


def _through(pair: Pair, path: str) -> str:
    return pair.url("app", path).replace("http://", "ws://")


CASES: list[tuple[str, list[str], list[Any], list[Any] | None]] = [
    ("/echo", [], ["hello", "", "ü€𝄞" * 500, 0, 1, 70_000, 2 << 20], [1000, "done"]),
    ("/echo", ["chat.v2", "chat.v1"], ["x"], [3001, "bye"]),
    ("/echo", [], [], [4999, "ü" * 61]),
    ("/closes", [], [], None),
    ("/aborts", [], [], None),
    ("/bits", [], [], None),
    ("/utf8", [], [], None),
    ("/fragments", [], [], None),
    ("/refused", [], [], None),
]


def test_every_case_is_seen_by_the_page_as_it_is_direct(
    browser: webdriver.Chrome,
    tunnel: Pair,
    service: Service,
) -> None:
    browser.get(tunnel.url("app", "/nothing"))  # about:blank may not reach loopback
    browser.set_script_timeout(15)
    for path, *script in CASES:
        direct = browser.execute_async_script(PAGE, f"ws://127.0.0.1:{service.port}{path}", *script)
        tunnelled = browser.execute_async_script(PAGE, _through(tunnel, path), *script)
        if path == "/bits":  # the tunnel's hop refuses it; the page sees only that its connection ends
            assert (direct.pop("error"), tunnelled.pop("error")) == (True, False)
        assert tunnelled == direct, path
        if path != "/refused":
            codes = [service.seen.get(timeout=10)[: 2 if path == "/bits" else 3] for _ in range(2)]
            assert codes[0] == codes[1], path
    assert tunnel.agent.streams(kind="websocket") == []


def test_a_tab_that_closes_is_told_to_the_service_at_once(
    browser: webdriver.Chrome,
    tunnel: Pair,
    service: Service,
) -> None:
    home = browser.current_window_handle
    for abrupt in (False, True):
        browser.switch_to.new_window("tab")
        browser.get(tunnel.url("app", "/nothing"))
        browser.execute_script("window.kept = new WebSocket(arguments[0])", _through(tunnel, "/echo"))
        assert service.open.get(timeout=10) == "/echo"
        (stream,) = tunnel.agent.streams(kind="websocket")
        assert stream["path"] == "/echo"
        left = time.monotonic()
        if abrupt:
            browser.get("about:blank")
        else:
            browser.close()
        path, code, _, at = service.seen.get(timeout=10)
        print(f"left, and the service heard {code} after {(at - left) * 1000:.1f} ms, Chromium's own part included")
        assert (path, code) == ("/echo", 1001)
        assert at - left < 2
        if not abrupt:
            browser.switch_to.window(home)


def test_an_operators_cancel_is_a_close_with_1001(
    browser: webdriver.Chrome,
    tunnel: Pair,
    service: Service,
) -> None:
    browser.switch_to.new_window("tab")
    browser.get(tunnel.url("app", "/nothing"))
    browser.execute_script(
        "window.over = null; window.kept = new WebSocket(arguments[0]);"
        "window.kept.onclose = (event) => { window.over = [event.code, event.reason, event.wasClean]; }",
        _through(tunnel, "/echo"),
    )
    service.open.get(timeout=10)
    (stream,) = tunnel.agent.streams(kind="websocket")
    assert tunnel.agent.ask("cancel", "--kind", "websocket", "--yes") == {"cancelled": [stream["request_id"]]}
    assert service.seen.get(timeout=10)[:3] == ("/echo", 1001, "cancelled by the operator")
    deadline = time.monotonic() + 10
    while (over := browser.execute_script("return window.over")) is None:
        assert time.monotonic() < deadline
    assert over == [1001, "cancelled by the operator", True]
