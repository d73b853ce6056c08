"""What the live screen knows, and what each key does to it. Pure: answers and keys go in, wishes come out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tunneld.control.quick import OLDEST

__all__ = ["SORTS", "Board", "Wish"]

Panel = Literal["tunnels", "streams"]
SPARK = 12
"""Round trips that a sparkline shows."""
_PAGE = 10
_GRADES = ("excellent", "good", "fair", "poor", "down")

_Order = Callable[[Any], Any]
SORTS: dict[Panel, tuple[tuple[str, _Order], ...]] = {
    "tunnels": (
        ("name", lambda one: one["name"]),
        ("state", lambda one: one["state"]),
        ("grade", lambda one: _GRADES.index(one["quality"]["grade"] or "down")),
        ("rtt", lambda one: one["quality"]["rtt_ms"]["last"] or 0.0),
        ("streams", lambda one: one["active_streams"]),
    ),
    "streams": (
        ("age", lambda one: one["age_s"]),
        ("idle", lambda one: one["idle_s"]),
        ("path", lambda one: one["path"]),
        ("tunnel", lambda one: one["tunnel"]),
        ("client", lambda one: one["client"]),
        ("bytes", lambda one: one["bytes_in"] + one["bytes_out"]),
        ("events", lambda one: one["events"]),
    ),
}
_MOVES = {
    "up": -1, "k": -1, "down": 1, "j": 1, "pageup": -_PAGE, "pagedown": _PAGE,
    "home": -(10**9), "g": -(10**9), "end": 10**9, "G": 10**9,
}  # fmt: skip
_DOWN = frozenset({"rtt", "bytes", "events", "age", "idle"})  # the largest first
_KEYS: dict[Panel, str] = {"tunnels": "name", "streams": "request_id"}
_SEARCHED: dict[Panel, tuple[str, ...]] = {
    "tunnels": ("name", "state", "service", "public_url", "last_error"),
    "streams": ("path", "tunnel", "client", "kind", "method", "state", "request_id", "last_event_id"),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be asked of the daemon, or ``quit``; ``look``: all that there is, now.

    Attributes:
        what: of the four.
        of: the request id, or the tunnel's name.
    """

    what: Literal["quit", "cancel", "reconnect", "look"]
    of: str = ""


class Board:
    """The state of the screen.

    Attributes:
        panel: that the keys move in.
        mode: ``list``; ``filter`` while its text is typed; ``confirm`` before a wish; ``details``; ``help``.
        filter: words that all have to be found in a row.
        message: of the last wish, or of the last failure.
        wish: that waits for a yes.
        whole: all streams are known, and not just the oldest.
    """

    def __init__(self) -> None:
        self.panel: Panel = "tunnels"
        self.mode: Literal["list", "filter", "confirm", "details", "help"] = "list"
        self.filter = ""
        self.message = ""
        self.status: dict[str, Any] = {}
        self.wish: Wish | None = None
        self.whole = True
        self.sparks: dict[str, deque[float | None]] = {}
        self.rates = (0.0, 0.0)
        self._scroll = 0
        self._rows: dict[Panel, list[dict[str, Any]]] = {"tunnels": [], "streams": []}
        self._at: dict[Panel, int] = {"tunnels": 0, "streams": 0}
        self._chosen: dict[Panel, str] = {"tunnels": "", "streams": ""}
        self._sorts: dict[Panel, tuple[int, bool]] = {"tunnels": (0, False), "streams": (0, True)}
        self._last: tuple[float, int, int] | None = None

    # -- what there is -----------------------------------------------------------------------------------

    def wants(self, height: int) -> int | None:
        """How many of the oldest streams are enough for a screen of so many lines; None: all are needed.

        An agent of ten thousand streams would be held up each second for a list of which twenty are shown.
        """
        if self.panel == "streams" or self._at["streams"] or self.filter or self.sort("streams") != ("age", True):
            return None
        return next((step for step in OLDEST if step >= height), None)

    def take(self, status: dict[str, Any], streams: list[dict[str, Any]], now: float, *, whole: bool = True) -> None:
        """A fresh answer of the daemon.

        Args:
            now: monotonic seconds.
            whole: `streams` are all, and not just the oldest.
        """
        self.status, self.whole = status, whole
        self._rows = {"tunnels": status["tunnels"], "streams": streams}
        totals = status["totals"]
        received, sent = totals["bytes_in"], totals["bytes_out"]
        if self._last is not None and now > self._last[0]:
            elapsed = now - self._last[0]
            self.rates = max(0, received - self._last[1]) / elapsed, max(0, sent - self._last[2]) / elapsed
        self._last = now, received, sent
        names = {one["name"] for one in status["tunnels"]}
        self.sparks = {name: spark for name, spark in self.sparks.items() if name in names}
        for one in status["tunnels"]:
            up = one["state"] in ("online", "degraded")
            spark = self.sparks.setdefault(one["name"], deque(maxlen=SPARK))
            spark.append(one["quality"]["rtt_ms"]["last"] if up else None)
        for panel in ("tunnels", "streams"):
            self._settle(panel)

    def rows(self, panel: Panel) -> list[dict[str, Any]]:
        """What fits the filter, in order."""
        words = self.filter.lower().split()
        found = [one for one in self._rows[panel] if _fits(one, words, _SEARCHED[panel])]
        number, down = self._sorts[panel]
        return sorted(found, key=SORTS[panel][number][1], reverse=down)

    def count(self, panel: Panel) -> int:
        """Rows without the filter, those that are not known here among them."""
        known = len(self._rows[panel])
        return known if self.whole or panel == "tunnels" else max(known, self.status["totals"]["active_streams"])

    def at(self, panel: Panel) -> int:
        """The chosen row's place in `rows`."""
        return self._at[panel]

    def sort(self, panel: Panel) -> tuple[str, bool]:
        """What the rows are sorted by, and whether the largest come first."""
        number, down = self._sorts[panel]
        return SORTS[panel][number][0], down

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The row that keys act on."""
        rows = self.rows(self.panel)
        return rows[self._at[self.panel]] if rows else None

    def scrolled(self, most: int) -> int:
        """Lines of the details, or of the help, that were scrolled away: at most so many."""
        self._scroll = min(self._scroll, max(0, most))
        return self._scroll

    # -- keys --------------------------------------------------------------------------------------------

    def key(self, key: str) -> Wish | None:
        """Take one key: a character, or ``up down pageup pagedown home end enter escape backspace tab``."""
        if self.mode == "filter":
            self._type(key)
            return None
        if self.mode == "confirm":
            return self._answer(key)
        if self.mode in ("details", "help"):
            if key in ("q", "escape", "enter", "?", "i"):
                self.mode = "list"
                return None
            if key in _MOVES:
                self._scroll = max(0, self._scroll + _MOVES[key])
                return None
            if self.mode == "help" or key not in ("c", "r"):
                return None
            self.mode = "list"
        return self._command(key)

    def _command(self, key: str) -> Wish | None:
        if key == "q":
            return Wish("quit")
        if key in _MOVES:
            self._move(_MOVES[key])
        elif key == "tab":
            self.panel = "streams" if self.panel == "tunnels" else "tunnels"
        elif key == "s":
            number, _ = self._sorts[self.panel]
            number = (number + 1) % len(SORTS[self.panel])
            self._sorts[self.panel] = number, SORTS[self.panel][number][0] in _DOWN
            self._settle(self.panel)
        elif key == "S":
            number, down = self._sorts[self.panel]
            self._sorts[self.panel] = number, not down
            self._settle(self.panel)
        elif key == "/":
            self.mode = "filter"
        elif key == "escape":
            self._filter("")
            self.message = ""
        elif key in ("enter", "i") and self.chosen is not None:
            self.mode, self._scroll = "details", 0
        elif key in ("?", "h"):
            self.mode, self._scroll = "help", 0
        elif key in ("c", "r"):
            self._ask(key)
        return None

    def _ask(self, key: str) -> None:
        chosen = self.chosen
        if key == "c" and (self.panel != "streams" or chosen is None):
            self.message = "Choose a stream first: Tab goes to the streams."
        elif key == "r" and (self.panel != "tunnels" or chosen is None):
            self.message = "Choose a tunnel first: Tab goes to the tunnels."
        elif chosen is not None:
            self.wish = Wish("cancel" if key == "c" else "reconnect", chosen[_KEYS[self.panel]])
            self.mode = "confirm"

    def _answer(self, key: str) -> Wish | None:
        wish, self.wish = self.wish, None
        self.mode = "list"
        if key in ("y", "Y"):
            return wish
        self.message = "Nothing was done."
        return None

    def _type(self, key: str) -> None:
        if key == "enter":
            self.mode = "list"
        elif key == "escape":
            self.mode = "list"
            self._filter("")
        elif key == "backspace":
            self._filter(self.filter[:-1])
        elif len(key) == 1 and key.isprintable():
            self._filter(self.filter + key)

    def _filter(self, text: str) -> None:
        self.filter = text
        for panel in ("tunnels", "streams"):
            self._settle(panel)

    def _move(self, by: int) -> None:
        rows = self.rows(self.panel)
        if rows:
            self._at[self.panel] = min(len(rows) - 1, max(0, self._at[self.panel] + by))
            self._chosen[self.panel] = rows[self._at[self.panel]][_KEYS[self.panel]]

    def _settle(self, panel: Panel) -> None:
        """Stay on the chosen row wherever it went; where it is gone, at its place."""
        keys = [one[_KEYS[panel]] for one in self.rows(panel)]
        if self._chosen[panel] in keys:
            self._at[panel] = keys.index(self._chosen[panel])
        else:
            self._at[panel] = max(0, min(self._at[panel], len(keys) - 1))
            self._chosen[panel] = keys[self._at[panel]] if keys else ""


def _fits(row: dict[str, Any], words: list[str], keys: tuple[str, ...]) -> bool:
    if not words:
        return True
    quality = row.get("quality") or {}
    text = " ".join(str(row.get(key) or "") for key in keys).lower() + f" {quality.get('grade') or ''}"
    return all(word in text for word in words)
