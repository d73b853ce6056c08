"""The alerts of a daemon of either role: loaded where there are rules, and shown to operators."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tunneld.alerts.facts import OF_PROCESS, Gather
from tunneld.errors import VisitorError
from tunneld.telemetry.usage import Usage, fullest
from tunneld.wire.certificates import describe

if TYPE_CHECKING:
    from tunneld.alerts.watch import AlertWatch
    from tunneld.config.alerts import AlertRule
    from tunneld.control.models.alerts import AlertsStatus, AlertsTested
    from tunneld.dashboard.source import AlertBrief

__all__ = ["Alerts", "CertificateEnds", "certificate_end"]

_LOOK_AT_FILES = 3600.0
"""Seconds between two looks at certificates on the disk."""
_TESTING = 8.0
"""Seconds that receivers have for a test; `tunnelctl` waits ten."""
log = logging.getLogger("tunneld.alerts")


class Alerts:
    """A daemon's rules. `start`, maybe `configure`, then `stop`. Without rules no code of alerts is loaded.

    Args:
        rules: of the configuration.
        facts: as `AlertWatch`; so are `role` and `tell`.
    """

    def __init__(
        self,
        rules: tuple[AlertRule, ...],
        facts: Gather,
        *,
        role: str,
        tell: Callable[[str, str, str, str], None] = lambda *_: None,
    ) -> None:
        self._facts = facts
        self._role = role
        self._tell = tell
        self._rules = rules
        self._watch: AlertWatch | None = None
        self._running = False

    def start(self) -> None:
        """Look from now on."""
        self._running = True
        self._begin()

    def _begin(self) -> None:
        if not self._rules:
            return
        from tunneld.alerts.watch import AlertWatch

        self._watch = AlertWatch(self._rules, self._facts, role=self._role, tell=self._tell)
        self._watch.start()

    async def stop(self) -> None:
        """Look and send no more."""
        self._running = False
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.stop()

    def configure(self, rules: tuple[AlertRule, ...]) -> None:
        """Let other rules hold."""
        self._rules = rules
        if self._watch is not None:
            self._watch.configure(rules)
        elif self._running:
            self._begin()

    # -- what operators ask ------------------------------------------------------------------------------

    def firing(self) -> dict[str, int]:
        """How many alerts fire, by rule."""
        counts = {rule.name: 0 for rule in self._rules}
        for one in self._watch.shown() if self._watch is not None else ():
            counts[one.alert] += one.state == "firing"
        return counts

    def brief(self) -> list[AlertBrief]:
        """Those that fire, for the dashboard, the oldest first."""
        if self._watch is None:
            return []
        from tunneld.dashboard.source import AlertBrief

        return [
            AlertBrief(one.alert, one.subject, one.when not in OF_PROCESS, one.since, one.message)
            for one in self._watch.shown()
            if one.state == "firing"
        ]

    def messages(self) -> tuple[int, int]:
        """Messages to receivers that arrived, and that were given up, since the start."""
        return (self._watch.tally.sent, self._watch.tally.failed) if self._watch is not None else (0, 0)

    def usage(self) -> Iterator[Usage]:
        """Of the receivers' queues, the fullest."""
        deliveries = self._watch.deliveries if self._watch is not None else []
        if deliveries:
            yield fullest("alert_queue", [(one.queued, one.target.queue) for one in deliveries])

    def status(self) -> AlertsStatus:
        """The answer of ``GET …/alerts``."""
        watch = self._watch
        return {
            "alerts": [
                {
                    "alert": one.alert,
                    "subject": one.subject,
                    "state": one.state,  # type: ignore[typeddict-item]
                    "since": _iso(one.since),
                    "message": one.message,
                }
                for one in (watch.shown() if watch is not None else ())
            ],
            "rules": [
                {"name": rule.name, "when": rule.when, "over": rule.over, "for_s": rule.held or 0.0}
                for rule in self._rules
            ],
            "receivers": [
                {
                    "name": delivery.name,
                    "queued": delivery.queued,
                    "sent": delivery.sent,
                    "failed": delivery.failed,
                    "last_error": delivery.last_error,
                }
                for delivery in (watch.deliveries if watch is not None else ())
            ],
        }

    async def test(self, name: str | None) -> AlertsTested:
        """Send a test to the receivers of one rule, or of all; raises VisitorError ``no_such_alert``."""
        if name is not None and name not in {rule.name for rule in self._rules}:
            raise VisitorError("no_such_alert", f"No rule of `alerts` is named {name[:64]}.")
        told = await self._watch.test(name, within=_TESTING) if self._watch is not None else []
        return {"told": [{"receiver": one.receiver, "fault": one.fault} for one in told]}


class CertificateEnds:
    """When certificates on the disk end: looked at now and then, and after each reload."""

    def __init__(self) -> None:
        self._of: object = None
        self._looked_at = float("-inf")
        self._ends: dict[str, float] = {}

    def read(self, now: float, of: object, files: Callable[[], Iterable[tuple[str, str]]]) -> dict[str, float]:
        """What each is for -> seconds of the epoch.

        Args:
            now: monotonic seconds.
            of: the configuration that names them: another one is looked at at once.
            files: (what it is for, path) of each.
        """
        if of is not self._of or now - self._looked_at > _LOOK_AT_FILES:
            self._of, self._looked_at = of, now
            found = {what: certificate_end(path) for what, path in files()}
            self._ends = {what: end for what, end in found.items() if end is not None}
        return self._ends


def certificate_end(path: str) -> float | None:
    """When the first certificate of a PEM file ends, seconds of the epoch; None when it cannot be read."""
    try:
        _, end = describe(Path(path).read_bytes())
    except OSError as error:
        log.warning("%s: its end cannot be read: %s", path, error.strerror)
        return None
    return None if end is None else end.timestamp()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
