"""Credit: what is granted, when, and how windows grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.errors import RemoteError
from tunneld.protocol.windows import MIN_WINDOW, Holders, MemoryBudget, ReceiveWindow


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


def test_while_memory_is_short_a_window_shrinks_and_never_below_what_lets_it_go_on() -> None:
    window = ReceiveWindow(256 * 1024, 4 << 20)
    sizes = []
    for _ in range(12):
        count = window.outstanding
        window.received(count)
        window.took(count)
        assert window.grant(0.0, 1.0, short=True) == window.outstanding
        sizes.append(window.size)
    assert sizes[:3] == [128 * 1024, 64 * 1024, 32 * 1024]
    assert sizes[3:] == [MIN_WINDOW] * 9
    for now in (1.0, 1.1, 1.2):  # there is room again
        window.received(window.outstanding)
        window.took(window.size)
        window.grant(now, 1.0)
    assert window.size == 4 * MIN_WINDOW


@given(st.lists(st.tuples(st.integers(1, 90_000), st.booleans(), st.booleans()), max_size=60))
def test_credit_that_is_withheld_is_never_asked_back(steps: list[tuple[int, bool, bool]]) -> None:
    window, held, now = ReceiveWindow(64 * 1024, 256 * 1024), 0, 0.0
    for count, receiving, short in steps:
        now += 0.1
        before = window.outstanding
        if receiving:
            count = min(count, window.outstanding)
            window.received(count)
            held += count
            continue
        count = min(count, held)
        held -= count
        if window.took(count):
            assert window.grant(now, 1.0, short=short) == window.outstanding - before >= 0
        assert window.outstanding + window.due + held == window.size >= MIN_WINDOW
        assert window.outstanding or held or window.took(0), "nobody may send, and nothing will say that it may"


def test_the_budget_of_a_process() -> None:
    budget = MemoryBudget(1000)
    budget.add(749)
    assert not budget.near
    budget.add(1)
    assert budget.near
    assert not budget.over
    budget.add(251)
    assert budget.over
    budget.limit = 2000  # a reload
    assert not budget.near
    budget.limit = 1000
    budget.sub(1001)
    assert not budget.near
    assert budget.held == 0


class _Holder:
    def __init__(self, holders: Holders, size: int, *, slow: bool) -> None:
        self.holders, self.size, self.gone = holders, size, False
        holders.budget.add(size)
        holders.add(self.give_up, slow=slow)

    def give_up(self) -> None:
        assert not self.gone
        self.gone = True
        self.holders.budget.sub(self.size)
        self.holders.discard(self.give_up)


def test_over_the_limit_slow_readers_go_first_and_of_them_those_that_have_waited_the_longest() -> None:
    holders = Holders(MemoryBudget(1000))
    waiting = _Holder(holders, 300, slow=False)
    slow = [_Holder(holders, 300, slow=True) for _ in range(2)]
    assert not any(one.gone for one in (waiting, *slow))
    holders.add(slow[0].give_up, slow=True)  # said again, it keeps its place
    slow.append(_Holder(holders, 300, slow=True))
    assert [one.gone for one in slow] == [True, False, False]
    slow[1].give_up()
    slow[2].give_up()
    late = _Holder(holders, 900, slow=False)
    assert [waiting.gone, late.gone] == [True, False]
    holders.budget.limit = 100
    holders.shed()
    assert late.gone
    holders.budget.add(500)  # what nobody can be asked to give up
    holders.shed()
    assert holders.budget.over
