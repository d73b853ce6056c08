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

__all__ = ["on_both_loops"]

_FACTORIES = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if uvloop is not None:
    _FACTORIES.append(pytest.param(uvloop.new_event_loop, id="uvloop"))


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
