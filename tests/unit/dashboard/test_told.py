"""Alerts as one page is told of them: what begins, what changes its words, what is over, never too much a second."""

from typing import Any

from tunneld.dashboard.source import AlertBrief
from tunneld.dashboard.told import MOST, ToldAlerts

T0 = 1_790_000_000.0


def alert(subject: str, message: str = "it is down", since: float = T0, rule: str = "down") -> AlertBrief:
    return AlertBrief(rule, subject, True, since, message)


def tick(told: ToldAlerts, *firing: AlertBrief) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    told.tick(firing, changes)
    return changes


def subjects(changes: dict[str, Any]) -> list[str]:
    return [one["subject"] for one in changes.get("alerts", ())]


def test_nothing_is_told_of_nothing() -> None:
    told = ToldAlerts()
    assert told.all([]) == []
    assert tick(told) == {}


def test_one_that_begins_changes_and_is_over() -> None:
    told = ToldAlerts()
    told.all([])
    assert subjects(tick(told, alert("a"))) == ["a"]
    assert tick(told, alert("a")) == {}
    assert tick(told, alert("a", since=T0 + 0.4)) == {}  # the same, by a clock that is read anew
    (changed,) = tick(told, alert("a", "it is down still"))["alerts"]
    assert changed["message"] == "it is down still"
    assert subjects(tick(told, alert("a", "it is down still", since=T0 + 60))) == ["a"]  # it began anew
    assert tick(told) == {"calm": [["down", "a"]]}
    assert tick(told) == {}


def test_one_subject_may_have_several() -> None:
    told = ToldAlerts()
    both = [alert("a"), alert("a", rule="rtt")]
    assert len(told.all(both)) == 2
    assert tick(told, both[1]) == {"calm": [["down", "a"]]}


def test_of_a_crowd_some_are_told_each_second_and_all_in_the_end() -> None:
    told = ToldAlerts()
    told.all([])
    crowd = [alert(f"t{index:03}") for index in range(50)]
    seen: list[str] = []
    for _ in range(50):
        fresh = subjects(changes := tick(told, *crowd))
        assert len(fresh) <= 8
        seen += fresh
        if not changes:
            break
    assert sorted(seen) == [one.subject for one in crowd]


def test_words_that_change_each_second_are_told_in_turns() -> None:
    told = ToldAlerts()
    told.all([alert(f"t{index}", "0") for index in range(10)])
    seen: list[str] = []
    for second in range(1, 6):
        fresh = subjects(tick(told, *(alert(f"t{index}", str(second)) for index in range(10))))
        assert len(fresh) == 2
        seen += fresh
    assert sorted(set(seen)) == [f"t{index}" for index in range(10)]


def test_a_page_is_shown_a_bounded_number_and_told_of_the_others() -> None:
    told = ToldAlerts()
    crowd = [alert(f"t{index:04}") for index in range(MOST + 30)]
    assert len(told.all(crowd)) == MOST
    assert tick(told, *crowd) == {"more": 30}
    changes = tick(told, *crowd[10:])  # ten are over: ten others take their place
    assert len(changes["calm"]) == 10
    assert len(changes["alerts"]) + changes["more"] == 30
    for _ in range(5):
        tick(told, *crowd[10:])
    assert tick(told, *crowd[10:]) == {}
    assert tick(told, *crowd[10:20])["more"] == 0
