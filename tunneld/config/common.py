"""What both files share: the frozen base model, the kinds of value, and the sections that stand in both."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from tunneld.config.addresses import http_url
from tunneld.config.units import (
    Duration,
    Size,
    Whole,
    parse_flag,
    parse_mode,
    parse_share,
    parse_text,
    shown,
)

__all__ = [
    "MAX_SOCKET_PATH",
    "MIN_RESUME_BUFFER",
    "MIN_WINDOW",
    "Bytes",
    "Count",
    "DashboardConfig",
    "EventBytes",
    "Faults",
    "FilePath",
    "Flag",
    "Grace",
    "GradeConfig",
    "HeaderBytes",
    "Interval",
    "Keepalive",
    "LogConfig",
    "MemoryBytes",
    "MessageBytes",
    "Mode",
    "Model",
    "Most",
    "Port",
    "QualityConfig",
    "QueueBytes",
    "Rate",
    "ReplayBytes",
    "ResumeConfig",
    "Share",
    "SocketPath",
    "Span",
    "StreamCount",
    "TelemetryConfig",
    "Text",
    "WindowBytes",
    "check_order",
    "disorder",
    "parse_address",
]

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path that the kernel takes (108 with its final NUL)."""
MIN_WINDOW = 16 << 10
"""Least `stream_window`, bytes (PROTOCOL, connecting)."""
MIN_RESUME_BUFFER = 64 << 10
"""Least `resume.buffer`, bytes (PROTOCOL, connecting)."""
_MAX_WINDOW = (1 << 31) - 1


class Faults(ValueError):
    """Several faults that one validator found, each at its own place below the value that was validated.

    Args:
        faults: (path below the value, what is wrong).
    """

    def __init__(self, faults: list[tuple[tuple[str | int, ...], str]]) -> None:
        super().__init__("; ".join(text for _, text in faults))
        self.faults = faults


class Model(BaseModel):
    """Frozen, with no key but its own; a key that stands there with no value is as if it did not stand there."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None or key not in cls.model_fields}


def disorder(section: Model, low: str, high: str, shown: Callable[[Any], str]) -> str | None:
    """In words, that the value of key `low` is more than that of key `high`; None where it is not."""
    least, most = getattr(section, low), getattr(section, high)
    return f"{low} ({shown(least)}) is more than {high} ({shown(most)})" if least > most else None


def check_order(section: Model, low: str, high: str, shown: Callable[[Any], str]) -> None:
    """Raise ValueError where there is `disorder`."""
    if (fault := disorder(section, low, high, shown)) is not None:
        raise ValueError(fault)


def _file_path(value: object) -> str:
    text = parse_text(value)
    return str(Path(text).expanduser()) if text.startswith("~/") else text


def _socket_path(value: object) -> str:
    path = _file_path(value)
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise ValueError(
            f"expected a socket path of at most {MAX_SOCKET_PATH} bytes (the kernel takes no more), "
            f"not one of {len(path.encode())}"
        )
    return path


def parse_address(value: object) -> Any:
    """Turn ``HOST:PORT`` (``[::1]:9460`` for IPv6) into ``{"host", "port"}``; a mapping passes as it is.

    Raises:
        ValueError: not of that form.
    """
    if isinstance(value, dict) or not isinstance(value, (str, int)):
        return value
    host, colon, port = str(value).rpartition(":")
    if not colon or not host or (":" in host and not host.startswith("[")):
        raise ValueError(f"expected HOST:PORT such as 127.0.0.1:9460 or [::1]:9460, not {shown(value)}")
    return {"host": host.removeprefix("[").removesuffix("]"), "port": port}


def _rate(value: object) -> float:
    """So many a second: a number from 0 on."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"expected a number a second such as 50 or 0.5 (0: no limit), not {shown(value)}")
    return float(value)


# Kinds of value. Durations are float seconds, sizes int bytes.
Text = Annotated[str, BeforeValidator(parse_text)]
FilePath = Annotated[str, BeforeValidator(_file_path)]
SocketPath = Annotated[str, BeforeValidator(_socket_path)]
Flag = Annotated[bool, BeforeValidator(parse_flag)]
Mode = Annotated[int, BeforeValidator(parse_mode)]
Port = Annotated[int, BeforeValidator(Whole(0, 65535))]
Count = Annotated[int, BeforeValidator(Whole(1, 10_000_000))]
Most = Annotated[int, BeforeValidator(Whole(0, 1_000_000))]
"""How many at a time; 0 is no limit."""
Rate = Annotated[float, BeforeValidator(_rate)]
StreamCount = Annotated[int, BeforeValidator(Whole(1, 1_000_000))]
LineCount = Annotated[int, BeforeValidator(Whole(0, 10_000_000))]
Span = Annotated[float, BeforeValidator(Duration())]
"""Any duration, 0 too."""
Interval = Annotated[float, BeforeValidator(Duration(low=0.01))]
"""A duration that something waits for: never 0."""
Keepalive = Annotated[float, BeforeValidator(Duration(low=0.01, off=True))]
"""0 turns it off."""
Grace = Annotated[float, BeforeValidator(Duration(high=86400.0))]
Bytes = Annotated[int, BeforeValidator(Size())]
WindowBytes = Annotated[int, BeforeValidator(Size(low=MIN_WINDOW, high=_MAX_WINDOW))]
QueueBytes = Annotated[int, BeforeValidator(Size(low=256 << 10))]  # of what is told in pieces of 64 KiB and more
HeaderBytes = Annotated[int, BeforeValidator(Size(low=1 << 10, high=16 << 20))]
ReplayBytes = Annotated[int, BeforeValidator(Size(low=MIN_RESUME_BUFFER))]
EventBytes = Annotated[int, BeforeValidator(Size(low=1 << 10, high=1 << 30))]
MemoryBytes = Annotated[int, BeforeValidator(Size(low=1 << 20))]
Share = Annotated[float, BeforeValidator(parse_share)]
MessageBytes = Annotated[int, BeforeValidator(Size(low=64 << 10, high=1 << 30))]


class ResumeConfig(Model):
    """How long and how much of a session is kept when its connection dies (PROTOCOL, counting and resume).

    Attributes:
        grace: seconds; 0 keeps nothing.
        buffer: bytes of DATA that wait unacknowledged, at least 64 KiB.
    """

    grace: Grace = 60.0
    buffer: ReplayBytes = 4 << 20


class GradeConfig(Model):
    """What a grade allows at most: 95th percentile of the round trips, jitter (seconds), and loss (0 to 1)."""

    rtt: Interval
    jitter: Interval
    loss: Share


class QualityConfig(Model):
    """Thresholds of a connection's grades (`protocol.quality.Thresholds`); what is worse than `fair` is ``poor``.

    Attributes:
        window: seconds that a ping counts for.
    """

    window: Interval = 600.0
    excellent: GradeConfig = GradeConfig(rtt=0.06, jitter=0.015, loss=0.002)
    good: GradeConfig = GradeConfig(rtt=0.15, jitter=0.04, loss=0.01)
    fair: GradeConfig = GradeConfig(rtt=0.3, jitter=0.1, loss=0.05)


class DashboardConfig(Model):
    """Bounds of the dashboard.

    Attributes:
        tunnels: whose past is remembered for 24 hours, about 6 KiB each; of more those go that are gone for longest.
        events: changes of state and outages that are remembered, of all tunnels.
        viewers: pages that may be open at a time; beyond it the answer is 503.
    """

    tunnels: Count = 1000
    events: Count = 2000
    viewers: Count = 16


class LogConfig(Model):
    """What is logged and how.

    Attributes:
        level: the least level that is written.
        format: ``auto`` is the journal under systemd, text on a terminal, JSON lines elsewhere.
        queries: query strings of visitors' addresses are written too.
        audit: file of the audit trail; None: none.
        audit_repeat: seconds in which a caller's refusals for one reason, or its sign-ins, have one line; of the
            others the number is told.
        audit_callers: how many of those are told apart at a time; what others do is counted together.
        burst: lines that the journal gets in 30 s at most, and then the count of those that were dropped; 0: no limit.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json", "journal"] = "auto"
    queries: Flag = False
    audit: FilePath | None = None
    audit_repeat: Interval = 60.0
    audit_callers: Count = 1000
    burst: LineCount = 5000


class TelemetryConfig(Model):
    """OpenTelemetry traces; they need the extra ``otlp``.

    Attributes:
        otlp: address of the collector that takes OTLP over HTTP; None: there are no traces.
        queue: spans that may wait for it; more are lost.
        timeout: seconds that it has to take some, tries again included.
        sample: share of new traces that are recorded; a visitor that brings its own says for itself.
    """

    otlp: Annotated[str, BeforeValidator(http_url)] | None = None
    queue: Count = 2048
    timeout: Interval = 10.0
    sample: Share = 1.0
