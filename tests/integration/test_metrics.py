"""The numbers of both daemons as Prometheus reads them, of real daemons with real visitors."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemons import Agent, Pair
from tests.support.operators import Operator
from tests.support.services import SampleService
from tests.support.sockets import short_dir
from tunneld import __version__


@pytest.fixture
def pair() -> Iterator[tuple[Pair, SampleService]]:
    service = SampleService()
    with short_dir() as folder:
        made = Pair(folder, {"demo": f"http://127.0.0.1:{service.port}", "gone": "http://127.0.0.1:9"})
        try:
            yield made, service
            made.close()
        finally:
            made.discard()
            service.stop()


def scrape(agent: Agent) -> str:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(agent.socket))) as client:
        answer = client.get("http://localhost/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


def values(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names …) -> value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *(sample.labels[key] for key in sorted(sample.labels)))] = sample.value
    return found


def test_the_agent_counts_what_happened(pair: tuple[Pair, SampleService]) -> None:
    made, _ = pair
    for _ in range(3):
        assert httpx.get(made.url("demo", "/")).status_code < 500
    assert httpx.get(made.url("gone", "/")).status_code == 502
    found = values(scrape(made.agent))
    assert found["tunneld_tunnel_up", "demo"] == 1
    assert found["tunneld_streams_opened_total",] == 4
    assert found["tunneld_streams_ended_total", "http", "done"] == 3
    assert found["tunneld_streams_ended_total", "http", "service"] == 1
    assert found["tunneld_first_byte_seconds_count",] == 3
    assert found["tunneld_stream_duration_seconds_count", "http"] == 4
    assert found["tunneld_streams", "http", "demo"] == 0
    assert found["tunneld_streams_limit", "demo"] == 1000
    assert 0 < found["tunneld_heartbeat_rtt_seconds", "last", "demo"] < 5
    assert sum(value for key, value in found.items() if key[0] == "tunneld_connection_grade" and key[2] == "demo") == 1
    assert found["process_resident_memory_bytes",] > 10e6
    assert found["process_open_fds",] > 5
    assert found["tunneld_loop_lag_seconds_count",] >= 0
    assert 0 < found["tunneld_limit_used_ratio", "descriptors"] < 1
    assert found["tunneld_limit_used_ratio", "tunnel_streams"] == 0
    assert found["tunneld_streams_stalled", "demo"] == 0
    assert found["tunneld_service_fault", "refused", "gone"] == 1
    assert [key for key in found if key[0] == "tunneld_service_fault"] == [("tunneld_service_fault", "refused", "gone")]
    sent = found["tunneld_tunnel_sent_bytes_total", "demo"]
    assert 0 < sent <= found["tunneld_visitor_sent_bytes_total",]
    assert 0 < found["tunneld_connection_rtt_seconds", "smoothed", "demo"] < 5
    assert found["tunneld_connection_segments_total", "demo"] > 0
    assert abs(time.time() - found["tunneld_connection_last_byte_timestamp_seconds", "demo"]) < 60


def scrape_server(made: Pair) -> str:
    answer = httpx.get(f"http://127.0.0.1:{made.server.admin_port}/metrics", timeout=15)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


@pytest.mark.timeout(60)  # the admin listener loads its application at the first call
def test_the_server_counts_what_happened(pair: tuple[Pair, SampleService]) -> None:
    made, _ = pair
    for _ in range(3):
        assert httpx.get(made.url("demo", "/")).status_code < 500
    assert httpx.get(made.url("gone", "/")).status_code == 502
    found = values(scrape_server(made))
    assert (found["tunneld_tunnels", "online"], found["tunneld_tunnels", "degraded"]) == (1, 1)
    assert found["tunneld_service_probe_seconds_count",] >= 2
    assert found["tunneld_streams_opened_total",] == 4
    assert sum(value for key, value in found.items() if key[0] == "tunneld_streams_ended_total") == 4
    assert found["tunneld_first_byte_seconds_count",] == 4
    assert found["tunneld_heartbeat_rtt_seconds_count",] == found["tunneld_heartbeat_queue_seconds_count",] >= 2
    assert 0 <= found["tunneld_heartbeat_queue_seconds_sum",] < found["tunneld_heartbeat_rtt_seconds_sum",]
    assert found["tunneld_build_info", platform.python_version(), "server", __version__] == 1
    assert found["tunneld_held_bytes_limit",] == 512 << 20
    assert found["tunneld_service_fault", "refused"] == 1
    assert sum(value for key, value in found.items() if key[0] == "tunneld_service_fault") == 1
    middle, worst = (found["tunneld_known_heartbeat_rtt_seconds", "last", which] for which in ("median", "worst"))
    assert 0 < middle <= worst < 5
    assert found["tunneld_known_connection_segments",] > 0
    assert {key[2] for key in found if key[0] == "tunneld_known_connection_rtt_seconds"} == {"median", "worst"}


ASKED = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}


def openly(text: str, metric: str = "tunneld") -> dict[str, float]:
    """What OpenMetrics' own parser reads: request id of each exemplar -> its value."""
    return {
        sample.exemplar.labels["request_id"]: sample.exemplar.value
        for family in openmetrics.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar is not None and sample.name.startswith(metric)
    }


def scrape_openly(made: Pair) -> tuple[httpx.Response, httpx.Response]:
    """OpenMetrics of the agent and of the server."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(made.agent.socket))) as client:
        agents = client.get("http://localhost/metrics", headers=ASKED)
    return agents, httpx.get(f"http://127.0.0.1:{made.server.admin_port}/metrics", headers=ASKED, timeout=15)


@pytest.mark.timeout(60)
def test_openmetrics_carries_the_ids_of_requests_where_it_is_asked_for(pair: tuple[Pair, SampleService]) -> None:
    made, _ = pair
    httpx.get(made.url("demo", "/"))
    for answer in scrape_openly(made):
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert answer.text.endswith("# EOF\n")
        found = openly(answer.text)
        assert len(found) == 1
        ((request_id, seconds),) = found.items()
        assert len(request_id) == 32
        assert 0 < seconds < 10


@pytest.mark.timeout(60)
def test_how_long_a_cancel_takes_is_counted_at_both_ends(pair: tuple[Pair, SampleService]) -> None:
    made, _ = pair
    with httpx.stream("GET", made.url("demo", "/quiet"), headers={"Accept": "text/event-stream"}) as answer:
        next(answer.iter_bytes())
        request_id = answer.headers["x-tunnel-request-id"]
    made.agent.process.wait_line("🧹 Cleaned up stream", timeout=15)
    agents, servers = values(scrape(made.agent)), values(scrape_server(made))
    assert agents["tunneld_cancel_seconds_count",] == servers["tunneld_cancel_seconds_count",] == 1
    assert 0 < agents["tunneld_cancel_seconds_sum",] < 0.25
    assert 0 < servers["tunneld_cancel_seconds_sum",] < 2  # the agent's ACK does not wait for its timer
    for answer, found in zip(scrape_openly(made), (agents, servers), strict=True):
        exemplars = openly(answer.text, "tunneld_cancel_seconds_bucket")
        assert exemplars == {request_id: pytest.approx(found["tunneld_cancel_seconds_sum",])}


def promtool(text: str) -> tuple[int, str]:
    """Its status and what it has to say."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(60)
@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is missing: apt-get install prometheus")
def test_promtool_finds_nothing_to_mend(pair: tuple[Pair, SampleService]) -> None:
    made, _ = pair
    httpx.get(made.url("demo", "/"))
    for text in (scrape(made.agent), scrape_server(made)):
        assert promtool(text) == (0, "")


AWKWARD = 'an "alert" \\ of \\n, {x="y"} # ünï 🧹'
OWNER = 'O"Hara\\n{x="1"}ü'


@pytest.mark.timeout(60)
def test_names_with_quotes_and_backslashes_pass_through_both_formats() -> None:
    rule = {"name": AWKWARD, "when": "limit_near"}
    service = SampleService()
    with short_dir() as folder:
        operator = Operator(folder / "cli.yaml")
        operator.do(f"owner create {OWNER}")
        made = Pair(
            folder,
            {"demo": f"http://127.0.0.1:{service.port}"},
            server={"store": operator.settings["store"], "admin": {"owner_metrics": 5}, "alerts": [rule]},
            agent={"alerts": [rule]},
        )
        try:
            for role, text in (("agent", scrape(made.agent)), ("server", scrape_server(made))):
                found = values(text)
                assert found["tunneld_alerts_firing", AWKWARD] == 0
                assert role == "agent" or found["tunneld_owner_tunnels", OWNER] == 0
                if shutil.which("promtool"):
                    assert promtool(text) == (0, "")
            for answer, wanted in zip(scrape_openly(made), ([AWKWARD], [AWKWARD, OWNER]), strict=True):
                families = openmetrics.text_string_to_metric_families(answer.text)
                told = {text for family in families for one in family.samples for text in one.labels.values()}
                assert told >= set(wanted)
            made.close()
        finally:
            made.discard()
            service.stop()
