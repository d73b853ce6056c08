"""How things look: tables that fit, times and sizes for people, colour, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunneld.errors import UsageError

__all__ = [
    "Column",
    "Screen",
    "clean",
    "duration",
    "elide",
    "parse_duration",
    "plural",
    "safe_json",
    "size",
    "table",
    "to_json",
    "width_of",
]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ANSI = {"green": "32", "yellow": "33", "red": "31", "dim": "2", "bold": "1"}
_CONTROLS = re.compile("[\x7f-\x9f]")
_GAP = 2


@dataclass(frozen=True, slots=True)
class Screen:
    """What stdout is: its width in columns (None: no limit) and whether it takes colour."""

    width: int | None
    colour: bool

    @classmethod
    def of_stdout(cls) -> Screen:
        """Look at stdout and the environment: COLUMNS, NO_COLOR, TERM. A pipe has no width."""
        terminal = sys.stdout.isatty()
        colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        columns = os.environ.get("COLUMNS", "")
        if columns.isdecimal() and int(columns) > 0:
            return cls(int(columns), colour)
        if not terminal:
            return cls(None, colour)
        try:
            return cls(os.get_terminal_size(sys.stdout.fileno()).columns or 80, colour)
        except OSError:
            return cls(80, colour)

    def paint(self, text: str, colour: str | None) -> str:
        """Return the text in that colour where colour is wanted."""
        return f"\x1b[{_ANSI[colour]}m{text}\x1b[0m" if self.colour and colour else text


def clean(value: object) -> str:
    """Return text that is safe to show: a visitor chooses paths and ids, and a terminal obeys control characters."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def to_json(value: object) -> str:
    """Return indented JSON, not escaped but for what a terminal would obey."""
    return safe_json(json.dumps(value, ensure_ascii=False, indent=2))


def safe_json(text: str) -> str:
    """Escape in JSON text what JSON lets stand and a terminal would obey."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def width_of(text: str) -> int:
    """Return the columns that the text takes: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    import unicodedata

    total = 0
    for one in text:
        if unicodedata.combining(one):
            continue
        total += 2 if unicodedata.east_asian_width(one) in "WF" else 1
    return total


def _cut(text: str, width: int) -> str:
    """Return the longest beginning that fits."""
    taken = 0
    for index, one in enumerate(text):
        taken += width_of(one)
        if taken > width:
            return text[:index]
    return text


def elide(text: str, width: int) -> str:
    """Shorten to at most `width` columns, leaving out the middle, where paths and addresses say least."""
    if width_of(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    head = _cut(text, width // 2)
    tail = _cut(text[::-1], width - 1 - width_of(head))[::-1]
    return f"{head}…{tail}"


def duration(seconds: float | None) -> str:
    """Return ``0.4s``, ``12s``, ``3m 20s``, ``5h 1m``, ``2d 3h``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return _two(whole // 60, "m", whole % 60, "s")
    if whole < 86400:
        return _two(whole // 3600, "h", whole % 3600 // 60, "m")
    return _two(whole // 86400, "d", whole % 86400 // 3600, "h")


def _two(first: int, unit: str, rest: int, small: str) -> str:
    return f"{first}{unit} {rest}{small}" if rest else f"{first}{unit}"


def plural(count: int, word: str) -> str:
    """So many of something, as one says it."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def size(count: float) -> str:
    """Return ``812 B``, ``1.5 KiB``, ``240 MiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if count < 1023.5 or unit == "TiB":
            break
    return f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"


def parse_duration(text: str) -> float:
    """Return the seconds of ``500ms``, ``30s``, ``2m``, ``1h30m`` or a plain number.

    Raises:
        UsageError: it is none of these.
    """
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+", text):
        return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9.]+)(ms|s|m|h|d)", text))
    raise UsageError(f"{text!r} is not a duration; write 500ms, 30s, 2m, 1h or plain seconds")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        title: its head.
        right: numbers stand at the right.
        least: columns to which it may be elided; 0: never elided.
        drop: when the table does not fit, columns with the highest number go first; 0 stays.
    """

    title: str
    right: bool = False
    least: int = 0
    drop: int = 0


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Any]],
    screen: Screen,
    *,
    paint: dict[str, str] | None = None,
) -> list[str]:
    """Return the lines of a table that fits the screen.

    Args:
        columns: as many as each row has cells.
        rows: of anything that `clean` takes.
        screen: where it is shown.
        paint: colour of a cell by its text.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [
        max([width_of(column.title), *(width_of(row[index]) for row in cells)]) for index, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    if screen.width is not None:
        shown = _fit(columns, widths, shown, screen.width)
    lines = [_line([columns[i].title for i in shown], columns, widths, shown, screen, head=True)]
    lines += [_line([row[i] for i in shown], columns, widths, shown, screen, paint=paint or {}) for row in cells]
    return lines


def _fit(columns: Sequence[Column], widths: list[int], shown: list[int], width: int) -> list[int]:
    """Leave columns out, then narrow those that may be, the widest first; change `widths`, return what stays."""

    def over() -> int:
        return sum(widths[i] for i in shown) + _GAP * (len(shown) - 1) - width

    def slack() -> int:
        return sum(max(0, widths[i] - columns[i].least) for i in shown if columns[i].least)

    while over() > slack():
        going = max(shown, key=lambda i: columns[i].drop)
        if not columns[going].drop:
            break
        shown = [i for i in shown if i != going]
    while over() > 0:
        narrow = [i for i in shown if columns[i].least and widths[i] > columns[i].least]
        if not narrow:
            # Nothing is left to give by right: the widest gives, or the table is wider than the terminal.
            narrow = [i for i in shown if widths[i] > 1]
            if not narrow:
                break
        widths[max(narrow, key=lambda i: widths[i])] -= 1
    return shown


def _line(
    cells: Sequence[str],
    columns: Sequence[Column],
    widths: Sequence[int],
    shown: Sequence[int],
    screen: Screen,
    *,
    head: bool = False,
    paint: dict[str, str] | None = None,
) -> str:
    parts = []
    for cell, index in zip(cells, shown, strict=True):
        text = elide(cell, widths[index])
        pad = " " * (widths[index] - width_of(text))
        colour = "bold" if head else (paint or {}).get(cell)
        painted = screen.paint(text, colour)
        if columns[index].right:
            parts.append(pad + painted)
        else:
            parts.append(painted + ("" if index == shown[-1] else pad))
    return (" " * _GAP).join(parts)
