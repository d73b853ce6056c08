"""When the picture is drawn: on both loops, whose timers are not alike."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.roster import Running
from tunneld.agent.screen import Screen
from tunneld.lifecycle import event_loop

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, event_loop], ids=["asyncio", "the daemons' own"])


@LOOPS
def test_what_happens_at_once_is_drawn_once(loop: object, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = 0

    def sums() -> tuple[int, int, int]:
        nonlocal drawn
        drawn += 1
        return 0, 0, 0

    async def show() -> None:
        nothing = cast(AgentDaemon, SimpleNamespace(exchanges=list, sums=sums, tunnels=[]))
        screen = Screen(nothing, broken=lambda: pytest.fail("it is not"))
        assert drawn == 1
        screen._drawn = 0.0  # it stood still for long: what comes is drawn at once
        screen.line("one")
        screen.line("two")
        await asyncio.sleep(0.01)
        assert drawn == 2
        screen.close()

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        runner.run(show())
    assert "one\ntwo\n" in capsys.readouterr().out


@LOOPS
def test_a_tunnel_that_ends_at_once_says_when(loop: object) -> None:
    async def ask() -> float | None:
        running = asyncio.get_running_loop()
        expiry = running.call_later(0.0001, lambda: None)
        return Running(None, None, expiry, running.time()).expires_in()  # type: ignore[arg-type]

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        assert runner.run(ask()) == 0
