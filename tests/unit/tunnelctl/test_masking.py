"""What a bundle hides: of every key of both files, by the models themselves, and in every form that a secret takes."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import BaseModel

from tests.support.planted import PREFIX, found_in, leaves, planted, put
from tunnelctl.doctor.masking import HIDDEN, Mask, masked
from tunneld.config.agent import AgentConfig
from tunneld.config.server import ServerConfig

FILES = (AgentConfig, ServerConfig)
#: Keys whose text is no secret, whatever file they stand in. A key that is new is hidden until it stands here.
PUBLIC = {
    *("name", "when", "level", "mode", "shape", "format", "group", "serve", "v2", "tunnels", "over"),
    *("host", "listen", "domain", "allow", "deny", "trusted_proxies", "expires"),
}
ADDRESSES = {"url", "public_url", "service", "proxy", "otlp", "smtp", "issuer", "store"}


def word(path: tuple[str | int, ...]) -> str:
    """The last key's name in a path."""
    return next(str(one) for one in reversed(path) if not isinstance(one, int))


def secret(number: int) -> str:
    return f"{PREFIX}S{number}Xq"


def test_the_search_finds_what_it_should() -> None:
    one = secret(1)
    pair = base64.b64encode(f"user:{one}".encode()).decode()
    for text in (one, quote(one, safe=""), "".join(f"%{byte:02x}" for byte in one.encode()), pair, one.encode().hex()):
        assert one in found_in(f"before {text} behind".encode()), text
    assert {word(path) for path, _ in leaves(AgentConfig)} >= {
        "token_file",
        "hash",
        "webhook",
        "secret_file",
        "X-Planted",
    }
    assert {word(path) for path, _ in leaves(ServerConfig)} >= {
        "client_secret_file",
        "token_file",
        "key",
        "password_file",
    }


@pytest.mark.parametrize("model", FILES)
def test_only_the_text_of_keys_that_are_known_to_be_public_is_shown(model: type[BaseModel]) -> None:
    document, values = planted(model, secret)
    shown = found_in(json.dumps(masked(document)).encode())
    told = {word(path) for path, value in values.items() if value in shown}
    assert told <= PUBLIC, f"hide these, or say here that they are public: {told - PUBLIC}"
    assert len(values) > 60


@pytest.mark.parametrize("model", FILES)
@pytest.mark.parametrize("make", [lambda number: 910_000 + number, lambda number: f"{910_000 + number}"])
def test_a_number_that_may_be_a_code_is_hidden(model: type[BaseModel], make: Any) -> None:
    document, values = planted(model, make)
    shown = json.dumps(masked(document))
    assert {word(path) for path, value in values.items() if str(value) in shown} <= PUBLIC


@pytest.mark.parametrize("model", FILES)
def test_of_addresses_nothing_but_the_host_is_shown(model: type[BaseModel]) -> None:
    def address(number: int) -> str:
        user, password, path, query = (f"{PREFIX}{part}{number}Xq" for part in "UWPQ")
        return f"https://{user}:{password}/and@more@host{number}.example:1/{path}?k={query}#{PREFIX}F{number}Xq"

    plain = address(0).replace("/and@more", "")
    for make in (address, lambda number: plain):
        document, values = planted(model, make)
        for path in values:
            if word(path) in PUBLIC:
                put(document, path, "x")
        assert found_in(json.dumps(masked(document)).encode()) == set()
    document, values = planted(model, lambda number: plain)
    shown = json.dumps(masked(document))
    for name in {word(path) for path in values} & ADDRESSES:
        assert "host0.example" in json.dumps(masked({name: plain})), name
    assert "host0.example" in shown


def test_mistyped_and_unknown_keys_are_hidden_too() -> None:
    file = {"server": {"tokn": secret(1), "token_file": secret(2)}, secret(3): {"deep": [secret(4), {"x": secret(5)}]}}
    shown = found_in(json.dumps(masked(file)).encode())
    assert shown == {secret(3)}, "the name of a key is no value"
    assert masked({"alerts": [{"to": [{"command": ["/usr/bin/x", "--pw", "y"]}]}]}) == {
        "alerts": [{"to": [{"command": ["/usr/bin/x", HIDDEN, HIDDEN]}]}]
    }
    assert masked({"heartbeat": {"interval": "30s"}, "limits": {"memory": "512MiB", "max_streams": 7}}) == {
        "heartbeat": {"interval": "30s"},
        "limits": {"memory": "512MiB", "max_streams": 7},
    }


@pytest.mark.parametrize(
    "text",
    [
        "GET / HTTP/1.1 Authorization: Bearer {}",
        '{{"headers": [["Cookie", "sid={}; b={}"], ["X-Api-Key", "{}"]]}}',
        "cookie: sid={}; theme=dark; other={}",
        "Set-Cookie: __Host-t={}; HttpOnly",
        "Proxy-Authorization: Basic {}",
        "dial http://user:{}@proxy:3128 failed",
        "POST https://hooks.example.org/x?sig={}&a={} answered 500",
        "the service said: invalid api_key={}",
        'password="{}" rejected',
        "password: '{}'",
        "client_secret={}&grant_type=code",
        "no answer to mail for {}@example.org",
        "GET /v2/{}/tunnel/connect",
        "tnl_{}",
        "eyJhbGciOiJIUzI1NiJ9{}.{}.{}",
        "-----BEGIN EC PRIVATE KEY-----\n{}\n{}\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n{} cut off",
        r'{{"message": "said {{\"token\": \"{}\"}}"}}',
        'password: "correct {}, battery {}"',
        '{{"token": "ab {} ef"}}',
        'secret_key = "a,{},c"',
        "pass='one {}'",
        "smtp_pass={}",
        "passphrase: {}",
    ],
)
def test_what_looks_like_a_credential_is_hidden_though_nobody_knows_it(text: str) -> None:
    line = text.format(*[secret(number) for number in range(4)])
    assert found_in(line.encode())
    assert found_in(Mask([], {}).text(line).encode()) == set()


def test_plain_words_stay() -> None:
    for line in (
        "✓ Tunnel established: demo",
        "tunneld@one.service is active (running).",
        "server.token_file: /etc/tunneld/token: no such file or directory",
        "The server asks for one, and none was found here. Is it ws:// there?",
        '{"check": "token", "detail": "It is accepted."}',
        'tunneld_tunnel_up{tunnel="demo"} 1.0',
    ):
        assert Mask([{"login": {"client_id": "tunneld"}}], {"OTEL_SERVICE_NAME": "tunneld"}).text(line) == line


def test_the_secrets_of_this_machine_are_hidden_in_every_form(tmp_path: Path) -> None:
    """Of the file, of the files that it names, of the environment; in texts that give no hint what they are."""
    files: dict[str, str] = {}

    def held(key: str, text: str) -> str:
        files[key] = text
        (tmp_path / key).write_text(text + "\n")
        return str(tmp_path / key)

    config: dict[str, Any] = {
        "server": {
            "token_file": held("token", secret(1)),
            "proxy": f"http://me:{secret(2)}@proxy:3128",
            "client_key": held("key.pem", f"-----BEGIN PRIVATE KEY-----\n{secret(3)}\n-----END PRIVATE KEY-----"),
        },
        "tunnels": [
            {"name": "a", "service": f"http://h/{secret(4)}?k={secret(5)}", "headers": {"X": f"Bearer {secret(6)}"}},
            {"access": {"keys": [{"key_file": held("k", secret(7))}], "users_file": held("u", f"ann:{secret(8)}")}},
        ],
        "alerts": [
            {
                "to": [
                    {"webhook": f"https://hooks/services/T0/{secret(9)}", "secret_file": held("hmac", secret(10))},
                    {"command": ["/bin/true", f"--token={secret(11)}"]},
                    {"password_file": held("pw", secret(12))},
                ]
            }
        ],
        "tokn": secret(13),
    }
    environ = {
        "TUNNELD_TOKEN": secret(14),
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{secret(15)},x=1",
        "HTTPS_PROXY": f"http://u:{secret(16)}@p:1",
        "SOME_API_KEY": secret(17),
    }
    credential = held("credential", secret(18))
    mask = Mask([config], environ, [credential])
    for number in range(1, 19):
        one = secret(number)
        forms = [one, quote(one), one.encode().hex(), one.encode().hex().upper()]
        forms += [base64.b64encode(b"-" * before + one.encode() + b"--").decode() for before in range(4)]
        forms += [base64.urlsafe_b64encode(b"\xff" * before + one.encode()).decode() for before in range(3)]
        for form in forms:
            text = f"it said {form} and ended"
            assert one in found_in(text.encode()), form
            assert one not in found_in(mask.text(text).encode()), (number, form)
    assert mask.value({"a": [secret(1), {secret(2): 1}]}) == {"a": [HIDDEN, {HIDDEN: 1}]}


def test_values_that_are_no_path_and_no_text_are_masked_all_the_same() -> None:
    """As a file may hold them: YAML lets half a surrogate through, and a path need not be one."""
    half = f"{secret(1)}\ud800"
    config = {"server": {"token_file": "~nobody-of-this-name/token"}, "metrics": {"token_file": "a\0b"}, "tokn": half}
    assert Mask([config], {}).text(f"it said {half} and ended") == f"it said {HIDDEN} and ended"


@pytest.mark.parametrize("part", ["x-", "a-", "x-key-", "token-", "pass-"])
def test_a_text_of_many_dashes_takes_no_time_that_is_quadratic(part: str) -> None:
    """Which takes half a minute and more; what grows with the length alone takes some milliseconds."""
    text = part * 8000
    before = time.process_time()
    assert Mask([], {}).text(text) == text
    assert time.process_time() - before < 5


@pytest.mark.parametrize("part", ["http://", "://", "eyJ-", "eyJa-", "eyJaaaaaaaaa-", "eyJaaaaaaaa.", "http://?"])
def test_addresses_and_tokens_that_never_end_take_no_time_that_is_quadratic(part: str) -> None:
    """Of 128 Ki characters: some 20 to 100 s where it is, else some hundredths of one."""
    text = (part * (1 << 17))[: 1 << 17]
    before = time.process_time()
    Mask([], {}).text(text)
    assert time.process_time() - before < 5


def test_a_token_inside_a_longer_word_is_hidden_and_what_stands_before_it_shown() -> None:
    token = f"eyJhbGciOiJIUzI1NiJ9.{secret(1)}.x"
    for line, shown in (
        (f"id-{token} came", f"id-{HIDDEN} came"),
        (f"eyJ-no {token}", f"eyJ-no {HIDDEN}"),
        (f"a.{token}", f"a.{HIDDEN}"),
        ("xeyJhbGciOiJIUzI1NiJ9.a", "xeyJhbGciOiJIUzI1NiJ9.a"),
        ("see wss://a/b@c and http://h/x", f"see wss://{HIDDEN}@c and http://h/x"),
        ("<http://u:p@h://q@r>", f"<http://{HIDDEN}@r>"),
    ):
        assert Mask([], {}).text(line) == shown


def test_thousands_of_secrets_are_looked_for_in_a_moment(tmp_path: Path) -> None:
    """As one pattern with a branch for each they took minutes."""
    users = tmp_path / "users"
    users.write_text("".join(f"user{number}:{secret(number)}{'x' * 30}\n" for number in range(10_000)))
    before = time.process_time()
    mask = Mask([{"users_file": str(users)}], {})
    text = mask.text(f"it said {secret(9999)}{'x' * 30}, {secret(10001)} and " + "no word of it; " * (1 << 16))
    assert time.process_time() - before < 10
    assert text.startswith(f"it said {HIDDEN}, {secret(10001)} and no word of it; ")


def test_of_two_secrets_that_begin_alike_the_longer_is_hidden_whole() -> None:
    mask = Mask([{"tokn": "secret-1234"}, {"tokn": "secret-1234-and-more"}], {})
    assert mask.text("secret-1234-and-more, secret-1234, secret-123") == f"{HIDDEN}, {HIDDEN}, secret-123"
