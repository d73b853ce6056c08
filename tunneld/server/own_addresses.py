"""The server's own addresses: where tunnels connect and register, where visitors sign in, and whether it is well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tunneld.errors import VisitorError
from tunneld.server.offers import ConnectTunnel, LegacyAddresses, LegacyCall, Listener, TunnelOffer
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_server import ServerConnection

if TYPE_CHECKING:
    from tunneld.server.ingress import Ingress

__all__ = ["CONNECT", "REGISTER", "OwnAddresses", "is_permissions"]

CONNECT, REGISTER, _PERMISSIONS = "/tunnel/connect", "/register", "/permissions"


def is_permissions(path: str) -> bool:
    """Whether that is an address of the older dialect's permissions."""
    return path == _PERMISSIONS or path.startswith("/permissions/")


class OwnAddresses:
    """Serves what is asked of the server itself.

    Args:
        ingress: whose connections ask.
        connect_tunnel: is given what asks for ``/tunnel/connect``.
        ready: whether ``/readyz`` says yes.
    """

    def __init__(self, ingress: Ingress, connect_tunnel: ConnectTunnel, ready: Callable[[], bool]) -> None:
        self._ingress = ingress
        self._connect_tunnel = connect_tunnel
        self._ready = ready

    def serve(
        self, connection: ServerConnection, head: RequestHead, listener: Listener, token: str | None = None
    ) -> None:
        """Answer a request for one, or hand it to whom it is for.

        Args:
            token: of a base address ``/v2/TOKEN`` that stood before it; None: there was none.

        Raises:
            VisitorError: there is no such address, or not for this.
        """
        ingress = self._ingress
        path = head.target.partition("?")[0]
        client = ingress.peers.client(connection, head, listener)
        if listener.tunnels:
            if path == CONNECT:
                self._offer(connection, head, client, token)
                return
            if ingress.legacy is not None and (path == REGISTER or is_permissions(path)):
                self._call(ingress.legacy, LegacyCall(connection, head, client, token), path)
                return
        if listener.visitors and ingress.desk.answers(connection, head, client):
            return
        if path not in ("/healthz", "/readyz"):
            raise VisitorError("not_found")
        if head.method not in ("GET", "HEAD"):
            error = VisitorError("method_not_allowed")
            ingress.answer(connection, error, ingress.new_id(), head.headers, [("Allow", "GET, HEAD")])
        elif path == "/healthz":
            ingress.answer_text(connection, 200, "ok\n")
        elif self._ready() and not ingress.draining:
            ingress.answer_text(connection, 200, "ready\n")
        else:
            ingress.answer_text(connection, 503, "not ready\n", [("Retry-After", "1")])

    def _call(self, legacy: LegacyAddresses, call: LegacyCall, path: str) -> None:
        ingress = self._ingress
        if path == REGISTER and call.head.method != "POST":
            error = VisitorError("method_not_allowed")
            ingress.answer(call.connection, error, ingress.new_id(), call.head.headers, [("Allow", "POST")])
            return
        try:
            (legacy.register if path == REGISTER else legacy.permit)(call)
        except VisitorError as error:
            legacy.refuse(call, error)

    def _offer(self, connection: ServerConnection, head: RequestHead, client: str, token: str | None) -> None:
        if head.length:
            raise VisitorError("bad_request", "A request for a tunnel has no body.")
        leftover = connection.offer()
        self._connect_tunnel(TunnelOffer(self._ingress, connection, head, client, token), head, leftover)
