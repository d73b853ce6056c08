"""Completion scripts, made of the parsers themselves: a verb or an option that is added is completed by itself.

Live names come from the agent: ``tunnelctl … --json``, quietly; no agent, no names. The JSON is indented, one key a
line, so that sed reads it where there is no jq. Only plain characters pass: bash expands the words that it is given,
and an id that says ``$(…)`` must not run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunnelctl.cli import VERBS, parser_for
from tunnelctl.shells import BASH, BASH_LIVE, FISH, FISH_LIVE, ZSH

__all__ = ["SCRIPTS", "SHELLS", "Place", "Verb", "script", "verb_of"]

SHELLS = ("bash", "zsh", "fish")
_LIVE = {"tunnels": ("status", "name"), "streams": ("streams", "request_id")}


@dataclass(frozen=True, slots=True)
class Place:
    """What may stand somewhere on the command line.

    Attributes:
        kind: ``files``, ``words``, ``tunnels`` (of the agent), ``streams`` (their request ids), or ``free``.
        words: those of ``words``.
        many: for a positional: it may stand again and again.
    """

    kind: str = "free"
    words: tuple[str, ...] = ()
    many: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb as the shells need it.

    Attributes:
        path: its words: ``server token create``.
        options: each spelling, the place of its value (None: it takes none) and what it does.
        positionals: its arguments in order.
    """

    path: str
    summary: str
    options: tuple[tuple[str, Place | None, str], ...]
    positionals: tuple[Place, ...]


Guess = Callable[[str, argparse.Action], Place]
"""From a verb's path and an argument that takes a value to what may stand there."""


def verb_of(path: str, summary: str, parser: argparse.ArgumentParser, guess: Guess) -> Verb:
    """Read a verb out of its parser."""
    options: list[tuple[str, Place | None, str]] = []
    positionals: list[Place] = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        choices = tuple(str(choice) for choice in action.choices or ())
        place = Place("words", choices) if choices else guess(path, action)
        place = Place(place.kind, place.words, many=action.nargs in ("*", "+"))
        text = (action.help or "").partition(";")[0].partition(" (")[0].replace("%%", "%")
        for spelling in action.option_strings:
            options.append((spelling, None if action.nargs == 0 else place, text))
        if not action.option_strings:
            positionals.append(place)
    return Verb(path, summary, tuple(options), tuple(positionals))


def _guess(path: str, action: argparse.Action) -> Place:
    """What stands where in ``tunnelctl``: by the words that its help uses."""
    if action.metavar == "ID":
        return Place("streams")
    if "--tunnel" in action.option_strings:
        return Place("tunnels")
    if action.metavar == "NAME" and not action.option_strings and path != "open":  # which names a new one
        return Place("tunnels")
    if action.metavar in ("PATH", "FILE"):
        return Place("files")
    return Place()


def script(shell: str, program: str, verbs: list[Verb]) -> str:
    """The completion script of a program for one of `SHELLS`."""
    template, fill = {"bash": (BASH, _bash), "zsh": (ZSH, _zsh), "fish": (FISH, _fish)}[shell]
    text = template
    for mark, value in fill(program, verbs).items():
        text = text.replace(mark, value)
    return text.replace("@PROGRAM@", program)


def _below(verbs: list[Verb], path: str) -> dict[str, str]:
    """Each word that may follow `path`, and what it does."""
    start = f"{path} " if path else ""
    found: dict[str, str] = {}
    for verb in verbs:
        if verb.path.startswith(start) and verb.path != path:
            word, _, more = verb.path[len(start) :].partition(" ")
            if not more or word not in found:
                found[word] = f"{word} …" if more else verb.summary
    return found


def _paths(verbs: list[Verb]) -> list[str]:
    """Every path and every beginning of one: ``server``, ``server token``, ``server token create``."""
    words = [verb.path.split() for verb in verbs]
    return list(dict.fromkeys(" ".join(one[:end]) for one in words for end in range(1, len(one) + 1)))


def _places(verbs: list[Verb]) -> dict[str, Place]:
    """Each option that takes a value, over all verbs: those of one name mean one thing."""
    found: dict[str, Place] = {}
    for verb in verbs:
        for spelling, place, _ in verb.options:
            if place is not None and found.get(spelling, Place()).kind == "free":
                found[spelling] = place
    return found


def _global(verbs: list[Verb]) -> list[tuple[str, Place | None, str]]:
    """The options that every verb has."""
    return [one for one in verbs[0].options if all(one in verb.options for verb in verbs)]


def _options_at(verbs: list[Verb], path: str) -> list[tuple[str, Place | None, str]]:
    return list(next((verb.options for verb in verbs if verb.path == path), _global(verbs)))


def _arms(verbs: list[Verb], say: Callable[[Place], str]) -> list[str]:
    """The arms of ``case "$verb:$count"``: what may stand as the next positional."""
    arms = []
    for verb in verbs:
        for index, place in enumerate(verb.positionals):
            if place.kind != "free":
                arms.append(f'        "{verb.path}:"{"*" if place.many else index}) {say(place)} ;;')
    return arms


def _asks(verbs: list[Verb]) -> bool:
    """Whether any place is filled with live names."""
    places = [place for verb in verbs for place in verb.positionals] + list(_places(verbs).values())
    return any(place.kind in _LIVE for place in places)


def _live(verbs: list[Verb], first: str, last: str, words: str) -> str:
    text = BASH_LIVE if _asks(verbs) else ""
    return text.replace("@FIRST@", first).replace("@LAST@", last).replace("@WORDS@", words)


def _double(text: str) -> str:
    return "".join("\\" + char if char in '\\"$`' else char for char in text)


def _single(text: str) -> str:
    return text.replace("'", "'\\''")


def _bash(program: str, verbs: list[Verb]) -> dict[str, str]:
    live = f"_{program}_live"

    def words(place: Place) -> str:
        if place.kind in _LIVE:
            return f'"$({live} {" ".join(_LIVE[place.kind])})"'
        return f'"{_double(" ".join(place.words))}"'

    def complete(place: Place) -> str:
        if place.kind == "files":
            return 'compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current")); return'
        return "return" if place.kind == "free" else f"words={words(place)}; only=1"

    places = _places(verbs)
    values = [f"        {spelling}) {complete(place)} ;;" for spelling, place in places.items()]
    paths = ["", *_paths(verbs)]
    menus = [f'        "{path}:"*) words="{" ".join(below)}" ;;' for path in paths if (below := _below(verbs, path))]
    options = [
        f'            "{path}") words="{" ".join(spelling for spelling, _, _ in _options_at(verbs, path))}" ;;'
        for path in paths
    ]
    positional = _arms(verbs, lambda place: complete(place).removesuffix("; only=1"))
    return {
        "@LIVE@": _live(verbs, "1", "COMP_CWORD", "COMP_WORDS"),
        "@VALUED@": " | ".join(places),
        "@PATHS@": " | ".join(f'"{path}"' for path in paths[1:]),
        "@VALUES@": "\n".join(values),
        "@WORDS@": "\n".join([*positional, *menus]),
        "@OPTIONS@": "\n".join(options),
    }


def _zsh(program: str, verbs: list[Verb]) -> dict[str, str]:
    live = f"_{program}_live"

    def complete(place: Place) -> str:
        if place.kind == "files":
            return "_files; return"
        if place.kind in _LIVE:
            return f'compadd -- ${{(f)"$({live} {" ".join(_LIVE[place.kind])})"}}; return'
        return "return" if place.kind == "free" else f"compadd -- {' '.join(place.words)}; return"

    def menu(rows: Mapping[str, str]) -> str:
        return " ".join(f"'{_single(word)}:{_single(text)}'" for word, text in rows.items())

    paths = ["", *_paths(verbs)]
    menus = [f'        "{path}:"*) rows=({menu(below)}) ;;' for path in paths if (below := _below(verbs, path))]
    options = [
        f'            "{path}") rows=({menu({spelling: text for spelling, _, text in _options_at(verbs, path)})}) ;;'
        for path in paths
    ]
    places = _places(verbs)
    return {
        "@LIVE@": _live(verbs, "2", "CURRENT", "words"),
        "@VALUED@": " | ".join(places),
        "@PATHS@": " | ".join(f'"{path}"' for path in paths[1:]),
        "@VALUES@": "\n".join(f"        {spelling}) {complete(place)} ;;" for spelling, place in places.items()),
        "@WORDS@": "\n".join([*_arms(verbs, complete), *menus]),
        "@OPTIONS@": "\n".join(options),
    }


def _fish(program: str, verbs: list[Verb]) -> dict[str, str]:
    def candidates(place: Place) -> str:
        if place.kind == "files":
            return " -F"
        if place.kind in _LIVE:
            return f" -a '(__{program}_live {' '.join(_LIVE[place.kind])})'"
        return "" if place.kind == "free" else f" -a '{_single(' '.join(place.words))}'"

    def named(spelling: str) -> str:
        return f"-l {spelling[2:]}" if spelling.startswith("--") else f"-s {spelling[1:]}"

    lines: list[str] = []

    def add(path: str | None, words: str, text: str = "") -> None:
        condition = "" if path is None else f" -n '__{program}_at \"{path}\"'"
        lines.append(f"complete -c {program}{condition} {words}" + (f" -d '{_single(text)}'" if text else ""))

    def add_option(path: str | None, one: tuple[str, Place | None, str]) -> None:
        spelling, place, text = one
        add(
            path,
            named(spelling)
            + ("" if place is None else f" {'-r' if place.kind == 'files' else '-x'}{candidates(place)}"),
            text,
        )

    shared = _global(verbs)
    for one in shared:
        add_option(None, one)
    for path in ["", *_paths(verbs)]:
        for word, text in _below(verbs, path).items():
            add(path, f"-a {word}", text)
    for verb in verbs:
        for one in verb.options:
            if one not in shared:
                add_option(verb.path, one)
        for place in verb.positionals:
            if place.kind != "free":
                add(verb.path, candidates(place).strip())
    return {
        "@LIVE@": FISH_LIVE if _asks(verbs) else "",
        "@VALUED@": " ".join(_places(verbs)),
        "@PATHS@": " ".join(f'"{path}"' for path in _paths(verbs)),
        "@LINES@": "\n".join(lines),
    }


_VERBS = [verb_of(name, verb.summary, parser_for(name), _guess) for name, verb in VERBS.items()]
SCRIPTS: dict[str, str] = {shell: script(shell, "tunnelctl", _VERBS) for shell in SHELLS}
