"""Connections that ask to become tunnels, and what else is not a visitor's: the addresses of the older dialect."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tunneld.config.server import ListenConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_server import ServerConnection
from tunneld.wire.tls import Certificate

if TYPE_CHECKING:
    from tunneld.server.ingress import Ingress

__all__ = ["ConnectTunnel", "LegacyAddresses", "LegacyCall", "Listener", "TunnelOffer"]


class Listener:
    """What a connection must know of the listener it came by.

    Args:
        tls: visitors speak TLS on it.
    """

    __slots__ = ("scheme", "tunnels", "unix", "visitors")

    def __init__(self, config: ListenConfig, *, tls: bool) -> None:
        self.visitors = "visitors" in config.serve
        self.tunnels = "tunnels" in config.serve
        self.unix = config.unix is not None
        self.scheme = "https" if tls else "http"


class TunnelOffer:
    """A connection that asks to become a tunnel: `take` it, or answer with a `problem`, now or later.

    Attributes:
        client: its address; that which a trusted proxy names, if one stands between.
        token: of a base address ``/v2/TOKEN``, as it came; None: the address had none. A secret.
    """

    __slots__ = ("_connection", "_ingress", "client", "head", "token")

    def __init__(
        self, ingress: Ingress, connection: ServerConnection, head: RequestHead, client: str, token: str | None = None
    ) -> None:
        self._ingress = ingress
        self._connection = connection
        self.head = head
        self.client = client
        self.token = token

    @property
    def closed(self) -> bool:
        """The peer has left, or it was taken or answered."""
        return self._connection.closed or not self._connection.offered

    @property
    def certificate(self) -> Certificate | None:
        """The client certificate that it came with, when the listener's `client_ca` vouches for it."""
        return self._connection.certificate

    def take(self) -> asyncio.Transport:
        """The transport, for `set_protocol`; it may be paused. Not when `closed`."""
        return self._connection.take()

    def problem(self, error: VisitorError, headers: Headers | None = None) -> None:
        """Answer and end the connection; nothing happens when it is `closed`."""
        if not self.closed:
            self._connection.answer_offer()
            self._ingress.answer(self._connection, error, self._ingress.new_id(), self.head.headers, headers)


class ConnectTunnel(Protocol):
    """What the daemon does with a request for ``/tunnel/connect``."""

    def __call__(self, offer: TunnelOffer, head: RequestHead, leftover: bytes) -> None:
        """Take the offer or answer it; `leftover` is input that came behind the head."""


@dataclass(frozen=True, slots=True)
class LegacyCall:
    """A request for an address of the older dialect.

    Attributes:
        address: of who calls; that which a trusted proxy names, if one stands between; empty: not known.
        token: of a base address ``/v2/TOKEN``, as it came; None: the address had none. A secret.
    """

    connection: ServerConnection
    head: RequestHead
    address: str
    token: str | None = field(repr=False)


class LegacyAddresses(Protocol):
    """The addresses of the older dialect (server/legacy/door.py); each call raises VisitorError to be answered with."""

    def admit(self, token: str | None, address: str) -> object:
        """Judge the token of a base address ``/v2/TOKEN``."""

    def register(self, call: LegacyCall) -> None:
        """Serve ``POST /register``."""

    def permit(self, call: LegacyCall) -> None:
        """Serve ``/permissions``."""

    def refuse(self, call: LegacyCall, error: VisitorError) -> None:
        """Answer a registration or a call of ``/permissions`` that is refused."""
