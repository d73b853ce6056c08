"""What is told of one visitor's request, and what is held for it: the part of an `Exchange` that decides nothing."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from tunneld.protocol.headers import Headers, lower, to_visitor
from tunneld.protocol.messages import Open
from tunneld.protocol.windows import PIECE
from tunneld.server.events import EventBody

if TYPE_CHECKING:
    from tunneld.server.ingress import Ingress
    from tunneld.server.registry import Tunnel
    from tunneld.server.visitors.rules import Grant
    from tunneld.wire.http_server import ServerConnection

__all__ = ["Visit", "passable", "seconds"]

log = logging.getLogger("tunneld.ingress")

#: What is wrong where a request goes over a limit that has no code of its own: to its visitor it is an end like others.
_OVER = {
    "stall": "its visitor takes nothing",
    "min_rate": "its visitor takes too little",
    "memory": "the server holds too much, and of it this has waited the longest",
}

_NO_TRAILER = frozenset(
    {
        "authorization",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "host",
        "set-cookie",
        "trailer",
    }
)


class Visit:
    """A request under way, as operators see it, and the bytes that wait for its visitor.

    Attributes:
        kind: ``sse`` once the answer's Content-Type says so, ``websocket`` once the upgrade was taken, else ``http``.
        path: as the service sees it, with its query.
        client: the visitor's address; empty when it is not known.
        state: ``waiting`` for the tunnel, ``open`` until the answer's head, then ``streaming``; ``recovering`` while
            its event stream is lost, ``kept`` while its visitor may come back; ``done``.
        started: monotonic seconds.
        active: monotonic seconds of the last byte of the answer.
        bytes_in: of the request's body.
        bytes_out: of the answer's body.
        reason: why it ended; empty before.
        grant: what let the visitor in; None: everybody may come.
    """

    __slots__ = (
        "_ahead",
        "_events",
        "_ingress",
        "_owed",
        "_partial",
        "active",
        "bytes_in",
        "bytes_out",
        "client",
        "connection",
        "grant",
        "kind",
        "method",
        "path",
        "reason",
        "request_id",
        "started",
        "state",
        "status",
        "tunnel",
    )

    def __init__(self, ingress: Ingress, connection: ServerConnection, tunnel: Tunnel, request: Open) -> None:
        self._ingress = ingress
        self.connection = connection
        self.tunnel = tunnel
        self.request_id = request.request_id
        self.method = request.method
        self.path = request.path
        self.client = request.client
        self.kind = "http"
        self.state = "open"
        self.status = 0
        self.started = self.active = monotonic()
        self.bytes_in = self.bytes_out = 0
        self.reason = ""
        self.grant: Grant | None = None
        self._events: EventBody | None = None
        self._owed = 0  # bytes whose credit waits until the visitor takes some
        self._ahead = 0  # bytes held for the visitor that no credit goes back for: it did, or they are what pieces cost
        self._partial = 0  # bytes of an event that is not whole yet

    @property
    def events(self) -> int:
        """Events sent to the visitor."""
        return self._events.splitter.events if self._events is not None else 0

    @property
    def last_event_id(self) -> str | None:
        """Of the events sent; None when there is none."""
        return self._events.splitter.last_event_id if self._events is not None else None

    @property
    def stuck(self) -> bool:
        """Bytes wait for the visitor, who takes none at present."""
        return self._owed > 0 or self._ahead > 0

    def _fields(self) -> dict[str, object]:
        path = self.path if self._ingress.log_queries else self.path.partition("?")[0]
        return {
            "tunnel": self.tunnel.name,
            "request_id": self.request_id,
            "reason": self.reason,
            "kind": self.kind,
            "method": self.method,
            "path": path,
            "client": self.client,
            "status": self.status,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "events": self.events,
            "duration_s": round(monotonic() - self.started, 3),
        }

    def over_limit(self, limit: str) -> None:
        """Say which key of `limits` ends it, or its connection: `reason` has one word for them all."""
        extra = {**self._fields(), "reason": "limit", "limit": limit}
        log.warning("The request %s is over limits.%s: %s", self.request_id, limit, _OVER[limit], extra=extra)

    def crowded(self) -> None:
        """The process holds too much, and of those whose visitor is slow this has waited the longest."""
        self.over_limit("memory")
        self.stalled()

    def stalled(self) -> None:
        """The visitor takes nothing, for too long or with too much waiting."""
        raise NotImplementedError

    def held_up(self) -> None:
        """Too much waits, bytes of this request's body among it."""
        raise NotImplementedError

    def cancel(self, reason: str) -> None:
        """End it from this side."""
        raise NotImplementedError

    def shut_out(self) -> None:
        """Who may visit the tunnel has changed, and this visitor may not."""
        self.cancel("operator")

    # -- memory ------------------------------------------------------------------------------------------

    def _owe(self, size: int) -> None:
        """Bytes wait in the visitor's transport."""
        self._owed += size
        self._ahead += PIECE
        self._ingress.holds(self, size + PIECE)

    def _settle(self) -> None:
        self._ingress.released(self, self._owed + self._ahead)
        self._owed = self._ahead = 0

    def _hold_partial(self) -> bool:
        """Count what is held of an event that is not whole; False when that was too much and this has ended."""
        assert self._events is not None
        before, self._partial = self._partial, self._events.splitter.held
        ingress = self._ingress
        ingress.budget.add(self._partial - before)
        if self._partial > before:
            ingress.holders.shed()
            if ingress.budget.over:
                self.over_limit("memory")
                self.cancel("limit")
        return not self.reason

    def _let_go(self) -> None:
        """It is over: nothing is held for it."""
        if self._owed or self._ahead:
            self._settle()
        if self._partial:
            self._ingress.budget.sub(self._partial)
            self._partial = 0
        if self.bytes_in or self.kind == "websocket":  # of which some may wait for the tunnel
            self._ingress.holders.discard(self.held_up)


def passable(trailers: Headers) -> Headers:
    """Trailers that may be passed on: none that frames, routes or authorises a message (RFC 9110, 6.5.1)."""
    return [pair for pair in to_visitor(trailers, prefix="") if lower(pair[0]) not in _NO_TRAILER] if trailers else []


def seconds(value: str | None) -> int | None:
    """What a Retry-After of seconds says; None for any other."""
    return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 9 else None
