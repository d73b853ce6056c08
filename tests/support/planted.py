"""Secrets planted in configurations, and looked for in what comes out: as they are, and as they may be encoded."""

from __future__ import annotations

import base64
import binascii
import json
import re
import types
import typing
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import unquote_plus

from pydantic import BaseModel

__all__ = ["PREFIX", "found_in", "leaves", "planted", "put"]

PREFIX = "pLnt9"
"""What every planted secret begins with."""
Path = tuple[str | int, ...]


def leaves(model: type[BaseModel], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Where each key that has no keys of its own stands in a file, and what it may be: out of the models themselves."""
    for name, field in model.model_fields.items():
        yield from _below(field.annotation, (*above, field.alias or name))


def _below(kind: Any, at: Path) -> Iterator[tuple[Path, Any]]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from _below(inner[0], at)
    elif origin in (typing.Union, types.UnionType):
        sections = [one for one in inner if _is_model(one)]
        if len(sections) > 1:  # one of several shapes: each is tried
            for one in sections:
                yield from leaves(one, (*at[:-1], at[-1]))
        else:
            for one in inner:
                if one is not type(None):
                    yield from _below(one, at)
    elif origin is tuple:
        inside = typing.get_args(inner[0]) if typing.get_origin(inner[0]) in (typing.Union, types.UnionType) else ()
        many = [one for one in inside if _is_model(one)] or [inner[0]]
        for index, one in enumerate(many):
            yield from _below(one, (*at, index))
    elif origin is dict:
        yield (*at, "X-Planted"), str
    elif _is_model(kind):
        yield from leaves(kind, at)
    else:
        yield at, kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def planted(model: type[BaseModel], make: Any) -> tuple[dict[str, Any], dict[Path, Any]]:
    """A document with a value at every leaf of a model, and what stands where; it need not be valid.

    Args:
        make: number of the leaf -> its value.
    """
    document: dict[str, Any] = {}
    values: dict[Path, Any] = {}
    for number, (path, _) in enumerate(leaves(model)):
        values[path] = make(number)
        put(document, path, values[path])
    return document, values


def put(document: Any, path: Path, value: Any) -> None:
    """Lay a value into a document, with all that stands above it."""
    for here, following in pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(here, int):
            while len(document) <= here:
                document.append(type(empty)())
            document = document[here]
        else:
            document = document.setdefault(here, empty)
    if isinstance(path[-1], int) and path[-1] == len(document):
        document.append(value)
    else:
        document[path[-1]] = value


def found_in(data: bytes, *, prefix: str = PREFIX) -> set[str]:
    """Every planted secret in there: plain, escaped, percent-encoded, in hexadecimal, in base64 wherever it begins."""
    pattern = re.compile(re.escape(prefix) + r"[A-Za-z0-9]+")
    found: set[str] = set()
    for text in _readings(data):
        found |= set(pattern.findall(text))
    return found


def _readings(data: bytes) -> Iterator[str]:
    text = data.decode("utf-8", "replace")
    yield text
    yield unquote_plus(text)
    yield re.sub(r"\\u([0-9a-fA-F]{4})", lambda one: json.loads(f'"{one[0]}"'), text).replace("\\", "")
    for run in re.findall(r"[0-9a-fA-F]{12,}", text):
        for begin in (0, 1):
            even = run[begin:]
            yield binascii.unhexlify(even[: len(even) // 2 * 2]).decode("latin-1")
    for run in re.findall(r"[A-Za-z0-9+/_-]{12,}", unquote_plus(text.replace("+", "%2B"))):
        for begin in range(4):
            part = run[begin:].replace("-", "+").replace("_", "/")
            whole = part[: len(part) - (len(part) % 4 == 1)]
            yield base64.b64decode(whole + "=" * (-len(whole) % 4)).decode("latin-1")
