"""`alerts` in the file: what is taken, and the lines that say what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunneld.config.advice import secret_faults, warnings
from tunneld.config.alerts import CommandTarget, EmailTarget, LogTarget, WebhookTarget
from tunneld.config.load import load_agent, load_server
from tunneld.errors import ConfigError

HEAD = "server: {url: 'ws://127.0.0.1:1'}\ntunnels: [{name: a, service: 'http://127.0.0.1:9'}]\nalerts:\n"


def loaded(tmp_path: Path, text: str) -> object:
    path = tmp_path / "agent.yaml"
    path.write_text(HEAD + text)
    path.chmod(0o600)
    return load_agent(str(path))


def test_a_whole_rule(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
  - when: tunnel_down
    for: 2m
    tunnels: "prod-*"
    to:
      - {webhook: "https://hooks.example.org/x?y=1", shape: slack}
      - {command: [/bin/true, --x]}
      - {email: a@example.org, from: t@example.org, smtp: "mail.example.org:25"}
      - {log: true}
  - {name: flappy, when: reconnects, over: 4, within: 15m}
  - {when: loss}
  - {when: expiring, over: 30d}
""",
    )
    first, second, third, fourth = config.alerts  # type: ignore[attr-defined]
    assert (first.name, first.held, first.tunnels, first.repeat) == ("tunnel_down", 120, ("prod-*",), 14400)
    assert [type(one) for one in first.to] == [WebhookTarget, CommandTarget, EmailTarget, LogTarget]
    assert (first.to[2].smtp, first.to[2].sender) == ("smtp://mail.example.org:25", ("t@example.org",))
    assert (second.name, second.over, second.within) == ("flappy", 4, 900)
    assert (third.over, fourth.over) == (0.05, 30 * 86400)
    assert (second.held, third.held) == (0, 0)


def test_what_is_down_is_not_told_of_a_start(tmp_path: Path) -> None:
    config = loaded(tmp_path, "  - {when: tunnel_down}\n  - {when: service_failing, for: 0}\n")
    assert [rule.held for rule in config.alerts] == [30, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("  - {when: down}", 4, "alerts[0].when: expected tunnel_down"),
        ("  - {when: rtt, ovr: 1s}", 4, 'alerts[0].ovr: unknown key (did you mean "over"?)'),
        ("  - {when: rtt, fo: 1s}", 4, 'alerts[0].fo: unknown key (did you mean "for"?)'),
        ("  - {when: rtt, over: fast}", 4, "alerts[0].over: expected a duration"),
        ("  - {when: reconnects, over: 5%}", 4, "alerts[0].over: expected a whole number"),
        ("  - {when: tunnel_down, over: 5}", 4, "tunnel_down has no measure that could be over something"),
        ("  - {when: rtt}\n  - {when: rtt}", 5, "alerts[0] has that name already"),
        ("  - when: rtt\n    to:\n      - {pager: x}", 6, "expected exactly one of webhook, command, email, log"),
        ("  - when: rtt\n    to:\n      - {webhook: 'https://h/', tries: 3}", 6, "unknown key; known here: timeout"),
        ("  - when: rtt\n    to:\n      - {webhook: 'https://h/', secretfile: /x}", 6, 'did you mean "secret_file"?'),
        ("  - when: rtt\n    to:\n      - {webhok: 'https://h/'}", 6, 'did you mean "webhook"?'),
        (
            "  - when: rtt\n    to:\n      - {webhook: 'https://h/', headers: x}",
            6,
            "expected a mapping of header names",
        ),
        ("  - when: rtt\n    to:\n      - {webhook: 'ftp://h/'}", 6, "expected an address such as https://"),
        ("  - when: rtt\n    to:\n      - {command: [notify]}", 6, "expected the program's whole path"),
        ("  - when: rtt\n    to:\n      - {email: nobody, smtp: 'smtp://h'}", 6, "expected an address such as ops@"),
        ("  - when: rtt\n    to:\n      - {email: a@b, smtp: 'http://h'}", 6, "expected smtp://HOST:25"),
        ("  - when: rtt\n    to:\n      - {email: a@b}", 6, "missing"),
        ("  - when: rtt\n    to:\n      - {email: a@b, smtp: h, user: me}", 6, "user and password_file go together"),
        ("  - {when: rtt, most: 0}", 4, "alerts[0].most: "),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text + "\n")
    (fault,) = caught.value.faults
    assert f"agent.yaml:{line}: alerts[" in fault
    assert said in fault


def test_a_webhook_with_a_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "  - {when: rtt, to: [{webhook: 'https://me:hunter2@h/'}]}\n")
    assert "hunter2" not in str(caught.value)


def test_a_servers_file_takes_the_same_rules_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("auth: {mode: token}\nalerts:\n  - {when: tunnel_down, for: 1m}\n  - {when: rtt, ovr: 1s}\n")
    with pytest.raises(ConfigError) as caught:
        load_server(str(path))
    (fault,) = caught.value.faults
    assert 'server.yaml:4: alerts[1].ovr: unknown key (did you mean "over"?)' in fault
    path.write_text("alerts:\n  - {when: tunnel_down}\n  - {when: tunnel_down}\n")
    with pytest.raises(ConfigError, match=r"alerts\[0\] has that name already"):
        load_server(str(path))


def test_files_of_receivers_are_looked_at_by_check(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    config = loaded(
        tmp_path,
        f"  - {{when: rtt, to: [{{webhook: 'https://h/', secret_file: {secret}, ca_file: /no/ca.pem}}]}}\n",
    )
    (fault,) = secret_faults(config)  # type: ignore[arg-type]
    assert fault.startswith("alerts[0].to[0].secret_file: ")
    assert "chmod 600" in fault
    assert "alerts[0].to[0].ca_file: /no/ca.pem: no such file yet" in warnings(config)  # type: ignore[arg-type]
