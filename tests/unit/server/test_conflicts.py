"""Agents that replace each other, by an injected clock."""

from __future__ import annotations

from tunneld.server.conflicts import PAUSE, Conflict, Conflicts


def hello(conflicts: Conflicts, who: str, now: float, *, held: bool = True) -> Conflict | None:
    return conflicts.hello(who, f"10.0.0.{who}", now, held=held)


def in_conflict() -> Conflicts:
    """1 and 2 have replaced each other three times; 2 serves."""
    conflicts = Conflicts()
    assert hello(conflicts, "1", 0, held=False) is None
    for now, who in ((60, "2"), (120, "1"), (180, "2")):
        assert hello(conflicts, who, now) is None
    return conflicts


def test_three_replacements_within_ten_minutes_keep_the_present_one() -> None:
    conflicts = in_conflict()
    assert hello(conflicts, "1", 240) == Conflict("10.0.0.1", "10.0.0.2", first=True)
    assert hello(conflicts, "2", 250) is None  # resumes, or dials anew: the name is its own
    assert hello(conflicts, "1", 300) == Conflict("10.0.0.1", "10.0.0.2", first=False)


def test_each_hello_of_the_refused_one_begins_the_ten_minutes_anew() -> None:
    conflicts = in_conflict()
    at = 240.0
    for _ in range(5):
        assert hello(conflicts, "1", at) is not None
        at += PAUSE - 1
    assert hello(conflicts, "1", at - PAUSE + 1 + PAUSE) is None  # away for long enough


def test_the_refused_one_has_the_name_when_the_other_is_gone() -> None:
    conflicts = in_conflict()
    assert hello(conflicts, "1", 240) is not None
    assert hello(conflicts, "1", 250, held=False) is None


def test_slow_replacements_are_no_conflict() -> None:
    conflicts = Conflicts()
    hello(conflicts, "1", 0, held=False)
    for turn in range(1, 20):
        assert hello(conflicts, "12"[turn % 2], turn * 301.0) is None


def test_a_process_that_is_started_again_and_again_is_no_conflict() -> None:
    conflicts = Conflicts()
    hello(conflicts, "0", 0, held=False)
    for turn in range(1, 100):
        assert hello(conflicts, str(turn), turn) is None


def test_three_copies_are_in_conflict_too() -> None:
    conflicts = Conflicts()
    hello(conflicts, "1", 0, held=False)
    refused = [hello(conflicts, "123"[turn % 3], turn * 60.0) is not None for turn in range(1, 9)]
    assert refused == [False, False, False, False, True, True, False, True]


def test_the_same_image_from_another_address_is_told_again() -> None:
    conflicts = in_conflict()
    assert hello(conflicts, "1", 240) is not None
    again = conflicts.hello("1", "10.9.9.9", 250, held=True)
    assert again == Conflict("10.9.9.9", "10.0.0.2", first=True)


def test_what_is_remembered_is_bounded() -> None:
    conflicts = in_conflict()
    for turn in range(1000):
        hello(conflicts, f"x{turn}", 200 + turn / 1000)
        hello(conflicts, "2", 200 + turn / 1000)
    assert len(conflicts._swaps) <= 32
    assert len(conflicts._refused) <= 32
