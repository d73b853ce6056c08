"""`tunneld demo` (what `make run` starts) as its reader uses it: the page, the curl line, the tunnelctl lines."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.processes import ROOT, Process, clean_environment, python_module


@pytest.fixture
def demo() -> Iterator[Process]:
    """The demo, its tunnel up."""
    made = Process(python_module("tunneld", "demo"), name="demo")
    try:
        made.wait_line("Ctrl-C ends all of it", timeout=20)
        yield made
        made.stop()
        made.assert_clean()
    finally:
        made.discard()


def printed(demo: Process, start: str) -> str:
    """The line of the demo's words that begins so; `tunnelctl` may stand there with its path."""
    return next(line.text.strip() for line in demo.lines if re.match(rf"\s*(\S*/)?{start}", line.text))


def as_pasted(line: str) -> list[str]:
    """The command's words, `tunnelctl` being this environment's."""
    words = shlex.split(line)
    return [*python_module("tunnelctl"), *words[1:]] if words[0].endswith("tunnelctl") else words


def streams(demo: Process) -> list[dict[str, object]]:
    done = subprocess.run(
        [*as_pasted(printed(demo, "tunnelctl --socket")), "--json"],
        capture_output=True, text=True, check=True, cwd=ROOT, env=clean_environment(), timeout=15,
    )  # fmt: skip
    found = json.loads(done.stdout)["streams"]
    return list(found)


def test_the_page_gets_events_and_its_tab_closes(demo: Process, browser: webdriver.Chrome) -> None:
    found = re.search(r"http://\S+/t/demo/", printed(demo, "Open this page").rstrip())
    assert found
    home = browser.current_window_handle
    for leave in ("close", "away"):
        browser.switch_to.new_window("tab")
        browser.get(found[0])
        WebDriverWait(browser, 15, poll_frequency=0.05).until(
            lambda driver: int(driver.find_element("id", "count").text or 0) >= 2
        )
        (one,) = [stream["request_id"] for stream in streams(demo) if stream["kind"] == "sse"]
        mark = demo.mark()
        if leave == "close":
            browser.close()
        else:
            browser.get("about:blank")
        for line in ("🔌 SSE client disconnected: ", "🛑 Cancelling stream: ", "🧹 Cleaned up stream: "):
            demo.wait_line(f"{line}{one}", after=mark)
        demo.wait_line(lambda text: "service" in text and "work stopped" in text, after=mark)
        assert streams(demo) == []
        if leave == "close":
            browser.switch_to.window(home)


def test_the_curl_line_shows_events_as_pasted(demo: Process) -> None:
    line = printed(demo, "curl -N ")
    curl = Process(as_pasted(line), name="curl")
    curl.wait_line("data: ", count=2)
    assert len(streams(demo)) == 1
    curl.stop()
    demo.wait_line("🔌 SSE client disconnected: ")
