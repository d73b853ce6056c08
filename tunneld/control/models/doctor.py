"""What ``tunnelctl doctor --json`` says."""

from __future__ import annotations

from typing import Literal

from tunneld.control.models.typed import TypedDict

__all__ = ["DoctorFinding", "DoctorReport"]


class DoctorFinding(TypedDict):
    """One thing that ``tunnelctl doctor`` looked at.

    `id` is a stable word, listed in tunnelctl(1); `subject` the name of the tunnel where each has one of its own, else
    null; `check` both together, for people. `status`: ``ok``; ``warn``: works, but not as it might; ``fail``: does not
    work; ``skip``: could not be looked at. `detail` is a sentence; `advice` what to do, empty for ``ok`` and ``skip``.
    """

    id: str
    subject: str | None
    check: str
    status: Literal["ok", "warn", "fail", "skip"]
    detail: str
    advice: str


class DoctorReport(TypedDict):
    """Of ``tunnelctl doctor --json``; `status` is the worst of all, and the exit status 1 where that is ``fail``.

    Findings stand in the order in which things were looked at; one id may stand several times. `version` is that of
    ``tunnelctl``.
    """

    status: Literal["ok", "warn", "fail"]
    version: str
    findings: list[DoctorFinding]
