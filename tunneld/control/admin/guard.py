"""What stands before every call of the admin API: who calls, what they may, and that no web page changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tunneld.control.admin.keeper import BOTH, Keeper
from tunneld.control.guard import bounded, note_refusal, noting, refusal
from tunneld.control.sign_ins import note_refused, noting_sign_in
from tunneld.dashboard.files import is_file
from tunneld.errors import VisitorError
from tunneld.server.principals import WRITE, Principal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["ALWAYS", "CHANGE_HEADER", "AdminGuard", "may_change"]

CHANGE_HEADER: Final = "X-Tunneld-Request"
"""A change carries it, with any value, or another header that no form of another site can set, and no script of one
without our leave: a bearer token, or a JSON body's type."""
ALWAYS: Final = ("unauthorized", "not_permitted", "local_only", "web_page_refused", "misdirected", "rate_limited")
"""What may be answered to any call."""

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_DOOR = "admin.listen"


class AdminGuard:
    """ASGI middleware: lets a call pass that its caller may make; who that is stands in the request's state.

    Args:
        app: the API.
        keeper: who knows.
    """

    def __init__(self, app: ASGIApp, keeper: Keeper) -> None:
        self._app = app
        self._keeper = keeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or let the application answer (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        try:
            if is_file(scope["path"]) and scope["method"] in _READS and self._keeper.shows(scope):
                state["anonymous"] = True
                await self._app(scope, receive, send)
                return
            principal = self._keeper.judge(scope)
            state["who"] = principal.actor
            _check_right(scope, principal)
        except VisitorError as error:
            if scope["method"] not in _READS:
                await note_refusal(scope, error.code)
            await note_refused(scope, error.code, _DOOR)
            await refusal(error)(scope, receive, send)
            return
        state["principal"] = principal
        await self._app(scope, bounded(receive), noting_sign_in(scope, noting(scope, send), _DOOR))


def may_change(scope: Mapping[str, Any]) -> bool:
    """Whether the caller of a request that the guard let pass may change anything."""
    principal = scope.get("state", {}).get("principal")
    return isinstance(principal, Principal) and WRITE in principal.scopes


def _check_right(scope: Scope, principal: Principal) -> None:
    if not principal.scopes & BOTH:
        raise VisitorError("not_permitted", f"The token {principal.name} opens tunnels, not the admin API.")
    if scope["method"] in _READS:
        return
    if WRITE not in principal.scopes:
        raise VisitorError("not_permitted", f"The token {principal.name} only reads; a change needs the scope write.")
    if not any(_no_form_sets(name, value) for name, value in scope["headers"]):
        raise VisitorError("web_page_refused", f"A change carries the header {CHANGE_HEADER}, with any value.")


def _no_form_sets(name: bytes, value: bytes) -> bool:
    if name == b"content-type":
        return value.partition(b";")[0].strip().lower() == b"application/json"
    return name in (b"authorization", CHANGE_HEADER.lower().encode())
