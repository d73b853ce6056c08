"""The server's configuration, as frozen models: every key of ``server.yaml``.

Durations are float seconds, sizes int bytes.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from tunneld.config import addresses
from tunneld.config.alerts import AlertRule, check_unique
from tunneld.config.common import (
    Bytes,
    Count,
    DashboardConfig,
    EventBytes,
    Faults,
    FilePath,
    HeaderBytes,
    Interval,
    Keepalive,
    LogConfig,
    MemoryBytes,
    MessageBytes,
    Mode,
    Model,
    Most,
    Port,
    QualityConfig,
    Rate,
    ResumeConfig,
    SocketPath,
    Span,
    StreamCount,
    TelemetryConfig,
    Text,
    WindowBytes,
    check_order,
)
from tunneld.config.login import LoginConfig
from tunneld.config.units import format_duration, format_size, parse_flag

__all__ = [
    "AdminConfig",
    "AuthConfig",
    "CertificateConfig",
    "ListenConfig",
    "ServerConfig",
    "ServerHeartbeat",
    "ServerLimits",
    "ServerSse",
    "TlsConfig",
    "Use",
]

Use = Literal["visitors", "tunnels"]


def _as_list(value: object) -> Any:
    """One mapping is a list of one."""
    return [value] if isinstance(value, dict | Model) else value


def _or_none(value: object) -> Any:
    """``false`` (``no``, ``off``) means none, ``true`` the default."""
    try:
        return {} if parse_flag(value) else None
    except ValueError:
        return value


class CertificateConfig(Model):
    """A certificate: PEM files of its chain and of its key."""

    cert: FilePath
    key: FilePath


class TlsConfig(CertificateConfig):
    """A listener's certificate.

    Attributes:
        client_ca: PEM file of the roots that vouch for agents' own certificates; None: none is asked for.
        sni: more certificates, each for the names (wildcards too) that stand in it.
    """

    client_ca: FilePath | None = None
    sni: Annotated[tuple[CertificateConfig, ...], BeforeValidator(_as_list)] = ()


class ListenConfig(Model):
    """One listener: TCP (`host`, `port`) or a Unix socket (`unix`).

    Attributes:
        port: 0 is any free one.
        unix: path of a Unix socket; None: TCP.
        tls: None: the server's `tls`, if there is one.
        serve: what is answered here.
        mode: permission bits of the Unix socket.
    """

    host: Text = "127.0.0.1"
    port: Port = 8440
    unix: SocketPath | None = None
    tls: TlsConfig | None = None
    serve: tuple[Use, ...] = ("visitors", "tunnels")
    mode: Mode = 0o660

    @field_validator("serve", mode="after")
    @classmethod
    def _something(cls, value: tuple[Use, ...]) -> tuple[Use, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("expected [visitors], [tunnels] or [visitors, tunnels]")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.unix is not None and {"host", "port"} & self.model_fields_set:
            raise ValueError("expected host and port, or unix, not both")
        if self.unix is None and "mode" in self.model_fields_set:
            raise ValueError("mode belongs to a unix listener")
        if self.unix is None and not {"host", "port"} & self.model_fields_set:
            raise ValueError("expected host and port, or unix")
        return self

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        if self.unix is not None or self.host.lower() == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.unix is not None:
            return f"unix:{self.unix}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class AdminConfig(Model):
    """The listener of dashboard, API and metrics.

    Attributes:
        token_file: None: see CONTRACT on who is answered then.
        max_failures: wrong credentials from one address within `failure_window` seconds; beyond it the answer is 429.
        owner_metrics: owners, the oldest first, that have series of their own among the metrics; 0: none, and no label.
    """

    listen: ListenConfig = ListenConfig(host="127.0.0.1", port=8441)
    token_file: FilePath | None = None
    max_failures: Count = 300
    failure_window: Interval = 60.0
    owner_metrics: Most = 0


class AuthConfig(Model):
    """Who may open tunnels.

    Attributes:
        mode: ``open`` only with listeners that this machine alone can reach.
        v2: the same for the older dialect; the default is as `mode`.
        max_failures: wrong credentials from one address at once; beyond it the answer is 429.
        failure_window: seconds in which that many are forgotten.
        name_rest: seconds that a name stays unused after its token is gone.
        max_names: names that one token may own.
    """

    mode: Literal["token", "open"] = "token"
    v2: Literal["token", "open", "refuse"] = Field(default_factory=lambda data: data.get("mode", "token"))
    max_failures: Count = 30
    failure_window: Interval = 60.0
    name_rest: Span = 86400.0
    max_names: Count = 1000


class ServerHeartbeat(Model):
    """The server's own pings, and the bounds of what an agent may wish; `min` at most `max`."""

    interval: Interval = 30.0
    timeout: Interval = 10.0
    min: Interval = 1.0
    max: Interval = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min", "max", format_duration)
        return self

    def clamp(self, wish: float) -> float:
        """The interval that holds for an agent that wishes `wish` seconds."""
        return max(self.min, min(wish, self.max))


class ServerSse(Model):
    """How event streams are carried; `min` and `max` bound an agent's wish for `keepalive`.

    Attributes:
        keepalive: seconds of quiet after which a comment is sent; 0: never.
        max_event: bytes of one event that may wait for its end.
        replay_total: bytes of events kept for visitors that left, in all.
    """

    keepalive: Keepalive = 30.0
    min: Interval = 1.0
    max: Interval = 300.0
    max_event: EventBytes = 256 << 10
    replay_total: Bytes = 64 << 20

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min", "max", format_duration)
        return self

    def clamp(self, wish: float) -> float:
        """The keepalive that holds for an agent that wishes `wish` seconds; 0 stays 0, off."""
        return max(self.min, min(wish, self.max)) if wish > 0 else 0.0


class ServerLimits(Model):
    """Bounds of what the server holds. Stream bounds are for each tunnel, `memory` and `max_tunnels` for the process.

    Attributes:
        max_header: bytes of a request's or an answer's head.
        header_timeout: seconds for a visitor's head.
        hello_timeout: seconds for an agent's hello.
        max_body: bytes of a request's body; 0: no limit.
        hold: seconds that a visitor waits for a tunnel that is offline; 0: not at all.
        v2_message: bytes of one message of the older dialect, and of a request's body on its way to such a client.
        v2_queue: bytes of one of its streams that may wait for a visitor.
        v2_response_timeout: seconds in which such a client must answer an ordinary request.
        v2_clients: registrations, and names, of such clients that are remembered.
        max_form: bytes of a body that the server itself reads.
        max_waiting: visitors that wait for one tunnel at a time.
        idle_timeout: seconds that a visitor's connection stays open between two requests.
        store_waiting: calls that may wait for the store.
        audit_entries: changes that the store remembers.
        body_timeout: seconds that a request's body may pause before its answer has begun; 0: as long as it likes.
        min_rate: bytes a second that a visitor sends at least of a body whose answer has not begun, over
            `body_timeout`, and takes at least of what waits for it, over `stall`; 0: any.
        tunnel_requests: of visitors, a second, for one tunnel; 0: no limit, as with all that follow.
        tunnel_bytes: of bodies, a second, both directions together, for one tunnel.
        address_requests: a second, of one address (of IPv6 its /64).
        address_bytes: of bodies, a second.
        address_streams: requests under way at a time.
        address_connections: open at a time; those of trusted proxies are not counted.
        passwords: of visitors, that are remembered as good (a keyed hash of each).
        password_checks: that may wait for their turn.
        permissions: of one tunnel, those that have ended among them until their room is needed.
    """

    max_tunnels: Count = 10_000
    max_streams: StreamCount = 1000
    stream_window: WindowBytes = 256 << 10
    stream_window_max: WindowBytes = 4 << 20
    memory: MemoryBytes = 512 << 20
    stall: Span = 60.0
    max_header: HeaderBytes = 64 << 10
    header_timeout: Interval = 10.0
    hello_timeout: Interval = 5.0
    max_body: Bytes = 0
    hold: Span = 5.0
    v2_message: MessageBytes = 16 << 20
    v2_queue: WindowBytes = 1 << 20
    v2_response_timeout: Interval = 60.0
    v2_clients: Count = 10_000
    max_form: HeaderBytes = 64 << 10
    max_waiting: StreamCount = 1000
    idle_timeout: Interval = 75.0
    store_waiting: Count = 1000
    audit_entries: Count = 10_000
    body_timeout: Span = 60.0
    min_rate: Bytes = 64
    tunnel_requests: Rate = 0.0
    tunnel_bytes: Bytes = 0
    address_requests: Rate = 0.0
    address_bytes: Bytes = 0
    address_streams: Most = 0
    address_connections: Most = 0
    passwords: Count = 4096
    password_checks: Count = 100
    permissions: Count = 1000

    @model_validator(mode="after")
    def _windows(self) -> Self:
        check_order(self, "stream_window", "stream_window_max", format_size)
        return self


class ServerConfig(Model):
    """Everything in ``server.yaml``.

    Attributes:
        admin: None: no admin listener.
        public_url: where visitors find this server, no final slash; None: derived from the first listener.
        domain: ``NAME.domain`` reaches tunnel NAME too; None: by path alone.
        tls: for every listener that has none of its own; None: plain.
        store: ``sqlite:///…`` or ``memory:``.
        login: where visitors of tunnels with `access.mode` ``login`` sign in; None: nowhere.
        trusted_proxies: peers whose ``Forwarded`` and ``X-Forwarded-*`` are believed.
        alerts: rules over its tunnels, its limits, its certificates and its tokens.
    """

    listen: Annotated[tuple[ListenConfig, ...], BeforeValidator(_as_list)] = (
        ListenConfig(host="127.0.0.1", port=8440),
    )
    admin: Annotated[AdminConfig | None, BeforeValidator(_or_none)] = AdminConfig()
    public_url: Annotated[str, BeforeValidator(addresses.public_url)] | None = None
    domain: Annotated[str, BeforeValidator(addresses.domain)] | None = None
    tls: TlsConfig | None = None
    auth: AuthConfig = AuthConfig()
    store: Annotated[str, BeforeValidator(addresses.store)] = "sqlite:////var/lib/tunneld-server/server.db"
    heartbeat: ServerHeartbeat = ServerHeartbeat()
    sse: ServerSse = ServerSse()
    resume: ResumeConfig = ResumeConfig()
    drain_timeout: Span = 30.0
    limits: ServerLimits = ServerLimits()
    quality: QualityConfig = QualityConfig()
    dashboard: DashboardConfig = DashboardConfig()
    login: LoginConfig | None = None
    trusted_proxies: tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(addresses.network)], ...] = ()
    log: LogConfig = LogConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    alerts: tuple[AlertRule, ...] = ()

    @field_validator("alerts", mode="after")
    @classmethod
    def _own_names(cls, value: tuple[AlertRule, ...]) -> tuple[AlertRule, ...]:
        return check_unique(value)

    @field_validator("listen", mode="after")
    @classmethod
    def _distinct(cls, value: tuple[ListenConfig, ...]) -> tuple[ListenConfig, ...]:
        if not value:
            raise ValueError("expected at least one listener")
        seen: set[str] = set()
        faults: list[tuple[tuple[str | int, ...], str]] = []
        for index, listener in enumerate(value):
            if str(listener) in seen and (listener.unix is not None or listener.port):
                faults.append(((index,), f"{listener} stands there already"))
            seen.add(str(listener))
        if faults:
            raise Faults(faults)
        return value

    @field_validator("auth", mode="after")
    @classmethod
    def _open_stays_home(cls, value: AuthConfig, info: ValidationInfo) -> AuthConfig:
        public = [str(listener) for listener in info.data.get("listen", ()) if not listener.loopback]
        for key in ("mode", "v2"):
            if getattr(value, key) == "open" and public:
                text = (
                    f"open lets anyone who reaches {', '.join(public)} open a tunnel; it is only for listeners on "
                    "127.0.0.1, ::1 or a Unix socket. Use token"
                )
                raise Faults([((key,), text)])
        return value
