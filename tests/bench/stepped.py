"""`python -m tests.bench.stepped …`: tunneld as always, whose loop times each of its turns when it is told to.

From SIGUSR1 on the loop never sleeps, and looks at the clock in each turn; at SIGUSR2 it says how long the longest was
(`STEPPED`, JSON: milliseconds, by the clock and of CPU, each of the turn that took most of it). A turn is one round of
callbacks: what holds a loop up shows here and nowhere better, since a request beside it waits for other processes too.
"""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import sys
from time import perf_counter, thread_time
from typing import Any

from tunneld import lifecycle

__all__ = ["STEPPED", "longest"]

STEPPED = "STEPPED "


class _Steps:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._on = False
        self._longest = self._of_cpu = 0.0
        self._then = self._then_cpu = 0.0
        loop.add_signal_handler(signal.SIGUSR1, self._begin)
        loop.add_signal_handler(signal.SIGUSR2, self._tell)

    def _begin(self) -> None:
        self._on, self._longest, self._of_cpu = True, 0.0, 0.0
        self._again()

    def _again(self) -> None:
        self._then, self._then_cpu = perf_counter(), thread_time()
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        if not self._on:
            return
        took, cpu = perf_counter() - self._then, thread_time() - self._then_cpu
        self._longest, self._of_cpu = max(self._longest, took), max(self._of_cpu, cpu)
        self._again()

    def _tell(self) -> None:
        self._on = False
        told = {"wall_ms": self._longest * 1e3, "cpu_ms": self._of_cpu * 1e3}
        print(STEPPED + json.dumps(told), flush=True)


def longest(line: str) -> tuple[float, float]:
    """(wall, CPU) milliseconds of what was told in a line."""
    told = json.loads(line.partition(STEPPED)[2])
    return told["wall_ms"], told["cpu_ms"]


def main() -> int:
    """Be tunneld; its exit status."""
    serve = lifecycle.serve

    @functools.wraps(serve)
    async def stepping(*args: Any, **kwargs: Any) -> int:
        _Steps(asyncio.get_running_loop())  # whose signals keep it
        return await serve(*args, **kwargs)

    lifecycle.serve = stepping
    from tunneld.__main__ import main as tunneld

    return tunneld()


if __name__ == "__main__":
    sys.exit(main())
