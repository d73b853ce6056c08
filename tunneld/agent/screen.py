"""What `tunneld expose` shows on a terminal: the streams under way, live, below what has scrolled by; and a QR code."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tunneld.agent.daemon import AgentDaemon

__all__ = ["Screen"]

_QUICK = 0.1
"""Seconds between two pictures at least, however much happens."""
_AGES = 1.0
"""Seconds after which ages are drawn anew."""
_BURST = 50
"""Lines that scroll by with one picture; of more the newest are shown, and the others counted."""
_FRAME = 5  # lines of the picture beside its rows


class Screen:
    """Draws until it is closed.

    Args:
        agent: whose streams are shown.
        broken: called when the terminal is gone.
    """

    def __init__(self, agent: AgentDaemon, broken: Callable[[], None]) -> None:
        self._agent = agent
        self._broken = broken
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._lines: deque[str] = deque(maxlen=_BURST)
        self._left_out = 0
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Handle | None = None
        self._due = 0.0  # of `_next`, which does not tell: uvloop's handle of no delay has no `when`
        self._drawn = 0.0
        self._live.start()
        self._draw()

    def line(self, text: str) -> None:
        """Let one line scroll by, above the picture."""
        if len(self._lines) == _BURST:
            self._left_out += 1
        self._lines.append(text)
        self.changed()

    def changed(self) -> None:
        """Draw soon."""
        self._arm(max(0.0, self._drawn + _QUICK - monotonic()))

    def close(self) -> None:
        """Leave the terminal as it was, the lines that scrolled by on it. Idempotent."""
        if self._next is not None:
            self._next.cancel()
        if self._live.is_started:
            try:
                self._print_lines()
                self._live.stop()
            except OSError:  # nobody is there to see it
                pass

    def _arm(self, delay: float) -> None:
        due = self._loop.time() + delay
        if self._next is not None:
            if not self._next.cancelled() and self._due <= due:
                return
            self._next.cancel()
        self._next, self._due = self._loop.call_later(delay, self._draw), due

    def _draw(self) -> None:
        self._next = None
        self._drawn = monotonic()
        try:
            self._print_lines()
            self._live.update(self._picture(), refresh=True)
        except OSError:
            self._broken()
            return
        self._arm(_AGES)

    def _print_lines(self) -> None:
        if self._left_out:
            self._console.print(Text(f"… {self._left_out} lines more", style="dim"))
            self._left_out = 0
        while self._lines:
            self._console.print(Text(self._lines.popleft()))

    def _picture(self) -> Group:
        now = monotonic()
        live = [exchange.fields(now) for exchange in self._agent.exchanges()]
        _, received, sent = self._agent.sums()
        tunnel = self._agent.tunnels[0] if self._agent.tunnels else None
        words = [tunnel.state if tunnel is not None else "closed", f"{len(live)} under way"]
        if tunnel is not None and tunnel.round_trip is not None:
            words.append(f"rtt {tunnel.round_trip * 1000:.0f} ms")
        words.append(f"{_size(received)} in, {_size(sent)} out")
        head = Text(" · ".join(words), style="bold", overflow="ellipsis", no_wrap=True)
        if not live:
            return Group(Text(), head)
        return Group(Text(), head, self._table(live))

    def _table(self, live: list[dict[str, Any]]) -> Group:
        table = Table(box=None, pad_edge=False, expand=True, header_style="dim")
        table.add_column("", no_wrap=True)
        table.add_column("path", ratio=1, no_wrap=True, overflow="ellipsis")
        for name in ("client", "age", "in", "out", "events"):
            table.add_column(name, justify="left" if name == "client" else "right", no_wrap=True)
        room = max(1, self._console.height - _FRAME)
        for one in live[-room:]:
            events = str(one["events"]) if one["kind"] == "sse" else one["kind"]
            sizes = (_size(one["bytes_in"]), _size(one["bytes_out"]))
            cells = (one["method"], one["path"], one["client"] or "?", f"{one['age_s']:.0f} s", *sizes, events)
            table.add_row(*(Text(_printable(cell)) for cell in cells))
        if len(live) <= room:
            return Group(table)
        return Group(table, Text(f"and {len(live) - room} older ones", style="dim"))


def _printable(text: str) -> str:
    """The text without what could move a terminal's cursor."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
