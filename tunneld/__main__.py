"""The command ``tunneld``: from the command line to one verb, and from any error to one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tunneld import __version__, standard
from tunneld.commands import COMMANDS, VALUED, Words, nearest
from tunneld.errors import ConfigError, TunneldError, UsageError

__all__ = ["main", "overview", "parser_for"]

EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        greedy = [action.option_strings[0] for action in self._actions if action.nargs == "+"]
        if greedy and "are required" in message:
            message += f"; it stands before {' and '.join(greedy)}, which take what follows them"
        raise UsageError(f"{message} (see `{self.prog} --help`)")


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
            elif valued and below and not argument.startswith("-"):
                rest[-1] += f"={argument}"  # one that takes several takes none of what stands after the verb
            else:
                rest.append(argument)
            valued = not valued and argument in VALUED
        elif argument in below:
            words = (*words, argument)
        elif not words and argument == "help":
            shows.add("--help")
        else:
            where = f" of `tunneld {' '.join(words)}`" if words else ""
            near = nearest(argument, below) or f"; known: {', '.join(below)}"
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
        near = nearest(unknown[0].partition("=")[0], options) if unknown[0].startswith("-") else ""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; None: this process's.

    Returns:
        The exit status: 0 done, 1 what was asked for failed, 2 bad usage or configuration, 70 a defect.
    """
    standard.fill()
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        standard.drop()
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
        standard.drop()
        return 1
    except Exception as error:  # noqa: BLE001 - the program's edge: whatever comes here ends it
        if os.environ.get("TUNNELD_DEBUG") == "1":
            traceback.print_exc()
        _complain(_defect(error))
        return EXIT_DEFECT
    return status


if __name__ == "__main__":
    sys.exit(main())
