"""The agent as a whole: its health and status, and what changes it."""

from __future__ import annotations

from typing import Literal, NotRequired

from tunneld.control.models.streams import StreamInfo
from tunneld.control.models.tunnels import TunnelStatus
from tunneld.control.models.typed import TypedDict, strict

__all__ = [
    "LOG_LEVELS",
    "Check",
    "Drained",
    "Health",
    "HealthStatus",
    "LogLevel",
    "LogLevelName",
    "NewLogLevel",
    "Reloaded",
    "Status",
    "Totals",
]

HealthStatus = Literal["ok", "degraded", "down"]
LogLevelName = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: tuple[LogLevelName, ...] = ("debug", "info", "warning", "error")


class Check(TypedDict):
    """One thing that health looks at; `detail` is a sentence for people."""

    name: str
    status: HealthStatus
    detail: str


class Health(TypedDict):
    """Answer of ``GET /v1/health``: 200 for ok and degraded, 503 for down."""

    status: HealthStatus
    checks: list[Check]


class Totals(TypedDict):
    """Sums over the life of the agent process; `active_streams` is now."""

    tunnels: int
    online: int
    active_streams: int
    streams: int
    bytes_in: int
    bytes_out: int


class Status(TypedDict):
    """Answer of ``GET /v1/status``; `server` is the URL the agent dials, without credentials.

    `streams`: what ``GET /v1/streams`` answers, where it was asked for.
    """

    version: str
    pid: int
    uptime_s: float
    config_file: str | None
    server: str | None
    tunnels: list[TunnelStatus]
    totals: Totals
    streams: NotRequired[list[StreamInfo]]


class Reloaded(TypedDict):
    """What a reload changed, a line for people each; `restart`: what holds only after a restart."""

    changed: list[str]
    restart: NotRequired[list[str]]


class Drained(TypedDict):
    """Draining has begun: no new streams; `streams` are left and have `timeout_s` to end. Then the agent leaves."""

    draining: Literal[True]
    streams: int
    timeout_s: float


class NewLogLevel(TypedDict):
    """Body of ``PUT /v1/log-level``."""

    level: LogLevelName


class LogLevel(TypedDict):
    """Answer of ``PUT /v1/log-level``: what holds, what held."""

    level: LogLevelName
    was: str


strict(NewLogLevel)
