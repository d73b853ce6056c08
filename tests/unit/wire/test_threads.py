"""Threads for work that blocks: as many as may at a time, none when there is none, and else as the library's."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from tests.support.processes import eventually
from tunneld import lifecycle
from tunneld.wire.threads import Threads


def alive(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


@pytest.fixture
def made() -> Iterator[Callable[[int], Threads]]:
    """Makes pools called `test`, whose threads are gone at the end."""
    pools: list[Threads] = []

    def make(most: int) -> Threads:
        pools.append(Threads(most, "test"))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown()
    assert alive("test") == 0


def test_many_at_once_have_few_threads_which_end_with_them(made: Callable[[int], Threads]) -> None:
    pool = made(3)

    def work(number: int) -> int:
        began.release()
        assert over.wait(10)
        return number

    for _ in range(2):  # and begin anew
        over, began = threading.Event(), threading.Semaphore(0)
        done = [pool.submit(work, number) for number in range(200)]
        assert all(began.acquire(timeout=10) for _ in range(3))
        assert alive("test") == 3
        over.set()
        assert [one.result(10) for one in done] == list(range(200))
        eventually(lambda: alive("test") == 0, what="without a thread")


def test_what_one_waits_for_was_begun_in_its_order(made: Callable[[int], Threads]) -> None:
    pool, seen = made(1), list[int]()
    for done in [pool.submit(seen.append, number) for number in range(100)]:
        done.result(10)
    assert seen == list(range(100))


def test_from_many_threads_at_a_time_nothing_is_lost(made: Callable[[int], Threads]) -> None:
    """Each ends the pool again and again, just when others give it work."""
    pool, lock, seen = made(2), threading.Lock(), list[int]()

    def note(number: int) -> None:
        with lock:
            seen.append(number)

    def give(first: int) -> None:
        for number in range(first, first + 50):
            pool.submit(note, number).result(10)

    with ThreadPoolExecutor(4) as givers:
        list(givers.map(give, range(0, 200, 50)))
    assert sorted(seen) == list(range(200))
    eventually(lambda: alive("test") == 0, what="without a thread")


def test_errors_and_cancels_pass_and_leave_no_thread(made: Callable[[int], Threads]) -> None:
    pool, over = made(1), threading.Event()
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(10)
    running, waiting = pool.submit(over.wait, 10), pool.submit(over.wait, 10)
    assert waiting.cancel()
    over.set()
    assert running.result(10)
    with pytest.raises(CancelledError):
        waiting.result(10)
    eventually(lambda: alive("test") == 0, what="without a thread")


def test_the_end_waits_for_what_runs_and_cancels_what_waits(made: Callable[[int], Threads]) -> None:
    pool, began, over = made(1), threading.Event(), threading.Event()

    def work() -> bool:
        began.set()
        return over.wait(10)

    running: Future[bool] = pool.submit(work)
    waiting = [pool.submit(work) for _ in range(3)]
    assert began.wait(10)
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(one.cancelled() for one in waiting)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(work)
    threading.Timer(0.05, over.set).start()
    pool.shutdown()
    assert running.done()
    assert alive("test") == 0


def test_a_loops_own_end_with_their_work() -> None:
    word, before = contextvars.ContextVar("word", default=""), threading.active_count()

    async def main() -> str:
        word.set("heard")
        said = await asyncio.gather(*(asyncio.to_thread(word.get) for _ in range(100)))
        assert set(said) == {"heard"}
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)
        async with asyncio.timeout(10):
            while threading.active_count() > before:
                await asyncio.sleep(0.01)
        return await asyncio.get_running_loop().run_in_executor(None, lambda: threading.current_thread().name)

    assert lifecycle.run(main).startswith("work")
    assert alive("work") == 0
