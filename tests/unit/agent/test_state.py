"""How a tunnel is told to be, and what the log says of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.running import Book
from tunneld.agent.checking import ServiceHealth
from tunneld.agent.reconnect import Failed, Retry
from tunneld.agent.state import ASKED, State, TunnelState
from tunneld.protocol.messages import Probed


def standing(*, lost_at: float | None = None) -> tuple[TunnelState, Any, list[tuple[State, State]]]:
    """The state, what it is told of the session, and its changes: what it was, what it is."""
    keeping: Any = SimpleNamespace(lost_at=lost_at)
    changes: list[tuple[State, State]] = []
    state = TunnelState("app", keeping, lambda before: changes.append((before, state.now)))
    return state, keeping, changes


def test_a_change_is_told_once() -> None:
    state, _, changes = standing()
    state.set("online")
    state.set("online")
    state.set("degraded")
    assert changes == [("connecting", "online"), ("online", "degraded")]


@pytest.mark.parametrize("wanted", ["connecting", "offline"])
def test_a_kept_session_says_more_than_being_without_a_connection(wanted: State) -> None:
    state, keeping, _ = standing(lost_at=1.0)
    state.set(wanted)
    assert state.now == "resuming"
    keeping.lost_at = None
    state.set(wanted)
    assert state.now == wanted


@pytest.mark.parametrize(("wanted", "shown"), [("online", "draining"), ("degraded", "draining"), ("failed", "failed")])
def test_a_drain_says_more_than_how_the_connection_is(wanted: State, shown: State) -> None:
    state, _, _ = standing()
    state.draining = True
    state.set(wanted)
    assert state.now == shown


def test_what_ended_a_connection_is_logged_once_and_kept(lines: Book) -> None:
    state, _, _ = standing()
    told = Retry("protocol_error: two hellos", fault=True)
    state.told(told, "protocol_error")
    state.over(told)
    assert len(lines.find("✗ Tunnel error for app: protocol_error: two hellos")) == 1
    assert (state.now, state.last_error) == ("offline", "protocol_error: two hellos")
    state.over(Retry("refused.", advice="Start the server."))
    assert lines.find("✗ Tunnel error for app: refused. Start the server.")
    state.over(ASKED)
    assert lines.find("The tunnel app dials again: a new connection was asked for")
    state.over(Failed("revoked", "Make another token."))
    assert lines.find("✗ Tunnel error for app: revoked. Make another token.")
    assert state.now == "failed"


def test_an_error_of_the_service_goes_with_it_and_no_other_does() -> None:
    state, _, _ = standing()
    state.service_changed("refused", None)
    assert state.last_error == "refused"
    state.service_changed(None, "refused")
    assert state.last_error is None
    state.over(Retry("the connection was lost"))
    state.service_changed(None, "refused")
    assert state.last_error == "the connection was lost"


# -- what it comes from, while a connection stands -------------------------------------------------------


def health() -> tuple[ServiceHealth, list[str | None]]:
    told: list[str | None] = []
    made = ServiceHealth(lambda before: told.append(made.fault))
    return made, told


def test_the_agents_own_look_goes_before_the_servers_probe() -> None:
    it, told = health()
    it.probed(Probed(1, "it did not come back"))
    it.looked("refused")
    it.looked(None)
    it.probed(Probed(2, None))
    assert told == ["it did not come back", "refused", "it did not come back", None]
    assert it.proved


@pytest.mark.parametrize(
    ("resumed", "probing", "proved"), [(False, True, False), (True, True, True), (True, False, True)]
)
def test_a_new_connection_forgets_what_was_said_of_the_way(*, resumed: bool, probing: bool, proved: bool) -> None:
    it, told = health()
    it.probed(Probed(1, None))
    it.probed(Probed(2, "it did not come back"))
    it.connected(resumed=resumed, probing=probing)
    assert (it.fault, it.proved) == (None, proved)
    assert told == ["it did not come back"], "the connection is told, not this"
