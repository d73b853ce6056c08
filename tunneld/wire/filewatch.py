"""Tells when files may have changed: written, replaced, or a link on the way to them pointed elsewhere (inotify(7)).

Nothing is polled. Directories are watched, not files: a renewed certificate comes by a rename, or by a link that is
put in place of another (certbot, Kubernetes). Where the platform has no inotify nothing is told.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import stat
import struct
from collections.abc import Callable, Iterable

__all__ = ["SETTLE", "FileWatch"]

#: Seconds of quiet after a change before it is told: a certificate and its key are written one after the other.
SETTLE = 0.25

_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_CREATE, _IN_MOVED_FROM, _IN_DELETE = 0x8, 0x80, 0x100, 0x40, 0x200
_MASK = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE | _IN_MOVED_FROM | _IN_DELETE
_IN_Q_OVERFLOW, _IN_IGNORED = 0x4000, 0x8000
_EVENT = struct.Struct("iIII")
_MAX_HOPS = 40
_READ = 64 * 1024


def _hops(path: str) -> set[tuple[str, str]]:
    """(directory, name) of the file at the end of `path` and of every link on the way to it."""
    found: set[tuple[str, str]] = set()
    left = [part for part in os.path.abspath(path).split("/") if part]
    here = "/"
    hops = 0
    while left:
        name = left.pop(0)
        if name == "..":
            here = os.path.dirname(here)
            continue
        if name == ".":
            continue
        whole = os.path.join(here, name)
        try:
            is_link = stat.S_ISLNK(os.lstat(whole).st_mode)
            target = os.readlink(whole) if is_link else ""
        except OSError:
            found.add((here, name))
            break
        if not left or is_link:
            found.add((here, name))
        if not is_link:
            here = whole
            continue
        hops += 1
        if hops > _MAX_HOPS:
            break
        left = [part for part in target.split("/") if part] + left
        if target.startswith("/"):
            here = "/"
    return found


class FileWatch:
    """Calls `changed` on the running loop after any of the files may have changed, until `close`.

    Args:
        paths: of the files; they need not be there.
        changed: told once for a burst of changes.

    Attributes:
        active: changes are told; False where the platform cannot.
    """

    def __init__(self, paths: Iterable[str], changed: Callable[[], None]) -> None:
        self._paths = list(paths)
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._names: dict[int, set[bytes]] = {}
        self._fd = _open()
        self.active = self._fd >= 0
        if self.active:
            self._loop.add_reader(self._fd, self._read)
            self._watch()

    def close(self) -> None:
        """Tell nothing more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self.active = False

    def _watch(self) -> None:
        """Watch what stands on the way now; a directory that is watched already keeps its number."""
        assert _libc is not None
        names: dict[int, set[bytes]] = {}
        for path in self._paths:
            for directory, name in _hops(path):
                number = _libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK)
                if number >= 0:
                    names.setdefault(number, set()).add(os.fsencode(name))
        for number in self._names.keys() - names.keys():
            _libc.inotify_rm_watch(self._fd, number)
        self._names = names

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ)
        except OSError:  # EAGAIN
            return
        at = 0
        touched = False
        while at < len(data):
            number, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + size].rstrip(b"\0")
            at += size
            touched = touched or bool(mask & _IN_Q_OVERFLOW) or name in self._names.get(number, ())
        if touched:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(SETTLE, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._watch()  # first: what changes from here on is told again
        self._changed()


def _open() -> int:
    """A descriptor of inotify; -1 where there is none to be had."""
    if _libc is None:
        return -1
    return int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def _load() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
        libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)
        libc.inotify_init1.argtypes = (ctypes.c_int,)
    except (AttributeError, OSError):
        return None
    return libc


_libc = _load()
