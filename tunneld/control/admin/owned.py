"""The server as one of its owners may see and change it: their own tunnels, streams, tokens and names.

What is somebody else's answers as if it were not; what is the operator's to do is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tunneld.control.admin.models import (
    AuditPage,
    LimitsInfo,
    MadeToken,
    NameInfo,
    NewOwner,
    NewToken,
    OwnerInfo,
    ServerStatus,
    TokenInfo,
)
from tunneld.control.admin.view import ServerView
from tunneld.control.alerting import Alerts
from tunneld.control.models.agent import Reloaded
from tunneld.control.models.alerts import AlertsStatus, AlertsTested
from tunneld.errors import VisitorError
from tunneld.server.daemon import ServerDaemon
from tunneld.server.principals import Principal
from tunneld.server.registry import Tunnel
from tunneld.server.store.records import Token
from tunneld.telemetry.trail import Trail

__all__ = ["OwnerView", "seen_by_owner"]


class OwnerView(ServerView):
    """A `ServerFacade` for one owner.

    Args:
        daemon: the server.
        alerts: of it.
        trail: of the audit.
        principal: who calls; of whose owner all is shown.
    """

    def __init__(self, daemon: ServerDaemon, alerts: Alerts, trail: Trail, principal: Principal) -> None:
        super().__init__(daemon, alerts, trail)
        self._id = principal.id

    def _sees(self, tunnel: Tunnel) -> bool:
        return tunnel.principal.id == self._id

    def status(self) -> ServerStatus:
        """As `ServerFacade`; so are all below. Totals are those of the owner's tunnels that are known."""
        whole = super().status()
        mine = [tunnel for tunnel in self._daemon.registry.all() if self._sees(tunnel)]
        live = list(self._exchanges())
        totals = whole["totals"]
        totals["active_streams"] = len(live)
        totals["streams"] = sum(tunnel.streams for tunnel in mine) + len(live)
        totals["bytes_in"] = sum(one.bytes_in for one in mine) + sum(one.bytes_in for one in live)
        totals["bytes_out"] = sum(one.bytes_out for one in mine) + sum(one.bytes_out for one in live)
        return {**whole, "config_file": None, "listening": [], "totals": totals}

    def limits(self) -> LimitsInfo:  # noqa: D102
        (own,) = self.owners()
        now = {"tunnels": float(own["tunnels"]), "streams": float(own["streams"]), "names": float(own["names"])}
        return {"limits": dict(own["limits"]), "auth": {}, "now": now}

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:  # noqa: D102
        _not_theirs("the metrics of the whole server")

    def alerts(self) -> AlertsStatus:  # noqa: D102
        _not_theirs("the alerts of the whole server")

    async def test_alerts(self, name: str | None) -> AlertsTested:  # noqa: D102
        _not_theirs("to test the alerts")

    async def reload(self) -> Reloaded:  # noqa: D102
        _not_theirs("to reload the server")

    # -- tokens and names --------------------------------------------------------------------------------

    async def tokens(self, *, every: bool) -> list[TokenInfo]:  # noqa: D102
        return [token for token in await super().tokens(every=every) if token["owner"] == self._id]

    async def create_token(self, wanted: NewToken) -> MadeToken:  # noqa: D102
        _not_theirs("to make tokens")

    async def rotate_token(self, token_id: str, overlap: float) -> MadeToken:  # noqa: D102
        await self._find(token_id)
        return await super().rotate_token(token_id, overlap)

    async def revoke_token(self, token_id: str) -> TokenInfo:  # noqa: D102
        await self._find(token_id)
        return await super().revoke_token(token_id)

    async def _find(self, token_id: str) -> Token:
        token = await super()._find(token_id)
        if token.owner != self._id:
            raise VisitorError("no_such_token", f"There is no token {token_id}.")
        return token

    def names(self) -> list[NameInfo]:  # noqa: D102
        return [name for name in super().names() if name["owner"] == self._id]

    async def reserve_name(self, name: str, owner: str | None) -> NameInfo:  # noqa: D102
        _not_theirs("to reserve names")

    async def release_name(self, name: str) -> None:  # noqa: D102
        if self._access.names.owner(name) != self._id:
            raise VisitorError("no_such_name", f"The name {name} is none of yours.")
        await super().release_name(name)

    # -- owners, permissions, audit ----------------------------------------------------------------------

    def owners(self) -> list[OwnerInfo]:  # noqa: D102
        return [owner for owner in super().owners() if owner["id"] == self._id]

    async def create_owner(self, wanted: NewOwner) -> OwnerInfo:  # noqa: D102
        _not_theirs("to make owners")

    async def remove_owner(self, owner_id: str) -> OwnerInfo:  # noqa: D102
        _not_theirs("to remove owners")

    def _owner_of(self, name: str) -> str:
        if super()._owner_of(name) != self._id:
            raise VisitorError("no_such_tunnel", f"There is no tunnel {name}.")
        return self._id

    async def audit(self, *, limit: int, before: int | None) -> AuditPage:  # noqa: D102
        _not_theirs("the audit of the whole server")


def seen_by_owner(daemon: ServerDaemon) -> Callable[[Mapping[str, Any]], Callable[[str], bool] | None]:
    """For the dashboard: request -> whether its caller is shown a tunnel, by its name; None: they are shown all."""

    def seen(scope: Mapping[str, Any]) -> Callable[[str], bool] | None:
        principal = scope.get("state", {}).get("principal")
        if not isinstance(principal, Principal) or not principal.owned:
            return None

        def theirs(name: str) -> bool:
            tunnel = daemon.registry.find(name)
            return tunnel is not None and tunnel.principal.id == principal.id

        return theirs

    return seen


def _not_theirs(what: str) -> NoReturn:
    raise VisitorError("not_permitted", f"An owner's token sees and changes what is theirs; {what} is the operator's.")
