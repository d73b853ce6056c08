"""What the tunnel says in JSON: text messages, and the heads inside OPEN, HEAD and END.

Shapes are checked by msgspec while it decodes, in C. Unknown keys are ignored, so a newer peer may say more.
Header and path bytes are latin-1 text, written as UTF-8 and not escaped.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from tunneld.errors import RemoteError
from tunneld.protocol.settings import (
    HeartbeatSettings,
    ResumeChange,
    ResumeSettings,
    SseChange,
    SseSettings,
)

__all__ = [
    "AccessKey",
    "AccessSettings",
    "Connected",
    "ErrorMessage",
    "GoAway",
    "Head",
    "Headers",
    "HeartbeatSettings",
    "Hello",
    "Message",
    "Open",
    "Permit",
    "Permitted",
    "Ping",
    "Pong",
    "Probe",
    "ProbeSettings",
    "Probed",
    "ResumeChange",
    "ResumeSettings",
    "Settings",
    "SseChange",
    "SseSettings",
    "StreamCancel",
    "Wishes",
    "decode_head",
    "decode_open",
    "decode_text",
    "decode_trailers",
    "encode",
]

#: (name, value) pairs in order, latin-1 text as on the wire.
Headers: TypeAlias = list[tuple[str, str]]


#: What one text may hold is bounded, so that what is echoed, logged or kept of it is.
_Short: TypeAlias = Annotated[str, Meta(max_length=64)]
_Name: TypeAlias = Annotated[str, Meta(max_length=256)]
_Words: TypeAlias = Annotated[str, Meta(max_length=2048)]
_Number: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
_Ahead: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]
_Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=366 * 86400)]


class ProbeSettings(msgspec.Struct, frozen=True):
    """Seconds: between two probes of a service, and for a service to answer one."""

    interval: float
    timeout: float


class AccessKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key of visitors: SHA-256 of it in hex; seconds since the epoch, None: for ever; level None: the tunnel's."""

    name: _Short
    hash: Annotated[str, Meta(max_length=64)]
    expires: float | None = None
    level: _Short | None = None


class AccessSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who may visit, for the server to enforce. Hashes, never secrets of visitors.

    Attributes:
        users: with ``basic``: name -> bcrypt hash.
        allow: address ranges; where any stand, nobody else may come.
        links: hex of the secret that signed links are made with; empty: there are none.
        emails: with ``login``: addresses that are let in, in lower case.
        domains: with ``login``: what may stand behind the ``@``, in lower case; ``*``: anything.
    """

    mode: _Short = "open"
    keys: Annotated[list[AccessKey], Meta(max_length=256)] = []
    users: Annotated[dict[_Short, _Name], Meta(max_length=256)] = {}
    allow: Annotated[list[_Short], Meta(max_length=256)] = []
    deny: Annotated[list[_Short], Meta(max_length=256)] = []
    level: _Short = "read_write"
    links: _Name = ""
    emails: Annotated[list[_Name], Meta(max_length=256)] = []
    domains: Annotated[list[_Name], Meta(max_length=256)] = []


class Wishes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an agent would like; the server's bounds decide. None: no wish."""

    heartbeat: HeartbeatSettings | None = None
    sse: SseChange | None = None
    resume: ResumeChange | None = None
    max_streams: int | None = None
    stream_window: int | None = None
    probe: ProbeSettings | None = None
    access: AccessSettings | None = None


class Hello(msgspec.Struct, omit_defaults=True, tag="hello", tag_field="type"):
    """The agent's first message. With `session_id` it asks to resume that session."""

    instance: str
    dial: int
    agent_version: _Short = ""
    wishes: Wishes = Wishes()
    session_id: _Name | None = None
    resume_token: _Name | None = None
    received: int | None = None


class Connected(msgspec.Struct, tag="connected", tag_field="type"):
    """The server's answer to `hello`: who the tunnel is and what holds on it. Every key is written, null or not."""

    tunnel_id: _Name
    public_url: _Words
    session_id: _Name
    resume_token: _Name
    heartbeat: HeartbeatSettings
    sse: SseSettings
    resume: ResumeSettings
    max_streams: int
    stream_window: int
    max_header: int
    host_url: _Words | None = None
    resumed: bool = False
    resume_refused: _Short | None = None
    received: _Number = 0
    server_version: _Short = ""
    probe: ProbeSettings | None = None
    #: The mode of access that the server enforces; None: it enforces none.
    access: _Short | None = None
    #: Seconds until the credential that the agent came with ends; None: it does not, or there is none.
    token_expires_s: _Ahead | None = None


class Settings(msgspec.Struct, omit_defaults=True, tag="settings", tag_field="type"):
    """A live reload: what holds from now on; what is not said goes on as it is. Not counted."""

    heartbeat: HeartbeatSettings | None = None
    sse: SseChange | None = None
    probe: ProbeSettings | None = None
    access: AccessSettings | None = None


class Probe(msgspec.Struct, tag="probe", tag_field="type"):
    """The server asks whether the service answers. Not counted."""

    seq: _Number


class Probed(msgspec.Struct, omit_defaults=True, tag="probed", tag_field="type"):
    """What a probe found, told by the agent; and by the server, whether it came back. Not counted.

    Attributes:
        fault: of the agent: why the service does not answer; of the server: why the probe counts as lost. None: well.
    """

    seq: _Number
    fault: _Words | None = None


class Permit(msgspec.Struct, frozen=True, omit_defaults=True, tag="permit", tag_field="type"):
    """The agent asks for, or changes, who may visit its tunnel by e-mail address. Not counted; answered once.

    Attributes:
        seq: the answer's.
        do: ``list``, ``grant`` or ``revoke``.
        level: None: as it is, of a new one read_write.
        expires_s: seconds from now; None: as it is, of a new one never.
        after: with ``list``: those whose id is above it.
    """

    seq: _Number
    do: _Short
    emails: Annotated[list[Annotated[str, Meta(max_length=320)]], Meta(max_length=100)] = []
    level: _Short | None = None
    expires_s: _Seconds | None = None
    notes: Annotated[str, Meta(max_length=1000)] | None = None
    after: _Number = 0


class Permitted(msgspec.Struct, omit_defaults=True, tag="permitted", tag_field="type"):
    """The server's answer to a `Permit`. Not counted.

    Attributes:
        permissions: those that were asked for, or changed, as PROTOCOL.md's v2 has one.
        more: of a list: the next page begins after the last of these.
        code: of a refusal; empty: it is done.
    """

    seq: _Number
    permissions: list[dict[str, int | float | str | None]] = []
    more: bool = False
    code: _Short = ""
    message: _Words = ""


class Ping(msgspec.Struct, omit_defaults=True, tag="ping", tag_field="type"):
    """`timestamp` is ISO 8601 UTC; the pong echoes both.

    Attributes:
        ports: of the connection, the sender's own and the peer's, as it sees them; None: it has none, or is an older
            peer. Whoever is told them says in its pong what its kernel knows.
    """

    timestamp: _Short
    seq: _Number
    ports: tuple[_Port, _Port] | None = None


class Pong(msgspec.Struct, omit_defaults=True, tag="pong", tag_field="type"):
    """The echo of a ping.

    Attributes:
        resent: segments that the sender's kernel has sent again on this connection; None: not known, or not asked.
        arrived: segments with data that came, also those that came twice; None: the same, or what stands between the
            two is more than one connection.
        mending: that kernel was making up for a loss: the pong may wait for that.
    """

    timestamp: _Short
    seq: _Number
    resent: _Number | None = None
    arrived: _Number | None = None
    mending: bool = False


class StreamCancel(msgspec.Struct, tag="stream_cancel", tag_field="type"):
    """Both directions of a stream are over. Counted."""

    request_id: str
    reason: str


class GoAway(msgspec.Struct, tag="goaway", tag_field="type"):
    """No new streams here. Not counted."""

    reason: _Words
    retry_after: _Seconds = 0.0


class ErrorMessage(msgspec.Struct, tag="error", tag_field="type"):
    """From the server; the connection closes after it."""

    code: _Short
    message: _Words = ""
    retry_after: _Seconds | None = None


Message: TypeAlias = (
    Hello
    | Connected
    | Settings
    | Ping
    | Pong
    | StreamCancel
    | GoAway
    | ErrorMessage
    | Probe
    | Probed
    | Permit
    | Permitted
)


class Open(msgspec.Struct):
    """A visitor's request.

    Attributes:
        request_id: 1 to 128 visible ASCII characters.
        path: path and query exactly as the visitor sent them, the tunnel's prefix taken off; begins with "/".
        client: the visitor's address, for people: at most 256 visible ASCII characters, none when it is not known.
    """

    request_id: str
    method: str
    path: str
    headers: Headers
    client: str = ""


class Head(msgspec.Struct):
    """A service's answer, without its body. 1xx may come before the final one."""

    status: int
    headers: Headers


_encoder = msgspec.json.Encoder()
_text: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_any = msgspec.json.Decoder(dict[str, Any])
_open = msgspec.json.Decoder(Open)
_head = msgspec.json.Decoder(Head)
_trailers = msgspec.json.Decoder(Headers)
_TYPES = frozenset(
    {"hello", "connected", "settings", "ping", "pong", "stream_cancel", "goaway", "error", "probe", "probed"}
)
_T = TypeVar("_T")
_MAX_ID = 128
_MAX_CLIENT = 256
_VISIBLE = re.compile(r"[!-~]+").fullmatch

#: Encode any of these shapes as UTF-8 JSON.
encode = _encoder.encode


def decode_text(payload: bytes) -> Message | None:
    """A text message; None when its type is one that this version does not know (a newer peer).

    Raises:
        RemoteError: ``protocol_error``: not JSON, not an object with a `type`, a field missing or of a wrong
            shape.
    """
    try:
        return _text.decode(payload)
    except (ValueError, RecursionError) as error:
        fault = error
    try:
        kind = _any.decode(payload).get("type")
    except (ValueError, RecursionError):
        kind = None
    if isinstance(kind, str) and kind not in _TYPES:
        return None
    raise RemoteError("protocol_error", f"a text message that cannot be read: {fault}") from fault


def decode_open(payload: bytes) -> Open:
    """The payload of an OPEN; raises RemoteError ``protocol_error``."""
    request = _decode(_open, payload, "OPEN")
    plain = _is_plain(payload)
    request_id = request.request_id
    if len(request_id) > _MAX_ID or not ((plain and request_id.isalnum()) or _VISIBLE(request_id)):
        raise RemoteError("protocol_error", "an OPEN whose request id is not 1 to 128 visible ASCII characters")
    client = request.client
    if client and (len(client) > _MAX_CLIENT or not _is_visible(client)):
        raise RemoteError("protocol_error", "an OPEN whose client address cannot be")
    if not plain:
        _check_latin1("OPEN", request.headers, request.method, request.path)
    return request


@lru_cache(1024)
def _is_visible(text: str) -> bool:
    """Whether it is visible ASCII alone; remembered, so for short texts that come again."""
    return _VISIBLE(text) is not None


def decode_head(payload: bytes) -> Head:
    """The payload of a HEAD; raises RemoteError ``protocol_error``."""
    head = _decode(_head, payload, "HEAD")
    if not 100 <= head.status <= 999:
        raise RemoteError("protocol_error", f"a HEAD with status {head.status}")
    if not _is_plain(payload):
        _check_latin1("HEAD", head.headers)
    return head


def decode_trailers(payload: bytes) -> Headers:
    """The payload of an END, which may be empty; raises RemoteError ``protocol_error``."""
    if not payload:
        return []
    trailers = _decode(_trailers, payload, "END")
    if not _is_plain(payload):
        _check_latin1("END", trailers)
    return trailers


def _is_plain(payload: bytes) -> bool:
    """All of its text is ASCII, told without looking at each string."""
    return payload.isascii() and payload.find(b"\\u") < 0  # `in` would try the bytes as a number first, and cost more


def _check_latin1(what: str, headers: Headers, *texts: str) -> None:
    for text in (*texts, *(part for pair in headers for part in pair)):
        if not text.isascii() and max(text) > "\xff":
            raise RemoteError("protocol_error", f"{what} with text that is not latin-1")


def _decode(decoder: msgspec.json.Decoder[_T], payload: bytes, what: str) -> _T:
    try:
        return decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        raise RemoteError("protocol_error", f"{what} that cannot be read: {error}") from error
