"""The server's admin API: a FastAPI application that only translates. `AdminGuard` stands before every call."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Header, Path, Query, Request
from fastapi.responses import Response

from tunneld.config.units import MAX_SECONDS
from tunneld.control import calls
from tunneld.control.admin import models
from tunneld.control.admin.facade import ServerFacade
from tunneld.control.admin.guard import ALWAYS, CHANGE_HEADER, AdminGuard
from tunneld.control.admin.keeper import Keeper
from tunneld.control.answers import describe, docs, json_answer, text_docs
from tunneld.control.guard import Problem, subject_of
from tunneld.control.models import problem
from tunneld.control.models.agent import Health, Reloaded
from tunneld.control.models.alerts import AlertsStatus, AlertsTested, AlertsWanted
from tunneld.control.models.permissions import NewPermissions, Permissions
from tunneld.control.models.streams import Cancelled, Filter, StreamInfo, StreamKind, Streams
from tunneld.control.models.tunnels import Reconnected
from tunneld.dashboard.routes import Dashboard
from tunneld.server.principals import Principal
from tunneld.telemetry.trail import Trail

__all__ = ["create_admin_app"]

_DESCRIPTION = f"""What a tunneld server carries, and who may use it. Without `admin.token_file` only this machine is
answered; with it every call needs `Authorization: Bearer TOKEN`. A change also carries a header that no form of another
site can set: `{CHANGE_HEADER}` with any value, a bearer token, or a JSON body's type."""

Id = Annotated[str, Path(max_length=64)]


def create_admin_app(
    server: ServerFacade, keeper: Keeper, dashboard: Dashboard | None = None, trail: Trail | None = None
) -> FastAPI:
    """The application for one server; the guard stands before the dashboard too, and writes refusals to the trail."""
    app = calls.new_app("tunneld admin", _DESCRIPTION)
    app.state.trail = trail
    app.add_middleware(AdminGuard, keeper=keeper)

    @app.exception_handler(ValueError)
    async def wrong(request: Request, error: ValueError) -> Response:
        return Problem("bad_argument", str(error))

    reads = APIRouter(prefix="/api/v1")
    changes = APIRouter(prefix="/api/v1", dependencies=[Depends(_change_header)])
    _add_state(reads, server)
    _add_cancels(changes, server)
    _add_reconnect(changes, server)
    _add_reload(changes, server)
    _add_tokens(reads, changes, server)
    _add_names(reads, changes, server)
    _add_alerts(reads, changes, server)
    _add_owners(reads, changes, server)
    _add_permissions(reads, changes, server)
    _add_audit(reads, server)
    _add_metrics(app, server)
    app.include_router(reads)
    app.include_router(changes)
    describe(app)
    if dashboard is not None:
        dashboard.mount(app)
    return app


async def _change_header(
    mark: Annotated[
        str | None, Header(alias=CHANGE_HEADER, description="Any value; a change without a bearer token needs it.")
    ] = None,
) -> None:
    """For the description alone: `AdminGuard` has looked at it. Async, or each call takes a thread, and one stays."""


def _docs(answer: Any, *codes: str, also: dict[int, Any] | None = None, good: int = 200) -> dict[int | str, Any]:
    return docs(answer, *codes, "bad_argument", also=also, always=ALWAYS, good=good)


def _who(request: Request) -> Principal:
    found = request.scope["state"]["principal"]
    assert isinstance(found, Principal)
    return found


def _view(request: Request, server: ServerFacade) -> ServerFacade:
    """The server as its caller may see it."""
    return server.seen_by(_who(request))


def _note(request: Request, server: ServerFacade, action: str) -> calls.Note:
    """Writes what was done under the stable word of the change."""

    async def note(text: str, *, ok: bool = True) -> None:
        request.scope["state"]["noted"] = True
        await server.note(_who(request), action, text, ok=ok, subject=subject_of(request.scope))

    return note


def _seconds(value: float, key: str, *, least: float = 0.0) -> float:
    if not (math.isfinite(value) and least <= value <= MAX_SECONDS):
        raise ValueError(f"{key}: give seconds, {least:g} to {MAX_SECONDS:.0f}")
    return value


def _add_state(router: APIRouter, server: ServerFacade) -> None:
    @router.get("/health", responses=_docs(Health, also={503: Health}))
    async def health(request: Request) -> Response:
        """Whether the server does its work: 200 for ok and degraded, 503 for down."""
        return calls.health(_view(request, server).health())

    @router.get("/status", responses=_docs(models.ServerStatus))
    async def status(
        request: Request, streams: Annotated[bool, Query(description="With those under way.")] = False
    ) -> Response:
        """The server, its tunnels and its totals; for who asks each second, the streams in one answer with them."""
        view = _view(request, server)
        found = view.status()
        return json_answer({**found, "streams": view.streams()} if streams else found)

    @router.get("/tunnels", responses=_docs(models.ServerTunnels))
    async def tunnels(request: Request) -> Response:
        """Every known name."""
        return json_answer({"tunnels": _view(request, server).tunnels()})

    @router.get("/tunnels/{name}", responses=_docs(models.ServerTunnel, "no_such_tunnel"))
    async def tunnel(request: Request, name: Id) -> Response:
        """One of them."""
        found = _view(request, server).tunnel(name)
        return Problem("no_such_tunnel", f"no tunnel {name}") if found is None else json_answer(found)

    @router.get("/streams", responses=_docs(Streams))
    async def streams(
        request: Request,
        tunnel: Annotated[str | None, Query(description="Of this tunnel only.")] = None,
        kind: Annotated[StreamKind | None, Query(description="Of this kind only.")] = None,
    ) -> Response:
        """Every visitor's request that is under way, oldest first."""
        return json_answer({"streams": _view(request, server).streams(tunnel, kind)})

    @router.get("/streams/{request_id}", responses=_docs(StreamInfo, "no_such_stream"))
    async def stream(request: Request, request_id: Id) -> Response:
        """One stream."""
        return calls.stream(_view(request, server), request_id)

    @router.get("/limits", responses=_docs(models.LimitsInfo))
    async def limits(request: Request) -> Response:
        """What bounds the server, and how near to it it is."""
        return json_answer(_view(request, server).limits())


def _add_metrics(app: FastAPI, server: ServerFacade) -> None:
    @app.get("/metrics", responses=text_docs(_docs(problem.Problem)), response_class=Response)
    async def metrics(request: Request) -> Response:
        """What the server counts, for Prometheus."""
        return await calls.metrics(_view(request, server), request)


def _add_cancels(router: APIRouter, server: ServerFacade) -> None:
    @router.delete("/streams/{request_id}", responses=_docs(Cancelled, "no_such_stream"))
    async def cancel_one(request: Request, request_id: Id) -> Response:
        """Cancel one stream: its service's work stops, its visitor is told."""
        return await calls.cancel_one(_view(request, server), request_id, _note(request, server, "stream.cancel"))

    @router.post("/streams/cancel", responses=_docs(Cancelled, "empty_filter", "body_too_large"))
    async def cancel_some(request: Request, wanted: Annotated[Filter, Body()]) -> Response:
        """Cancel every stream that passes all keys of the filter; an empty filter is refused."""
        if not wanted:
            return Problem("empty_filter")
        for key in ("older_than_s", "idle_s"):
            _seconds(wanted.get(key, 0), key)  # type: ignore[arg-type]
        return await calls.cancel_some(_view(request, server), wanted, _note(request, server, "stream.cancel"))


def _add_reconnect(router: APIRouter, server: ServerFacade) -> None:
    @router.post("/tunnels/{name}/reconnect", responses=_docs(Reconnected, "no_such_tunnel", "tunnel_offline"))
    async def reconnect(request: Request, name: Id) -> Response:
        """Close a tunnel's connection: its agent dials again at once and goes on with the same session."""
        changed = _view(request, server).reconnect(name)
        text = f"tunnel {name} is to dial again"
        await server.note(_who(request), "tunnel.reconnect", text, subject={"tunnel": name})
        return json_answer(changed)


def _add_reload(router: APIRouter, server: ServerFacade) -> None:
    @router.post("/reload", responses=_docs(Reloaded, "bad_config"))
    async def reload(request: Request) -> Response:
        """Apply the changed configuration file; a bad one changes nothing and the answer says why."""
        return await calls.reload(_view(request, server), _note(request, server, "reload"))


def _add_tokens(reads: APIRouter, changes: APIRouter, server: ServerFacade) -> None:
    @reads.get("/tokens", responses=_docs(models.Tokens, "store_failed"))
    async def tokens(
        request: Request,
        every: Annotated[bool, Query(alias="all", description="Those that were revoked too.")] = False,
    ) -> Response:
        """Credentials, without their secrets."""
        return json_answer({"tokens": await _view(request, server).tokens(every=every)})

    @reads.get("/tokens/{token_id}", responses=_docs(models.TokenInfo, "no_such_token", "store_failed"))
    async def token(request: Request, token_id: Id) -> Response:
        """One of them."""
        return json_answer(await _view(request, server).token(token_id))

    @changes.post(
        "/tokens",
        responses=_docs(models.MadeToken, "no_such_owner", "body_too_large", "store_failed", good=201),
        status_code=201,
    )
    async def create_token(request: Request, wanted: Annotated[models.NewToken, Body()]) -> Response:
        """Make a credential; the answer is the only one that ever holds its secret."""
        if "expires_s" in wanted:
            _seconds(wanted["expires_s"], "expires_s", least=1)
        made = await _view(request, server).create_token(wanted)
        of = made["token"]
        await server.note(_who(request), "token.create", f"created token {of['id']} ({of['name']})")
        return json_answer(made, 201)

    @changes.post(
        "/tokens/{token_id}/rotate",
        responses=_docs(models.MadeToken, "no_such_token", "body_too_large", "store_failed"),
    )
    async def rotate(
        request: Request, token_id: Id, wanted: Annotated[models.Rotation | None, Body()] = None
    ) -> Response:
        """Give a credential another secret; it keeps its id, its rights and its names."""
        overlap = _seconds((wanted or {}).get("overlap_s", 0.0), "overlap_s")
        made = await _view(request, server).rotate_token(token_id, overlap)
        await server.note(_who(request), "token.rotate", f"gave token {token_id} another secret")
        return json_answer(made)

    @changes.delete("/tokens/{token_id}", responses=_docs(models.Closed, "no_such_token", "store_failed"))
    async def revoke(request: Request, token_id: Id) -> Response:
        """End a credential; its tunnels close at once."""
        ended = await _view(request, server).revoke_token(token_id)
        await server.note(_who(request), "token.revoke", f"revoked token {ended['id']} ({ended['name']})")
        return json_answer({"revoked": ended["id"]})


def _add_names(reads: APIRouter, changes: APIRouter, server: ServerFacade) -> None:
    @reads.get("/names", responses=_docs(models.Names))
    async def names(request: Request) -> Response:
        """Names of tunnels that belong to somebody."""
        return json_answer({"names": _view(request, server).names()})

    @changes.put("/names/{name}", responses=_docs(models.NameInfo, "no_such_token", "body_too_large", "store_failed"))
    async def reserve(request: Request, name: Id, wanted: Annotated[models.NewName | None, Body()] = None) -> Response:
        """Keep a name for one token, or from everybody."""
        owner = (wanted or {}).get("owner")
        kept = await _view(request, server).reserve_name(name, owner)
        await server.note(_who(request), "name.reserve", f"reserved {name} for {owner or 'nobody'}")
        return json_answer(kept)

    @changes.delete("/names/{name}", responses=_docs(models.Released, "no_such_name", "store_failed"))
    async def release(request: Request, name: Id) -> Response:
        """Make a name free."""
        await _view(request, server).release_name(name)
        await server.note(_who(request), "name.release", f"released {name}")
        return json_answer({"released": name})


def _add_alerts(reads: APIRouter, changes: APIRouter, server: ServerFacade) -> None:
    @reads.get("/alerts", responses=_docs(AlertsStatus))
    async def alerts(request: Request) -> Response:
        """Which alerts hold, the rules, and how telling of them went."""
        return json_answer(_view(request, server).alerts())

    @changes.post("/alerts/test", responses=_docs(AlertsTested, "no_such_alert", "body_too_large"))
    async def test_alerts(request: Request, wanted: Annotated[AlertsWanted | None, Body()] = None) -> Response:
        """Send a test message to the receivers, and tell how each went."""
        return await calls.test_alerts(_view(request, server), wanted, _note(request, server, "alerts.test"))


def _add_owners(reads: APIRouter, changes: APIRouter, server: ServerFacade) -> None:
    @reads.get("/owners", responses=_docs(models.Owners))
    async def owners(request: Request) -> Response:
        """To whom tokens, names and tunnels belong; an owner sees themself alone."""
        return json_answer({"owners": _view(request, server).owners()})

    @changes.post(
        "/owners",
        responses=_docs(models.OwnerInfo, "owner_exists", "body_too_large", "store_failed", good=201),
        status_code=201,
    )
    async def create_owner(request: Request, wanted: Annotated[models.NewOwner, Body()]) -> Response:
        """Make an owner; tokens that are made with their id are theirs."""
        made = await _view(request, server).create_owner(wanted)
        await server.note(_who(request), "owner.create", f"created owner {made['id']} ({made['name']})")
        return json_answer(made, 201)

    @changes.delete("/owners/{owner_id}", responses=_docs(models.Removed, "no_such_owner", "store_failed"))
    async def remove_owner(request: Request, owner_id: Id) -> Response:
        """End an owner and their tokens; their tunnels close at once."""
        gone = await _view(request, server).remove_owner(owner_id)
        await server.note(_who(request), "owner.remove", f"removed owner {gone['id']} ({gone['name']})")
        return json_answer({"removed": gone["id"]})


def _add_permissions(reads: APIRouter, changes: APIRouter, server: ServerFacade) -> None:
    path = "/tunnels/{name}/permissions"

    @reads.get(path, responses=_docs(Permissions, "no_such_tunnel"))
    async def permissions(request: Request, name: Id) -> Response:
        """Who may visit a tunnel, by e-mail address."""
        return json_answer({"permissions": _view(request, server).permissions(name)})

    @changes.post(
        path,
        responses=_docs(
            Permissions, "no_such_tunnel", "too_many_permissions", "body_too_large", "store_failed", good=201
        ),
        status_code=201,
    )
    async def grant(request: Request, name: Id, wanted: Annotated[NewPermissions, Body()]) -> Response:
        """Let somebody visit; one who may already keeps their permission, with what is said otherwise."""
        if "expires_s" in wanted:
            _seconds(wanted["expires_s"], "expires_s")
        kept = await _view(request, server).grant(name, wanted)
        emails = ", ".join(one["allowed_email"] for one in kept)
        await server.note(_who(request), "permission.grant", f"{name}: {emails}", subject={"tunnel": name})
        return json_answer({"permissions": kept}, 201)

    @changes.delete(
        path + "/{email}", responses=_docs(Permissions, "no_such_tunnel", "no_such_permission", "store_failed")
    )
    async def revoke_permission(request: Request, name: Id, email: Annotated[str, Path(max_length=254)]) -> Response:
        """Let somebody visit no longer; their open streams end at once."""
        gone = await _view(request, server).revoke_permission(name, email)
        text = f"{name}: {gone['allowed_email']}"
        await server.note(_who(request), "permission.revoke", text, subject={"tunnel": name})
        return json_answer({"permissions": [gone]})


def _add_audit(router: APIRouter, server: ServerFacade) -> None:
    @router.get("/audit", responses=_docs(models.AuditPage, "store_failed"))
    async def audit(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=1, le=2**62, description="Of the page before.")] = None,
    ) -> Response:
        """Who changed what, the newest first."""
        return json_answer(await _view(request, server).audit(limit=limit, before=before))
