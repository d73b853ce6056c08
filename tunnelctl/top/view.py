"""The live screen as lines of text: pure, for any width and height."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tunnelctl.render import Column, Screen, clean, duration, elide, size, table, width_of
from tunnelctl.top.board import SPARK, Board, Panel

__all__ = ["COLOURS", "Line", "draw"]

COLOURS = {
    "online": "green",
    "excellent": "green",
    "good": "green",
    "connecting": "yellow",
    "degraded": "yellow",
    "resuming": "yellow",
    "draining": "yellow",
    "fair": "yellow",
    "offline": "red",
    "failed": "red",
    "down": "red",
    "poor": "red",
}
_TUNNELS = (
    Column("TUNNEL", least=10),
    Column("STATE"),
    Column("GRADE"),
    Column("RTT", right=True),
    Column("ROUND TRIPS", drop=2),
    Column("LOSS", right=True, drop=4),
    Column("STREAMS", right=True),
    Column("UP", right=True, drop=3),
    Column("HEARD", right=True, drop=5),
    Column("RECONNECTS", right=True, drop=6),
    Column("PUBLIC URL", least=24, drop=7),
)
_STREAMS = (
    Column("PATH", least=16),
    Column("TUNNEL", least=8),
    Column("KIND", drop=6),
    Column("CLIENT", least=9, drop=2),
    Column("AGE", right=True),
    Column("IDLE", right=True, drop=4),
    Column("OUT", right=True, drop=3),
    Column("EVENTS", right=True, drop=1),
    Column("LAST ID", least=6, drop=5),
    Column("IN", right=True, drop=7),
)
_HELP = (
    ("Tab", "between tunnels and streams"),
    ("Up Down j k", "choose a row; PgUp, PgDn, Home, End too"),
    ("Enter  i", "all that is known of the row; Up, Down"),
    ("s  S", "sort by the next column; the other way round"),
    ("/", "filter: words that a row must have; Esc ends it"),
    ("c", "cancel the stream"),
    ("r", "let the tunnel reconnect"),
    ("q", "leave"),
)
_KEYS = ("q quit", "? help", "Tab panel", "s sort", "/ filter", "c cancel", "r reconnect", "i details")
"""Of the foot, those first that are missed most where it is narrow."""
_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-:=+*#"
_PLAIN = {ord("…"): "~", ord("·"): "-"}  # the signs of our own, where the terminal may not show them


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the screen.

    Attributes:
        text: perhaps with colour in it (ANSI).
        chosen: keys act on it.
        head: it heads a part.
    """

    text: str
    chosen: bool = False
    head: bool = False


def draw(board: Board, width: int, height: int, *, unicode: bool = True) -> list[Line]:
    """All lines of the screen, as many as it is high.

    Args:
        board: what there is.
        width: columns.
        height: lines.
        unicode: the terminal shows bars; else other signs stand for them.
    """
    screen = Screen(max(20, width - 2), True)
    lines = [Line(elide(_head(board), width), head=True)]
    room = max(4, height - 3)
    if board.mode == "help":
        lines += _scrolled(board, _pairs(_HELP, width), height - 3)
    elif board.mode == "details" and board.chosen is not None:
        lines += _scrolled(board, _pairs(_details(board.panel, board.chosen), width), height - 3)
    else:
        above = min(max(1, board.count("tunnels")), max(2, (room - 4) // 3))
        lines += _panel(board, "tunnels", above, screen, unicode)
        lines += [Line("")]
        lines += _panel(board, "streams", max(1, height - len(lines) - 3), screen, unicode)
    lines = lines[: height - 1]
    lines += [Line("")] * (height - 1 - len(lines))
    lines.append(Line(elide(_foot(board, width), width), head=board.mode in ("confirm", "filter")))
    return lines if unicode else [replace(one, text=one.text.translate(_PLAIN)) for one in lines]


def _head(board: Board) -> str:
    status = board.status
    received, sent = board.rates
    rates = f"{size(received)}/s in, {size(sent)}/s out"
    return clean(
        f"tunneld {status['version']} · {status['server'] or '-'} · up {duration(status['uptime_s'])} · {rates}"
    )


def _scrolled(board: Board, lines: list[Line], room: int) -> list[Line]:
    """As many of the lines as there is room for; above them stands whether there are more."""
    most = len(lines) - max(1, room)
    start = board.scrolled(most)
    more = "" if most <= 0 else f"  lines {start + 1}-{start + max(1, room)} of {len(lines)}: Up, Down"
    return [Line(more), *lines[start : start + max(1, room)]]


def _foot(board: Board, width: int) -> str:
    if board.mode == "confirm" and board.wish is not None:
        chosen = board.chosen or {}
        of = f"{chosen.get('path', '')} of {chosen.get('tunnel', '')}" if board.wish.what == "cancel" else board.wish.of
        return clean(f"{'Cancel' if board.wish.what == 'cancel' else 'Reconnect'} {of}? [y/N]")
    if board.mode == "filter":
        return clean(f"Filter: {board.filter}_")
    if board.mode in ("details", "help"):
        return "Esc goes back"
    if board.message:
        return clean(board.message)
    shown, *others = _KEYS
    for each in others:  # whole ones, as many as there is room for
        if len(f"{shown}  {each}") <= width:
            shown = f"{shown}  {each}"
    return shown


def _panel(board: Board, panel: Panel, room: int, screen: Screen, unicode: bool) -> list[Line]:
    rows, at = board.rows(panel), board.at(panel)
    active = board.panel == panel
    by, down = board.sort(panel)
    every = board.count(panel)
    shown = str(every) if len(rows) == every or not (board.whole or board.filter) else f"{len(rows)} of {every}"
    title = f"{'>' if active else ' '} {panel.upper()} {shown}, by {by}{' (largest first)' if down else ''}"
    title += f", with {board.filter!r}" if board.filter else ""
    lines = [Line(elide(clean(title), (screen.width or 80) + 2), head=active)]
    if not rows:
        return [*lines, Line("  none")]
    first = max(0, min(at - room // 2, len(rows) - room))
    part = rows[first : first + room]
    if panel == "tunnels":
        cells = [_tunnel(one, board, unicode) for one in part]
        made = table(_TUNNELS, cells, screen, paint=COLOURS)
    else:
        made = table(_STREAMS, [_stream(one) for one in part], screen)
    lines.append(Line(f"  {made[0]}"))
    for index, text in enumerate(made[1:], first):
        here = active and index == at
        lines.append(Line(f"{'>' if here else ' '} {text}", chosen=here))
    return lines


def _tunnel(one: dict[str, Any], board: Board, unicode: bool) -> tuple[Any, ...]:
    quality = one["quality"]
    rtt, loss = quality["rtt_ms"]["last"], quality["loss"]
    return (
        one["name"],
        one["state"],
        quality["grade"] or "-",
        "-" if rtt is None else f"{rtt:.1f}ms",
        _spark(board.sparks.get(one["name"], ()), unicode),
        "-" if loss is None else f"{loss:.1%}",
        one["active_streams"],
        duration(one["connected_s"]),
        duration(one["heartbeat"].get("last_byte_s")),
        one["reconnects"],
        one["public_url"] or "-",
    )


def _stream(one: dict[str, Any]) -> tuple[Any, ...]:
    return (
        one["path"],
        one["tunnel"],
        one["kind"],
        one["client"] or "-",
        duration(one["age_s"]),
        duration(one["idle_s"]),
        size(one["bytes_out"]),
        one["events"] if one["kind"] == "sse" else "-",
        one["last_event_id"] or "-",
        size(one["bytes_in"]),
    )


def _spark(values: Iterable[float | None], unicode: bool) -> str:
    bars = _BARS if unicode else _PLAIN_BARS
    known = [value for value in values if value is not None]
    top = max([1.0, *known])
    made = "".join(" " if each is None else bars[min(7, int(each / top * 7.99))] for each in values)
    return made.rjust(SPARK)


def _details(panel: Panel, one: dict[str, Any]) -> list[tuple[str, str]]:
    if panel == "streams":
        shown = {key: value for key, value in one.items() if not key.endswith("_s") and not key.startswith("bytes_")}
        rows = [(key.replace("_", " "), "-" if value is None else str(value)) for key, value in shown.items()]
        rows += [(key, duration(one[f"{key}_s"])) for key in ("age", "idle")]
        return [*rows, ("from the visitor", size(one["bytes_in"])), ("to the visitor", size(one["bytes_out"]))]
    quality, beat = one["quality"], one["heartbeat"]
    trips = quality["rtt_ms"]
    rows = [
        (key.replace("_", " "), str(one[key]))
        for key in ("name", "state", "service", "public_url", "host_url")
        if one.get(key)
    ]
    rows += [("last error", str(one["last_error"]))] if one["last_error"] else []
    rows += [
        ("grade", " - ".join(filter(None, (quality["grade"] or "not known yet", quality.get("reason"))))),
        (
            "round trip",
            ", ".join(f"{key} {trips[key]:.1f} ms" for key in ("last", "p50", "p95") if trips[key] is not None) or "-",
        ),
        ("jitter", "-" if quality["jitter_ms"] is None else f"{quality['jitter_ms']:.1f} ms"),
        (
            "queueing",
            "-" if quality.get("queue_ms") is None else f"{quality['queue_ms']:.1f} ms of the last round trip",
        ),
        ("loss", "-" if quality["loss"] is None else f"{quality['loss']:.1%}"),
        ("heartbeat", f"every {duration(beat['interval_s'])}, answered {duration(beat['last_pong_s'])} ago"),
        ("heard", f"{duration(beat.get('last_byte_s'))} ago"),
        ("connected", f"for {duration(one['connected_s'])}, {one['reconnects']} reconnects"),
        ("streams", str(one["active_streams"])),
    ]
    if outages := one.get("outages"):
        rows.append(
            (
                "outages",
                f"{outages['count']}, {duration(outages['seconds'])} in sum, {outages['streams_lost']} streams lost",
            )
        )
    return rows


def _pairs(rows: Iterable[tuple[str, str]], width: int) -> list[Line]:
    """Name and value a line; long values go on in the next one."""
    lines = []
    room = max(10, width - 22)
    for name, value in rows:
        rest, head = clean(value), f"  {name:<18}"
        while True:
            piece = rest[:room]
            while width_of(piece) > room:
                piece = piece[:-1]
            lines.append(Line(f"{head}{piece}"))
            rest, head = rest[len(piece) :], " " * 20
            if not rest:
                break
    return lines
