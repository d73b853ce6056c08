"""`alerts`: rules over what goes wrong again and again, and who is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from tunneld.config.common import Count, Faults, FilePath, Flag, Interval, Model, Span, Text
from tunneld.config.source import explain, near
from tunneld.config.units import Duration, Whole, parse_share, parse_text, shown

__all__ = [
    "AlertRule",
    "CommandTarget",
    "Condition",
    "EmailTarget",
    "LogTarget",
    "Target",
    "WebhookTarget",
    "check_unique",
]

Condition = Literal[
    "tunnel_down", "service_failing", "reconnects", "rtt", "loss", "data_lost", "limit_near", "expiring"
]

_COUNTS = ("reconnects", "data_lost")
#: What `over` is where it is not given.
_OVER: dict[str, Any] = {
    "reconnects": 3,
    "data_lost": 0,
    "rtt": 0.3,
    "loss": 0.05,
    "limit_near": 0.9,
    "expiring": 14 * 86400.0,
}

#: What `for` is where it is not given, seconds: long enough for a start or a restart.
_HELD = 30.0


def _webhook(value: object) -> str:
    """An ``http://`` or ``https://`` address; not shown in errors, since it may hold a secret."""
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value:
        parts = urlsplit(value)
        if parts.scheme in ("http", "https") and parts.hostname and not parts.username:
            return value
    raise ValueError("expected an address such as https://hooks.example.org/x, with no user or password")


def _smtp(value: object) -> str:
    text = parse_text(value)
    parts = urlsplit(text if "://" in text else f"smtp://{text}")
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.username or parts.path.strip("/"):
        raise ValueError(f"expected smtp://HOST:25 or smtps://HOST:465, not {shown(value)}")
    return parts.geturl()


def _argv(value: object) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not words or not all(isinstance(one, str) and one for one in words):
        raise ValueError("expected a program and its arguments as a list, such as [/usr/bin/notify, --urgent]")
    if not words[0].startswith("/"):
        raise ValueError(f"expected the program's whole path, such as /usr/bin/notify, not {shown(words[0])}")
    return tuple(words)


def _addresses(value: object) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found:
        raise ValueError("expected an address such as ops@example.org, or a list of them")
    for one in found:
        local, at, host = one.rpartition("@") if isinstance(one, str) else ("", "", "")
        if not (local and at and host) or not one.isascii() or any(char in one for char in " \r\n<>,;"):
            raise ValueError(f"expected an address such as ops@example.org, not {shown(one)}")
    return tuple(found)


class _Delivery(Model):
    """What every target but the log has.

    Attributes:
        timeout: seconds for one attempt.
        retry_for: seconds after which a message that cannot be delivered is given up.
        queue: messages that may wait; the oldest goes when one more comes.
    """

    timeout: Interval = 10.0
    retry_for: Span = 600.0
    queue: Count = 100


class WebhookTarget(_Delivery):
    """POST to an address.

    Attributes:
        shape: of the body: our own, Slack's, or that of Alertmanager's API (`/api/v2/alerts`).
        secret_file: signs our own shape: ``X-Tunneld-Signature: t=SECONDS,v1=HMAC-SHA256 of "SECONDS.BODY"``.
        headers: sent with it.
        ca_file: who vouches for its host beside the system's authorities.
    """

    webhook: Annotated[str, BeforeValidator(_webhook)]
    shape: Literal["json", "slack", "alertmanager"] = "json"
    secret_file: FilePath | None = None
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    ca_file: FilePath | None = None


class CommandTarget(_Delivery):
    """A program, without a shell; the message as JSON on its stdin, its words in the environment (TUNNELD_ALERT, …)."""

    command: Annotated[tuple[str, ...], BeforeValidator(_argv)]


class EmailTarget(_Delivery):
    """A message by SMTP; STARTTLS wherever the server offers it, and always before a password.

    Attributes:
        smtp: ``smtp://`` or, with TLS from the first byte, ``smtps://``.
        sender: the address that it comes from.
        user: to log in as, with the password of `password_file`; None: no login.
        ca_file: who vouches for the server beside the system's authorities.
    """

    email: Annotated[tuple[str, ...], BeforeValidator(_addresses)]
    smtp: Annotated[str, BeforeValidator(_smtp)]
    sender: Annotated[tuple[str, ...], BeforeValidator(_addresses)] = Field(("tunneld@localhost",), alias="from")
    user: Text | None = None
    password_file: FilePath | None = None
    ca_file: FilePath | None = None

    @model_validator(mode="after")
    def _login(self) -> EmailTarget:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together")
        return self


class LogTarget(Model):
    """The log alone, where every alert is told anyway."""

    log: Flag = True


Target = WebhookTarget | CommandTarget | EmailTarget | LogTarget
_KINDS: dict[str, type[Model]] = {
    "webhook": WebhookTarget, "command": CommandTarget, "email": EmailTarget, "log": LogTarget
}  # fmt: skip


def _target(index: int, kind: type[Model], value: dict[str, Any]) -> Model:
    """One of `to`; raises Faults with each fault's own place."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults: list[tuple[tuple[str | int, ...], str]] = []
        for item in error.errors(include_url=False):
            if item["loc"] == ("headers",) and item["type"] == "dict_type":  # what stands there may be a secret
                faults.append(((index, "headers"), "expected a mapping of header names to values"))
            else:
                faults += [((index, *loc), text) for loc, text in explain(kind, item)]
        raise Faults(faults) from None


def _nearest(keys: Iterable[object]) -> list[str]:
    """The kinds of target that these keys are most like."""
    return [found for key in keys for found in near(str(key), list(_KINDS))]


def _over(when: str, value: object) -> float:
    if when in _COUNTS:
        return float(Whole(0, 1_000_000)(value))
    if when in ("loss", "limit_near"):
        return float(parse_share(value))
    if when in ("rtt", "expiring"):
        return float(Duration()(value))
    raise ValueError(f"{when} has no measure that could be over something")


class AlertRule(Model):
    """One rule.

    Attributes:
        name: of the alert; default: the condition's.
        when: the condition.
        over: what it must be over: reconnects and streams lost `within` a time, a round trip (95th percentile), a
            share of loss or of a limit; for `expiring` how long before its end a certificate or a token is told.
        within: seconds that are counted in, of `reconnects` and `data_lost`.
        tunnels: globs of the names that it looks at.
        held: seconds that it must hold before it is told (`for`); default: 30 s of what is down or fails, else 0.
        group: seconds that a first message waits for others of the same rule.
        most: alerts that one message names; of what is beside them it says how many.
        repeat: seconds after which what still holds is told again; 0: never.
        resolved: that it is over is told too.
        to: who is told.
    """

    name: Text = ""
    when: Condition
    over: float | None = None
    within: Interval = 600.0
    tunnels: tuple[Text, ...] = ("*",)
    held: Span | None = Field(None, alias="for")
    group: Span = 1.0
    most: Count = 100
    repeat: Span = 14400.0
    resolved: Flag = True
    to: tuple[Target, ...] = ()

    @field_validator("tunnels", mode="before")
    @classmethod
    def _globs(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("over", mode="before")
    @classmethod
    def _measure(cls, value: Any, info: ValidationInfo) -> float:
        when = info.data.get("when")
        return 0.0 if when is None else _over(when, value)  # a fault of `when` is reported already

    @field_validator("to", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> Any:
        found = [value] if isinstance(value, dict) else value
        if not isinstance(found, list | tuple):
            raise ValueError("expected a list such as [{webhook: https://…}]")
        made: list[Any] = []
        for index, one in enumerate(found):
            kinds = [kind for kind in _KINDS if isinstance(one, dict) and kind in one]
            if len(kinds) != 1:
                meant = [] if kinds or not isinstance(one, dict) else _nearest(one)
                hint = f' (did you mean "{meant[0]}"?)' if meant else ""
                raise Faults([((index,), f"expected exactly one of webhook, command, email, log{hint}")])
            made.append(_target(index, _KINDS[kinds[0]], one))
        return tuple(made)

    @model_validator(mode="after")
    def _named(self) -> AlertRule:
        changes: dict[str, Any] = {}
        if not self.name:
            changes["name"] = self.when
        if self.over is None and self.when in _OVER:
            changes["over"] = float(_OVER[self.when])
        if self.held is None:
            changes["held"] = _HELD if self.when in ("tunnel_down", "service_failing") else 0.0
        for key, value in changes.items():
            object.__setattr__(self, key, value)
        return self


def check_unique(value: tuple[AlertRule, ...]) -> tuple[AlertRule, ...]:
    """The rules, if each has a name of its own; raises Faults."""
    seen: dict[str, int] = {}
    for index, rule in enumerate(value):
        first = seen.setdefault(rule.name, index)
        if first != index:
            raise Faults([((index, "name"), f"alerts[{first}] has that name already; give each a `name`")])
    return value
