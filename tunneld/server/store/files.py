"""The store's file on disk: where it is, and that nobody but the server's user can read it."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tunneld.errors import ConfigError

__all__ = ["login_secret", "make_private", "path_of"]

_SECRET = 32


def path_of(url: str) -> str | None:
    """The file of ``sqlite:///PATH``; None for ``memory:``."""
    return None if url == "memory:" else os.path.abspath(url.removeprefix("sqlite:///"))


def login_secret(url: str) -> bytes:
    """What visitors' session cookies are signed with, kept beside the store: 32 bytes, made when they are missing.

    Without the file nobody is signed in any more; with `memory:` that is so after every start.

    Raises:
        ConfigError: it cannot be read or made.
    """
    store = path_of(url)
    if store is None:
        return os.urandom(_SECRET)
    file = Path(f"{store}.login-key")
    make_private(str(file))
    try:
        with file.open("r+b") as handle:
            secret = handle.read(_SECRET + 1)
            if not secret:
                secret = os.urandom(_SECRET)
                handle.write(secret)
    except OSError as error:
        raise ConfigError([f"store: {file}: {(error.strerror or str(error)).lower()}"]) from None
    if len(secret) != _SECRET:
        raise ConfigError([f"store: {file}: expected {_SECRET} random bytes; remove it, and it is made anew"])
    return secret


def make_private(path: str) -> None:
    """Make the file and its directory where they are missing, for its user alone.

    Made by root, it goes to the owner of the directory: `tunneld server token create` under sudo must not leave the
    server, which runs as a user of its own, with a file that it cannot open.

    Raises:
        ConfigError: they cannot be made, or stand there as something else.
    """
    file = Path(path)
    try:
        _make_directory(file.parent)
        with contextlib.suppress(FileExistsError):
            made = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                _give_away(made, file.parent)
            finally:
                os.close(made)
        found = file.stat()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError([f"store: {path}: cannot be made or read: {why}"]) from None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError([f"store: {path}: is no regular file; name another one, which is made when it is missing"])
    if found.st_mode & 0o006:
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError([f"store: {path}: others can read or change it (mode {mode:04o}); run `chmod 600 {path}`"])


def _make_directory(directory: Path) -> None:
    if directory.exists():
        return
    _make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)


def _give_away(descriptor: int, directory: Path) -> None:
    if os.geteuid() == 0:
        owner = directory.stat()
        if (owner.st_uid, owner.st_gid) != (0, 0):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
