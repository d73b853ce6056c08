"""Who may open tunnels, until there is a store of tokens."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tunneld.config.server import AuthConfig, ListenConfig, ServerConfig
from tunneld.errors import ConfigError, VisitorError
from tunneld.server.auth import Gate
from tunneld.wire.http1 import RequestHead


def head(*headers: tuple[str, str]) -> RequestHead:
    made = RequestHead.__new__(RequestHead)
    made.headers = list(headers)
    return made


def config(mode: str, *listen: dict[str, Any]) -> ServerConfig:
    return ServerConfig(listen=listen or ({"host": "127.0.0.1", "port": 0},), auth={"mode": mode})


def test_open_lets_everybody_on_this_machine_in() -> None:
    gate = Gate(config("open"))
    gate.check()
    gate.allow(head(), "app")


def test_with_token_nobody_comes_in_and_the_answer_says_why() -> None:
    gate = Gate(config("token", {"host": "0.0.0.0", "port": 0}))
    gate.check()
    with pytest.raises(VisitorError) as caught:
        gate.allow(head(), "app")
    assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
    assert "none was sent" in caught.value.detail
    with pytest.raises(VisitorError) as caught:
        gate.allow(head(("AUTHORIZATION", "Bearer secret")), "app")
    assert "matches" in caught.value.detail
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "listen", [{"host": "0.0.0.0", "port": 1}, {"host": "::", "port": 1}, {"host": "10.0.0.1", "port": 1}]
)
def test_open_never_leaves_this_machine(listen: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):  # the file is refused already
        config("open", listen)
    slipped = config("open").model_copy(update={"listen": (ListenConfig(**listen),), "auth": AuthConfig(mode="open")})
    with pytest.raises(ConfigError) as caught:
        Gate(slipped).check()
    assert str(listen["port"]) in caught.value.faults[0]


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
    Gate(config("open", listen)).check()
