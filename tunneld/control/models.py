"""The shapes of the control API, shared with ``tunnelctl``.

TypedDicts, because every answer is JSON that is built once and read once: no model classes live in the
daemon's memory. pydantic reads them only when ``/openapi.json`` is asked for. ``tunnelctl`` imports this
module for type checking alone: `typing_extensions` would cost it 20 ms of its start.

Units: ``*_s`` seconds, ``*_ms`` milliseconds, ``bytes_*`` octets. ``None`` (JSON ``null``): not known yet.
"""

from __future__ import annotations

import fnmatch
import sys
from typing import Any, Literal, NotRequired

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:  # pydantic can read only this one's annotations before Python 3.12
    from typing_extensions import TypedDict

__all__ = [
    "EVENT_TYPES",
    "LOG_LEVELS",
    "STREAM_KINDS",
    "Cancelled",
    "Check",
    "DoctorFinding",
    "DoctorReport",
    "Drained",
    "Event",
    "Filter",
    "Health",
    "HealthStatus",
    "Heartbeat",
    "Link",
    "LogLevel",
    "LogLevelName",
    "NewLink",
    "NewLogLevel",
    "NewPermissions",
    "NewTunnel",
    "OutageStatus",
    "OutagesStatus",
    "PermissionInfo",
    "Permissions",
    "Problem",
    "Quality",
    "Reconnected",
    "Reloaded",
    "RoundTrip",
    "Status",
    "StreamInfo",
    "StreamKind",
    "Streams",
    "TcpStatus",
    "Totals",
    "TunnelClosed",
    "TunnelState",
    "TunnelStatus",
    "matches",
]

HealthStatus = Literal["ok", "degraded", "down"]
StreamKind = Literal["sse", "http", "websocket"]
LogLevelName = Literal["debug", "info", "warning", "error"]
TunnelState = Literal["connecting", "online", "degraded", "resuming", "offline", "failed", "draining", "closed"]

STREAM_KINDS: tuple[StreamKind, ...] = ("sse", "http", "websocket")
LOG_LEVELS: tuple[LogLevelName, ...] = ("debug", "info", "warning", "error")
EVENT_TYPES = (
    "tunnel", "heartbeat", "stream_opened", "stream_upgraded", "stream_closed", "reload", "drain", "alert", "lagged",
    "gap",
)  # fmt: skip
"""What ``type`` of an event may be; readers ignore those they do not know.

``tunnel``: a state change (``tunnel``, ``state``, ``was``, ``error``; after an outage also ``resumed``, ``outage_s``,
``replayed_bytes``, ``streams_lost``). ``heartbeat``: a pong came or did not
(``tunnel``, ``ok``, ``rtt_ms``). ``stream_opened``: ``tunnel``, ``request_id``, ``kind``, ``method``,
``path``, ``client``. ``stream_upgraded``: the same, once it is a WebSocket. ``stream_closed``: the same and ``reason``,
``age_s``, ``bytes_in``, ``bytes_out``.
``reload``, ``drain``: what changed. ``alert``: ``message``.
``lagged``: this reader was too slow and is cut; ``dropped`` events were not told.
``gap``: this reader came back with ``Last-Event-ID`` `since`, and not all that followed is kept; the first event that
is, is ``next`` (null: none).
"""


class Check(TypedDict):
    """One thing that health looks at; `detail` is a sentence for people."""

    name: str
    status: HealthStatus
    detail: str


class Health(TypedDict):
    """Answer of ``GET /v1/health``: 200 for ok and degraded, 503 for down."""

    status: HealthStatus
    checks: list[Check]


class Heartbeat(TypedDict):
    """A tunnel's heartbeat: what holds, and seconds since the last pong."""

    interval_s: float
    timeout_s: float
    last_pong_s: float | None


class RoundTrip(TypedDict):
    """Round trips of the heartbeat, in milliseconds."""

    last: float | None
    p50: float | None
    p95: float | None


class TcpStatus(TypedDict):
    """What the kernel knows of a connection since its beginning; `delivery_rate` in bytes a second."""

    rtt_ms: float
    least_rtt_ms: float
    segments: int
    retransmitted: int
    delivery_rate: int


class Quality(TypedDict):
    """How good a tunnel's connection is; null until it is measured.

    `loss` is a share (0 to 1): of pings without an answer in time, or of segments sent again, whichever is more.
    `grade` is one of excellent, good, fair, poor, down; `reason` says why it is no better. `queue_ms` is what the last
    heartbeat waited, in queues of both ends and on the way: its round trip beyond `tcp.least_rtt_ms`. `rtt_ms` leaves
    that out of the heartbeats beside which the connection carried bulk: a full pipe is not taken for a slow network.
    Its `last` and `p50` leave out heartbeats beside which segments were sent again: TCP held them back; its `p95` has
    them.
    """

    rtt_ms: RoundTrip
    jitter_ms: float | None
    queue_ms: NotRequired[float | None]
    loss: float | None
    grade: Literal["excellent", "good", "fair", "poor", "down"] | None
    reason: NotRequired[str]
    pings: NotRequired[int]
    pings_lost: NotRequired[int]
    tcp: NotRequired[TcpStatus]


class OutageStatus(TypedDict):
    """One outage that is over: when the connection was lost (ISO 8601 UTC), for how long, and what it cost."""

    at: str
    seconds: float
    resumed: bool
    replayed_bytes: int
    streams_lost: int


class OutagesStatus(TypedDict):
    """Outages of a tunnel since the agent's start: sums, and the last one that is over."""

    count: int
    seconds: float
    replayed_bytes: int
    streams_lost: int
    last: OutageStatus | None


class TunnelStatus(TypedDict):
    """One tunnel of ``GET /v1/status``.

    `configured`: it stands in `file`, the agent's or one of `tunnels.d`; else it was opened at run time, and
    `expires_s` says when it goes (null: when the agent does). `server_version` is what the server said of itself,
    `token_expires_s` for how long the agent's token is good by its word (null: for ever, or it does not say).
    """

    name: str
    state: TunnelState
    tunnel_id: str | None
    public_url: str | None
    host_url: str | None
    service: str
    connected_s: float | None
    reconnects: int
    last_error: str | None
    active_streams: int
    heartbeat: Heartbeat
    quality: Quality
    outages: NotRequired[OutagesStatus]
    configured: NotRequired[bool]
    file: NotRequired[str | None]
    expires_s: NotRequired[float | None]
    server_version: NotRequired[str | None]
    token_expires_s: NotRequired[float | None]


class Totals(TypedDict):
    """Sums over the life of the agent process; `active_streams` is now."""

    tunnels: int
    online: int
    active_streams: int
    streams: int
    bytes_in: int
    bytes_out: int


class Status(TypedDict):
    """Answer of ``GET /v1/status``; `server` is the URL the agent dials, without credentials."""

    version: str
    pid: int
    uptime_s: float
    config_file: str | None
    server: str | None
    tunnels: list[TunnelStatus]
    totals: Totals


class StreamInfo(TypedDict):
    """One visitor's request that is under way; `path` is as the service sees it, with its query.

    `stalled`: bytes wait that its reader does not take.
    """

    request_id: str
    tunnel: str
    kind: StreamKind
    method: str
    path: str
    client: str
    state: str
    age_s: float
    idle_s: float
    bytes_in: int
    bytes_out: int
    events: int
    last_event_id: str | None
    stalled: NotRequired[bool]


class Streams(TypedDict):
    """Answer of ``GET /v1/streams``."""

    streams: list[StreamInfo]


class Filter(TypedDict, total=False):
    """Body of ``POST /v1/streams/cancel``: all that is given must hold; `path` is a glob."""

    tunnel: str
    kind: StreamKind
    path: str
    older_than_s: float
    idle_s: float
    all: Literal[True]


class Cancelled(TypedDict):
    """The request ids of the streams that were cancelled."""

    cancelled: list[str]


class Reloaded(TypedDict):
    """What a reload changed, a line for people each; `restart`: what holds only after a restart."""

    changed: list[str]
    restart: NotRequired[list[str]]


class Reconnected(TypedDict):
    """The tunnel that dials again, and the state it was in."""

    tunnel: str
    was: TunnelState


class Drained(TypedDict):
    """Draining has begun: no new streams; `streams` are left and have `timeout_s` to end. Then the agent leaves."""

    draining: Literal[True]
    streams: int
    timeout_s: float


class NewTunnel(TypedDict):
    """Body of ``POST /v1/tunnels``: a tunnel's section as in the file, and `for_s`, seconds that it stands.

    `save`: it is written to `tunnels.d`, and stands there over restarts until it is closed.
    """

    name: str
    service: str
    for_s: NotRequired[float]
    save: NotRequired[bool]
    heartbeat: NotRequired[dict[str, Any]]
    sse: NotRequired[dict[str, Any]]
    limits: NotRequired[dict[str, Any]]
    headers: NotRequired[dict[str, str]]
    service_check: NotRequired[dict[str, Any]]
    access: NotRequired[dict[str, Any]]


class NewLink(TypedDict):
    """Body of ``POST /v1/tunnels/{name}/links``: a path with its query, as the service sees it, and for how long."""

    path: str
    for_s: float


class Link(TypedDict):
    """Its answer: the address that lets a visitor in, and until when (ISO 8601 UTC)."""

    url: str
    expires: str


class TunnelClosed(TypedDict):
    """Answer of ``DELETE /v1/tunnels/{name}``: what was closed, and the streams that ended with it."""

    closed: str
    streams: int


class NewLogLevel(TypedDict):
    """Body of ``PUT /v1/log-level``."""

    level: LogLevelName


class LogLevel(TypedDict):
    """Answer of ``PUT /v1/log-level``: what holds, what held."""

    level: LogLevelName
    was: str


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


class SeenRequest(TypedDict):
    """A request of a tunnel with `inspect: true`; secrets' headers are masked. `status`, `reason` null: not yet."""

    request_id: str
    tunnel: str
    at: str
    method: str
    path: str
    client: str
    request_headers: list[list[str]]
    body_bytes: int
    body_whole: bool
    status: int | None
    answer_headers: list[list[str]]
    reason: str | None
    seconds: float


class SeenRequests(TypedDict):
    """Answer of ``GET /v1/requests``, newest first."""

    requests: list[SeenRequest]


class Replayed(TypedDict):
    """Answer of ``POST /v1/requests/{request_id}/replay``; `whole`: the answer ended, and is here to its end."""

    request_id: str
    of: str
    status: int
    headers: list[list[str]]
    body: str
    whole: bool
    seconds: float


class PermissionInfo(TypedDict):
    """That somebody may visit a tunnel; times are ISO 8601 UTC, null: never, or not yet."""

    id: int
    server_id: int | str
    allowed_email: str
    user_id: str | None
    status: Literal["pending", "active", "revoked", "expired"]
    access_level: Literal["read_only", "read_write", "admin"]
    granted_at: str | None
    granted_by_ip: str | None
    activated_at: str | None
    revoked_at: str | None
    expires_at: str | None
    notes: str | None


class Permissions(TypedDict):
    """Some of a tunnel's."""

    permissions: list[PermissionInfo]


class NewPermissions(TypedDict):
    """Whom to let visit a tunnel: e-mail addresses, a level (read_write unless said), for how many seconds."""

    emails: list[str]
    access_level: NotRequired[Literal["read_only", "read_write", "admin"]]
    expires_s: NotRequired[float]
    notes: NotRequired[str]


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


class Problem(TypedDict):
    """An error (RFC 9457); `code` is stable and also in ``X-Tunnel-Error``; `faults` one line each."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    faults: NotRequired[list[str]]


Event = dict[str, Any]
"""An event of ``GET /v1/events``: `id` (rising int), `type`, `time` (ISO 8601 UTC), the keys of its type."""

for _body in (Filter, NewLink, NewLogLevel, NewPermissions, NewTunnel, AlertsWanted):
    # What callers send is checked strictly: no "5" for 5, no key that would be passed over in silence.
    setattr(_body, "__pydantic_config__", {"extra": "forbid", "strict": True})  # noqa: B010 (mypy knows no such key)


def matches(stream: StreamInfo, wanted: Filter) -> bool:
    """Whether a stream passes every key of the filter. A path's glob is held against it with and without query."""
    path = wanted.get("path")
    return (
        ("tunnel" not in wanted or stream["tunnel"] == wanted["tunnel"])
        and ("kind" not in wanted or stream["kind"] == wanted["kind"])
        and stream["age_s"] >= wanted.get("older_than_s", 0)
        and stream["idle_s"] >= wanted.get("idle_s", 0)
        and (
            path is None
            or fnmatch.fnmatchcase(stream["path"], path)
            or fnmatch.fnmatchcase(stream["path"].partition("?")[0], path)
        )
    )
