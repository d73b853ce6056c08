"""Counted messages: numbers, what is kept, and when an ACK goes."""

from __future__ import annotations

import pytest

from tunneld.errors import RemoteError
from tunneld.protocol.replay import _COST, ACK_DELAY, ReplayBuffer
from tunneld.protocol.windows import MemoryBudget


def test_messages_are_numbered_from_one_and_kept_until_acknowledged() -> None:
    replay = ReplayBuffer(1000, 1000)
    assert [replay.keep(2, b"a", 1), replay.keep(1, b"b", 0), replay.keep(2, b"c", 0)] == [1, 2, 3]
    assert replay.unacknowledged() == [(2, b"a"), (1, b"b"), (2, b"c")]
    replay.acknowledged(2)
    assert replay.unacknowledged() == [(2, b"c")]
    assert (replay.acked, replay.sent, replay.data_held) == (2, 3, 0)
    assert replay.control_held > 0
    replay.acknowledged(3)
    assert replay.control_held == 0


@pytest.mark.parametrize("count", [0, -1, 3, 2**64 - 1])
def test_an_acknowledgement_that_cannot_be(count: int) -> None:
    replay = ReplayBuffer(1000, 1000)
    replay.keep(2, b"a", 1)
    replay.keep(2, b"b", 1)
    replay.acknowledged(1)
    with pytest.raises(RemoteError, match=f"an ACK of {count}; acknowledged were 1, sent 2"):
        replay.acknowledged(count)
    assert replay.unacknowledged() == [(2, b"b")]
    replay.acknowledged(1)
    replay.acknowledged(2)


def test_the_bound_holds_back_data_alone_and_counts_what_small_messages_cost() -> None:
    replay = ReplayBuffer(100_000, 1)
    for _ in range(10_000):
        replay.keep(1, b"x" * 100, 0)
    assert not replay.full
    kept = 0
    while not replay.full:
        replay.keep(2, b"x" * 10, 1)
        kept += 1
    assert kept < 1000  # 100,000 such messages would hold 20 MB


def test_an_ack_is_due_after_a_share_of_the_peers_buffer() -> None:
    replay = ReplayBuffer(1, 40_000)
    replay.count(5_000, 0.0)
    assert not replay.ack_due(0.0)
    replay.count(5_000, 0.0)
    assert replay.ack_due(0.0)
    assert replay.tell() == 2
    assert not replay.ack_due(10.0)
    large = ReplayBuffer(1, 2**30)
    large.count(65_000, 0.0)
    large.count(600, 0.0)
    assert large.ack_due(0.0)


def test_an_ack_is_due_after_a_time_or_when_the_timer_says_so() -> None:
    replay = ReplayBuffer(1, 2**30)
    replay.ack_now()
    assert replay.ack_at is None
    replay.count(1, 5.0)
    replay.count(1, 5.2)
    assert replay.ack_at == 5.0 + ACK_DELAY
    assert not replay.ack_due(5.0 + ACK_DELAY - 0.001)
    assert replay.ack_due(5.0 + ACK_DELAY)
    replay.ack_now()  # a timer may fire a little early by another clock
    assert replay.ack_due(5.0)
    assert replay.tell() == 2
    assert replay.ack_at is None
    assert replay.told == 2


def test_while_memory_is_short_one_message_with_data_is_under_way() -> None:
    budget = MemoryBudget(1000)
    replay = ReplayBuffer(1 << 20, 1 << 20, budget)
    assert not replay.full
    replay.keep(2, b"x" * 700, 700)
    assert budget.held == 700 + _COST
    assert replay.full
    replay.acknowledged(1)
    assert not replay.full
    budget.add(5000)  # whatever else is held: one is under way, so that it goes on
    assert not replay.full
    replay.keep(2, b"x", 1)
    assert replay.full
    replay.clear()
    assert budget.held == 5000
