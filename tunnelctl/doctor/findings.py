"""What the doctor finds: one line a thing looked at, with what to do about it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "Grade", "fail", "ok", "report", "skip", "warn", "without_secrets"]

Grade = Literal["ok", "warn", "fail", "skip"]
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"\?[^\s\"']*")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: a stable word.
        status: ``ok``; ``warn``: works, but not as it might; ``fail``: does not work; ``skip``: could not be looked at.
        detail: what was found, a sentence.
        advice: what to do; empty when nothing is to be done.
    """

    check: str
    status: Grade
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", detail)


def warn(check: str, detail: str, advice: str) -> Finding:
    """It works, but not as it might."""
    return Finding(check, "warn", detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", detail, advice)


def skip(check: str, detail: str) -> Finding:
    """It could not be looked at, or there is nothing of the kind."""
    return Finding(check, "skip", detail)


def report(findings: list[Finding]) -> dict[str, Any]:
    """The shape of ``tunnelctl doctor --json``; `status` is the worst of all."""
    grades = {finding.status for finding in findings}
    worst = next((grade for grade in ("fail", "warn") if grade in grades), "ok")
    return {"status": worst, "findings": [asdict(finding) for finding in findings]}


def without_secrets(text: str) -> str:
    """A text without the credentials and the queries of addresses that stand in it."""
    return _QUERY.sub("?…", _USERINFO.sub("…@", text))
