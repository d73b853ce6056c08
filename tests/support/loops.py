"""Runs a test on asyncio's own loop and on uvloop: what drives transports must not care."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

try:
    import uvloop
except ImportError:  # it is optional
    uvloop = None

__all__ = ["FACTORIES", "on_both_loops"]

#: What makes a loop: asyncio's own, and uvloop's where that is installed.
FACTORIES: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
if uvloop is not None:
    FACTORIES.append(uvloop.new_event_loop)
_FACTORIES = [pytest.param(factory, id=name) for factory, name in zip(FACTORIES, ("asyncio", "uvloop"), strict=False)]


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine into a test that runs it once on each loop, in debug mode; it may take fixtures."""

    @pytest.mark.parametrize("loop_factory", _FACTORIES)
    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
            runner.run(test(**fixtures))

    import inspect

    own = inspect.signature(test).parameters.values()
    first = inspect.Parameter("loop_factory", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*own, first])  # type: ignore[attr-defined]
    return run
