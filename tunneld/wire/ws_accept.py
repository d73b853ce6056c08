"""The server's half of the upgrade (RFC 6455 section 4.2), behind a head that the ingress has parsed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from tunneld.errors import VisitorError
from tunneld.wire.ws_protocol import WebSocket

__all__ = ["Acceptance", "RequestHead", "accept"]

_CODES = {405: "method_not_allowed", 426: "upgrade_required", 505: "version_not_supported"}


class RequestHead(Protocol):
    """What is used of a parsed request."""

    @property
    def method(self) -> str:
        """As it came."""

    @property
    def target(self) -> str:
        """Path with query, as it came."""

    @property
    def version(self) -> str:
        """``1.1`` or ``1.0``."""

    @property
    def headers(self) -> Iterable[tuple[str, str]]:
        """Names and values as latin-1 text, in order."""


class Acceptance:
    """An upgrade that can be accepted: `take` answers it with 101.

    Args:
        head: the request.
        subprotocols: what this address speaks, the best first.
        headers: more headers of the answer.
        require_subprotocol: whether an offer of none is refused. An offer in which nothing is known always is.

    Raises:
        VisitorError: the request is to be answered with it: ``upgrade_required`` (its answer should carry
            ``Upgrade: websocket`` and ``Sec-WebSocket-Version: 13``), ``bad_request``, ``method_not_allowed`` or
            ``version_not_supported``.
    """

    def __init__(
        self,
        head: RequestHead,
        *,
        subprotocols: Sequence[str],
        headers: Iterable[tuple[str, str]] = (),
        require_subprotocol: bool = True,
    ) -> None:
        offered: list[str] = []

        def select(protocol: ServerProtocol, names: Sequence[Subprotocol]) -> Subprotocol | None:
            offered.extend(names)
            return next((Subprotocol(name) for name in subprotocols if name in names), None)

        upgrade = ServerProtocol(subprotocols=[Subprotocol(name) for name in subprotocols], select_subprotocol=select)
        try:
            fields = Headers(head.headers)
        except InvalidHeader as error:  # a control character in a value
            raise _refusal(400, error) from None
        response = upgrade.accept(Request(head.target, fields, method=head.method, protocol=f"HTTP/{head.version}"))
        if response.status_code != 101:
            raise _refusal(response.status_code, upgrade.handshake_exc)
        if upgrade.subprotocol is None and (offered or require_subprotocol):
            raise VisitorError("upgrade_required", f"This address speaks {', '.join(subprotocols)} only.")
        for name, value in headers:
            response.headers[name] = value
        self._answer = response.serialize()
        self._subprotocol = upgrade.subprotocol

    def take(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, leftover: bytes, *, max_message: int
    ) -> WebSocket:
        """Answer with 101 and take the transport over.

        Nothing is read before the WebSocket's ``handler`` is set: do that at once.

        Args:
            loop: the loop that the transport runs on.
            transport: plain or TLS, reading or paused.
            leftover: octets that came behind the head.
            max_message: octets of the largest message that is taken.
        """
        transport.write(self._answer)
        return WebSocket(
            loop, transport, leftover, client=False, max_message=max_message, subprotocol=self._subprotocol
        )


def accept(
    loop: asyncio.AbstractEventLoop,
    transport: asyncio.Transport,
    head: RequestHead,
    leftover: bytes,
    *,
    subprotocols: Sequence[str],
    max_message: int,
    headers: Iterable[tuple[str, str]] = (),
    require_subprotocol: bool = True,
) -> WebSocket:
    """Both steps of `Acceptance` at once; raises as it does, the transport not touched then."""
    acceptance = Acceptance(head, subprotocols=subprotocols, headers=headers, require_subprotocol=require_subprotocol)
    return acceptance.take(loop, transport, leftover, max_message=max_message)


def _refusal(status: int, error: Exception | None) -> VisitorError:
    code = _CODES.get(status, "bad_request")
    if isinstance(error, InvalidHeader) and error.name == "Sec-WebSocket-Version":
        code = "upgrade_required"
    return VisitorError(code, f"This is not a WebSocket upgrade that can be accepted: {error}.")
