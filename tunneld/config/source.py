"""A configuration file as it was read: its tree, its permissions, and the faults found in it, each with its line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from tunneld.config.common import Faults, Model
from tunneld.config.document import Document, Node, parse
from tunneld.config.units import shown
from tunneld.errors import ConfigError

__all__ = ["MAX_FILE", "File", "Loc", "explain", "near"]

MAX_FILE = 1 << 20
"""Bytes of a configuration file that are read; a longer one is refused."""
_MAX_FAULTS = 100
_MISSING = {
    "server": "`server: {url: wss://tunnel.example.org}`",
    "url": "the server's address, such as wss://tunnel.example.org",
    "name": "the tunnel's name, which is a part of its public address",
    "service": "where the requests go, such as http://127.0.0.1:9000",
}

Loc = tuple[str | int, ...]
"""Where a value stands: keys and indices from the root."""


class File:
    """One that was read, and the faults that were found in it so far."""

    def __init__(self, path: str) -> None:
        self.path = path
        data, self.mode = _read(path)
        self.document: Document = parse(data)
        self.faults: list[tuple[int, str]] = [(line, text) for line, text in self.document.faults]
        self.root = self.document.root

    def line(self, loc: Loc) -> int:
        """Where a value stands."""
        return _place(self.root, loc)[0]

    def fault(self, loc: Loc, text: str) -> None:
        """Note what is wrong with a value."""
        line, key = _place(self.root, loc)
        self.faults.append((line, f"{key}: {text}" if key else text))

    def check_shape(self) -> None:
        """Raise at once when there is nothing that keys could be looked for in."""
        if self.document.broken:
            self.raise_faults()
        if self.root is None or self.root.value is None or self.root.value == {}:
            self.raise_faults()
            raise ConfigError([f"{self.path}: the file has no keys; see the commented example in config/"])
        if not isinstance(self.root.value, dict):
            self.faults.append((self.root.line, "expected keys and values such as `log: {level: info}`, not a list"))
            if isinstance(self.root.value, str):
                self.faults[-1] = (
                    self.root.line,
                    "expected keys and values such as `log: {level: info}`, not plain text",
                )
            self.raise_faults()

    def fault_of_secret(self, loc: Loc) -> None:
        """Note that a secret stands there, in a file that others can read."""
        mode = f"mode {self.mode:04o}"
        self.fault(loc, f"a secret stands here and others can read the file ({mode}); run `chmod 600 {self.path}`")

    def raise_faults(self) -> None:
        """Raise ConfigError with what was noted, if anything was."""
        if not self.faults:
            return
        found = list(dict.fromkeys(sorted(self.faults, key=lambda fault: fault[0])))
        lines = [f"{self.path}:{line}: {text}" for line, text in found[:_MAX_FAULTS]]
        if len(found) > _MAX_FAULTS:
            lines.append(f"{self.path}: and {len(found) - _MAX_FAULTS} more faults")
        raise ConfigError(lines)


def _read(path: str) -> tuple[bytes, int]:
    """The file's bytes and its permission bits; bits 0 for what is no regular file."""
    try:
        with Path(path).open("rb") as handle:
            status = os.fstat(handle.fileno())
            data = handle.read(MAX_FILE + 1)
    except ValueError:  # a NUL in the path
        raise ConfigError([f"{path!r}: no such file"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: {(error.strerror or str(error)).lower()}"]) from None
    if len(data) > MAX_FILE:
        raise ConfigError([f"{path}: expected a file of at most {MAX_FILE >> 10} KiB"])
    return data, stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else 0


def _place(root: Node | None, loc: Loc) -> tuple[int, str]:
    """The line of a place and its name, ``tunnels[0].heartbeat.interval``; the nearest line when it is not there."""
    node, line, key = root, root.line if root is not None else 1, ""
    for step in loc:
        value = node.value if node is not None else None
        if isinstance(step, int):
            if isinstance(value, dict):
                continue  # one mapping where a list may stand
            key += f"[{step}]"
            node = value[step] if isinstance(value, list) and step < len(value) else None
        else:
            name = step if re.fullmatch(r"[\w-]{1,60}", step) else shown(step)
            key += f".{name}" if key else name
            node = value.get(step) if isinstance(value, dict) else None
        line = node.line if node is not None else line
    return line, key


def near(word: str, known: Sequence[str]) -> list[str]:
    """The known word that is most like it, if one is."""
    import difflib  # here: a file without a fault needs none of it

    return difflib.get_close_matches(word, known, 1, 0.6)


def explain(model: type[Model], item: Any) -> Iterable[tuple[Loc, str]]:
    """(place, words) of one of pydantic's errors."""
    loc, kind, found = tuple(item["loc"]), item["type"], item["input"]
    if kind == "default_factory_not_called":  # the fault that it follows from is told
        return []
    error = item.get("ctx", {}).get("error")
    if isinstance(error, Faults):
        return [((*loc, *path), text) for path, text in error.faults]
    if isinstance(error, ValueError):
        return [(loc, str(error))]
    if kind == "extra_forbidden":
        return [(loc, f"unknown key{_did_you_mean(model, loc)}")]
    if kind == "missing":
        return [(loc, f"missing; expected {_MISSING.get(str(loc[-1]), 'a value')}")]
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        nearest = near(str(found), words)
        hint = f' (did you mean "{nearest[0]}"?)' if nearest else ""
        return [(loc, f"expected {_either(words)}, not {shown(found)}{hint}")]
    if kind.startswith(("model", "dict", "dataclass")):
        return [(loc, f"expected a mapping of keys to values, not {shown(found)}")]
    if kind.startswith(("tuple", "list", "set")):
        return [(loc, f"expected a list, not {shown(found)}")]
    return [(loc, f"{item['msg'][:1].lower()}{item['msg'][1:]}")]


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _did_you_mean(model: type[Model], loc: Loc) -> str:
    """The nearest known key beside an unknown one, or where in the file it belongs; "" when nothing is near."""
    name = str(loc[-1])
    siblings = [field.alias or key for key, field in _model_at(model, loc[:-1]).model_fields.items()]
    nearest = near(name.lower().replace("-", "_"), siblings)
    if nearest:
        return f' (did you mean "{nearest[0]}"?)'
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == name and not path.startswith("tunnels.")]
    if elsewhere:
        quoted = [f'"{path}"' for path in elsewhere[:3]]
        return f" (did you mean {_either(quoted)}?)"
    return f"; known here: {', '.join(siblings)}"


def _model_at(model: type[Model], loc: Loc) -> type[Model]:
    for step in loc:
        if isinstance(step, str) and step in model.model_fields:
            model = _model_in(model.model_fields[step].annotation) or model
    return model


def _model_in(annotation: Any) -> type[Model] | None:
    """The model that an annotation names: itself, or inside ``X | None``, ``tuple[X, ...]`` or ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)


def _paths(model: type[Model], prefix: str = "") -> Iterable[str]:
    for key, field in model.model_fields.items():
        yield prefix + key
        below = _model_in(field.annotation)
        if below is not None:
            yield from _paths(below, f"{prefix}{key}.")
