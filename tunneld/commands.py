"""The verbs of ``tunneld``: what each is for, what it takes, and what runs it.

What a verb needs is imported when it runs: ``--version`` and ``explain`` cost no more than an interpreter, and an agent
holds no code of the server.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunneld.errors import CODES, ConfigError, UsageError

if TYPE_CHECKING:
    from tunneld.config.load import Role

__all__ = ["COMMANDS", "DEFAULT_FILES", "VALUED", "Arguments", "Command", "Words", "nearest"]

DEFAULT_FILES = {"agent": "/etc/tunneld/tunneld.yaml", "server": "/etc/tunneld/server.yaml"}

Words = tuple[str, ...]
Arguments = argparse.Namespace


@dataclass(frozen=True, slots=True)
class Command:
    """One verb.

    Attributes:
        help: one line for the overview.
        arguments: adds its own options and arguments to a parser.
        run: does it; returns the exit status.
    """

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


@contextmanager
def _loading() -> Iterator[None]:
    """Let Ctrl-C end the process at once, as SIGTERM does, while modules are loaded and nothing is begun.

    KeyboardInterrupt would come up inside of pydantic, which loses it while it makes models: the daemon went on.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# -- the roles ---------------------------------------------------------------------------------------------------------


def _config_option(parser: argparse.ArgumentParser, role: Role) -> None:
    parser.add_argument("--config", "-c", metavar="FILE", help=f"configuration (default {DEFAULT_FILES[role]})")


def _agent_arguments(parser: argparse.ArgumentParser) -> None:
    _config_option(parser, "agent")


def _server_arguments(parser: argparse.ArgumentParser) -> None:
    _config_option(parser, "server")


def _file(arguments: Arguments, role: Role) -> str:
    """The file to read: the one named, or the role's default, which a newcomer has not got yet."""
    if arguments.config is not None:
        if not arguments.config:
            raise UsageError("--config: give a file")
        return str(arguments.config)
    path = DEFAULT_FILES[role]
    if not os.path.lexists(path):
        raise UsageError(
            f"{path}: no such file; name yours with --config FILE, or see the product work with `tunneld demo`"
        )
    return path


def _agent(arguments: Arguments) -> int:
    with _loading():
        from tunneld.config.load import load_agent

        path = _file(arguments, "agent")
        config = load_agent(path)
        from tunneld.control.host import run

    return run(config, path)


def _server(arguments: Arguments) -> int:
    with _loading():
        from tunneld.config.load import load_server

        path = _file(arguments, "server")
        config = load_server(path)
        from tunneld.control.admin.host import run

    return run(config, path)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="info", help="what the log below the addresses shows")


def _demo(arguments: Arguments) -> int:
    with _loading():
        from tunneld.demo import run

    return run(level=arguments.log_level)


# -- check -------------------------------------------------------------------------------------------------------------


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="the same as --config FILE")
    _config_option(parser, "agent")
    parser.add_argument("--role", choices=("agent", "server"), help="whose file it is (default: told by its keys)")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")


def _check(arguments: Arguments) -> int:
    if arguments.file is not None and arguments.config is not None:
        raise UsageError("check takes one file, not FILE and --config FILE")
    arguments.config = arguments.file if arguments.config is None else arguments.config
    path = _file(arguments, arguments.role or "agent")
    answer: dict[str, Any] = {"file": path, "role": arguments.role, "ok": False, "faults": [], "warnings": []}
    try:
        with _loading():
            _check_file(path, arguments.role, answer)
    except ConfigError as error:
        answer["faults"] = error.faults
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    elif answer["ok"]:
        print(_good_news(answer))
    for kind in () if arguments.json else ("warnings", "faults"):
        for line in answer[kind]:
            print(line, file=sys.stderr)
    return 0 if answer["ok"] else ConfigError.exit_status


def _check_file(path: str, role: Role | None, answer: dict[str, Any]) -> None:
    """Fill `answer` with what is to be said of a file; raises `ConfigError` with its faults."""
    from tunneld.config.advice import secret_faults, warnings
    from tunneld.config.agent import AgentConfig
    from tunneld.config.load import line_of, load

    config = load(path, role)
    answer["role"] = "agent" if isinstance(config, AgentConfig) else "server"
    if isinstance(config, AgentConfig):
        answer["tunnels"] = [{"name": tunnel.name, "service": str(tunnel.service)} for tunnel in config.tunnels]
    answer["warnings"] = [f"{path}: warning: {text}" for text in warnings(config)]
    if faults := secret_faults(config):
        raise ConfigError([f"{path}:{line_of(path, fault.partition(':')[0])}: {fault}" for fault in faults])
    answer["ok"] = True


def _good_news(answer: dict[str, Any]) -> str:
    if answer["role"] == "server":
        return f"{answer['file']}: OK, a server's configuration"
    tunnels = [f"{tunnel['name']} -> {tunnel['service']}" for tunnel in answer["tunnels"]]
    count = "no tunnel" if not tunnels else "1 tunnel: " if len(tunnels) == 1 else f"{len(tunnels)} tunnels: "
    more = f", and {len(tunnels) - 5} more" if len(tunnels) > 5 else ""
    return f"{answer['file']}: OK, an agent's configuration with {count}{', '.join(tunnels[:5])}{more}"


# -- the store, and one tunnel without a file --------------------------------------------------------------------------


def _on_store(module: str, verb: str) -> Callable[[Arguments], int]:
    """A verb of a module of `tunneld.server.cli`, on the store that the server's file names."""

    def run_verb(arguments: Arguments) -> int:
        with _loading():
            from importlib import import_module

            from tunneld.config.load import load_server

            config = load_server(_file(arguments, "server"))
            run = getattr(import_module(f"tunneld.server.cli.{module}"), verb)
        return int(run(config, arguments))

    return run_verb


def _store_arguments(module: str = "", verb: str = "") -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        if module:
            from importlib import import_module

            getattr(import_module(f"tunneld.server.cli.{module}"), f"{verb}_arguments")(parser)
        _config_option(parser, "server")

    return add


def _expose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", metavar="SERVICE", help="a port, http://HOST:PORT, or unix:/path/of.sock")
    parser.add_argument("--name", metavar="NAME", help="the tunnel's name (default: a new one)")
    parser.add_argument(
        "--server", metavar="URL", help="the server to dial (default: TUNNELD_SERVER, else ws://127.0.0.1:8440)"
    )
    parser.add_argument("--token-file", metavar="FILE", help="the credential (default: TUNNELD_TOKEN)")
    parser.add_argument("--qr", action="store_true", help="show the address as a QR code too, on a terminal")


def _expose(arguments: Arguments) -> int:
    with _loading():
        from tunneld.agent.expose import configuration, expose

        config = configuration(
            arguments.service, name=arguments.name, server=arguments.server, token_file=arguments.token_file
        )
    return expose(config, qr=arguments.qr)


def _login_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the server, wss://HOST")
    parser.add_argument("--token-file", metavar="FILE", help="the credential (default: TUNNELD_TOKEN, else stdin)")


def _login(arguments: Arguments) -> int:
    from tunneld.agent.logins import login

    return login(arguments.url, token_file=arguments.token_file)


# -- explain -----------------------------------------------------------------------------------------------------------


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="?", metavar="CODE", help="as in X-Tunnel-Error, or in a log (default: list all)")


def _explain(arguments: Arguments) -> int:
    if arguments.code is None:
        width = max(map(len, CODES))
        for code in CODES.values():
            print(f"{code.code:<{width}}  {code.status or '-':<3}  {code.title}")
        return 0
    word = arguments.code.strip().lower().replace("-", "_")
    if word not in CODES:
        raise UsageError(f'no error code "{word}"{nearest(word, CODES)} (`tunneld explain` lists them all)')
    code = CODES[word]
    where = f"HTTP {code.status}" if code.status else "between agent and server"
    print(f"{code.code} ({where})\n{code.title}\n{textwrap.fill('What to do: ' + code.advice, 100)}")
    return 0


# -- the table and the command line ------------------------------------------------------------------------------------

COMMANDS: dict[Words, Command] = {
    ("agent",): Command("the sidecar beside your services (also without a verb)", _agent_arguments, _agent),
    ("server",): Command("the public tunnel server", _server_arguments, _server),
    ("demo",): Command("server, agent and a sample service in one command, on loopback", _demo_arguments, _demo),
    ("check",): Command("say what is wrong with a configuration file", _check_arguments, _check),
    ("explain",): Command("what an error code means and what to do", _explain_arguments, _explain),
    ("server", "token", "create"): Command(
        "make a credential for an agent", _store_arguments("tokens", "create"), _on_store("tokens", "create")
    ),
    ("server", "token", "list"): Command(
        "list the credentials", _store_arguments("tokens", "list"), _on_store("tokens", "list_all")
    ),
    ("server", "token", "revoke"): Command(
        "end a credential; its tunnels close", _store_arguments("tokens", "revoke"), _on_store("tokens", "revoke")
    ),
    ("server", "token", "rotate"): Command(
        "give a credential another secret", _store_arguments("tokens", "rotate"), _on_store("tokens", "rotate")
    ),
    ("server", "owner", "create"): Command(
        "make an owner of tokens and tunnels",
        _store_arguments("owners", "create"),
        _on_store("owners", "create"),
    ),
    ("server", "owner", "list"): Command(
        "list the owners", _store_arguments("owners", "list"), _on_store("owners", "list_all")
    ),
    ("server", "owner", "remove"): Command(
        "end an owner and their tokens", _store_arguments("owners", "remove"), _on_store("owners", "remove")
    ),
    ("server", "names"): Command("who owns which tunnel's name", _store_arguments(), _on_store("names", "list_all")),
    ("server", "names", "list"): Command("the same", _store_arguments(), _on_store("names", "list_all")),
    ("server", "names", "reserve"): Command(
        "keep a name for one credential, or from all",
        _store_arguments("names", "reserve"),
        _on_store("names", "reserve"),
    ),
    ("server", "names", "release"): Command(
        "make a name free", _store_arguments("names", "release"), _on_store("names", "release")
    ),
    ("server", "backup"): Command(
        "copy the store, while the server runs", _store_arguments("copies", "backup"), _on_store("copies", "backup")
    ),
    ("login",): Command("store a server and its token for `tunneld expose`", _login_arguments, _login),
    ("expose",): Command("one tunnel with no file and no daemon, until Ctrl-C", _expose_arguments, _expose),
}
"""Every verb. A later one is a row here."""

VALUED = frozenset(
    {
        *("-c", "--config", "--role", "--name", "--server", "--token-file", "--log-level"),
        *("--tunnels", "--expires", "--streams", "--bytes", "--requests", "--scope", "--certificate", "--subject"),
        *("--overlap", "--for", "--owner", "--names"),
    }
)
"""Options that a value follows."""


def nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """Words that end a complaint of an unknown word: the known one that is most like it, if any is."""
    import difflib

    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f'; did you mean "{near[0]}"?' if near else ""
