"""What one page knows of the alerts that fire, and what it is told next. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunneld.dashboard.source import AlertBrief

__all__ = ["MOST", "ToldAlerts"]

MOST = 100
"""Alerts that a page is shown, the oldest; of the others it is told how many."""
_NEW = 8  # that begin, told each second
_MOVED = 2  # whose words changed since, told each second, in turns

_Key = tuple[str, str]


class ToldAlerts:
    """The alerts of one page."""

    def __init__(self) -> None:
        self._told: dict[_Key, AlertBrief] = {}
        self._more = 0

    def all(self, firing: Sequence[AlertBrief]) -> list[dict[str, Any]]:
        """At the page's begin; the rest follows in ticks."""
        self._told = {_key(one): one for one in firing[:MOST]}
        return [_shown(one) for one in self._told.values()]

    def tick(self, firing: Sequence[AlertBrief], changes: dict[str, Any]) -> None:
        """Add what changed to a message.

        ``alerts``: new ones, or such with other words; ``calm``: [rule, subject] of those that are over; ``more``: how
        many fire that are not shown. What is over is told at once, of a crowd that begins some each second.
        """
        if not firing and not self._told and not self._more:
            return
        now = {_key(one): one for one in firing}
        over = [key for key in self._told if key not in now]
        for key in over:
            del self._told[key]
        if over:
            changes["calm"] = [list(key) for key in over]
        new = [one for key, one in now.items() if key not in self._told][: max(0, min(_NEW, MOST - len(self._told)))]
        moved = [now[key] for key, told in self._told.items() if _differs(now[key], told)]
        for one in (told := [*new, *moved[:_MOVED]]):
            self._told.pop(_key(one), None)  # whose turn it was stands last
            self._told[_key(one)] = one
        if told:
            changes["alerts"] = [_shown(one) for one in told]
        if (more := len(now) - len(self._told)) != self._more:
            changes["more"] = self._more = more


def _key(alert: AlertBrief) -> _Key:
    return alert.rule, alert.subject


def _differs(one: AlertBrief, told: AlertBrief) -> bool:
    """In its words, or it is another time that the rule holds."""
    return one.message != told.message or abs(one.since - told.since) > 1


def _shown(alert: AlertBrief) -> dict[str, Any]:
    """For the page; `since`: seconds since the epoch."""
    return {**alert._asdict(), "since": round(alert.since)}
