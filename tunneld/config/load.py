"""A file to a frozen model, or every fault that it has, each with its line."""

from __future__ import annotations

import grp
import re
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from tunneld.config.access import resolve
from tunneld.config.agent import AgentConfig
from tunneld.config.changes import Changes, diff
from tunneld.config.common import Faults
from tunneld.config.document import Node
from tunneld.config.dropins import check_headers, merged
from tunneld.config.secrets import agent_token, open_to_others, read_secret
from tunneld.config.source import MAX_FILE, File, Loc, explain
from tunneld.config.tunnel import TunnelConfig
from tunneld.config.units import shown
from tunneld.errors import ConfigError

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig

__all__ = [
    "MAX_FILE",
    "Changes",
    "Role",
    "agent_token",
    "diff",
    "line_of",
    "load",
    "load_agent",
    "load_server",
    "load_tunnel",
    "read_secret",
    "role_of",
]

Role = Literal["agent", "server"]
_CONFIG = TypeVar("_CONFIG", AgentConfig, "ServerConfig")


def load_agent(path: str) -> AgentConfig:
    """Read the agent's file, and the tunnels of `tunnels.d` (`tunneld.config.dropins`).

    Raises:
        ConfigError: with every fault of the file, one line each: ``FILE:LINE: key: what is wrong``.
    """
    return _agent(File(path))


def load_server(path: str) -> ServerConfig:
    """Read the server's file. Raises as `load_agent` does."""
    return _server(File(path))


def load(path: str, role: Role | None = None) -> AgentConfig | ServerConfig:
    """Read a file, once, for the role that its keys tell unless `role` does. Raises as `load_agent` does."""
    file = File(path)
    return _agent(file) if (role or _role(file)) == "agent" else _server(file)


def load_tunnel(section: dict[str, Any], agent: AgentConfig) -> TunnelConfig:
    """A tunnel that stands in no file, whole: what it does not set is taken from `agent`.

    Args:
        section: as in the file's `tunnels`; values as text or plain.

    Raises:
        ConfigError: one line a fault: ``key: what is wrong``.
    """
    faults: list[tuple[Loc, str]] = []
    try:
        tunnel = agent.complete(TunnelConfig.model_validate(section))
        access, found = resolve(tunnel.access)
        if not found:
            return tunnel.model_copy(update={"access": access})
        faults += [(("access", *loc), text) for loc, text in found]
    except ValidationError as error:
        for item in error.errors(include_url=False):
            faults += explain(TunnelConfig, item)
    except Faults as error:
        faults += error.faults
    raise ConfigError([f"{'.'.join(map(str, loc))}: {text}" if loc else text for loc, text in faults])


def role_of(path: str) -> Role:
    """Whose file it is, told by its keys.

    Raises:
        ConfigError: it cannot be read as YAML, or its keys do not tell.
    """
    return _role(File(path))


def line_of(path: str, key: str) -> int:
    """The line of a key such as ``listen[0].tls.key``, or of what is nearest to it. Raises as `role_of` does."""
    return File(path).line(tuple(int(step) if step.isdigit() else step for step in re.findall(r"[^.[\]]+", key)))


def _agent(file: File) -> AgentConfig:
    config = _load(file, AgentConfig, "agent")
    _check_agent(file, config)
    tunnels = []
    for index, tunnel in enumerate(config.tunnels):
        access, faults = resolve(tunnel.access)
        for loc, text in faults:
            file.fault(("tunnels", index, "access", *loc), text)
        tunnels.append(tunnel.model_copy(update={"access": access}))
    file.raise_faults()
    return merged(file, config.model_copy(update={"tunnels": tuple(tunnels)}))


def _server(file: File) -> ServerConfig:
    from tunneld.config.server import ServerConfig  # here: an agent needs none of it

    config = _load(file, ServerConfig, "server")
    if config.login is not None:
        from tunneld.config.login import with_secret

        login, faults = with_secret(config.login)
        for text in faults:
            file.fault(("login", "client_secret_file"), text)
        config = config.model_copy(update={"login": login})
    file.raise_faults()
    return config


def _role(file: File) -> Role:
    file.check_shape()
    agent, server = _votes(file.root)
    if agent == server:
        raise ConfigError([f"{file.path}: its keys do not tell whether it is the agent's or the server's; add --role"])
    return "agent" if agent > server else "server"


def _load(file: File, model: type[_CONFIG], role: Role) -> _CONFIG:
    file.check_shape()
    strange = _keys(file.root) - set(model.model_fields)  # without any, the other role need not be known
    agent, server = _votes(file.root) if strange else (0, 0)
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
            for loc, text in explain(model, item):
                file.fault(loc, text)
        file.raise_faults()
        raise AssertionError("a validation error without a fault") from error


def _keys(root: Node | None) -> set[str]:
    return set(root.value) if root is not None and isinstance(root.value, dict) else set()


def _votes(root: Node | None) -> tuple[int, int]:
    """How many keys belong to the agent's file alone, and how many to the server's alone."""
    keys = _keys(root)
    from tunneld.config.server import ServerConfig

    agent, server = set(AgentConfig.model_fields), set(ServerConfig.model_fields)
    return len(keys & (agent - server)), len(keys & (server - agent))


def _check_names(file: File, data: dict[str, Any]) -> None:
    """Tunnels of one name, looked for in the plain file so that other faults do not hide them."""
    tunnels = data.get("tunnels")
    seen: dict[str, int] = {}
    for index, tunnel in enumerate(tunnels if isinstance(tunnels, list) else ()):
        name = tunnel.get("name") if isinstance(tunnel, dict) else None
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            file.fault(("tunnels", index, "name"), f"tunnels[{seen[name]}] has that name already")


def _check_agent(file: File, config: AgentConfig) -> None:
    """What the model cannot know: this machine's groups, and who else can read the file."""
    group = config.control.group
    if group is not None and not _group_exists(group):
        text = f"this machine has no group {shown(group)}; create it, or leave the key out for the daemon's own group"
        file.fault(("control", "group"), text)
    proxy = config.server.proxy
    if proxy is not None and urlsplit(proxy).password and open_to_others(file.mode):
        file.fault_of_secret(("server", "proxy"))
    check_headers(file, config.tunnels)


def _group_exists(group: str) -> bool:
    try:
        if group.isascii() and group.isdigit():
            return int(group) < 1 << 32
        grp.getgrnam(group)
    except (KeyError, OSError):
        return False
    return True
