"""A day on the dashboard: a real server that has a day of samples behind it, and what its page shows of that day."""

import datetime
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from selenium import webdriver

from tests.e2e.pages import chromium, leave, rows, screen, serious, text, wait
from tests.support.aged import DAYS
from tests.support.daemons import Agent, Server
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK

_DAY = 86400
_ZONE = "Asia/Kolkata"  # half an hour beside the whole ones


class AgedServer(Server):
    """A server that is a day old."""

    module = "tests.support.aged"


@pytest.fixture(scope="module")
def aged(module_folder: Path, service: SampleService) -> Iterator[AgedServer]:
    with ExitStack() as stack:
        server = AgedServer(module_folder)
        stack.callback(server.process.discard)
        agent = Agent(module_folder, server, {"app": service.url, "notes": service.url})
        stack.callback(agent.process.discard)
        yield server
        for process in (agent.process, server.process):
            process.stop()
            process.assert_clean()


@pytest.fixture(scope="module")
def browser(module_folder: Path, aged: AgedServer) -> Iterator[webdriver.Chrome]:
    with chromium(module_folder / "day-profile") as made:
        made.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": _ZONE})
        leave(made)
        made.get(f"http://{LOOPBACK}:{aged.admin_port}/dashboard")
        wait(made, lambda: text(made, "#live-text") == "Live", 30)
        wait(made, lambda: made.find_elements("css selector", "#plot-bytes canvas"), 30)
        yield made


def choose(browser: webdriver.Chrome, name: str, span: int) -> str:
    """Show a tunnel's curves of that span; what a reader who sees none is told of its round trips."""
    for button in browser.find_elements("css selector", "#tunnels tbody button.link"):
        if button.text == name:
            browser.execute_script("arguments[0].click()", button)  # wherever the page is scrolled to
    wait(browser, lambda: text(browser, "#curves-name") == name)
    browser.execute_script("document.querySelector(`input[name=span][value='${arguments[0]}']`).click()", span)
    wait(browser, lambda: shown(browser)["step"] == (10, 60, 600)[span] and shown(browser)["tunnel"] == name)
    return str(browser.find_element("id", "plot-rtt").get_attribute("aria-label"))


def shown(browser: webdriver.Chrome) -> dict[str, Any]:
    """What the curves are drawn from."""
    return dict(browser.execute_script("return dashboardPlots.data"))


def lane(browser: webdriver.Chrome, name: str) -> list[tuple[str, float, float]]:
    """(look, where it begins, where it ends) of what a tunnel's lane is drawn of; 0: a day ago, 1000: now."""
    found = browser.execute_script(
        "return [...document.querySelectorAll(`#lanes svg[aria-label^='${arguments[0]}: '] rect`)].map((one) =>"
        " [one.getAttribute('class').slice(2), Number(one.getAttribute('x')), Number(one.getAttribute('width'))])",
        name,
    )
    return [(look, at, at + width) for look, at, width in found]


def place(ago: float) -> float:
    return 1000 - ago / _DAY * 1000


def at(points: list[float | None], data: dict[str, Any], ago: float) -> float | None:
    """The point of so many seconds ago."""
    return points[int((time.time() - ago - data["t"]) // data["step"])]


def test_the_curves_of_a_day(browser: webdriver.Chrome, aged: AgedServer) -> None:
    told = choose(browser, "app", 2)
    data = shown(browser)
    day = DAYS["app"]
    assert day.spike is not None
    assert (data["step"], len(data["rtt"])) == (600, 144)
    assert "at most 900.0 ms" in told  # the worst of ten minutes is kept, not their mean
    assert at(data["rtt"], data, day.spike) == 900
    assert at(data["loss"], data, day.spike) == pytest.approx(0.12)
    gap = next(cut for cut in day.cuts if not cut.resumed)
    for inside in (0.4, 0.6):  # where it was cut nothing is drawn
        assert at(data["rtt"], data, gap.ago - inside * gap.seconds) is None
        assert at(data["loss"], data, gap.ago - inside * gap.seconds) is None
    around = [at(data["rtt"], data, gap.ago + 1200), at(data["rtt"], data, gap.ago - gap.seconds - 1200)]
    assert all(one is not None and 20 < one < 90 for one in around)
    known = [one for one in data["rtt"] if one is not None]
    assert 138 <= len(known) < 144
    known = [one for one in data["out"] if one is not None]
    assert 100 < max(known) < 401_000  # the mean of ten minutes, of at most 400 kB a second
    # What the page draws is what the daemon says.
    answer = httpx.get(f"http://{LOOPBACK}:{aged.admin_port}/dashboard/history?tunnel=app&span=2", timeout=15).json()
    assert answer["rtt"][:-2] == data["rtt"][-len(answer["rtt"]) :][:-2]
    # A tunnel that is known for four hours has no past before that.
    choose(browser, "notes", 2)
    data = shown(browser)
    assert at(data["rtt"], data, DAYS["notes"].known + 1200) is None
    assert at(data["rtt"], data, DAYS["notes"].known - 1200) is not None


def test_finer_curves_show_less_time_and_more_of_it(browser: webdriver.Chrome) -> None:
    assert "at most 900" not in choose(browser, "app", 1)
    data = shown(browser)
    assert (data["step"], len(data["rtt"])) == (60, 120)
    assert sum(one is None for one in data["rtt"]) <= 1
    choose(browser, "app", 0)
    data = shown(browser)
    assert (data["step"], len(data["rtt"])) == (10, 90)
    assert sum(one is None for one in data["rtt"]) <= 6  # while the real server and its agent began
    assert abs(data["t"] + 900 - time.time()) < 30


def test_times_on_the_axes_are_local(browser: webdriver.Chrome) -> None:
    choose(browser, "app", 2)
    labels = browser.execute_script("return dashboardPlots.plots.rtt.axes[0]._values")
    noon = datetime.datetime.now(ZoneInfo(_ZONE))
    days = {(noon - datetime.timedelta(days=ago)).strftime("%a") for ago in (0, 1)}
    assert labels
    assert {label[:3] for label in labels} <= days
    splits = browser.execute_script("return dashboardPlots.plots.rtt.axes[0]._splits")
    for label, moment in zip(labels, splits, strict=True):
        assert label.endswith(datetime.datetime.fromtimestamp(moment, ZoneInfo(_ZONE)).strftime("%H:%M")), label


def test_the_timeline_of_a_day(browser: webdriver.Chrome) -> None:
    label = browser.find_element("css selector", '#lanes svg[aria-label^="app: "]').get_attribute("aria-label")
    assert label == "app: 4 outages, 3 of them resumed; online now"
    found = lane(browser, "app")
    day = DAYS["app"]
    assert found[0][:2] == ("good", 0)  # it was well when the day began, which was before the first event of it
    assert found[0][2] == pytest.approx(place(day.cuts[0].ago), abs=1)
    assert max(end for _, _, end in found) == 1000
    gap = next(cut for cut in day.cuts if not cut.resumed)
    (bad,) = [one for one in found if one[0] == "bad" and one[2] - one[1] > 20 and one[1] < place(gap.ago) + 0.5][:1]
    assert bad[1:] == pytest.approx((place(gap.ago), place(gap.ago - gap.seconds)), abs=1.5)
    assert day.degraded is not None
    failed, lasted = day.degraded
    assert [one for one in found if one[0] == "wait" and abs(one[1] - place(failed)) < 1.5 and one[2] - one[1] > 15]
    assert lane(browser, "dead") == [("bad", 0, 1000)]  # down since before the day: no event of the day tells that
    assert lane(browser, "notes") == []  # nothing happened to it
    assert lasted == 1800
    # The list, newest first, in the reader's own time.
    (first, *others) = browser.execute_script(
        "return [...document.querySelectorAll('#outages tbody tr')].map((row) =>"
        " [...row.children].map((cell) => cell.textContent))"
    )
    assert [first[4], *(row[4] for row in others)] == [
        "4.0 KiB sent again, nothing lost",
        "4.0 KiB sent again, nothing lost",
        "3 streams lost",
        "4.0 KiB sent again, nothing lost",
    ]
    assert others[1][2] == "40 min 0 s"
    when = datetime.datetime.now(ZoneInfo(_ZONE)) - datetime.timedelta(seconds=gap.ago)
    clock = re.search(r"(\d\d):(\d\d):\d\d", others[1][0])
    assert clock is not None
    minutes = int(clock[1]) * 60 + int(clock[2]) - (when.hour * 60 + when.minute)
    assert (minutes + 720) % 1440 - 720 == pytest.approx(0, abs=4)
    assert text(browser, "#sum-outages") == "4"
    assert _ZONE in text(browser, "#timeline-count") or "Calcutta" in text(browser, "#timeline-count")
    assert "dead" not in str(rows(browser, "tunnels"))


@pytest.mark.parametrize("width", [1440, 390])
def test_a_day_is_for_everybody(browser: webdriver.Chrome, width: int) -> None:
    with screen(browser, width, "dark"):
        choose(browser, "app", 2)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert serious(browser) == []
