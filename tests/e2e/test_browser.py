"""Chromium's own EventSource through the tunnel: a tab that closes or goes elsewhere stops the service's work."""

import time

from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.conftest import wait_events
from tests.support.daemons import Pair
from tests.support.services import SampleService


def open_page(browser: webdriver.Chrome, pair: Pair, name: str) -> str:
    """A new tab on the service's page, its EventSource receiving; the request's id."""
    browser.switch_to.new_window("tab")
    browser.get(pair.url("app", f"/page?id={name}"))
    wait_events(browser, 3)
    (stream,) = [one for one in pair.agent.streams(kind="sse") if f"id={name}" in one["path"]]
    return str(stream["request_id"])


def test_a_tab_that_closes_stops_the_work(browser: webdriver.Chrome, pair: Pair, service: SampleService) -> None:
    home = browser.current_window_handle
    one = open_page(browser, pair, "tab")
    marks = [process.mark() for process in pair.processes]
    left = time.monotonic_ns()
    browser.close()
    took = (service.wait_closed("tab") - left) / 1e6
    browser.switch_to.window(home)
    print(f"tab closed, the service saw it after {took:.1f} ms, Chromium's own part included")
    assert took < 2000
    pair.assert_left(one, marks)


def test_navigating_away_stops_the_work(browser: webdriver.Chrome, pair: Pair, service: SampleService) -> None:
    one = open_page(browser, pair, "away")
    marks = [process.mark() for process in pair.processes]
    left = time.monotonic_ns()
    browser.get("about:blank")
    took = (service.wait_closed("away") - left) / 1e6
    print(f"navigated away, the service saw it after {took:.1f} ms, Chromium's own part included")
    assert took < 2000
    pair.assert_left(one, marks)


def test_an_operators_cancel_stops_the_event_source(
    browser: webdriver.Chrome, pair: Pair, service: SampleService
) -> None:
    one = open_page(browser, pair, "told")
    assert pair.agent.ask("cancel", one) == {"cancelled": [one]}
    service.wait_closed("told")
    # EventSource comes back once (retry: 200), is answered 204 and gives up: CLOSED is 2
    WebDriverWait(browser, 15, poll_frequency=0.05).until(
        lambda driver: driver.execute_script("return source.readyState") == 2
    )
    assert [one for one in pair.agent.streams(kind="sse") if "id=told" in one["path"]] == []


def test_event_source_comes_back_with_its_last_id(
    browser: webdriver.Chrome, pair: Pair, service: SampleService
) -> None:
    """A cut that is not an operator's: the browser reconnects by itself and its Last-Event-ID passes through."""
    browser.switch_to.new_window("tab")
    browser.get(pair.url("app", "/page?id=back"))
    wait_events(browser, 3)
    pair.agent.process.kill()
    service.wait_closed("back")
    pair.agent.restart()
    before = int(browser.find_element("id", "log").text.split()[-1])
    wait_events(browser, int(browser.title) + 3)
    after = int(browser.find_element("id", "log").text.split()[-1])
    assert after > before, "the service began anew: Last-Event-ID did not reach it"
    browser.get("about:blank")
