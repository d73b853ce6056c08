"""Throughput of the last seconds: known soon, of a window that is neither short nor long, one timer for all."""

import asyncio
from collections.abc import Iterator

import pytest

from tunneld.telemetry import flow
from tunneld.telemetry.flow import Flow, FlowTimer


def test_it_is_not_known_before_a_second_has_passed() -> None:
    it = Flow()
    assert it.rates(100.0, 5, 5) is None
    it.note(100.0, 0, 0)
    assert it.rates(100.5, 500, 1000) is None
    assert it.rates(102.0, 500, 1000) == (250.0, 500.0)


def test_it_is_of_the_sample_before_the_last_on() -> None:
    it = Flow()
    for at, received in ((100.0, 0), (105.0, 1000), (110.0, 1000)):
        it.note(at, received, 0)
    assert it.rates(110.0, 1000, 0) == (0.0, 0.0)  # what passed before the window is forgotten
    assert it.rates(115.0, 2000, 300) == (100.0, 30.0)


def test_a_count_that_begins_anew_is_no_throughput() -> None:
    it = Flow()
    it.note(100.0, 1000, 1000)
    assert it.rates(110.0, 0, 2000) == (0.0, 100.0)


async def test_the_timer_looks_at_all_and_lets_the_loop_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "EVERY", 0.01)
    flows = [Flow() for _ in range(250)]
    turns = 0
    done = asyncio.Event()

    def read() -> Iterator[tuple[Flow, int, int]]:
        for number, each in enumerate(flows):
            yield each, number, turns
        done.set()

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not done.is_set():
            asyncio.get_running_loop().call_soon(turn)

    timer = FlowTimer(read)
    timer.start()
    await asyncio.sleep(0)
    turn()
    async with asyncio.timeout(5):
        await done.wait()
    timer.stop()
    timer.stop()
    assert all(each._last is not None for each in flows)
    noted = [each._last[2] for each in flows if each._last is not None]
    assert noted[0] < noted[150] < noted[-1]  # others ran between them
