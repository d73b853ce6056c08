"""What a page is told, from a daemon of plain dictionaries: a real `History`, a real `Feed`."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, cast

import msgspec
import pytest

from tunneld.dashboard.feed import BUDGET, Feed
from tunneld.dashboard.history import History
from tunneld.dashboard.source import COUNTED, AlertBrief, Brief, Counted
from tunneld.telemetry.outages import Outages

T0 = 1_800_000_000.0


class Daemon:
    """A `Source` that a test writes into."""

    role = "server"

    def __init__(self) -> None:
        self.now = T0
        self.tunnels: dict[str, Brief] = {}
        self.rtt: dict[str, float] = {}
        self.live: dict[str, dict[str, Any]] = {}
        self.firing: list[AlertBrief] = []
        self.leaves = False
        self.looks: Counter[str] = Counter()  # close ones, at each tunnel

    def add(self, name: str, state: str = "online", streams: int = 0, bytes_in: int = 0, bytes_out: int = 0) -> None:
        self.tunnels[name] = Brief(name, state, streams, bytes_in, bytes_out)

    def begin(self, request_id: str, **over: Any) -> dict[str, Any]:
        stream = {
            "request_id": request_id, "tunnel": "app", "kind": "sse", "method": "GET", "path": f"/sse?id={request_id}",
            "client": "127.0.0.1", "state": "streaming", "age_s": 0.1, "idle_s": 0.0, "bytes_in": 0, "bytes_out": 0,
            "events": 0, "last_event_id": None, **over,
        }  # fmt: skip
        self.live[request_id] = stream
        return stream

    def head(self) -> Mapping[str, Any]:
        return {"version": "1", "server": "http://x", "uptime_s": 1.0}

    def draining(self) -> bool:
        return self.leaves

    def alerts(self) -> list[AlertBrief]:
        return self.firing

    def briefs(self) -> list[Brief]:
        return sorted(self.tunnels.values())

    def details(self, name: str) -> Mapping[str, Any] | None:
        self.looks[name] += 1
        if name not in self.tunnels:
            return None
        return {
            "name": name, "public_url": f"http://x/t/{name}", "connected_s": 5.0 + self.now - T0,
            "reconnects": 0, "last_error": None,
            "active_streams": 0, "state": "?", "tunnel_id": name,
            "heartbeat": {"interval_s": 30.0, "timeout_s": 10.0, "last_byte_s": 1.0 + self.now - T0},
            "quality": {"rtt_ms": {"last": self.rtt.get(name), "p50": None, "p95": None}, "grade": "good"},
        }  # fmt: skip

    def measured(self, name: str) -> tuple[float | None, float | None]:
        return None, None

    def outages(self, name: str) -> Outages | None:
        return None

    def stream_ids(self) -> Collection[str]:
        return self.live.keys()

    def stream(self, request_id: str) -> Mapping[str, Any] | None:
        return self.live.get(request_id)

    def counted(self, request_id: str) -> tuple[Counted, float] | None:
        found = self.live.get(request_id)
        return None if found is None else (cast(Counted, tuple(found[key] for key in COUNTED)), found["idle_s"])

    def tunnel_of(self, request_id: str) -> str | None:
        return self.live[request_id]["tunnel"] if request_id in self.live else None


class Page:
    """What a page makes of the feed, as app.js does."""

    def __init__(self, daemon: Daemon, feed: Feed) -> None:
        self.daemon = daemon
        self.feed = feed
        self.now = T0
        self.sizes: list[int] = []
        first = feed.snapshot(self.now)
        self.tunnels = {one["name"]: dict(one) for one in first["tunnels"]}
        self.streams = {one["i"]: dict(one) for one in first["streams"]}
        self.rates: dict[str, list[int]] = {}

    def tick(self) -> dict[str, Any]:
        self.now += 1
        self.daemon.now = self.now
        told = self.feed.tick(self.now)
        self.sizes.append(len(msgspec.json.encode(told)) if told else 0)
        for number in told.get("end", ()):
            del self.streams[number]
        for name in told.get("gone", ()):
            del self.tunnels[name]
        for name, change in told.get("tunnels", {}).items():
            self.tunnels.setdefault(name, {}).update(change)
        self.rates.update(told.get("rates", {}))
        for one in told.get("open", ()):
            self.streams[one["i"]] = dict(one)
        for number, received, sent, events, last, state, kind, _idle in told.get("set", ()):
            self.streams[number].update(
                bytes_in=received, bytes_out=sent, events=events, last_event_id=last, state=state, kind=kind
            )
        return told


def page(daemon: Daemon, history: History | None = None) -> Page:
    return Page(daemon, Feed(daemon, History() if history is None else history, msgspec.json.encode))


def test_a_page_is_told_all_then_only_what_changes() -> None:
    daemon = Daemon()
    daemon.add("app", streams=1)
    daemon.begin("a")
    shown = page(daemon)
    assert shown.tunnels["app"]["state"] == "online"
    assert [one["request_id"] for one in shown.streams.values()] == ["a"]
    assert shown.tick() == {}


def test_streams_begin_move_and_end_within_a_tick() -> None:
    daemon = Daemon()
    shown = page(daemon)
    stream = daemon.begin("b")
    shown.tick()
    stream.update(events=7, last_event_id="7", bytes_out=700)
    shown.tick()
    (known,) = shown.streams.values()
    assert (known["events"], known["last_event_id"], known["bytes_out"]) == (7, "7", 700)
    del daemon.live["b"]
    assert shown.tick() == {"end": [known["i"]]}
    assert shown.streams == {}


def test_states_and_tunnels_that_come_and_go_are_told_at_once() -> None:
    daemon = Daemon()
    daemon.add("app")
    shown = page(daemon)
    daemon.add("app", "resuming")
    daemon.add("new")
    shown.tick()
    assert shown.tunnels["app"]["state"] == "resuming"
    assert shown.tunnels["new"]["public_url"] == "http://x/t/new"
    del daemon.tunnels["app"]
    assert shown.tick()["gone"] == ["app"]


def test_rates_are_bytes_a_second_and_fall_back_to_nothing() -> None:
    daemon = Daemon()
    daemon.add("app")
    shown = page(daemon)
    daemon.add("app", streams=2, bytes_in=100, bytes_out=5000)
    shown.tick()
    assert list(shown.rates["app"]) == [2, 100, 5000]
    shown.tick()
    assert list(shown.rates["app"]) == [2, 0, 0]
    assert shown.tick() == {}


def test_events_of_the_history_are_told_once() -> None:
    daemon, history = Daemon(), History()
    daemon.add("app")
    shown = page(daemon, history)
    history.sample("app", T0, state="offline", rtt=None, loss=None, bytes_in=0, bytes_out=0)
    assert [event["state"] for event in shown.tick()["events"]] == ["offline"]
    assert "events" not in shown.tick()


def test_an_outage_of_a_hundred_tunnels_costs_no_more_and_all_of_it_is_told() -> None:
    daemon, history = Daemon(), History()
    for index in range(100):
        daemon.add(f"tunnel-{index:03}")
    shown = page(daemon, history)
    for index in range(100):
        history.sample(f"tunnel-{index:03}", T0, state="offline", rtt=None, loss=None, bytes_in=0, bytes_out=0)
        daemon.add(f"tunnel-{index:03}", "offline")
        daemon.rtt[f"tunnel-{index:03}"] = 5.5
    told: list[str] = []
    for _ in range(20):
        told += [event["tunnel"] for event in shown.tick().get("events", ())]
        assert {one["state"] for one in shown.tunnels.values()} == {"offline"}  # from the first second on
    assert told == [f"tunnel-{index:03}" for index in range(100)]
    assert {one["quality"]["rtt_ms"]["last"] for one in shown.tunnels.values()} == {5.5}
    assert max(shown.sizes) <= 5 * 1024


def test_a_hundred_busy_tunnels_and_a_thousand_streams_cost_at_most_5_kib_a_second() -> None:
    daemon = Daemon()
    streams = [daemon.begin(f"{index:032x}", tunnel=f"tunnel-{index % 100:03}") for index in range(1000)]
    for index in range(100):
        daemon.add(f"tunnel-{index:03}", streams=10)
    shown = page(daemon)
    for second in range(1, 61):
        for index, brief in enumerate(daemon.briefs()):
            moved = 1000 * second + 137 * index * second * second
            daemon.add(brief.name, streams=10, bytes_in=moved, bytes_out=3 * moved)
            daemon.rtt[brief.name] = 20 + (second * 7 + index) % 13 / 10
        for index, stream in enumerate(streams):
            stream.update(events=second, bytes_out=100 * second + index, last_event_id=str(second))
        shown.tick()
    assert max(shown.sizes) <= 5 * 1024
    assert sum(shown.sizes) / 60 <= BUDGET + 256
    # and nothing is passed over: once it is quiet, the page shows the truth
    for _ in range(120):
        shown.tick()
    assert {one["events"] for one in shown.streams.values()} == {60}
    assert {name: one["quality"]["rtt_ms"]["last"] for name, one in shown.tunnels.items()} == daemon.rtt
    assert shown.tick() == {}


@pytest.mark.parametrize("tunnels", [1, 2, 3, 7, 75, 100])
def test_each_tunnel_is_looked_at_closely_each_third_second_while_that_may_be(tunnels: int) -> None:
    daemon = Daemon()
    for index in range(tunnels):
        daemon.add(f"tunnel-{index:03}")
    shown = page(daemon)
    daemon.looks.clear()
    for _ in range(60):
        shown.tick()
    most = min(25 * 60, tunnels * 60 // 3)
    assert most - 1 <= daemon.looks.total() <= most
    counts = {daemon.looks[f"tunnel-{index:03}"] for index in range(tunnels)}
    assert max(counts) - min(counts) <= 1


def test_a_crowd_is_shown_at_once_and_its_end_too() -> None:
    daemon = Daemon()
    daemon.add("app")
    shown = page(daemon)
    for index in range(1000):
        daemon.begin(f"{index:032x}")
    shown.tick()
    assert len(shown.streams) == 1000
    daemon.live.clear()
    shown.tick()
    assert shown.streams == {}


def test_thousands_at_the_begin_follow_the_first_message() -> None:
    daemon = Daemon()
    for index in range(2500):
        daemon.begin(f"{index:032x}")
    shown = page(daemon)
    assert len(shown.streams) == 1000
    shown.tick()
    assert len(shown.streams) == 2500


def test_alerts_and_a_drain_are_told_once_and_when_they_change() -> None:
    daemon = Daemon()
    daemon.firing = [AlertBrief("rtt", "app", True, T0 - 60, "p95 310 ms > 300 ms")]
    made = Feed(daemon, History(), msgspec.json.encode)
    first = made.snapshot(T0)
    assert first["alerts"] == [
        {"rule": "rtt", "subject": "app", "tunnel": True, "since": T0 - 60, "message": "p95 310 ms > 300 ms"}
    ]
    assert first["draining"] is False
    assert made.tick(T0 + 1) == {}
    daemon.firing, daemon.leaves = [], True
    assert made.tick(T0 + 2) == {"draining": True, "calm": [["rtt", "app"]]}
    assert made.tick(T0 + 3) == {}
