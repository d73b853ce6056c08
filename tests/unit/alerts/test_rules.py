"""When a rule is told: after `for`, once, again after `repeat`, and when it is over. Time is an argument."""

from __future__ import annotations

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
        ({"when": "expiring"}, Facts(expiries={"the cert": 86400.0 * 3}), "the cert ends in 3 days."),
        ({"when": "expiring"}, Facts(expiries={"the cert": -7200.0}), "the cert has ended 2 hours ago."),
    ],
)
def test_the_other_conditions(keys: dict[str, Any], facts: Facts, message: str) -> None:
    (notice,) = Engine((rule(**keys),)).feed(0, facts)
    assert [alert.message for alert in notice.alerts] == [message]


@pytest.mark.parametrize(
    "when", ["service_failing", "rtt", "loss", "limit_near", "expiring", "reconnects", "tunnel_down"]
)
def test_nothing_is_told_of_what_is_well_or_not_known(when: str) -> None:
    facts = Facts(up("a", rtt=0.01, loss=0.0).tunnels + up("b").tunnels, {"memory": 0.1}, {"c": 1e9})
    assert Engine((rule(when=when),)).feed(0, facts) == []
