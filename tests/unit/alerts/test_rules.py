"""When a rule is told: after `for`, once, again after `repeat`, and when it is over. Time is an argument."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from tunneld.alerts.facts import Facts, TunnelFacts
from tunneld.alerts.rules import Engine, Notice
from tunneld.config.alerts import AlertRule


def rule(**keys: Any) -> AlertRule:
    return AlertRule.model_validate({"group": 0, "for": 0, **keys})


def down(*names: str, **more: Any) -> Facts:
    return Facts(tuple(TunnelFacts(name, up=False, state="offline", why="refused.", **more) for name in names))


def up(*names: str, **more: Any) -> Facts:
    return Facts(tuple(TunnelFacts(name, up=True, state="online", **more) for name in names))


def told(notices: list[Notice]) -> list[tuple[str, str, list[str]]]:
    return [(one.rule.name, one.state, [alert.subject for alert in one.alerts]) for one in notices]


def test_it_is_told_once_it_held_for_long_enough_and_again_and_when_it_is_over() -> None:
    engine = Engine((rule(when="tunnel_down", **{"for": 10}, repeat=60),))
    assert engine.feed(0, down("a")) == []
    assert engine.feed(9, down("a")) == []
    assert told(engine.feed(10, down("a"))) == [("tunnel_down", "firing", ["a"])]
    assert engine.feed(11, down("a")) == engine.feed(69, down("a")) == []
    assert told(engine.feed(70, down("a"))) == [("tunnel_down", "firing", ["a"])]
    (over,) = engine.feed(71, up("a"))
    assert (over.state, over.alerts[0].message) == ("resolved", "The tunnel a is offline: refused.")
    assert engine.feed(72, up("a")) == []


def test_what_did_not_last_is_not_told() -> None:
    engine = Engine((rule(when="tunnel_down", **{"for": 10}),))
    assert engine.feed(0, down("a")) == engine.feed(5, up("a")) == engine.feed(9, down("a")) == []
    assert engine.feed(18, down("a")) == []
    assert told(engine.feed(19, down("a"))) == [("tunnel_down", "firing", ["a"])]


def test_what_is_over_is_not_told_where_that_is_not_wanted() -> None:
    engine = Engine((rule(when="tunnel_down", resolved=False, repeat=0),))
    assert len(engine.feed(0, down("a"))) == 1
    assert engine.feed(1e6, down("a")) == []
    assert engine.feed(1e6 + 1, up("a")) == []


def test_several_go_in_one_message() -> None:
    engine = Engine((rule(when="tunnel_down", group=5),))
    assert engine.feed(0, down("a")) == []
    assert engine.feed(4, down("a", "b")) == []
    assert told(engine.feed(5, down("a", "b", "c"))) == [("tunnel_down", "firing", ["a", "b", "c"])]
    assert engine.feed(6, down("a", "b", "c", "d")) == []
    assert told(engine.feed(11, down("a", "b", "c", "d"))) == [("tunnel_down", "firing", ["d"])]


def test_only_the_tunnels_that_it_names() -> None:
    engine = Engine((rule(when="tunnel_down", tunnels=["prod-*"]),))
    assert told(engine.feed(0, down("dev-a", "prod-a"))) == [("tunnel_down", "firing", ["prod-a"])]


@pytest.mark.parametrize("when", ["reconnects", "data_lost"])
def test_a_rise_within_a_time(when: str) -> None:
    key = "reconnects" if when == "reconnects" else "streams_lost"
    engine = Engine((rule(when=when, over=2, within=10),))
    assert engine.feed(0, up("a", **{key: 5})) == []
    assert engine.feed(1, up("a", **{key: 7})) == []
    (notice,) = engine.feed(2, up("a", **{key: 8}))
    assert "3" in notice.alerts[0].message
    assert engine.feed(9, up("a", **{key: 8})) == []
    (over,) = engine.feed(11, up("a", **{key: 8}))  # the rise to 7 lies behind the window
    assert over.state == "resolved"
    assert engine.feed(12, up("a", **{key: 0})) == []  # another process, or opened anew: counted from there
    assert engine.feed(13, up("a", **{key: 2})) == []


@pytest.mark.parametrize(
    ("keys", "facts", "message"),
    [
        ({"when": "service_failing"}, up("a", service_fault="refused."), "The service of a fails: refused."),
        ({"when": "rtt", "over": "100ms"}, up("a", rtt=0.25), "Round trips of a: p95 250 ms > 100 ms."),
        ({"when": "loss", "over": "1%"}, up("a", loss=0.02), "Loss on the connection of a: 2.0% > 1.0%."),
        (
            {"when": "limit_near"},
            Facts(limits={"memory": 0.95, "x": 0.9}),
            "The limit memory is used to 95% (over 90%).",
        ),
        ({"when": "expiring"}, Facts(expiries={"the cert": 86400.0 * 3}), "The cert ends in 3 days."),
        ({"when": "expiring"}, Facts(expiries={"the cert": -7200.0}), "The cert has ended 2 hours ago."),
    ],
)
def test_the_other_conditions(keys: dict[str, Any], facts: Facts, message: str) -> None:
    (notice,) = Engine((rule(**keys),)).feed(0, facts)
    assert [alert.message for alert in notice.alerts] == [message]


@pytest.mark.parametrize(
    "when", ["service_failing", "rtt", "loss", "limit_near", "expiring", "reconnects", "tunnel_down"]
)
def test_nothing_is_told_of_what_is_well_or_not_known(when: str) -> None:
    facts = Facts([*up("a", rtt=0.01, loss=0.0).tunnels, *up("b").tunnels], {"memory": 0.1}, {"c": 1e9})
    assert Engine((rule(when=when),)).feed(0, facts) == []


def test_what_is_remembered_of_counts_is_bounded() -> None:
    """A tunnel that reconnects every second all day is some steps, and one that is known no longer is forgotten."""
    engine = Engine((rule(when="reconnects", over=10, within=3600),))
    for second in range(10_000):
        notices = engine.feed(second, up("a", "b", reconnects=second))
    counts = [counted for known in engine._known.values() for counted in known.counted.values()]
    assert len(counts) == 2
    assert {len(counted.seen) for counted in counts} <= set(range(55, 63))
    assert notices == []  # told once, and it holds still
    rise = int(engine.active["reconnects", "a"].message.split()[4])
    assert abs(rise - 3600) <= 60  # to the length of a step
    engine.feed(10_000, up("b", reconnects=10_000))
    assert set(engine._known) == {"b"}


def test_the_tunnels_are_gone_through_once_whatever_the_rules_and_not_at_all_without_need() -> None:
    gone_through: list[str] = []

    def each() -> Iterator[TunnelFacts]:
        for name in ("a", "b"):
            gone_through.append(name)
            yield TunnelFacts(name, up=False, state="offline")

    engine = Engine((rule(when="tunnel_down"), rule(when="rtt"), rule(when="loss")))
    steps = engine.look(0, Facts(each()))
    assert [next(steps), gone_through] == [None, ["a"]]
    (notice,) = [step for step in steps if step is not None]
    assert (gone_through, len(notice.alerts)) == (["a", "b"], 2)
    assert Engine((rule(when="expiring"),)).feed(0, Facts(each())) == []
    assert gone_through == ["a", "b"]
    assert engine.asked == {"tunnel_down", "rtt", "loss"}


def test_what_is_passed_over_while_nothing_changes_would_have_told_nothing() -> None:
    """Against an engine that looks at everything each time, through the same 300 random changes."""
    random = Random(7)
    rules = [rule(when=when, **{"for": held}, repeat=repeat) for when, held, repeat in WHENS]
    rules.append(rule(name="near", when="limit_near", **{"for": 3}))
    sparing, thorough = Engine(tuple(rules)), Engine(tuple(rules))
    passed = seen = 0
    facts, limits = {}, {"memory": 0.1}
    for now in range(0, 3000, 2):
        if random.random() < 0.1:
            name = random.choice(["a", "b", "prod-c"])
            if random.random() < 0.2:
                facts.pop(name, None)
            else:
                facts[name] = a_fact(random, name)
            limits = {"memory": random.choice([0.1, 0.95])}
        for known in thorough._known.values():
            known.calm = None
        passed += sum(known.calm is not None for known in sparing._known.values())
        both = [engine.feed(now, Facts(tuple(facts.values()), limits)) for engine in (sparing, thorough)]
        assert both[0] == both[1]
        assert sparing.active == thorough.active
        seen += len(both[0])
    assert (passed > 300, seen > 60) == (True, True)


WHENS = [
    ("tunnel_down", 0, 60), ("service_failing", 10, 0), ("rtt", 0, 0), ("loss", 4, 60), ("reconnects", 0, 0),
    ("data_lost", 0, 600),
]  # fmt: skip


def a_fact(random: Random, name: str) -> TunnelFacts:
    return TunnelFacts(
        name,
        up=random.random() < 0.7,
        state="online",
        service_fault=random.choice([None, None, "refused"]),
        reconnects=random.choice([0, 1, 2, 9]),
        streams_lost=random.choice([0, 0, 0, 1]),
        rtt=random.choice([None, 0.01, 0.01, 0.5]),
        loss=random.choice([None, 0.0, 0.0, 0.1]),
    )


def test_another_engine_goes_on_with_what_it_keeps() -> None:
    kept, gone = rule(when="reconnects", over=1), rule(when="tunnel_down")
    before = Engine((kept, gone))
    before.feed(0, up("a", reconnects=0))
    before.feed(1, down("a", reconnects=1))
    after = Engine((kept,))
    after.adopt(before, {"reconnects"})
    assert after.active == {}
    (notice,) = after.feed(2, up("a", reconnects=2))
    assert notice.alerts[0].message == "The tunnel a reconnected 2 times within 10 min."
