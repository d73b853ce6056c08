"""Round trips, jitter, loss and grades."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tunneld.config.common import QualityConfig
from tunneld.protocol.quality import MAX_SAMPLES, Peer, Quality


def measured(trips: list[float | None], *, interval: float = 1.0) -> tuple[Quality, float]:
    """A quality that was told these round trips, one an interval (None: lost), and the time of the last."""
    quality, now = Quality(QualityConfig()), 0.0
    for trip in trips:
        now += interval
        if trip is None:
            quality.lost(now)
        else:
            quality.answered(now, trip, late=False)
    return quality, now


@dataclass
class Known:
    segments: int
    lost: int
    retransmitted: int
    least_rtt: float
    disordered: int = 0


def kernel(segments: int, lost: int, *, rtt: float) -> Known:
    return Known(segments, lost, lost, rtt)


def test_nothing_is_known_before_the_first_ping() -> None:
    reading = Quality(QualityConfig()).read(5.0, connected=True)
    assert (reading.last, reading.p50, reading.p95, reading.jitter, reading.loss, reading.grade) == (None,) * 6
    assert Quality(QualityConfig()).read(5.0, connected=False).grade is None


def test_percentiles_are_of_the_window() -> None:
    quality, now = measured([n / 1000 for n in range(1, 102)])
    reading = quality.read(now, connected=True)
    assert reading.last == pytest.approx(0.101)
    assert reading.p50 == pytest.approx(0.051)
    assert reading.p95 == pytest.approx(0.096)
    later = quality.read(now + QualityConfig().window - 0.5, connected=True)
    assert (later.pings, later.p50) == (1, pytest.approx(0.101))
    assert quality.read(now + 1000, connected=True).p50 is None


def test_jitter_is_the_estimator_of_rfc_3550() -> None:
    trips = [0.05, 0.07, 0.05, 0.09]
    quality, now = measured(list(trips))
    expected = 0.02
    for change in (0.02, 0.04):
        expected += (change - expected) / 16
    assert quality.read(now, connected=True).jitter == pytest.approx(expected)


def test_jitter_of_a_network_that_wavers_comes_near_the_truth() -> None:
    rng = random.Random(7)
    trips: list[float | None] = [0.05 + rng.uniform(-0.02, 0.02) for _ in range(250)]
    quality, now = measured(trips)
    # the mean difference of two values of a uniform spread of 40 ms is a third of it
    assert quality.read(now, connected=True).jitter == pytest.approx(0.04 / 3, rel=0.5)


def test_loss_counts_lost_and_late_pings_and_what_the_kernel_sent_again() -> None:
    quality, now = measured([0.01] * 18 + [None])
    quality.answered(now, 12.0, late=True)
    reading = quality.read(now, connected=True)
    assert (reading.pings, reading.lost, reading.loss) == (20, 2, pytest.approx(0.1))
    assert reading.last == 12.0
    assert reading.p95 == pytest.approx(0.01)


def test_loss_is_of_segments_too_in_the_window_whatever_connection_carried_them() -> None:
    quality, now = measured([0.01] * 18 + [None, None])
    quality.carried(kernel(40, 8, rtt=0.01))
    quality.answered(now, 0.01, late=False)
    assert quality.read(now, connected=True).loss == pytest.approx(2 / 21)  # too few segments to say
    quality.carried(kernel(100, 20, rtt=0.01))
    assert quality.read(now, connected=True).loss == pytest.approx(2 / 21)  # counted with the next ping
    quality.answered(now + 1, 0.01, late=False)
    assert quality.read(now + 1, connected=True).loss == pytest.approx(0.2)
    quality.carried(kernel(100, 4, rtt=0.01))  # of another connection
    quality.answered(now + 2, 0.01, late=False)
    assert quality.read(now + 2, connected=True).loss == pytest.approx(24 / 200)
    later = now + 1.5 + QualityConfig().window
    assert quality.read(later, connected=True).loss == pytest.approx(0.04)


def test_jitter_is_of_what_was_not_lost() -> None:
    quality, now = measured([0.05, 0.07, 0.05, 0.07])
    known = Known(40, 0, 0, least_rtt=0.06)
    quality.carried(known)
    for counter in ("retransmitted", "disordered"):
        setattr(known, counter, 1)
        quality.carried(known)
        quality.answered(now, 0.30, late=False)  # TCP sent it, or its answer, again
        assert quality.read(now, connected=True).jitter == pytest.approx(0.02)
    quality.carried(known)
    quality.answered(now, 0.05, late=False)
    assert quality.read(now, connected=True).jitter == pytest.approx(0.02)
    quality.carried(known)
    quality.answered(now, 0.30, late=False)  # nothing was lost: the network took that long
    assert quality.read(now, connected=True).jitter == pytest.approx(before := 0.02 + 0.23 / 16)
    for _ in range(16):
        known.disordered += 1
        quality.carried(known)
        quality.answered(now := now + 1, 0.50, late=False)
    assert quality.read(now, connected=True).jitter == pytest.approx(before + (0.2 - before) / 16)  # all is in disorder


def test_one_loss_is_no_jitter_however_many_pings_it_holds_back() -> None:
    quality, now = measured([0.05] * 3)
    for number in range(60):  # six seconds of them, until TCP tries again
        quality.answered(now + number / 10, 6 - number / 10, late=False, held=True, peer=Peer(0, None))
    for number in range(3):
        quality.answered(now + 7 + number, 0.05, late=False, peer=Peer(0, None))
    assert quality.read(now + 10, connected=True).jitter == pytest.approx(0.0)


def test_what_tcp_held_back_tells_nothing_of_the_way() -> None:
    """Karn's rule: not in `last` and the median, as long as there are others; always in the 95th percentile."""
    quality, now = measured([0.05] * 40)
    for _ in range(15):
        now += 1
        quality.answered(now, 0.30, late=False, held=True)
    reading = quality.read(now, connected=True)
    assert (reading.last, reading.p50, reading.pings) == (0.05, 0.05, 55)
    assert reading.p95 == pytest.approx(0.30)
    quality.answered(now + 1, 0.07, late=False)
    assert quality.read(now + 1, connected=True).last == 0.07
    for _ in range(16):
        quality.answered(now + 2, 0.40, late=False, held=True)
    assert quality.read(now + 2, connected=True).last == 0.40, "where nothing else comes it is what there is"


def test_an_answer_that_the_peer_sent_again_tells_nothing_of_the_way() -> None:
    quality, now, resent = Quality(QualityConfig()), 0.0, 7
    for number in range(40):
        again = number % 4 == 1
        quality.answered(now := now + 1, 0.3 if again else 0.05, late=False, peer=Peer(resent, None))
        resent += again  # after it was written: the answer after it tells
    reading = quality.read(now, connected=True)
    assert (reading.p50, reading.jitter) == (pytest.approx(0.05), pytest.approx(0.0))
    assert reading.p95 == pytest.approx(0.3)


def test_an_answer_beside_a_loss_that_the_peer_makes_up_for_tells_nothing_of_the_way() -> None:
    quality, now = Quality(QualityConfig()), 0.0
    for number in range(40):
        waits = number % 4 == 1
        peer = Peer(0, None, mending=waits)
        quality.answered(now := now + 1, 0.14 if waits else 0.05, late=False, peer=peer)
    reading = quality.read(now, connected=True)
    assert (reading.p50, reading.jitter) == (pytest.approx(0.05), pytest.approx(0.0))


def test_an_answer_is_judged_by_a_ping_that_was_sent_after_it_came() -> None:
    """What was written before that may have been written before the peer knew that it had to send something again."""
    quality = Quality(QualityConfig())
    quality.answered(10.0, 0.3, late=False, peer=Peer(0, None))
    quality.answered(10.1, 0.3, late=False, peer=Peer(0, None))  # its ping was sent at 9.8
    quality.answered(10.7, 0.05, late=False, peer=Peer(1, None))
    quality.answered(11.7, 0.06, late=False, peer=Peer(1, None))
    reading = quality.read(11.7, connected=True)
    assert (reading.p50, reading.jitter) == (pytest.approx(0.05), None), "of those known, neither side sent one again"
    quality.answered(12.7, 0.06, late=False, peer=Peer(1, None))
    assert quality.read(12.7, connected=True).jitter == pytest.approx(0.01)


def test_what_is_judged_after_it_left_the_window_counts_no_more() -> None:
    quality, window = Quality(QualityConfig()), QualityConfig().window
    quality.answered(0.0, 0.3, late=False, peer=Peer(0, None))
    quality.read(window + 1, connected=True)
    quality.answered(window + 1, 0.05, late=False, peer=Peer(0, None))
    quality.answered(window + 2, 0.05, late=False, peer=Peer(0, None))
    assert quality.read(window + 2, connected=True).p50 == pytest.approx(0.05)
    assert quality.read(3 * window, connected=True).p50 is None


def test_the_peer_knows_what_did_not_come() -> None:
    """Of 40 sent again 10 were lost, which this side's kernel was told of 5 of the others alone."""
    quality, now = measured([0.01])
    known = Known(1000, 35, 40, least_rtt=0.01)
    quality.carried(known)
    quality.answered(now, 0.01, late=False, peer=Peer(0, 10))
    assert quality.read(now, connected=True).loss == pytest.approx(0.01)
    for missing in (8, 10, 3):  # what came behind a ping before it was answered is no gain
        known.segments += 100
        quality.carried(known)
        quality.answered(now, 0.01, late=False, peer=Peer(0, missing))
    assert quality.read(now, connected=True).loss == pytest.approx(10 / 1300)
    known.segments, known.lost, known.retransmitted = 1400, 41, 46
    quality.carried(known)
    quality.answered(now, 0.01, late=False, peer=Peer(0, 900))  # more than were sent again: another connection's
    assert quality.read(now, connected=True).loss == pytest.approx(46 / 1400)
    quality.carried(Known(100, 3, 3, least_rtt=0.01))  # the next connection, whose peer says nothing
    quality.answered(now, 0.01, late=False)
    quality.carried(Known(200, 5, 7, least_rtt=0.01))
    quality.answered(now, 0.01, late=False, peer=Peer(0, 5))
    assert quality.read(now, connected=True).loss == pytest.approx(51 / 1600)


def test_what_was_needed_after_all_is_taken_off_the_loss() -> None:
    quality, now = measured([0.01])
    for segments, lost in ((100, 4), (200, 1), (300, 3)):  # the peer says later of three that it had them already
        quality.carried(Known(segments, lost, 4, least_rtt=0.01))
        quality.answered(now, 0.01, late=False)
    assert quality.read(now, connected=True).loss == pytest.approx(3 / 300)


def test_where_nearly_all_is_held_back_the_median_is_of_all() -> None:
    quality = Quality(QualityConfig())
    for now in range(30):
        quality.answered(now, 0.30, late=False, held=True)
    assert quality.read(30, connected=True).p50 == pytest.approx(0.30)
    for now in range(30, 33):
        quality.answered(now, 0.05, late=False)
    assert quality.read(33, connected=True).p50 == pytest.approx(0.30)
    for now in range(33, 34):
        quality.answered(now, 0.05, late=False)
    assert quality.read(34, connected=True).p50 == pytest.approx(0.05)
    later = quality.read(30 + QualityConfig().window + 1.5, connected=True)
    assert (later.pings, later.p50) == (2, pytest.approx(0.05)), "the window forgets both alike"


def test_what_a_ping_waited_at_the_ends_is_told_apart() -> None:
    quality, now = measured([0.05])
    assert quality.read(now, connected=True).queued is None
    quality.carried(kernel(10, 0, rtt=0.05))
    quality.answered(now, 0.25, late=False)
    assert quality.read(now, connected=True).queued == pytest.approx(0.2)
    quality.carried(kernel(20, 0, rtt=0.06))
    quality.answered(now, 0.05, late=False)
    assert quality.read(now, connected=True).queued == 0.0


def test_a_ping_beside_bulk_counts_without_what_it_waited() -> None:
    quality, now = measured([0.05] * 9)
    before = quality.read(now, connected=True)
    quality.carried(kernel(10, 0, rtt=0.05))
    for beside, last in ((1000, 0.4), (1 << 20, 0.05)):
        quality.answered(now, 0.4, late=False, beside=beside)
        found = quality.read(now, connected=True)
        assert (found.last, found.queued) == (pytest.approx(last), pytest.approx(0.35))
    assert found.p50 == pytest.approx(0.05)
    assert found.jitter == pytest.approx(before.jitter + (0.35 - before.jitter) / 16)  # of the one that was alone
    quality.answered(now, 0.4, late=True, beside=1 << 20)
    assert quality.read(now, connected=True).lost == 1


def test_behind_a_proxy_bulk_takes_off_no_more_than_what_is_beyond_quiet_pings() -> None:
    """The kernel knows the way to the proxy alone, 0.05 ms; the peer is 300 ms away."""
    quality, now, known = Quality(QualityConfig()), 0.0, kernel(10, 0, rtt=0.00005)
    for beside, trip in [(0, 0.3)] * 20 + [(200_000, 0.32)] * 40:
        now += 1
        quality.carried(known)
        quality.answered(now, trip, late=False, beside=beside)
    found = quality.read(now, connected=True)
    assert (found.last, found.p50, found.p95) == (pytest.approx(0.3),) * 3
    assert (found.jitter, found.grade) == (pytest.approx(0.0, abs=1e-9), "fair")
    assert found.queued == pytest.approx(0.32 - 0.00005)
    quality.answered(now, 0.29, late=False, beside=200_000)  # it tells of no more than it took
    assert quality.read(now, connected=True).last == 0.29


def test_quiet_pings_that_are_long_ago_or_were_held_back_are_no_floor() -> None:
    quality, now = Quality(QualityConfig()), 0.0
    quality.carried(kernel(10, 0, rtt=0.01))
    quality.answered(now, 0.2, late=False, held=True)
    quality.answered(now, 0.5, late=False, beside=1 << 20)
    assert quality.read(now, connected=True).last == 0.01, "nothing but the kernel tells of the way"
    for trip, floor in ((0.05, 0.05), (0.3, 0.3)):  # the way became longer
        for _ in range(16):
            quality.answered(now, trip, late=False)
        quality.answered(now, 0.5, late=False, beside=1 << 20)
        assert quality.read(now, connected=True).last == pytest.approx(floor)


def test_what_the_kernel_said_of_one_connection_is_not_said_of_the_next() -> None:
    quality, now = measured([0.05])
    quality.carried(kernel(10, 0, rtt=0.05))
    quality.answered(now, 0.25, late=False)
    assert quality.queued == pytest.approx(0.2)
    quality.carried(None)
    quality.answered(now, 0.4, late=False, beside=1 << 20)
    found = quality.read(now, connected=True)
    assert (found.last, found.queued) == (0.4, None)
    quality.carried(kernel(60, 0, rtt=0.05))
    quality.answered(now, 0.06, late=False)
    assert quality.queued == pytest.approx(0.01)


def test_bulk_takes_nothing_off_where_the_kernel_knows_no_round_trip() -> None:
    quality, now = measured([0.05])
    quality.answered(now, 0.4, late=False, beside=1 << 20)
    found = quality.read(now, connected=True)
    assert (found.last, found.queued) == (0.4, None)


def test_what_was_read_is_known_until_something_changes() -> None:
    quality, now = measured([0.01] * 5)
    first = quality.read(now, connected=True)
    assert quality.read(now + 1, connected=True) is first
    assert quality.read(now + 1, connected=False).grade == "down"
    quality.answered(now + 2, 0.02, late=False)
    assert quality.read(now + 2, connected=True).last == 0.02
    assert quality.read(now + QualityConfig().window - 3.5, connected=True).pings == 5
    assert quality.read(now + QualityConfig().window + 5, connected=True).pings == 0


@pytest.mark.parametrize(
    ("trips", "grade", "reason"),
    [
        ([0.02] * 20, "excellent", ""),
        ([0.1] * 20, "good", "p95 rtt 100 ms > 60 ms"),
        ([0.31] * 20, "poor", "p95 rtt 310 ms > 300 ms"),
        ([0.2] * 20, "fair", "p95 rtt 200 ms > 150 ms"),
        ([0.02] * 19 + [None], "fair", "loss 5.0% > 1.0%"),
        ([0.02] * 9 + [None], "poor", "loss 10.0% > 5.0%"),
        ([0.001, 0.04] * 20, "good", "jitter 39 ms > 15 ms"),
    ],
)
def test_grades_say_why_they_are_no_better(trips: list[float | None], grade: str, reason: str) -> None:
    quality, now = measured(trips)
    reading = quality.read(now, connected=True)
    assert (reading.grade, reading.reason) == (grade, reason)


def test_what_is_not_connected_is_down_and_keeps_its_history() -> None:
    quality, now = measured([0.02] * 3)
    reading = quality.read(now, connected=False)
    assert (reading.grade, reading.reason, reading.last) == ("down", "not connected", 0.02)


def test_other_thresholds_hold_at_once() -> None:
    quality, now = measured([0.02] * 3)
    quality.thresholds = QualityConfig.model_validate({"excellent": {"rtt": "10ms", "jitter": "10ms", "loss": "1%"}})
    assert quality.read(now, connected=True).reason == "p95 rtt 20 ms > 10 ms"


def test_it_remembers_no_more_than_its_bound() -> None:
    quality, now = measured([0.01] * (MAX_SAMPLES * 3), interval=0.001)
    assert quality.read(now, connected=True).pings == MAX_SAMPLES
