"""When to dial again: bounds that hold whatever happens, and which failure is whose."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.agent.reconnect import MAX_RETRY_AFTER, Backoff, Failed, Retry, of_close, of_error_code, of_refusal
from tunneld.errors import CODES

LOST = Retry("lost")
FAULT = Retry("fault", fault=True)
REFUSED = Failed("refused")


def low(a: float, b: float) -> float:
    return a


def high(a: float, b: float) -> float:
    return b


def waits(backoff: Backoff, count: int, verdict: Retry | Failed = LOST) -> list[float]:
    found, now = [], 0.0
    for _ in range(count):
        backoff.dialled(now)
        found.append(backoff.delay(now, verdict))
        now += found[-1]
    return found


def test_the_bound_doubles_from_twice_initial_up_to_the_maximum() -> None:
    assert waits(Backoff(0.5, 10, high), 8) == [0.5, 1, 2, 4, 8, 10, 10, 10]
    assert waits(Backoff(0.5, 10, low), 4) == [0.5, 0.5, 0.5, 0.5]


def test_after_a_connection_that_stood_the_next_dial_is_at_once() -> None:
    backoff = Backoff(0.5, 60, high)
    waits(backoff, 6)
    backoff.dialled(100)
    backoff.connected(100.1)
    assert backoff.delay(200, LOST) == 0
    backoff.dialled(200)
    assert backoff.delay(200, LOST) == 1


def test_a_connection_that_breaks_as_soon_as_it_is_made_is_not_dialled_at_the_shortest_distance_for_ever() -> None:
    backoff, now, found = Backoff(0.5, 60, high), 0.0, []
    for _ in range(6):
        backoff.dialled(now)
        backoff.connected(now)
        found.append(backoff.delay(now, LOST))
        now += found[-1]
    assert found == [0.5, 1, 2, 4, 8, 16]
    backoff.dialled(now)
    backoff.connected(now)
    assert backoff.delay(now + 100, LOST) == 0


def test_no_wait_sleeps_through_the_grace_of_a_session_that_is_kept() -> None:
    for grace in (60.0, 20.0, 3.0):
        backoff, now, dials = Backoff(0.5, 60, high), 0.0, 0
        backoff.dialled(now)
        while now < grace:
            wait = backoff.delay(now, LOST, kept=grace - now)
            assert 0.5 <= wait <= max(0.5, (grace - now) / 3)
            now += wait
            backoff.dialled(now)
            dials += now < grace
        assert dials >= 4
        assert backoff.delay(now, LOST, kept=grace - now) > 0.5  # it is over: as without one


def test_a_fault_waits_even_the_first_time() -> None:
    backoff = Backoff(0.5, 60, high)
    backoff.dialled(0)
    backoff.connected(0)
    assert backoff.delay(50, FAULT) == 1
    assert Backoff(0.5, 60, low).delay(50, FAULT) == 0.5


def test_a_refusal_waits_for_the_maximum_or_what_was_said() -> None:
    assert Backoff(0.5, 60, low).delay(0, REFUSED) == 60
    assert Backoff(0.5, 60, low).delay(0, Failed("conflict", after=600)) == 600


def test_those_who_were_refused_together_do_not_come_back_together() -> None:
    """As all agents of a server do whose store was lost, or whose certificate was changed."""
    assert Backoff(0.5, 60, high).delay(0, REFUSED) == pytest.approx(66)
    assert Backoff(0.5, 60, high).delay(0, Failed("conflict", after=600)) == pytest.approx(660)
    found = {Backoff(0.5, 60, random.uniform).delay(0, REFUSED) for _ in range(50)}
    assert len(found) > 40


def test_what_a_server_asks_for_is_honoured_and_spread() -> None:
    assert Backoff(0.5, 60, low).delay(0, Retry("503", after=10)) == 10
    assert Backoff(0.5, 60, high).delay(0, Retry("503", after=10)) == 15.5
    found = {Backoff(0.5, 60, random.uniform).delay(0, Retry("503", after=10)) for _ in range(50)}
    assert len(found) > 40


def test_an_operator_ends_the_count_but_not_the_distance() -> None:
    backoff = Backoff(0.5, 60, high)
    waits(backoff, 6)
    backoff.dialled(100)
    backoff.forget()
    assert backoff.spacing(100.2) == pytest.approx(0.3)
    assert backoff.delay(100.2, LOST) == pytest.approx(0.3)
    assert Backoff(0.5, 60, high).spacing(7) == 0


def test_a_reload_changes_the_bounds_and_keeps_the_count() -> None:
    backoff = Backoff(0.5, 60, high)
    waits(backoff, 5)
    backoff.update(1, 4)
    assert waits(backoff, 2) == [4, 4]


verdicts = st.one_of(
    st.just(LOST),
    st.just(FAULT),
    st.just(REFUSED),
    st.builds(Retry, st.just("503"), after=st.floats(0, MAX_RETRY_AFTER)),
    st.builds(Failed, st.just("conflict"), after=st.floats(0, MAX_RETRY_AFTER)),
)


@given(
    initial=st.floats(0.01, 10),
    factor=st.floats(1, 100),
    steps=st.lists(st.tuples(verdicts, st.floats(0, 200), st.booleans(), st.booleans()), max_size=30),
    seed=st.integers(),
)
def test_two_dials_are_never_closer_than_initial_and_none_waits_for_ever(
    initial: float, factor: float, steps: list[tuple[Retry | Failed, float, bool, bool]], seed: int
) -> None:
    maximum = initial * factor
    backoff = Backoff(initial, maximum, random.Random(seed).uniform)
    now = 0.0
    for verdict, lasted, stood, asked in steps:
        dialled = now
        backoff.dialled(now)
        if stood:
            backoff.connected(now)
        now += lasted
        if asked:
            backoff.forget()
        wait = backoff.delay(now, verdict)
        assert now + wait >= dialled + initial - 1e-9
        asked_for = verdict.after if verdict.after is not None else maximum
        assert wait <= max(asked_for * 1.5 + initial, maximum, initial) + 1e-9
        if verdict.after is not None:
            assert wait >= verdict.after - 1e-9
        now += wait


def test_refusals() -> None:
    for status in (200, 400, 401, 403, 404, 405, 409, 426, 301, 308):
        verdict = of_refusal(status, None, "", None)
        assert isinstance(verdict, Failed), status
        assert "server.url" in verdict.advice
    unauthorized = of_refusal(401, "unauthorized", "no token", None)
    assert isinstance(unauthorized, Failed)
    assert unauthorized.why == "refused with 401 unauthorized: no token"
    assert unauthorized.advice == CODES["unauthorized"].advice
    for status in (429, 500, 502, 503, 504):
        assert of_refusal(status, None, "", 7) == Retry(f"refused with {status}", 7)
    huge = of_refusal(503, None, "", 1e308)
    assert huge.after == MAX_RETRY_AFTER
    assert of_refusal(503, None, "", -5).after == 0


@pytest.mark.parametrize("code", ["hello_timeout", "bad_hello", "stale_hello", "replaced", "revoked"])
def test_codes_that_somebody_must_act_on(code: str) -> None:
    assert of_error_code(code, "why", 3) == Failed(f"{code}: why", CODES[code].advice)


def test_codes_that_pass_by_themselves() -> None:
    for code in ("protocol_error", "unknown_stream", "flow_control", "too_large"):
        assert of_error_code(code, "why", None) == Retry(f"{code}: why", fault=True)
    for code in ("going_away", "overloaded"):
        assert of_error_code(code, "why", 2) == Retry(f"{code}: why", 2)
    conflict = of_error_code("conflict", "", None)
    assert isinstance(conflict, Failed)
    assert conflict.after == 600
    assert of_error_code("conflict", "", 30).after == 30
    assert of_error_code("new in 2030", "who knows", None) == Retry("new in 2030: who knows")


def test_closes() -> None:
    assert of_close(None, "") == Retry("the connection was lost")
    assert of_close(1011, "x") == Retry("the server closed the connection (1011 x)")
    assert of_close(1006, "") == Retry("a message of the server's could not be taken here", fault=True)
    assert isinstance(of_close(4001, "replaced"), Failed)
    assert of_close(1009, "too_large") == Retry(f"too_large: {CODES['too_large'].title}", fault=True)
