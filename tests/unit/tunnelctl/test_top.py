"""The live screen without a terminal: keys on a board, lines of any size, and what a terminal sends for keys."""

from typing import Any

import pytest
from rich.text import Text

from tests.support.control_agent import MemoryAgent, stream_info, tunnel_status
from tunnelctl.render import width_of
from tunnelctl.top.board import SORTS, Board, Wish
from tunnelctl.top.command import parse_keys
from tunnelctl.top.view import draw


def board(streams: int = 3, tunnels: int = 2) -> Board:
    agent = MemoryAgent()
    agent.tunnels = {}
    for index in range(tunnels):
        quality = {"rtt_ms": {"last": 10.0 * (index + 1), "p50": 10.0, "p95": 12.0}, "jitter_ms": 1.0, "loss": 0.01,
                   "grade": "good", "reason": "p95 12 ms > 10 ms"}  # fmt: skip
        name = f"tunnel-{index}"
        agent.tunnels[name] = tunnel_status(name, quality=quality, active_streams=index)
    made = Board()
    found = [
        dict(stream_info(f"id{index:02}", path=f"/sse?n={index}", tunnel=f"tunnel-{index % max(1, tunnels)}",
                         age_s=float(index), events=100 - index)) for index in range(streams)
    ]  # fmt: skip
    made.take(agent.status(), found, 1.0)  # type: ignore[arg-type]
    return made


def press(made: Board, *keys: str) -> Wish | None:
    wish = None
    for key in keys:
        wish = made.key(key)
    return wish


def shown(made: Board, width: int = 80, height: int = 24, **how: Any) -> list[str]:
    return [Text.from_ansi(line.text).plain for line in draw(made, width, height, **how)]


def test_keys_move_and_the_choice_stays_on_its_row() -> None:
    made = board()
    assert press(made, "tab", "down") is None
    assert made.chosen is not None
    assert made.chosen["request_id"] == "id01"  # the oldest first
    before = made.chosen["request_id"]
    press(made, "S")
    assert made.chosen["request_id"] == before
    press(made, "end")
    assert made.chosen["request_id"] == "id02"
    made.take(made.status, [row for row in made.rows("streams") if row["request_id"] != "id02"], 2.0)
    assert made.chosen["request_id"] == "id01"
    made.take(made.status, [], 3.0)
    assert made.chosen is None


def test_few_streams_are_wanted_until_a_key_depends_on_the_others() -> None:
    made = board(streams=60)
    assert [made.wants(height) for height in (10, 24, 25, 26, 80, 101)] == [25, 25, 25, 50, 100, None]
    for keys in (("tab",), ("/", "x"), ("tab", "s", "tab"), ("tab", "S", "tab"), ("tab", "down", "tab")):
        made = board(streams=60)
        press(made, *keys)
        assert made.wants(24) is None, keys
    press(made, "tab", "home", "tab")
    assert made.wants(24) == 25


def test_a_screen_of_the_oldest_says_how_many_there_are() -> None:
    made = board(streams=60)
    rows = made.rows("streams")
    made.status["totals"]["active_streams"] = 60
    whole = shown(made)
    made.take(made.status, rows[:25], 2.0, whole=False)
    first = next(index for index, line in enumerate(whole) if "STREAMS 60, by age" in line)
    assert shown(made)[first:] == whole[first:]


def test_every_column_sorts() -> None:
    made = board()
    for panel in ("tunnels", "streams"):
        seen = []
        for _ in SORTS[made.panel]:
            press(made, "s")
            seen.append(made.sort(made.panel)[0])
            made.rows(made.panel)
        assert sorted(seen) == sorted(name for name, _ in SORTS[panel])  # type: ignore[index]
        press(made, "tab")
    press(made, "tab")
    while made.sort("streams")[0] != "events":
        press(made, "s")
    assert [row["events"] for row in made.rows("streams")] == [100, 99, 98]


def test_a_filter_holds_for_both_and_escape_ends_it() -> None:
    made = board()
    press(made, "/", *"n=1", "enter")
    assert [row["request_id"] for row in made.rows("streams")] == ["id01"]
    assert any("1 of 3" in line for line in shown(made))
    press(made, "/", "backspace")
    assert len(made.rows("streams")) == 3
    press(made, "escape")
    assert made.filter == ""
    press(made, "/", *"good tunnel-1", "enter")
    assert [row["name"] for row in made.rows("tunnels")] == ["tunnel-1"]


def test_q_in_a_filter_is_a_letter() -> None:
    made = board()
    assert press(made, "/", "q") is None
    assert made.filter == "q"
    assert press(made, "escape", "q") == Wish("quit")


def test_a_cancel_needs_a_yes() -> None:
    made = board()
    press(made, "c")
    assert made.mode == "list"
    assert "Tab" in shown(made)[-1]
    press(made, "tab", "c")
    assert shown(made)[-1].startswith("Cancel /sse?n=2 of tunnel-0? [y/N]")
    assert press(made, "n") is None
    assert press(made, "c", "enter") is None
    assert press(made, "c", "y") == Wish("cancel", "id02")
    press(made, "enter")
    assert any("id02" in line for line in shown(made))
    assert press(made, "c", "y") == Wish("cancel", "id02")


def test_a_reconnect_needs_a_yes() -> None:
    made = board()
    assert press(made, "down", "r", "y") == Wish("reconnect", "tunnel-1")


def test_what_was_asked_about_is_what_is_done_though_rows_moved() -> None:
    made = board()
    press(made, "tab", "c")
    rows = made.rows("streams")
    made.take(made.status, [{**rows[1], "age_s": 99.0}, rows[0]], 2.0)
    assert press(made, "y") == Wish("cancel", "id02")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (20, 8), (200, 60), (100, 10)])
@pytest.mark.parametrize("keys", [(), ("tab", "enter"), ("enter",), ("?",), ("/", "x"), ("tab", "c")])
def test_every_size_is_kept(width: int, height: int, keys: tuple[str, ...]) -> None:
    made = board(streams=50, tunnels=9)
    press(made, *keys)
    lines = shown(made, width, height)
    assert len(lines) == height
    if width >= 40:
        assert max(map(width_of, lines)) <= width


def test_80x24_shows_both_the_choice_and_the_curve() -> None:
    made = board(streams=50, tunnels=9)
    for second in range(2, 14):
        for index, one in enumerate(made.status["tunnels"]):
            one["quality"]["rtt_ms"]["last"] = 10.0 + second * index
        made.take(made.status, made.rows("streams"), float(second))
    lines = shown(made)
    assert "TUNNELS 9" in lines[1]
    assert any(line.startswith("> tunnel-0") and "good" in line and "█" in line for line in lines)
    assert any("/sse?n=49" in line for line in lines)
    assert all(line.isascii() for line in shown(made, unicode=False) if "tunnel-0" in line)
    press(made, "tab", "end")
    assert any(line.startswith("> /sse?n=0") for line in shown(made))


def test_what_a_round_trip_waited_is_shown_apart() -> None:
    made = board()
    press(made, "enter")
    assert any(line.split() == ["queueing", "-"] for line in shown(made))
    made.status["tunnels"][0]["quality"]["queue_ms"] = 31.25
    assert any(line.split(maxsplit=1) == ["queueing", "31.2 ms of the last round trip"] for line in shown(made))


def test_rates_are_made_of_the_totals() -> None:
    made = board()
    totals = dict(made.status["totals"], bytes_out=made.status["totals"]["bytes_out"] + 4096)
    made.take({**made.status, "totals": totals}, [], 3.0)
    assert made.rates == (0.0, 2048.0)
    assert "2.0 KiB/s out" in shown(made, 120)[0]


def test_nothing_that_a_visitor_sends_reaches_the_terminal() -> None:
    made = board()
    evil = dict(made.rows("streams")[0], path="/\x1b]0;x\x07\x1b[2J", last_event_id="\x9b31m")
    made.take(made.status, [evil], 2.0)
    press(made, "tab")
    for keys in ((), ("enter",), ("escape", "c")):
        press(made, *keys)
        for line in shown(made):
            assert line.isprintable()


def test_keys_of_a_terminal() -> None:
    assert list(parse_keys("j\x1b[A\x1bOB\x1b[5~\x1b[6~\t\r\x7f/é")) == [
        "j", "up", "down", "pageup", "pagedown", "tab", "enter", "backspace", "/", "é"
    ]  # fmt: skip
    assert list(parse_keys("\x1b")) == ["escape"]
    assert list(parse_keys("\x1b\x1b[A")) == ["escape", "up"]
    assert list(parse_keys("\x1b[1;5Cq")) == ["q"]
    assert list(parse_keys("\x1b[")) == []


def test_details_that_are_longer_than_the_screen_are_scrolled() -> None:
    made = board()
    press(made, "tab", "enter")
    lines = shown(made, 40, 10)
    assert (len(lines), max(map(len, lines)) <= 40) == (10, True)
    first = lines[1]
    assert first.startswith("  lines 1-7 of ")
    seen = set(lines)
    for _ in range(30):
        press(made, "down")
        lines = shown(made, 40, 10)
        assert len(lines) == 10
        seen |= set(lines)
    assert any(line.startswith("  to the visitor") for line in seen)
    press(made, "up")  # of thirty steps no more are undone than were made
    assert shown(made, 40, 10) != lines
    press(made, "home")
    assert shown(made, 40, 10)[1] == first
    press(made, "escape", "enter")
    assert shown(made, 40, 10)[1] == first
    assert not any("lines 1-" in line for line in shown(made, 80, 40))


def test_the_foot_names_whole_keys_as_many_as_there_is_room_for() -> None:
    made = board()
    assert shown(made, 40, 10)[-1] == "q quit  ? help  Tab panel  s sort"
    assert shown(made, 80, 24)[-1].endswith("r reconnect  i details")
