"""What both ends say of a connection, beside what the relay between two network namespaces really did to it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.netns import ADDRESS, Network, Packet, missing, packets
from tests.support.processes import Process, python_module
from tests.support.sockets import short_dir

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

_NEAR = 0.010  # seconds within which an end answers a ping


class Ends:
    """Both daemons, a service beside the agent, and the network between them."""

    def __init__(self, net: Network, folder: Path, log: Path, start: Callable[..., Process]) -> None:
        self.net, self.folder, self.log, self.start = net, folder, log, start

    def qualities(self) -> dict[str, dict[str, Any]]:
        """What each end says at this moment."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.folder / "c.sock"))) as client:
            agents = client.get("http://localhost/v1/status").json()["tunnels"]
        asked = self.net.inside("b", ["curl", "-sS", "http://127.0.0.1:8442/api/v1/tunnels"])
        servers = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)["tunnels"]
        return {"a": agents[0]["quality"], "b": servers[0]["quality"]}

    def after(self, pings: int) -> dict[str, dict[str, Any]]:
        """The same, once each end has had so many answers."""
        return self.during(pings)[-1]

    def during(self, pings: int) -> list[dict[str, dict[str, Any]]]:
        """What they said every half a second until then."""
        deadline = time.monotonic() + 90
        said = []
        while True:
            said.append(found := self.qualities())
            if all(quality["pings"] >= pings for quality in found.values()):
                return said
            assert time.monotonic() < deadline, found
            time.sleep(0.5)

    def reconnects(self) -> int:
        """Of the agent's one tunnel."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.folder / "c.sock"))) as client:
            return int(client.get("http://localhost/v1/status").json()["tunnels"][0]["reconnects"])

    def metric(self, name: str) -> float:
        """Of the agent, of its one tunnel."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.folder / "c.sock"))) as client:
            text = client.get("http://localhost/metrics").text
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}{{")))


@contextmanager
def ends(*, interval: str = "100ms", **network: Any) -> Iterator[Ends]:
    """Both ends, connected."""
    beat = {"interval": interval, "timeout": "3s"}
    processes: list[Process] = []
    with short_dir() as folder:
        log = folder / "packets"

        def write(name: str, document: dict[str, Any]) -> str:
            path = folder / name
            path.write_text(yaml.safe_dump(document))
            path.chmod(0o600)
            return str(path)

        def start(side: str, argv: Sequence[str], name: str, line: str = "") -> Process:
            process = net.process(side, ["chrt", "-r", "5", *argv], name=name)  # else the machine is measured
            processes.append(process)
            if line:
                process.wait_line(line, timeout=20)
            return process

        listen = [
            {"host": "127.0.0.1", "port": 8440},
            {"host": ADDRESS["b"], "port": 8441, "serve": ["tunnels"]},
        ]
        server = {
            "listen": listen,
            "admin": {"listen": {"host": "127.0.0.1", "port": 8442}},
            "auth": {"mode": "open"},
            "store": "memory:",
            "heartbeat": {**beat, "min": "50ms"},
            "drain_timeout": 0,
        }
        agent = {
            "server": {"url": f"ws://{ADDRESS['b']}:8441"},
            "control": {"socket": str(folder / "c.sock")},
            "tunnels": [{"name": "t", "service": "http://127.0.0.1:9000"}],
            "heartbeat": beat,
            "drain_timeout": 0,
        }
        with Network(log=log, seed=7, **network) as net:
            try:
                start("a", python_module("tests.support.services", "--port", "9000"), "service", "ready")
                start("b", python_module("tunneld", "server", "--config", write("s.yaml", server)), "server", ":8441")
                start("a", python_module("tunneld", "agent", "--config", write("a.yaml", agent)), "agent", "✓ Tunnel")
                yield Ends(net, folder, log, start)
                for process in reversed(processes):
                    assert not process.tracebacks(), process.tail(80)
            finally:
                for process in reversed(processes):
                    process.discard()


def in_order(seen: list[Packet]) -> list[Packet]:
    """The packets as TCP hands them over: none before one of its side that was sent earlier."""
    latest: dict[str, float] = {}
    found = []
    for packet in sorted(seen, key=lambda one: one.came):
        if packet.gone is not None:
            latest[packet.side] = gone = max(latest.get(packet.side, 0.0), packet.gone)
            packet = replace(packet, gone=gone)
        found.append(packet)
    return found


def trips(seen: list[Packet], side: str) -> list[float]:
    """The round trips that the relay gave to pings of a side, in seconds: a packet there, and the one that answers it.

    An end answers within a few milliseconds; a packet of the other side that comes by chance in that time is rare.
    """
    found = []
    answers = [packet for packet in seen if packet.side != side and packet.gone is not None]
    at = 0
    for ping in (packet for packet in seen if packet.side == side and packet.gone is not None):
        assert ping.gone is not None
        while at < len(answers) and answers[at].came < ping.gone:
            at += 1
        if at < len(answers) and answers[at].came - ping.gone < _NEAR:
            there = answers[at].gone
            assert there is not None
            found.append(ping.gone - ping.came + there - answers[at].came)
    return found


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def steps(values: list[float]) -> float:
    """The mean of what RFC 3550's estimator is given: how much each differs from the one before."""
    return sum(abs(after - before) for before, after in itertools.pairwise(values)) / (len(values) - 1)


def jitter(said: list[dict[str, dict[str, Any]]], side: str) -> float:
    """The mean of what an end told, in seconds, once it had forgotten its first round trips.

    One estimate is of the last 16 round trips or so, and chance moves it by a seventh: the mean of all of a run is as
    sure as the mean of all that they are of. Beside the first ones the ends loaded what they are asked by, which takes
    them most of a second and is no network's doing.
    """
    told = [quality[side]["jitter_ms"] for quality in said if quality[side]["pings"] >= 80]
    return sum(told) / len(told) / 1e3


def test_a_round_trip_of_50_ms_is_told_as_such() -> None:
    with ends(delay=0.025) as it:
        for side, quality in it.after(100).items():
            real = median(trips(packets(it.log)[20:], side)) * 1e3
            assert real == pytest.approx(50, abs=5)
            for key in ("last", "p50"):
                assert quality["rtt_ms"][key] == pytest.approx(real, rel=0.1), (side, quality)
            assert quality["loss"] < 0.005
            assert quality["tcp"]["least_rtt_ms"] == pytest.approx(50, rel=0.1)
        assert it.metric("tunneld_heartbeat_queue_seconds") < 0.01


def test_a_network_that_wavers_by_20_ms_is_told_as_such() -> None:
    with ends(delay=0.005, jitter=0.04) as it:
        said = it.during(250)
        seen = packets(it.log)[20:]
        for side, quality in said[-1].items():
            real, told = trips(seen, side), sorted(trips(in_order(seen), side))
            print(side, median(real), median(told), steps(real), jitter(said, side), quality)
            assert quality["rtt_ms"]["p50"] == pytest.approx(median(told) * 1e3, rel=0.1), (side, quality)
            assert quality["rtt_ms"]["p95"] == pytest.approx(told[int(len(told) * 0.95)] * 1e3, rel=0.1)
            assert steps(real) == pytest.approx(0.019, rel=0.2)  # the mean of it is 7/15 of 40 ms
            assert jitter(said, side) == pytest.approx(steps(real), rel=0.25), (side, quality)


_UPLOAD = """
import sys, time
while True:
    sys.stdout.write("." * 200)
    sys.stdout.flush()
    time.sleep(0.01)
"""


def test_a_loss_of_5_percent_is_told_as_such() -> None:
    # No two segments of this traffic fit into one packet: the kernel would join lost ones when it sends them again.
    with ends(delay=0.025, drop=0.05, mtu=300) as it:
        it.start("a", ["curl", "-sS", "http://127.0.0.1:9000/pace?rate=100"], "pace").wait(10)
        stream = ["curl", "-sSN", "-H", "Accept: text/event-stream", "http://127.0.0.1:8440/t/t/paced?id=p"]
        it.start("b", stream, "down", "data:")
        up = f"{sys.executable} -c '{_UPLOAD}' | curl -sS -T - http://127.0.0.1:8440/t/t/upload"
        it.start("b", ["sh", "-c", up], "up")
        qualities, now = it.after(250), time.monotonic()
        seen = [one for one in packets(it.log) if one.came < now - 0.2]  # what is under way still is not known
        for side, quality in qualities.items():
            window = [one for one in seen if one.side == side]
            real = sum(1 for one in window if one.gone is None) / len(window)
            print(side, len(window), real, quality)
            assert len(window) > 2000
            assert quality["loss"] == pytest.approx(real, rel=0.1), (side, quality)
            assert quality["tcp"]["retransmitted"] > 50


def test_all_three_at_once_are_told_as_such() -> None:
    """50 ms, of which 40 by chance each way, and of twenty packets one lost: TCP's own doing is told apart."""
    with ends(delay=0.005, jitter=0.04, drop=0.05, mtu=300) as it:
        said = it.during(250)
        now = time.monotonic()
        seen = [one for one in packets(it.log) if one.came < now - 0.2]  # what is under way still is not known
        for side, quality in said[-1].items():
            real, told = trips(seen, side), trips(in_order(seen), side)
            window = [one for one in seen if one.side == side]
            loss = sum(1 for one in window if one.gone is None) / len(window)
            print(side, median(real), median(told), steps(real), jitter(said, side), loss, quality)
            assert quality["rtt_ms"]["p50"] == pytest.approx(median(told) * 1e3, rel=0.1), (side, quality)
            assert jitter(said, side) == pytest.approx(steps(real), rel=0.25), (side, quality)
            assert quality["loss"] == pytest.approx(loss, rel=0.1), (side, quality)


_RATE = 1_250_000  # bytes a second: 10 Mbit/s
_PATH = 0.040  # seconds there and back
_FILL = {
    "a download": ["curl", "-sS", "-o", "/dev/null", "http://127.0.0.1:8440/t/t/bytes?n=100000000"],
    "an upload": ["sh", "-c", "head -c 100000000 /dev/zero | curl -sS -T - http://127.0.0.1:8440/t/t/upload"],
}


def carried(seen: list[Packet], side: str, seconds: float) -> float:
    """Bytes a second that the relay passed on from a side, of the last so many seconds."""
    until = max(packet.came for packet in seen)
    return sum(one.size for one in seen if one.side == side and one.gone and one.came > until - seconds) / seconds


@pytest.mark.parametrize("filling", [("a download",), ("an upload",), ("a download", "an upload")], ids=" and ".join)
def test_a_full_pipe_is_not_taken_for_a_slow_network(filling: tuple[str, ...]) -> None:
    with ends(delay=_PATH / 2, rate=_RATE, queue=256 << 10) as it:
        # Beside the first pings the ends load what they are asked by: of so many these are no twentieth.
        for side, quality in it.after(120).items():
            assert (quality["grade"], quality["queue_ms"] < 30) == ("excellent", True), (side, quality)
        for what in filling:
            it.start("b", _FILL[what], what)
        qualities = it.after(200)
        seen = packets(it.log)
        for what in filling:
            full = carried(seen, "a" if what == "a download" else "b", 3)
            assert full > 0.6 * _RATE, (what, full)  # of two at once each delays the ACKs of the other
        for side, quality in qualities.items():
            print(side, quality)
            for key in ("last", "p50"):
                assert quality["rtt_ms"][key] == pytest.approx(_PATH * 1e3, rel=0.1), (side, quality)
            assert quality["rtt_ms"]["p95"] < 1.5 * _PATH * 1e3, (side, quality)
            assert quality["queue_ms"] > _PATH * 1e3, (side, quality)
            assert (quality["grade"] in ("excellent", "good"), quality["pings_lost"]) == (True, 0), (side, quality)
        assert it.metric("tunneld_heartbeat_queue_seconds") > _PATH
        assert it.reconnects() == 0
