"""A tunnel's section of ``tunneld.yaml``, and those of its sections whose defaults the agent's own give."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, field_validator

from tunneld.config.access import AccessConfig
from tunneld.config.common import (
    Bytes,
    EventBytes,
    Faults,
    Flag,
    Interval,
    Keepalive,
    MemoryBytes,
    Model,
    Span,
    StreamCount,
    WindowBytes,
    disorder,
)
from tunneld.config.service import Service, parse_service
from tunneld.config.units import format_size, shown

__all__ = ["AgentLimits", "HeartbeatConfig", "ServiceCheckConfig", "SseConfig", "TunnelConfig", "window_faults"]

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_SECTION = TypeVar("_SECTION", bound=Model)


def _name(value: object) -> str:
    if isinstance(value, str) and _LABEL.fullmatch(value):
        return value
    raise ValueError(
        f"expected a DNS label: a-z, 0-9 and '-', at most 63 characters, no '-' at either end; not {shown(value)}"
    )


def _path(value: object) -> str:
    if (
        isinstance(value, str)
        and value.startswith("/")
        and value.isascii()
        and value.isprintable()
        and " " not in value
    ):
        return value
    raise ValueError(f"expected a path that begins with '/', not {shown(value)}")


def _service(value: object) -> Service:
    return value if isinstance(value, Service) else parse_service(value)


class HeartbeatConfig(Model):
    """A silent peer is noticed after `interval` + `timeout` seconds (PROTOCOL, invariant 5)."""

    interval: Interval = 30.0
    timeout: Interval = 10.0


class SseConfig(Model):
    """How event streams are carried.

    Attributes:
        keepalive: seconds of quiet after which a comment is sent; 0: never.
        max_event: bytes of one event that may wait for its end.
        recover: go on from Last-Event-ID when the service breaks.
        replay: seconds that a stream is kept for a visitor that left; 0: not at all.
        replay_buffer: bytes of events kept for such a visitor.
        identity: take Accept-Encoding off requests for events.
    """

    keepalive: Keepalive = 30.0
    max_event: EventBytes = 256 << 10
    recover: Flag = False
    replay: Span = 0.0
    replay_buffer: Bytes = 1 << 20
    identity: Flag = True


class AgentLimits(Model):
    """Bounds of what the agent holds, for each tunnel but `memory`, which is of the whole process.

    Attributes:
        max_streams: streams of one tunnel at a time.
        stream_window: bytes of credit that a stream's direction starts with.
        stream_window_max: bytes that it may grow to.
        memory: bytes of all windows, replay and held events of the process.
        stall: seconds after which a direction whose reader takes nothing is cancelled; 0: never.
        connect_timeout: seconds for a connection to the service.
        response_timeout: seconds for the head of its answer; 0: as long as it takes.
    """

    max_streams: StreamCount = 1000
    stream_window: WindowBytes = 256 << 10
    stream_window_max: WindowBytes = 4 << 20
    memory: MemoryBytes = 512 << 20
    stall: Span = 60.0
    connect_timeout: Interval = 5.0
    response_timeout: Span = 60.0


def window_faults(limits: AgentLimits, at: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], str]]:
    """What is wrong with the two windows of `limits`, which stand at that path: nothing, or one fault."""
    if (fault := disorder(limits, "stream_window", "stream_window_max", format_size)) is None:
        return []
    key = "stream_window" if "stream_window" in limits.model_fields_set else "stream_window_max"
    return [((*at, key), fault)]


class ServiceCheckConfig(Model):
    """How the service is probed: GET `path` every `interval` seconds; None: a TCP connect.

    Attributes:
        timeout: seconds that it has to answer; None: those of `limits.connect_timeout`.
    """

    path: Annotated[str, BeforeValidator(_path)] | None = None
    interval: Interval = 30.0
    timeout: Interval | None = None


class TunnelConfig(Model):
    """One tunnel. `heartbeat`, `sse` and `limits` are whole once the file is loaded (see `over`).

    Attributes:
        name: a DNS label.
        service: where the requests go.
        headers: request headers to set, name to value, as they are sent.
    """

    name: Annotated[str, BeforeValidator(_name)]
    service: Annotated[Service, BeforeValidator(_service)]
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    sse: SseConfig = SseConfig()
    limits: AgentLimits = AgentLimits()
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    service_check: ServiceCheckConfig = ServiceCheckConfig()
    access: AccessConfig = AccessConfig()
    inspect: Flag = False

    @field_validator("headers", mode="before")
    @classmethod
    def _sendable(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected a mapping of header names to values, not {shown(value)}")
        faults: list[tuple[tuple[str | int, ...], str]] = []
        seen: dict[str, str] = {}
        for name, text in value.items():
            if not isinstance(name, str) or not _TOKEN.fullmatch(name):
                faults.append(((name,), "expected a header name: letters, digits and '-'"))
            elif name.lower() in seen:
                faults.append(((name,), f"{seen[name.lower()]} stands there already; header names have no case"))
            elif name.lower() in ("connection", "transfer-encoding", "content-length", "upgrade", "te", "trailer"):
                faults.append(((name,), "this header belongs to the connection and cannot be set"))
            elif not isinstance(text, str) or not _sendable_value(text):
                faults.append(((name,), "expected one line of text that HTTP can carry"))
            seen.setdefault(str(name).lower(), str(name))
        if faults:
            raise Faults(faults)
        return value

    def over(self, heartbeat: HeartbeatConfig, sse: SseConfig, limits: AgentLimits) -> TunnelConfig:
        """This tunnel with every key of the three that it does not set itself taken from these.

        Raises:
            Faults: the two together make no sense (a window over its maximum).
        """
        merged = self.model_copy(
            update={
                "heartbeat": _merged(heartbeat, self.heartbeat),
                "sse": _merged(sse, self.sse),
                "limits": _merged(limits, self.limits),
            }
        )
        faults = window_faults(merged.limits, ("limits",)) if self.limits.model_fields_set else []
        if faults:
            raise Faults(faults)
        return merged


def _sendable_value(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return text == text.strip() and all(char == "\t" or (char >= " " and char != "\x7f") for char in text)


def _merged(defaults: _SECTION, own: _SECTION) -> _SECTION:
    """`defaults` under the keys that `own` sets; the result still knows which those were."""
    values = dict(defaults) | {key: getattr(own, key) for key in own.model_fields_set}
    return type(defaults).model_construct(_fields_set=set(own.model_fields_set), **values)
