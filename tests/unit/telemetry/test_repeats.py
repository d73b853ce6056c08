"""What is told once in a time, and counted besides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunneld.telemetry.repeats import Repeats


def test_the_first_is_told_and_the_others_are_counted_until_its_time_is_over() -> None:
    repeats: Repeats[str] = Repeats(lambda: 10.0, lambda: 100)
    assert repeats.deadline() is None
    assert repeats.first("a", "one", 0.0)
    assert not repeats.first("a", "two", 1.0)
    assert repeats.first("b", "three", 2.0)
    assert repeats.deadline() == 10.0
    assert repeats.over(9.9) == []
    assert repeats.over(10.0) == [("one", 1)]
    assert not repeats.first("a", "four", 11.0), "who goes on has one line in each time"
    assert repeats.over(12.0) == [], "of b there was only one, and it is forgotten"
    assert repeats.deadline() == 20.0
    assert repeats.over(20.0) == [("one", 1)]
    assert repeats.over(30.0) == []
    assert len(repeats) == 0
    assert repeats.first("a", "five", 31.0)


def test_beyond_the_bound_they_are_counted_together() -> None:
    repeats: Repeats[str] = Repeats(lambda: 10.0, lambda: 2)
    assert [repeats.first(key, key, 0.0) for key in "abcdc"] == [True, True, False, False, False]
    assert len(repeats) == 3
    assert repeats.end() == [(None, 3)]
    assert (len(repeats), repeats.end()) == (0, [])


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5)), max_size=60), st.integers(1, 4), st.floats(0.1, 10))
def test_each_is_told_or_counted_once(said: list[tuple[int, float]], most: int, seconds: float) -> None:
    repeats: Repeats[int] = Repeats(lambda: seconds, lambda: most)
    now, told, lines = 0.0, 0, 0
    for key, later in said:
        now += later
        over = repeats.over(now)
        told, lines = told + sum(left for _, left in over), lines + len(over)
        if repeats.first(key, key, now):
            told, lines = told + 1, lines + 1
        assert len(repeats) <= most + 1
    told += sum(left for _, left in repeats.end())
    assert told == len(said)
    assert lines <= (most + 1) * (now / seconds + 2) * 2
