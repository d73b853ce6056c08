"""A real Prometheus scrapes a real run: every query of the Grafana dashboard, and every rule, finds its series."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.daemons import Pair
from tests.support.processes import ROOT, Process
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, accepts, free_ports, short_dir

PACKAGING = ROOT / "packaging"
DASHBOARD = json.loads((PACKAGING / "grafana" / "tunneld.json").read_text())
RULES = PACKAGING / "prometheus" / "tunneld.rules.yml"
#: Nothing of it need have happened in a run without trouble.
MAY_BE_EMPTY = ("limit_hits",)
#: Families that have no panel and no rule, and why.
UNPLACED = {
    **dict.fromkeys(
        ("tunneld_memory_held_bytes", "tunneld_memory_limit_bytes", "tunneld_held_bytes", "tunneld_held_bytes_limit"),
        "their share is in tunneld_limit_used_ratio{limit=memory}",
    ),
    **dict.fromkeys(
        ("tunneld_streams_limit", "tunneld_tunnels_limit", "tunneld_visitor_connections", "process_max_fds"),
        "the share of it that is used is in tunneld_limit_used_ratio",
    ),
    **dict.fromkeys(
        (f"tunneld_known_{name}" for name in (
            "reconnects", "outages", "outage_seconds", "resumes", "replayed_bytes", "streams_lost",
            "heartbeat_rtt_seconds", "heartbeat_jitter_seconds", "heartbeat_queue_seconds", "connection_loss_ratio",
            "connection_rtt_seconds", "connection_segments", "connection_retransmitted_segments",
            "connection_delivery_bytes_per_second", "connection_last_byte_timestamp_seconds",
        )),
        "the agents' own counters have it by tunnel; for a server whose agents nobody scrapes",
    ),
    "tunneld_outages": "tunneld_reconnects and tunneld_outage_seconds tell it",
    "tunneld_tunnel_connections": "tunneld_tunnels tells it by state",
    "process_start_time_seconds": "for changes of it: a restart",
    "process_virtual_memory_bytes": "of Prometheus's own convention",
    "python_gc_collections": "for who looks for pauses",
}  # fmt: skip
_OURS = ("tunneld_", "process_", "python_")

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="missing: apt-get install prometheus")


def promtool(*args: str) -> str:
    done = subprocess.run(
        ["promtool", *args], capture_output=True, text=True, check=False, cwd=PACKAGING / "prometheus"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_and_the_example_are_valid_and_do_what_they_say() -> None:
    promtool("check", "rules", "tunneld.rules.yml")
    promtool("check", "config", "prometheus.yml")
    promtool("test", "rules", "tunneld.rules.test.yml")


def queries() -> list[tuple[str, str]]:
    """(title of the panel, query) of each."""
    found = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert len(found) > 30
    return found


def test_the_dashboard_says_of_each_panel_what_it_is_and_where_it_stands() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith(".")


class Scraped:
    """A Prometheus with our rules that scrapes an agent and a server."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        (self.port,) = free_ports(1)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
            ],
        }
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        self.process = Process(
            [*command, f"--web.listen-address={LOOPBACK}:{self.port}", "--enable-feature=exemplar-storage"],
            name="prometheus",
        )
        self.process.wait_until(lambda: accepts(self.port), timeout=20, what="listening")
        self.client = httpx.Client(base_url=f"http://{LOOPBACK}:{self.port}", timeout=10)
        # It listens before it has read what it stores, and answers questions with a text until then.
        self.process.wait_until(lambda: self.client.get("/-/ready").is_success, timeout=20, what="ready")

    def ask(self, query: str) -> list[Any]:
        answer = self.client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        return list(answer["data"]["result"])

    def get(self, path: str, **params: str) -> Any:
        return self.client.get(path, params=params).json()["data"]

    def exemplars(self, query: str) -> set[str]:
        """Request ids that it keeps of a histogram; they have no other label."""
        found = self.get("/api/v1/query_exemplars", query=query, start="0", end="9999999999")
        labels = [each["labels"] for one in found for each in one["exemplars"]]
        assert {key for one in labels for key in one} == {"request_id"}
        return {one["request_id"] for one in labels}

    def wait_for(self, query: str, seconds: float = 30) -> None:
        self.process.wait_until(lambda: bool(self.ask(query)), timeout=seconds, what=query)

    def close(self) -> None:
        self.client.close()
        self.process.discard()


@pytest.fixture
def scraped() -> Iterator[tuple[Scraped, Pair]]:
    service = SampleService()
    with short_dir() as folder:
        (port,) = free_ports(1)
        pair = Pair(
            folder,
            {"demo": f"http://{LOOPBACK}:{service.port}", "gone": f"http://{LOOPBACK}:9"},
            agent={
                "metrics": {"listen": f"{LOOPBACK}:{port}"},
                "heartbeat": {"interval": "1s"},
                "alerts": [{"when": "loss"}],
            },
        )
        prometheus = None
        try:
            targets = {"tunneld": f"{LOOPBACK}:{port}", "tunneld-server": f"{LOOPBACK}:{pair.server.admin_port}"}
            prometheus = Scraped(folder, targets)
            yield prometheus, pair
        finally:
            if prometheus is not None:
                prometheus.close()
            pair.discard()
            service.stop()


@pytest.mark.timeout(120)
def test_every_query_finds_its_series_in_a_prometheus_that_scraped_a_real_run(scraped: tuple[Scraped, Pair]) -> None:
    prometheus, pair = scraped
    for job in ("tunneld", "tunneld-server"):
        prometheus.wait_for(f'count_over_time(up{{job="{job}"}}[1m]) >= 2 and up{{job="{job}"}} == 1')
    with httpx.stream("GET", pair.url("demo", "/quiet"), headers={"Accept": "text/event-stream"}) as answer:
        next(answer.iter_bytes())
        cancelled = answer.headers["x-tunnel-request-id"]
    for _ in range(3):
        httpx.get(pair.url("demo", "/small"))
    pair.agent.process.wait_line("🧹 Cleaned up stream", timeout=15)
    for job in ("tunneld", "tunneld-server"):
        prometheus.wait_for(f'rate(tunneld_cancel_seconds_count{{job="{job}"}}[1m]) > 0')
    for title, query in queries():
        asked = query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$tunnel", ".*")
        assert "$" not in asked, title
        if not any(name in query for name in MAY_BE_EMPTY):
            prometheus.wait_for(asked, 15)
        else:
            prometheus.ask(asked)
    for rule in prometheus.get("/api/v1/rules")["groups"]:
        for one in rule["rules"]:
            assert one["health"] == "ok", one
    names = set(prometheus.get("/api/v1/label/__name__/values"))
    for query in [*(query for _, query in queries()), RULES.read_text()]:
        for name in re.findall(r"\b(?:tunneld|process)_[a-z_]+", re.sub(r"\"[^\"]*\"", "", query)):
            assert name in names or name in ("tunneld_limit_hits_total", "tunneld_streams_lost_total"), name
    told = {re.sub(r"_(?:total|bucket|count|sum)$", "", name) for name in names if name.startswith(_OURS)}
    placed = " ".join([*(query for _, query in queries()), RULES.read_text()])
    unplaced = {name for name in told if not re.search(rf"\b{name}(?:_total|_bucket)?\b", placed)}
    assert unplaced == UNPLACED.keys() & told, "give each a panel, or say here why it has none"
    assert UNPLACED.keys() <= told
    assert prometheus.exemplars("tunneld_first_byte_seconds_bucket")
    for job in ("tunneld", "tunneld-server"):
        assert prometheus.exemplars(f'tunneld_cancel_seconds_bucket{{job="{job}"}}') == {cancelled}
