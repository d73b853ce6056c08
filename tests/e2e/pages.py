"""Pages of ours in Chromium: a browser that writes down what it asks for, and what a test reads of a page."""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.conftest import APT, FLAGS, need
from tests.support.daemons import Pair
from tests.support.sockets import LOOPBACK

__all__ = [
    "AXE",
    "Visitors",
    "api",
    "assert_quiet",
    "chromium",
    "leave",
    "rows",
    "screen",
    "serious",
    "show",
    "text",
    "wait",
]

AXE = Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js"


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that writes down what it asks for and what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = need("chromium", APT)
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(need("chromedriver", APT)))
    try:
        yield made
    finally:
        made.quit()


class Visitors:
    """Open event streams, by plain sockets."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._open: dict[str, socket.socket] = {}

    def come(self, name: str, tunnel: str = "app", query: str = "") -> None:
        made = socket.create_connection((LOOPBACK, self.pair.server.port), timeout=10)
        made.sendall(
            f"GET /t/{tunnel}/events?id={name}{query} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        self._open[name] = made

    def go(self, name: str) -> None:
        self._open.pop(name).close()

    def leave(self) -> None:
        for name in list(self._open):
            self.go(name)


def api(pair: Pair, path: str, method: str = "GET") -> Any:
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{pair.server.admin_port}/api/v1/{path}", method=method, headers={"X-Tunneld-Request": "1"}
    )
    with urllib.request.urlopen(request, timeout=15) as answer:
        return json.load(answer)


def wait(browser: webdriver.Chrome, what: Callable[[], object], timeout: float = 15) -> Any:
    return WebDriverWait(browser, timeout, poll_frequency=0.02).until(lambda _: what())


def leave(browser: webdriver.Chrome) -> None:
    """Nothing in sight, and nothing noted: the page before, whose daemon may be gone, asks no more."""
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)


def show(browser: webdriver.Chrome, pair: Pair) -> None:
    """The page, live."""
    api(pair, "status")  # what serves it is loaded at the first call
    leave(browser)
    browser.get(f"http://{LOOPBACK}:{pair.server.admin_port}/dashboard")
    wait(browser, lambda: text(browser, "#live-text") == "Live")


def text(browser: webdriver.Chrome, selector: str) -> str:
    return str(browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))


def rows(browser: webdriver.Chrome, table: str) -> list[list[str]]:
    """The cells of each row in sight."""
    found = browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr:not(.space)`)]"
        ".map(row => [...row.children].map(cell => cell.innerText))",
        table,
    )
    return [[str(cell) for cell in row] for row in found]


def assert_quiet(browser: webdriver.Chrome, pair: Pair, port: int | None = None) -> None:
    """Nothing on the console, and nothing was asked of another host than the page's; `port`: the agent's page."""
    said = [one for one in browser.get_log("browser") if one["level"] in ("SEVERE", "WARNING")]
    assert not said, said
    asked = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    own = f"http://{LOOPBACK}:{port or pair.server.admin_port}/"
    assert urls
    assert [url for url in urls if not url.startswith(own)] == []


@contextmanager
def screen(browser: webdriver.Chrome, width: int, theme: str, height: int = 1000) -> Iterator[None]:
    """A screen of that width in CSS pixels, and `light` or `dark`."""
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def serious(browser: webdriver.Chrome) -> list[Any]:
    """What axe-core finds serious or worse on the page as it stands; skips, or in CI fails, without axe-core."""
    if not AXE.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("axe-core is missing: npm ci in tests/e2e/node")
        pytest.skip("axe-core is missing: make test-e2e installs it")
    # by the debugger: the page's own policy lets no other script in
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})
    answer = browser.execute_cdp_cmd(
        "Runtime.evaluate",
        {"expression": "axe.run({resultTypes: ['violations']})", "awaitPromise": True, "returnByValue": True},
    )
    return [
        (one["impact"], one["id"], [node["html"][:120] for node in one["nodes"]][:3])
        for one in answer["result"]["value"]["violations"]
        if one["impact"] in ("serious", "critical")
    ]
