"""What browsers carry: nothing that was changed, cut or made elsewhere is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.server.visitors.cookies import MAX_PATH, CookieFault, Seal, Session, cookie_of, names_of, without

SEAL = Seal(b"s" * 32, "https://issuer", "client")
SESSION = Session("ann@example.org", "demo", "id", 1000.0)
GOOD = SEAL.sign(SESSION)


def test_a_session_holds_for_its_tunnel_until_its_end_at_its_issuer() -> None:
    assert SEAL.session(GOOD, "demo", 999.0) == SESSION
    for seal, tunnel, now, over in (
        (SEAL, "other", 0.0, False),
        (SEAL, "demo", 1000.0, True),
        (Seal(b"s" * 32, "https://other", "client"), "demo", 0.0, False),
        (Seal(b"s" * 32, "https://issuer", "other"), "demo", 0.0, False),
        (Seal(b"t" * 32, "https://issuer", "client"), "demo", 0.0, False),
    ):
        with pytest.raises(CookieFault) as caught:
            seal.session(GOOD, tunnel, now)
        assert caught.value.over == over
        assert GOOD[:8] not in str(caught.value)


@given(st.one_of(st.text(max_size=300), st.integers(0, len(GOOD) - 1).map(lambda at: GOOD[:at])))
def test_any_other_text_is_a_cookie_fault_and_nothing_else(text: str) -> None:
    with pytest.raises(CookieFault):
        SEAL.session(text, "demo", 0.0)


@given(st.integers(0, len(GOOD) - 1), st.characters(codec="latin-1"))
def test_one_changed_character_is_found(at: int, character: str) -> None:
    changed = GOOD[:at] + character + GOOD[at + 1 :]
    try:
        assert SEAL.session(changed, "demo", 0.0) == SESSION
        assert changed == GOOD or at == len(GOOD) - 1
    except CookieFault:
        assert changed != GOOD


def test_a_state_comes_back_whole_and_only_in_time() -> None:
    begun, state = SEAL.begin("demo", "/x?y=1", prefixed=False, binding="b", expires=100.0)
    assert SEAL.begun(state, 99.0) == begun
    assert begun.verifier not in state
    assert 43 <= len(begun.verifier) <= 128, "RFC 7636, 4.1"
    with pytest.raises(CookieFault, match="too long"):
        SEAL.begun(state, 100.0)
    long, _ = SEAL.begin("demo", "/" + "x" * MAX_PATH, prefixed=False, binding="b", expires=1.0)
    assert long.path == "/"


@given(st.text(max_size=400))
def test_a_state_of_anything_else_is_a_cookie_fault(text: str) -> None:
    with pytest.raises(CookieFault):
        SEAL.begun(text, 0.0)


def test_our_cookies_are_found_among_others_and_taken_out() -> None:
    header = "a=1; tunnel-session=x.y; b=tunnel-session=z;tunnel-session=2; not-tunnel-session=3"
    assert cookie_of(header, "tunnel-session") == ["x.y", "2"]
    assert without(header, ("tunnel-session",)) == "a=1; b=tunnel-session=z; not-tunnel-session=3"
    assert without("tunnel-session=1", ("tunnel-session",)) == ""
    assert names_of(secure=True, prefix="")[0] == "__Host-tunnel-session"
    assert names_of(secure=True, prefix="/t/a") == (
        "__Secure-tunnel-session",
        "__Secure-tunnel-sign-in",
        "Path=/t/a; HttpOnly; SameSite=Lax; Secure",
    )
