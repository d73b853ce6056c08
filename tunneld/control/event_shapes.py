"""The events of ``GET /v1/events`` by type, as OpenAPI has them. Readers ignore types and keys they do not know."""

from typing import Annotated, Any, Literal, NotRequired, get_args

from pydantic import AfterValidator, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from tunneld.config.source import near
from tunneld.control.models.events import EVENT_TYPES
from tunneld.control.models.streams import StreamKind
from tunneld.control.models.tunnels import TunnelState
from tunneld.control.models.typed import TypedDict

__all__ = ["BY_TYPE", "EventType", "TypedEvent", "schema"]


class _Event(TypedDict):
    """`id` rises, over restarts of the agent too; `time` is ISO 8601 UTC."""

    id: int
    time: str


class TunnelEvent(_Event):
    """A tunnel's state changed; the last four keys after an outage."""

    type: Literal["tunnel"]
    tunnel: str
    state: TunnelState
    was: TunnelState
    error: str | None
    resumed: NotRequired[bool]
    outage_s: NotRequired[float]
    replayed_bytes: NotRequired[int]
    streams_lost: NotRequired[int]


class HeartbeatEvent(_Event):
    """A pong came (`ok`), or did not in time."""

    type: Literal["heartbeat"]
    tunnel: str
    ok: bool
    rtt_ms: float | None


class StreamEvent(_Event):
    """A visitor's request began, or became a WebSocket."""

    type: Literal["stream_opened", "stream_upgraded"]
    tunnel: str
    request_id: str
    kind: StreamKind
    method: str
    path: str
    client: str


class StreamClosedEvent(_Event):
    """It ended."""

    type: Literal["stream_closed"]
    tunnel: str
    request_id: str
    kind: StreamKind
    method: str
    path: str
    client: str
    reason: str
    age_s: float
    bytes_in: int
    bytes_out: int


class ReloadEvent(_Event):
    """A changed file was applied."""

    type: Literal["reload"]
    changed: list[str]
    restart: list[str]


class DrainEvent(_Event):
    """The agent takes no new streams; so many are open."""

    type: Literal["drain"]
    streams: int


class AlertEvent(_Event):
    """A rule of `alerts` fires, or what it told of is over."""

    type: Literal["alert"]
    alert: str
    state: Literal["firing", "resolved"]
    subject: str
    message: str


class LaggedEvent(_Event):
    """This reader was too slow and is cut."""

    type: Literal["lagged"]
    dropped: int


class GapEvent(_Event):
    """This reader came back with ``Last-Event-ID`` `since`, and not all that followed is kept."""

    type: Literal["gap"]
    since: int
    next: int | None


TypedEvent = Annotated[
    TunnelEvent
    | HeartbeatEvent
    | StreamEvent
    | StreamClosedEvent
    | ReloadEvent
    | DrainEvent
    | AlertEvent
    | LaggedEvent
    | GapEvent,
    Field(discriminator="type"),
]

BY_TYPE: dict[str, Any] = {
    name: shape for shape in get_args(get_args(TypedEvent)[0]) for name in get_args(shape.__annotations__["type"])
}
"""type -> shape."""


def schema() -> dict[str, Any]:
    """What OpenAPI says of ``data``: one of these, by `type`."""
    made = [TypeAdapter(shape).json_schema() for shape in dict.fromkeys(BY_TYPE.values())]
    return {"oneOf": made}


def _known(name: str) -> str:
    if name in EVENT_TYPES:
        return name
    nearest = near(name[:60], EVENT_TYPES)
    hint = f' (did you mean "{nearest[0]}"?)' if nearest else ""
    said = {"name": repr(name[:60]), "hint": hint, "all": ", ".join(EVENT_TYPES)}
    raise PydanticCustomError("event_type", "{name} is no type of events{hint}; there are: {all}", said)


EventType = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(EVENT_TYPES)})]
"""A type that is asked for."""
