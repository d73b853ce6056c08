"""``/permissions``: who may visit, by e-mail address, as the older dialect's manager has it (PROTOCOL.md, "v2").

Called with the owner's bearer token or under ``/v2/TOKEN``. What belongs to somebody else answers as if it were not.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from time import time
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import msgspec

from tunneld.config.server import ServerConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers
from tunneld.server.access import Access
from tunneld.server.auth import bearer_of
from tunneld.server.forms import Form
from tunneld.server.ingress import Ingress
from tunneld.server.offers import LegacyCall
from tunneld.server.permissions import Change, permission_shape
from tunneld.server.principals import Principal
from tunneld.server.registry import Registry
from tunneld.server.store.records import AuditEntry, Permission
from tunneld.wire.http1 import RequestHead

__all__ = ["NotAllowed", "PermissionsDoor", "PermissionsHost"]

log = logging.getLogger("tunneld.access")

_T = TypeVar("_T")
_NUMBER = re.compile(r"[0-9]{1,18}")


class NotAllowed(VisitorError):
    """A method that there is not at this address.

    Args:
        allowed: those that there are.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__("method_not_allowed", f"Here are {', '.join(allowed)}.")
        self.allowed = allowed


class PermissionsHost(Protocol):
    """What the door asks of its server."""

    config: ServerConfig
    access: Access
    registry: Registry
    ingress: Ingress


class LegacyAnswers(Protocol):
    """What it asks of the `LegacyDoor` that it is a part of."""

    def admit(self, token: str | None, address: str) -> Principal:
        """Whose token stands in the base address."""

    async def label_for(self, name: str, principal: Principal) -> str:
        """The label of a registered name, made this owner's."""

    def refuse_form(self, form: Form, error: VisitorError) -> None:
        """Answer an error in the dialect's shape."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run it until the server stops."""


class _Grant(msgspec.Struct):
    server_key: str
    emails: list[str]
    access_level: str | None = None
    expires_at: str | None = None
    notes: str | None = None


class _Patch(msgspec.Struct):
    access_level: str | None = None
    expires_at: str | msgspec.UnsetType | None = msgspec.UNSET
    notes: str | msgspec.UnsetType | None = msgspec.UNSET
    status: str | None = None


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who calls, and from where."""

    principal: Principal
    address: str


class PermissionsDoor:
    """Serves the four calls.

    Args:
        host: the server.
        door: of the older dialect.
    """

    def __init__(self, host: PermissionsHost, door: LegacyAnswers) -> None:
        self._host = host
        self._door = door

    def serve(self, call: LegacyCall) -> None:
        """A request whose path begins with ``/permissions``; raises VisitorError to be answered with."""
        head = call.head
        path = head.target.partition("?")[0]
        rest = unquote(path.removeprefix("/permissions").removeprefix("/"))
        allowed = ("GET", "PATCH", "DELETE") if rest else ("POST",)
        caller = _Caller(self._who(head, call.token, call.address or "unix"), call.address)
        if head.method not in allowed:
            raise NotAllowed(allowed)

        def whole(form: Form, body: bytes) -> None:
            self._door.spawn(self._answer(form, caller, rest, body), "v2 permissions")

        Form(self._host.ingress, call.connection, head, whole=whole, refuse=self._door.refuse_form).begin()

    def _who(self, head: RequestHead, token: str | None, address: str) -> Principal:
        sent = [value for name, value in head.headers if name.lower() == "authorization"]
        if token is None and sent:
            return self._host.access.gate.bearer(bearer_of(sent), address=address, name="")
        return self._door.admit(token, address)

    async def _answer(self, form: Form, caller: _Caller, rest: str, body: bytes) -> None:
        work = {"POST": self._post, "GET": self._get, "PATCH": self._patch, "DELETE": self._delete}[form.head.method]
        try:
            status, said = await work(caller, rest, body)
        except VisitorError as error:
            if error.code == "bad_argument":  # of this dialect's calls every fault is a 400
                error = VisitorError("bad_request", error.detail)
            self._door.refuse_form(form, error)
            return
        form.answer(status, _headers(), json.dumps({"success": True, **said}, ensure_ascii=False).encode())

    async def _post(self, caller: _Caller, _: str, body: bytes) -> tuple[int, dict[str, Any]]:
        said = _read(body, _Grant)
        tunnel, server_id = await self._find(said.server_key, caller.principal)
        change = Change(said.access_level, _until(said.expires_at) or None, said.notes)
        kept, added = await self._host.access.permissions.grant(
            caller.principal.id, tunnel, said.emails, change, server_id=server_id, address=caller.address
        )
        await self._note(caller, "permission.grant", f"{tunnel}: {', '.join(one.email for one in kept)}")
        message = f"{added} of {len(kept)} permissions are new."
        return 201, {"message": message, "added": added, "permissions": _shapes(kept)}

    async def _get(self, caller: _Caller, rest: str, _: bytes) -> tuple[int, dict[str, Any]]:
        tunnel, _id = await self._find(rest, caller.principal)
        found = self._host.access.permissions.all_of(caller.principal.id, tunnel)
        return 200, {"server_key": rest, "permissions": _shapes(found)}

    async def _patch(self, caller: _Caller, rest: str, body: bytes) -> tuple[int, dict[str, Any]]:
        said = _read(body, _Patch)
        expires = None if said.expires_at is msgspec.UNSET else _until(said.expires_at)
        notes = None if said.notes is msgspec.UNSET else said.notes or ""
        change = Change(said.access_level, expires, notes, said.status)
        later = await self._host.access.permissions.change(caller.principal.id, _number(rest), change)
        await self._note(caller, "permission.change", f"{later.tunnel}: {later.email}, {later.level}, {_status(later)}")
        return 200, {"message": "The permission is changed.", "permission": permission_shape(later, time())}

    async def _delete(self, caller: _Caller, rest: str, _: bytes) -> tuple[int, dict[str, Any]]:
        change = Change(status="revoked")
        later = await self._host.access.permissions.change(caller.principal.id, _number(rest), change)
        await self._note(caller, "permission.revoke", f"{later.tunnel}: {later.email}")
        return 200, {"message": f"The permission of {later.email} is revoked."}

    # -- inside ------------------------------------------------------------------------------------------

    async def _find(self, server_key: str, principal: Principal) -> tuple[str, int | None]:
        """The tunnel of an owner's registration, and its id; or their tunnel of that name.

        Raises:
            VisitorError: ``no_such_server``, or that of a name which they may not have.
        """
        access = self._host.access
        known = await access.store.registration_of(sha256(server_key.encode()).digest())
        if known is not None and known.owner == principal.id:
            return await self._door.label_for(known.name, principal), known.id
        if access.names.owner(server_key) == principal.id:
            return server_key, None
        tunnel = self._host.registry.find(server_key)
        if tunnel is not None and tunnel.connects and tunnel.principal.id == principal.id:
            return server_key, None
        raise VisitorError("no_such_server")

    async def _note(self, caller: _Caller, action: str, detail: str) -> None:
        actor = f"token {caller.principal.id} ({caller.principal.name})"
        log.info("%s: %s, by %s", action, detail, actor, extra={"action": action, "client": caller.address})
        entry = AuditEntry(time(), actor, action, detail[:1000])
        try:
            await self._host.access.store.add_audit(entry, most=self._host.config.limits.audit_entries)
        except VisitorError as error:  # what was done is done, and stands in the log
            log.error("The audit entry was not kept: %s", error, extra={"action": action})


def _shapes(some: list[Permission]) -> list[dict[str, Any]]:
    now = time()
    return [permission_shape(one, now) for one in some]


def _status(one: Permission) -> str:
    return one.status(time())


def _until(text: str | None) -> float:
    """A moment in ISO 8601, UTC where it names no zone -> seconds since the epoch; 0 for None: never."""
    if text is None:
        return 0.0
    try:
        parsed = datetime.fromisoformat(text)
        return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise VisitorError(
            "bad_argument", f"expires_at is a time such as 2030-12-31T18:00:00Z, not {text[:40]!r}."
        ) from None


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise VisitorError("no_such_permission", f"There is no permission {text[:40]!r}.")
    return int(text)


def _read(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise VisitorError("bad_request", f"The body is not as it should be: {str(error)[:200]}.") from None


def _headers() -> Headers:
    return [("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
