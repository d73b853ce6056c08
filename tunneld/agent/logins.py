"""``tunneld login``: the server and the credential of `tunneld expose`, in the user's own configuration directory."""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from tunneld.config.addresses import server_url
from tunneld.config.secrets import TOKEN_VARIABLE, read_secret
from tunneld.errors import ConfigError

__all__ = ["folder", "login", "saved"]

_SECRET = re.compile(r"[!-~]{1,4096}")


def folder(environ: Mapping[str, str] | None = None) -> Path:
    """``$XDG_CONFIG_HOME/tunneld``, else ``~/.config/tunneld``."""
    home = (os.environ if environ is None else environ).get("XDG_CONFIG_HOME", "")
    return (Path(home) if home.startswith("/") else Path("~/.config").expanduser()) / "tunneld"


def saved(environ: Mapping[str, str] | None = None) -> tuple[str, str | None] | None:
    """The server that was stored, and the file of its credential, if it has one; None: none was stored.

    Raises:
        ConfigError: what is stored cannot be read.
    """
    where = folder(environ)
    try:
        url = (where / "server").read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{where / 'server'}: {getattr(error, 'strerror', None) or error}"]) from None
    token = where / "token"
    return url, str(token) if token.exists() else None


def login(url: str, *, token_file: str | None) -> int:
    """Store the server and its credential for later; returns the exit status.

    Args:
        token_file: None: ``TUNNELD_TOKEN``, else a line of stdin, which a terminal does not show.

    Raises:
        ConfigError: the address or the credential cannot be used, or the directory not be written.
    """
    try:
        url = server_url(url)
    except ValueError as error:
        raise ConfigError([f"URL: {error}"]) from None
    token = _token(token_file)
    where = folder()
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(where / "server", url)
        if token:
            _write(where / "token", token)
        else:
            (where / "token").unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError([f"{where}: {(error.strerror or str(error)).lower()}"]) from None
    what = "its credential" if token else "no credential"
    print(f"stored {url} with {what} in {where}; `tunneld expose` takes it from there")
    return 0


def _token(token_file: str | None) -> str:
    if token_file is not None:
        return read_secret(token_file)
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        shown = sys.stdin.isatty()
        token = getpass.getpass("Token (empty: the server wants none): ") if shown else sys.stdin.readline(8192)
    token = token.strip()
    if token and not _SECRET.fullmatch(token):
        raise ConfigError(["the token: expected one line of ASCII letters, digits and signs"])
    return token


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and for nobody else to read."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(f"{text}\n")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
