"""Header fields one by one: names, octets on the wire, and which of them end at a hop (RFC 9110 5 and 7.6.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

__all__ = [
    "HOP_BY_HOP", "OUT", "BadHeader", "Headers", "Names", "content_length", "encode_head", "get", "get_all",
    "hop_by_hop", "lower", "lower_names", "one_length",
    "without_named",
]  # fmt: skip

Headers = list[tuple[str, str]]

#: What a rule of `Names` says of a header that is never passed on.
OUT = "-"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
HOP_BY_HOP = frozenset(
    {
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
# A sender must not name these in Connection; one that does would change the framing or the address of the message.
_NEVER_NAMED = frozenset({"content-length", "host", "cache-control", "close", "keep-alive", "te", "upgrade", ""})
_KNOWN = (
    "Accept Accept-Encoding Accept-Language Accept-Ranges Access-Control-Allow-Origin Age Authorization Cache-Control "
    "Connection Content-Disposition Content-Encoding Content-Length Content-Type Cookie DNT Date ETag Expect Expires "
    "Forwarded Host If-Match If-Modified-Since If-None-Match Keep-Alive Last-Event-ID Last-Modified Link Location "
    "MCP-Protocol-Version Mcp-Session-Id Origin Pragma Priority Range Referer Retry-After Sec-Fetch-Dest "
    "Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-User Server Set-Cookie Strict-Transport-Security TE Trailer "
    "Transfer-Encoding Upgrade Upgrade-Insecure-Requests User-Agent Vary Via WWW-Authenticate X-Accel-Buffering "
    "X-Content-Type-Options X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Prefix X-Forwarded-Proto "
    "X-Frame-Options X-Powered-By X-Real-IP X-Request-ID"
)


class BadHeader(ValueError):
    """A head that cannot be passed on: its framing or its octets are not those of HTTP."""


class Names(dict[str, str]):
    """What `decide` says of a header's name, remembered. Bounded in entries and in the length of each."""

    __slots__ = ("_decide",)

    def __init__(self, decide: Callable[[str], str]) -> None:
        super().__init__()
        self._decide = decide
        self._seed()

    def _seed(self) -> None:
        for name in _KNOWN.split():
            self[name] = self._decide(name)
            self[name.lower()] = self._decide(name)

    def __missing__(self, name: str) -> str:
        said = self._decide(name)
        if len(name) <= 48:
            if len(self) >= 1024:
                self.clear()
                self._seed()
            self[name] = said
        return said


def _lower(name: str) -> str:
    return name.lower() if _TOKEN(name) else ""


_LOWER = Names(_lower)


def lower(name: str) -> str:
    """The name in lower case; empty when it is no token (RFC 9110 5.6.2)."""
    return _LOWER[name]


def lower_names() -> Mapping[str, str]:
    """What `lower` says of each name, by subscription: for loops over many headers. Names that are new are added."""
    return _LOWER


def encode_head(start_line: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """The octets of a head, its empty line included.

    Raises:
        BadHeader: a CR, LF or NUL anywhere, a name that is no token, text that is not latin-1.
    """
    names = _LOWER
    lines = [start_line]
    for name, value in headers:
        if not names[name]:
            raise BadHeader(f"not a header name: {name[:64]!r}")
        lines.append(f"{name}: {value}")
    lines.append("\r\n")
    head = "\r\n".join(lines)
    ends = len(lines)
    if head.count("\r") != ends or head.count("\n") != ends or "\0" in head:
        raise BadHeader("a header holds a line end or a NUL")
    try:
        return head.encode("latin-1")
    except UnicodeEncodeError as error:
        raise BadHeader("a header holds text that is not latin-1") from error


def get(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """The first value of the header whose lower-case name is `name`; None when there is none."""
    names = _LOWER
    for key, value in headers:
        if names[key] == name:
            return value
    return None


def get_all(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    """Every value of the header whose lower-case name is `name`, in order."""
    names = _LOWER
    return [value for key, value in headers if names[key] == name]


def content_length(headers: Iterable[tuple[str, str]]) -> int | None:
    """The length that Content-Length names, in octets; None without one.

    Raises:
        BadHeader: several of them, even equal ones, or one that is not digits alone (RFC 9112 6.3).
    """
    return one_length(get_all(headers, "content-length"))


def one_length(values: list[str]) -> int | None:
    """As `content_length`, of the values that are there."""
    if not values:
        return None
    value = values[0].strip(" \t")
    if len(values) > 1 or not value.isascii() or not value.isdigit() or len(value) > 18:
        raise BadHeader("Content-Length is not one decimal number")
    return int(value)


def _named(values: list[str]) -> set[str]:
    """What Connection names beyond the ordinary, in lower case."""
    names: set[str] = set()
    for value in values:
        if value not in ("keep-alive", "close", "Keep-Alive"):
            names.update(name.strip(" \t").lower() for name in value.split(","))
    return names - _NEVER_NAMED if names else names


def hop_by_hop(headers: Iterable[tuple[str, str]]) -> AbstractSet[str]:
    """The lower-case names that end at this hop: the fixed ones and those that Connection names.

    ``Trailer`` is not among them, since trailers are passed on. ``TE`` is; see `to_service` for what becomes of
    ``TE: trailers``. Content-Length and Host stay whatever Connection says: dropping them would change the message.
    """
    named = _named(get_all(headers, "connection"))
    return HOP_BY_HOP | named if named else HOP_BY_HOP


def without_named(headers: Headers, connection: list[str]) -> Headers:
    """The headers that no value of Connection names; the very list when it names none."""
    named = _named(connection)
    return [pair for pair in headers if _LOWER[pair[0]] not in named] if named else headers
