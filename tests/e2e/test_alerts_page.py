"""Alerts on both daemons' pages: there while they fire, gone when they are over, for hands and ears; and a drain."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.e2e.conftest import MakePair
from tests.e2e.pages import Visitors, api, assert_quiet, chromium, leave, screen, serious, show, text, wait
from tests.support.daemons import Pair
from tests.support.processes import Process, python_module
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_ports

_RULES = [
    {"name": "its-service", "when": "service_failing", "for": 0, "group": 0, "to": [{"log": True}]},
    {"name": "half-full", "when": "limit_near", "over": 0.3, "for": 0, "group": 0, "to": [{"log": True}]},
]
_CHECK = {"interval": 0.5, "timeout": 1}


@pytest.fixture(scope="module")
def browser(module_folder: Path) -> Iterator[webdriver.Chrome]:
    with chromium(module_folder / "alerts-profile") as made:
        yield made


class Failing:
    """A pair whose tunnel `app` has a service that comes and goes; the rules stand on both sides."""

    def __init__(self, make_pair: MakePair, service: SampleService) -> None:
        self.port, self.metrics = free_ports(2)
        self.process: Process | None = None
        self.begin()
        self.pair: Pair = make_pair(
            {
                "app": {"service": f"http://{LOOPBACK}:{self.port}", "service_check": _CHECK},
                "well": service.url,
            },
            server={"alerts": _RULES, "limits": {"max_tunnels": 5}, "drain_timeout": "20s"},
            agent={"alerts": _RULES, "metrics": {"listen": f"{LOOPBACK}:{self.metrics}"}},
        )

    def begin(self) -> None:
        self.process = Process(python_module("tests.support.services", "--port", str(self.port)), name="service")
        self.process.wait_line("ready", timeout=20)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.discard()
            self.process = None


@pytest.fixture
def failing(make_pair: MakePair, service: SampleService) -> Iterator[Failing]:
    made = Failing(make_pair, service)
    try:
        yield made
    finally:
        made.end()


def alerts(browser: webdriver.Chrome) -> dict[tuple[str, str], str]:
    """(rule, subject) -> message, of those in sight."""
    found: list[list[Any]] = browser.execute_script(
        "return [...document.querySelectorAll('#alerts-list li')].filter((row) => row.offsetParent)"
        ".map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    return {(rule, subject): message for subject, rule, message, _ in found}


def open_page(browser: webdriver.Chrome, failing: Failing, role: str) -> None:
    if role == "server":
        show(browser, failing.pair)
        return
    leave(browser)
    browser.get(f"http://{LOOPBACK}:{failing.metrics}/dashboard")
    wait(browser, lambda: text(browser, "#live-text").startswith("Live"), 30)


@pytest.mark.parametrize("role", ["server", "agent"])
def test_an_alert_comes_and_goes_live(browser: webdriver.Chrome, failing: Failing, role: str) -> None:
    open_page(browser, failing, role)
    of_limits = {("half-full", "tunnels")} if role == "server" else set()
    wait(browser, lambda: alerts(browser).keys() == of_limits)
    failing.end()
    key = ("its-service", "app")
    wait(browser, lambda: key in alerts(browser), 20)
    assert alerts(browser)[key] == "The service of app fails: connection refused."
    assert text(browser, "#alerts-count") == f"{1 + len(of_limits)} firing"
    # A reader that does not see the list is told of it, and so is who looks at another tab.
    wait(browser, lambda: "Alert its-service: The service of app fails" in text(browser, "#alerts-said"))
    assert browser.title == f"({1 + len(of_limits)} alert{'s' if of_limits else ''}) tunneld {role}"
    row = "#alerts-list li:last-child"
    assert re.search(r"since .*\(\d+ s\)", text(browser, f"{row} .since")), text(browser, row)
    # What the page says is what the API says.
    told = failing.pair.agent.ask("alerts")["alerts"] if role == "agent" else api(failing.pair, "alerts")["alerts"]
    assert {(one["alert"], one["subject"]): one["message"] for one in told} == alerts(browser)
    # By keyboard: from the list to the tunnel that it tells of.
    browser.execute_script("document.getElementById('alerts').focus()")
    for _ in range(3):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.text == "app":
            break
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wait(browser, lambda: text(browser, "#curves-name") == "app")
    failing.begin()
    wait(browser, lambda: alerts(browser).keys() == of_limits, 20)
    wait(browser, lambda: "Alert its-service of app is over." in text(browser, "#alerts-said"))
    assert browser.title == (f"(1 alert) tunneld {role}" if of_limits else f"tunneld {role}")
    # Whose row is gone has the focus somewhere near, not at the page's begin.
    assert browser.execute_script("return document.activeElement !== document.body")
    assert_quiet(browser, failing.pair, failing.metrics if role == "agent" else None)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 820, 390])
def test_axe_finds_nothing_serious_beside_alerts(
    browser: webdriver.Chrome, failing: Failing, theme: str, width: int
) -> None:
    failing.end()
    with screen(browser, width, theme):
        open_page(browser, failing, "server")
        wait(browser, lambda: len(alerts(browser)) == 2, 20)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert serious(browser) == []


def test_a_server_that_drains_says_so_and_no_tunnel_is_called_not_connected(
    browser: webdriver.Chrome, failing: Failing
) -> None:
    visitors = Visitors(failing.pair)
    visitors.come("last", tunnel="well")
    open_page(browser, failing, "server")
    wait(browser, lambda: "/events?id=last" in text(browser, "#streams"))
    assert not browser.find_element("id", "draining").is_displayed()
    failing.pair.server.process.signal(signal.SIGTERM)
    wait(browser, lambda: browser.find_element("id", "draining").is_displayed(), 5)
    assert text(browser, "#draining") == (
        "This server is being drained: it takes no new streams, waits for the 1 stream under way, and leaves."
    )
    wait(browser, lambda: "draining" in text(browser, "#tunnels"))
    assert "not connected" not in text(browser, "#tunnels")
    wait(browser, lambda: "down" not in text(browser, '#tunnels tr:has([aria-label="Reconnect well"])'))
    visitors.leave()
    wait(browser, lambda: "This server was drained and has left" in text(browser, "#stale"), 20)
    assert text(browser, "#live-text") == "Drained"
    assert "not connected" not in text(browser, "#tunnels")


def test_a_tunnel_whose_agent_was_drained_says_so(browser: webdriver.Chrome, failing: Failing) -> None:
    open_page(browser, failing, "server")
    wait(browser, lambda: "online" in text(browser, "#tunnels"))
    wait(browser, lambda: all(one["quality"]["pings"] for one in api(failing.pair, "tunnels")["tunnels"]))
    failing.pair.agent.tunnelctl("drain")
    wait(browser, lambda: text(browser, "#tunnels").count("its agent was drained") >= 2, 20)
    assert "not connected" not in text(browser, "#tunnels")
