"""``tunnelctl top``: the terminal around `Board` and `draw`. rich paints, a thread asks the daemon, keys come raw."""

from __future__ import annotations

import argparse
import os
import queue
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any
from urllib.parse import quote

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tunnelctl.client import Client, Refused, Unreachable
from tunnelctl.render import parse_duration, to_json
from tunnelctl.top.board import Board, Wish
from tunnelctl.top.view import Line, draw
from tunneld.errors import UsageError

__all__ = ["parse_keys", "run"]

_SEQUENCES = {
    "[A": "up", "[B": "down", "OA": "up", "OB": "down", "[5~": "pageup", "[6~": "pagedown", "[H": "home", "[F": "end",
    "OH": "home", "OF": "end", "[1~": "home", "[4~": "end",
}  # fmt: skip
_PATIENCE = 1.0
"""Seconds that a key waits for streams which were not asked for before."""
_NAMED = {"\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace", "\x03": "q"}


def run(client: Client, args: argparse.Namespace) -> int:
    """Show the screen until q; without a terminal print it once; the exit status."""
    interval = parse_duration(args.interval)
    if not 0.1 <= interval <= 3600:
        raise UsageError("--interval: give 100ms to 1h")
    status, streams, _ = _ask(client)
    if args.json:
        print(to_json({"status": status, "streams": streams}))
        return 0
    board = Board()
    board.take(status, streams, monotonic())
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        width = int(os.environ.get("COLUMNS", "") or 120) if os.environ.get("COLUMNS", "120").isdecimal() else 120
        rows = 8 + len(status["tunnels"]) * 3 + len(streams)
        for line in draw(board, width, rows)[:-1]:
            if text := Text.from_ansi(line.text).plain.rstrip():
                print(text)
        return 0
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        raise UsageError("top needs a terminal whose cursor moves, and TERM says that this has none; see streams")
    _Live(client, board, interval).run()
    return 0


def _ask(client: Client, oldest: int | None = None) -> tuple[dict[str, Any], list[dict[str, Any]], bool]:
    """The status, the streams or so many of the oldest, and whether these are all."""
    status = client.call("GET", "/v1/status?streams=true" + ("" if oldest is None else f"&oldest={oldest}"))
    streams = status.pop("streams", None)
    if streams is None:  # a daemon that does not know the question
        streams = client.call("GET", "/v1/streams")["streams"]
    return status, streams, oldest is None or len(streams) != oldest


def parse_keys(data: str) -> Iterator[str]:
    """The keys of what a terminal sent: characters as they are, others by name; unknown sequences are passed over."""
    place = 0
    while place < len(data):
        one = data[place]
        place += 1
        if one != "\x1b":
            yield _NAMED.get(one, one)
            continue
        if place == len(data) or data[place] not in "[O":
            yield "escape"
            continue
        end = place + 1
        while end < len(data) and not (data[end].isalpha() or data[end] == "~"):
            end += 1
        found = _SEQUENCES.get(data[place : end + 1])
        place = end + 1
        if found is not None:
            yield found


class _Live:
    """The screen of one run.

    Args:
        client: used by the thread alone from here on.
        board: with a first answer.
        interval: seconds between two questions.
    """

    def __init__(self, client: Client, board: Board, interval: float) -> None:
        self._client = client
        self._board = board
        self._interval = interval
        self._oldest: int | None = None  # streams that are asked for
        self._wishes: queue.SimpleQueue[Wish | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)

    def run(self) -> None:
        """Until q, Ctrl-C or the end of the terminal."""
        asker = threading.Thread(target=self._work, name="asker", daemon=True)
        asker.start()
        console = Console(highlight=False, markup=False, emoji=False)
        try:
            with self._raw(), Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False) as live:
                self._loop(console, live)
        except KeyboardInterrupt:  # how one ends it, too
            pass
        finally:
            self._wishes.put(None)
            self._client.abort()
            asker.join(2)

    def _loop(self, console: Console, live: Live) -> None:
        unicode = (console.encoding or "").lower().startswith("utf")
        keys = sys.stdin.fileno()
        while True:
            width, height = console.size
            self._oldest = self._board.wants(height)
            lines = draw(self._board, width, height, unicode=unicode)
            live.update(Group(*(_painted(line) for line in lines)), refresh=True)
            ready, _, _ = select.select([keys, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._take()
            if keys in ready:
                data = os.read(keys, 1024)
                if not data:
                    return
                for key in parse_keys(data.decode(errors="replace")):
                    wish = self._board.key(key)
                    if wish is not None and wish.what == "quit":
                        return
                    if wish is not None:
                        self._board.message = f"{wish.what} {wish.of} …"
                        self._wishes.put(wish)
                    if self._oldest is not None and self._board.wants(height) is None:
                        self._complete()

    def _complete(self) -> None:
        """Have all streams, on which the next key may depend, or go on without them after a moment."""
        self._oldest = None
        self._wishes.put(Wish("look"))
        until = monotonic() + _PATIENCE
        while not self._board.whole and (left := until - monotonic()) > 0:
            if select.select([self._woken], [], [], left)[0]:
                os.read(self._woken, 4096)
                self._take()

    def _take(self) -> None:
        while not self._answers.empty():
            kind, value = self._answers.get()
            if kind == "all":
                status, streams, whole = value
                self._board.take(status, streams, monotonic(), whole=whole)
            else:
                self._board.message = value

    # -- the thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        lost = False
        while True:
            try:
                wish = self._wishes.get(timeout=self._interval)
                if wish is None:
                    return
                if wish.what != "look":
                    self._tell("said", self._do(wish))
            except queue.Empty:
                pass
            except (Unreachable, Refused) as error:
                self._tell("said", str(error))
            try:
                self._tell("all", _ask(self._client, self._oldest))
                if lost:
                    self._tell("said", "It answers again.")
                lost = False
            except (Unreachable, Refused) as error:
                lost = True
                self._tell("said", f"{error}; trying again")

    def _do(self, wish: Wish) -> str:
        name = quote(wish.of, safe="")
        if wish.what == "cancel":
            self._client.call("DELETE", f"/v1/streams/{name}")
            return f"cancelled {wish.of}"
        self._client.call("POST", f"/v1/tunnels/{name}/reconnect")
        return f"{wish.of} dials again"

    def _tell(self, kind: str, value: Any) -> None:
        self._answers.put((kind, value))
        self._poke()

    def _poke(self) -> None:
        try:
            os.write(self._wake, b"x")
        except OSError:  # it is full, so that the screen wakes anyway; or it is closed
            pass

    # -- the terminal ------------------------------------------------------------------------------------

    @contextmanager
    def _raw(self) -> Iterator[None]:
        """Keys as they are typed; another size of the terminal wakes the loop; SIGTERM leaves it as it was."""
        stdin = sys.stdin.fileno()
        before = termios.tcgetattr(stdin)
        resized = signal.signal(signal.SIGWINCH, lambda *_: self._poke())
        ended = signal.signal(signal.SIGTERM, _leave)
        try:
            tty.setcbreak(stdin)
            yield
        finally:
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)
            signal.signal(signal.SIGWINCH, resized)
            signal.signal(signal.SIGTERM, ended)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _painted(line: Line) -> Text:
    text = Text.from_ansi(line.text)
    text.no_wrap, text.overflow = True, "crop"
    if line.chosen:
        text.stylize("reverse")
    elif line.head:
        text.stylize("bold")
    return text
