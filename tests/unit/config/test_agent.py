from typing import Any

import pytest
from pydantic import ValidationError

from tunneld.config.agent import AgentConfig, default_control_socket
from tunneld.config.common import Faults
from tunneld.config.tunnel import TunnelConfig

SERVER = {"url": "ws://127.0.0.1:8440"}
DEMO = {"name": "demo", "service": "http://127.0.0.1:9000"}


def agent(**keys: Any) -> AgentConfig:
    return AgentConfig.model_validate({"server": SERVER, **keys})


def test_defaults_are_those_of_the_contract() -> None:
    config = agent(tunnels=[DEMO])
    assert (config.heartbeat.interval, config.heartbeat.timeout) == (30, 10)
    assert (config.sse.keepalive, config.sse.max_event, config.sse.identity) == (30, 256 << 10, True)
    assert (config.sse.recover, config.sse.replay, config.sse.replay_buffer) == (False, 0, 1 << 20)
    assert (config.resume.grace, config.resume.buffer) == (60, 4 << 20)
    assert (config.reconnect.initial, config.reconnect.max, config.drain_timeout) == (0.5, 60, 30)
    limits = config.limits
    assert (limits.max_streams, limits.stream_window, limits.stream_window_max) == (1000, 256 << 10, 4 << 20)
    assert (limits.memory, limits.stall, limits.connect_timeout, limits.response_timeout) == (512 << 20, 60, 5, 60)
    assert (config.control.group, config.control.mode, config.control.readonly_socket) == (None, 0o660, None)
    assert (config.log.level, config.log.format, config.log.queries, config.log.audit) == ("info", "auto", False, None)
    assert (config.metrics.listen, config.telemetry.otlp, config.alerts) == (None, None, ())
    tunnel = config.tunnels[0]
    assert (tunnel.access.mode, tunnel.inspect, dict(tunnel.headers)) == ("open", False, {})
    assert (tunnel.service_check.path, tunnel.service_check.interval) == (None, 30)


def test_a_tunnel_takes_from_the_defaults_what_it_does_not_set() -> None:
    config = agent(
        heartbeat={"interval": "20s", "timeout": "4s"},
        sse={"keepalive": "7s"},
        limits={"stream_window_max": "16MiB"},
        tunnels=[
            {**DEMO, "heartbeat": {"interval": "10s"}, "limits": {"stream_window": "8MiB"}},
            {**DEMO, "name": "other"},
        ],
    )
    demo, other = config.tunnels
    assert (demo.heartbeat.interval, demo.heartbeat.timeout) == (10, 4)
    assert (demo.limits.stream_window, demo.limits.stream_window_max) == (8 << 20, 16 << 20)
    assert demo.sse == config.sse
    assert (other.heartbeat, other.limits) == (config.heartbeat, config.limits)
    assert demo.heartbeat.model_fields_set == {"interval"}
    assert config.tunnel("other") is other
    assert config.tunnel("none") is None


def test_a_tunnel_made_at_run_time_is_completed_the_same_way() -> None:
    config = agent(heartbeat={"interval": "20s"}, tunnels=[DEMO])
    made = config.complete(TunnelConfig.model_validate(DEMO))
    assert made == config.tunnels[0]
    assert config.complete(made) == made
    with pytest.raises(Faults, match="more than stream_window_max"):
        config.complete(TunnelConfig.model_validate({**DEMO, "limits": {"stream_window": "5MiB"}}))


@pytest.mark.parametrize(
    ("keys", "place", "words"),
    [
        ({"limits": {"stream_window": "16383"}}, ("limits", "stream_window"), "at least 16KiB"),
        ({"limits": {"stream_window": "8MiB"}}, ("limits",), "more than stream_window_max"),
        ({"limits": {"stream_window_max": "4GiB"}}, ("limits", "stream_window_max"), "at most"),
        ({"resume": {"buffer": "65535"}}, ("resume", "buffer"), "at least 64KiB"),
        ({"control": {"event_queue": "64KiB"}}, ("control", "event_queue"), "at least 256KiB"),
        ({"heartbeat": {"interval": 0}}, ("heartbeat", "interval"), "at least 10ms"),
        ({"sse": {"keepalive": "1ms"}}, ("sse", "keepalive"), "or 0 for off"),
        ({"reconnect": {"initial": "2m"}}, ("reconnect",), "initial (2m) is more than max (1m)"),
        ({"control": {"socket": "/x" * 60}}, ("control", "socket"), "at most 107 bytes"),
        ({"tunnels": [DEMO, DEMO]}, ("tunnels",), "tunnels[0] has that name"),
        ({"tunnels": [{**DEMO, "limits": {"stream_window": "5MiB"}}]}, ("tunnels",), "more than stream_window_max"),
        ({"server": {**SERVER, "client_key": "/k"}}, ("server",), "client_cert"),
        ({"metrics": {"listen": "9460"}}, ("metrics", "listen"), "HOST:PORT"),
        ({"metrics": {"listen": "127.0.0.1:99999"}}, ("metrics", "listen", "port"), "65535"),
        ({"telemetry": {"otlp": "collector"}}, ("telemetry", "otlp"), "such as"),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, Any], place: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        agent(**keys)
    [error] = caught.value.errors()
    assert error["loc"] == place
    assert words in error["msg"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h:8440", "write ws://h:8440"),
        ("https://h", "write wss://h"),
        ("h:8440", "such as wss://"),
        ("ws://", "such as wss://"),
        ("ws://h/tunnel/connect", "adds the path itself"),
        ("ws://h?x=1", "adds the path itself"),
        ("wss://me:hunter2@h", "token_file"),
        ("https://me:hunter2@h", "token_file"),
        ("ws://h:0", "such as"),
        ("ws://h:99999", "such as"),
        ("ws://[::1", "such as"),
        ("ws://a b", "such as"),
        (3, "such as"),
    ],
)
def test_a_wrong_server_address_is_told_the_right_form(url: object, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        agent(server={"url": url})
    message = caught.value.errors()[0]["msg"]
    assert words in message
    assert "hunter2" not in message


@pytest.mark.parametrize("url", ["ws://127.0.0.1:8440", "wss://tunnel.example.org", "ws://[::1]:8440", "WSS://H/"])
def test_server_addresses(url: str) -> None:
    assert agent(server={"url": url}).server.url == url.removesuffix("/").replace("WSS", "wss")


@pytest.mark.parametrize("name", ["demo", "a", "1", "a-b", "x" * 63])
def test_names_are_dns_labels(name: str) -> None:
    assert agent(tunnels=[{**DEMO, "name": name}]).tunnels[0].name == name


@pytest.mark.parametrize("name", ["", "Demo", "a_b", "-a", "a-", "a.b", "x" * 64, "é", "a\n", None, 3])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(ValidationError):
        agent(tunnels=[{**DEMO, "name": name}])


@pytest.mark.parametrize(
    "headers",
    [
        {"a b": "x"},
        {"": "x"},
        {"A": "x\r\nB: y"},
        {"A": " x"},
        {"A": "\u20ac"},
        {"Host": "a", "host": "b"},
        {"Content-Length": "3"},
        {"A": 3},
        ["A"],
    ],
)
def test_headers_that_cannot_be_sent(headers: object) -> None:
    with pytest.raises(ValidationError):
        agent(tunnels=[{**DEMO, "headers": headers}])


def test_the_secrets_that_a_file_may_hold_are_not_in_its_repr() -> None:
    config = agent(
        server={**SERVER, "proxy": "http://me:hunter2@proxy:3128"},
        tunnels=[{**DEMO, "headers": {"Authorization": "Bearer hunter2"}}],
    )
    assert config.server.proxy is not None
    assert "hunter2" not in repr(config)


def test_a_key_without_a_value_is_as_if_it_were_not_there() -> None:
    config = agent(heartbeat=None, sse={"keepalive": None}, tunnels=None)
    assert config.heartbeat.interval == config.sse.keepalive == 30
    assert "heartbeat" not in config.model_fields_set


def test_a_configuration_cannot_be_changed() -> None:
    config = agent()
    with pytest.raises(ValidationError):
        config.drain_timeout = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environ", "uid", "path"),
    [
        ({}, 0, "/run/tunneld/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/tunneld/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/tunneld/control.sock"),
        ({}, 7, "/run/tunneld/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/tunneld"}, 7, "/run/tunneld/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/tunneld-a:/run/b", "XDG_RUNTIME_DIR": "/x"}, 7, "/run/tunneld-a/control.sock"),
    ],
)
def test_where_the_control_socket_is(environ: dict[str, str], uid: int, path: str) -> None:
    assert default_control_socket(environ, uid) == path
