"""The token bucket: never more than its rate and its burst, whatever the times are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunneld.protocol.rates import Bucket


def test_a_burst_then_the_rate() -> None:
    bucket = Bucket(2, 4, 100.0)
    assert [bucket.take(1, 100.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert bucket.take(1, 100.25) == 0.25
    assert bucket.take(1, 100.5) == 0
    assert bucket.take(1, 100.5) == 0.5
    assert not bucket.full(101)
    assert bucket.full(200)
    assert [bucket.take(1, 200.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]


def test_what_passes_is_owed_and_made_good() -> None:
    bucket = Bucket(100, 100, 0.0)
    assert bucket.owe(100, 0) == 0
    assert bucket.owe(50, 0) == 0.5
    assert bucket.owe(50, 0.25) == 0.75
    assert bucket.owe(0, 1.0) == 0
    bucket.retune(10, 10, 50)
    assert bucket.owe(20, 50) == 1.0


def test_one_that_is_more_than_the_burst_waits_for_a_full_bucket() -> None:
    bucket = Bucket(1, 1, 0.0)
    assert bucket.take(5, 0) == 0
    assert bucket.take(1, 0) == 5
    assert bucket.take(1, 4) == 1
    assert bucket.take(1, 5) == 0


def test_a_clock_that_goes_back_changes_nothing() -> None:
    bucket = Bucket(1, 1, 10.0)
    assert bucket.take(1, 10) == 0
    assert bucket.take(1, 5) == 1
    assert bucket.take(1, 10.5) == 0.5


@given(
    rate=st.floats(0.1, 1000),
    burst=st.floats(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 1)), max_size=100),
)
def test_never_more_than_rate_and_burst(rate: float, burst: float, steps: list[tuple[float, float]]) -> None:
    bucket = Bucket(rate, burst, 0.0)
    now = used = 0.0
    for wait, count in steps:
        now += wait
        left = bucket.take(count, now)
        if left == 0:
            used += count
        else:
            assert bucket.take(count, now + left * 0.99 - 1e-6) > 0  # what it says is not too much
        assert used <= burst + rate * now + 1e-6
