"""Noticing that another process wrote to the store: by inotify, so that nothing is looked at while nothing happens.

Where the kernel gives no inotify (its instances are used up), the file is asked twice a second instead.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

__all__ = ["Watch"]

log = logging.getLogger("tunneld.store")

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_Q_OVERFLOW = 0x2, 0x80, 0x100, 0x4000
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_event = struct.Struct("iIII")
_SETTLE = 0.05
"""Seconds from the first write to the look: one transaction writes more than once."""
_ASK = 0.5
"""Seconds between two looks without inotify."""


class Watch:
    """Calls `written` soon after somebody, this process too, wrote to a SQLite file in WAL mode.

    Args:
        path: of the database; its ``-wal`` stands beside it.
        written: called on the loop.
    """

    def __init__(self, path: str, written: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._written = written
        file = Path(path)
        self._names = {os.fsencode(file.name), os.fsencode(file.name + "-wal")}
        self._timer: asyncio.TimerHandle | None = None
        self._descriptor = _inotify(os.fsencode(file.parent))
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._readable)
        else:
            log.warning("No inotify for %s: asking it twice a second instead.", path)
            self._timer = self._loop.call_later(_ASK, self._look)

    def close(self) -> None:
        """Look no more. Idempotent."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _readable(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return
        if self._timer is None and any(name in self._names or overrun for name, overrun in _events(data)):
            self._timer = self._loop.call_later(_SETTLE, self._look)

    def _look(self) -> None:
        self._timer = None if self._descriptor >= 0 else self._loop.call_later(_ASK, self._look)
        self._written()


def _events(data: bytes) -> list[tuple[bytes, bool]]:
    """(file, the kernel's queue ran over) of each of inotify's events."""
    found, at = [], 0
    while at + _event.size <= len(data):
        _, mask, _, size = _event.unpack_from(data, at)
        at += _event.size
        found.append((data[at : at + size].rstrip(b"\0"), bool(mask & _IN_Q_OVERFLOW)))
        at += size
    return found


def _inotify(directory: bytes) -> int:
    """A descriptor that becomes readable when a file of the directory is written; -1 when there is none."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor: int = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    except (OSError, AttributeError):  # no Linux
        return -1
    if descriptor < 0:
        return -1
    if libc.inotify_add_watch(descriptor, directory, _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE) < 0:
        os.close(descriptor)
        return -1
    return descriptor
