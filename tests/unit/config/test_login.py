"""The server's `login` section."""

from pathlib import Path

import pytest

from tests.unit.config.conftest import Write
from tunneld.config.advice import warnings
from tunneld.config.load import load_server
from tunneld.config.login import is_protected
from tunneld.errors import ConfigError

ISSUER = "https://accounts.example.org"


def test_the_secret_is_read_with_the_file(write: Write, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    text = f"auth: {{mode: open}}\nlogin:\n  issuer: {ISSUER}\n  client_id: x\n  client_secret_file: {secret}\n"
    first = load_server(write(text)).login
    assert first is not None
    assert first.secret == "s3cret"
    assert "s3cret" not in repr(first)
    secret.write_text("another")
    assert load_server(write(text)).login != first, "a reload sees it"
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match=r":5: login\.client_secret_file: .*others can read"):
        load_server(write(text))
    secret.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        load_server(write(text))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("issuer: http://accounts.example.org", "http:// only on this machine"),
        ("issuer: https://me:secret@accounts.example.org", "no user or password"),
        ("issuer: accounts.example.org", "expected the issuer's address"),
        (f"issuer: {ISSUER}?x=1", "expected the issuer's address"),
        (f"issuer: {ISSUER}\n  scopes: email", "`openid` among the scopes"),
        (f"issuer: {ISSUER}\n  sesion: 1h", 'did you mean "session"'),
        (f"issuer: {ISSUER}\n  session: 0", "session"),
    ],
)
def test_faults_are_told(write: Write, line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_server(write(f"auth: {{mode: open}}\nlogin:\n  client_id: x\n  {line}\n"))
    assert words in str(caught.value)
    assert "secret@" not in str(caught.value)


def test_a_check_tells_what_it_rests_on(write: Write) -> None:
    text = f"login: {{issuer: {ISSUER}, client_id: x}}\n"
    told = warnings(load_server(write(f"auth: {{mode: open}}\n{text}")))
    assert [line.partition(":")[0] for line in told if "without" in line] == ["login", "login"]
    whole = "public_url: https://tunnel.example.org\ndomain: tunnel.example.org\n"
    assert not any("login" in line for line in warnings(load_server(write(f"{whole}{text}"))))


def test_what_nobody_on_the_way_can_change() -> None:
    for good in ("https://a", "http://127.0.0.1:1/x", "http://[::1]:2", "http://localhost", "http://a.localhost"):
        assert is_protected(good), good
    for bad in (
        "http://a",
        "http://127.0.0.1.evil",
        "ftp://localhost",
        "http://",
        "https://",
        "//localhost",
        "http://[x",
    ):
        assert not is_protected(bad), bad
