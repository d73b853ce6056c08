"""The shapes of the server's admin API that the agent's does not have. Kinds and units as in `control.models`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from tunneld.control.models.agent import Totals
from tunneld.control.models.streams import StreamInfo
from tunneld.control.models.tunnels import Heartbeat, OutagesStatus, Quality, Throughput
from tunneld.control.models.typed import TypedDict, strict

__all__ = [
    "AuditInfo",
    "AuditPage",
    "Closed",
    "LimitsInfo",
    "MadeToken",
    "NameInfo",
    "Names",
    "NewName",
    "NewOwner",
    "NewToken",
    "OwnerInfo",
    "OwnerLimits",
    "Owners",
    "Released",
    "Removed",
    "Rotation",
    "ServerStatus",
    "ServerTunnel",
    "ServerTunnels",
    "TokenInfo",
    "TokenLimits",
    "Tokens",
]

Scope = Literal["agent", "read", "write"]
ServerTunnelState = Literal["connecting", "online", "degraded", "resuming", "offline", "draining"]


class ServerTunnel(TypedDict):
    """One known name; what an agent's `TunnelStatus` says, as the server sees it.

    `service` is the agent's to know and empty here; `owner` the id of its owner, or of its token where that has none;
    `owner_name` that owner's name or null, `token` the token's. `state` is
    ``online`` once a probe came back from the service, ``connecting`` before the first, ``degraded`` with the reason in
    `last_error` when the last did not end well; an agent of before 0.2, or of the older dialect, is not probed.
    `probe_ms` is how long the last took.
    """

    name: str
    state: ServerTunnelState
    tunnel_id: str
    public_url: str
    host_url: str | None
    service: str
    connected_s: float | None
    reconnects: int
    last_error: str | None
    active_streams: int
    bytes_in: int
    bytes_out: int
    throughput: Throughput | None
    heartbeat: Heartbeat
    quality: Quality
    outages: OutagesStatus
    peer: str | None
    agent_version: str | None
    probe_ms: float | None
    owner: str
    owner_name: str | None
    token: str


class ServerTunnels(TypedDict):
    """Answer of ``GET /api/v1/tunnels``."""

    tunnels: list[ServerTunnel]


class ServerStatus(TypedDict):
    """Answer of ``GET /api/v1/status``; `server` is the public address.

    `streams`: what ``GET /api/v1/streams`` answers, where it was asked for.
    """

    version: str
    pid: int
    uptime_s: float
    config_file: str | None
    server: str | None
    listening: list[str]
    tunnels: list[ServerTunnel]
    totals: Totals
    streams: NotRequired[list[StreamInfo]]


class TokenLimits(TypedDict, total=False):
    """A credential's own bounds over all its tunnels; 0: none beside the server's."""

    streams: int
    bytes_per_s: int
    requests_per_s: float


class TokenInfo(TypedDict):
    """A credential without its secret, which is kept nowhere; times are ISO 8601 UTC."""

    id: str
    name: str
    tunnels: list[str]
    scopes: list[Scope]
    state: Literal["live", "expired", "revoked"]
    certificate: str | None
    owner: str | None
    created: str
    expires: str | None
    revoked: str | None
    limits: TokenLimits


class Tokens(TypedDict):
    """Answer of ``GET /api/v1/tokens``."""

    tokens: list[TokenInfo]


class NewToken(TypedDict):
    """Body of ``POST /api/v1/tokens``; as the options of ``tunneld server token create``."""

    name: str
    tunnels: NotRequired[list[str]]
    scopes: NotRequired[list[Scope]]
    expires_s: NotRequired[float]
    limits: NotRequired[TokenLimits]
    certificate: NotRequired[str]
    owner: NotRequired[str]


class Rotation(TypedDict, total=False):
    """Body of ``POST /api/v1/tokens/{id}/rotate``: how long the old secret stays good; 0 without it."""

    overlap_s: float


class MadeToken(TypedDict):
    """A new credential, or one with another secret: the only answer that ever holds it. Null with a certificate."""

    token: TokenInfo
    secret: str | None


class NameInfo(TypedDict):
    """A tunnel's name that belongs to somebody; `owner` null: kept from everybody."""

    name: str
    owner: str | None
    token: str | None
    state: Literal["owned", "resting", "reserved"]
    since: str
    free_from: str | None


class Names(TypedDict):
    """Answer of ``GET /api/v1/names``."""

    names: list[NameInfo]


class NewName(TypedDict, total=False):
    """Body of ``PUT /api/v1/names/{name}``: id of the owner or token that may have it; without it none may."""

    owner: str


class OwnerLimits(TypedDict, total=False):
    """What an owner may have, over all their tunnels; 0: none beside the server's. `names`: tunnels' names."""

    names: int
    streams: int
    bytes_per_s: int
    requests_per_s: float


class OwnerInfo(TypedDict):
    """Somebody to whom tokens belong, and what is theirs now; `tokens` that are good, `names` that they own."""

    id: str
    name: str
    created: str
    limits: OwnerLimits
    tokens: int
    names: int
    tunnels: int
    streams: int


class Owners(TypedDict):
    """Answer of ``GET /api/v1/owners``."""

    owners: list[OwnerInfo]


class NewOwner(TypedDict):
    """Body of ``POST /api/v1/owners``."""

    name: str
    limits: NotRequired[OwnerLimits]


class Removed(TypedDict):
    """The owner who is removed now; their tunnels close within a second."""

    removed: str


class Released(TypedDict):
    """The name that is free now."""

    released: str


class Closed(TypedDict):
    """The token that is revoked now; its tunnels close within a second."""

    revoked: str


class LimitsInfo(TypedDict):
    """What the configuration bounds (seconds, bytes, counts), and how near to it the server is now."""

    limits: dict[str, Any]
    auth: dict[str, Any]
    now: dict[str, float]


class AuditInfo(TypedDict):
    """One change that was made (`ok`), or asked for and refused."""

    id: int
    at: str
    actor: str
    action: str
    detail: str
    ok: bool


class AuditPage(TypedDict):
    """Answer of ``GET /api/v1/audit``, the newest first; `before` is for the next page, null on the last."""

    entries: list[AuditInfo]
    before: int | None


strict(NewToken, NewName, NewOwner, OwnerLimits, Rotation, TokenLimits)
