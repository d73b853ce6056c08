"""A Unix socket that is nobody else's: made with its mode and group, replaced when stale, never when live.

Every way in which it cannot be made is one line of a `ConfigError`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from tunneld.errors import ConfigError, ResourceError

__all__ = ["BoundSocket", "Credentials", "bind", "credentials"]

_PATH_MAX = 107  # sun_path holds 108 octets with the closing NUL
_BACKLOG = 64
#: What may be better at the next start.
_FOR_NOW = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
_ucred = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who is at the other end of a Unix socket, as the kernel knows it (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def credentials(sock: socket.socket) -> Credentials | None:
    """Return the peer's credentials, None where the platform has no SO_PEERCRED."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size)
    return Credentials(*_ucred.unpack(raw))


class BoundSocket:
    """A listening socket, its path, and the lock that says that this process owns the path."""

    __slots__ = ("_inode", "_lock", "_lock_path", "path", "sock")

    def __init__(self, sock: socket.socket, path: Path, lock: int, lock_path: Path) -> None:
        self.sock = sock
        self.path = path
        self._lock = lock
        self._lock_path = lock_path
        self._inode = _inode(path)

    def remove(self) -> None:
        """Take the path away if it is still ours, and give up the lock. Idempotent; leaves `sock` open."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):  # the directory may be gone or no longer ours to write
            if _inode(self.path) == self._inode:
                self.path.unlink()
        _unlock(self._lock, self._lock_path)
        self._lock = -1


def bind(path: Path, *, mode: int, group: str | None, key: str = "control.socket") -> BoundSocket:
    """Make the socket at `path` and listen on it.

    Args:
        path: where; a directory that is missing is made (0755).
        mode: permission bits of the socket; at no moment has it more than these.
        group: name or number of the group it is given to; None leaves the process's own.
        key: the key of the configuration that is named in faults.

    Raises:
        ConfigError: with one line that says why it cannot be made.
    """
    path = Path(os.path.abspath(path))
    if len(os.fsencode(path)) > _PATH_MAX:
        raise _fault(key, path, f"the path is longer than the {_PATH_MAX} bytes that a Unix socket may have")
    gid = _group(group)
    _make_directory(path.parent, key)
    lock_path = path.with_name(path.name + ".lock")
    lock = _take_lock(lock_path, path, key)
    try:
        _clear(path, key)
        sock = _listen(path, mode, gid, group, key)
    except BaseException:
        _unlock(lock, lock_path)
        raise
    return BoundSocket(sock, path, lock, lock_path)


def _fault(key: str, path: Path, what: str) -> ConfigError:
    return ConfigError([f"{key}: {path}: {what}"])


def _failed(key: str, path: Path, what: str, error: OSError) -> ConfigError:
    """The system refused: for good, as far as the configuration goes, or for the moment."""
    kind = ResourceError if error.errno in _FOR_NOW else ConfigError
    return kind([f"{key}: {path}: {what}: {_reason(error)}"])


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _group(group: str | None) -> int:
    """Return the group's number, -1 for "leave it"."""
    if group is None:
        return -1
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        fault = f"control.group: this machine has no group {group!r}; make it: groupadd --system {group}"
        raise ConfigError([fault]) from None


def _make_directory(directory: Path, key: str) -> None:
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for one in reversed(missing):
        try:
            one.mkdir(exist_ok=True)
            one.chmod(0o755)  # whatever the umask: the group must reach the socket, which has its own mode
        except OSError as error:
            raise _failed(key, one, "cannot make the directory", error) from None


def _reason(error: OSError) -> str:
    hints = {
        errno.EACCES: " (start as the service's user or root, or choose another path)",
        errno.EPERM: " (start as the service's user or root, or choose another path)",
        errno.EROFS: " (choose a path below /run or $XDG_RUNTIME_DIR)",
    }
    return os.strerror(error.errno or 0).lower() + hints.get(error.errno or 0, "")


def _take_lock(lock_path: Path, path: Path, key: str) -> int:
    """Lock the path for this process's life; the kernel gives a killed owner's lock back.

    Without it two agents that start at once could both find a stale socket, and the second would take away the
    one that the first has just made.
    """
    while True:
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _failed(key, path, "cannot write beside it", error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise _running(key, path, _owner(path)) from None
        here = os.fstat(lock)
        if _inode(lock_path) == (here.st_dev, here.st_ino):
            return lock
        os.close(lock)  # its owner took it away between our open and our lock: once more


def _unlock(lock: int, lock_path: Path) -> None:
    with contextlib.suppress(OSError):
        lock_path.unlink()
    os.close(lock)


def _running(key: str, path: Path, owner: Credentials | None) -> ConfigError:
    who = f"already running as pid {owner.pid}" if owner else "already running"
    return _fault(key, path, f"{who}; stop it first, or give this one a socket of its own")


def _owner(path: Path) -> Credentials | None:
    """Return who listens at the path, None when that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
            return credentials(probe)
        except OSError:
            return None


def _clear(path: Path, key: str) -> None:
    """Take a stale socket away; refuse anything else that stands at the path."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _fault(key, path, _reason(error)) from None
    if stat.S_ISLNK(found):
        raise _fault(key, path, "is a symbolic link, which is not followed; remove it or name its target")
    if not stat.S_ISSOCK(found):
        raise _fault(key, path, "exists and is not a socket; remove it or choose another path")
    if _is_live(path, key):
        raise _running(key, path, _owner(path))
    try:
        path.unlink()
    except OSError as error:
        raise _fault(key, path, f"cannot replace the stale socket: {_reason(error)}") from None


def _is_live(path: Path, key: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its backlog is full: someone listens
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            raise _fault(key, path, f"cannot tell whether it is live: {_reason(error)}") from None
    return True


def _listen(path: Path, mode: int, gid: int, group: str | None, key: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        before = os.umask(0o777)  # nobody gets in before group and mode are set
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        try:
            _give(path, mode, gid, group)
            sock.listen(_BACKLOG)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        sock.close()
        raise _failed(key, path, "cannot make the socket", error) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _give(path: Path, mode: int, gid: int, group: str | None) -> None:
    if gid >= 0:
        try:
            os.chown(path, -1, gid, follow_symlinks=False)
        except PermissionError:
            fault = (
                f"control.group: uid {os.geteuid()} may not give {path} to group {group!r}; "
                "add that user to the group, or leave control.group out"
            )
            raise ConfigError([fault]) from None
    path.chmod(mode)
