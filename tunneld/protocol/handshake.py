"""What holds on a connection: an agent's wishes against a server's bounds. Pure.

"The smaller of wish and bound wins"; a heartbeat or keepalive that is out of bounds is moved to the nearer one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from math import isfinite

from tunneld.errors import RemoteError
from tunneld.protocol.messages import (
    AccessSettings,
    Connected,
    HeartbeatSettings,
    Hello,
    ProbeSettings,
    ResumeSettings,
    Settings,
    SseChange,
    SseSettings,
)
from tunneld.protocol.replay import MIN_BUFFER
from tunneld.protocol.settings import changed
from tunneld.protocol.windows import MAX_CREDIT, MIN_WINDOW

__all__ = [
    "ACCESS_MODES",
    "Agreed",
    "Bounds",
    "agree",
    "agree_live",
    "agree_probe",
    "check_access",
    "check_connected",
    "check_hello",
    "check_live",
    "check_probe",
    "live_settings",
]  # fmt: skip

ACCESS_MODES = frozenset({"open", "key", "basic", "login"})
"""What a server enforces."""
_HEX = re.compile(r"[0-9a-f]{64}").fullmatch
_BCRYPT = re.compile(r"\$2[aby]\$(?:0[4-9]|1[0-2])\$[./A-Za-z0-9]{53}").fullmatch
_VISITOR = re.compile(r"[!-9;-~]{1,64}").fullmatch
_ADDRESS = re.compile(r"[!-?\[-~]{1,64}@(?:\*|[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)").fullmatch
_MAX_DIAL = 2**63
_MAX_NAME = 128


@dataclass(frozen=True, slots=True)
class Bounds:
    """A server's own values and limits; seconds and bytes.

    Attributes:
        login: visitors can sign in.
    """

    heartbeat: HeartbeatSettings
    heartbeat_min: float
    heartbeat_max: float
    sse: SseSettings
    keepalive_min: float
    keepalive_max: float
    resume: ResumeSettings
    max_streams: int
    stream_window: int
    login: bool = False


@dataclass(frozen=True, slots=True)
class Agreed:
    """What `connected` says."""

    heartbeat: HeartbeatSettings
    sse: SseSettings
    resume: ResumeSettings
    max_streams: int
    stream_window: int
    probe: ProbeSettings | None = None


def check_hello(hello: Hello, *, login: bool = False) -> None:
    """Refuse a hello whose values cannot be; raises RemoteError ``bad_hello``.

    Args:
        login: as `check_access` takes it.
    """
    if not 0 < len(hello.instance) <= _MAX_NAME:
        raise RemoteError("bad_hello", "`instance` must have 1 to 128 characters")
    if not 0 <= hello.dial < _MAX_DIAL:
        raise RemoteError("bad_hello", "`dial` must be a number from 0")
    resuming = (hello.session_id, hello.resume_token, hello.received)
    if any(part is not None for part in resuming) and any(part is None for part in resuming):
        raise RemoteError("bad_hello", "to resume takes `session_id`, `resume_token` and `received` together")
    if hello.received is not None and hello.received < 0:
        raise RemoteError("bad_hello", "`received` must be a number from 0")
    wishes = hello.wishes
    check_live(wishes.heartbeat, wishes.sse, code="bad_hello")
    check_probe(wishes.probe, code="bad_hello")
    check_access(wishes.access, login=login, code="bad_hello")
    if wishes.resume is not None and not (_sane(wishes.resume.grace) and _least(wishes.resume.buffer, 0)):
        raise RemoteError("bad_hello", "`wishes.resume` out of range")
    for value in (wishes.max_streams, wishes.stream_window):
        if value is not None and value < 1:
            raise RemoteError("bad_hello", "`max_streams` and `stream_window` must be at least 1")


def check_connected(said: Connected, *, most_header: int) -> None:
    """Refuse a `connected` whose values cannot be; raises RemoteError ``protocol_error``.

    Args:
        said: the server's.
        most_header: bytes; a larger `max_header` is not taken.
    """
    if not (
        MIN_WINDOW <= said.stream_window <= MAX_CREDIT
        and said.max_streams >= 1
        and 0 < said.max_header <= most_header
        and _sane(said.resume.grace)
        and (not said.resume.grace or said.resume.buffer >= MIN_BUFFER)
    ):
        raise RemoteError("protocol_error", "connected with values out of range")
    check_live(said.heartbeat, said.sse, code="protocol_error")
    check_probe(said.probe, code="protocol_error")


def check_live(heartbeat: HeartbeatSettings | None, sse: SseSettings | SseChange | None, *, code: str) -> None:
    """Refuse settings that cannot be; raises RemoteError with `code`."""
    if heartbeat is not None and not (_sane(heartbeat.interval) and heartbeat.interval and _sane(heartbeat.timeout)):
        raise RemoteError(code, "heartbeat.interval must be seconds above 0, .timeout seconds from 0")
    if sse is not None and not (_sane(sse.keepalive) and _least(sse.max_event, 1)):
        raise RemoteError(code, "sse.keepalive must be seconds from 0, sse.max_event bytes from 1")
    if sse is not None and not (_sane(sse.replay) and _least(sse.replay_buffer, 0)):
        raise RemoteError(code, "sse.replay must be seconds from 0, sse.replay_buffer bytes from 0")


def check_probe(probe: ProbeSettings | None, *, code: str) -> None:
    """Refuse probes that cannot be; raises RemoteError with `code`."""
    if probe is not None and not (_sane(probe.interval) and probe.interval and _sane(probe.timeout) and probe.timeout):
        raise RemoteError(code, "probe.interval and .timeout must be seconds above 0")


def check_access(access: AccessSettings | None, *, login: bool, code: str) -> None:
    """Refuse an access that cannot be enforced whole; raises RemoteError with `code`. Shows no hash.

    Args:
        login: whether this server has an issuer that visitors can sign in at.
    """
    if access is None:
        return
    if access.mode not in ACCESS_MODES:
        raise RemoteError(code, f"access.mode {access.mode!r} is none that this server can enforce")
    if access.mode == "login" and not login:
        words = "needs an OpenID Connect issuer, and this server has none (`login` in its configuration)"
        raise RemoteError(code, f"access.mode 'login' {words}")
    levels = [access.level, *(key.level for key in access.keys if key.level is not None)]
    if any(level not in ("read_only", "read_write") for level in levels):
        raise RemoteError(code, "access.level must be read_only or read_write")
    if any(not _HEX(key.hash) or not _sane_moment(key.expires) for key in access.keys):
        raise RemoteError(code, "access.keys must be SHA-256 hashes in hex, with seconds since the epoch")
    if any(not _BCRYPT(hashed) for hashed in access.users.values()):
        raise RemoteError(code, "access.users must be bcrypt hashes of a cost up to 12")
    if not all(map(_VISITOR, (*access.users, *(key.name for key in access.keys)))):
        raise RemoteError(code, "access: names are visible ASCII characters without a colon")
    if not all(map(_ADDRESS, access.emails)) or not all(map(_ADDRESS, (f"x@{name}" for name in access.domains))):
        raise RemoteError(code, "access.emails and access.domains must be addresses and domains in lower case")
    try:
        for text in (*access.allow, *access.deny):
            ip_network(text)
        bytes.fromhex(access.links)
    except ValueError as error:
        raise RemoteError(code, f"access: {error}") from None


def _sane_moment(seconds: float | None) -> bool:
    return seconds is None or isfinite(seconds)


def agree(hello: Hello, bounds: Bounds) -> Agreed:
    """What holds for a hello that `check_hello` let pass."""
    wishes = hello.wishes
    heartbeat, sse = agree_live(wishes.heartbeat, wishes.sse, bounds)
    resume = changed(bounds.resume, wishes.resume)
    return Agreed(
        heartbeat=heartbeat,
        sse=sse,
        resume=ResumeSettings(
            grace=min(resume.grace, bounds.resume.grace),
            buffer=max(MIN_BUFFER, min(resume.buffer, bounds.resume.buffer)),
        ),
        max_streams=min(wishes.max_streams or bounds.max_streams, bounds.max_streams),
        stream_window=max(MIN_WINDOW, min(wishes.stream_window or bounds.stream_window, bounds.stream_window)),
        probe=agree_probe(wishes.probe, bounds),
    )


def agree_live(
    heartbeat: HeartbeatSettings | None, sse: SseChange | None, bounds: Bounds
) -> tuple[HeartbeatSettings, SseSettings]:
    """What holds of the values that a live reload may change; the server's own where nothing is wished."""
    beat = heartbeat or bounds.heartbeat
    interval = min(max(beat.interval, bounds.heartbeat_min), bounds.heartbeat_max)
    timeout = min(max(beat.timeout, min(bounds.heartbeat_min, 1.0)), bounds.heartbeat_max)
    events = changed(bounds.sse, sse)
    keepalive = events.keepalive
    if keepalive:  # 0 is off, whatever the minimum says
        keepalive = min(max(keepalive, bounds.keepalive_min), bounds.keepalive_max)
    return (
        HeartbeatSettings(interval, timeout),
        SseSettings(
            keepalive=keepalive,
            max_event=min(events.max_event, bounds.sse.max_event),
            identity=events.identity,
            recover=events.recover,
            replay=events.replay,
            replay_buffer=events.replay_buffer,
        ),
    )


def agree_probe(wish: ProbeSettings | None, bounds: Bounds) -> ProbeSettings | None:
    """How a service is probed: no more often than heartbeats may go. None: the agent does not ask for it."""
    if wish is None:
        return None
    return ProbeSettings(max(wish.interval, bounds.heartbeat_min), min(wish.timeout, bounds.heartbeat_max))


def live_settings(message: Settings, bounds: Bounds) -> tuple[HeartbeatSettings, SseSettings]:
    """What holds after an agent's `settings`; raises RemoteError ``protocol_error``."""
    check_live(message.heartbeat, message.sse, code="protocol_error")
    return agree_live(message.heartbeat, message.sse, bounds)


def _sane(seconds: float | None) -> bool:
    return seconds is None or (isfinite(seconds) and 0 <= seconds <= 86400 * 365)


def _least(size: int | None, least: int) -> bool:
    return size is None or size >= least
