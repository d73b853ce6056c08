"""Credit: what is granted, when, and how windows grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.errors import RemoteError
from tunneld.protocol.windows import MemoryBudget, ReceiveWindow


def test_credit_returns_once_half_a_window_was_taken() -> None:
    window = ReceiveWindow(1000, 1000)
    window.received(700)
    assert not window.took(499)
    assert window.took(1)
    assert window.grant(0.0, None) == 500
    assert window.outstanding == 800
    assert not window.took(200)


def test_more_than_the_credit_is_an_error() -> None:
    window = ReceiveWindow(1000, 1000)
    window.received(1000)
    with pytest.raises(RemoteError, match="1 bytes over the window of 1000") as caught:
        window.received(1)
    assert caught.value.code == "flow_control"


def test_a_window_doubles_while_it_is_emptied_within_two_round_trips() -> None:
    window = ReceiveWindow(1000, 3500)

    def half(now: float, round_trip: float | None) -> int:
        count = window.size // 2
        window.received(count)
        window.took(count)
        return window.grant(now, round_trip)

    assert half(0.0, 1.0) == 500  # the first says nothing about speed
    assert half(1.0, 1.0) == 500 + 1000
    assert window.size == 2000
    assert half(3.5, 1.0) == 1000  # slower than half a window in two round trips
    assert half(4.0, None) == 1000  # the round trip is not known
    assert half(4.5, 1.0) == 1000 + 1500  # up to the maximum, and never above
    assert half(4.6, 1.0) == 1750
    assert window.size == 3500


@given(st.lists(st.tuples(st.integers(1, 4000), st.booleans(), st.sampled_from([None, 0.1, 9.0])), max_size=60))
def test_credit_and_what_is_held_never_pass_the_window(steps: list[tuple[int, bool, float | None]]) -> None:
    window, held, now = ReceiveWindow(1000, 16_000), 0, 0.0
    for count, receiving, round_trip in steps:
        now += 1.0
        if receiving:
            count = min(count, window.outstanding)
            window.received(count)
            held += count
        else:
            count = min(count, held)
            held -= count
            if window.took(count):
                assert window.grant(now, round_trip) > 0
        assert window.outstanding + window.due + held == window.size <= 16_000


def test_the_budget_of_a_process() -> None:
    budget = MemoryBudget(1000)
    budget.add(749)
    assert not budget.near
    budget.add(1)
    assert budget.near
    assert not budget.over
    budget.add(251)
    assert budget.over
    budget.sub(1001)
    assert not budget.near
    assert budget.held == 0
