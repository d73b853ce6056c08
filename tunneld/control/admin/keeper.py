"""Who may call the admin API, before any call is looked at (CONTRACT "Server configuration").

Without `admin.token_file` only this machine is answered, and of it only who came straight: a proxy on the same host
makes every visitor loopback, and a web page can reach loopback by DNS rebinding. With it a bearer token is asked for:
that file's, or one of the store with the scope ``read`` or ``write``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hmac import compare_digest
from time import time
from typing import TYPE_CHECKING, Any

from tunneld.control.local import check_local, count_failure, page_status
from tunneld.errors import VisitorError
from tunneld.server.auth import bearer_of
from tunneld.server.credentials import Credentials
from tunneld.server.principals import READ, WRITE, Principal
from tunneld.server.tokens import digest
from tunneld.telemetry.failures import Failures

if TYPE_CHECKING:
    from starlette.types import Scope

__all__ = ["BOTH", "Keeper"]

BOTH = frozenset({READ, WRITE})
"""What the machine itself and `admin.token_file` may."""


class Keeper:
    """Knows the credentials of operators.

    Args:
        credentials: of the store.
        secret: of `admin.token_file`; None: there is none.
        refused: called with (address, reason) of each wrong credential.
        most: wrong ones from one address within `window` seconds; beyond it the answer is 429.
    """

    def __init__(
        self,
        credentials: Credentials,
        secret: str | None,
        *,
        refused: Callable[[str, str], None] = lambda *_: None,
        most: int,
        window: float,
    ) -> None:
        self._credentials = credentials
        self._refused = refused
        self._failures = Failures(most=most, window=window)
        self.configure(secret)

    def configure(self, secret: str | None) -> None:
        """Let another `admin.token_file` hold from now on."""
        self._digest = digest(secret) if secret is not None else None

    def judge(self, scope: Scope) -> Principal:
        """Who calls; raises VisitorError when nobody who may."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        client = scope.get("client")
        address = client[0] if client else "unix"
        if self._digest is None:
            check_local(scope, "admin.token_file")
        values = [value.decode("latin-1") for name, value in headers if name == b"authorization"]
        if self._digest is None and not values:
            return Principal("local", f"this machine ({address})", (), scopes=BOTH)
        return self._known(bearer_of(values), address)

    def holds(self, scope: Mapping[str, Any]) -> bool:
        """Whether whoever was let in with this request would be let in by its credential now."""
        values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        if self._digest is None and not values:
            return True
        return self._found(bearer_of(values))[0] is not None

    def page(self, request: Mapping[str, Any]) -> int | None:
        """The status of a request for the dashboard's page that brings no credential; None: to be judged at length."""
        return page_status(request, "admin.token_file", token=self._digest is not None)

    def shows(self, scope: Scope) -> bool:
        """Whether the page that asks for the token goes to a caller who brings none: where one is asked for."""
        return self._digest is not None and not any(name == b"authorization" for name, _ in scope["headers"])

    def _known(self, secret: str | None, address: str) -> Principal:
        principal, why = self._found(secret)
        if principal is not None:
            return principal
        count_failure(self._failures, address)
        self._refused(address, why)
        raise VisitorError(
            "unauthorized",
            "The admin API asks for a bearer token: that of admin.token_file, or one made with "
            "`tunneld server token create NAME --scope read` (or write).",
        )

    def _found(self, secret: str | None) -> tuple[Principal | None, str]:
        """(who it is, "") or (None, why not)."""
        if not secret:
            return None, "none" if secret is None else "form"
        if self._digest is not None and compare_digest(self._digest, digest(secret)):
            return Principal("admin", "admin.token_file", (), scopes=BOTH), ""
        return self._credentials.by_secret(secret, time())
