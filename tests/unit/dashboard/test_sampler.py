"""The history is written while nobody looks: every tunnel, once in each period."""

import asyncio

from tests.unit.dashboard.test_feed import Daemon
from tunneld.dashboard.history import History
from tunneld.dashboard.sampler import Sampler, clock
from tunneld.dashboard.source import Brief


async def test_every_tunnel_is_sampled_again_and_again_until_it_stops() -> None:
    daemon, seen = Daemon(), asyncio.Event()
    for index in range(60):
        daemon.add(f"t{index:02}")
    history = History()
    rounds: dict[str, int] = {}

    class Counting(Sampler):
        def sample(self, brief: Brief) -> None:
            super().sample(brief)
            rounds[brief.name] = rounds.get(brief.name, 0) + 1
            if brief.name == "t59" and rounds["t59"] == 3:
                seen.set()

    sampler = Counting(daemon, history, now=clock(), period=0.05)
    sampler.start()
    await seen.wait()
    await sampler.stop()
    assert set(rounds.values()) == {3}
    assert len(history) == 60
    await sampler.stop()


async def test_a_timer_that_fires_early_samples_no_period_twice() -> None:
    daemon, seen, loop = Daemon(), asyncio.Event(), asyncio.get_running_loop()
    for index in range(3):
        daemon.add(f"t{index}")
    period, begin = 0.04, loop.time()
    points: dict[str, list[int]] = {}

    def late() -> float:
        """Of the daemon: a tenth slower than the loop's, so that whatever is slept is too short."""
        return (loop.time() - begin) * 0.9

    class Noting(Sampler):
        def sample(self, brief: Brief) -> None:
            points.setdefault(brief.name, []).append(int(late() // period))
            if len(points[brief.name]) == 6:
                seen.set()

    sampler = Noting(daemon, History(), now=late, period=period)
    sampler.start()
    await seen.wait()
    await sampler.stop()
    for name, found in points.items():
        assert len(set(found)) == len(found), name


def test_the_clock_never_goes_back() -> None:
    now = clock()
    times = [now() for _ in range(100)]
    assert times == sorted(times)
