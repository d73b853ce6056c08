"""Rules, what they found, and who is told."""

from __future__ import annotations

from typing import Literal

from tunneld.control.models.typed import TypedDict, strict

__all__ = ["AlertInfo", "AlertReceiver", "AlertRuleInfo", "AlertTold", "AlertsStatus", "AlertsTested", "AlertsWanted"]


class AlertInfo(TypedDict):
    """An alert that holds; `pending`: not for as long as its rule's `for` yet."""

    alert: str
    subject: str
    state: Literal["pending", "firing"]
    since: str
    message: str


class AlertRuleInfo(TypedDict):
    """A rule of the configuration."""

    name: str
    when: str
    over: float | None
    for_s: float


class AlertReceiver(TypedDict):
    """Who is told, and how that went since the start; `last_error` null: the last attempt went well."""

    name: str
    queued: int
    sent: int
    failed: int
    last_error: str | None


class AlertsStatus(TypedDict):
    """Answer of ``GET /v1/alerts``."""

    alerts: list[AlertInfo]
    rules: list[AlertRuleInfo]
    receivers: list[AlertReceiver]


class AlertsWanted(TypedDict, total=False):
    """Body of ``POST /v1/alerts/test``: of this rule only."""

    alert: str


class AlertTold(TypedDict):
    """How one test message went; `fault` null: it arrived."""

    receiver: str
    fault: str | None


class AlertsTested(TypedDict):
    """Answer of ``POST /v1/alerts/test``."""

    told: list[AlertTold]


strict(AlertsWanted)
