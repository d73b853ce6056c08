"""The older dialect, v2: JSON text messages both ways, and its rules for headers, paths and names. Sans I/O.

What a client says is read leniently where nothing is lost by it (an absent body, numbers as header values, half a
surrogate pair), and never by guessing: a message that names a request and is not right is `Broken`, so that it costs
that request alone; anything else that cannot be read ends the connection (PROTOCOL.md, "v2").
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from tunneld.errors import RemoteError
from tunneld.protocol.headers import Headers, lower
from tunneld.protocol.messages import Open

__all__ = [
    "ApiKey",
    "Broken",
    "ClientMessage",
    "LegacyPing",
    "LegacyPong",
    "Response",
    "StreamChunk",
    "StreamEnd",
    "answer_headers",
    "decode",
    "encode_cancel",
    "encode_connected",
    "encode_error",
    "encode_ping",
    "encode_pong",
    "encode_request",
    "is_stream",
    "wire_path",
]

_Id: TypeAlias = Annotated[str, Meta(max_length=256)]
_MAX_STAMP = 128  # characters of a timestamp that is echoed
_MAX_KEY = 4096


# -- what a client says --------------------------------------------------------------------------------------


class Response(msgspec.Struct, tag="response", tag_field="type", frozen=True):
    """The whole answer to an ordinary request, or the refusal of a stream."""

    request_id: _Id
    status_code: int
    headers: dict[str, Any] | None = None
    body: str | None = None


class StreamChunk(msgspec.Struct, tag="stream_chunk", tag_field="type", frozen=True):
    """A piece of a stream's body."""

    request_id: _Id
    body: str | None = None


class StreamEnd(msgspec.Struct, tag="stream_end", tag_field="type", frozen=True):
    """A stream's clean end."""

    request_id: _Id


class LegacyPing(msgspec.Struct, tag="ping", tag_field="type", frozen=True):
    """The client's own ping; the pong echoes what it is marked with."""

    timestamp: Any = None


class LegacyPong(msgspec.Struct, tag="pong", tag_field="type", frozen=True):
    """The echo of one of our pings."""

    timestamp: Any = None


class ApiKey(msgspec.Struct, tag="register_api_key", tag_field="type", frozen=True):
    """A key by which visitors of this tunnel may be known. A secret."""

    api_key: Annotated[str, Meta(min_length=1, max_length=_MAX_KEY)]


class Broken(msgspec.Struct, frozen=True):
    """A message that names a request and cannot be read.

    Attributes:
        why: for the log; holds nothing of what the message carries.
    """

    request_id: str
    why: str


ClientMessage: TypeAlias = Response | StreamChunk | StreamEnd | LegacyPing | LegacyPong | ApiKey | Broken

_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(
    Response | StreamChunk | StreamEnd | LegacyPing | LegacyPong | ApiKey
)
_any = msgspec.json.Decoder()
_TYPES = frozenset({"response", "stream_chunk", "stream_end", "ping", "pong", "register_api_key"})
# Each escape of a JSON string: a surrogate pair; half of one; any other.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def decode(payload: bytes) -> ClientMessage | None:
    """A text message; None for a type that is not of the dialect, which is ignored.

    Raises:
        RemoteError: ``protocol_error``: not a JSON object with a `type`, or one that cannot be read and names no
            request.
    """
    try:
        return _decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        fault = error
    if b"\\u" in payload:
        # Half a surrogate pair is no Unicode text; JavaScript writes one where it cut a character in two.
        whole = _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], payload)
        if whole != payload:
            return decode(whole)
    return _second_look(payload, fault)


def _second_look(payload: bytes, fault: Exception) -> Broken | None:
    """What a message is that has not the shape of its type, or is no JSON."""
    try:
        said = _any.decode(payload)
    except (ValueError, RecursionError) as error:
        raise RemoteError("protocol_error", f"a message that is no JSON: {_place(error)}") from error
    if not isinstance(said, dict) or not isinstance(said.get("type"), str):
        raise RemoteError("protocol_error", "a message that is no object with a type")
    kind, request_id = said["type"], said.get("request_id")
    if kind not in _TYPES:
        return None
    why = f"a {kind} that cannot be read: {_place(fault)}"
    if isinstance(request_id, str) and kind in ("response", "stream_chunk", "stream_end"):
        return Broken(request_id, why)
    raise RemoteError("protocol_error", why)


def _place(fault: Exception) -> str:
    """What msgspec says of a fault: shapes and places, never values."""
    return str(fault)[:200]


# -- what the server says ------------------------------------------------------------------------------------


class _Connected(msgspec.Struct, tag="connected", tag_field="type"):
    tunnel_id: str
    public_url: str


class _Request(msgspec.Struct, tag="request", tag_field="type"):
    request_id: str
    method: str
    path: str
    headers: dict[str, str]
    query_params: dict[str, str]
    tunnel_id: str
    body: str | msgspec.UnsetType = msgspec.UNSET


class _Stamped(msgspec.Struct):
    type: str
    timestamp: Any


class _Cancel(msgspec.Struct, tag="stream_cancel", tag_field="type"):
    request_id: str


class _Error(msgspec.Struct, tag="error", tag_field="type"):
    message: str


_encode = msgspec.json.Encoder().encode


def encode_connected(tunnel_id: str, public_url: str) -> bytes:
    """The first message: who the tunnel is."""
    return _encode(_Connected(tunnel_id, public_url))


def encode_request(request: Open, tunnel_id: str, body: str) -> bytes:
    """A visitor's request, whole.

    Args:
        body: empty: there is none.
    """
    path = wire_path(request.path)
    query = parse_qsl(path.partition("?")[2], keep_blank_values=True, encoding="utf-8", errors="replace")
    headers = _request_headers(request.headers, len(body.encode()) if body else 0)
    said = _Request(request.request_id, request.method, path, headers, dict(query), tunnel_id)
    if body:
        said.body = body
    return _encode(said)


def encode_ping(timestamp: str) -> bytes:
    """Our own ping."""
    return _encode(_Stamped("ping", timestamp))


def encode_pong(timestamp: object, now: str) -> bytes:
    """The answer to a ping: what it was marked with, or the time where that is nothing or too much to echo."""
    if isinstance(timestamp, str):
        fits = len(timestamp) <= _MAX_STAMP
    else:
        fits = isinstance(timestamp, int | float) and abs(timestamp) < 2**63
    return _encode(_Stamped("pong", timestamp if fits else now))


def encode_cancel(request_id: str) -> bytes:
    """A request's visitor takes no more of its answer."""
    return _encode(_Cancel(request_id))


def encode_error(message: str) -> bytes:
    """Why the connection ends; it closes after this."""
    return _encode(_Error(message))


# -- paths and headers ---------------------------------------------------------------------------------------

_NOT_ASCII = re.compile(r"[\x80-\xff]")
# Where a joined Set-Cookie has the next one: "," and a name with "=", which no date in an Expires has behind its comma.
_NEXT_COOKIE = re.compile(r",[ \t]*(?=[!#$%&'*+\-.^_`|~0-9A-Za-z]+=)")
_NOT_IN = frozenset({"accept-encoding", "content-length", "host", "transfer-encoding"})
# The body was decoded to text by the client: what spoke of its octets on the service's side is no longer true.
_NOT_OUT = frozenset({"content-encoding", "content-length", "transfer-encoding"})


def wire_path(path: str) -> str:
    """Path and query as they stand in a `request`: octets beyond ASCII percent-encoded."""
    return path if path.isascii() else _NOT_ASCII.sub(lambda match: f"%{ord(match[0]):02X}", path)


def is_stream(method: str, path: str) -> bool:
    """Whether both sides treat the request as a stream.

    Args:
        path: with its query, as `wire_path` writes it.
    """
    return method == "GET" and "/sse" in path


def _request_headers(headers: Headers, length: int) -> dict[str, str]:
    """A visitor's headers as one object: names in lower case, several values of one name joined."""
    said: dict[str, str] = {}
    for name, value in headers:
        kind = lower(name)
        if kind == "content-length" and value.strip(" \t0") == "":
            said[kind] = "0"
        elif kind in said:
            said[kind] += ("; " if kind == "cookie" else ", ") + value
        elif kind and kind not in _NOT_IN:
            said[kind] = value
    if length:
        said["content-length"] = str(length)
    return said


def answer_headers(headers: dict[str, Any] | None, *, has_body: bool) -> Headers:
    """The headers of a `response` as pairs of latin-1 text, without those that no longer hold.

    Args:
        headers: as the client said them.
        has_body: False for an answer without one (to HEAD, 304), whose Content-Length speaks of another.

    Raises:
        ValueError: a value that is no text, number or list of these.
    """
    out: Headers = []
    for name, value in (headers or {}).items():
        kind = lower(name)
        if kind in _NOT_OUT and (has_body or kind != "content-length"):
            continue
        for text in _texts(value):
            if kind == "set-cookie":
                out += [(name, cookie.strip(" \t")) for cookie in _NEXT_COOKIE.split(text)]
            else:
                out.append((name, text))
    return out


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value if value.isascii() or max(value) <= "\xff" else value.encode().decode("latin-1")]
    if value is None:
        return []
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, int | float):
        return [str(value)[:64]]
    if isinstance(value, list):
        return [text for one in value if not isinstance(one, list) for text in _texts(one)]
    raise ValueError("a header's value that is neither text, a number, nor a list of these")
