"""Threads for work that blocks, there only while there is such work: a daemon at rest has one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["Threads"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads(ThreadPoolExecutor):
    """As the library's, which a loop's default executor has to be; but its threads end once nothing is left to do.

    Args:
        most: threads at a time; None: as many as the library's.
        name: that theirs begin with.
    """

    def __init__(self, most: int | None = None, name: str = "work") -> None:
        super().__init__(most, name)  # which never begins a thread
        self._most, self._name = most, name
        self._lock = threading.Lock()
        self._left = 0  # calls that wait or run
        self._over = False
        self._pool = ThreadPoolExecutor(most, name)  # the last one; ended where nothing is left

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:  # noqa: D102
        with self._lock:
            if self._over:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if not self._left:
                self._pool = ThreadPoolExecutor(self._most, self._name)
            done = self._pool.submit(fn, *args, **kwargs)
            self._left += 1
        done.add_done_callback(self._done)
        return done

    def _done(self, _: Future[_T]) -> None:
        """On the thread that did it, or on that of whoever cancelled it."""
        with self._lock:
            self._left -= 1
            if not (self._left or self._over):
                self._pool.shutdown(wait=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: D102
        with self._lock:
            self._over = True
        # Not under the lock: what is cancelled here comes to `_done`, and a thread may have to before it ends.
        self._pool.shutdown(wait, cancel_futures=cancel_futures)
