"""One tunnel: its state, the quality of its connection, its outages; opened, closed, shared."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from tunneld.control.models.typed import TypedDict, strict

__all__ = [
    "Heartbeat",
    "Link",
    "NewLink",
    "NewTunnel",
    "OutageStatus",
    "OutagesStatus",
    "Quality",
    "Reconnected",
    "RoundTrip",
    "TcpStatus",
    "Throughput",
    "TunnelClosed",
    "TunnelState",
    "TunnelStatus",
]

TunnelState = Literal["connecting", "online", "degraded", "resuming", "offline", "failed", "draining", "closed"]


class Heartbeat(TypedDict):
    """A tunnel's heartbeat: what holds, and seconds since the last pong, and since the last byte of the connection."""

    interval_s: float
    timeout_s: float
    last_pong_s: float | None
    last_byte_s: float | None


class Throughput(TypedDict):
    """Bytes of visitors' bodies a second, over the last 5 to 10 seconds: from visitors, and to them."""

    in_bytes_s: float
    out_bytes_s: float


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
    """One outage that is over: when the connection was lost or fell silent (ISO 8601 UTC), for how long, its cost."""

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
    `bytes_in` and `bytes_out`: of visitors' bodies since the start; `throughput` null until it is known.
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
    bytes_in: NotRequired[int]
    bytes_out: NotRequired[int]
    throughput: NotRequired[Throughput | None]
    heartbeat: Heartbeat
    quality: Quality
    outages: NotRequired[OutagesStatus]
    configured: NotRequired[bool]
    file: NotRequired[str | None]
    expires_s: NotRequired[float | None]
    server_version: NotRequired[str | None]
    token_expires_s: NotRequired[float | None]


class Reconnected(TypedDict):
    """The tunnel that dials again, and the state it was in."""

    tunnel: str
    was: TunnelState


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


strict(NewTunnel, NewLink)
