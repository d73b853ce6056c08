"""What the admin API asks of the server. `view.ServerView` has these methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from tunneld.control.admin.models import (
    AuditPage,
    LimitsInfo,
    MadeToken,
    NameInfo,
    NewOwner,
    NewToken,
    OwnerInfo,
    ServerStatus,
    ServerTunnel,
    TokenInfo,
)
from tunneld.control.models.agent import Health, Reloaded
from tunneld.control.models.alerts import AlertsStatus, AlertsTested
from tunneld.control.models.permissions import NewPermissions, PermissionInfo
from tunneld.control.models.streams import StreamInfo
from tunneld.control.models.tunnels import Reconnected
from tunneld.server.principals import Principal

__all__ = ["ServerFacade"]


class ServerFacade(Protocol):
    """The server as its operators see it. All values are JSON-ready; called on the server's own event loop.

    Only what may wait is async; a `VisitorError` becomes the problem of its code, a `ValueError` ``bad_argument``.
    """

    def seen_by(self, principal: Principal) -> ServerFacade:
        """The server as that caller may see and change it: whole, or an owner's own.

        What is an owner's alone raises VisitorError ``not_permitted`` for what is the operator's to do.
        """

    def status(self) -> ServerStatus:
        """Everything that ``tunnelctl --server URL status`` shows."""

    def health(self) -> Health:
        """Whether the server does its work, check by check."""

    def tunnels(self) -> list[ServerTunnel]:
        """Every known name, by name."""

    def tunnel(self, name: str) -> ServerTunnel | None:
        """One of them, None when it is not known."""

    def streams(self, tunnel: str | None = None, kind: str | None = None) -> list[StreamInfo]:
        """Return the streams under way, oldest first; None takes every tunnel, every kind."""

    def stream(self, request_id: str) -> StreamInfo | None:
        """Return one of them, None when it is gone."""

    def cancel(self, request_ids: Collection[str]) -> list[str]:
        """Cancel these with reason ``operator``; return the ids that were there, pass over the others."""

    def reconnect(self, name: str) -> Reconnected:
        """Close the connection of a tunnel, whose agent dials again; its session is kept.

        Raises:
            VisitorError: ``no_such_tunnel``, ``tunnel_offline``.
        """

    def limits(self) -> LimitsInfo:
        """What bounds the server, and how near to it it is."""

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:
        """Return the numbers of the server as Prometheus's text."""

    def alerts(self) -> AlertsStatus:
        """What the server's alerts say now."""

    async def test_alerts(self, name: str | None) -> AlertsTested:
        """Send a test to the receivers of one rule, or of all; raises VisitorError ``no_such_alert``."""

    def owners(self) -> list[OwnerInfo]:
        """Those who were not removed, by name."""

    async def create_owner(self, wanted: NewOwner) -> OwnerInfo:
        """Make one; raises VisitorError ``owner_exists``."""

    async def remove_owner(self, owner_id: str) -> OwnerInfo:
        """End one and their tokens; raises VisitorError ``no_such_owner``."""

    def permissions(self, name: str) -> list[PermissionInfo]:
        """Who may visit a tunnel by e-mail address; raises VisitorError ``no_such_tunnel``."""

    async def grant(self, name: str, wanted: NewPermissions) -> list[PermissionInfo]:
        """Let these visit; raises VisitorError ``no_such_tunnel``, ``too_many_permissions``, ``bad_argument``."""

    async def revoke_permission(self, name: str, email: str) -> PermissionInfo:
        """Let that one visit no longer; raises VisitorError ``no_such_tunnel``, ``no_such_permission``."""

    async def reload(self) -> Reloaded:
        """Apply the changed file; raises ConfigError."""

    async def tokens(self, *, every: bool) -> list[TokenInfo]:
        """Credentials, those that were revoked only with `every`."""

    async def token(self, token_id: str) -> TokenInfo:
        """One of them; raises VisitorError ``no_such_token``."""

    async def create_token(self, wanted: NewToken) -> MadeToken:
        """A new one; raises ValueError."""

    async def rotate_token(self, token_id: str, overlap: float) -> MadeToken:
        """Another secret for one; raises VisitorError ``no_such_token``, or ValueError for a certificate's."""

    async def revoke_token(self, token_id: str) -> TokenInfo:
        """End one; raises VisitorError ``no_such_token``."""

    def names(self) -> list[NameInfo]:
        """Names that belong to somebody, by name."""

    async def reserve_name(self, name: str, owner: str | None) -> NameInfo:
        """Keep a name for one token, or from all; raises ValueError, or VisitorError ``no_such_token``."""

    async def release_name(self, name: str) -> None:
        """Make a name free; raises VisitorError ``no_such_name``."""

    async def audit(self, *, limit: int, before: int | None) -> AuditPage:
        """Who changed what, the newest first."""

    async def note(
        self,
        principal: Principal,
        action: str,
        detail: str,
        *,
        ok: bool = True,
        subject: Mapping[str, str] | None = None,
    ) -> None:
        """Keep and log one change; `subject`: the log's fields of what it is about."""
