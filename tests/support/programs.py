"""What programs that the tests run beside themselves have in common: their loop, their descriptors, their lines."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["raise_limit", "run", "say", "until_terminated"]

Made = TypeVar("Made")


def run(work: Coroutine[Any, Any, Made]) -> Made:
    """Run it on uvloop where that is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def until_terminated(work: Coroutine[Any, Any, None]) -> None:
    """Run it until it is done, or SIGTERM comes."""
    loop = asyncio.get_running_loop()
    running = loop.create_task(work)
    loop.add_signal_handler(signal.SIGTERM, running.cancel)
    await asyncio.gather(running, return_exceptions=True)


def raise_limit() -> None:
    """Take all the descriptors that this process may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def say(**line: object) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
