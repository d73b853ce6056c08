"""Visitors' requests: under way, cancelled by a filter, looked into."""

from __future__ import annotations

import fnmatch
from typing import Annotated, Literal, NotRequired

from tunneld.control.models.typed import Boolean, TypedDict, strict

__all__ = [
    "STREAM_KINDS",
    "Cancelled",
    "Filter",
    "Replayed",
    "SeenRequest",
    "SeenRequests",
    "StreamInfo",
    "StreamKind",
    "Streams",
    "matches",
]

StreamKind = Literal["sse", "http", "websocket"]
STREAM_KINDS: tuple[StreamKind, ...] = ("sse", "http", "websocket")


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
    all: Annotated[Literal[True], Boolean()]


class Cancelled(TypedDict):
    """The request ids of the streams that were cancelled."""

    cancelled: list[str]


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


strict(Filter)
