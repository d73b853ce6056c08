"""How one tunnel is, as people are told: its state, and why it is not well."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from tunneld.agent.keeping import Keeping
from tunneld.agent.reconnect import Failed, Retry, Verdict

__all__ = ["ASKED", "State", "TunnelState"]

log = logging.getLogger("tunneld.tunnel")

State = Literal["connecting", "online", "degraded", "resuming", "offline", "failed", "draining", "closed"]

#: The verdict on a connection that is dropped for a new one.
ASKED = Retry("a new connection was asked for")


class TunnelState:
    """The state and the last error, and the lines of the log that tell of them.

    Args:
        name: of the tunnel.
        keeping: knows whether a session is kept meanwhile.
        changed: called after each change of `now` with the state before.

    Attributes:
        now: the state.
        last_error: None: nothing is known to be wrong.
        draining: no new streams are taken any more.
    """

    def __init__(self, name: str, keeping: Keeping, changed: Callable[[State], None]) -> None:
        self.now: State = "connecting"
        self.last_error: str | None = None
        self.draining = False
        self._name = name
        self._keeping = keeping
        self._changed = changed
        self._logged: Verdict | None = None  # the log says it already

    def set(self, state: State) -> None:
        """Be this from now on, unless a kept session or a drain says more."""
        before = self.now
        if self._keeping.lost_at is not None and state in ("connecting", "offline"):
            state = "resuming"
        if self.draining and state in ("online", "degraded", "resuming"):
            state = "draining"
        if state != before:
            self.now = state
            log.debug("The tunnel %s is %s", self._name, state, extra={"tunnel": self._name, "was": before})
            self._changed(before)

    def service_changed(self, fault: str | None, before: str | None) -> None:
        """The service fails (why), or answers again (None)."""
        if fault is not None:
            self.last_error = fault
            log.warning("The service of %s fails: %s", self._name, fault, extra={"tunnel": self._name})
        else:
            if self.last_error == before:
                self.last_error = None
            log.info("The service of %s answers again.", self._name, extra={"tunnel": self._name})

    def told(self, verdict: Verdict, code: str) -> None:
        """Log an error of the connection's now, by its code; `over` says no more of it."""
        log.warning("✗ Tunnel error for %s: %s", self._name, verdict.why, extra={"tunnel": self._name, "code": code})
        self._logged = verdict

    def over(self, verdict: Verdict) -> None:
        """A connection or a dial is over, and why."""
        name, extra = self._name, {"tunnel": self._name}
        self.last_error = verdict.why
        advice = f". {verdict.advice}" if verdict.advice else ""
        why = verdict.why.rstrip(".") if advice else verdict.why
        if isinstance(verdict, Failed):
            log.error("✗ Tunnel error for %s: %s%s", name, verdict.why.rstrip("."), advice, extra=extra)
            self.set("failed")
            return
        if verdict is ASKED:
            log.info("The tunnel %s dials again: %s", name, verdict.why, extra=extra)
        elif verdict is self._logged:
            log.debug("The tunnel %s is offline", name, extra=extra)
        else:
            log.warning("✗ Tunnel error for %s: %s%s", name, why, advice, extra=extra)
        self.set("offline")
