"""YAML text to a tree that knows its lines.

The tree is built from the parser's events with no recursion, within bounds of depth and size, and every scalar stays
the text that it is: no type is guessed, so that ``on``, ``60:00`` and ``0660`` mean what the key makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from tunneld.config.units import shown

__all__ = ["MAX_DEPTH", "MAX_VALUES", "Document", "Node", "parse"]

MAX_DEPTH = 32
"""Levels of lists and mappings."""
MAX_VALUES = 50_000
"""Values of one file, those that aliases repeat counted each time."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True, eq=False)
class Node:
    """One value.

    Attributes:
        line: where it stands, from 1; of a mapping's entry, where its key stands.
        value: a scalar's text, None for an empty one, a list, or a mapping.
        size: how many values it is made of, itself included.
        depth: levels of lists and mappings in it.
    """

    line: int
    value: str | list[Node] | dict[str, Node] | None
    size: int = 1
    depth: int = 0

    def plain(self) -> object:
        """The same as plain lists, dicts, texts and None; shared parts stay shared."""
        done: dict[int, object] = {}

        def convert(node: Node) -> object:
            if id(node) not in done:
                if isinstance(node.value, dict):
                    done[id(node)] = {key: convert(item) for key, item in node.value.items()}
                elif isinstance(node.value, list):
                    done[id(node)] = [convert(item) for item in node.value]
                else:
                    done[id(node)] = node.value
            return done[id(node)]

        return convert(self)


@dataclass(slots=True)
class Document:
    """What `parse` made of a file.

    Attributes:
        root: None when there is nothing in it, or nothing that could be read.
        faults: (line, what is wrong), in the order of the file.
        broken: the text could not be read to its end, so `root` is not the whole.
    """

    root: Node | None = None
    faults: list[tuple[int, str]] = field(default_factory=list)
    broken: bool = False


class _Stop(Exception):
    """The rest of the file is not worth reading."""


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    node: Node
    anchor: str | None
    key: str | None = None
    key_line: int = 0
    wants_key: bool = True
    lines: dict[str, int] = field(default_factory=dict)


class _Builder:
    def __init__(self) -> None:
        self.document = Document()
        self.stack: list[_Open] = []
        self.anchors: dict[str, Node | None] = {}
        self.values = 0

    def fault(self, line: int, text: str) -> None:
        self.document.faults.append((line, text))

    def stop(self, line: int, text: str) -> None:
        self.fault(line, text)
        self.document.broken = True
        raise _Stop

    def event(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        if isinstance(event, yaml.DocumentStartEvent):
            if self.document.root is not None:
                self.stop(line, "a second document begins here; expected one document a file")
        elif isinstance(event, yaml.AliasEvent):
            self.place(self.alias(event.anchor, line), plain=False)
        elif isinstance(event, yaml.NodeEvent):
            self.node(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.end()

    def node(self, event: yaml.NodeEvent, line: int) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.fault(line, "a tag (!…) stands here; expected a plain value")
        self.count(1, line)
        if isinstance(event, yaml.ScalarEvent):
            plain = not event.style
            node = Node(line, None if plain and event.value in _NULLS else event.value)
            if event.anchor is not None:
                self.anchors[event.anchor] = node
            self.place(node, plain=plain)
            return
        self.check_depth(1, line)
        node = Node(line, [] if isinstance(event, yaml.SequenceStartEvent) else {}, depth=1)
        if event.anchor is not None:
            self.anchors[event.anchor] = None  # until it ends: what it holds cannot repeat it
        self.stack.append(_Open(node, event.anchor))

    def alias(self, name: str | None, line: int) -> Node:
        found = self.anchors.get(name or "")
        if found is None:
            why = "stands inside what it repeats" if name in self.anchors else "repeats nothing: no such anchor"
            self.fault(line, f"the alias *{name} {why}")
            return Node(line, None)
        self.count(found.size, line)
        self.check_depth(found.depth, line)
        return Node(line, found.value, found.size, found.depth)

    def count(self, values: int, line: int) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            self.stop(line, f"expected at most {MAX_VALUES} values (what an alias repeats counts each time)")

    def check_depth(self, more: int, line: int) -> None:
        if len(self.stack) + more > MAX_DEPTH:
            self.stop(line, f"nested deeper than {MAX_DEPTH} levels")

    def end(self) -> None:
        done = self.stack.pop()
        if done.anchor is not None:
            self.anchors[done.anchor] = done.node
        self.place(done.node, plain=False)

    def place(self, node: Node, *, plain: bool) -> None:
        """Put a whole value where it belongs: the root, a list's next item, a mapping's next key or value."""
        if not self.stack:
            self.document.root = node
            return
        parent = self.stack[-1]
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
        elif isinstance(parent.node.value, dict):
            parent.wants_key = not parent.wants_key
            if not parent.wants_key:
                parent.key, parent.key_line = self.key(parent, node, plain), node.line
                return
            if parent.key is not None:
                parent.lines[parent.key] = node.line = parent.key_line
                parent.node.value[parent.key] = node
        parent.node.size += node.size
        parent.node.depth = max(parent.node.depth, node.depth + 1)

    def key(self, parent: _Open, node: Node, plain: bool) -> str | None:
        """The text of a key; None, with a fault, when it is none or stands there already."""
        if not isinstance(node.value, str):
            self.fault(node.line, "expected a word as key" if node.value is not None else "a key is missing before ':'")
            return None
        if plain and node.value == "<<":
            self.fault(node.line, "merge keys (<<) are not read here; write the keys out")
            return None
        if node.value in parent.lines:
            self.fault(node.line, f"the key {shown(node.value)} stands on line {parent.lines[node.value]} already")
            return None
        return node.value


def _events(text: str, loader: type) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=loader)


def _trouble(error: yaml.YAMLError, lines: list[str]) -> tuple[int, str]:
    """Line and words of what the YAML parser could not read."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "no valid YAML"
    line = min(mark.line + 1, len(lines)) if mark is not None else 1
    here = lines[line - 1] if lines else ""
    if "\t" in here[: len(here) - len(here.lstrip())]:
        return line, "a tab stands at the beginning of this line; YAML indents with spaces"
    if "nesting depth" in problem:  # libyaml's own bound, which it may meet before it tells of the levels above
        return line, f"nested deeper than {MAX_DEPTH} levels"
    return line, f"this is not valid YAML: {problem}"


def parse(data: bytes, *, loader: type = _LOADER) -> Document:
    """Read one YAML document.

    Args:
        data: the file's bytes.
        loader: which of PyYAML's parsers; libyaml's where there is one.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Document(None, [(line, f"expected UTF-8 text, not the byte 0x{data[error.start]:02x}")], True)
    odd = _FORBIDDEN.search(text)
    if odd is not None:
        line = text.count("\n", 0, odd.start()) + 1
        return Document(None, [(line, f"expected plain text, not the control character U+{ord(odd[0]):04X}")], True)
    builder = _Builder()
    try:
        for event in _events(text, loader):
            builder.event(event)
    except _Stop:
        pass
    except yaml.YAMLError as error:
        builder.document.broken = True
        builder.document.faults.append(_trouble(error, text.splitlines()))
    return builder.document
