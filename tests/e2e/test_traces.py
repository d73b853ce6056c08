"""Traces beside a collector that fails, and of one daemon alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.support.otlp import SPAN, TRACE, Traced, echoed
from tests.support.sockets import free_port


@pytest.fixture
def traced() -> Iterator[Traced]:
    with ExitStack() as stack:
        yield Traced(stack)


@pytest.mark.timeout(40)
@pytest.mark.parametrize("where", ["server", "agent"])
def test_one_daemon_alone_traces_too(traced: Traced, where: str) -> None:
    collector = traced.collector()
    pair = traced.pair(**{where: collector.url})
    seen = echoed(pair, {"traceparent": f"00-{TRACE}-{SPAN}-01"})
    collector.wait(lambda: collector.spans)
    [span] = collector.spans
    assert (span.service, span.parent) == (f"tunneld-{where}", SPAN)
    assert seen["traceparent"] == f"00-{TRACE}-{span.span}-01"
    pair.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mood", ["refuses", "hangs", "gone"])
def test_a_collector_that_fails_disturbs_nothing(traced: Traced, mood: str) -> None:
    collector = traced.collector(mood if mood != "gone" else "takes")
    url = collector.url
    if mood == "gone":
        url = f"http://127.0.0.1:{free_port()}"
    pair = traced.pair(server=url, agent=url, queue=5, timeout="1s")
    took = []
    with httpx.Client() as client:
        for _ in range(40):
            began = time.monotonic()
            assert client.get(pair.url("demo", "/small")).status_code == 200
            took.append(time.monotonic() - began)
    assert sorted(took)[30] < 0.2
    if mood != "gone":
        collector.wait(lambda: collector.requests >= 2)
    for process in pair.processes:
        process.wait_line("Traces are lost", timeout=20)
    metrics = httpx.get(f"http://127.0.0.1:{pair.server.admin_port}/metrics", timeout=15).text
    lost = next(line for line in metrics.splitlines() if line.startswith('tunneld_trace_spans_total{outcome="lost"}'))
    assert float(lost.split()[1]) >= 1
    assert 'tunneld_limit_used_ratio{limit="trace_spans"}' in metrics
    httpx.get(pair.url("demo", "/small"))  # one more waits when the end comes
    began = time.monotonic()
    pair.close()
    assert time.monotonic() - began < 8
    assert not [line for process in pair.processes for line in process.tracebacks()]


@pytest.mark.timeout(60)
def test_what_waits_is_sent_before_the_end_and_again_after_a_failure(traced: Traced) -> None:
    collector = traced.collector("refuses")
    pair = traced.pair(server=collector.url, timeout="500ms")
    httpx.get(pair.url("demo", "/small"))
    pair.server.process.wait_line("Traces are lost", timeout=20)
    collector.mood = "takes"
    httpx.get(pair.url("demo", "/small"))
    pair.server.process.wait_line("Traces are taken again", timeout=20)
    httpx.get(pair.url("demo", "/small"))
    pair.close()
    assert len(collector.spans) == 2
