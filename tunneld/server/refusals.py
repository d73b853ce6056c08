"""An agent's own error for a person: a page that says as much as the document does (see `server.problems`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers, get
from tunneld.server.visit import seconds

if TYPE_CHECKING:
    from tunneld.server.carriers import Carried
    from tunneld.server.exchange import Exchange

__all__ = ["PATIENCE", "Refusal"]

_MOST: Final = 16 * 1024
"""Bytes of a document that are read; an agent's own is below 2 KiB."""
PATIENCE: Final = 2.0
"""Seconds that it may take to come: an agent sends it with its head."""


class Refusal:
    """The `Sink` of an agent's own answer, from its head on: its body is waited for, which says the detail.

    Args:
        exchange: whose answer it is.
        stream: that it comes on.
        code: a key of `CODES`, by the answer's ``X-Tunnel-Error``.
        headers: of the answer.
    """

    __slots__ = ("_body", "_code", "_exchange", "_retry_after", "_stream")

    def __init__(self, exchange: Exchange, stream: Carried, code: str, headers: Headers) -> None:
        self._exchange = exchange
        self._stream = stream
        self._code = code
        self._retry_after = seconds(get(headers, "retry-after"))
        self._body = bytearray()

    def head(self, status: int, headers: Headers) -> None:
        """It was here before."""

    def data(self, data: bytes) -> None:
        """A part of the document."""
        self._body += data
        if len(self._body) > _MOST:
            self._over("")
        else:
            self._stream.took(len(data))

    def end(self, trailers: Headers) -> None:
        """The document is whole."""
        try:
            document = json.loads(self._body)
        except (ValueError, RecursionError):
            document = None
        detail = document.get("detail") if isinstance(document, dict) else None
        self._over(detail.encode(errors="replace").decode() if isinstance(detail, str) else "")

    def stopped(self) -> None:
        """See `Sink`."""
        self._exchange.stopped()

    def cancelled(self, reason: str) -> None:
        """It comes no more; what happened is known all the same."""
        self._over("")

    def late(self) -> None:
        """It does not come: as `cancelled`."""
        self._over("")

    def writable(self) -> None:
        """See `Sink`."""
        self._exchange.writable()

    def _over(self, detail: str) -> None:
        self._exchange.refused(VisitorError(self._code, detail, retry_after=self._retry_after))
