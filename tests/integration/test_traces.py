"""OpenTelemetry traces of real daemons, as a collector of its own decodes them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.otlp import SPAN, TRACE, Traced, both, echoed
from tests.support.processes import ROOT, clean_environment, python_module

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def traced() -> Iterator[Traced]:
    with ExitStack() as stack:
        yield Traced(stack)


@pytest.mark.timeout(40)
def test_a_visitors_trace_goes_on_through_both_daemons(traced: Traced) -> None:
    collector = traced.collector()
    pair = traced.pair(server=collector.url, agent=collector.url)
    sent = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1", "User-Agent": "probe/1"}
    began = time.time_ns()
    seen = echoed(pair, sent, "/echo?token=hunter2")
    server, agent = both(collector)
    assert server.trace == agent.trace == TRACE
    assert (server.parent, agent.parent) == (SPAN, server.span)
    assert seen["traceparent"] == f"00-{TRACE}-{agent.span}-01"
    assert seen["tracestate"] == server.state == agent.state == "vendor=1"
    assert (server.kind, agent.kind) == ("server", "client")
    assert began <= server.begun <= agent.begun <= agent.ended
    assert server.begun < server.ended <= time.time_ns()
    assert (server.name, agent.name) == ("GET /t/demo/*", "GET demo")
    about = server.attributes
    assert about["http.request.method"] == "GET"
    assert about["http.route"] == "/t/demo/*"
    assert about["url.path"] == "/t/demo/echo"
    assert about["url.scheme"] == "http"
    assert (about["server.address"], about["server.port"]) == ("127.0.0.1", pair.server.port)
    assert about["client.address"] == "127.0.0.1"
    assert about["user_agent.original"] == "probe/1"
    assert about["http.response.body.size"] > 100
    assert agent.attributes["url.full"] == f"http://127.0.0.1:{traced.service.port}/echo"
    for one in (server, agent):
        assert one.attributes["http.response.status_code"] == 200
        assert one.attributes["tunneld.end_reason"] == "done"
        assert one.attributes["tunneld.stream.kind"] == "http"
        assert one.attributes["tunneld.tunnel"] == "demo"
        assert not one.failed
        assert "hunter2" not in repr(one)
    assert server.attributes["tunneld.request_id"] == agent.attributes["tunneld.request_id"]
    pair.close()


@pytest.mark.timeout(40)
def test_what_begins_here_what_fails_and_what_is_left(traced: Traced) -> None:
    collector = traced.collector()
    pair = traced.pair(server=collector.url, agent=collector.url)
    seen = echoed(pair, {"traceparent": "00-nonsense", "tracestate": "vendor=1"})
    server, agent = both(collector)
    assert (server.parent, agent.parent, agent.trace) == ("", server.span, server.trace)
    assert "tracestate" not in seen
    assert httpx.get(pair.url("gone", "/x")).status_code == 502
    server, agent = both(collector, 2)
    assert (server.attributes["error.type"], agent.attributes["error.type"]) == ("502", "service_unreachable")
    assert agent.attributes["http.response.status_code"] == 502
    assert server.failed
    assert agent.failed
    with httpx.stream("GET", pair.url("demo", "/events?n=0&gap=0.01&id=a"), headers=STREAM) as answer:
        next(answer.iter_bytes())
    server, agent = both(collector, 3)
    for one in (server, agent):
        assert one.attributes["tunneld.end_reason"] == "visitor"
        assert one.attributes["tunneld.stream.kind"] == "sse"
        assert one.attributes["tunneld.stream.events"] >= 1
        assert not one.failed
    httpx.request("BREW", pair.url("demo", "/echo"))
    server, _ = both(collector, 4)
    assert (server.name, server.attributes["http.request.method_original"]) == ("HTTP /t/demo/*", "BREW")
    pair.close()


@pytest.mark.timeout(40)
def test_a_trace_that_is_not_recorded_passes_as_it_is(traced: Traced) -> None:
    collector = traced.collector()
    pair = traced.pair(server=collector.url, agent=collector.url, sample=0)
    unsampled = f"00-{TRACE}-{SPAN}-00"
    assert echoed(pair, {"traceparent": unsampled})["traceparent"] == unsampled
    began = echoed(pair, {})["traceparent"]
    assert began.endswith("-02"), "a new trace of which nothing is recorded"
    assert echoed(pair, {"traceparent": f"00-{TRACE}-{SPAN}-01"})["traceparent"].endswith("-01")
    server, agent = both(collector)
    pair.close()
    assert collector.spans in ([server, agent], [agent, server])


@pytest.mark.timeout(40)
def test_without_the_key_headers_pass_as_they_are_and_nothing_is_loaded(traced: Traced) -> None:
    pair = traced.pair()
    odd = {"traceparent": "00-whatever", "tracestate": "x"}
    assert odd.items() <= echoed(pair, odd).items()
    for process in pair.processes:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "google/_upb" not in maps
    pair.close()


_WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry.exporter") or name == "opentelemetry.sdk":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.timeout(40)
def test_without_the_extra_check_and_start_say_what_to_install(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    (traced.folder / "sitecustomize.py").write_text(_WITHOUT)
    monkeypatch.setenv("PYTHONPATH", str(traced.folder))
    pair = traced.pair(server="http://127.0.0.1:4318", agent="http://127.0.0.1:4318")
    for process in pair.processes:
        line = process.wait_line("telemetry.otlp", timeout=20)
        assert "-m pip install 'tunneld[otlp]'" in line.text
    assert "traceparent" not in echoed(pair, {})
    for file in (pair.server.file, pair.agent.file):
        done = subprocess.run(
            python_module("tunneld", "check", str(file)),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=clean_environment({"PYTHONPATH": str(traced.folder)}),
            check=False,
        )
        assert done.returncode == 0
        assert "warning: telemetry.otlp: " in done.stderr
        assert "-m pip install 'tunneld[otlp]'" in done.stderr
    pair.close()
