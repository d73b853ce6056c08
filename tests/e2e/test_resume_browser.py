"""Chromium's own EventSource while the tunnel's connection is cut again and again: the page never learns of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.conftest import wait_events
from tests.e2e.resumed import Cuttable
from tests.support.services import SampleService

WATCH = """
window.errors = 0; window.seen = []; window.last = 0;
source.addEventListener("error", () => window.errors++);
source.addEventListener("message", event => {
    window.last = performance.now();
    window.seen.push(Number(event.lastEventId));
});
"""


@pytest.fixture(scope="module")
def cuttable(module_folder: Path, service: SampleService) -> Iterator[Cuttable]:
    folder = module_folder / "cut"
    folder.mkdir()
    made = Cuttable(folder, {"app": service.url})
    yield made
    made.close()


def test_twenty_cuts_without_one_error_in_the_page(browser, cuttable: Cuttable, service: SampleService) -> None:  # type: ignore[no-untyped-def]
    browser.get(cuttable.url("app", "/page?id=twenty"))
    wait_events(browser, 2)
    browser.execute_script(WATCH)
    outages = []
    for number in range(20):
        outages.append(cuttable.cut(reset=number % 2 == 0))
        before = int(browser.title)
        page = WebDriverWait(browser, 10, poll_frequency=0.005)
        page.until(lambda driver, so_far=before: int(driver.title) > so_far)
        place = 12 * (number % 4)  # ms behind an event: at another place between two each time
        page.until(lambda driver, place=place: driver.execute_script(f"return performance.now() - last >= {place}"))
    seen = browser.execute_script("return window.seen")
    assert browser.execute_script("return window.errors") == 0
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    assert len(service.process.matching('"event": "open", "id": "twenty"')) == 1
    print(f"{len(seen)} events over 20 cuts, the longest outage {max(outages) * 1000:.0f} ms")
    browser.get("about:blank")
