"""Names and who serves them, with the time passed in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.joined import Visitor
from tunneld.config.common import QualityConfig
from tunneld.errors import VisitorError
from tunneld.protocol.messages import HeartbeatSettings, Open, SseSettings
from tunneld.protocol.session import Session, SessionSettings
from tunneld.server.registry import Registry, Tunnel

BEAT = HeartbeatSettings(30, 10)


class Agent:
    """A connection that knows whether it was replaced."""

    peer = "192.0.2.9"
    round_trip: float | None = None

    def __init__(self) -> None:
        self.told = 0

    def replaced(self, *, resumed: bool) -> None:
        self.told += 1


def make(max_tunnels: int = 3, max_waiting: int = 2) -> Registry:
    return Registry(
        max_tunnels=max_tunnels,
        max_waiting=max_waiting,
        urls=lambda name: (f"http://h/t/{name}", None),
        quality=QualityConfig(),
    )


def serve(tunnel: Tunnel, keepalive: float = 30) -> tuple[Agent, Session]:
    agent, session = Agent(), Session(SessionSettings(max_streams=1))
    tunnel.take(agent, resumed=False)
    tunnel.serve(session, BEAT, SseSettings(keepalive))
    return agent, session


def request(name: str = "r") -> Open:
    return Open(name, "GET", "/", [], "")


def test_a_name_is_known_from_its_first_claim() -> None:
    registry = make()
    assert registry.find("a") is None
    tunnel = registry.claim("a", 5)
    assert registry.claim("a", 6) is tunnel
    assert registry.find("a") is tunnel
    assert (len(registry), registry.all()) == (1, [tunnel])
    assert (tunnel.public_url, tunnel.host_url, tunnel.offline_since) == ("http://h/t/a", None, 5)
    assert not tunnel.online


def test_a_tunnel_that_is_offline_opens_nothing() -> None:
    tunnel = make().claim("a", 0)
    with pytest.raises(VisitorError) as caught:
        tunnel.open(request(), Visitor(), ended=True)
    assert caught.value.code == "tunnel_offline"
    assert caught.value.retry_after


def test_streams_go_to_the_session_that_serves() -> None:
    tunnel = make().claim("a", 0)
    _, session = serve(tunnel)
    stream = tunnel.open(request(), Visitor(), ended=True)
    assert session.find("r") is stream
    with pytest.raises(VisitorError) as caught:
        tunnel.open(request("s"), Visitor(), ended=True)
    assert caught.value.code == "too_many_streams"


def test_those_who_wait_are_called_once_in_order_and_first() -> None:
    tunnel = make().claim("a", 0)
    called: list[str] = []

    def waiter(name: str) -> Callable[[], None]:
        def tell() -> None:
            called.append(name)
            assert tunnel.online

        return tell

    one, two = waiter("one"), waiter("two")
    tunnel.wait(one)
    tunnel.wait(two)
    with pytest.raises(VisitorError) as caught:
        tunnel.wait(waiter("three"))
    assert caught.value.code == "too_many_waiting"
    assert caught.value.retry_after
    tunnel.unwait(one)
    tunnel.unwait(one)
    tunnel.wait(one)
    serve(tunnel)
    assert called == ["two", "one"]
    serve(tunnel)
    assert called == ["two", "one"]


def test_the_newest_connection_replaces_the_one_before() -> None:
    tunnel = make().claim("a", 0)
    first, _ = serve(tunnel)
    second, session = serve(tunnel)
    assert (first.told, second.told) == (1, 0)
    assert not tunnel.leave(first, 9)  # what the old one says no longer counts
    assert tunnel.online
    tunnel.open(request(), Visitor(), ended=True)
    assert session.find("r")
    assert tunnel.leave(second, 10)
    assert not tunnel.online
    assert tunnel.offline_since == 10
    assert tunnel.connection is None


def test_one_that_goes_away_keeps_its_name_and_takes_nothing_new() -> None:
    tunnel = make().claim("a", 0)
    agent, _ = serve(tunnel)
    tunnel.hold(7)
    tunnel.hold(8)
    assert not tunnel.online
    assert tunnel.offline_since == 7
    assert tunnel.connection is agent
    assert tunnel.leave(agent, 9)
    assert tunnel.offline_since == 7


def test_a_keepalive_that_changes_is_told() -> None:
    tunnel = make().claim("a", 0)
    told: list[float] = []

    def changed() -> None:
        told.append(tunnel.keepalive)
        tunnel.keepalive_changed.discard(changed)  # a stream may end in the call

    tunnel.keepalive_changed.add(changed)
    serve(tunnel, tunnel.keepalive)
    assert not told
    tunnel.retune(BEAT, SseSettings(5, 1000, False))
    assert told == [5]
    assert (tunnel.max_event, tunnel.identity) == (1000, False)
    tunnel.retune(BEAT, SseSettings(6))
    assert told == [5]


def test_dial_numbers_only_rise() -> None:
    tunnel = make().claim("a", 0)
    assert tunnel.newest_dial("i", 3)
    assert not tunnel.newest_dial("i", 3)
    assert not tunnel.newest_dial("i", 2)
    assert tunnel.newest_dial("i", 4)
    assert tunnel.newest_dial("j", 0)


def test_what_is_remembered_of_dials_is_bounded_and_a_stale_one_does_not_lower_it() -> None:
    tunnel = make().claim("a", 0)
    tunnel.newest_dial("mine", 9)
    for number in range(1000):
        tunnel.newest_dial(f"other{number}", 1)
        assert not tunnel.newest_dial("mine", 5)
    assert len(tunnel._dials) <= 16


def test_the_longest_idle_name_makes_room() -> None:
    registry = make(max_tunnels=2)
    busy, old = registry.claim("busy", 0), registry.claim("old", 1)
    agent, _ = serve(busy)
    serve(old)
    with pytest.raises(VisitorError) as caught:
        registry.check_room("new")
    assert caught.value.code == "too_many_tunnels"
    assert caught.value.retry_after
    registry.check_room("old")
    busy.leave(agent, 50)
    registry.check_room("new")
    registry.claim("new", 60)
    assert registry.find("busy") is None
    assert registry.find("old") is old


def test_a_name_that_somebody_waits_for_is_kept() -> None:
    registry = make(max_tunnels=1)
    tunnel = registry.claim("a", 0)

    def waiter() -> None:
        raise AssertionError

    tunnel.wait(waiter)
    with pytest.raises(VisitorError):
        registry.claim("b", 1)
    tunnel.unwait(waiter)
    registry.claim("b", 2)
    assert registry.find("a") is None


def test_other_bounds_hold_for_names_that_are_known() -> None:
    registry = make(max_tunnels=1, max_waiting=1)
    tunnel = registry.claim("a", 0)
    registry.configure(max_tunnels=2, max_waiting=0, quality=QualityConfig())
    with pytest.raises(VisitorError):
        tunnel.wait(lambda: None)
    registry.claim("b", 0)
    registry.configure(max_tunnels=1, max_waiting=5, quality=QualityConfig())
    assert len(registry) == 2  # nobody is thrown out
    assert registry.find("a") is tunnel
