"""`tunneld expose` on a terminal: a QR code of the address, streams live, Ctrl-C, and a window that is closed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import segno

from tests.support.daemons import Server
from tests.support.services import SampleService
from tests.support.terminal import Terminal
from tunneld.agent.qr import drawn

SHOW_CURSOR = "\x1b[?25h"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    made = Server(folder)
    yield made
    made.process.stop()


@pytest.fixture
def service() -> Iterator[SampleService]:
    made = SampleService()
    yield made
    made.stop()


@pytest.fixture
async def terminal() -> AsyncIterator[Terminal]:
    made = Terminal(100)
    yield made
    made.close()


def modules(lines: list[str]) -> list[list[bool]]:
    """The dark modules that half blocks show, two rows a line."""
    dark = {"█": (False, False), "▀": (False, True), "▄": (True, False), " ": (True, True)}
    rows: list[list[bool]] = []
    for line in lines:
        pairs = [dark[char] for char in line]
        rows += [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
    return rows


async def test_streams_are_shown_live_and_ctrl_c_closes_it(
    server: Server, service: SampleService, terminal: Terminal
) -> None:
    process = await terminal.run(
        "tunneld", "expose", str(service.port), "--name", "mine", "--server", server.tunnel_url, "--qr", NO_COLOR="1"
    )
    await terminal.until("Ctrl-C ends it.")
    head, *code = terminal.shown.partition("Ctrl-C")[0].replace("\r", "").splitlines()
    assert head == f"{server.url('mine')} -> {service.url}"
    expected = segno.make(server.url("mine"), error="l", micro=False, boost_error=False)
    rows = [[bool(module) for module in row] for row in expected.matrix_iter(border=2)]
    shown = [line for line in code if re.fullmatch("[█▀▄ ]+", line)]
    assert modules(shown)[: len(rows)] == rows
    await terminal.until("online · 0 under way")
    async with (
        httpx.AsyncClient(timeout=10) as visitor,
        visitor.stream("GET", server.url("mine", "/events?id=seen&gap=0.3")) as answer,
    ):
        pieces = answer.aiter_bytes()
        await anext(pieces)
        await terminal.until("1 under way")
        await terminal.until("/events?id=seen&gap=0.3")
        for age in range(3):
            await terminal.until(f"  {age} s ")  # it is live
    await terminal.until("/events?id=seen&gap=0.3  127.0.0.1  visitor after")
    terminal.type("\x03")
    assert await process.wait() == 0
    assert terminal.shown.rindex(SHOW_CURSOR) > terminal.shown.index("under way")
    async with httpx.AsyncClient(timeout=10) as visitor:
        assert (await visitor.get(server.url("mine"))).status_code == 503


async def test_a_window_that_is_closed_ends_it(server: Server, service: SampleService, terminal: Terminal) -> None:
    process = await terminal.run(
        "tunneld", "expose", str(service.port), "--name", "mine", "--server", server.tunnel_url
    )
    await terminal.until("0 under way")
    terminal.close()
    assert await process.wait() == 0
    async with httpx.AsyncClient(timeout=10) as visitor:
        assert (await visitor.get(server.url("mine"))).status_code == 503


async def test_a_terminal_that_draws_nothing_gets_lines(
    server: Server, service: SampleService, terminal: Terminal
) -> None:
    process = await terminal.run(
        "tunneld", "expose", str(service.port), "--name", "mine", "--server", server.tunnel_url, TERM="dumb"
    )
    await terminal.until("Who visits:")
    async with httpx.AsyncClient(timeout=10) as visitor:
        await visitor.get(server.url("mine", "/small"))
    await terminal.until("GET /small  127.0.0.1  done after")
    assert "\x1b" not in terminal.shown
    process.terminate()
    assert await process.wait() == 0


def test_with_colour_light_is_white_and_dark_is_black() -> None:
    plain, coloured = drawn("http://x/", colour=False), drawn("http://x/", colour=True)
    assert coloured == [f"\x1b[97;40m{line}\x1b[0m" for line in plain]
    assert len({len(line) for line in plain}) == 1
