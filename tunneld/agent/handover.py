"""What one process of the agent leaves to the next, over a restart by the service manager.

A file in the service's runtime directory (``RUNTIME_DIRECTORY``, kept over a restart and gone with a stop): for each
tunnel the session, its resume token and its counters, so that the successor takes the session up as if the connection
had been lost for a moment. Connections to services end with their process: the streams that were left open are named,
so that the server asks for them anew. The file is read once and removed: counters are true for one successor only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tunneld.protocol.session import Standing

__all__ = ["FILE", "Estate", "Legacy", "leave", "take"]

FILE: Final = "sessions.json"
_MOST: Final = 16 << 20  # bytes; a file that is larger is none of ours

log = logging.getLogger("tunneld.agent")


class Legacy(msgspec.Struct, frozen=True):
    """One tunnel's session, whole: all that was sent has been received, nothing waits.

    Attributes:
        session_id: as the server said it.
        resume_token: the newest.
        standing: the counters.
        streams: request ids that the server still thinks open.
    """

    session_id: str
    resume_token: str
    standing: Standing
    streams: tuple[str, ...] = ()


class Estate(msgspec.Struct, frozen=True):
    """Of a whole process.

    Attributes:
        instance: that all its hellos named: the successor goes on under it, so that a late hello is a stale one.
        dial: the number of its last dial.
        tunnels: name to session.
        links: hex of what shared addresses are signed with where there is no token, so that those given out go on.
    """

    instance: str
    dial: int
    tunnels: dict[str, Legacy]
    links: str = ""


def leave(directory: Path, instance: str, dial: int, tunnels: Mapping[str, Legacy], *, links: str = "") -> None:
    """Write the file, for its owner alone. A disk that is full costs the sessions, and is told."""
    path = directory / FILE
    draft = directory / f"{FILE}.new"
    data = msgspec.json.encode(Estate(instance, dial, dict(tunnels), links))
    try:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        draft.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        log.warning("%s cannot be written, a successor begins with new sessions: %s", path, error.strerror)


def take(directory: Path) -> Estate | None:
    """Read the file and remove it; None when there is none, or none that can be trusted."""
    path = directory / FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read, all sessions are new: %s", path, error.strerror)
        return None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        with contextlib.suppress(OSError):
            path.unlink()
        own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
        if not own:
            log.warning("%s is not this user's alone, all sessions are new", path)
            return None
        data = file.read(_MOST + 1)
    try:
        return msgspec.json.decode(data[:_MOST], type=Estate)
    except (msgspec.DecodeError, msgspec.ValidationError):
        log.warning("%s is damaged, all sessions are new", path)
        return None
