"""Tunnels in files of their own, `tunnels.d/*.yaml`: read with the agent's file, written by `tunnelctl open --save`.

Each file has the one key `tunnels`, a list as in the agent's file. They stand beside that file; under a service manager
also in its state directory (``STATE_DIRECTORY``), the only place where a sandboxed agent may write.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tunneld.config.access import resolve
from tunneld.config.agent import AgentConfig
from tunneld.config.common import Faults, Model
from tunneld.config.secrets import open_to_others
from tunneld.config.source import File, explain
from tunneld.config.tunnel import TunnelConfig
from tunneld.errors import ConfigError

__all__ = ["FOLDER", "MAX_FILES", "check_headers", "folders", "forget", "merged", "save"]

FOLDER = "tunnels.d"
MAX_FILES = 10_000
"""Files of one folder that are read."""
_MODE = 0o640
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})
_SECRET = re.compile(r"authorization|cookie|token|secret|api-?key|password|signature|session", re.IGNORECASE)


class _DropIn(Model):
    """Everything in one of the files."""

    tunnels: tuple[TunnelConfig, ...]


def folders(path: str, environ: Mapping[str, str] | None = None) -> list[Path]:
    """Where the files of an agent are; a saved tunnel goes into the last of them.

    Args:
        path: the agent's file.
        environ: None: this process's.
    """
    environ = os.environ if environ is None else environ
    found = [Path(path).absolute().parent / FOLDER]
    state = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if state.startswith("/") and Path(state) / FOLDER not in found:
        found.append(Path(state) / FOLDER)
    return found


def merged(file: File, config: AgentConfig) -> AgentConfig:
    """The agent's file with the tunnels of its drop-ins.

    Args:
        file: the agent's.
        config: that was made of it.

    Raises:
        ConfigError: with every fault of every file.
    """
    places = {
        tunnel.name: f"{file.path}:{file.line(('tunnels', index, 'name'))}"
        for index, tunnel in enumerate(config.tunnels)
    }
    tunnels: list[TunnelConfig] = []
    sources: dict[str, str] = {}
    faults: list[str] = []
    for each in _files(file.path):
        try:
            found = _read(each, config, places)
        except ConfigError as error:
            faults += error.faults
        else:
            tunnels += found
            sources |= {tunnel.name: str(each) for tunnel in found}
    if faults:
        raise ConfigError(faults)
    return config.with_dropins(tunnels, sources) if tunnels else config


def _files(path: str) -> Iterable[Path]:
    for folder in folders(path):
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".yaml"))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError([f"{folder}: {(error.strerror or str(error)).lower()}"]) from None
        if len(names) > MAX_FILES:
            raise ConfigError([f"{folder}: expected at most {MAX_FILES} files"])
        yield from (folder / name for name in names if not name.startswith("."))


def _read(path: Path, agent: AgentConfig, places: dict[str, str]) -> list[TunnelConfig]:
    """The tunnels of one file, whole; `places`, where each name stands, learns theirs."""
    file = File(str(path))
    file.check_shape()
    assert file.root is not None
    try:
        own = _DropIn.model_validate(file.root.plain())
    except ValidationError as error:
        for item in error.errors(include_url=False):
            for loc, text in explain(_DropIn, item):
                file.fault(loc, text)
        file.raise_faults()
        raise AssertionError("a validation error without a fault") from error
    whole = []
    for index, tunnel in enumerate(own.tunnels):
        if tunnel.name in places:
            text = f"the tunnel {tunnel.name} stands in {places[tunnel.name]} already; take one of the two out"
            file.fault(("tunnels", index, "name"), text)
            continue
        places[tunnel.name] = f"{path}:{file.line(('tunnels', index, 'name'))}"
        try:
            tunnel = agent.complete(tunnel)
        except Faults as error:
            for loc, text in error.faults:
                file.fault(("tunnels", index, *loc), text)
        access, faults = resolve(tunnel.access)
        for loc, text in faults:
            file.fault(("tunnels", index, "access", *loc), text)
        whole.append(tunnel.model_copy(update={"access": access}))
    check_headers(file, whole)
    file.raise_faults()
    return whole


def check_headers(file: File, tunnels: Sequence[TunnelConfig]) -> None:
    """Note a fault for each header with a secret in a file that others can read."""
    if not open_to_others(file.mode):
        return
    for index, tunnel in enumerate(tunnels):
        for name in tunnel.headers:
            if name.lower() in _SECRET_HEADERS:
                file.fault_of_secret(("tunnels", index, "headers", name))


# -- what tunnelctl writes --------------------------------------------------------------------------------------------


def save(path: str, section: Mapping[str, Any]) -> Path:
    """Write one tunnel to a file of its own: whole or not at all, and over no other.

    Args:
        path: the agent's file, which says who may read this one: 0640, or less.
        section: as in the file's `tunnels`; known to be valid.

    Returns:
        The file.

    Raises:
        ConfigError: it holds a secret, a file of that name is there, or the folder cannot be written to.
    """
    name = section["name"]
    secret = sorted(key for key in section.get("headers", {}) if _SECRET.search(key))
    if secret:
        raise ConfigError(
            [f"headers.{key}: a secret is not saved; put this tunnel into {path} yourself" for key in secret]
        )
    folder = folders(path)[-1]
    target = folder / f"{name}.yaml"
    text = f"# Saved by `tunnelctl open --save`; `tunnelctl close {name}` removes it.\n"
    text += yaml.safe_dump({"tunnels": [dict(section)]}, sort_keys=False, allow_unicode=True)
    try:
        mode = _MODE & Path(path).stat().st_mode
        folder.mkdir(mode=0o750, exist_ok=True)
        _write(folder, target, text.encode(), mode | 0o600)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError([f"{target}: {why}; the agent's user needs a folder {folder} that it may write to"]) from None
    return target


def _write(folder: Path, target: Path, data: bytes, mode: int) -> None:
    """A link gives the file its name only once all of it is on the disk, and never takes another's."""
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, target)
    except FileExistsError:
        raise ConfigError([f"{target}: is there already; take it away, or choose another name"]) from None
    finally:
        os.unlink(temporary)
    with contextlib.suppress(OSError):  # a file system without it
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def forget(source: str, name: str) -> None:
    """Remove the file of a tunnel that stands alone in it, if it is there.

    Raises:
        ConfigError: it holds others too, or cannot be removed.
    """
    if not Path(source).exists():
        return
    root = File(source).root
    listed = root.plain() if root is not None else None
    tunnels = listed.get("tunnels") if isinstance(listed, dict) else None
    if not isinstance(tunnels, list) or [isinstance(one, dict) and one.get("name") for one in tunnels] != [name]:
        raise ConfigError(
            [f"{source} does not hold the tunnel {name} alone; take it out there, then `tunnelctl reload`"]
        )
    try:
        Path(source).unlink()
    except OSError as error:
        raise ConfigError([f"{source} cannot be removed: {(error.strerror or str(error)).lower()}"]) from None
