from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from tunneld.config.server import ListenConfig, ServerConfig, ServerHeartbeat, ServerSse


def server(**keys: Any) -> ServerConfig:
    return ServerConfig.model_validate(keys)


def test_defaults_are_those_of_the_contract() -> None:
    config = server()
    assert [str(listener) for listener in config.listen] == ["127.0.0.1:8440"]
    assert config.listen[0].serve == ("visitors", "tunnels")
    assert config.admin is not None
    assert str(config.admin.listen) == "127.0.0.1:8441"
    assert (config.public_url, config.domain, config.tls) == (None, None, None)
    assert (config.auth.mode, config.auth.v2) == ("token", "token")
    assert config.store == "sqlite:////var/lib/tunneld-server/server.db"
    beat, sse, limits = config.heartbeat, config.sse, config.limits
    assert (beat.interval, beat.timeout, beat.min, beat.max) == (30, 10, 1, 300)
    assert (sse.keepalive, sse.min, sse.max, sse.max_event, sse.replay_total) == (30, 1, 300, 256 << 10, 64 << 20)
    assert (config.resume.grace, config.resume.buffer, config.drain_timeout) == (60, 4 << 20, 30)
    assert (limits.max_tunnels, limits.max_streams, limits.memory, limits.stall) == (10000, 1000, 512 << 20, 60)
    assert (limits.stream_window, limits.stream_window_max, limits.max_header) == (256 << 10, 4 << 20, 64 << 10)
    assert (limits.header_timeout, limits.hello_timeout, limits.max_body, limits.hold) == (10, 5, 0, 5)
    assert limits.v2_message == 16 << 20
    assert config.trusted_proxies == ()


def test_listen_is_one_or_several() -> None:
    one = server(listen={"host": "::1", "port": "0"})
    assert [str(listener) for listener in one.listen] == ["[::1]:0"]
    several = server(
        listen=[
            {"port": 8440, "serve": ["visitors"]},
            {"unix": "/run/x.sock", "mode": "0666"},
            {"host": "127.0.0.1", "port": "8443", "serve": ["tunnels"], "tls": {"cert": "/c", "key": "/k"}},
        ]
    )
    assert [str(listener) for listener in several.listen] == ["127.0.0.1:8440", "unix:/run/x.sock", "127.0.0.1:8443"]
    assert several.listen[1].mode == 0o666
    assert several.listen[2].tls is not None
    assert server(listen=[{"port": 0}, {"port": 0}]).listen[1].port == 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"listen": []}, "at least one listener"),
        ({"listen": {}}, "host and port, or unix"),
        ({"listen": {"unix": "/a", "port": 3}}, "not both"),
        ({"listen": {"port": 3, "mode": "0600"}}, "belongs to a unix listener"),
        ({"listen": {"port": 3, "serve": []}}, "[visitors, tunnels]"),
        ({"listen": {"port": 3, "serve": ["visitors", "visitors"]}}, "[visitors, tunnels]"),
        ({"listen": {"port": 65536}}, "from 0 to 65535"),
        ({"listen": [{"port": 3}, {"port": 3}]}, "stands there already"),
        ({"admin": 3}, "valid dictionary"),
        ({"public_url": "tunnel.example.org"}, "such as https://"),
        ({"public_url": "https://me:pw@h"}, "no user or password"),
        ({"public_url": "https://h/base"}, "/t/NAME/"),
        ({"domain": "a..b"}, "such as tunnel.example.org"),
        ({"domain": "https://a.b"}, "such as tunnel.example.org"),
        ({"store": "server.db"}, "sqlite:////"),
        ({"heartbeat": {"min": "6m"}}, "min (6m) is more than max (5m)"),
        ({"sse": {"max": "0.5s"}}, "min (1s) is more than max (500ms)"),
        ({"limits": {"stream_window": "8MiB"}}, "more than stream_window_max"),
        ({"limits": {"max_body": -1}}, "negative"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "did you mean 10.0.0.0/8"),
        ({"trusted_proxies": ["proxy"]}, "an address or a range"),
        ({"trusted_proxies": [3]}, "an address or a range"),
        ({"tls": {"cert": "/c"}}, "required"),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        server(**keys)
    assert words in caught.value.errors()[0]["msg"]


def test_public_url_and_domain_are_made_regular() -> None:
    config = server(public_url="https://Tunnel.example.org/", domain="Example.ORG.")
    assert (config.public_url, config.domain) == ("https://Tunnel.example.org", "example.org")


@pytest.mark.parametrize(
    "listen",
    [
        {"host": "127.0.0.1", "port": 1},
        {"host": "127.9.9.9", "port": 1},
        {"host": "::1", "port": 1},
        {"host": "localhost", "port": 1},
        {"unix": "/a"},
    ],
)
def test_open_is_allowed_where_only_this_machine_reaches(listen: dict[str, Any]) -> None:
    config = server(listen=listen, auth={"mode": "open"})
    assert (config.auth.mode, config.auth.v2) == ("open", "open")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "tunnel.example.org", "localhost.example.org", ""])
@pytest.mark.parametrize("auth", [{"mode": "open"}, {"mode": "token", "v2": "open"}, {"mode": "open", "v2": "token"}])
def test_open_is_refused_anywhere_else(host: str, auth: dict[str, str]) -> None:
    listen = [{"port": 1}, {"host": host or "0", "port": 2}]
    with pytest.raises(ValidationError, match="lets anyone who reaches"):
        server(listen=listen, auth=auth)
    server(listen=listen)


def test_v2_is_as_mode_unless_it_says_otherwise() -> None:
    assert server(auth={"v2": "refuse"}).auth.v2 == "refuse"
    assert server(auth={"mode": "open", "v2": "refuse"}).auth.v2 == "refuse"
    assert server(auth={"mode": "open"}).auth.model_fields_set == {"mode"}


@pytest.mark.parametrize("value", [False, "false", "no", "Off"])
def test_no_admin_listener(value: object) -> None:
    assert server(admin=value).admin is None
    assert server(admin="true") == server()


def test_proxies_are_networks() -> None:
    found = server(trusted_proxies=["127.0.0.1", "::1", "10.0.0.0/8"]).trusted_proxies
    assert found == (ip_network("127.0.0.1"), ip_network("::1"), ip_network("10.0.0.0/8"))


def test_what_an_agent_may_wish() -> None:
    beat, sse = ServerHeartbeat(), ServerSse(min=2, max=20)
    assert [beat.clamp(wish) for wish in (0.1, 10, 900)] == [1, 10, 300]
    assert [sse.clamp(wish) for wish in (0, 1, 10, 900)] == [0, 2, 10, 20]


def test_a_listener_made_by_a_program() -> None:
    assert ListenConfig(host="127.0.0.1", port=0).loopback
    assert server(listen=ListenConfig(host="127.0.0.1", port=0)).listen[0].port == 0
