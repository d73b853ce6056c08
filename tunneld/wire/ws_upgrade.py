"""The upgrade of a WebSocket that passes through, a hop at a time (RFC 6455 section 4).

Key and Accept belong to one hop, and extensions are offered to nobody; the subprotocol is between the two who talk, and
everything else of both heads too.
"""

from __future__ import annotations

import base64
import binascii
import os

from websockets.utils import accept_key

from tunneld.errors import VisitorError
from tunneld.protocol.headers import BadHeader, Headers, get_all, lower
from tunneld.protocol.messages import Open
from tunneld.protocol.websockets import asks_for_websocket
from tunneld.wire.http1 import RequestHead

__all__ = [
    "VERSION",
    "Asked",
    "asked",
    "checked_answer",
    "is_upgrade",
    "new_key",
    "offered",
    "request_fields",
    "upgrade_fields",
]

VERSION = "13"
_KEY = "sec-websocket-key"
_ACCEPT = "sec-websocket-accept"
_PROTOCOL = "sec-websocket-protocol"
_VERSION = "sec-websocket-version"
_EXTENSIONS = "sec-websocket-extensions"
#: What a request's head has of this hop alone.
_OF_HOP = frozenset((_KEY, _EXTENSIONS, "connection", "upgrade"))


class Asked:
    """An upgrade that a visitor asked for, and that can be given."""

    __slots__ = ("_accept", "_protocols")

    def __init__(self, key: str, protocols: list[str]) -> None:
        self._accept = accept_key(key)
        self._protocols = protocols

    def answer(self, headers: Headers) -> Headers:
        """The headers of the visitor's 101.

        Args:
            headers: of the service's, with those of the hop before taken out or not.

        Raises:
            BadHeader: the service chose what was not offered.
        """
        others, protocol = checked_answer(headers, self._protocols)
        mine = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", self._accept)]
        if protocol is not None:
            mine.append(("Sec-WebSocket-Protocol", protocol))
        return [*others, *mine]


def asked(head: RequestHead) -> Asked | None:
    """The WebSocket that a request asks for; None when it asks for none, and its Upgrade may be passed over.

    Raises:
        VisitorError: ``bad_upgrade``, ``websocket_version``: it asks as no client may.
    """
    if head.method != "GET" or head.version != "1.1" or head.length or not asks_for_websocket(head.headers):
        return None
    if get_all(head.headers, _VERSION) != [VERSION]:
        raise VisitorError("websocket_version")
    keys = get_all(head.headers, _KEY)
    if len(keys) != 1 or not _is_key(keys[0]):
        raise VisitorError("bad_upgrade", "Sec-WebSocket-Key is not sixteen bytes in base64, once.")
    return Asked(keys[0], offered(head.headers))


def _is_key(value: str) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def offered(headers: Headers) -> list[str]:
    """The subprotocols that a request names, in order."""
    return [
        name for value in get_all(headers, _PROTOCOL) for member in value.split(",") if (name := member.strip(" \t"))
    ]


def request_fields(headers: Headers) -> Headers:
    """What an OPEN says of an upgrade: the request's own headers without the hop's, and that it is one."""
    kept = [pair for pair in headers if lower(pair[0]) not in _OF_HOP]
    return [*kept, ("Upgrade", "websocket"), ("Connection", "Upgrade")]


def is_upgrade(request: Open) -> bool:
    """Whether an OPEN, its direction not ended, asks for a WebSocket."""
    return request.method == "GET" and asks_for_websocket(request.headers)


def upgrade_fields(headers: Headers, key: str) -> Headers:
    """The headers of the request to a service, with those of the hop before taken out or not."""
    kept = [pair for pair in headers if lower(pair[0]) not in _OF_HOP and lower(pair[0]) != _VERSION]
    return [
        *kept,
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", VERSION),
        ("Sec-WebSocket-Key", key),
    ]


def new_key() -> str:
    """A Sec-WebSocket-Key."""
    return base64.b64encode(os.urandom(16)).decode()


def checked_answer(headers: Headers, protocols: list[str], *, key: str | None = None) -> tuple[Headers, str | None]:
    """What of a 101's headers goes on, and the subprotocol it chose.

    Args:
        protocols: those that were offered.
        key: the request's; None: this hop's Accept was checked before.

    Raises:
        BadHeader: no client may take this answer (section 4.1).
    """
    if key is not None:
        if get_all(headers, _ACCEPT) != [accept_key(key)]:
            raise BadHeader("its Sec-WebSocket-Accept does not answer the key")
        if not asks_for_websocket(headers):
            raise BadHeader("it does not say that it upgrades to a WebSocket")
    if get_all(headers, _EXTENSIONS) not in ([], [""]):
        raise BadHeader("it takes an extension that was not offered")
    chosen = get_all(headers, _PROTOCOL)
    if len(chosen) > 1 or (chosen and chosen[0] not in protocols):
        raise BadHeader("it takes a subprotocol that was not offered")
    out = (_ACCEPT, _PROTOCOL, _EXTENSIONS, "upgrade", "connection")
    return [pair for pair in headers if lower(pair[0]) not in out], chosen[0] if chosen else None
