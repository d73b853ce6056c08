"""The agent's configuration, as frozen models: every key of ``tunneld.yaml``.

Durations are float seconds, sizes int bytes. The sections of a tunnel are whole: what the tunnel does not set itself is
taken from the agent's defaults when the file is loaded, so that a reader looks at ``tunnel.heartbeat.interval`` alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from tunneld.config.access import AccessConfig
from tunneld.config.alerts import AlertRule, check_unique
from tunneld.config.common import (
    Bytes,
    Count,
    DashboardConfig,
    Faults,
    FilePath,
    Interval,
    LogConfig,
    Mode,
    Model,
    Port,
    QualityConfig,
    QueueBytes,
    ResumeConfig,
    SocketPath,
    Span,
    TelemetryConfig,
    Text,
    check_order,
    parse_address,
)
from tunneld.config.link import ServerLink
from tunneld.config.tunnel import AgentLimits, HeartbeatConfig, SseConfig, TunnelConfig, window_faults
from tunneld.config.units import format_duration

__all__ = [
    "AccessConfig",
    "AddressConfig",
    "AgentConfig",
    "AgentResume",
    "ControlConfig",
    "InspectionConfig",
    "MetricsConfig",
    "ReconnectConfig",
    "default_control_socket",
]


def default_control_socket(environ: Mapping[str, str] | None = None, uid: int | None = None) -> str:
    """Where the control socket is when the file does not say.

    A service manager's runtime directory first (``RUNTIME_DIRECTORY``); a plain user has ``XDG_RUNTIME_DIR``; else
    ``/run/tunneld``.

    Args:
        environ: None: this process's.
        uid: None: this process's.
    """
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if runtime.startswith("/"):
        return f"{runtime}/control.sock"
    user = environ.get("XDG_RUNTIME_DIR", "")
    if uid != 0 and user.startswith("/"):
        return str(Path(user) / "tunneld" / "control.sock")
    return "/run/tunneld/control.sock"


class ReconnectConfig(Model):
    """Bounds of the random time between two dials (PROTOCOL, counting and resume); `initial` at most `max`."""

    initial: Interval = 0.5
    max: Interval = 60.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "initial", "max", format_duration)
        return self


class AgentResume(ResumeConfig):
    """What the server's has, and how long event streams wait for an agent that the service manager restarts.

    Attributes:
        restart: seconds; 0: they end with the process.
    """

    restart: Span = 15.0


class InspectionConfig(Model):
    """What is kept of a tunnel with ``inspect: true``.

    Attributes:
        requests: the last so many, their heads and the begin of their bodies.
        body: bytes of a request's body; a longer one cannot be sent again.
        events: a second that a reader of a stream is shown; the others are counted.
        readers: that look into streams of one tunnel at a time.
        waiting: events that wait for one of them; the oldest go, and are counted.
    """

    requests: Count = 100
    body: Bytes = 64 << 10
    events: Count = 50
    readers: Count = 16
    waiting: Count = 1000


class ControlConfig(Model):
    """The agent's Unix socket.

    Attributes:
        group: name or number of the group that owns it; None: the process's own.
        readonly_socket: a second socket that changes nothing; None: none.
        event_readers: of ``GET /v1/events`` at a time, through this socket, and through `metrics.listen`.
        event_queue: bytes that wait for one of them that does not read, before it is cut; events come in pieces, so not
            too few. One that reads may have 16 times that wait (`control.event_queue.BURST`).
        event_history: bytes of the last events that are kept for readers that come back.
    """

    socket: SocketPath = Field(default_factory=default_control_socket)
    group: Text | None = None
    mode: Mode = 0o660
    readonly_socket: SocketPath | None = None
    event_readers: Count = 32
    event_queue: QueueBytes = 1 << 20
    event_history: Bytes = 1 << 20


class AddressConfig(Model):
    """A TCP address to listen on; port 0 is any free one."""

    host: Text = "127.0.0.1"
    port: Port


class MetricsConfig(Model):
    """Metrics on a listener of their own; None: only on the control socket.

    Attributes:
        max_failures: wrong credentials from one address within `failure_window` seconds; beyond it the answer is 429.
    """

    listen: Annotated[AddressConfig, BeforeValidator(parse_address)] | None = None
    token_file: FilePath | None = None
    max_failures: Count = 300
    failure_window: Interval = 60.0


class AgentConfig(Model):
    """Everything in ``tunneld.yaml``."""

    server: ServerLink
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    sse: SseConfig = SseConfig()
    resume: AgentResume = AgentResume()
    reconnect: ReconnectConfig = ReconnectConfig()
    drain_timeout: Span = 30.0
    limits: AgentLimits = AgentLimits()
    tunnels: tuple[TunnelConfig, ...] = ()
    control: ControlConfig = Field(default_factory=ControlConfig)
    metrics: MetricsConfig = MetricsConfig()
    quality: QualityConfig = QualityConfig()
    inspection: InspectionConfig = InspectionConfig()
    dashboard: DashboardConfig = DashboardConfig()
    log: LogConfig = LogConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    alerts: tuple[AlertRule, ...] = ()
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("alerts", mode="after")
    @classmethod
    def _own_names(cls, value: tuple[AlertRule, ...]) -> tuple[AlertRule, ...]:
        return check_unique(value)

    @field_validator("limits", mode="after")
    @classmethod
    def _windows(cls, value: AgentLimits) -> AgentLimits:
        if faults := window_faults(value, ()):
            raise Faults(faults)
        return value

    @field_validator("tunnels", mode="after")
    @classmethod
    def _whole(cls, value: tuple[TunnelConfig, ...], info: ValidationInfo) -> tuple[TunnelConfig, ...]:
        faults: list[tuple[tuple[str | int, ...], str]] = []
        whole: list[TunnelConfig] = []
        seen: dict[str, int] = {}
        sections = [info.data.get(key) for key in ("heartbeat", "sse", "limits")]
        for index, tunnel in enumerate(value):
            first = seen.setdefault(tunnel.name, index)
            if first != index:
                faults.append(((index, "name"), f"tunnels[{first}] has that name already"))
            if None in sections:  # a fault of theirs is reported already
                continue
            try:
                whole.append(tunnel.over(*sections))  # type: ignore[arg-type]
            except Faults as error:
                faults += [((index, *path), text) for path, text in error.faults]
        if faults:
            raise Faults(faults)
        return tuple(whole)

    def complete(self, tunnel: TunnelConfig) -> TunnelConfig:
        """That tunnel with every key of `heartbeat`, `sse` and `limits` that it does not set taken from here.

        Raises:
            Faults: the two together make no sense (a window over its maximum).
        """
        return tunnel.over(self.heartbeat, self.sse, self.limits)

    def with_dropins(self, tunnels: Sequence[TunnelConfig], sources: Mapping[str, str]) -> AgentConfig:
        """The same with more tunnels, which stand in files of their own: `sources`, name to path."""
        changed = self.model_copy(update={"tunnels": (*self.tunnels, *tunnels)})
        changed._sources = {**self._sources, **sources}
        return changed

    def without(self, name: str) -> AgentConfig:
        """The same without that tunnel."""
        changed = self.model_copy(update={"tunnels": tuple(one for one in self.tunnels if one.name != name)})
        changed._sources = {key: path for key, path in self._sources.items() if key != name}
        return changed

    def source(self, name: str) -> str | None:
        """The file of `tunnels.d` that a tunnel stands in; None: it stands in the agent's own."""
        return self._sources.get(name)

    def tunnel(self, name: str) -> TunnelConfig | None:
        """The tunnel of that name; None when there is none."""
        return next((tunnel for tunnel in self.tunnels if tunnel.name == name), None)
