"""The command ``tunneld``: from the command line to one role, and from any error to one line and an exit status.

What a verb needs is imported when it runs: ``--version`` and ``explain`` cost no more than an interpreter, and an agent
holds no code of the server.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tunneld import __version__
from tunneld.errors import CODES, ConfigError, TunneldError, UsageError

if TYPE_CHECKING:
    from tunneld.config.load import Role

__all__ = ["COMMANDS", "DEFAULT_FILES", "Command", "main", "overview", "parser_for"]

DEFAULT_FILES = {"agent": "/etc/tunneld/tunneld.yaml", "server": "/etc/tunneld/server.yaml"}
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

Words = tuple[str, ...]
Arguments = argparse.Namespace


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


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
        return str(arguments.config)
    path = DEFAULT_FILES[role]
    if not os.path.lexists(path):
        raise UsageError(
            f"{path}: no such file; name yours with --config FILE, or see the product work with `tunneld demo`"
        )
    return path


def _agent(arguments: Arguments) -> int:
    from tunneld.config.load import load_agent

    path = _file(arguments, "agent")
    config = load_agent(path)
    from tunneld.control.host import run

    return run(config, path)


def _server(arguments: Arguments) -> int:
    from tunneld.config.load import load_server

    path = _file(arguments, "server")
    config = load_server(path)
    from tunneld.control.admin.host import run

    return run(config, path)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="info", help="what the log below the addresses shows")


def _demo(arguments: Arguments) -> int:
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
    arguments.config = arguments.config or arguments.file
    path = _file(arguments, arguments.role or "agent")
    answer: dict[str, Any] = {"file": path, "role": arguments.role, "ok": False, "faults": [], "warnings": []}
    try:
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
    from tunneld.config.load import load

    config = load(path, role)
    answer["role"] = "agent" if isinstance(config, AgentConfig) else "server"
    if isinstance(config, AgentConfig):
        answer["tunnels"] = [{"name": tunnel.name, "service": str(tunnel.service)} for tunnel in config.tunnels]
    answer["warnings"] = [f"{path}: warning: {text}" for text in warnings(config)]
    if faults := secret_faults(config):
        raise ConfigError([f"{path}: {fault}" for fault in faults])
    answer["ok"] = True


def _good_news(answer: dict[str, Any]) -> str:
    if answer["role"] == "server":
        return f"{answer['file']}: OK, a server's configuration"
    tunnels = [f"{tunnel['name']} -> {tunnel['service']}" for tunnel in answer["tunnels"]]
    count = "no tunnel" if not tunnels else "1 tunnel: " if len(tunnels) == 1 else f"{len(tunnels)} tunnels: "
    more = f", and {len(tunnels) - 5} more" if len(tunnels) > 5 else ""
    return f"{answer['file']}: OK, an agent's configuration with {count}{', '.join(tunnels[:5])}{more}"


# -- the store, and one tunnel without a file --------------------------------------------------------------------------


def _on_store(verb: str, module: str = "cli") -> Callable[[Arguments], int]:
    """A verb of a module of `tunneld.server`, on the store that the server's file names."""

    def run(arguments: Arguments) -> int:
        from importlib import import_module

        from tunneld.config.load import load_server

        config = load_server(_file(arguments, "server"))
        return int(getattr(import_module(f"tunneld.server.{module}"), verb)(config, arguments))

    return run


def _store_arguments(kind: str | None = None, module: str = "cli") -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        if kind is not None:
            from importlib import import_module

            getattr(import_module(f"tunneld.server.{module}"), f"{kind}_arguments")(parser)
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
        raise UsageError(f'no error code "{word}"{_nearest(word, CODES)} (`tunneld explain` lists them all)')
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
        "make a credential for an agent", _store_arguments("create"), _on_store("create")
    ),
    ("server", "token", "list"): Command("list the credentials", _store_arguments("list"), _on_store("token_list")),
    ("server", "token", "revoke"): Command(
        "end a credential; its tunnels close", _store_arguments("revoke"), _on_store("revoke")
    ),
    ("server", "token", "rotate"): Command(
        "give a credential another secret", _store_arguments("rotate"), _on_store("rotate")
    ),
    ("server", "owner", "create"): Command(
        "make an owner of tokens and tunnels",
        _store_arguments("create", "cli_owners"),
        _on_store("create", "cli_owners"),
    ),
    ("server", "owner", "list"): Command(
        "list the owners", _store_arguments("list", "cli_owners"), _on_store("owner_list", "cli_owners")
    ),
    ("server", "owner", "remove"): Command(
        "end an owner and their tokens", _store_arguments("remove", "cli_owners"), _on_store("remove", "cli_owners")
    ),
    ("server", "names"): Command("who owns which tunnel's name", _store_arguments(), _on_store("names_list")),
    ("server", "names", "list"): Command("the same", _store_arguments(), _on_store("names_list")),
    ("server", "names", "reserve"): Command(
        "keep a name for one credential, or from all", _store_arguments("reserve"), _on_store("names_reserve")
    ),
    ("server", "names", "release"): Command(
        "make a name free", _store_arguments("release"), _on_store("names_release")
    ),
    ("server", "backup"): Command(
        "copy the store, while the server runs", _store_arguments("backup"), _on_store("backup")
    ),
    ("login",): Command("store a server and its token for `tunneld expose`", _login_arguments, _login),
    ("expose",): Command("one tunnel with no file and no daemon, until Ctrl-C", _expose_arguments, _expose),
}
"""Every verb. A later one is a row here."""

_VALUED = frozenset(
    {
        *("-c", "--config", "--role", "--name", "--server", "--token-file", "--log-level"),
        *("--tunnels", "--expires", "--streams", "--bytes", "--requests", "--scope", "--certificate", "--subject"),
        *("--overlap", "--for", "--owner", "--names"),
    }
)


def parser_for(words: Words) -> argparse.ArgumentParser:
    """The parser of one verb; its help is what the manual shows."""
    command = COMMANDS[words]
    parser = _Parser(
        prog=" ".join(("tunneld", *words)),
        description=f"{command.help[:1].upper()}{command.help[1:]}.",
        allow_abbrev=False,
        add_help=False,
        epilog=_below(words),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.arguments(parser)
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    parser.add_argument("--version", action="store_true", help="show the version")
    return parser


def _below(words: Words) -> str | None:
    rows = [verb for verb in COMMANDS if verb[: len(words)] == words and verb != words]
    return "commands:\n" + "\n".join(_rows(rows)) if rows else None


def _rows(verbs: Sequence[Words]) -> list[str]:
    width = max(len(" ".join(verb)) for verb in verbs)
    return [f"  {' '.join(verb):<{width}}  {COMMANDS[verb].help}" for verb in verbs]


def overview() -> str:
    """What ``tunneld --help`` prints."""
    return "\n".join(
        [
            "usage: tunneld [COMMAND] [--config FILE] [options]",
            "",
            "The tunnel that knows what is connected. Without a command: agent.",
            "",
            "commands:",
            *_rows(list(COMMANDS)),
            "",
            "`tunneld COMMAND --help` shows a command's options; `tunnelctl` shows what a running agent does.",
        ]
    )


def _nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    import difflib

    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f'; did you mean "{near[0]}"?' if near else ""


def _split(argv: Sequence[str]) -> tuple[Words, list[str], set[str]]:
    """Take the verb out of a command line, wherever its options stand.

    Returns:
        The verb's words, everything else in its order, and which of ``--help`` and ``--version`` are there.
    """
    words: Words = ()
    rest: list[str] = []
    shows: set[str] = set()
    valued = False
    for index, argument in enumerate(argv):
        below = sorted({verb[len(words)] for verb in COMMANDS if verb[: len(words)] == words and verb != words})
        if argument == "--":
            rest += argv[index:]
            break
        if valued or argument.startswith("-") or not below:
            if not valued and argument in ("-h", "--help", "--version"):
                shows.add("--version" if argument == "--version" else "--help")
            else:
                rest.append(argument)
            valued = not valued and argument in _VALUED
        elif argument in below:
            words = (*words, argument)
        elif not words and argument == "help":
            shows.add("--help")
        else:
            where = f" of `tunneld {' '.join(words)}`" if words else ""
            near = _nearest(argument, below) or f"; known: {', '.join(below)}"
            raise UsageError(f'no command "{argument}"{where}{near}')
    return words, rest, shows


def _run(argv: Sequence[str]) -> int:
    words, rest, shows = _split(argv)
    if "--version" in shows:
        print(f"tunneld {__version__}")
        return 0
    if "--help" in shows:
        print(parser_for(words).format_help().rstrip() if words in COMMANDS else overview())
        return 0
    words = words or ("agent",)
    if words not in COMMANDS:
        below = sorted({verb[len(words)] for verb in COMMANDS if verb[: len(words)] == words})
        raise UsageError(f"tunneld {' '.join(words)} needs one of: {', '.join(below)}")
    parser = parser_for(words)
    arguments, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        near = _nearest(unknown[0].partition("=")[0], options) if unknown[0].startswith("-") else ""
        raise UsageError(f'{parser.prog} takes no "{unknown[0]}"{near} (see `{parser.prog} --help`)')
    return COMMANDS[words].run(arguments)


def _defect(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return (
        f"tunneld: {type(error).__name__}: {text}{where}\n"
        "tunneld: this is a defect, please report it; TUNNELD_DEBUG=1 shows more"
    )


def _complain(text: str) -> None:
    if "JOURNAL_STREAM" not in os.environ:  # nearly always; what an error costs should not be an import
        print(text, file=sys.stderr)
        return
    from tunneld.telemetry import logs

    logs.complain(text)


def _drop_stdout() -> None:
    """Let nothing be written to a pipe that nobody reads, at the interpreter's end neither."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; None: this process's.

    Returns:
        The exit status: 0 done, 1 what was asked for failed, 2 bad usage or configuration, 70 a defect.
    """
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_PIPE
    except ConfigError as error:
        _complain(str(error))  # each fault names its file itself
        return error.exit_status
    except TunneldError as error:
        _complain(f"tunneld: {error}")
        return error.exit_status
    except OSError as error:  # this machine's doing: a port in use, a full disk
        if os.environ.get("TUNNELD_DEBUG") == "1":
            traceback.print_exc()
        _complain(f"tunneld: {error.strerror or error}")
        return 1
    except Exception as error:  # noqa: BLE001 - the program's edge: whatever comes here ends it
        if os.environ.get("TUNNELD_DEBUG") == "1":
            traceback.print_exc()
        _complain(_defect(error))
        return EXIT_DEFECT
    return status


if __name__ == "__main__":
    sys.exit(main())
