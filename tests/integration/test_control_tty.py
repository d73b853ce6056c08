"""What tunnelctl does on a terminal: it asks, it paints, it fits."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.control_agent import MemoryAgent, stream_info
from tests.support.terminal import Terminal
from tunneld.control.app import create_app
from tunneld.control.listener import ControlServer


@pytest.fixture
def agent() -> MemoryAgent:
    agent = MemoryAgent()
    agent.add(stream_info("aa11"), stream_info("aa22"), stream_info("bb33", tunnel="other", path="/" + "x" * 200))
    return agent


@pytest.fixture
async def path(agent: MemoryAgent, folder: Path) -> AsyncIterator[str]:
    async with ControlServer(lambda: create_app(agent), folder / "c.sock"):
        yield str(folder / "c.sock")


@pytest.fixture
async def terminal() -> AsyncIterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.mark.parametrize("words", [["--tunnel", "demo"], ["aa11", "aa22"]])
@pytest.mark.parametrize(("answer", "status", "left"), [("y\n", 0, 1), ("n\n", 1, 3), ("\n", 1, 3), ("\x04", 1, 3)])
async def test_cancel_asks_before_several(
    agent: MemoryAgent, path: str, terminal: Terminal, words: list[str], answer: str, status: int, left: int
) -> None:
    process = await terminal.run("tunnelctl", "cancel", *words, "--socket", path)
    await terminal.until("Cancel these 2 streams? [y/N] ")
    assert len(agent.live) == 3
    terminal.type(answer)
    assert await process.wait() == status
    assert len(agent.live) == left


async def test_what_came_after_the_question_is_not_cancelled(agent: MemoryAgent, path: str, terminal: Terminal) -> None:
    process = await terminal.run("tunnelctl", "cancel", "--all", "--socket", path)
    await terminal.until("Cancel these 3 streams? [y/N] ")
    agent.add(stream_info("late"))
    del agent.live["aa11"]
    terminal.type("yes\n")
    assert await process.wait() == 1  # one of them had ended by itself
    await terminal.until("aa11 had already ended")
    assert set(agent.live) == {"late"}


async def test_ctrl_c_at_the_question_cancels_nothing(agent: MemoryAgent, path: str, terminal: Terminal) -> None:
    process = await terminal.run("tunnelctl", "cancel", "--all", "--socket", path)
    await terminal.until("[y/N] ")
    process.send_signal(2)
    assert await process.wait() == 130
    assert len(agent.live) == 3


@pytest.mark.parametrize("words", [["--all", "--yes"], ["--tunnel", "other"], ["bb"]])
async def test_cancel_does_not_ask(agent: MemoryAgent, path: str, terminal: Terminal, words: list[str]) -> None:
    process = await terminal.run("tunnelctl", "cancel", *words, "--socket", path)
    assert await process.wait() == 0
    assert "bb33" not in agent.live


async def test_top_that_is_told_to_end_leaves_the_terminal_as_it_was(path: str, terminal: Terminal) -> None:
    process = await terminal.run("tunnelctl", "top", "--socket", path)
    await terminal.until("TUNNELS")
    await terminal.until("q quit")
    process.terminate()
    assert await process.wait() == 128 + 15
    await terminal.until("\x1b[?1049l")
    assert "\x1b[?25h" in terminal.shown


@pytest.mark.parametrize(("env", "painted"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
async def test_colour_only_where_it_is_wanted(
    path: str, terminal: Terminal, env: dict[str, str], painted: bool
) -> None:
    process = await terminal.run("tunnelctl", "status", "--socket", path, **env)
    assert await process.wait() == 0
    await terminal.until("MiB out")
    assert ("\x1b[32monline\x1b[0m" in terminal.shown) is painted
    assert ("\x1b" in terminal.shown) is painted


async def test_tables_fit_the_terminal(path: str) -> None:
    terminal = Terminal(columns=61)
    process = await terminal.run("tunnelctl", "streams", "--socket", path)
    assert await process.wait() == 0
    await terminal.until("bb33")
    await terminal.until("\r\n")
    lines = re.sub(r"\x1b\[\d*m", "", terminal.shown).splitlines()
    assert max(map(len, lines)) <= 61
    assert any("…" in line for line in lines)
    terminal.close()
