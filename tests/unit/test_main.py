import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunneld import __version__, commands
from tunneld.__main__ import main, parser_for
from tunneld.commands import COMMANDS
from tunneld.errors import CODES, ConfigError, TunneldError

AGENT = "server: {url: ws://127.0.0.1:8440}\ntunnels: [{name: demo, service: 'http://127.0.0.1:9000'}]\n"
SERVER = "listen: {host: 127.0.0.1, port: 0}\nauth: {mode: open}\nlimits: {max_tunnels: 1, max_streams: 1}\n"

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def agent_file(tmp_path: Path) -> str:
    path = tmp_path / "tunneld.yaml"
    path.write_text(AGENT)
    return str(path)


@pytest.fixture
def server_file(tmp_path: Path) -> str:
    path = tmp_path / "server.yaml"
    path.write_text(SERVER)
    return str(path)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Which verb ran with which file, in place of its work."""
    found: list[tuple[str, str | None]] = []
    for words, command in list(COMMANDS.items()):
        name = " ".join(words)
        run = lambda arguments, name=name: found.append((name, getattr(arguments, "config", None))) or 0  # noqa: E731
        monkeypatch.setitem(COMMANDS, words, commands.Command(command.help, command.arguments, run))
    return found


@pytest.mark.parametrize(
    ("line", "verb", "file"),
    [
        ("", "agent", None),
        ("--config F", "agent", "F"),
        ("--config=F", "agent", "F"),
        ("-c F", "agent", "F"),
        ("agent --config F", "agent", "F"),
        ("--config F agent", "agent", "F"),
        ("--config agent", "agent", "agent"),
        ("--config server agent", "agent", "server"),
        ("server", "server", None),
        ("--config F server", "server", "F"),
        ("server --config F", "server", "F"),
        ("check --role agent --config F", "check", "F"),
        ("--role server --json check --config F", "check", "F"),
        ("--config F check --json", "check", "F"),
        ("server token create N --tunnels a b* --expires 90d --config F", "server token create", "F"),
        ("--config F server token create N", "server token create", "F"),
        ("server --config F token list", "server token list", "F"),
        ("-c F --tunnels a* server --scope read token create N", "server token create", "F"),
        ("server token --config F revoke ID", "server token revoke", "F"),
        ("server --config F names", "server names", "F"),
        ("server names reserve n --for ID --config F", "server names reserve", "F"),
        ("server backup --config F x.db", "server backup", "F"),
        ("demo --log-level debug", "demo", None),
        ("--name n expose 9000 --server ws://h", "expose", None),
        ("explain", "explain", None),
        ("explain -- bad_path", "explain", None),
    ],
)
def test_options_stand_before_and_after_the_verb_alike(
    line: str, verb: str, file: str | None, ran: list[tuple[str, str | None]]
) -> None:
    assert main(line.split()) == 0
    assert ran == [(verb, file)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("agnet", 'no command "agnet"; did you mean "agent"?'),
        ("zzz", 'no command "zzz"; known: agent, check, demo'),
        ("server tokn", 'no command "tokn" of `tunneld server`; did you mean "token"?'),
        ("server token", "tunneld server token needs one of: create, list, revoke, rotate"),
        ("server token create", "required: NAME"),
        ("server token create --tunnels a* N", "required: NAME; it stands before --tunnels"),
        ("--config= agent", "--config: give a file"),
        ("check --config=", "--config: give a file"),
        ("server token create a --expires soon", "expected a duration"),
        ("server token create a --expires 0", "above 0"),
        ("server token revoke", "required: ID"),
        ("expose", "required: SERVICE"),
        ("--config", "expected one argument"),
        ("check --confg F", 'takes no "--confg"; did you mean "--config"?'),
        ("check --role both F", "invalid choice"),
        ("check A B", 'takes no "B"'),
        ("check A --config B", "takes one file"),
        ("agent extra", 'takes no "extra"'),
        ("explain bad_pth", 'did you mean "bad_path"?'),
        ("explain nothing_like_it", "`tunneld explain` lists them all"),
        ("demo --log-level loud", "invalid choice"),
    ],
)
def test_bad_usage_is_one_clear_line(line: str, words: str, capsys: Capture) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tunneld: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("line", ["--version", "agent --version", "--version server", "server token create --version"])
def test_the_version_is_everywhere(line: str, capsys: Capture) -> None:
    assert main(line.split()) == 0
    assert capsys.readouterr().out == f"tunneld {__version__}\n"


def test_help_shows_every_command_and_every_option(capsys: Capture) -> None:
    for line in ("--help", "-h", "help"):
        assert main(line.split()) == 0
        shown = capsys.readouterr().out
        assert all(" ".join(words) in shown for words in COMMANDS)
    for words in COMMANDS:
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        options = [option for action in parser_for(words)._actions for option in action.option_strings]
        assert all(option in shown for option in options)
    assert main(["server", "token", "--help"]) == 0


def test_every_option_with_a_value_may_stand_before_the_verb() -> None:
    for words in COMMANDS:
        for action in parser_for(words)._actions:
            if action.option_strings and action.nargs != 0:
                assert set(action.option_strings) <= commands.VALUED


def test_check_says_what_a_file_is(agent_file: str, server_file: str, capsys: Capture) -> None:
    assert main(["check", "--config", agent_file]) == 0
    assert capsys.readouterr() == (
        f"{agent_file}: OK, an agent's configuration with 1 tunnel: demo -> http://127.0.0.1:9000\n",
        "",
    )
    assert main(["check", server_file]) == 0
    assert capsys.readouterr() == (f"{server_file}: OK, a server's configuration\n", "")


def test_check_says_what_is_wrong_line_by_line(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(AGENT + "hartbeat: 3\nlog: {level: loud}\n")
    assert main(["check", "--config", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f'{path}:3: hartbeat: unknown key (did you mean "heartbeat"?)',
        f'{path}:4: log.level: expected debug, info, warning or error, not "loud"',
    ]
    assert main(["check", "--role", "server", str(path)]) == 2
    assert "use `tunneld agent`" in capsys.readouterr().err
    assert main(["check", "--config", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none: no such file or directory\n"


def test_check_warns_and_refuses_open_secrets(tmp_path: Path, capsys: Capture) -> None:
    token = tmp_path / "token"
    path = tmp_path / "f.yaml"
    path.write_text(
        f"server:\n  url: wss://h\n  token_file: {token}\n"
        "tunnels: [{name: a, service: http://h, access: {mode: login}}]\n"
    )
    assert main(["check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "OK" in out
    assert f"{path}: warning: tunnels[a].access: no emails and no domains" in err
    assert f"server.token_file: {token}: no such file yet" in err
    token.write_text("tnl_x")
    token.chmod(0o644)
    assert main(["check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{path}:3: server.token_file: {token}: others can read" in err
    server = tmp_path / "s.yaml"
    server.write_text(
        f"listen:\n  - {{port: 0}}\n  - port: 0\n    tls:\n      cert: {token}\n      key: {token}\n"
        f"admin:\n  token_file: {token}\nauth: {{mode: open}}\n"
    )
    assert main(["check", str(server)]) == 2
    lines = [
        line.partition(f": {token}: ")[0] for line in capsys.readouterr().err.splitlines() if "warning" not in line
    ]
    assert lines == [f"{server}:8: admin.token_file", f"{server}:6: listen[1].tls.key"]


def test_check_as_json(agent_file: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["check", "--json", agent_file]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": agent_file,
        "role": "agent",
        "ok": True,
        "faults": [],
        "warnings": [],
        "tunnels": [{"name": "demo", "service": "http://127.0.0.1:9000"}],
    }
    bad = tmp_path / "bad.yaml"
    bad.write_text("listen: 3\n")
    assert main(["--json", "check", str(bad)]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["faults"] == [f'{bad}:1: listen: expected a list, not "3"']


def test_explain_one_and_all(capsys: Capture) -> None:
    assert main(["explain", "Bad-Path"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("bad_path (HTTP 400)\n")
    assert "What to do: " in shown
    assert main(["explain", "replaced"]) == 0
    assert "between agent and server" in capsys.readouterr().out
    assert main(["explain"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CODES)


def test_a_newcomer_without_a_file_is_shown_the_way(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(commands.DEFAULT_FILES, "agent", "/no/such/tunneld.yaml")
    assert main([]) == 2
    err = capsys.readouterr().err
    assert "--config FILE" in err
    assert "tunneld demo" in err


def test_a_bad_file_does_not_start_a_daemon(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("listen: {host: 0.0.0.0, port: 1}\nauth: {mode: open}\n")
    assert main(["server", "--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"{path}:2: auth.mode: open lets anyone")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (TunneldError("The socket is in use."), 1, ["tunneld: The socket is in use."]),
        (ConfigError(["f:1: a", "f:2: b"]), 2, ["f:1: a", "f:2: b"]),
        (OSError(98, "Address already in use"), 1, ["tunneld: Address already in use"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_every_error_ends_in_lines_and_a_status(
    error: BaseException, status: int, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert _main_raising(error, monkeypatch) == status
    assert capsys.readouterr().err.splitlines() == words


@pytest.mark.parametrize(("line", "load"), [("agent", "load_agent"), ("server", "load_server"), ("check", "load")])
def test_ctrl_c_ends_a_program_that_is_loading(
    line: str, load: str, agent_file: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """By the signal itself: pydantic loses a KeyboardInterrupt, and what was begun is nothing yet."""
    found = []

    def refuse(*_: object) -> None:
        found.append(signal.getsignal(signal.SIGINT))
        raise ConfigError([f"{agent_file}: refused"])

    monkeypatch.setattr(f"tunneld.config.load.{load}", refuse)
    assert main([line, "--config", agent_file]) == 2
    assert found == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        assert main([line, "--config", agent_file]) == 2
        assert signal.getsignal(signal.SIGINT) == found[1] == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_defect_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("TUNNELD_DEBUG", raising=False)
    assert _main_raising(ZeroDivisionError("a\nb"), monkeypatch) == 70
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"tunneld: ZeroDivisionError: a b \(test_main\.py:\d+\)", first)
    assert "this is a defect, please report it" in second
    monkeypatch.setenv("TUNNELD_DEBUG", "1")
    assert _main_raising(ZeroDivisionError("a"), monkeypatch) == 70
    assert "Traceback" in capsys.readouterr().err


def _main_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(_arguments: object) -> int:
        raise error

    monkeypatch.setitem(COMMANDS, ("demo",), commands.Command("x", lambda _parser: None, run))
    return main(["demo"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from(
                ["server", "token", "create", "check", "explain", "expose", "--config", "--", "-c", "--json"]
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_command_line_ends_with_a_status(monkeypatch: pytest.MonkeyPatch, capsys: Capture, line: list[str]) -> None:
    for words in (("agent",), ("server",), ("demo",), ("expose",)):
        monkeypatch.setitem(COMMANDS, words, commands.Command("x", COMMANDS[words].arguments, lambda _arguments: 0))
    assert main(line) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


def _python(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=15, **more)  # type: ignore[call-overload, no-any-return]


def test_the_module_is_the_program() -> None:
    done = _python("-m", "tunneld", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tunneld {__version__}\n", "")
    done = _python("-m", "tunneld", "agnet")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_reader_that_leaves_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tunneld", "explain"], stdout=writer, stderr=subprocess.PIPE, timeout=15, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_small_verbs_load_little(agent_file: str) -> None:
    """What `--version` and `explain` never import, and `check` neither."""
    for line, unwanted in (
        (["--version"], {"pydantic", "yaml", "asyncio", "tunneld.config.load"}),
        (["explain", "bad_path"], {"pydantic", "yaml", "asyncio", "tunneld.config.load"}),
        (["check", agent_file], {"asyncio", "fastapi", "tunneld.agent.daemon", "tunneld.server.daemon"}),
    ):
        code = f"import sys; from tunneld.__main__ import main; main({line!r}); print(*sys.modules, file=sys.stderr)"
        loaded = set(_python("-c", code).stderr.split())
        assert "tunneld.__main__" in loaded
        assert not unwanted & loaded, line


def test_the_agent_holds_no_code_of_the_server() -> None:
    code = "import sys, tunneld.agent.daemon; print(*(m for m in sys.modules if m.startswith('tunneld.server')))"
    done = _python("-c", code)
    assert done.stdout == "\n", done.stderr
