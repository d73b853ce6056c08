"""What receivers are sent: our own JSON, Slack's, that of Alertmanager's API, and e-mail."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from email.message import EmailMessage

__all__ = ["Message", "Telling", "alertmanager", "email", "plain", "signature", "slack"]


@dataclass(frozen=True, slots=True)
class Telling:
    """One alert as it is told.

    Attributes:
        subject: a tunnel's name, a limit, or what expires.
        message: a sentence.
        since: seconds of the epoch.
    """

    subject: str
    message: str
    since: float


@dataclass(frozen=True, slots=True)
class Message:
    """One message: alerts of one rule, all firing or all over.

    Attributes:
        alert: the rule's name.
        state: of all of them.
        at: seconds of the epoch.
        source: host and role, for people and for labels.
        alerts: at least one.
        more: that there are beside these.
        test: nothing is wrong: an operator tries it.
    """

    alert: str
    state: Literal["firing", "resolved"]
    at: float
    source: str
    alerts: tuple[Telling, ...]
    more: int = 0
    test: bool = False

    @property
    def title(self) -> str:
        """One line for people."""
        about = ", ".join(one.subject for one in self.alerts[:5]) + (" …" if len(self.alerts) + self.more > 5 else "")
        return f"{'TEST ' if self.test else ''}{self.state}: {self.alert} ({about}) on {self.source}"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(message: Message) -> dict[str, Any]:
    """Our own shape; `version` rises when a key goes."""
    return {
        "version": 1,
        "alert": message.alert,
        "state": message.state,
        "time": _iso(message.at),
        "source": message.source,
        "test": message.test,
        "title": message.title,
        "alerts": [
            {"subject": one.subject, "message": one.message, "since": _iso(one.since)} for one in message.alerts
        ],
        "more": message.more,
    }


def slack(message: Message) -> dict[str, Any]:
    """An incoming webhook of Slack's, or of those that take its shape (Mattermost, Discord's ``/slack``)."""
    sign = "🔴" if message.state == "firing" else "🟢"
    lines = [f"• {_escaped(one.message)}" for one in message.alerts]
    lines += [f"• and {message.more} more"] if message.more else []
    return {"text": "\n".join([f"{sign} *{_escaped(message.title)}*", *lines])}


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def alertmanager(message: Message, *, lasts: float) -> list[dict[str, Any]]:
    """The body of Alertmanager's ``POST /api/v2/alerts``.

    Args:
        message: to be told.
        lasts: seconds after which Alertmanager may take it for over when nothing is told again.
    """
    return [
        {
            "labels": {"alertname": message.alert, "subject": one.subject, "source": message.source, "job": "tunneld"},
            "annotations": {"summary": one.message, **({"test": "true"} if message.test else {})},
            "startsAt": _iso(one.since),
            "endsAt": _iso(message.at if message.state == "resolved" else message.at + lasts),
        }
        for one in message.alerts
    ]


def email(message: Message, *, sender: str, to: tuple[str, ...]) -> EmailMessage:
    """The same for people's mailboxes."""
    from email.message import EmailMessage  # here: most daemons send no mail
    from email.utils import format_datetime, make_msgid

    made = EmailMessage()
    made["From"] = sender
    made["To"] = ", ".join(to)
    made["Subject"] = f"[tunneld] {message.title}".replace("\r", " ").replace("\n", " ")
    made["Date"] = format_datetime(datetime.fromtimestamp(message.at, UTC))
    made["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    made["Auto-Submitted"] = "auto-generated"
    made["X-Tunneld-Alert"] = message.alert
    lines = [f"{one.message}\n  since {_iso(one.since)}" for one in message.alerts]
    lines += [f"and {message.more} more"] if message.more else []
    head = f"{message.title}, {_iso(message.at)}"
    made.set_content("\n".join([head, "", *lines, "", "`tunnelctl alerts` has all.", ""]))
    return made


def signature(secret: str, body: bytes, at: float) -> str:
    """The value of ``X-Tunneld-Signature``: who has the secret can tell that the body is ours, and how old it is."""
    stamp = str(int(at))
    made = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={made}"


def encoded(value: object) -> bytes:
    """JSON as it is sent."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
