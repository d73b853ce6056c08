"""The server as the admin API shows it: the daemon's own objects as the shapes of `models`."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from time import monotonic, time

from tunneld import __version__
from tunneld.control.admin.metrics import server_metrics
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
from tunneld.control.admin.shapes import iso, stream_info, token_info, tunnel_info
from tunneld.control.admin.states import tunnel_state
from tunneld.control.alerting import Alerts
from tunneld.control.models.agent import Health, Reloaded
from tunneld.control.models.alerts import AlertsStatus, AlertsTested
from tunneld.control.models.permissions import NewPermissions, PermissionInfo
from tunneld.control.models.streams import StreamInfo
from tunneld.control.models.tunnels import Reconnected
from tunneld.control.shapes import absolute
from tunneld.errors import VisitorError
from tunneld.server.carried import IDLE, under_way
from tunneld.server.daemon import RESTART_SECTIONS, ServerDaemon
from tunneld.server.keys import LABEL, find_owner, new_owner, new_token
from tunneld.server.permissions import Change, permission_shape
from tunneld.server.principals import Limits, Principal
from tunneld.server.registry import Tunnel
from tunneld.server.store.records import AuditEntry, Name, Owner, Token
from tunneld.server.tokens import digest, mint
from tunneld.server.visit import Visit
from tunneld.telemetry.trail import Trail

__all__ = ["ServerView"]

log = logging.getLogger("tunneld.admin")


class ServerView:
    """A `ServerFacade` over a running daemon, whose changes go to the audit trail too."""

    def __init__(self, daemon: ServerDaemon, alerts: Alerts, trail: Trail | None = None) -> None:
        self._alerts = alerts
        self._daemon = daemon
        self._trail = trail or Trail()
        self._access = daemon.access

    def seen_by(self, principal: Principal) -> ServerView:
        """As `ServerFacade`; so are all below."""
        if not principal.owned:
            return self
        from tunneld.control.admin.owned import OwnerView

        return OwnerView(self._daemon, self._alerts, self._trail, principal)

    def _sees(self, tunnel: Tunnel) -> bool:
        """Whether that one is to be shown."""
        return True

    def _exchanges(self) -> Iterable[Visit]:
        """Requests under way, of tunnels that are to be shown."""
        return (visit for visit in self._daemon.ingress.exchanges.values() if self._sees(visit.tunnel))

    # -- what there is -----------------------------------------------------------------------------------

    def status(self) -> ServerStatus:  # noqa: D102
        daemon = self._daemon
        tunnels = self.tunnels()
        totals = daemon.ingress.totals
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(monotonic() - daemon.started, 3),
            "config_file": daemon.path and absolute(daemon.path),
            "server": daemon.public_url,
            "listening": [address for _, address in daemon.listening],
            "tunnels": tunnels,
            "totals": {
                "tunnels": len(tunnels),
                "online": sum(1 for tunnel in tunnels if tunnel["state"] in ("connecting", "online", "degraded")),
                "active_streams": len(daemon.ingress.exchanges),
                "streams": totals.streams,
                "bytes_in": totals.bytes_in,
                "bytes_out": totals.bytes_out,
            },
        }

    def health(self) -> Health:  # noqa: D102
        draining = self._daemon.draining
        fault = self._access.fault
        return {
            "status": "down" if draining else "degraded" if fault else "ok",
            "checks": [
                {
                    "name": "visitors",
                    "status": "down" if draining else "ok",
                    "detail": "The server is stopping." if draining else "Visitors and agents are served.",
                },
                {
                    "name": "store",
                    "status": "degraded" if fault else "ok",
                    "detail": fault or "The store answers.",
                },
            ],
        }

    def tunnels(self) -> list[ServerTunnel]:  # noqa: D102
        now = monotonic()
        live = under_way(self._exchanges())
        known = sorted(filter(self._sees, self._daemon.registry.all()), key=lambda tunnel: tunnel.name)
        return [tunnel_info(tunnel, live.get(tunnel.name, IDLE), now) for tunnel in known]

    def tunnel(self, name: str) -> ServerTunnel | None:  # noqa: D102
        found = self._daemon.registry.find(name)
        if found is None or not self._sees(found):
            return None
        live = under_way(visit for visit in self._daemon.ingress.exchanges.values() if visit.tunnel is found)
        return tunnel_info(found, live.get(name, IDLE), monotonic())

    def streams(self, tunnel: str | None = None, kind: str | None = None) -> list[StreamInfo]:  # noqa: D102
        now = monotonic()
        return [
            stream_info(exchange, now)
            for exchange in self._exchanges()
            if tunnel in (None, exchange.tunnel.name) and kind in (None, exchange.kind)
        ]

    def stream(self, request_id: str) -> StreamInfo | None:  # noqa: D102
        exchange = self._daemon.ingress.exchanges.get(request_id)
        return None if exchange is None or not self._sees(exchange.tunnel) else stream_info(exchange, monotonic())

    def cancel(self, request_ids: Collection[str]) -> list[str]:  # noqa: D102
        exchanges = self._daemon.ingress.exchanges
        done = []
        for request_id in request_ids:
            if (exchange := exchanges.get(request_id)) is not None and self._sees(exchange.tunnel):
                exchange.cancel("operator")
                done.append(request_id)
        return done

    def reconnect(self, name: str) -> Reconnected:  # noqa: D102
        found = self._daemon.registry.find(name)
        if found is None or not self._sees(found):
            raise VisitorError("no_such_tunnel", f"There is no tunnel {name}.")
        was = tunnel_state(found)
        if found.connection is None or was == "resuming":
            raise VisitorError("tunnel_offline", f"The tunnel {name} is not connected; its agent dials by itself.")
        found.connection.reconnect()
        return {"tunnel": name, "was": was}

    def limits(self) -> LimitsInfo:  # noqa: D102
        daemon = self._daemon
        config = daemon.config
        return {
            "limits": config.limits.model_dump(mode="json"),
            "auth": config.auth.model_dump(mode="json"),
            "now": {
                "tunnels": len(daemon.registry),
                "streams": len(daemon.ingress.exchanges),
                "connections": len(daemon.ingress.connections) + len(daemon.connections),
                "memory": daemon.ingress.budget.used,
            },
        }

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:  # noqa: D102
        return await server_metrics(self._daemon, self._alerts, accept)

    def alerts(self) -> AlertsStatus:  # noqa: D102
        return self._alerts.status()

    async def test_alerts(self, name: str | None) -> AlertsTested:  # noqa: D102
        return await self._alerts.test(name)

    async def reload(self) -> Reloaded:  # noqa: D102
        sections = await self._daemon.reload()
        return {
            "changed": [name for name in sections if name not in RESTART_SECTIONS],
            "restart": [name for name in sections if name in RESTART_SECTIONS],
        }

    # -- tokens ------------------------------------------------------------------------------------------

    async def tokens(self, *, every: bool) -> list[TokenInfo]:  # noqa: D102
        now = time()
        found = await self._access.store.tokens()
        return [token_info(token, now) for token in found if every or token.revoked is None]

    async def token(self, token_id: str) -> TokenInfo:  # noqa: D102
        return token_info(await self._find(token_id), time())

    async def create_token(self, wanted: NewToken) -> MadeToken:  # noqa: D102
        limits = wanted.get("limits", {})
        streams, octets = limits.get("streams", 0), limits.get("bytes_per_s", 0)
        requests = limits.get("requests_per_s", 0.0)
        if not all(0 <= number < 2**53 for number in (streams, octets, requests)):
            raise ValueError("limits: give numbers from 0 on")
        now = time()
        token, secret = new_token(
            wanted["name"],
            now=now,
            tunnels=wanted.get("tunnels"),
            scopes=wanted.get("scopes", ["agent"]),
            lifetime=wanted.get("expires_s"),
            limits=Limits(streams, octets, requests),
            certificate=wanted.get("certificate"),
            owner=self._owner(wanted["owner"]).id if "owner" in wanted else None,
        )
        await self._access.store.add_token(token)
        await self._access.refresh()
        return {"token": token_info(token, now), "secret": secret}

    async def rotate_token(self, token_id: str, overlap: float) -> MadeToken:  # noqa: D102
        token = await self._find(token_id)
        if token.digest is None:
            raise ValueError("a certificate's token has no secret")
        secret, now = mint(), time()
        if not await self._access.store.rotate_token(token_id, digest(secret), old_until=now + overlap):
            raise _no_token(token_id)
        await self._access.refresh()
        return {"token": await self.token(token_id), "secret": secret}

    async def revoke_token(self, token_id: str) -> TokenInfo:  # noqa: D102
        now = time()
        if not await self._access.store.revoke_token(token_id, now):
            raise _no_token(token_id)
        await self._access.refresh()
        return token_info(await self._find(token_id), now)

    async def _find(self, token_id: str) -> Token:
        for token in await self._access.store.tokens():
            if token.id == token_id:
                return token
        raise _no_token(token_id)

    # -- names -------------------------------------------------------------------------------------------

    def names(self) -> list[NameInfo]:  # noqa: D102
        return [self._name(name) for name in sorted(self._access.names.all(), key=lambda name: name.name)]

    async def reserve_name(self, name: str, owner: str | None) -> NameInfo:  # noqa: D102
        if not LABEL.fullmatch(name):
            raise ValueError("a tunnel's name is a DNS label: a-z, 0-9 and '-', at most 63")
        known = self._access.credentials.owner(owner) if owner is not None else None
        if owner is not None and (known is None or known.removed is not None):
            token = await self._find(owner)
            if token.revoked is not None:
                raise _no_token(owner)
            owner = token.owner or token.id
        kept = Name(name, owner, time(), True)
        await self._access.names.reserve(kept)
        return self._name(kept)

    async def release_name(self, name: str) -> None:  # noqa: D102
        if not await self._access.names.release(name):
            raise VisitorError("no_such_name", f"The name {name} belongs to nobody.")

    def _name(self, name: Name) -> NameInfo:
        now = time()
        holder = self._access.credentials.holder(name.owner) if name.owner is not None else None
        gone = self._access.names.free_from(name, now)
        return {
            "name": name.name,
            "owner": name.owner,
            "token": holder.name if holder is not None else None,
            "state": "reserved" if name.reserved else "owned" if gone is None else "resting",
            "since": iso(name.since),
            "free_from": None if gone is None else iso(gone),
        }

    # -- owners ------------------------------------------------------------------------------------------

    def owners(self) -> list[OwnerInfo]:  # noqa: D102
        known = sorted(self._access.credentials.owners(), key=lambda owner: owner.name)
        return [self._owner_info(owner) for owner in known if owner.removed is None]

    async def create_owner(self, wanted: NewOwner) -> OwnerInfo:  # noqa: D102
        limits = wanted.get("limits", {})
        streams, octets, names = limits.get("streams", 0), limits.get("bytes_per_s", 0), limits.get("names", 0)
        requests = limits.get("requests_per_s", 0.0)
        if not all(0 <= number < 2**53 for number in (streams, octets, requests, names)):
            raise ValueError("limits: give numbers from 0 on")
        owner = new_owner(wanted["name"], now=time(), limits=Limits(streams, octets, requests), tunnels=names)
        if not await self._access.store.add_owner(owner):
            raise VisitorError("owner_exists", f"The name {owner.name} is taken.")
        await self._access.refresh()
        return self._owner_info(owner)

    async def remove_owner(self, owner_id: str) -> OwnerInfo:  # noqa: D102
        owner = self._owner(owner_id)
        shown = self._owner_info(owner)
        if not await self._access.store.remove_owner(owner.id, time()):
            raise _no_owner(owner_id)
        await self._access.refresh()
        return shown

    def _owner(self, wanted: str) -> Owner:
        try:
            return find_owner(self._access.credentials.owners(), wanted)
        except ValueError:
            raise _no_owner(wanted) from None

    def _owner_info(self, owner: Owner) -> OwnerInfo:
        now, limits = time(), owner.limits
        tokens = [one for one in self._access.credentials.all() if one.owner == owner.id]
        tunnels = [one for one in self._daemon.registry.all() if one.principal.id == owner.id]
        visits = self._daemon.ingress.exchanges.values()
        return {
            "id": owner.id,
            "name": owner.name,
            "created": iso(owner.created),
            "limits": {"names": owner.tunnels, **asdict(limits)},  # type: ignore[typeddict-item]
            "tokens": sum(token.state(now) == "live" for token in tokens),
            "names": sum(name.owner == owner.id for name in self._access.names.all()),
            "tunnels": len(tunnels),
            "streams": sum(visit.tunnel.principal.id == owner.id for visit in visits),
        }

    # -- permissions -------------------------------------------------------------------------------------

    def permissions(self, name: str) -> list[PermissionInfo]:  # noqa: D102
        now = time()
        found = self._access.permissions.all_of(self._owner_of(name), name)
        return [permission_shape(one, now) for one in found]  # type: ignore[misc]

    async def grant(self, name: str, wanted: NewPermissions) -> list[PermissionInfo]:  # noqa: D102
        now = time()
        change = Change(
            wanted.get("access_level"),
            now + wanted["expires_s"] if "expires_s" in wanted else None,
            wanted.get("notes"),
        )
        kept, _ = await self._access.permissions.grant(self._owner_of(name), name, wanted["emails"], change)
        return [permission_shape(one, now) for one in kept]  # type: ignore[misc]

    async def revoke_permission(self, name: str, email: str) -> PermissionInfo:  # noqa: D102
        gone = await self._access.permissions.revoke(self._owner_of(name), name, email)
        return permission_shape(gone, time())  # type: ignore[return-value]

    def _owner_of(self, name: str) -> str:
        """Whose tunnel that is; raises VisitorError ``no_such_tunnel``."""
        tunnel = self._daemon.registry.find(name)
        owner = self._access.names.owner(name)
        if owner is None and tunnel is not None and tunnel.connects:
            owner = tunnel.principal.id
        if owner is None:
            raise VisitorError("no_such_tunnel", f"There is no tunnel {name}.")
        return owner

    # -- audit -------------------------------------------------------------------------------------------

    async def audit(self, *, limit: int, before: int | None) -> AuditPage:  # noqa: D102
        found = await self._access.store.audit(limit=limit, before=before)
        return {
            "entries": [
                {
                    "id": entry.id,
                    "at": iso(entry.at),
                    "actor": entry.actor,
                    "action": entry.action,
                    "detail": entry.detail,
                    "ok": entry.ok,
                }
                for entry in found
            ],
            "before": found[-1].id if len(found) == limit else None,
        }

    async def note(  # noqa: D102
        self,
        principal: Principal,
        action: str,
        detail: str,
        *,
        ok: bool = True,
        subject: Mapping[str, str] | None = None,
    ) -> None:
        actor, fields = principal.actor, {"action": action, **(subject or {})}
        log.log(logging.INFO if ok else logging.WARNING, "admin: %s, by %s", detail, actor, extra=fields)
        await self._trail.note(actor, action, detail, ok=ok)
        entry = AuditEntry(time(), actor, action, detail[:1000], ok)
        try:
            await self._access.store.add_audit(entry, most=self._daemon.config.limits.audit_entries)
        except VisitorError as error:  # what was done is done, and stands in the log
            log.error("The audit entry was not kept: %s", error, extra={"action": action})


def _no_owner(wanted: str) -> VisitorError:
    return VisitorError("no_such_owner", f"There is no owner {wanted}.")


def _no_token(token_id: str) -> VisitorError:
    return VisitorError("no_such_token", f"There is no token {token_id}.")
