"""Many equal timeouts on one timer."""

from __future__ import annotations

import asyncio

from tests.support.loops import on_both_loops
from tunneld.agent.deadlines import Deadlines


@on_both_loops
async def test_keys_expire_in_the_order_they_were_added() -> None:
    expired: list[str] = []
    done = asyncio.Event()

    def expire(key: str) -> None:
        expired.append(key)
        assert key not in deadlines
        if key == "c":
            done.set()

    deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop(), 0.02, expire)
    for key in "abc":
        deadlines.add(key)
    deadlines.discard("b")
    deadlines.discard("unknown")
    assert "a" in deadlines
    assert len(deadlines) == 2
    await done.wait()
    assert expired == ["a", "c"]
    assert not len(deadlines)


@on_both_loops
async def test_a_key_may_be_added_anew_while_it_expires() -> None:
    times: list[int] = []
    done = asyncio.Event()

    def expire(key: int) -> None:
        times.append(key)
        if len(times) < 3:
            deadlines.add(key + 1)
        else:
            done.set()

    deadlines: Deadlines[int] = Deadlines(asyncio.get_running_loop(), 0.01, expire)
    deadlines.add(1)
    await done.wait()
    assert times == [1, 2, 3]


@on_both_loops
async def test_a_new_time_holds_for_keys_that_are_in() -> None:
    done = asyncio.Event()
    deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop(), 3600, lambda key: done.set())
    deadlines.add("a")
    deadlines.after = 0.01
    assert deadlines.after == 0.01
    await done.wait()


@on_both_loops
async def test_zero_never_expires() -> None:
    deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop(), 0, lambda key: None)
    deadlines.add("a")
    deadlines.after = 1
    deadlines.after = 0
    assert deadlines._timer is None
    assert deadlines.clear() == ["a"]


@on_both_loops
async def test_the_newest_is_the_last_that_was_added() -> None:
    deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop(), 10, lambda key: None)
    assert deadlines.newest() is None
    for key in "aba":
        deadlines.add(key)
    newest = deadlines.newest()
    assert newest is not None
    assert newest[0] == "a"
    assert deadlines.clear() == ["b", "a"]
    assert deadlines._timer is None
