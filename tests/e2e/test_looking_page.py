"""Looking into a stream on an agent's page in Chromium: what passes, heads without secrets, and sending one again."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from selenium import webdriver

from tests.e2e.conftest import MakePair
from tests.e2e.pages import Visitors, api, assert_quiet, chromium, leave, rows, screen, serious, show, text, wait
from tests.support.daemons import Pair
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_ports

SECRET = "the-operators-own-token"


@pytest.fixture(scope="module")
def browser(module_folder: Path) -> Iterator[webdriver.Chrome]:
    with chromium(module_folder / "looking-profile") as made:
        yield made


class Page:
    """An agent with a page on `port`, a tunnel that may be looked into (`app`), and one that may not (`shut`)."""

    def __init__(self, pair: Pair, port: int) -> None:
        self.pair = pair
        self.port = port
        self.visitors = Visitors(pair)

    def open(self, browser: webdriver.Chrome, live: str) -> None:
        leave(browser)
        browser.get(f"http://{LOOPBACK}:{self.port}/dashboard")
        wait(browser, lambda: text(browser, "#live-text") in (live, "Not signed in"), 30)
        if text(browser, "#live-text") != live:
            browser.find_element("id", "token").send_keys(SECRET, "\n")
            wait(browser, lambda: text(browser, "#live-text") == live)
        browser.get_log("browser")  # the page without the token is a 401, which the console tells

    def look(self, browser: webdriver.Chrome, name: str) -> None:
        """Open the details of the stream of that name."""
        wait(browser, lambda: f"/events?id={name}" in text(browser, "#streams"))
        for button in browser.find_elements("css selector", "#streams tbody button.link"):
            if f"id={name}" in button.text:
                button.click()
        wait(browser, lambda: f"id={name}" in text(browser, "#details[open] #details-list"))


@pytest.fixture
def agents_page(make_pair: MakePair, service: SampleService, folder: Path) -> Iterator[Page]:
    (port,) = free_ports(1)
    secret = folder / "metrics.token"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    agent = {
        "metrics": {"listen": f"{LOOPBACK}:{port}", "token_file": str(secret)},
        "inspection": {"events": 5},
    }
    tunnels = {"app": {"service": service.url, "inspect": True}, "shut": service.url}
    pair = make_pair(tunnels, agent=agent)
    with ExitStack() as ends:
        made = Page(pair, port)
        ends.callback(made.visitors.leave)
        yield made


def test_events_are_shown_as_they_pass_and_no_faster_than_allowed(browser: webdriver.Chrome, agents_page: Page) -> None:
    agents_page.visitors.come("slow", query="&gap=0.4")
    agents_page.visitors.come("flood", query="&gap=0.01")
    agents_page.open(browser, "Live")
    agents_page.look(browser, "slow")
    wait(browser, lambda: len(browser.find_elements("css selector", "#tail .event")) >= 3)
    first, second = browser.find_elements("css selector", "#tail .event")[:2]
    number = int(first.find_element("tag name", "span").text.partition("id ")[2])
    assert f"id {number + 1}" in second.text  # each one, decoded, in order
    assert str(number) in first.find_element("tag name", "pre").text
    assert "data:" not in text(browser, "#tail")
    assert text(browser, "#tail-state") == "live"
    agents_page.visitors.go("slow")
    wait(browser, lambda: text(browser, "#tail-state").startswith("ended: "), 5)
    assert browser.find_elements("css selector", "#tail .event")  # what passed stays to be read
    wait(browser, lambda: not browser.find_element("id", "details-cancel").is_displayed())
    browser.find_element("id", "details-close").click()

    agents_page.look(browser, "flood")
    began = time.monotonic()
    wait(browser, lambda: len(browser.find_elements("css selector", "#tail .skipped")) >= 2)
    shown = len(browser.find_elements("css selector", "#tail .event"))
    assert shown <= 5 * (time.monotonic() - began + 2)  # of about a hundred a second
    assert "not shown" in text(browser, "#tail .skipped")
    browser.find_element("id", "details-close").click()
    assert_quiet(browser, agents_page.pair, agents_page.port)


def test_where_it_is_not_allowed_a_clear_word_stands(browser: webdriver.Chrome, agents_page: Page) -> None:
    agents_page.visitors.come("closed", tunnel="shut")
    agents_page.open(browser, "Live")
    agents_page.look(browser, "closed")
    wait(browser, lambda: "inspect: true" in text(browser, "#tail-note"))
    assert text(browser, "#tail-note").startswith("The streams of shut may not be looked into.")
    assert not browser.find_element("id", "tail").is_displayed()
    assert not browser.find_element("id", "heads").is_displayed()
    browser.find_element("id", "details-close").click()
    # The server's page says who can.
    show(browser, agents_page.pair)
    wait(browser, lambda: rows(browser, "streams"))
    browser.find_element("css selector", "#streams tbody button.link").click()
    (stream,) = api(agents_page.pair, "streams")["streams"]
    assert f"tunnelctl tail {stream['request_id'][:8]}" in text(browser, "#details[open] #tail-note")
    assert not browser.find_element("id", "requests-card").is_displayed()
    assert_quiet(browser, agents_page.pair)


def test_last_requests_without_secrets_and_one_is_sent_again(
    browser: webdriver.Chrome, agents_page: Page, service: SampleService
) -> None:
    secrets = {"Authorization": "Bearer hidden-one", "Cookie": "sid=hidden-two", "X-Plain": "to be seen"}
    answer = httpx.post(agents_page.pair.url("app", "/echo?q=%3Cb%3E"), content=b"again", headers=secrets, timeout=10)
    assert answer.status_code == 200
    agents_page.open(browser, "Live")
    wait(browser, lambda: browser.find_element("id", "requests-load").is_displayed())
    browser.find_element("id", "requests-load").click()
    wait(browser, lambda: "/echo?q=%3Cb%3E" in text(browser, "#requests tbody"))
    assert text(browser, "#requests-note") == "1 request, newest first."
    browser.find_element("css selector", "#requests tbody button.link").click()
    heads = text(browser, "#request[open] #request-heads")
    assert "to be seen" in heads
    assert "hidden" not in heads
    browser.find_element("id", "request-send").click()
    wait(browser, lambda: "It may act on it once more" in text(browser, "#confirm[open] #confirm-text"))
    browser.find_element("id", "confirm-no").click()
    assert text(browser, "#request-again") == ""
    browser.find_element("id", "request-send").click()
    browser.find_element("id", "confirm-yes").click()
    wait(browser, lambda: "Sent again" in text(browser, "#request-again"))
    assert "200 after" in text(browser, "#request-again")
    assert '"body": 5}' in text(browser, "#request-again pre")  # what its service counted
    assert serious(browser) == []
    browser.find_element("id", "request-close").click()
    assert_quiet(browser, agents_page.pair, agents_page.port)


@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing_serious_where_a_stream_is_looked_into(
    browser: webdriver.Chrome, agents_page: Page, width: int
) -> None:
    agents_page.visitors.come("seen")
    with screen(browser, width, "dark"):
        agents_page.open(browser, "Live")
        agents_page.look(browser, "seen")
        wait(browser, lambda: browser.find_elements("css selector", "#tail .event"))
        wait(browser, lambda: browser.find_element("id", "heads").is_displayed())
        browser.find_element("css selector", "#heads summary").click()
        assert serious(browser) == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
