"""The text of metrics, as the parsers of Prometheus's own library read it, and how it lets the loop turn."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tunneld.telemetry import exposition
from tunneld.telemetry.exposition import CONTENT_TYPE, Family, counter, gauge, histogram, near, render, tallied
from tunneld.telemetry.metrics import LATENCY, Histogram
from tunneld.telemetry.usage import Usage

OPEN = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"


async def text_of(families: Iterable[Family | None], accept: str = "") -> str:
    text, kind = await render(families, role="agent", started=1.5, accept=accept)
    assert kind.startswith("application/openmetrics-text" if accept else CONTENT_TYPE)
    return text.decode()


def read(text: str) -> dict[tuple[str, ...], float]:
    """(name, label, value …) -> value, as the text format is read."""
    return {
        (sample.name, *(word for pair in sorted(sample.labels.items()) for word in pair)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def observed() -> Histogram:
    seen = Histogram(LATENCY)
    for number, value in enumerate((0.0004, 0.003, 0.003, 7, 1000)):
        seen.observe(value, f"id{number}")
    return seen


async def test_every_kind_is_read_again() -> None:
    families = [
        gauge("g", "With a \\ and\na line.", (), [((), 3)]),
        gauge("labelled", "x", ("b", "a"), [(("x", 'q"\\\n'), True), (("y", ""), math.inf), (("z", "ü"), 1e-7)]),
        counter("c", "x", ("k",), (((key,), 1 << 40) for key in "ab")),  # made as it is written
        histogram("h", "x", ("k",), [(("a",), observed())]),
        *near([Usage("memory", 1, 4), Usage("none", 1, 0), Usage("passwords", 2, 2, gives_way=True)]),
    ]
    found = read(await text_of(families))
    assert found["g",] == 3
    assert found["labelled", "a", 'q"\\\n', "b", "x"] == 1
    assert found["labelled", "a", "", "b", "y"] == math.inf
    assert found["labelled", "a", "ü", "b", "z"] == 1e-7
    assert found["c_total", "k", "a"] == 1 << 40
    assert found["h_bucket", "k", "a", "le", "0.005"] == 3
    assert found["h_bucket", "k", "a", "le", "+Inf"] == found["h_count", "k", "a"] == 5
    assert found["h_sum", "k", "a"] == pytest.approx(1007.0064)
    assert found["tunneld_limit_used_ratio", "limit", "memory"] == 0.25
    assert found["tunneld_kept_used_ratio", "limit", "passwords"] == 1
    assert len([key for key in found if key[0] in ("tunneld_limit_used_ratio", "tunneld_kept_used_ratio")]) == 2
    assert found["process_start_time_seconds",] == 1.5


async def test_openmetrics_has_one_request_of_each_bucket() -> None:
    families = [
        counter("c", "x", (), [((), 1)]),
        histogram("h", "x", (), [((), observed())]),
    ]
    text = await text_of(families, OPEN)
    found = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}
    assert found["c"].type == "counter"
    exemplars = {
        sample.labels["le"]: sample.exemplar
        for sample in found["h"].samples
        if sample.name == "h_bucket" and sample.exemplar is not None
    }
    assert {bound: exemplar.labels["request_id"] for bound, exemplar in exemplars.items()} == {
        "0.001": "id0",
        "0.005": "id2",
        "10.0": "id3",
        "+Inf": "id4",
    }
    assert exemplars["10.0"].value == 7
    assert abs(float(exemplars["10.0"].timestamp) - time.time()) < 60
    assert "id0" not in await text_of(families)


async def test_an_id_that_is_too_long_is_no_exemplar() -> None:
    seen = Histogram(LATENCY)
    seen.observe(0.1, "x" * 101)
    text = await text_of([histogram("h", "x", (), [((), seen)])], OPEN)
    assert "request_id" not in text
    list(openmetrics.text_string_to_metric_families(text))


@given(st.lists(st.tuples(st.text(), st.floats() | st.integers(0, 1 << 60) | st.booleans()), max_size=5))
def test_values_and_labels_are_read_as_the_librarys_own_text_is(rows: list[tuple[str, float]]) -> None:
    labelled = {label: value for label, value in rows if "\r" not in label}

    class Theirs(Collector):
        def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
            made = GaugeMetricFamily("g", "help", labels=["a"])
            for label, value in labelled.items():
                made.add_metric([label], value)
            return [made]

    registry = CollectorRegistry()
    registry.register(Theirs())
    ours = asyncio.run(text_of([gauge("g", "help", ("a",), [((label,), value) for label, value in labelled.items()])]))
    wanted = read(generate_latest(registry).decode())
    found = {key: value for key, value in read(ours).items() if key[0] == "g"}
    assert found.keys() == wanted.keys()
    assert all(math.isclose(found[key], wanted[key]) or math.isnan(wanted[key]) for key in wanted)


@given(st.text(), st.text(max_size=101) | st.from_regex(r"[0-9a-f]{1,32}", fullmatch=True), st.sampled_from(["", OPEN]))
@example('q"\\\n', "\\", OPEN)
@example("\r\u2028\x85", '"} 1 # {', "")
@example("\ud800", "\udfff", OPEN)
def test_any_text_passes_through_both_formats_as_a_label_and_as_an_exemplar(
    label: str, request_id: str, accept: str
) -> None:
    seen = Histogram(LATENCY)
    seen.observe(0.1, request_id)
    families = [gauge("g", "x", ("a", "b"), [((label, "y"), 1)]), histogram("h", "x", ("a",), [((label,), seen)])]
    text = asyncio.run(text_of(families, accept))
    parse = openmetrics.text_string_to_metric_families if accept else text_string_to_metric_families
    samples = [sample for family in parse(text) for sample in family.samples]
    told = label.encode(errors="replace").decode()
    assert [one.labels for one in samples if one.name == "g"] == [{"a": told, "b": "y"}]
    assert {one.labels["a"] for one in samples if one.name.startswith("h_")} == {told}
    examples = [one.exemplar.labels for one in samples if one.exemplar is not None]
    plain = re.fullmatch(r"[0-9A-Za-z._:-]{1,100}", request_id)
    assert examples == ([{"request_id": request_id}] if accept and plain else [])


NASTY = (
    'q"\\\n',
    "a\\",
    "\r",
    "\u2028\x85",
    "é漢🧹",
    "\\n",
    ',x="y"',
    '# {a="b"} 1',
    "",
    " ",
    "\t",
    "\x00",
    "} 1",
    "\ud800",
)


@pytest.mark.skipif(not shutil.which("promtool"), reason="missing: apt-get install prometheus")
async def test_promtool_takes_any_text_for_a_label() -> None:
    text = await text_of([gauge("tunneld_up", "One.", ("alert",), [((value,), 1) for value in NASTY])])
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("promtool"), reason="missing: apt-get install prometheus")
async def test_promtool_finds_nothing_to_say() -> None:
    families = [
        gauge("tunneld_up", "One.", ("tunnel",), [((f"t{number}",), number % 2) for number in range(100)]),
        counter("tunneld_things", "Things.", ("kind",), [(("a",), 3)]),
        histogram("tunneld_wait_seconds", "Waits.", ("kind",), [(("a",), observed())]),
    ]
    text = await text_of(families)
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


async def test_rows_are_tallied() -> None:
    found = read(await text_of([gauge("g", "x", ("state",), tallied("abcaab" * 50, str, ("a", "b", "d")))]))
    assert (found["g", "state", "a"], found["g", "state", "b"], found["g", "state", "d"]) == (150, 100, 0)


async def test_the_loop_turns_while_a_long_text_is_made() -> None:
    """Counted in turns of the loop, each after a whole slice at least: no clock to be late by."""
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.get_running_loop().create_task(turning())
    began = time.monotonic()
    spent = [0]

    def slow() -> object:
        for number in range(3200):
            until = time.monotonic() + 0.00001
            while time.monotonic() < until:
                spent[0] += 1
            yield ((f"t{number}",), number)

    text = await text_of([gauge("g", "x", ("tunnel",), slow())])  # type: ignore[arg-type]
    took = time.monotonic() - began
    beside.cancel()
    assert len(read(text)) > 3200
    assert turns >= 10
    assert turns <= took / exposition._SLICE + 2


def test_bounds_that_each_take_a_look_at_all_tunnels_are_looked_at_one_at_a_time() -> None:
    looked: list[str] = []

    def usages() -> Iterator[Usage]:
        for name in ("memory", "tunnels", "replay"):
            looked.append(name)
            yield Usage(name, 1, 4)

    families = near(usages())
    for count in (1, 2, 3):
        assert next(families) is None  # the loop may turn
        assert len(looked) == count
    assert [family.name for family in families if family is not None] == [
        "tunneld_limit_used_ratio",
        "tunneld_kept_used_ratio",
    ]
