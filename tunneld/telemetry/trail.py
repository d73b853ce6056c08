"""The audit trail (`log.audit`): who changed what, a JSON object a line, beside the log and never instead of it.

The file is opened for each line: whoever turns it over needs to tell nobody. Changes are rare, and a thread writes.
Refusals and sign-ins are as many as callers like: of each caller one line in `log.audit_repeat`, the others counted.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import Awaitable, Callable, Hashable
from datetime import UTC, datetime
from typing import TypeVar

from tunneld.errors import ConfigError
from tunneld.telemetry.repeats import Repeats

__all__ = ["Again", "Trail", "append", "check_writable", "noted_drain", "noted_reload"]

log = logging.getLogger("tunneld.audit")

_MODE = 0o640
_SIGNAL = "a signal"
_LEAVING = 1.0
"""Seconds that the last lines have when the daemon leaves."""
_T = TypeVar("_T")

Again = Callable[[str], Awaitable[None]]
"""Writes the line that says how many more there were; takes that, a phrase."""


class Trail:
    """Writes changes down.

    Args:
        path: of the file now; None: nothing is written.
        repeat: seconds in which a caller's refusals for one reason, or its sign-ins, have one line.
        callers: how many of those are told apart; what others do is counted together.
    """

    def __init__(
        self,
        path: Callable[[], str | None] = lambda: None,
        *,
        repeat: Callable[[], float] = lambda: 60.0,
        callers: Callable[[], int] = lambda: 1000,
    ) -> None:
        self._path = path
        self._repeat = repeat
        self._repeats: Repeats[Again] = Repeats(repeat, callers)
        self._timer: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Future[None]] = set()

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

    def first(self, key: Hashable, again: Again) -> bool:
        """Whether a line is to be written; one like it was already otherwise, and `again` writes how many more came."""
        told = self._repeats.first(key, again, asyncio.get_running_loop().time())
        if self._timer is None:
            self._arm()
        return told

    def _arm(self) -> None:
        deadline = self._repeats.deadline()
        loop = asyncio.get_running_loop()
        self._timer = None if deadline is None else loop.call_at(deadline, self._over)

    def _over(self) -> None:
        self._tell(self._repeats.over(asyncio.get_running_loop().time()))
        self._arm()

    def _tell(self, over: list[tuple[Again | None, int]]) -> None:
        for again, more in over:
            said = f"{more} more within {self._repeat():g} s"
            writing = asyncio.ensure_future((again or self._others)(said))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)

    async def _others(self, more: str) -> None:
        text = f"{more}, refused or signed in, of callers beyond log.audit_callers"
        log.warning("audit: %s", text, extra={"action": "refused"})
        await self.note("others", "refused", text, ok=False)

    async def close(self) -> None:
        """Write what was counted, as far as a disk takes it in a second. Nothing is noted afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        self._tell(self._repeats.end())
        if self._writing:
            await asyncio.wait(self._writing, timeout=_LEAVING)


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
    # A pipe that nobody reads is refused at once, and not waited for.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, _MODE)
