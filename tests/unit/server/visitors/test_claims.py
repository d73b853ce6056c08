"""Tokens that an issuer signed, and what is none."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from tunneld.server.visitors.claims import ClockFault, Expired, Keys, TokenFault, UnknownKey, check, email_of, parsed

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def public(algorithm: Any, key: Any, **more: Any) -> dict[str, Any]:
    return {**json.loads(algorithm.to_jwk(key.public_key())), **more}


KEYS = Keys(
    {
        "keys": [
            public(jwt.algorithms.RSAAlgorithm, RSA, kid="r", use="sig"),
            public(jwt.algorithms.ECAlgorithm, EC, kid="e", alg="ES256"),
            public(jwt.algorithms.OKPAlgorithm, ED, kid="o"),
            {"kty": "RSA", "kid": "enc", "use": "enc"},
            {"kty": "RSA", "kid": "broken", "n": 5, "e": []},
            "rubbish",
        ]
    }
)


@pytest.mark.parametrize(
    ("algorithm", "key", "kid"),
    [("RS256", RSA, "r"), ("PS384", RSA, "r"), ("ES256", EC, "e"), ("EdDSA", ED, "o"), ("ES256", EC, None)],
)
def test_the_issuers_own_signatures_are_good(algorithm: str, key: Any, kid: str | None) -> None:
    token = jwt.encode({"sub": "x"}, key, algorithm, headers={"kid": kid} if kid else None)
    assert KEYS.claims(token) == {"sub": "x"}


@pytest.mark.parametrize(
    ("algorithm", "key", "kid", "kind"),
    [
        ("RS256", RSA, "unknown", UnknownKey),
        ("RS256", RSA, "e", UnknownKey),  # of another kind
        ("ES256", EC, "r", UnknownKey),
        ("RS256", RSA, "enc", UnknownKey),
        ("RS256", RSA, "broken", TokenFault),
        ("HS256", "k" * 32, "r", TokenFault),
        ("none", None, "r", TokenFault),
        ("RS256", rsa.generate_private_key(65537, 2048), "r", TokenFault),
    ],
)
def test_others_are_not(algorithm: str, key: Any, kid: str, kind: type[TokenFault]) -> None:
    token = jwt.encode({"sub": "x"}, key, algorithm, headers={"kid": kid})
    with pytest.raises(kind):
        KEYS.claims(token)


@given(st.text(max_size=200))
def test_any_text_is_a_token_fault_and_nothing_else(text: str) -> None:
    with pytest.raises(TokenFault):
        KEYS.claims(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda more: st.lists(more) | st.dictionaries(st.sampled_from(["kid", "alg", "crit", "typ", "b64"]), more),
    )
)
def test_any_head_is_a_token_fault_and_nothing_else(head: Any) -> None:
    made = jwt.utils.base64url_encode(json.dumps(head).encode()).decode()
    with pytest.raises(TokenFault):
        KEYS.claims(f"{made}.e30.AAAA")


GOOD = {
    "iss": "https://i",
    "aud": ["x", "us"],
    "exp": 100,
    "iat": 10,
    "email": "Ann@Example.org",
    "email_verified": True,
}


def checked(now: float = 50.0, **more: Any) -> dict[str, Any]:
    return check({**GOOD, **more}, issuer="https://i", meant="us".__eq__, now=now, skew=5.0)


def test_claims_are_of_this_issuer_for_us_and_of_this_time() -> None:
    assert checked() == GOOD
    assert checked(104.0)
    assert checked(5.0)
    for more in ({"iss": "https://j"}, {"aud": "them"}, {"aud": None}, {"aud": [["us"]]}, {"exp": None}, {"exp": "1"}):
        with pytest.raises(TokenFault):
            checked(**more)
    with pytest.raises(Expired):
        checked(105.0)
    with pytest.raises(ClockFault):
        checked(4.0)
    for odd in (True, "10", float("nan"), float("inf"), 1e300):
        with pytest.raises(TokenFault):
            checked(nbf=odd)


def test_addresses_count_when_they_are_verified() -> None:
    assert email_of(GOOD, verified=True) == "ann@example.org"
    for more in (
        {"email_verified": "true"},
        {"email_verified": None},
        {"email": "x"},
        {"email": "a@b\n"},
        {"email": ["a@b"]},
    ):
        with pytest.raises(TokenFault):
            email_of({**GOOD, **more}, verified=True)
    assert email_of({**GOOD, "email_verified": False}, verified=False) == "ann@example.org"
    with pytest.raises(TokenFault):
        email_of({**GOOD, "email": "ann@exämple.org"}, verified=False)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_answers_that_are_no_object(data: bytes) -> None:
    with pytest.raises(ValueError, match="its answer is"):
        parsed(data)


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": "x"}])
def test_what_is_no_set_of_keys(document: object) -> None:
    with pytest.raises(ValueError, match="no JSON Web Key Set"):
        Keys(document)
