"""Values that both sides agree on: whole, as they hold, and in part, as a hello wishes and `settings` changes them."""

from __future__ import annotations

from typing import TypeVar

import msgspec

__all__ = [
    "HeartbeatSettings",
    "ResumeChange",
    "ResumeSettings",
    "SseChange",
    "SseSettings",
    "added",
    "changed",
]

_Whole = TypeVar("_Whole", bound=msgspec.Struct)


class HeartbeatSettings(msgspec.Struct, frozen=True):
    """Seconds, both."""

    interval: float
    timeout: float


class SseSettings(msgspec.Struct, frozen=True):
    """Seconds, bytes; `keepalive` 0 is off.

    Attributes:
        recover: go on from Last-Event-ID when the service broke.
        replay: seconds that a stream is kept for a visitor that left; 0: not at all.
        replay_buffer: bytes of events kept for such a visitor.
    """

    keepalive: float = 30.0
    max_event: int = 256 * 1024
    identity: bool = True
    recover: bool = False
    replay: float = 0.0
    replay_buffer: int = 1024 * 1024


class ResumeSettings(msgspec.Struct, frozen=True):
    """Seconds that a session is kept without a connection (0: not at all), bytes of the replay buffer."""

    grace: float = 0.0
    buffer: int = 4 * 1024 * 1024


class SseChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of `SseSettings`; None: that is not said."""

    keepalive: float | None = None
    max_event: int | None = None
    identity: bool | None = None
    recover: bool | None = None
    replay: float | None = None
    replay_buffer: int | None = None


class ResumeChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of `ResumeSettings`; None: that is not said."""

    grace: float | None = None
    buffer: int | None = None


def changed(before: _Whole, change: msgspec.Struct | None) -> _Whole:
    """What holds once `change` was said: all that it does not say stays as it was."""
    if change is None:
        return before
    said = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
    return msgspec.structs.replace(before, **said)


def added(before: _Whole | None, change: _Whole | None) -> _Whole | None:
    """What was said by two changes, the later one last."""
    return change if before is None else changed(before, change)
