"""The numbers of a daemon's alerts, of either role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunneld.telemetry.exposition import Family, counter, gauge

if TYPE_CHECKING:
    from tunneld.control.alerting import Alerts

__all__ = ["alert_families"]


def alert_families(alerts: Alerts, role: str) -> Iterator[Family]:
    """`alert` is a label: the configuration bounds how many there are."""
    yield gauge("tunneld_alerts_firing", f"Alerts of the {role}'s own rules that fire.", ("alert",), [
        ((name,), count) for name, count in alerts.firing().items()
    ])  # fmt: skip
    sent, failed = alerts.messages()
    yield counter("tunneld_alert_messages", "Messages to receivers, by how they went.", ("outcome",), [
        (("sent",), sent), (("failed",), failed)
    ])  # fmt: skip
