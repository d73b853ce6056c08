"""Secrets: read from files that nobody else can read, and from nowhere else in a configuration."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunneld.errors import ConfigError

if TYPE_CHECKING:
    from tunneld.config.link import ServerLink

__all__ = ["CREDENTIAL", "TOKEN_VARIABLE", "agent_token", "open_to_others", "read_secret", "refuse_open_secret"]

CREDENTIAL = "tunneld.token"
"""Name of the systemd credential that holds the agent's token."""
TOKEN_VARIABLE = "TUNNELD_TOKEN"  # noqa: S105 - the name of it
_LIMIT = 64 << 10
_SECRET = re.compile(rb"[!-~]+")


def open_to_others(mode: int) -> bool:
    """Whether the permission bits let others read or change a file.

    The group may read: a key of group ``ssl-cert``, or a credential that a service manager hands over, is no leak.
    """
    return bool(mode & 0o006)


def refuse_open_secret(path: str) -> None:
    """Check a file that holds a secret but is read by someone else (a TLS key).

    Raises:
        ConfigError: others can read it, or it cannot be looked at.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ConfigError([f"{path}: {_why(error)}"]) from None
    _check(path, status)


def read_secret(path: str) -> str:
    """The one line that a secret's file holds, without the blanks around it.

    Raises:
        ConfigError: missing, not readable, readable by others, empty, or not one line of ASCII. Never shows a secret.
    """
    try:
        with Path(path).open("rb") as file:
            _check(path, os.fstat(file.fileno()))
            data = file.read(_LIMIT + 1).strip()
    except OSError as error:
        raise ConfigError([f"{path}: {_why(error)}"]) from None
    if not data:
        raise ConfigError([f"{path}: the file is empty; expected a secret on one line"])
    if len(data) > _LIMIT or not _SECRET.fullmatch(data):
        raise ConfigError([f"{path}: expected a secret on one line, ASCII letters, digits and signs only"])
    return data.decode("ascii")


def agent_token(server: ServerLink, environ: Mapping[str, str] | None = None) -> str | None:
    """The agent's credential: ``token_file``, else the systemd credential, else ``TUNNELD_TOKEN``.

    Args:
        server: the section ``server`` of the agent's configuration.
        environ: None: this process's.

    Returns:
        None when there is none anywhere.

    Raises:
        ConfigError: the first of the three that is there cannot be used; the later ones are not tried.
    """
    environ = os.environ if environ is None else environ
    if server.token_file is not None:
        try:
            return read_secret(server.token_file)
        except ConfigError as error:
            raise ConfigError([f"server.token_file: {fault}" for fault in error.faults]) from None
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if directory:
        path = Path(directory) / CREDENTIAL
        if os.access(path, os.F_OK):
            return read_secret(str(path))
    text = environ.get(TOKEN_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isascii() or not _SECRET.fullmatch(text.encode()):
        raise ConfigError([f"{TOKEN_VARIABLE}: expected a token on one line, ASCII letters, digits and signs only"])
    return text


def _check(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        return  # a pipe or a device has no readers but its owner's
    mode = stat.S_IMODE(status.st_mode)
    if open_to_others(mode):
        raise ConfigError([f"{path}: others can read or change this secret (mode {mode:04o}); run `chmod 600 {path}`"])


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
