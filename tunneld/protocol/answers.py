"""What becomes of the addresses, cookies and claims in a service's answer (CONTRACT "Public addresses")."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from tunneld.protocol.fields import HOP_BY_HOP, OUT, Headers, Names, without_named

__all__ = ["for_visitor", "from_service", "to_visitor"]

# Facts about the whole origin, which all tunnels of /t/ share.
_ORIGIN_WIDE = frozenset({"service-worker-allowed", "clear-site-data", "alt-svc", "nel"})


def _answer_kind(name: str) -> str:
    """What to do with a header of an answer: empty, pass it on; `OUT`; else the name of its own rule."""
    low = name.lower()
    if low in ("connection", "location", "content-location", "set-cookie", "refresh") or low in _ORIGIN_WIDE:
        return low
    if low in ("content-length", "x-accel-buffering"):
        return low
    return OUT if low in HOP_BY_HOP or low.startswith("x-tunnel-") else ""


_ANSWER = Names(_answer_kind)
_URL = re.compile(r"(?:https?:)?//([^/?#\\@\s]*)(?=[/?#]|$)", re.IGNORECASE).match
#: Where whoever runs the service reaches it, as no visitor does.
_LOOPBACK = re.compile(
    r"https?://(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?(?=[/?#]|$)", re.IGNORECASE
).match
_REFRESH = re.compile(r"[\d.\s]*[;,]\s*(?:url\s*=\s*)?[\"']?", re.IGNORECASE).match
_DEFAULT_PORT = re.compile(r":(?:80|443)?$")


def _own(url: str, authority: str) -> int:
    """Where the path begins in a URL (its scheme may be left out) that names `authority`; 0 for any other text."""
    match = _URL(url)
    if match is None or not authority:
        return 0
    if _DEFAULT_PORT.sub("", match[1].lower()) != _DEFAULT_PORT.sub("", authority.lower()):
        return 0
    return match.end()


def _relative(url: str, authorities: Iterable[str]) -> str:
    """A whole URL that names one of `authorities` without scheme and authority; anything else as it is."""
    rest = url[max(_own(url, authority) for authority in authorities) :]
    if rest[1:2] in ("/", "\\") or len(rest) == len(url):
        return url  # "//x" alone would name another host
    return rest if rest.startswith("/") else "/" + rest


def _prefixed(path: str, prefix: str) -> str:
    """A path-absolute reference under the prefix, unless it is there already; any other reference as it is."""
    if path[:1] != "/" or path[1:2] in ("/", "\\"):
        return path
    if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/", "?", "#"):
        return path
    return prefix + path


def _location(value: str, prefix: str, authority: str) -> str:
    at = _own(value, authority)
    if not at:
        return _prefixed(value, prefix)
    path = "/" + value[at:].lstrip("/\\")
    return value[:at] + _prefixed(path, prefix)


def for_visitor(url: str, prefix: str, authority: str) -> str:
    """An address of the service's own that stands in its answer's body, as the visitor reaches it.

    A path gets the prefix, unless it has it; so does a whole URL that names our own authority. Of one on loopback the
    path is kept alone: services that are told their address by hand say such, and it is none for a visitor.
    """
    if not prefix and _own(url, authority):
        return url
    match = None if _own(url, authority) else _LOOPBACK(url)
    if match is not None:
        rest = url[match.end() :]
        if rest[1:2] in ("/", "\\"):
            return url  # "//x" alone would name another host
        url = rest if rest.startswith("/") else "/" + rest
    return _location(url, prefix, authority)


def _cookie(value: str, prefix: str) -> str:
    """A Set-Cookie value with its Path under the prefix and no Domain (RFC 6265 5.2)."""
    if ";" not in value:
        return value
    first, *attributes = value.split(";")
    kept = [first]
    for attribute in attributes:
        name, _, text = attribute.partition("=")
        kind = name.strip(" \t").lower()
        if kind == "domain":
            continue
        if kind == "path":
            path = text.strip(" \t")
            if path[:1] == "/":
                attribute = f"{name}={_prefixed('/' + path.lstrip('/'), prefix)}"
        kept.append(attribute)
    return ";".join(kept)


def _refresh(value: str, prefix: str, authority: str) -> str:
    match = _REFRESH(value)
    if match is None:
        return value
    return value[: match.end()] + _location(value[match.end() :], prefix, authority)


def to_visitor(
    headers: Iterable[tuple[str, str]], *, prefix: str, authority: str = "", event_stream: bool = False
) -> Headers:
    """An answer's headers as the visitor is to get them.

    Hop-by-hop headers and ``X-Tunnel-*`` are out. Under a prefix, absolute paths in ``Location``,
    ``Content-Location``, ``Refresh`` and the Path of cookies get it, unless they have it already (a service that
    minds ``X-Forwarded-Prefix``); so do whole URLs that name our own public authority. Cookies lose their Domain,
    and what speaks for the whole origin is taken out. A ``__Host-`` cookie, which may have no Path but ``/``, is
    refused by browsers under a prefix: it is for ``NAME.DOMAIN``.

    Args:
        headers: as they came through the tunnel.
        prefix: ``/t/NAME`` that was taken off the request's path, or empty.
        authority: host and port by which the visitor reached us; empty when not known.
        event_stream: the answer is passed on event by event: Content-Length is out, ``X-Accel-Buffering: no`` in.
    """
    kinds = _ANSWER
    out: Headers = []
    connection: list[str] = []
    for pair in headers:
        name, value = pair
        kind = kinds[name]
        if not kind:
            out.append(pair)
        elif kind == OUT:
            pass
        elif kind == "connection":
            connection.append(value)
        elif kind in ("content-length", "x-accel-buffering"):
            if not event_stream:
                out.append(pair)
        elif not prefix:
            out.append(pair)
        elif kind == "set-cookie":
            out.append((name, _cookie(value, prefix)))
        elif kind == "refresh":
            out.append((name, _refresh(value, prefix, authority)))
        elif kind in ("location", "content-location"):
            out.append((name, _location(value, prefix, authority)))
    if connection:
        out = without_named(out, connection)
    if event_stream:
        out.append(("X-Accel-Buffering", "no"))
    return out


def from_service(headers: Iterable[tuple[str, str]], *, authorities: Collection[str]) -> Headers:
    """An answer's headers as the agent sends them up: what the service says of its own address made relative.

    Services that build whole URLs out of the Host they were given (``http://127.0.0.1:9000/items/``) would send
    visitors to their own machine: ``Location``, ``Content-Location`` and ``Refresh`` that name such an authority keep
    their path alone, which is right under any public address. Hop-by-hop headers and ``X-Tunnel-*`` are out.

    Args:
        headers: as the service sent them.
        authorities: the Host that the service was given, and where it is reached; one at least.
    """
    kinds = _ANSWER
    out: Headers = []
    connection: list[str] = []
    for pair in headers:
        kind = kinds[pair[0]]
        if kind == "connection":
            connection.append(pair[1])
        elif kind in ("location", "content-location"):
            out.append((pair[0], _relative(pair[1], authorities)))
        elif kind == "refresh" and (match := _REFRESH(pair[1])):
            rest = pair[1][match.end() :]
            out.append((pair[0], pair[1][: match.end()] + _relative(rest, authorities)))
        elif kind != OUT:
            out.append(pair)
    if connection:
        out = without_named(out, connection)
    return out
