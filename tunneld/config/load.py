"""A file to a frozen model, or every fault that it has, each with its line."""

from __future__ import annotations

import difflib
import grp
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import ValidationError

from tunneld.config.access import resolve
from tunneld.config.agent import AgentConfig, TunnelConfig
from tunneld.config.changes import Changes, diff
from tunneld.config.common import Faults, Model
from tunneld.config.document import Document, Node, parse
from tunneld.config.login import with_secret
from tunneld.config.secrets import agent_token, open_to_others, read_secret
from tunneld.config.server import ServerConfig
from tunneld.config.units import shown
from tunneld.errors import ConfigError

__all__ = [
    "MAX_FILE",
    "Changes",
    "Role",
    "agent_token",
    "diff",
    "load",
    "load_agent",
    "load_server",
    "load_tunnel",
    "read_secret",
    "role_of",
]

Role = Literal["agent", "server"]
MAX_FILE = 1 << 20
"""Bytes of a configuration file that are read; a longer one is refused."""
_MAX_FAULTS = 100
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})
_MISSING = {
    "server": "`server: {url: wss://tunnel.example.org}`",
    "url": "the server's address, such as wss://tunnel.example.org",
    "name": "the tunnel's name, which is a part of its public address",
    "service": "where the requests go, such as http://127.0.0.1:9000",
}

_Loc = tuple[str | int, ...]
_CONFIG = TypeVar("_CONFIG", AgentConfig, ServerConfig)


class _File:
    """A file that was read, and the faults that were found in it so far."""

    def __init__(self, path: str) -> None:
        self.path = path
        data, self.mode = _read(path)
        self.document: Document = parse(data)
        self.faults: list[tuple[int, str]] = [(line, text) for line, text in self.document.faults]
        self.root = self.document.root

    def fault(self, loc: _Loc, text: str) -> None:
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

    def raise_faults(self) -> None:
        if not self.faults:
            return
        found = list(dict.fromkeys(sorted(self.faults, key=lambda fault: fault[0])))
        lines = [f"{self.path}:{line}: {text}" for line, text in found[:_MAX_FAULTS]]
        if len(found) > _MAX_FAULTS:
            lines.append(f"{self.path}: and {len(found) - _MAX_FAULTS} more faults")
        raise ConfigError(lines)


def load_agent(path: str) -> AgentConfig:
    """Read the agent's file.

    Raises:
        ConfigError: with every fault of the file, one line each: ``FILE:LINE: key: what is wrong``.
    """
    return _agent(_File(path))


def load_server(path: str) -> ServerConfig:
    """Read the server's file. Raises as `load_agent` does."""
    return _server(_File(path))


def load(path: str, role: Role | None = None) -> AgentConfig | ServerConfig:
    """Read a file, once, for the role that its keys tell unless `role` does. Raises as `load_agent` does."""
    file = _File(path)
    return _agent(file) if (role or _role(file)) == "agent" else _server(file)


def load_tunnel(section: dict[str, Any], agent: AgentConfig) -> TunnelConfig:
    """A tunnel that stands in no file, whole: what it does not set is taken from `agent`.

    Args:
        section: as in the file's `tunnels`; values as text or plain.

    Raises:
        ConfigError: one line a fault: ``key: what is wrong``.
    """
    faults: list[tuple[_Loc, str]] = []
    try:
        tunnel = TunnelConfig.model_validate(section).effective(agent)
        access, found = resolve(tunnel.access)
        if not found:
            return tunnel.model_copy(update={"access": access})
        faults += [(("access", *loc), text) for loc, text in found]
    except ValidationError as error:
        for item in error.errors(include_url=False):
            faults += _explain(TunnelConfig, item)
    except Faults as error:
        faults += error.faults
    raise ConfigError([f"{'.'.join(map(str, loc))}: {text}" if loc else text for loc, text in faults])


def role_of(path: str) -> Role:
    """Whose file it is, told by its keys.

    Raises:
        ConfigError: it cannot be read as YAML, or its keys do not tell.
    """
    return _role(_File(path))


def _agent(file: _File) -> AgentConfig:
    config = _load(file, AgentConfig, "agent")
    _check_agent(file, config)
    tunnels = []
    for index, tunnel in enumerate(config.tunnels):
        access, faults = resolve(tunnel.access)
        for loc, text in faults:
            file.fault(("tunnels", index, "access", *loc), text)
        tunnels.append(tunnel.model_copy(update={"access": access}))
    file.raise_faults()
    return config.model_copy(update={"tunnels": tuple(tunnels)})


def _server(file: _File) -> ServerConfig:
    config = _load(file, ServerConfig, "server")
    if config.login is not None:
        login, faults = with_secret(config.login)
        for text in faults:
            file.fault(("login", "client_secret_file"), text)
        config = config.model_copy(update={"login": login})
    file.raise_faults()
    return config


def _role(file: _File) -> Role:
    file.check_shape()
    agent, server = _votes(file.root)
    if agent == server:
        raise ConfigError([f"{file.path}: its keys do not tell whether it is the agent's or the server's; add --role"])
    return "agent" if agent > server else "server"


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


def _load(file: _File, model: type[_CONFIG], role: Role) -> _CONFIG:
    file.check_shape()
    agent, server = _votes(file.root)
    other = "server" if role == "agent" else "agent"
    if not (agent if role == "agent" else server) and (agent or server):
        text = f"these are the keys of the {other}'s file, not the {role}'s; use `tunneld {other}`"
        raise ConfigError([f"{file.path}: {text}"])
    assert file.root is not None
    data = file.root.plain()
    assert isinstance(data, dict)
    _check_names(file, data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if item["type"] == "default_factory_not_called":  # its model has a fault, which is told already
                continue
            for loc, text in _explain(model, item):
                file.fault(loc, text)
        file.raise_faults()
        raise AssertionError("a validation error without a fault") from error


def _votes(root: Node | None) -> tuple[int, int]:
    """How many keys belong to the agent's file alone, and how many to the server's alone."""
    keys = set(root.value) if root is not None and isinstance(root.value, dict) else set()
    agent, server = set(AgentConfig.model_fields), set(ServerConfig.model_fields)
    return len(keys & (agent - server)), len(keys & (server - agent))


def _place(root: Node | None, loc: _Loc) -> tuple[int, str]:
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


def _explain(model: type[Model], item: Any) -> Iterable[tuple[_Loc, str]]:
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
        near = difflib.get_close_matches(str(found), words, 1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        return [(loc, f"expected {_either(words)}, not {shown(found)}{hint}")]
    if kind.startswith(("model", "dict", "dataclass")):
        return [(loc, f"expected a mapping of keys to values, not {shown(found)}")]
    if kind.startswith(("tuple", "list", "set")):
        return [(loc, f"expected a list, not {shown(found)}")]
    return [(loc, f"{item['msg'][:1].lower()}{item['msg'][1:]}")]


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _did_you_mean(model: type[Model], loc: _Loc) -> str:
    """The nearest known key beside an unknown one, or where in the file it belongs; "" when nothing is near."""
    name = str(loc[-1])
    siblings = [field.alias or key for key, field in _model_at(model, loc[:-1]).model_fields.items()]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), siblings, 1, 0.6)
    if near:
        return f' (did you mean "{near[0]}"?)'
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == name and not path.startswith("tunnels.")]
    if elsewhere:
        quoted = [f'"{path}"' for path in elsewhere[:3]]
        return f" (did you mean {_either(quoted)}?)"
    return f"; known here: {', '.join(siblings)}"


def _model_at(model: type[Model], loc: _Loc) -> type[Model]:
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


def _check_names(file: _File, data: dict[str, Any]) -> None:
    """Tunnels of one name, looked for in the plain file so that other faults do not hide them."""
    tunnels = data.get("tunnels")
    seen: dict[str, int] = {}
    for index, tunnel in enumerate(tunnels if isinstance(tunnels, list) else ()):
        name = tunnel.get("name") if isinstance(tunnel, dict) else None
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            file.fault(("tunnels", index, "name"), f"tunnels[{seen[name]}] has that name already")


def _check_agent(file: _File, config: AgentConfig) -> None:
    """What the model cannot know: this machine's groups, and who else can read the file."""
    group = config.control.group
    if group is not None and not _group_exists(group):
        text = f"this machine has no group {shown(group)}; create it, or leave the key out for the daemon's own group"
        file.fault(("control", "group"), text)
    if not open_to_others(file.mode):
        return
    text = f"a secret stands here and others can read the file (mode {file.mode:04o}); run `chmod 600 {file.path}`"
    proxy = config.server.proxy
    if proxy is not None and urlsplit(proxy).password:
        file.fault(("server", "proxy"), text)
    for index, tunnel in enumerate(config.tunnels):
        for name in tunnel.headers:
            if name.lower() in _SECRET_HEADERS:
                file.fault(("tunnels", index, "headers", name), text)


def _group_exists(group: str) -> bool:
    try:
        if group.isascii() and group.isdigit():
            return int(group) < 1 << 32
        grp.getgrnam(group)
    except (KeyError, OSError):
        return False
    return True
