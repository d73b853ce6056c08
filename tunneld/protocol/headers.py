"""Header rules of a reverse proxy, both ways (RFC 9110 7.6.1, RFC 7239, CONTRACT "Public addresses").

Headers are a list of (name, value) pairs of latin-1 text, order and case kept. This is the door to the rooms behind
it: `fields` (names and octets), `forwarded` (visitors' addresses) and `answers` (what a service says of itself).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tunneld.protocol.answers import from_service, to_visitor
from tunneld.protocol.fields import (
    HOP_BY_HOP,
    OUT,
    BadHeader,
    Headers,
    Names,
    content_length,
    encode_head,
    get,
    get_all,
    hop_by_hop,
    lower,
    lower_names,
    one_length,
    without_named,
)
from tunneld.protocol.forwarded import client_address, continued, fresh, normal_address, valid_host

__all__ = [
    "BadHeader",
    "Headers",
    "accepts_event_stream",
    "client_address",
    "content_length",
    "encode_head",
    "from_service",
    "get",
    "get_all",
    "hop_by_hop",
    "is_encoded",
    "is_event_stream",
    "lower",
    "lower_names",
    "normal_address",
    "one_length",
    "path_has_dot_segment",
    "prefers_html",
    "to_service",
    "to_visitor",
    "valid_host",
    "valid_target",
    "without_named",
]


def _media_type(value: str) -> str:
    return value.partition(";")[0].strip(" \t").lower()


def is_event_stream(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether Content-Type is ``text/event-stream``, whatever its parameters."""
    value = get(headers, "content-type")
    return value is not None and "event-stream" in value.lower() and _media_type(value) == "text/event-stream"


def is_encoded(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether Content-Encoding names a coding other than ``identity``."""
    return any(_media_type(value) not in ("", "identity") for value in get_all(headers, "content-encoding"))


def _quality(params: str) -> float:
    """The weight among a media range's parameters; 1 without one, 0 for one that is no number."""
    for param in params.split(";"):
        name, _, value = param.partition("=")
        if name.strip(" \t") in ("q", "Q"):
            value = value.strip(" \t")
            return float(value) if re.fullmatch(r"[01](?:\.[0-9]{0,3})?", value) else 0.0
    return 1.0


def accepts_event_stream(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether Accept names ``text/event-stream`` itself (a wildcard does not count) with a weight above 0."""
    for value in get_all(headers, "accept"):
        if "event-stream" in value.lower():
            for member in value.split(","):
                kind, _, params = member.partition(";")
                if _media_type(kind) == "text/event-stream" and _quality(params) > 0:
                    return True
    return False


def prefers_html(accept: str) -> bool:
    """Whether HTML is named in Accept before any JSON of the same or a higher weight; a wildcard asks for neither."""
    best, html = 0.0, False
    for member in accept.split(","):
        kind, _, params = member.partition(";")
        kind = _media_type(kind)
        if kind in ("text/html", "application/xhtml+xml", "application/json", "application/problem+json"):
            weight = _quality(params)
            if weight > best:
                best, html = weight, kind.endswith(("html", "xhtml+xml"))
    return html


# -- addresses and targets -----------------------------------------------------------------------------------

_TARGET = re.compile(r"/[\x21\x22\x24-\x7e\x80-\xff]*").fullmatch
_DOTS = re.compile(r"(?:[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?=$|[/\\;]|%2f|%5c|%3b)", re.IGNORECASE | re.DOTALL).search


def path_has_dot_segment(path: str) -> bool:
    """Whether a segment before the query is ``.`` or ``..``, plain or percent-encoded, as any service might see it.

    ``%2F``, a backslash and ``%5C`` count as separators too, and path parameters (``..;x``) are looked past:
    services differ in what they decode before they resolve.
    """
    if "/." not in path and "%" not in path and "\\" not in path:
        return False
    return _DOTS(path.partition("?")[0]) is not None


def valid_target(path: str) -> bool:
    """Whether this is an origin-form target: begins with ``/``; no space, control octet or fragment."""
    return _TARGET(path) is not None


# -- the visitor's request, for the service -------------------------------------------------------------------

_FORWARDED = frozenset(
    {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix"}
    | {"x-forwarded-proto", "x-real-ip"}
)


def _request_kind(name: str) -> str:
    """What to do with a visitor's header: empty, pass it on; `OUT`; else the name of its own rule."""
    low = name.lower()
    if low in ("accept-encoding", "connection", "te") or low in _FORWARDED:
        return low
    # CGI, WSGI and their kind take "_" for "-": such a name must not speak for the one with dashes.
    dashed = low.replace("_", "-")
    if dashed in HOP_BY_HOP or dashed == "host" or dashed.startswith(("x-tunnel-", "x-forwarded-")):
        return OUT
    if dashed != low and (dashed in _FORWARDED or dashed == "content-length"):
        return OUT
    return ""


_REQUEST = Names(_request_kind)


def to_service(
    headers: Sequence[tuple[str, str]],
    *,
    client: str,
    peer: str,
    trusted: bool,
    scheme: str,
    host: str,
    prefix: str,
    identity: bool,
) -> Headers:
    """A visitor's request headers as the service is to get them.

    Hop-by-hop headers, ``Host`` (the agent sets the service's own) and ``X-Tunnel-*`` are out. ``TE: trailers`` says
    that the visitor reads trailers, and they are passed on: it is said again, without other codings.

    Args:
        headers: as the visitor sent them.
        client: the visitor's address, as `client_address` gives it; empty when there is none (a Unix socket).
        peer: the address at the other end of the visitor's connection; empty when there is none.
        trusted: the peer is a trusted proxy: what it says of the visitor is kept, and continued by one hop.
        scheme: ``http`` or ``https``, of the listener.
        host: the visitor's Host, already found valid by `valid_host`; empty without one.
        prefix: ``/t/NAME`` that was taken off the path, or empty.
        identity: leave Accept-Encoding out of a request for events (`sse.identity`: they can only be told apart
            unencoded).
    """
    kinds = _REQUEST
    out: Headers = []
    connection: list[str] = []
    said: dict[str, list[str]] = {}
    for pair in headers:
        kind = kinds[pair[0]]
        if not kind:
            out.append(pair)
        elif kind == OUT:
            pass
        elif kind == "connection":
            connection.append(pair[1])
        elif kind == "accept-encoding":
            if not (identity and accepts_event_stream(headers)):
                out.append(pair)
        elif kind == "te" or trusted:
            said.setdefault(kind, []).append(pair[1])
    if connection:
        out = without_named(out, connection)
    if said:
        codings = said.pop("te", None)
        if codings and any(_media_type(c) == "trailers" for value in codings for c in value.split(",")):
            out.append(("TE", "trailers"))
    if said:
        out += continued(said, client=client, peer=peer, scheme=scheme, host=host, prefix=prefix)
    else:
        out += fresh(client, scheme, host, prefix)
    return out
