"""What the dashboard of somebody who may see a part of the tunnels is told of the past."""

from __future__ import annotations

from tests.unit.dashboard.test_feed import Daemon
from tests.unit.dashboard.test_history import T0, sample
from tunneld.dashboard.history import History
from tunneld.dashboard.part import part, past


def test_streams_of_other_tunnels_are_not_shown() -> None:
    daemon = Daemon()
    daemon.begin("a", tunnel="mine")
    daemon.begin("b", tunnel="theirs")
    shown = part(daemon, lambda name: name == "mine")
    assert list(shown.stream_ids()) == ["a"]
    assert (shown.stream("a"), shown.counted("a")) == (daemon.stream("a"), daemon.counted("a"))
    assert (shown.stream("b"), shown.counted("b"), shown.tunnel_of("b")) == (None, None, None)
    assert shown.counted("gone") is None
    assert list(part(daemon, None).stream_ids()) == ["a", "b"]


def test_events_of_other_tunnels_are_not_told() -> None:
    history = History()
    for at, state in ((T0, "online"), (T0 + 10, "offline"), (T0 + 20, "online")):
        for name in ("mine", "theirs"):
            sample(history, at, name, state=state)
    told = past(history, lambda name: name == "mine").since(0, T0 + 30)
    assert {event.tunnel for event in told} == {"mine"}
    assert {event.tunnel for event in past(history, None).since(0, T0 + 30)} == {"mine", "theirs"}
    assert past(history, lambda name: False).newest == history.newest
