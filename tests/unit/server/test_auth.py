"""Who may open tunnels."""

from __future__ import annotations

import dataclasses
import logging
import statistics
import string
from time import perf_counter_ns
from typing import Any

import pytest
from pydantic import ValidationError

from tunneld.config.server import AuthConfig, ListenConfig, ServerConfig
from tunneld.errors import ConfigError, VisitorError
from tunneld.server.auth import Gate, bearer_of, check_listeners
from tunneld.server.credentials import Credentials
from tunneld.server.keys import find, new_token
from tunneld.server.principals import OPEN, Limits, Principal
from tunneld.server.store.records import Token
from tunneld.server.tokens import digest, looks_whole, mint
from tunneld.telemetry.failures import Failures
from tunneld.wire.http1 import RequestHead
from tunneld.wire.tls import Certificate

NOW = 1_000_000.0


def head(*headers: tuple[str, str]) -> RequestHead:
    made = RequestHead.__new__(RequestHead)
    made.headers = list(headers)
    return made


def config(mode: str, *listen: dict[str, Any], **auth: Any) -> ServerConfig:
    return ServerConfig(listen=listen or ({"host": "127.0.0.1", "port": 0},), auth={"mode": mode, **auth})


def gate(*tokens: Token, mode: str = "token", now: list[float] | None = None, **auth: Any) -> Gate:
    credentials = Credentials()
    credentials.replace(tokens)
    clock = now or [NOW]
    return Gate(config(mode, **auth), credentials, clock=lambda: clock[0])


def dial(judge: Gate, secret: str | None, name: str = "app", address: str = "203.0.113.9") -> Principal:
    asked = head() if secret is None else head(("AUTHORIZATION", f"Bearer {secret}"))
    return judge.dial(asked, name, address=address)


def refusal(judge: Gate, secret: str | None, name: str = "app") -> VisitorError:
    with pytest.raises(VisitorError) as caught:
        dial(judge, secret, name)
    assert secret is None or secret not in str(caught.value)
    return caught.value


# -- open


def test_open_lets_everybody_on_this_machine_in() -> None:
    check_listeners(config("open"))
    assert dial(gate(mode="open"), None) is OPEN
    assert dial(gate(mode="open"), "whatever") is OPEN


@pytest.mark.parametrize(
    "listen", [{"host": "0.0.0.0", "port": 1}, {"host": "::", "port": 1}, {"host": "10.0.0.1", "port": 1}]
)
def test_open_never_leaves_this_machine(listen: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):  # the file is refused already
        config("open", listen)
    slipped = config("open").model_copy(update={"listen": (ListenConfig(**listen),), "auth": AuthConfig(mode="open")})
    with pytest.raises(ConfigError) as caught:
        check_listeners(slipped)
    assert str(listen["port"]) in caught.value.faults[0]
    check_listeners(config("token", listen))


@pytest.mark.parametrize(
    "listen",
    [
        {"host": "127.9.9.9", "port": 1},
        {"host": "::1", "port": 1},
        {"host": "localhost", "port": 1},
        {"unix": "/run/x.sock"},
    ],
)
def test_loopback_and_unix_are_at_home(listen: dict[str, Any]) -> None:
    check_listeners(config("open", listen))


# -- tokens


def test_a_token_tells_what_it_is_and_never_twice_the_same() -> None:
    made = {mint() for _ in range(200)}
    assert len(made) == 200
    for token in made:
        assert token.startswith("tnl_")
        assert len(token) == 53
        assert set(token[4:]) <= set(string.ascii_letters + string.digits)
        assert looks_whole(token)
        assert not looks_whole(token[:-1])
        assert not looks_whole(token[:20] + ("x" if token[20] != "x" else "y") + token[21:])


@pytest.mark.parametrize("text", ["", "tnl_", "tnl_x", "x" * 53, "tnl_" + "é" * 49, "\ud800" * 53])
def test_other_words_are_no_tokens(text: str) -> None:
    assert not looks_whole(text)
    assert len(digest(text)) == 32


def test_the_right_token_opens_its_tunnel_and_no_other() -> None:
    token, secret = new_token("app", now=NOW, limits=Limits(5, 0, 2.0))
    assert secret is not None
    judge = gate(token)
    found = dial(judge, secret)
    assert (found.id, found.name, found.tunnels, found.limits.streams) == (token.id, "app", ("app",), 5)
    assert judge.alive(found)
    assert secret not in repr(token) + repr(found)
    assert repr(token.digest) not in repr(token)
    assert refusal(judge, secret, "other").code == "name_not_allowed"


@pytest.mark.parametrize(
    ("globs", "name", "opens"),
    [
        (["a*", "b"], "a", True),
        (["a*", "b"], "ab-c", True),
        (["a*", "b"], "b", True),
        (["a*", "b"], "bb", False),
        (["?x"], "ax", True),
        (["?x"], "x", False),
        (["*"], "anything", True),
        ([], "app", False),
    ],
)
def test_globs(globs: list[str], name: str, opens: bool) -> None:
    token, secret = new_token("app", now=NOW, tunnels=globs)
    judge = gate(token)
    if opens:
        assert dial(judge, secret, name)
    else:
        assert refusal(judge, secret, name).code == "name_not_allowed"


def test_every_way_to_be_wrong_has_its_words() -> None:
    token, secret = new_token("app", now=NOW, lifetime=10)
    assert secret is not None
    clock = [NOW]
    judge = gate(token, now=clock)
    cases = [
        (None, "none was sent"),
        (mint(), "opens nothing here"),
        (secret[:-1], "checksum"),
        (secret + "x", "checksum"),
        ("tnl_", "checksum"),
        ("hello", "opens nothing"),
        ("a b", "no bearer token"),
    ]
    for wrong, words in cases:
        error = refusal(judge, wrong)
        assert (error.code, error.status) == ("unauthorized", 401)
        assert words in error.detail
    for value in ("Basic eA==", "Bearer", "Bearer ", secret):
        with pytest.raises(VisitorError) as caught:
            judge.dial(head(("Authorization", value)), "app", address="x")
        assert "no bearer token" in caught.value.detail
    assert dial(judge, secret)
    clock[0] += 10
    assert "expired" in refusal(judge, secret).detail
    judge.credentials.replace([dataclasses.replace(token, revoked=NOW)])
    assert "revoked" in refusal(judge, secret).detail
    admin, admin_secret = new_token("ops", now=NOW, scopes=["read"])
    judge.credentials.replace([admin])
    assert "admin API" in refusal(judge, admin_secret).detail


def test_two_headers_are_no_credential() -> None:
    assert bearer_of([]) is None
    assert bearer_of(["Bearer x"]) == "x"
    assert bearer_of(["bearer  x "]) == "x"
    assert bearer_of(["Bearer x", "Bearer x"]) == ""
    assert bearer_of(["Bearer x y"]) == ""


def test_a_rotated_secret_is_good_for_its_overlap_and_not_longer() -> None:
    token, old = new_token("app", now=NOW)
    new = mint()
    clock = [NOW]
    rotated = dataclasses.replace(token, digest=digest(new), old_digest=token.digest, old_until=NOW + 5)
    judge = gate(rotated, now=clock)
    first, second = dial(judge, old), dial(judge, new)
    assert first.id == second.id
    assert judge.credentials.next_end(NOW) == NOW + 5
    clock[0] += 5
    assert judge.credentials.next_end(clock[0]) is None
    assert "replaced by a newer" in refusal(judge, old).detail
    assert not judge.alive(first)
    assert judge.alive(second)


def test_a_revoked_token_is_alive_no_longer() -> None:
    token, secret = new_token("app", now=NOW)
    judge = gate(token)
    found = dial(judge, secret)
    judge.credentials.replace([dataclasses.replace(token, revoked=NOW)])
    assert not judge.alive(found)
    judge.credentials.replace([])
    assert not judge.alive(found)
    assert not judge.alive(OPEN)  # who came while the server was open


def test_certificates_stand_for_tokens() -> None:
    print_of = "ab" * 32
    by_print, none = new_token("app", now=NOW, certificate=f"sha256:{print_of}")
    by_name, _ = new_token("web", now=NOW, certificate="subject:agent-7", tunnels=["web"])
    assert none is None
    judge = gate(by_print, by_name)

    def come(certificate: Certificate, name: str, *headers: tuple[str, str]) -> Principal:
        return judge.dial(head(*headers), name, address="x", certificate=certificate)

    assert come(Certificate(print_of, ""), "app").id == by_print.id
    found = come(Certificate("cd" * 32, "agent-7"), "web")
    assert found.id == by_name.id
    for certificate, name in ((Certificate("cd" * 32, "other"), "app"), (Certificate("cd" * 32, ""), "app")):
        with pytest.raises(VisitorError) as caught:
            come(certificate, name)
        assert "client certificate" in caught.value.detail
    with pytest.raises(VisitorError):  # a token that is sent is what counts
        come(Certificate(print_of, ""), "app", ("Authorization", "Bearer wrong"))
    judge.credentials.replace([dataclasses.replace(by_name, revoked=NOW)])
    assert not judge.alive(found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": ""}, "printable"),
        ({"name": "a b"}, "printable"),
        ({"name": "x" * 65}, "printable"),
        ({"name": "My.Server"}, "no tunnel's name"),
        ({"name": "a", "tunnels": ["A"]}, "fits no tunnel"),
        ({"name": "a", "tunnels": ["a b"]}, "fits no tunnel"),
        ({"name": "a", "tunnels": ["[a]"]}, "fits no tunnel"),
        ({"name": "a", "scopes": ["root"]}, "scopes are"),
        ({"name": "a", "scopes": []}, "scopes are"),
        ({"name": "a", "certificate": "sha256:xyz"}, "sha256:HEX"),
        ({"name": "a", "certificate": "subject:a", "scopes": ["read"]}, "not the admin API"),
        ({"name": "a", "tunnels": ["a"] * 101}, "at most 100"),
    ],
)
def test_what_no_token_may_be(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        new_token(now=NOW, **arguments)


def test_ids_may_be_shortened_but_not_guessed() -> None:
    tokens = [dataclasses.replace(new_token("app", now=NOW)[0], id=name) for name in ("abcd0001", "abcd0002", "ff")]
    assert find(tokens, "abcd0001").id == "abcd0001"
    assert find(tokens, "ff").id == "ff"
    for wrong, words in (("abcd", "fits 2 tokens"), ("f", "no token"), ("app", "has the id")):
        with pytest.raises(ValueError, match=words):
            find(tokens, wrong)


# -- failures


def test_failures_are_counted_by_address_and_a_good_token_passes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tunneld.auth")
    token, secret = new_token("app", now=NOW)
    judge = gate(token, max_failures=3, failure_window=600)
    codes = []
    for _ in range(5):
        error = refusal(judge, "incorrect")
        codes.append(error.code)
    assert codes == ["unauthorized"] * 3 + ["rate_limited"] * 2
    assert error.status == 429
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 200
    assert len(caplog.records) == 3  # those beyond the bound fill no log
    assert caplog.records[0].getMessage() == "Refused a credential from 203.0.113.9: unknown"
    assert dial(judge, secret)
    with pytest.raises(VisitorError) as caught:
        dial(judge, "incorrect", address="203.0.113.10")
    assert caught.value.code == "unauthorized"


def test_a_bucket_empties_with_time_and_the_table_is_bounded() -> None:
    failures = Failures(most=2, window=10, addresses=3)
    assert failures.note("a", 0) is None
    assert failures.note("a", 0) is None
    assert failures.note("a", 0) == 5
    assert failures.note("a", 4) == pytest.approx(1)
    assert failures.note("a", 5.5) is None
    for number in range(10):
        failures.note(f"10.0.0.{number}", 6)
    assert len(failures) == 3
    assert failures.note("a", 6) is None  # forgotten for newer ones


def test_an_ipv6_network_is_one_address() -> None:
    failures = Failures(most=1, window=60)
    assert failures.note("2001:db8:1:2::1", 0) is None
    assert failures.note("2001:db8:1:2:ffff::9", 0) is not None
    assert failures.note("2001:db8:1:3::1", 0) is None
    assert failures.note("::ffff:192.0.2.1", 0) is None
    assert failures.note("unix", 0) is None


# -- time


def test_a_wrong_token_takes_as_long_whatever_it_shares_with_a_right_one() -> None:
    """Prefixes of the right secret, against words that share nothing: the medians differ by less than the noise."""
    token, secret = new_token("app", now=NOW)
    assert secret is not None
    credentials = Credentials()
    credentials.replace([token, *(new_token(f"t{number}", now=NOW)[0] for number in range(200))])
    near = [secret[:-1] + ("a" if secret[-1] != "a" else "b"), secret[:40] + mint()[40:], secret[:8] + mint()[8:]]
    far = [mint() for _ in near]

    def spent(word: str) -> int:
        before = perf_counter_ns()
        credentials.by_secret(word, NOW)
        return perf_counter_ns() - before

    def medians() -> float:
        samples: dict[bool, list[int]] = {True: [], False: []}
        for _ in range(1500):  # in turns, so that the machine's load falls on both alike
            for one, other in zip(near, far, strict=True):
                samples[True].append(spent(one))
                samples[False].append(spent(other))
        return statistics.median(samples[True]) / statistics.median(samples[False])

    assert any(0.95 < medians() < 1.05 for _ in range(5))
