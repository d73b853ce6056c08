"""What the service manager is told: ready, status, reloading, stopping, still alive (sd_notify(3)).

Without systemd, or when its socket is gone, every call does nothing. No call blocks and none fails.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from typing import Final

import sdnotify

__all__ = ["Notifier"]

_PENDING: Final = 16
"""Messages that wait while the manager's socket is full; the oldest go first when there are more."""


class Notifier:
    """The line to systemd, as the environment of this process names it (``NOTIFY_SOCKET``,
    ``WATCHDOG_USEC``).

    Attributes:
        active: whether somebody was there to be told when this was made.
        interval: seconds between two calls of `watchdog`, half of what systemd allows; None: no watchdog
            wanted.
    """

    __slots__ = ("_notifier", "_pending", "interval")

    def __init__(self) -> None:
        self._notifier = _dial()
        self._pending: deque[str] = deque(maxlen=_PENDING)
        self.interval = _watchdog_interval() if self._notifier is not None else None

    @property
    def active(self) -> bool:
        """Whether systemd listens."""
        return self._notifier is not None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is over. `status`: as for `status`; empty leaves it as it is."""
        self._tell("READY=1" + (f"\nSTATUS={_line(status)}" if status else ""))

    def status(self, text: str) -> None:
        """What the daemon does now, one line."""
        self._tell(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` says when that is over."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The daemon has begun to stop."""
        self._tell("STOPPING=1")

    def watchdog(self) -> None:
        """Still alive. Call it every `interval` seconds from the very loop that does the work."""
        self._tell("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Starting, reloading or stopping will take up to `seconds` from now."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def close(self) -> None:
        """Hang up. Later calls do nothing."""
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None
            self.interval = None

    def _tell(self, message: str) -> None:
        if self._notifier is None:
            return
        self._pending.append(message)
        try:
            while self._pending:
                # sdnotify writes Latin-1: this is how UTF-8 passes through it unchanged.
                self._notifier.notify(self._pending[0].encode().decode("latin-1"))
                self._pending.popleft()
        except BlockingIOError:
            return  # the manager is behind: what waits goes before the next message
        except OSError:
            self._pending.clear()  # nobody listens any more


def _dial() -> sdnotify.SystemdNotifier | None:
    if not os.environ.get("NOTIFY_SOCKET"):
        return None
    try:
        with warnings.catch_warnings():
            # Where it cannot connect, sdnotify drops its socket without closing it.
            warnings.simplefilter("ignore", ResourceWarning)
            notifier = sdnotify.SystemdNotifier(debug=True)  # debug: faults are raised, so that we see a full socket
    except OSError:
        return None
    notifier.socket.setblocking(False)
    return notifier


def _watchdog_interval() -> float | None:
    try:
        micros = int(os.environ.get("WATCHDOG_USEC", ""))
        owner = int(os.environ.get("WATCHDOG_PID", "") or os.getpid())
    except ValueError:
        return None
    if micros <= 0 or owner != os.getpid():
        return None
    return micros / 2_000_000


def _line(text: str) -> str:
    """`text` on one line: a line break would begin another assignment."""
    return " ".join(text.encode("utf-8", "replace").decode().split())
