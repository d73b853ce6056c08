"""The few words of roff's man macros that the pages need, and the escaping of everything else."""

from __future__ import annotations

import textwrap

__all__ = ["Page"]


def _escaped(text: str) -> str:
    """Text that roff prints as it is: its escape character and a minus that must stay one."""
    return text.replace("\\", "\\e").replace("-", "\\-")


def _line(text: str) -> str:
    """One line of text; a dot or a quote at its begin is no request."""
    return f"\\&{text}" if text.startswith((".", "'")) else text


class Page:
    """A manual page under construction.

    Args:
        title: as it is called: ``tunneld``.
        section: ``8``.
        date: YYYY-MM-DD.
        source: what it belongs to: ``tunneld 0.1.0``.
        manual: the manual's name.
    """

    def __init__(self, *, title: str, section: str, date: str, source: str, manual: str) -> None:
        self._lines = [f'.TH "{_escaped(title)}" {section} "{date}" "{source}" "{manual}"', ".nh", ".ad l"]

    def section(self, name: str) -> None:
        """A heading; it is written in capitals."""
        self._lines.append(f'.SH "{_escaped(name.upper())}"')

    def part(self, name: str) -> None:
        """A heading below a section."""
        self._lines.append(f'.SS "{_escaped(name)}"')

    def text(self, text: str) -> None:
        """A paragraph; ``words in backticks`` are bold."""
        self._lines += [*self._gap(), *self._flowing(text)]

    def item(self, name: str, *texts: str) -> None:
        """A term with paragraphs that say what it is."""
        self._lines += [".TP", f"\\fB{_line(_escaped(name))}\\fR"]
        for index, text in enumerate(texts):
            self._lines += [".br"] if index else []
            self._lines += self._flowing(text)

    def block(self, text: str) -> None:
        """Lines as they stand."""
        lines = textwrap.dedent(text).strip("\n").splitlines()
        self._lines += [*self._gap(), ".RS 4", ".nf", *(_line(_escaped(line)) for line in lines), ".fi", ".RE"]

    def name(self, title: str, what: str) -> None:
        """The line that apropos shows."""
        self._lines += ['.SH "NAME"', f"{_escaped(title)} \\- {_escaped(what)}"]

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"

    def _gap(self) -> list[str]:
        """What parts a paragraph from the one above it; behind a heading nothing does."""
        return [] if self._lines[-1].startswith((".SH", ".SS")) else [".PP"]

    @staticmethod
    def _flowing(text: str) -> list[str]:
        parts = _escaped(" ".join(text.split())).split("`")
        marked = "".join(f"\\fB{part}\\fR" if index % 2 else part for index, part in enumerate(parts))
        wrapped = textwrap.wrap(marked, 100, break_long_words=False, break_on_hyphens=False)
        return [_line(line) for line in wrapped or [""]]
