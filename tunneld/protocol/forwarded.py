"""What is said of visitors' addresses: X-Forwarded-* and Forwarded (RFC 7239), read and written."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

__all__ = ["client_address", "continued", "fresh", "normal_address", "outer_prefix", "valid_host"]

_MAX_HOPS = 64  # hops looked at, from the nearest
_HOST = re.compile(r"(?:[0-9A-Za-z._~-]+|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?").fullmatch
_PLAIN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_PAIR = re.compile(
    r"[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=(?:\"((?:[^\"\\]|\\.)*+)\"|([!#$%&'*+\-.^_`|~0-9A-Za-z]+))[ \t]*([;,]|$)"
).match
# Each octet can match in one way only: whoever sends a long one that is none must not keep the process busy. None has a
# semicolon, behind which the Path of a cookie would end and another attribute begin.
_PREFIX = re.compile(r"/(?:[0-9A-Za-z._~%!$&'()*+,=:@-]+(?:/[0-9A-Za-z._~%!$&'()*+,=:@-]+)*/?)?").fullmatch


@lru_cache(512)
def _valid_host(value: str) -> bool:
    match = _HOST(value)
    if match is None or (match[2] and int(match[2]) > 65535):
        return False
    return match[1] is None or (normal_address(match[1]) is not None and ":" in match[1])


def valid_host(value: str) -> bool:
    """Whether this is a host with an optional port: a name, an IPv4 address or an IPv6 address in brackets."""
    return 0 < len(value) <= 262 and _valid_host(value)


@lru_cache(1024)
def _parse_address(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def normal_address(text: str) -> str | None:
    """An IP address as it is compared and shown; None when `text` is none.

    A port, brackets and a zone are taken off, and an IPv4 address inside IPv6 (``::ffff:192.0.2.1``) becomes IPv4.
    """
    if not text or len(text) > 80:
        return None
    if text[0] == "[":
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return _parse_address(text)


def _quoted(text: str) -> str:
    """A value of a Forwarded pair: as it is when it is a token, else a quoted string."""
    return text if _PLAIN(text) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _node(address: str) -> str:
    """An address as the ``for`` of Forwarded names it; ``unknown`` for an empty one."""
    if ":" in address and _parse_address(address) is not None:
        return f'"[{address}]"'
    return _quoted(address or "unknown")


def _element(address: str, scheme: str, host: str) -> str:
    return (
        f"for={_node(address)};host={_quoted(host)};proto={scheme}" if host else f"for={_node(address)};proto={scheme}"
    )


def _port(host: str, scheme: str) -> str:
    """The port that the host names, or the scheme's."""
    _, colon, port = host.rpartition(":")
    return port if colon and port.isdigit() else "443" if scheme == "https" else "80"


@lru_cache(512)
def fresh(client: str, scheme: str, host: str, prefix: str) -> tuple[tuple[str, str], ...]:
    """The headers of a visitor of whom nobody has said anything yet."""
    return tuple(_pairs(client or "unknown", scheme, host, _port(host, scheme), prefix, _element(client, scheme, host)))


def _pairs(addresses: str, scheme: str, host: str, port: str, prefix: str, forwarded: str) -> list[tuple[str, str]]:
    pairs = [("X-Forwarded-For", addresses), ("X-Forwarded-Proto", scheme)]
    if host:
        pairs.append(("X-Forwarded-Host", host))
    pairs.append(("X-Forwarded-Port", port))
    if prefix:
        pairs.append(("X-Forwarded-Prefix", prefix))
    pairs.append(("Forwarded", forwarded))
    return pairs


def _members(values: list[str]) -> list[str]:
    """The members of a comma-separated list, several headers taken as one."""
    return [text for value in values for member in value.split(",") if (text := member.strip(" \t"))]


def _elements(values: list[str]) -> list[dict[str, str]] | None:
    """The elements of Forwarded, their names in lower case and their values unquoted; None when malformed."""
    text = ",".join(values)
    elements: list[dict[str, str]] = []
    element: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _PAIR(text, at)
        if match is None or match[1].lower() in element:
            return None
        value = match[3] if match[3] is not None else re.sub(r"\\(.)", r"\1", match[2])
        element[match[1].lower()] = value
        at = match.end()
        if match[4] != ";":
            elements.append(element)
            element = {}
    return None if element or text.endswith(",") else elements


def _same(node: str, address: str) -> bool:
    return (normal_address(node) or node.lower()) == (normal_address(address) or address.lower())


def continued(
    said: dict[str, list[str]], *, client: str, peer: str, scheme: str, host: str, prefix: str
) -> list[tuple[str, str]]:
    """The headers of a visitor that a trusted proxy has already spoken of, with the proxy as one more hop.

    X-Forwarded-For goes before Forwarded: a proxy that knows only the former lets a visitor's own Forwarded through,
    so one that names other addresses is made anew.

    Args:
        said: values by lower-case name; ``x-real-ip`` is passed on only when it names `client`.
        client: the visitor's address.
        peer: the proxy's address; empty when it has none (a Unix socket).
        scheme: of the proxy's connection to us, unless it says another.
        host: of its request, unless it names another.
        prefix: what we took off the path, put after what it took off.
    """
    scheme = _last(said, "x-forwarded-proto", lambda text: text.lower() in _SCHEMES).lower() or scheme
    host_said = _last(said, "x-forwarded-host", valid_host)
    elements = _elements(said.get("forwarded", []))
    chain = _members(said.get("x-forwarded-for", []))
    if not chain:
        chain = [element.get("for", "unknown") for element in elements or []]
    elif elements is not None and (
        len(elements) != len(chain) or not all(map(_same, (e.get("for", "") for e in elements), chain))
    ):
        elements = None
    if elements and "x-forwarded-proto" not in said and elements[-1].get("proto", "").lower() in _SCHEMES:
        scheme = elements[-1]["proto"].lower()
    if elements and not host_said and valid_host(elements[-1].get("host", "")):
        host_said = elements[-1]["host"]
    host = host_said or host
    if elements:
        forwarded = ", ".join([*said["forwarded"], _element(peer, scheme, host)])
    else:
        forwarded = ", ".join(_element(normal_address(a) or a, scheme, host) for a in [*chain, peer])
    port = _last(said, "x-forwarded-port", lambda text: text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536)
    outer = outer_prefix(said.get("x-forwarded-prefix", []))
    addresses = ", ".join([*chain, peer] if peer else chain or ["unknown"])
    pairs = _pairs(addresses, scheme, host, port or _port(host, scheme), outer + prefix, forwarded)
    real = said.get("x-real-ip", [])
    if len(real) == 1 and client and normal_address(real[0]) == client:
        pairs.append(("X-Real-IP", client))
    return pairs


_SCHEMES = frozenset({"http", "https"})


def outer_prefix(said: list[str]) -> str:
    """What a trusted proxy took off the path before we got it, out of its X-Forwarded-Prefix; empty for nothing."""
    members = _members(said)
    return members[-1].rstrip("/") if members and _PREFIX(members[-1]) else ""


def _last(said: dict[str, list[str]], name: str, valid: Callable[[str], bool]) -> str:
    """The last member of a header, which the peer itself said, when it is valid; else empty."""
    members = _members(said.get(name, []))
    return members[-1] if members and valid(members[-1]) else ""


def client_address(headers: Iterable[tuple[str, str]], peer: str, is_trusted: Callable[[str], bool]) -> str:
    """The visitor's address: the nearest one that is not a trusted proxy's.

    Args:
        headers: of the visitor's request.
        peer: the address at the other end of its connection; anything that is no address (a Unix socket) is passed
            to `is_trusted` as it is.
        is_trusted: whether an address is a trusted proxy's. What an untrusted one says is not looked at.

    Returns:
        An IP address without port, brackets or zone; `peer` as it is when it is none and nothing better is known.
    """
    nearest = normal_address(peer) or peer
    if not is_trusted(nearest):
        return nearest
    chain: list[str] = []
    forwarded: list[str] = []
    for name, value in headers:
        if len(name) == 15 and name.lower() == "x-forwarded-for":
            chain.append(value)
        elif len(name) == 9 and name.lower() == "forwarded":
            forwarded.append(value)
    if chain:
        hops = _members(chain)
    elif forwarded:
        hops = [element.get("for", "") for element in _elements(forwarded) or []]
    else:
        return nearest
    for hop in reversed(hops[-_MAX_HOPS:]):
        address = normal_address(hop)
        if address is None:
            break
        nearest = address
        if not is_trusted(address):
            break
    return nearest
