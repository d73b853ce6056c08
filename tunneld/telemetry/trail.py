"""The audit trail (`log.audit`): who changed what, a JSON object a line, beside the log and never instead of it.

The file is opened for each line: whoever turns it over needs to tell nobody. Changes are rare, and a thread writes.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from tunneld.errors import ConfigError

__all__ = ["Trail", "append", "check_writable", "noted_drain", "noted_reload"]

log = logging.getLogger("tunneld.audit")

_MODE = 0o640
_SIGNAL = "a signal"
_T = TypeVar("_T")


class Trail:
    """Writes changes down.

    Args:
        path: of the file now; None: nothing is written.
    """

    def __init__(self, path: Callable[[], str | None] = lambda: None) -> None:
        self._path = path

    def check(self) -> None:
        """Raises ConfigError when the file cannot be written."""
        check_writable(self._path())

    async def note(self, actor: str, action: str, detail: str, *, ok: bool = True) -> None:
        """Write one change; what fails is logged, since the change is done.

        Args:
            actor: who, for people.
            action: the stable word of the change.
            detail: what was done, a phrase.
            ok: it was done, and not refused.
        """
        path = self._path()
        if path is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(None, append, path, actor, action, detail, ok)
        except OSError as error:
            log.error("log.audit: %s: a change was not written: %s", path, error.strerror, extra={"action": action})


def check_writable(path: str | None) -> None:
    """Raises ConfigError when the file of a trail cannot be written; it is made when it is not there."""
    if path is not None:
        try:
            os.close(_open(path))
        except OSError as error:
            raise ConfigError([f"log.audit: {path}: cannot be written: {error.strerror}"]) from None


async def noted_reload(trail: Trail, reload: Callable[[], Awaitable[_T]]) -> _T:
    """Reload as a signal asked for, and write that down, done or refused."""
    try:
        done = await reload()
    except ConfigError as error:
        await trail.note(_SIGNAL, "reload", f"reload refused: {'; '.join(error.faults)}", ok=False)
        raise
    await trail.note(_SIGNAL, "reload", "reloaded")
    return done


async def noted_drain(trail: Trail, drain: Callable[[], Awaitable[None]]) -> None:
    """Drain as a signal asked for, and write that down meanwhile: a disk that hangs does not hold it up."""
    noting = asyncio.get_running_loop().create_task(
        trail.note(_SIGNAL, "drain", "draining, to leave"), name="audit of a drain"
    )
    try:
        await drain()
    finally:
        await asyncio.wait([noting], timeout=1)


def append(path: str, actor: str, action: str, detail: str, ok: bool = True) -> None:
    """Add one line, in one write; raises OSError, and then leaves no part of it behind."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps({"at": now, "actor": actor, "action": action, "detail": detail, "ok": ok}, ensure_ascii=False)
    fd = _open(path)
    data = line.encode("utf-8", "backslashreplace") + b"\n"
    try:
        before = os.fstat(fd).st_size
        written = os.write(fd, data)
        if written < len(data):  # the disk is full; the next line would be joined to a part of this one
            if os.fstat(fd).st_size == before + written:  # nobody else has written behind it
                os.ftruncate(fd, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
