"""What the configuration's models say of their own keys: kind, bounds, default, and the words beside them."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tunneld.config import units
from tunneld.config.common import Model

__all__ = ["Key", "keys"]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file.

    Attributes:
        path: as it is written from the top: ``tunnels[].sse.keepalive``.
        kind: what its value is, in words.
        default: in the file's own way of writing; None: there is none to write.
        required: it has to stand there.
        text: what it is for.
        section: it has keys of its own.
    """

    path: str
    kind: str
    default: str | None
    required: bool
    text: str
    section: bool = False
    inner: tuple[Key, ...] = field(default=())


def keys(model: type[Model], example: Path) -> list[Key]:
    """Every key below a model, depth first; `example` is the file whose comments explain what docstrings leave out."""
    return list(_keys(model, "", _comments(example.read_text()), model))


def _keys(model: type[Model], prefix: str, comments: dict[str, str], root: type[Model]) -> Iterator[Key]:
    told = _attributes(model)
    for name, info in model.model_fields.items():
        base, validators, many = _unfolded(info)
        path = f"{prefix}{info.alias or name}"
        below = _section(base)
        text = _words(told.get(name, ""), comments.get(_plain(path), ""))
        if below is None:
            yield Key(path, _kind(base, validators, many), _default(info, validators), info.is_required(), text)
            continue
        kind = "a list of mappings" if many else "a mapping"
        twin = root.model_fields.get(name) if prefix else None
        if twin is not None and _section(_unfolded(twin)[0]) is below:
            yield Key(path, kind, None, info.is_required(), f"the keys of `{name}`, for this one alone", True)
            continue
        text = told.get(name) or _plainly((inspect.getdoc(below) or "").partition("\n")[0].partition(". ")[0])
        inner = tuple(_keys(below, f"{path}[]." if many else f"{path}.", comments, root))
        yield Key(path, kind, None, info.is_required(), text, True, inner)


def _section(base: list[Any]) -> type[Model] | None:
    """The model among a field's types; None: it is a plain value."""
    return next((one for one in base if isinstance(one, type) and issubclass(one, Model)), None)


def _words(docstring: str, comment: str) -> str:
    """What is said of a key: the example's comment is for users; where it only adds to the line, both."""
    if comment.startswith(("or ", "else ", "without ")):
        return f"{docstring}. {comment[:1].upper()}{comment[1:]}" if docstring else comment
    return comment or docstring


def _plainly(text: str) -> str:
    """A docstring's words for those who do not read Python."""
    return " ".join(text.replace("``", "`").replace("None:", "without it:").split())


def _plain(path: str) -> str:
    return path.replace("[]", "")


def _unfolded(info: FieldInfo) -> tuple[list[Any], list[Any], bool]:
    """The types that a field's value may have, the validators that read it, and whether it is a list."""
    base: list[Any] = []
    validators: list[Any] = []
    many = False

    def walk(annotation: Any) -> None:
        nonlocal many
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            inner, *marks = typing.get_args(annotation)
            validators.extend(mark.func for mark in marks if isinstance(mark, BeforeValidator))
            walk(inner)
        elif origin in (typing.Union, types.UnionType):
            for one in typing.get_args(annotation):
                walk(one)
        elif origin in (tuple, list):
            many = True
            walk(typing.get_args(annotation)[0])
        elif annotation is not type(None):
            base.append(annotation)

    validators.extend(mark.func for mark in info.metadata if isinstance(mark, BeforeValidator))
    walk(info.annotation)
    return base, validators, many


def _kind(base: list[Any], validators: list[Any], many: bool) -> str:
    words = _one_kind(base, validators)
    return f"a list of {words.removeprefix('a ').removeprefix('one of ')}" if many else words


def _one_kind(base: list[Any], validators: list[Any]) -> str:
    for one in validators:
        if isinstance(one, units.Duration):
            return "a duration" + _bounds(one.low, one.high, one.off, 0, units.MAX_SECONDS, units.format_duration)
        if isinstance(one, units.Size):
            return "a size" + _bounds(one.low, one.high, one.off, 0, units.MAX_SIZE, units.format_size)
        if isinstance(one, units.Whole):
            return f"a whole number from {one.low} to {one.high}"
        if one is units.parse_mode:
            return "permission bits, octal"
    choices = [str(value) for one in base for value in typing.get_args(one) if typing.get_origin(one) is typing.Literal]
    if choices:
        return "one of " + ", ".join(f"`{choice}`" for choice in choices)
    if bool in base:
        return "`true` or `false`"
    if any(typing.get_origin(one) is dict or one is dict for one in base):
        return "a mapping"
    names = {getattr(one, "__name__", "") for one in validators}
    if names & {"_file_path", "_socket_path"}:
        return "a path"
    return "a number" if {int, float} & set(base) else "text"


def _bounds(low: float, high: float, off: bool, least: float, most: float, shown: Any) -> str:
    words = [f"at least {shown(low)}"] if low > least else []
    words += [f"at most {shown(high)}"] if high < most else []
    text = f", {', '.join(words)}" if words else ""
    return text + (", or 0 for off" if off else "")


def _default(info: FieldInfo, validators: list[Any]) -> str | None:
    value = info.default
    if value is PydanticUndefined or value is None or value == () or isinstance(value, Model):
        return None
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    for one in validators:
        if isinstance(one, units.Duration):
            if value < 0:  # no duration is: it stands for one that was not given
                return None
            return units.format_duration(value) if value else "0"
        if isinstance(one, units.Size):
            return units.format_size(value)
        if one is units.parse_mode:
            return f'"{value:04o}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _attributes(model: type[Model]) -> dict[str, str]:
    """The ``Attributes:`` of a model's docstring and of those that it extends; the nearest wins."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        text = inspect.cleandoc(one.__doc__ or "") if issubclass(one, Model) else ""
        _, _, block = text.partition("Attributes:\n")
        for name, said in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", block, re.M):
            found[name] = _plainly(said)
    return found


_KEYED = re.compile(r"^(\s*)(- )?\s*([a-z_0-9]+):(?:\s|$)")


def _comments(text: str) -> dict[str, str]:
    """What an example says behind each key, by the key's path without list marks."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    path = ""
    for raw in text.splitlines():
        line = re.sub(r"^(\s*)# ?", r"\1", raw)
        keyed = _KEYED.match(line)
        _, mark, comment = line.partition("  # ")
        if keyed:
            depth = len(keyed[1]) + len(keyed[2] or "")
            stack = [one for one in stack if one[0] < depth] + [(depth, keyed[3])]
            path = ".".join(name for _, name in stack)
            if mark:
                found.setdefault(path, comment.strip())
        elif path in found and re.match(r"^\s*#\s{10,}|^\s{20,}\S", raw):
            found[path] += " " + raw.strip(" #")
        else:
            path = ""
    return found
