"""Completions of both programs: `python packaging/completions/scripts.py FOLDER` writes `bash/`, `zsh/` and `fish/`.

Both are made of the programs' own parsers; a verb that is added is completed by itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import tunneld.__main__ as daemon
from tunnelctl.completion import SCRIPTS, SHELLS, Place, Verb, script, verb_of
from tunneld import commands
from tunneld.errors import CODES

__all__ = ["FILES", "of_tunneld", "write"]

FILES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}
"""How a shell wants the file of a program to be called."""


def _guess(path: str, action: argparse.Action) -> Place:
    if action.metavar in ("FILE", "PATH"):
        return Place("files")
    return Place("words", tuple(CODES)) if action.metavar == "CODE" else Place()


def _verbs() -> list[Verb]:
    return [
        verb_of(" ".join(words), command.help, daemon.parser_for(words), _guess)
        for words, command in commands.COMMANDS.items()
    ]


def of_tunneld(shell: str) -> str:
    """The daemon's script for a shell."""
    return script(shell, "tunneld", _verbs())


def write(folder: Path) -> None:
    """Write every script into `folder`, one folder a shell."""
    for shell in SHELLS:
        (folder / shell).mkdir(parents=True, exist_ok=True)
        for program, text in (("tunnelctl", SCRIPTS[shell]), ("tunneld", of_tunneld(shell))):
            (folder / shell / FILES[shell].format(program)).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
