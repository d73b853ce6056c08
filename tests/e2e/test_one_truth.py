"""Every figure of quality at one moment: status, `tunnelctl info`, metrics, dashboard's data and page, at both ends.

The network between them delays, wavers and loses; the connection was lost once and resumed. What is compared stands
still between two heartbeats: status is read before and after all others, and says the same both times.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from selenium import webdriver

from tests.e2e.pages import chromium, text, wait
from tests.e2e.two_ends import Ends, ends
from tests.support.netns import missing
from tests.support.processes import NotSeen, clean_environment, eventually, python_module
from tests.support.sockets import LOOPBACK

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

_METRICS = 9460  # of the agent, in its namespace
_ADMIN = 8442  # of the server, in the other
_UPLOAD = """
import sys, time
while True:
    sys.stdout.write("." * 400)
    sys.stdout.flush()
    time.sleep(0.02)
"""
_IN_INFO = ("Jitter", "Queueing", "Kernel's round trip", "Sent again", "Delivery")
Told = dict[str, Any]


class End:
    """One daemon: all the places that tell of its one tunnel.

    Args:
        role: ``agent`` or ``server``.
        it: both.
        port: of its page.
    """

    def __init__(self, role: str, it: Ends, port: int) -> None:
        self.role, self.it = role, it
        self.base = f"http://{LOOPBACK}:{port}"
        self.client = httpx.Client(base_url=self.base, timeout=20)

    def status(self) -> Told:
        """`tunnelctl status --json` of the agent; of the server its API."""
        if self.role == "server":
            return dict(self.client.get("/api/v1/tunnels").json()["tunnels"][0])
        return dict(json.loads(self.tunnelctl("status", "--json"))["tunnels"][0])

    def tunnelctl(self, *words: str) -> str:
        argv = python_module("tunnelctl", "--socket", str(self.it.folder / "c.sock"), *words)
        return subprocess.run(argv, capture_output=True, text=True, check=True, env=clean_environment()).stdout

    def data(self) -> Told:
        """What a page is told first."""
        with self.client.stream("GET", "/dashboard/feed") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    return dict(json.loads(line.removeprefix("data: "))["tunnels"][0])
        raise AssertionError("no message of the feed")

    def metrics(self) -> dict[str, float]:
        """`name{label="value",…}`, without the agent's tunnel and its server's like -> value."""
        found = {}
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for sample in family.samples:
                labels = ",".join(value for key, value in sorted(sample.labels.items()) if key != "tunnel")
                found[f"{sample.name}[{labels}]" if labels else sample.name] = sample.value
        return found

    def of_metrics(self) -> dict[str, float | str | None]:
        """The figures as the metrics have them, in the status's units; of the server the middle one and the worst."""
        found = self.metrics()

        def one(name: str, *labels: str) -> float | None:
            if self.role == "agent":
                return found.get(f"tunneld_{name}[{','.join(labels)}]" if labels else f"tunneld_{name}")
            middle, worst = (
                found.get(f"tunneld_known_{name}[{','.join([*labels, which])}]") for which in ("median", "worst")
            )
            assert middle == worst, name  # there is one tunnel
            return middle

        def total(name: str) -> float | None:
            return found.get(f"tunneld_{name}_total" if self.role == "agent" else f"tunneld_known_{name}")

        (grade,) = [key[25:-1] for key, value in found.items() if key.startswith("tunneld_connection_grade[") and value]
        causes = [
            key[31:-1] for key, value in found.items() if key.startswith("tunneld_connection_grade_cause[") and value
        ]
        milliseconds = {
            **{f"rtt {stat}": one("heartbeat_rtt_seconds", stat) for stat in ("last", "p50", "p95")},
            "jitter": one("heartbeat_jitter_seconds"),
            "queueing": one("heartbeat_queue_seconds"),
            **{f"kernel rtt {stat}": one("connection_rtt_seconds", stat) for stat in ("smoothed", "least")},
        }
        return {
            **{key: None if value is None else round(value * 1000, 3) for key, value in milliseconds.items()},
            "loss": _rounded(one("connection_loss_ratio"), 4),
            "segments": total("connection_segments"),
            "retransmitted": total("connection_retransmitted_segments"),
            "delivery": one("connection_delivery_bytes_per_second"),
            "outages": total("outages"),
            "outage seconds": _rounded(total("outage_seconds"), 3),
            "streams lost": total("streams_lost"),
            "replayed": total("replayed_bytes"),
            "reconnects": total("reconnects"),
            "grade": grade,
            "cause": causes[0] if causes else None,
        }

    def last_byte(self) -> float:
        """Seconds since then, by the metrics."""
        found = self.metrics()
        name = "connection_last_byte_timestamp_seconds"
        at = found[f"tunneld_{name}" if self.role == "agent" else f"tunneld_known_{name}[worst]"]
        return time.time() - at

    def bodies(self) -> tuple[float, float, float]:
        """When, and bytes from visitors and to them, by the metrics."""
        found = self.metrics()
        of = "tunnel" if self.role == "agent" else "visitor"
        return time.monotonic(), found[f"tunneld_{of}_received_bytes_total"], found[f"tunneld_{of}_sent_bytes_total"]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def figures(told: Told) -> dict[str, float | str | None]:
    """Those of a status, or of the dashboard's data."""
    quality, outages = told["quality"], told["outages"]
    tcp = quality["tcp"]
    causes = [cause for cause in ("rtt", "loss", "jitter") if quality["reason"].removeprefix("p95 ").startswith(cause)]
    return {
        **{f"rtt {key}": value for key, value in quality["rtt_ms"].items()},
        "jitter": quality["jitter_ms"],
        "queueing": quality["queue_ms"],
        "loss": quality["loss"],
        "kernel rtt smoothed": tcp["rtt_ms"],
        "kernel rtt least": tcp["least_rtt_ms"],
        "segments": tcp["segments"],
        "retransmitted": tcp["retransmitted"],
        "delivery": tcp["delivery_rate"],
        "outages": outages["count"],
        "outage seconds": outages["seconds"],
        "streams lost": outages["streams_lost"],
        "replayed": outages["replayed_bytes"],
        "reconnects": told["reconnects"],
        "grade": quality["grade"],
        "cause": causes[0] if causes else None,
    }


def size(count: float) -> str:
    """As `words.js` and `tunnelctl` say it."""
    if count < 1024:
        return f"{count:.0f} B"
    value, unit = (count / 1024, "KiB") if count < 1024 * 1023.5 else (count / 1048576, "MiB")
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def on_page(told: Told) -> dict[str, str]:
    """What the page is to say of a status, word by word."""
    quality, outages = told["quality"], told["outages"]
    tcp, trips, last = quality["tcp"], quality["rtt_ms"], outages["last"]
    return {
        "Grade": ": ".join(filter(None, (quality["grade"], quality["reason"]))),
        "Round trip": f"{trips['last']:.1f} ms last, {trips['p50']:.1f} ms p50, {trips['p95']:.1f} ms p95",
        "Jitter": f"{quality['jitter_ms']:.1f} ms",
        "Queueing": f"{quality['queue_ms']:.1f} ms",
        "Loss": f"{quality['loss']:.1%}".replace("%", " %")
        + f", {quality['pings_lost']} of {quality['pings']} pings unanswered",
        "Kernel's round trip": f"{tcp['rtt_ms']:.1f} ms smoothed, {tcp['least_rtt_ms']:.1f} ms least",
        "Sent again": f"{tcp['retransmitted']} of {tcp['segments']} segments",
        "Delivery": f"{size(tcp['delivery_rate'])}/s",
        "Outages": f"{outages['count']}, {told_seconds(outages['seconds'])} in sum, "
        f"{outages['streams_lost']} streams lost",
        "Last outage": f"{told_seconds(last['seconds'])}, {'resumed' if last['resumed'] else 'not resumed'}",
    }


def told_seconds(seconds: float) -> str:
    """A duration of some seconds."""
    if 0 < seconds < 0.995:
        return f"{max(1, round(seconds * 1000))} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def of_page(browser: webdriver.Chrome) -> dict[str, str]:
    """The list of figures in sight."""
    rows = "[...document.querySelectorAll('#figures div')]"
    script = f"return {rows}.map((row) => [...row.children].map((cell) => cell.textContent))"
    return {str(key): str(value) for key, value in browser.execute_script(script)}


@pytest.fixture(scope="module")
def world(module_folder: Path) -> Iterator[tuple[list[End], webdriver.Chrome, Ends]]:
    """Both ends, whose connection was cut once, with traffic both ways; and a browser."""
    listen = {"metrics": {"listen": f"{LOOPBACK}:{_METRICS}"}}
    with ExitStack() as stack:
        browser = stack.enter_context(chromium(module_folder / "profile"))
        it = stack.enter_context(ends(agent=listen, delay=0.02, jitter=0.02, drop=0.03, mtu=600))
        found = [
            End("agent", it, stack.enter_context(it.net.door("a", _METRICS))),
            End("server", it, stack.enter_context(it.net.door("b", _ADMIN))),
        ]
        found[0].tunnelctl("reconnect", "t")
        eventually(lambda: all(end.status()["outages"]["last"] for end in found), timeout=20, what="resumed")
        it.start("a", ["curl", "-sS", "http://127.0.0.1:9000/pace?rate=100"], "pace").wait(10)
        for end in found:
            stack.callback(end.client.close)
        yield found, browser, it


def test_throughput_is_the_same_everywhere(world: tuple[list[End], webdriver.Chrome, Ends]) -> None:
    found, browser, it = world
    stream = ["curl", "-sSN", "-H", "Accept: text/event-stream", "http://127.0.0.1:8440/t/t/paced?id=p"]
    down = it.start("b", stream, "down", "data:")
    up = it.start(
        "b",
        ["sh", "-c", f"{sys.executable} -c '{_UPLOAD}' | curl -sS -T - http://127.0.0.1:8440/t/t/upload"],
        "up",
    )
    it.after(100)
    for end in found:
        browser.get(f"{end.base}/dashboard")
        wait(browser, lambda: text(browser, "#live-text").startswith("Live"), 30)
        before, seen = end.bodies(), []
        while time.monotonic() - before[0] < 8:
            seen.append(of_page(browser))
            time.sleep(0.5)
        status, after = end.status(), end.bodies()
        history = end.client.get("/dashboard/history?tunnel=t&span=0").json()
        for number, (key, word, column) in enumerate(
            (("in_bytes_s", "From visitors", "in"), ("out_bytes_s", "To visitors", "out")), 1
        ):
            rate = (after[number] - before[number]) / (after[0] - before[0])
            page = sorted(_bytes(one[word]) for one in seen if one)
            shown = page[len(page) // 2]
            past = [value for value in history[column] if value is not None][-1]
            print(end.role, key, rate, status["throughput"], shown, past)
            assert rate > 5000
            assert status["throughput"][key] == pytest.approx(rate, rel=0.2)
            assert shown == pytest.approx(rate, rel=0.2)
            assert past == pytest.approx(rate, rel=0.5)  # of a point that began before the traffic did, perhaps
    for process in (down, up):
        process.discard()


def _bytes(text_: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+) (B|KiB|MiB)/s", text_).groups()  # type: ignore[union-attr]
    return float(number) * {"B": 1, "KiB": 1024, "MiB": 1048576}[unit]


def test_every_other_figure_is_the_same_everywhere(world: tuple[list[End], webdriver.Chrome, Ends]) -> None:
    found, browser, it = world
    it.after(100)
    # From now on a heartbeat each 20 s: between two of them nothing moves, and a slow machine can ask everywhere.
    file = it.folder / "a.yaml"
    document = yaml.safe_load(file.read_text())
    document["heartbeat"] = {"interval": "20s", "timeout": "3s"}
    file.write_text(yaml.safe_dump(document))
    found[0].tunnelctl("reload")
    for end in found:
        browser.get(f"{end.base}/dashboard")
        wait(browser, lambda: text(browser, "#live-text").startswith("Live"), 30)
        differ = ["its status, each time it was asked"]
        try:
            eventually(lambda end=end, differ=differ: same(end, browser, differ), timeout=60)
        except NotSeen:
            pytest.fail(f"{end.role}: not the same everywhere: {differ}")
        assert end.status()["quality"]["pings"] > 100


def same(end: End, browser: webdriver.Chrome, differ: list[str]) -> bool:
    """Whether all places said the same while status did not change; what differs is left in `differ`."""
    before = end.status()
    heard, page_says = end.last_byte(), of_page(browser)
    places = {"metrics": end.of_metrics(), "data": figures(end.data())}
    info = end.tunnelctl("info", "t") if end.role == "agent" else ""
    page = of_page(browser)
    after = end.status()
    if figures(before) != figures(after) or page_says.get("Round trip") != page.get("Round trip"):
        return False
    differ.clear()
    wanted = figures(after)
    for place, told in places.items():
        differ += [f"{place} {key}: {told[key]} for {value}" for key, value in wanted.items() if told[key] != value]
    for key, words in on_page(after).items():
        if not (page.get(key, "").endswith(words) if key == "Last outage" else page.get(key) == words):
            differ.append(f"page {key}: {page.get(key)} for {words}")
        # The same words stand in `tunnelctl info`, but for how a share and a moment are written.
        if info and key in _IN_INFO and words not in info:
            differ.append(f"info {key}: {words} is not in {info}")
    ago = re.match(r"\d+", page["Last byte"])
    assert ago is not None
    if not before["heartbeat"]["last_byte_s"] - 0.5 < heard < after["heartbeat"]["last_byte_s"] + 0.5:
        differ.append(f"metrics last byte: {heard} for {before['heartbeat']} to {after['heartbeat']}")
    if abs(int(ago[0]) - after["heartbeat"]["last_byte_s"]) > 3.5:  # the page counts by itself from what it heard last
        differ.append(f"page last byte: {page['Last byte']} for {after['heartbeat']}")
    return not differ
