"""A listener's certificates: which one a name gets, and what a changed file does."""

from __future__ import annotations

import os
import shutil
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.authority import Authority
from tests.support.sockets import Certificate
from tunneld.errors import ConfigError
from tunneld.wire.certificates import Certificates, Pair, describe
from tunneld.wire.tls import server_context


def make(*pairs: tuple[str, Certificate]) -> Certificates:
    return Certificates(
        [Pair(str(one.cert), str(one.key), where) for where, one in pairs],
        lambda pair: server_context(pair.cert, pair.key, where=pair.where),
    )


def test_what_a_certificate_says_of_itself(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue("a", "DNS:Tunnel.Example.org", "DNS:*.tunnel.example.org", "IP:127.0.0.1")
    names, until = describe(made.cert.read_bytes())
    assert names == {"tunnel.example.org", "*.tunnel.example.org"}
    assert until == datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC)
    soon = Authority(tmp_path / "b").issue("a", end="20260102030405Z")
    assert describe(soon.cert.read_bytes()) == (frozenset(), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert describe(b"no certificate") == (frozenset(), None)
    whole = ssl.PEM_cert_to_DER_cert(made.cert.read_text())
    for cut in range(0, len(whole), 7):  # torn: nothing is said, and nothing raised
        describe(ssl.DER_cert_to_PEM_cert(whole[:cut]).encode())


def test_a_name_gets_its_own_then_a_wildcard_then_the_first(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pairs = {
        "tls": authority.issue("first", "DNS:other.test"),
        "tls.sni[0]": authority.issue("wild", "DNS:*.tunnel.test"),
        "tls.sni[1]": authority.issue("one", "DNS:one.tunnel.test"),
    }
    held = make(*pairs.items())
    found = {name: held.find(name) for name in ("a.tunnel.test", "A.Tunnel.Test.", "one.tunnel.test")}
    assert found["a.tunnel.test"] is found["A.Tunnel.Test."]
    assert len({id(held.find(name)) for name in ("a.tunnel.test", "one.tunnel.test", "other.test")}) == 3
    for name in (None, "", "unknown.test", "a.b.tunnel.test", "tunnel.test"):
        assert held.find(name) is held.context


def test_files_are_read_again_only_when_they_changed_and_a_bad_pair_changes_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    live, other = authority.issue("live", "DNS:a.test"), authority.issue("other", "DNS:a.test")
    held = make(("tls", live))
    assert not held.reload()
    shutil.copy(other.key, live.key)
    before = held.find(None)
    with pytest.raises(ConfigError, match=r"^tls\.key: .*live\.key is not the key of the certificate .*live\.pem$"):
        held.reload()
    assert held.find(None) is before
    assert not held.reload()  # it was said once
    shutil.copy(other.cert, live.cert)
    assert held.reload()
    assert held.find(None) is not before
    os.unlink(live.cert)
    with pytest.raises(ConfigError, match=r"tls\.cert: .* cannot be read: No such file"):
        held.reload()


def test_every_pair_that_cannot_be_used_has_its_line(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, two = authority.issue("one"), authority.issue("two")
    crossed = Certificate(one.cert, two.key)
    with pytest.raises(ConfigError) as caught:
        make(("tls", crossed), ("tls.sni[0]", one), ("tls.sni[1]", crossed))
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["tls.key", "tls.sni[1].key"]
