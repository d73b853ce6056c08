"""What stands before every call on `metrics.listen` (control/reading.py)."""

from __future__ import annotations

import logging
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

from tunneld.control.guard import address_of, as_json, bounded, note_refusal, noting, refusal
from tunneld.control.local import check_local, check_page, count_failure
from tunneld.control.sign_ins import note_refused, noting_sign_in
from tunneld.dashboard.files import is_file
from tunneld.errors import VisitorError
from tunneld.telemetry.failures import Failures

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["ReadingGuard"]

log = logging.getLogger("tunneld.metrics")

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = frozenset({"/metrics"})
_DOOR = "metrics.listen"


class ReadingGuard:
    """ASGI middleware: lets a call pass that its caller may make.

    Args:
        app: the API.
        secret: of `metrics.token_file`; None: there is none.
        failures: counts the wrong credentials.
    """

    def __init__(self, app: ASGIApp, secret: str | None, failures: Failures) -> None:
        self._app = app
        self._failures = failures
        self._secret = None if secret is None else secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or let the application answer (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        try:
            if self._shows(scope):
                check_page(scope)
                state["anonymous"] = True
                await self._app(scope, receive, send)
                return
            self._check(scope)
        except VisitorError as error:
            if scope["method"] not in _READS:
                await note_refusal(scope, error.code)
            await note_refused(scope, error.code, _DOOR)
            await refusal(error)(scope, receive, send)
            return
        address = address_of(scope)
        state["who"] = f"this machine ({address})" if self._secret is None else f"metrics.token_file from {address}"
        await self._app(as_json(scope), bounded(receive), noting_sign_in(scope, noting(scope, send), _DOOR))

    def _shows(self, scope: Scope) -> bool:
        """The dashboard's page, which asks for the token, goes to who brings none."""
        if self._secret is None or scope["method"] not in _READS or not is_file(scope["path"]):
            return False
        return not any(name == b"authorization" for name, _ in scope["headers"])

    def _check(self, scope: Scope) -> None:
        if self._secret is not None:
            check_page(scope)
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
            if scheme.lower() != b"bearer" or not compare_digest(token.strip(), self._secret):
                address = address_of(scope)
                count_failure(self._failures, address)
                log.warning("Refused a credential on metrics.listen from %s", address, extra={"peer": address})
                raise VisitorError("unauthorized", "This listener asks for a bearer token: that of metrics.token_file.")
        elif scope["method"] not in _READS:
            raise VisitorError("read_only", "Without metrics.token_file nothing can be changed here.")
        elif scope["path"] in _OPEN:
            check_page(scope)
        else:
            check_local(scope, "metrics.token_file")
