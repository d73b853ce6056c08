"""Liveness: pings when they are due, death exactly at its time, whatever the schedule of bytes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.protocol.heartbeat import Alive, Dead, Heartbeat, SendPing, Silent, clamp


def run(heartbeat: Heartbeat, until: float, bytes_at: list[float] | None = None) -> list[tuple[float, object]]:
    """Drive it as a shell would: wake when it says so; bytes come at their times. Returns (time, action)."""
    log: list[tuple[float, object]] = []
    coming = sorted(bytes_at or [])
    now = heartbeat.last_heard
    while now <= until and not heartbeat.dead:
        for action in heartbeat.tick(now):
            log.append((now, action))
        wake = heartbeat.next_wake(now)
        while coming and coming[0] <= wake:
            heartbeat.heard(coming.pop(0))
        assert wake >= now
        now = wake
    return log


def times(log: list[tuple[float, object]], kind: type) -> list[float]:
    return [at for at, action in log if isinstance(action, kind)]


def test_pings_at_once_and_then_every_interval_whatever_is_heard() -> None:
    heartbeat = Heartbeat(30, 10, 100)
    log = run(heartbeat, 220, [100 + n for n in range(200)])
    assert times(log, SendPing) == [100, 130, 160, 190, 220]
    assert [action.seq for _, action in log if isinstance(action, SendPing)] == [1, 2, 3, 4, 5]
    assert len(log) == 5


def test_a_silent_peer_is_doubted_and_then_given_up() -> None:
    heartbeat = Heartbeat(30, 10, 0)
    log = run(heartbeat, 1000, [5])
    assert times(log, Silent) == [36]
    assert times(log, Dead) == [45]
    assert log[-1] == (45, Dead())
    assert heartbeat.dead
    assert heartbeat.tick(46) == []
    assert heartbeat.next_wake(46) == math.inf


def test_a_peer_that_comes_back_is_alive_again() -> None:
    heartbeat = Heartbeat(10, 10, 0)
    log = run(heartbeat, 31, [15, 25])
    assert times(log, Silent) == [11]
    assert times(log, Alive) == [20]
    assert not heartbeat.dead


def test_a_pong_gives_the_round_trip_and_ends_silence_without_a_word() -> None:
    heartbeat = Heartbeat(10, 10, 0)
    assert heartbeat.tick(0) == [SendPing(1)]
    assert heartbeat.tick(12) == [Silent(), SendPing(2)]
    assert heartbeat.pong(2, 12.5) == 0.5
    assert not heartbeat.silent
    assert heartbeat.pong(1, 12.5) is None, "one that was passed over is answered no more"
    assert heartbeat.tick(12.6) == []
    assert heartbeat.deadline == 32.5


def test_pongs_that_answer_nothing_prove_life_and_no_more() -> None:
    heartbeat = Heartbeat(10, 5, 0)
    heartbeat.tick(0)
    assert heartbeat.pong(7, 3) is None
    assert heartbeat.pong(1, 4) == 4
    assert heartbeat.pong(1, 5) is None
    assert heartbeat.deadline == 20


def test_pings_that_wait_are_bounded() -> None:
    heartbeat = Heartbeat(1, 1, 0)
    for second in range(1000):
        heartbeat.heard(second)
        heartbeat.tick(second)
    assert heartbeat.sent == 1000
    assert heartbeat.overdue(2000) == 64
    assert heartbeat.pong(936, 1000) is None
    for seq in range(937, 1001):
        assert heartbeat.pong(seq, 1000) is not None


def test_a_late_wake_sends_one_ping_not_all_that_were_missed() -> None:
    heartbeat = Heartbeat(1, 100, 0)
    heartbeat.tick(0)
    assert heartbeat.tick(50) == [Silent(), SendPing(2)]
    assert heartbeat.next_wake(50) == 51


def test_shorter_values_do_not_kill_a_peer_that_kept_the_longer_ones() -> None:
    heartbeat = Heartbeat(30, 10, 0)
    heartbeat.tick(0)
    heartbeat.update(1, 1, 20)
    assert heartbeat.deadline == 22
    assert heartbeat.next_wake(20) == 20
    assert heartbeat.tick(20) == [SendPing(2)]
    assert times(run(heartbeat, 100), Dead) == [22]


def test_longer_values_hold_at_once() -> None:
    heartbeat = Heartbeat(1, 1, 0)
    heartbeat.tick(0)
    heartbeat.update(30, 10, 1.5)
    assert heartbeat.deadline == 40
    assert heartbeat.next_wake(1.5) == 30


def test_a_side_that_stood_still_reads_before_it_judges() -> None:
    heartbeat = Heartbeat(10, 5, 0)
    heartbeat.tick(0)
    assert heartbeat.next_wake(0) == 10
    assert heartbeat.tick(60) == []
    again = heartbeat.next_wake(60)
    assert 60 < again < 60.1
    heartbeat.heard(60.001)
    assert heartbeat.tick(again) == [SendPing(2)]

    quiet = Heartbeat(10, 5, 0)
    quiet.next_wake(0)
    assert quiet.tick(60) == []
    assert quiet.tick(quiet.next_wake(60)) == [Dead()]


@pytest.mark.parametrize(("interval", "timeout"), [(0, 1), (-1, 1), (1, -1), (math.inf, 1), (1, math.nan)])
def test_values_that_make_no_sense_are_refused(interval: float, timeout: float) -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        Heartbeat(interval, timeout, 0)
    with pytest.raises(ValueError, match="heartbeat"):
        Heartbeat(1, 1, 0).update(interval, timeout, 0)


def test_clamp() -> None:
    assert [clamp(wish, 1, 300) for wish in (0.2, 1, 30, 900)] == [1, 1, 30, 300]


# Quarters of a second are exact in binary: sums compare exactly.
quarters = st.integers(0, 4000).map(lambda n: n / 4)


@given(
    interval=st.integers(1, 200).map(lambda n: n / 4),
    timeout=st.integers(0, 100).map(lambda n: n / 4),
    schedule=st.lists(quarters, max_size=60),
)
def test_invariant_5_dead_exactly_at_last_heard_plus_interval_plus_timeout(
    interval: float, timeout: float, schedule: list[float]
) -> None:
    heartbeat = Heartbeat(interval, timeout, 0)
    last = 0.0
    for at in sorted(schedule):
        if at > last + interval + timeout:
            break
        last = at
    log = run(heartbeat, 10_000, schedule)
    assert times(log, Dead) == [last + interval + timeout]
    pings = times(log, SendPing)
    assert pings == [n * interval for n in range(len(pings))]
    # At the very deadline death goes first: at most the ping of that moment is not sent.
    assert last + timeout <= len(pings) * interval


def test_a_doubt_pings_at_once_and_ends_with_what_is_heard_after_it() -> None:
    beat = Heartbeat(30.0, 10.0, 0.0)
    beat.tick(0.0)
    assert beat.pong(1, 0.1) is not None
    beat.doubt(5.0, 2.0)
    assert beat.tick(5.0) == [SendPing(2)]
    beat.heard(5.01)  # had waited in the socket since before
    assert beat.deadline == 7.0
    beat.heard(5.2)
    assert beat.deadline == 45.2
    beat.doubt(6.0, 2.0)
    assert beat.tick(6.0) == [SendPing(3)]
    assert beat.pong(3, 6.01) is not None  # its own pong, however soon
    assert beat.deadline > 40


def test_what_is_silent_is_so_since_its_last_byte_or_since_the_doubt() -> None:
    beat = Heartbeat(30.0, 10.0, 0.0)
    beat.heard(5.0)
    assert beat.silent_since == 5.0
    beat.doubt(25.0, 2.0)
    assert beat.silent_since == 25.0
    beat.heard(26.0)
    assert beat.silent_since == 26.0


def test_a_doubt_that_nothing_answers_is_the_end_soon() -> None:
    beat = Heartbeat(30.0, 10.0, 0.0)
    beat.tick(0.0)
    beat.doubt(5.0, 2.0)
    assert beat.tick(5.0) == [SendPing(2)]
    assert beat.next_wake(5.0) == 7.0
    assert beat.tick(7.0) == [Dead()]
