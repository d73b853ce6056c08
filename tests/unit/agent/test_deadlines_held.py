"""Deadlines while time stands still."""

from __future__ import annotations

import asyncio
from time import monotonic

from tunneld.agent.deadlines import Deadlines


async def test_held_time_does_not_count_for_keys_before_and_during() -> None:
    told: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
    began = monotonic()
    deadlines: Deadlines[str] = Deadlines(
        asyncio.get_running_loop(), 0.2, lambda key: told.put_nowait((key, monotonic() - began))
    )
    deadlines.add("before")
    deadlines.hold()
    deadlines.hold()
    await asyncio.sleep(0.3)
    assert told.empty()
    deadlines.add("during")
    deadlines.go_on()
    deadlines.go_on()
    (first, at), (second, later) = await told.get(), await told.get()
    assert (first, second) == ("before", "during")
    assert 0.45 < at <= later
