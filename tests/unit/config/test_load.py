import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.config.conftest import Write
from tunneld.config.agent import AgentConfig
from tunneld.config.load import MAX_FILE, load, load_agent, load_server, role_of
from tunneld.config.server import ServerConfig
from tunneld.errors import ConfigError

AGENT = "server: {url: ws://127.0.0.1:8440}\n"


def faults_of(path: str, role: str = "agent") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_agent(path) if role == "agent" else load_server(path)
    assert caught.value.exit_status == 2
    return [fault.removeprefix(path) for fault in caught.value.faults]


def test_every_fault_has_its_line_its_key_and_what_was_expected(write: Write) -> None:
    path = write(
        """\
server:
  url: http://127.0.0.1:8440
  tokenfile: /etc/tunneld/token
hartbeat: {interval: 5s}
keepalive: 3
heartbeat: {interval: 60:00, timeout: -3s}
heartbeat: {interval: 60}
sse: {recover: maybe, max_event: 12XB}
limits:
  stream_window: 1KiB
tunnels:
  - name: Demo
    service: 9000
    access: {mode: opn}
    headers:
      X y: 1
  - {name: a, service: ftp://x}
  - {name: a, service: http://x}
  - 3
control: {mode: "0999"}
log: verbose
alerts: 3
"""
    )
    assert faults_of(path) == [
        ":2: server.url: expected ws:// or wss://; write ws://127.0.0.1:8440 for this server",
        ':3: server.tokenfile: unknown key (did you mean "token_file"?)',
        ':4: hartbeat: unknown key (did you mean "heartbeat"?)',
        ':5: keepalive: unknown key (did you mean "sse.keepalive"?)',
        (':6: heartbeat.interval: expected a duration such as 500ms, 30s, 2m, 1h or plain seconds, not "60:00"'),
        (
            ":6: heartbeat.timeout: expected a duration such as 500ms, 30s, 2m, 1h or plain seconds; "
            'it cannot be negative as "-3s" is'
        ),
        ':7: the key "heartbeat" stands on line 6 already',
        ':8: sse.max_event: expected a size such as 256KiB, 4MiB or plain bytes, not "12XB"',
        ':8: sse.recover: expected true or false, not "maybe"',
        ':10: limits.stream_window: expected at least 16KiB, not "1KiB"',
        (
            ":12: tunnels[0].name: expected a DNS label: a-z, 0-9 and '-', at most 63 characters, "
            "no '-' at either end; not \"Demo\""
        ),
        (
            ":13: tunnels[0].service: expected http://HOST:PORT, https://HOST:PORT or unix:/path/of.sock, "
            'not "9000" (did you mean http://127.0.0.1:9000?)'
        ),
        ':14: tunnels[0].access.mode: expected open, key, basic or login, not "opn" (did you mean "open"?)',
        ":16: tunnels[0].headers.\"X y\": expected a header name: letters, digits and '-'",
        ':17: tunnels[1].service: expected http://HOST:PORT, https://HOST:PORT or unix:/path/of.sock, not "ftp://x"',
        ":18: tunnels[2].name: tunnels[1] has that name already",
        ':19: tunnels[3]: expected a mapping of keys to values, not "3"',
        ':20: control.mode: expected an octal mode such as "0660", not "0999"',
        ':21: log: expected a mapping of keys to values, not "verbose"',
        ':22: alerts: expected a list, not "3"',
    ]


def test_faults_of_a_servers_file(write: Write) -> None:
    path = write(
        """\
listen:
  - {host: 0.0.0.0, port: 99999}
  - {unix: /a, port: 3}
  - {host: "::", port: 0, serve: visitors}
  - {host: "::", port: 0, serve: [visitor]}
trusted_proxies: [10.0.0.1/8]
tls:
  cert: /c
store: foo
"""
    )
    assert faults_of(path, "server") == [
        ":2: listen[0].port: expected a whole number from 0 to 65535, not 99999",
        ":3: listen[1]: expected host and port, or unix, not both",
        ':4: listen[2].serve: expected a list, not "visitors"',
        ':5: listen[3].serve[0]: expected visitors or tunnels, not "visitor" (did you mean "visitors"?)',
        (
            ':6: trusted_proxies[0]: expected an address or a range such as 10.0.0.0/8 or ::1; "10.0.0.1/8" has bits '
            "beyond its prefix (did you mean 10.0.0.0/8?)"
        ),
        ":7: tls.key: missing; expected a value",
        ':9: store: expected sqlite:////absolute/path.db or memory:, not "foo"',
    ]


def test_a_default_that_follows_a_wrong_key_is_no_second_fault(write: Write) -> None:
    assert faults_of(write("listen: {port: 1}\nauth: {mode: opne}\n"), "server") == [
        ':2: auth.mode: expected token or open, not "opne" (did you mean "open"?)'
    ]


def test_one_listener_keeps_its_own_names(write: Write) -> None:
    assert faults_of(write("listen:\n  host: 127.0.0.1\n  prt: 3\n"), "server") == [
        ':3: listen.prt: unknown key (did you mean "port"?)'
    ]


def test_an_open_server_on_a_public_address_says_why_it_does_not_start(write: Write) -> None:
    [fault] = faults_of(write("listen: {host: 0.0.0.0, port: 8440}\n\nauth:\n  mode: open\n"), "server")
    assert fault.startswith(":4: auth.mode: open lets anyone who reaches 0.0.0.0:8440 open a tunnel")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ": the file has no keys"),
        ("# nothing\n", ": the file has no keys"),
        ("null\n", ": the file has no keys"),
        ("- a\n", ":1: expected keys and values such as `log: {level: info}`, not a list"),
        ("hello\n", ":1: expected keys and values such as `log: {level: info}`, not plain text"),
        ("server: {url: ws://h}\n---\nlog: {}\n", ":2: a second document begins here"),
        ("server: {}\n", ":1: server.url: missing; expected the server's address"),
        ("tunnels: []\n", ":1: server: missing; expected `server: {url:"),
        ("server:\n", ":1: server: missing; expected `server: {url:"),
        (AGENT + "drain_timeout: {a: 1}\n", ":2: drain_timeout: expected a duration"),
        (AGENT + "metrics: {listen: {port: x}}\n", ":2: metrics.listen.port: expected a whole number"),
        (AGENT + "control: {group: no-such-group-here}\n", ':2: control.group: this machine has no group "no-such'),
        (AGENT + "control: {group: ''}\n", ":2: control.group: expected text"),
        (AGENT + '"a\\e[31m": 1\n', ":2: "),
        (AGENT + '"a\\e[31m": 1\n"a\\e[31m": 2\n', ":3: the key"),
        ('server: {url: "http://h\\e[31m"}\n', ":1: server.url: expected an address"),
    ],
)
def test_files_that_say_too_little_or_too_much(text: str, words: str, write: Write) -> None:
    found = faults_of(write(text))
    assert any(fault.startswith(words) for fault in found), found
    assert all(fault.isprintable() for fault in found)


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    assert faults_of(str(tmp_path / "none.yaml")) == [": no such file or directory"]
    assert faults_of(str(tmp_path)) == [": is a directory"]
    assert "no such file" in faults_of("a\0b")[0]
    assert faults_of(write("#" * (MAX_FILE + 1))) == [": expected a file of at most 1024 KiB"]
    assert faults_of(write(b"a: \xff\xfe\n")) == [":1: expected UTF-8 text, not the byte 0xff"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_is_not_ours_to_read(write: Write) -> None:
    assert faults_of(write(AGENT, mode=0)) == [": permission denied"]


def test_a_file_of_the_other_role(write: Write) -> None:
    assert "use `tunneld server`" in faults_of(write("listen: {port: 1}\n"))[0]
    assert "use `tunneld agent`" in faults_of(write(AGENT), "server")[0]


def test_roles_are_told_by_the_keys(write: Write) -> None:
    assert role_of(write(AGENT)) == "agent"
    assert role_of(write("listen: {}\nlog: {}\n")) == "server"
    for text in ("log: {level: info}\n", "server: {}\nlisten: {}\n"):
        with pytest.raises(ConfigError, match="add --role"):
            role_of(write(text))
    assert isinstance(load(write(AGENT)), AgentConfig)
    assert isinstance(load(write("log: {}\n"), "server"), ServerConfig)


def test_a_file_read_from_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, AGENT.encode())
    os.close(writer)
    try:
        assert isinstance(load(f"/dev/fd/{reader}"), AgentConfig)
    finally:
        os.close(reader)


def test_a_very_wrong_file_does_not_flood(write: Write) -> None:
    found = faults_of(write(AGENT + "".join(f"k{i}: 1\n" for i in range(500))))
    assert len(found) == 101
    assert found[-1] == ": and 400 more faults"


def test_a_secret_in_a_file_that_others_can_read(write: Write) -> None:
    text = (
        "server: {url: ws://h, proxy: 'http://me:hunter2@proxy:1'}\n"
        "tunnels:\n- name: a\n  service: http://h\n  headers:\n    X-Other: x\n    authorization: Bearer hunter2\n"
    )
    path = write(text, mode=0o644)
    found = faults_of(path)
    assert [fault.partition(": a secret")[0] for fault in found] == [
        ":1: server.proxy",
        ":7: tunnels[0].headers.authorization",
    ]
    assert "hunter2" not in "".join(found)
    assert "chmod 600" in found[0]
    assert load_agent(write(text, mode=0o640)).tunnels[0].headers["authorization"] == "Bearer hunter2"


FULL_AGENT = """\
server:
  url: wss://tunnel.example.org
  token_file: /etc/tunneld/token
  ca_file: /etc/ssl/my-ca.pem
  client_cert: /etc/tunneld/client.pem
  client_key: /etc/tunneld/client.key
  proxy: http://proxy:3128
heartbeat: {interval: 30s, timeout: 10s}
sse: {keepalive: 30s, max_event: 256KiB, recover: false, replay: 0, replay_buffer: 1MiB, identity: true}
resume: {grace: 60s, buffer: 4MiB}
reconnect: {initial: 0.5s, max: 60s}
drain_timeout: 30s
limits: {max_streams: 1000, stream_window: 256KiB, stream_window_max: 4MiB, memory: 512MiB, stall: 60s, \
connect_timeout: 5s, response_timeout: 60s}
tunnels:
  - name: demo
    service: http://127.0.0.1:9000
    heartbeat: {interval: 10s}
    sse: {keepalive: 15s}
    limits: {max_streams: 20}
    headers: {Host: app.internal}
    service_check: {path: /healthz, interval: 30s}
    access: {mode: open}
    inspect: false
control: {socket: /run/tunneld/control.sock, group: root, mode: "0660", readonly_socket: /run/tunneld/read.sock}
metrics: {listen: 127.0.0.1:9460, token_file: /etc/tunneld/metrics}
log: {level: info, format: auto, queries: false, audit: /var/log/tunneld.log}
telemetry: {otlp: http://127.0.0.1:4318}
alerts: []
"""

FULL_SERVER = """\
listen:
  - {host: 127.0.0.1, port: 8440, tls: {cert: /c, key: /k}, serve: [visitors, tunnels]}
  - {unix: /run/t.sock}
admin: {listen: {host: 127.0.0.1, port: 8441}, token_file: /t}
public_url: http://127.0.0.1:8440
domain: localhost
tls: {cert: /c, key: /k}
auth: {mode: token, v2: token}
store: sqlite:////var/lib/tunneld-server/server.db
heartbeat: {interval: 30s, timeout: 10s, min: 1s, max: 5m}
sse: {keepalive: 30s, min: 1s, max: 5m, max_event: 256KiB, replay_total: 64MiB}
resume: {grace: 60s, buffer: 4MiB}
drain_timeout: 30s
limits: {max_tunnels: 10000, max_streams: 1000, stream_window: 256KiB, stream_window_max: 4MiB, memory: 512MiB, \
stall: 60s, max_header: 64KiB, header_timeout: 10s, hello_timeout: 5s, max_body: 0, hold: 5s, v2_message: 16MiB}
trusted_proxies: [127.0.0.1, "::1"]
log: {level: info, format: auto, queries: false, audit: /a}
"""


def test_every_key_of_the_contract_is_taken(write: Write) -> None:
    agent = load_agent(write(FULL_AGENT))
    assert agent.tunnels[0].heartbeat.timeout == 10
    assert agent.metrics.listen is not None
    assert agent.metrics.listen.port == 9460
    assert load_server(write(FULL_SERVER)).listen[0].tls is not None


def test_the_words_of_yaml_mean_what_the_key_makes_of_them(write: Write) -> None:
    path = write(
        AGENT + "sse: {keepalive: 0, recover: on, identity: no}\ncontrol: {mode: 0640}\n"
        "tunnels: [{name: on, service: http://h}, {name: 0123, service: http://h}]\n"
    )
    config = load_agent(path)
    assert (config.sse.keepalive, config.sse.recover, config.sse.identity) == (0, True, False)
    assert config.control.mode == 0o640
    assert [tunnel.name for tunnel in config.tunnels] == ["on", "0123"]


def test_many_tunnels_load_quickly_enough(write: Write) -> None:
    rows = "".join(f"- {{name: t{i}, service: 'http://127.0.0.1:{i + 1}'}}\n" for i in range(2000))
    assert len(load_agent(write(AGENT + "tunnels:\n" + rows)).tunnels) == 2000


def _mutations(text: str) -> st.SearchStrategy[bytes]:
    """A good file with a piece of it replaced by something else."""
    data = text.encode()
    pieces = st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"", b"\n", b" ", b"{", b"}", b"[", b"]", b": ", b"- ", b"&a ", b"*a", b"~", b"-1", b"9" * 40]
        ),
    )
    spans = st.tuples(st.integers(0, len(data)), st.integers(0, 12))
    return st.tuples(spans, pieces).map(lambda it: data[: it[0][0]] + it[1] + data[it[0][0] + it[0][1] :])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=200), _mutations(FULL_AGENT), _mutations(FULL_SERVER)))
def test_any_bytes_give_a_configuration_or_its_faults(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(data)
    for loader in (load, load_agent, load_server):
        faults = ["none"]
        try:
            assert isinstance(loader(str(path)), AgentConfig | ServerConfig)
        except ConfigError as error:
            faults = [fault.removeprefix(str(path)) for fault in error.faults]
            faults.append(error.faults[0][: len(str(path))].replace(str(path), "named"))
        assert faults[-1] in ("none", "named")
        assert all(fault.isprintable() and len(fault) < 700 for fault in faults)
