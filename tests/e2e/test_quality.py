"""What both ends say of a connection, beside what the relay between two network namespaces really did to it."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.two_ends import ends
from tests.support.netns import Packet, missing, packets

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

_NEAR = 0.010  # seconds within which an end answers a ping


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
        said = it.during(200)
        qualities = said[-1]
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
            if len(filling) == 1:  # 220 where so much waits before a ping as on a fast network
                waits = [quality[side]["queue_ms"] for quality in said[-6:]]
                assert median(waits) < 150, (side, waits)
        assert it.metric("tunneld_heartbeat_queue_seconds") > _PATH
        assert it.reconnects() == 0
