"""``tunnelctl``: argv → one verb → an exit status.

0 done; 1 what was asked for failed; 2 usage; 3 the agent is not reachable. ``health``: 0 ok, 1 degraded, 2 down.
The verb is found first, so that one small parser is built and options stand before or after it alike.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from tunnelctl import access, tunnels, verbs
from tunnelctl.client import Client, Refused
from tunnelctl.render import Screen, clean
from tunneld import __version__, standard
from tunneld.errors import TunneldError, UsageError

__all__ = ["VERBS", "Verb", "main", "overview", "parser_for"]

SYSTEM_SOCKET = "/run/tunneld/control.sock"
_OF_SERVERS = frozenset(
    {"status", "health", "streams", "cancel", "reload", "reconnect", "access", "top", "alerts", "completion"}
)
"""Verbs that a server's operators have too."""
_WITH_VALUE = frozenset(
    {
        *("--socket", "--instance", "--server", "--token-file", "--ca-file"),
        *("--tunnel", "--kind", "--path", "--older-than", "--idle"),
        *("--for", "--heartbeat", "--keepalive", "--access", "--since", "--interval"),
        *("--config", "--sse", "--bundle", "--level", "--notes", "--type"),
    }
)  # of any verb: what follows one of these is no verb


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: what runs it, what it does, and its own arguments."""

    run: Callable[[Client, argparse.Namespace, Screen], int]
    summary: str
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing a usage block of many lines."""
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        hint = ""
        if unknown != message.split(" ", maxsplit=1)[0] and unknown.startswith("--"):
            hint = _nearest(unknown.partition("=")[0], self._option_string_actions)
        raise UsageError(f"{message}{hint}; see {self.prog} --help")


def _nearest(word: str, known: Sequence[str] | dict[str, object] | dict[str, argparse.Action]) -> str:
    import difflib

    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _of_streams(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tunnel", metavar="NAME", help="of this tunnel only")
    parser.add_argument("--kind", choices=("sse", "http", "websocket"), help="of this kind only")


def _of_cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="request ids, or prefixes that fit one stream")
    _of_streams(parser)
    parser.add_argument("--path", metavar="GLOB", help="whose path fits, as '/sse*'; * takes any characters")
    parser.add_argument("--older-than", metavar="TIME", help="begun at least so long ago: 30s, 2m, 1h")
    parser.add_argument("--idle", metavar="TIME", help="quiet for at least so long")
    parser.add_argument("--all", action="store_true", help="every stream")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask before cancelling more than one")


def _of_reconnect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the tunnel")


def _of_open(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the tunnel's name, a part of its public address")
    parser.add_argument("service", metavar="SERVICE", help="a port, http://HOST:PORT, https://… or unix:/path/of.sock")
    parser.add_argument("--for", dest="lifetime", metavar="TIME", help="close it by itself after 30m, 2h, …")
    parser.add_argument("--heartbeat", metavar="TIME", help="seconds between two heartbeats")
    parser.add_argument("--keepalive", metavar="TIME", help="quiet after which event streams get a comment; 0: never")
    parser.add_argument("--save", action="store_true", help="keep it over restarts, in tunnels.d, until it is closed")
    who = "open, key (one is made and shown), basic:HTPASSWD-FILE, or login:WHO[,WHO…] (addresses and their domains)"
    parser.add_argument("--access", metavar="WHO", help=who)


def _of_share(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the tunnel; its access is not `open`")
    parser.add_argument("path", metavar="PATH", help="the path with its query, as the service sees it")
    parser.add_argument("--for", dest="lifetime", metavar="TIME", default="1h", help="how long it works (default: 1h)")


def _of_close(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="the tunnel, opened at run time; its file goes if it was saved"
    )
    parser.add_argument("--all", action="store_true", help="every tunnel that was opened at run time, saved or not")


def _of_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="ID", help="first what came after the event of this id (see --json)")
    parser.add_argument("--type", metavar="TYPE", action="append", help="of this type only; may be given several times")
    parser.add_argument(
        "--tunnel", metavar="NAME", action="append", help="of this tunnel only; may be given several times"
    )


def _of_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--interval", metavar="TIME", default="1s", help="how often it is looked, 1s by itself")


def _of_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def _of_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the request's id, or a prefix that fits one")


def _of_requests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tunnel", metavar="NAME", help="of this tunnel only")


def _lazy(name: str) -> Callable[[Client, argparse.Namespace, Screen], int]:
    """What runs a verb of `looking`, which is loaded then."""

    def run(client: Client, args: argparse.Namespace, screen: Screen) -> int:
        from tunnelctl import looking

        verb: Callable[[Client, argparse.Namespace, Screen], int] = getattr(looking, name)
        return verb(client, args, screen)

    return run


def _of_alerts(parser: argparse.ArgumentParser) -> None:
    from tunnelctl.alerts import add_arguments

    add_arguments(parser)


def _alerts(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    from tunnelctl.alerts import run

    return run(client, args, screen)


def _of_doctor(parser: argparse.ArgumentParser) -> None:
    from tunnelctl.doctor.command import add_arguments

    add_arguments(parser)


def _doctor(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    from tunnelctl.doctor.command import run

    return run(client, args, screen)


VERBS: dict[str, Verb] = {
    "status": Verb(verbs.status, "the agent, its tunnels and their public addresses"),
    "health": Verb(verbs.health, "whether the agent does its work; exit 0 ok, 1 degraded, 2 down"),
    "streams": Verb(verbs.streams, "every visitor's request that is under way", _of_streams),
    "cancel": Verb(verbs.cancel, "end streams, by id or by filter", _of_cancel),
    "reload": Verb(verbs.reload, "apply the changed configuration file"),
    "reconnect": Verb(verbs.reconnect, "drop a tunnel's connection and dial again", _of_reconnect),
    "open": Verb(
        tunnels.open_, "open a tunnel at run time, until it is closed or the agent ends (--save: also after)", _of_open
    ),
    "close": Verb(tunnels.close, "close a tunnel that was opened at run time; its streams end", _of_close),
    "share": Verb(tunnels.share, "print an address that lets anybody in to one path, for a time", _of_share),
    "access": Verb(access.access, "who may visit a tunnel, by e-mail: list, grant, revoke", access.add_arguments),
    "info": Verb(tunnels.info, "all that is known of one tunnel", _of_reconnect),
    "top": Verb(verbs.top, "a live screen of tunnels and streams: sort, filter, cancel; ? shows its keys", _of_top),
    "drain": Verb(verbs.drain, "take no new streams, let those under way end, then leave"),
    "events": Verb(verbs.events, "what happens, as it happens, until Ctrl-C", _of_events),
    "alerts": Verb(_alerts, "what the alert rules say; with test, whether their receivers are reached", _of_alerts),
    "tail": Verb(_lazy("tail"), "the events of a stream as they pass (inspect: true)", _of_id),
    "requests": Verb(_lazy("requests"), "the last requests of tunnels with inspect: true", _of_requests),
    "replay": Verb(_lazy("replay"), "send a request to the local service again", _of_id),
    "doctor": Verb(_doctor, "look at everything on the way, and say what to do", _of_doctor),
    "completion": Verb(verbs.completion, "print the completion script of a shell", _of_completion),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Words of failure go to stderr, a line each."""
    standard.fill()
    for stream in (sys.stdout, sys.stderr):
        # A locale that lacks a character, or half a surrogate in an answer, must not end in a traceback.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except Refused as error:
        for line in error.faults or str(error).splitlines():
            print(f"tunnelctl: {clean(line)}", file=sys.stderr)
        return error.exit_status
    except TunneldError as error:
        for line in str(error).splitlines():
            print(f"tunnelctl: {clean(line)}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        standard.drop()  # the reader has what it wanted (head, less)
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # this machine's doing, such as a full disk; what the client meets has its own errors
        if os.environ.get("TUNNELD_DEBUG") == "1":
            raise
        print(f"tunnelctl: {clean(error.strerror or error)}", file=sys.stderr)
        standard.drop()
        return 1
    except Exception as error:
        if os.environ.get("TUNNELD_DEBUG") == "1":
            raise
        text = clean(" ".join(f"{type(error).__name__}: {error}".split()))
        print(
            f"tunnelctl: {text}; is the agent of another version? Else a defect: TUNNELD_DEBUG=1 shows more",
            file=sys.stderr,
        )
        return 1


def _run(argv: list[str]) -> int:
    verb, rest = _split(argv)
    if verb is None:
        if "--version" in rest:
            print(f"tunnelctl {__version__}")
            return 0
        if "--help" in rest or "-h" in rest:
            print(overview())
            return 0
        if rest:
            raise UsageError("give a verb; see tunnelctl --help")
        print(overview(), file=sys.stderr)
        return 2
    if verb == "help":
        print(overview())
        return 0
    if verb not in VERBS:
        raise UsageError(f"there is no {clean(verb)!r}{_nearest(verb, list(VERBS))}; see tunnelctl --help")
    chosen, parser = VERBS[verb], parser_for(verb)
    try:
        args = parser.parse_intermixed_args(rest)
    except SystemExit as done:  # argparse ends the process after --help and --version
        return int(done.code or 0)
    client = _client(args, verb)
    try:
        return chosen.run(client, args, Screen.of_stdout())
    finally:
        client.close()


def parser_for(verb: str) -> argparse.ArgumentParser:
    """The parser of one verb; the manual and the completions are made of it."""
    chosen = VERBS[verb]
    parser = _Parser(prog=f"tunnelctl {verb}", description=chosen.summary, allow_abbrev=False, add_help=False)
    chosen.arguments(parser)
    parser.add_argument("--socket", metavar="PATH", help="the agent's control socket (or TUNNELD_SOCKET)")
    parser.add_argument("--instance", metavar="NAME", help="the socket of that instance of the service")
    parser.add_argument("--server", metavar="URL", help="a server's admin API instead of an agent")
    parser.add_argument("--token-file", metavar="FILE", help="the bearer token for --server")
    parser.add_argument("--ca-file", metavar="FILE", help="roots (PEM) that are trusted for --server")
    parser.add_argument("--json", action="store_true", help="the API's own shapes")
    parser.add_argument("--version", action="version", version=f"tunnelctl {__version__}", help="show the version")
    parser.add_argument("-h", "--help", action="help", help="show this")
    return parser


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """Return the verb, None when there is none, and everything else in its order."""
    skip = False
    for index, one in enumerate(argv):
        if skip:
            skip = False
        elif one in _WITH_VALUE:
            skip = True
        elif not one.startswith("-"):
            return one, argv[:index] + argv[index + 1 :]
    return None, argv


def _client(args: argparse.Namespace, verb: str) -> Client:
    """What speaks to the agent, or to the server, that is meant."""
    timeout = 60.0 if verb == "reload" else 10.0
    if args.server is None:
        if args.token_file is not None or args.ca_file is not None:
            raise UsageError("--token-file and --ca-file go with --server URL")
        return Client(_socket(args), timeout=timeout)
    if args.socket is not None or args.instance is not None:
        raise UsageError("give --server, or --socket or --instance, not both")
    if verb not in _OF_SERVERS:
        raise UsageError(f"{verb} is an agent's; of a server there are {', '.join(sorted(_OF_SERVERS))}")
    from tunnelctl.remote import ServerClient, read_token

    token = read_token(args.token_file) if args.token_file is not None else None
    return ServerClient(args.server, token=token, ca_file=args.ca_file, timeout=timeout)


def _socket(args: argparse.Namespace) -> str:
    """Return the path of the socket that is meant."""
    if args.socket is not None and args.instance is not None:
        raise UsageError("give --socket or --instance, not both")
    if args.socket is not None:
        if not args.socket:
            raise UsageError("--socket: give a path")
        return str(args.socket)
    if args.instance is not None:
        if not args.instance or "/" in args.instance:
            raise UsageError(f"--instance: {clean(args.instance)!r} is no name of an instance")
        return f"/run/tunneld-{args.instance}/control.sock"
    if given := os.environ.get("TUNNELD_SOCKET"):
        return given
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = f"{runtime}/tunneld/control.sock" if runtime else ""
    # A user's own agent is nearer to them than the machine's; root means the machine's.
    places = [SYSTEM_SOCKET, own] if os.geteuid() == 0 else [own, SYSTEM_SOCKET]
    return next((place for place in places if place and os.path.exists(place)), SYSTEM_SOCKET)


def overview() -> str:
    """What ``tunnelctl --help`` prints."""
    lines = ["usage: tunnelctl VERB [options]", "", "What a tunneld agent has connected.", ""]
    lines += [f"  {name:<11} {verb.summary}" for name, verb in VERBS.items()]
    lines += [
        "",
        "  --socket PATH    the agent's control socket (or TUNNELD_SOCKET)",
        "  --instance NAME  the socket of that instance of the service",
        "  --server URL     a server's admin API instead (status, health, streams, cancel,",
        "                   top, reconnect, reload, alerts); with --token-file FILE",
        "  --json           the API's own shapes",
        "  --version        print the version",
        "",
        "Each verb has its own: tunnelctl VERB --help.",
        "Exit: 0 done, 1 failed, 2 usage, 3 agent or server not reachable.",
    ]
    return "\n".join(lines)
