"""What the doctor finds: one line a thing looked at, with what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tunneld import __version__

if TYPE_CHECKING:
    from tunneld.control.models.doctor import DoctorFinding, DoctorReport

__all__ = ["CHECKS", "Finding", "Grade", "fail", "ok", "report", "skip", "warn", "without_secrets"]

Grade = Literal["ok", "warn", "fail", "skip"]
CHECKS = {
    "socket": "the agent's control socket: there, answering, ours to use, open to no more than its group",
    "config": "the agent's file, as `tunneld check` reads it; one finding for each fault",
    "agent": "the agent: its version, its process, how long it runs",
    "tunnel": "a tunnel's state, and the grade of its connection; the subject is its name",
    "systemd": "the agent's unit: installed, running, enabled, restarted, with this file",
    "systemd-server": "the unit of a server on this machine, where there is one",
    "dns": "addresses of the server's name, or of the proxy's",
    "proxy": "the proxy that is dialled first, and whether it lets through",
    "tcp": "a connection to the server, or to the proxy",
    "mtu": "how large packets on the way may be",
    "tls": "the certificate's chain, its names, and its end",
    "server": "whether a tunneld server answers there, its dialect and its version",
    "token": "whether the server takes the credential, for that name, and how long",
    "clock": "how far this machine's clock and the server's are apart",
    "browsers": "whether the public address speaks HTTP/2: how many streams a browser can hold open",
    "service": "how a local service answers; the subject is its tunnel's name",
    "sse": "with --sse: whether an event stream is there",
    "sse-encoding": "with --sse: whether it is compressed",
    "sse-buffering": "with --sse: whether something on the way holds events back",
    "sse-idle": "with --sse: whether something on the way cuts it when it is quiet, and which keepalive saves it",
    "sse-way": "with --sse: what names itself on the way",
}
"""The ids of findings, which stay as they are, and what each looks at; the manual is made of them."""
# To the last one: a password may hold a slash or another. Tried once in each word, whose length its time grows with.
_USERINFO = re.compile(r"(?<![^\s\"'<>])((?:(?!://)[^\s\"'<>])*://)[^\s\"'<>]*@")
_QUERY = re.compile(r"\?[^\s\"']+")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: one of `CHECKS`; for one of several things a blank and its name behind it (``tunnel demo``).
        status: ``ok``; ``warn``: works, but not as it might; ``fail``: does not work; ``skip``: could not be looked at.
        detail: what was found, a sentence.
        advice: what to do; empty when nothing is to be done.
    """

    check: str
    status: Grade
    detail: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.id in CHECKS, self.id

    @property
    def id(self) -> str:
        """The stable word."""
        return self.check.partition(" ")[0]

    @property
    def subject(self) -> str | None:
        """The name of the one that was looked at; None: there is only one."""
        return self.check.partition(" ")[2] or None

    def told(self) -> DoctorFinding:
        """As ``--json`` has it."""
        return {
            "id": self.id,
            "subject": self.subject,
            "check": self.check,
            "status": self.status,
            "detail": self.detail,
            "advice": self.advice,
        }


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


def report(findings: list[Finding]) -> DoctorReport:
    """The shape of ``tunnelctl doctor --json``; `status` is the worst of all."""
    grades = {finding.status for finding in findings}
    status: Literal["ok", "warn", "fail"] = "fail" if "fail" in grades else "warn" if "warn" in grades else "ok"
    return {"status": status, "version": __version__, "findings": [finding.told() for finding in findings]}


def without_secrets(text: str) -> str:
    """A text without the credentials and the queries of addresses that stand in it."""
    return _QUERY.sub("?…", _USERINFO.sub(r"\1…@", text))
