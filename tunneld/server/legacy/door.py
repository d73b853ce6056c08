"""Where clients of the older dialect come in: ``/register``, ``/tunnel/connect`` without subprotocol, ``/v2/TOKEN``.

They carry no credential of their own: the token of ``/v2/TOKEN`` stands in their base address, is judged here, and goes
nowhere else. What they register is read without a framework: it is one call of four texts, and each of its answers,
errors too, has the dialect's own shape.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Coroutine
from datetime import UTC, datetime
from hashlib import sha256
from time import time
from typing import Annotated, Any, Protocol
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta

from tunneld.config.server import ServerConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers
from tunneld.protocol.labels import MAX_NAME, clean_name
from tunneld.server.access import Access
from tunneld.server.forms import Form
from tunneld.server.ingress import Ingress
from tunneld.server.legacy.connection import LegacyConnection, LegacyPolicy
from tunneld.server.legacy.keys import LegacyKeys, legacy_rules
from tunneld.server.legacy.names import Labels
from tunneld.server.legacy.permissions import NotAllowed, PermissionsDoor
from tunneld.server.offers import LegacyCall, TunnelOffer
from tunneld.server.principals import OPEN, Principal
from tunneld.server.problems import problem
from tunneld.server.registry import Registry
from tunneld.server.store.records import Registration
from tunneld.server.visitors.rules import Rules
from tunneld.wire.http1 import RequestHead
from tunneld.wire.ws_accept import Acceptance

__all__ = ["LegacyDoor", "LegacyHost"]

log = logging.getLogger("tunneld.tunnels")

_SECRET = re.compile(r"(?<=v2/)[^/?#\s\"']+|tnl_[0-9A-Za-z_-]+|(?<=v2%2F)[^/?#\s\"'%]+", re.IGNORECASE)


class LegacyHost(Protocol):
    """What the door asks of its server."""

    config: ServerConfig
    access: Access
    registry: Registry
    ingress: Ingress

    def legacy_policy(self) -> LegacyPolicy:
        """What holds now."""

    def adopt(self, connection: LegacyConnection) -> None:
        """A connection begins."""

    def forget(self, connection: LegacyConnection) -> None:
        """It is over."""


class _Said(msgspec.Struct):
    """What a client registers."""

    name: Annotated[str, Meta(max_length=4 * MAX_NAME)]
    server_key: Annotated[str, Meta(min_length=1, max_length=1024)]
    description: Annotated[str, Meta(max_length=4096)] | None = None
    connection_url: Annotated[str, Meta(max_length=4096)] | None = None


class LegacyDoor:
    """Lets clients of the older dialect in.

    Args:
        host: the server.
        labels: of their names.
        keys: of their visitors.
    """

    def __init__(self, host: LegacyHost, labels: Labels, keys: LegacyKeys) -> None:
        self._host = host
        self._labels = labels
        self._keys = keys
        self.permissions = PermissionsDoor(host, self)
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Let go of whoever is on the way in."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._keys.close()

    # -- who may come ------------------------------------------------------------------------------------

    @property
    def _mode(self) -> str:
        return self._host.config.auth.v2

    def admit(self, token: str | None, address: str) -> Principal:
        """Whose token stands in the base address; None: there is none.

        Raises:
            VisitorError: ``v2_refused``, ``unauthorized``, ``rate_limited``.
        """
        if self._mode == "refuse":
            raise VisitorError("v2_refused")
        return OPEN if self._mode == "open" else self._host.access.gate.legacy(token, address=address)

    def welcome(self, connection: LegacyConnection) -> bool:
        """Whether somebody who was let in would be let in still."""
        principal = connection.principal
        if principal.id == OPEN.id:
            return self._mode == "open"
        return self._mode != "refuse" and self._host.access.credentials.alive(principal, time())

    # -- tunnels -----------------------------------------------------------------------------------------

    def connect(self, offer: TunnelOffer, head: RequestHead, leftover: bytes) -> None:
        """A client without subprotocol asks for ``/tunnel/connect``; raises VisitorError to be answered with."""
        if self._mode == "refuse":
            raise VisitorError("upgrade_required", "This server does not speak the older dialect: offer tunneld.v3.")
        principal = self.admit(offer.token, offer.client or "unix")
        names = parse_qs(head.target.partition("?")[2], keep_blank_values=True).get("name", [])
        name = clean_name(names[0]) if len(names) == 1 else None
        if name is None:
            raise VisitorError("bad_name", f"The query must carry one `name`: 1 to {MAX_NAME} printable characters.")
        accepting = Acceptance(head, subprotocols=(), require_subprotocol=False)
        self.spawn(self._enter(offer, accepting, leftover, name, principal), "v2 connect")

    async def _enter(
        self, offer: TunnelOffer, accepting: Acceptance, leftover: bytes, name: str, principal: Principal
    ) -> None:
        """Find the name's label, make it this owner's, and serve."""
        registry = self._host.registry
        label = self._labels.find(name) or name
        taken: VisitorError | None = None
        try:
            label = await self.label_for(name, principal)
            self._check_holder(label, offer.client or "unix")
        except VisitorError as error:
            if error.code != "name_taken":
                offer.problem(error)
                return
            taken = error  # the dialect's own word for it
        if offer.closed:
            return
        limit = self._host.config.limits.v2_message
        pipe = accepting.take(self._host.ingress.loop, offer.take(), leftover, max_message=limit)
        served = LegacyConnection(
            pipe,
            label,
            title=name,
            peer=offer.client or "unix",
            principal=principal,
            policy=self._host.legacy_policy,
            registry=registry,
            budget=self._host.ingress.budget,
            rules=self._rules,
            forget=self._host.forget,
        )
        self._host.adopt(served)
        if taken is None:
            served.start()
        else:
            served.refuse("name_taken", str(taken))
        pipe.handler = served

    async def label_for(self, name: str, principal: Principal) -> str:
        """The label of a name, made this owner's if it is nobody's; raises VisitorError when they may not have it."""
        access, registry = self._host.access, self._host.registry

        def may_have(label: str) -> None:
            access.gate.allowed(principal, label)
            access.names.check(label, principal, time())
            registry.check_owner(label, principal.id)
            registry.check_room(label)

        label = await self._labels.claim(name, may_have)
        await access.names.claim(label, principal, time())
        return label

    def _rules(self, connection: LegacyConnection) -> Rules:
        """Who may visit the tunnel of a connection."""
        owner, name = connection.principal.id, connection.name
        if connection.api_keys:
            self._keys.hold(owner, name, tuple(connection.api_keys))
        permitted = connection.tunnel is not None and self._host.access.permissions.given(connection.tunnel)
        login = self._host.config.login is not None
        return legacy_rules(name, self._keys.of(owner, name), permitted=permitted, login=login)

    def _check_holder(self, label: str, address: str) -> None:
        """Where nobody needs a credential, a live name is its address's."""
        tunnel = self._host.registry.find(label)
        holder = tunnel.connection if tunnel is not None else None
        if self._mode == "open" and holder is not None and holder.peer != address:
            raise VisitorError("name_taken", f"The name {label} is in use from another address.")

    # -- registration ------------------------------------------------------------------------------------

    def permit(self, call: LegacyCall) -> None:
        """``/permissions``; raises VisitorError to be answered with."""
        self.permissions.serve(call)

    def register(self, call: LegacyCall) -> None:
        """``/register``; raises VisitorError to be answered with."""
        principal = self.admit(call.token, call.address or "unix")
        Form(
            self._host.ingress,
            call.connection,
            call.head,
            whole=lambda form, body: self.spawn(self._register(form, body, principal, call.address), "v2 register"),
            refuse=self.refuse_form,
        ).begin()

    async def _register(self, form: Form, body: bytes, principal: Principal, address: str) -> None:
        try:
            status, said = await self._registered(body, principal, address or "unix")
        except VisitorError as error:
            self.refuse_form(form, error)
            return
        form.answer(status, _json_headers(), json.dumps(said, ensure_ascii=False).encode())

    async def _registered(self, body: bytes, principal: Principal, address: str) -> tuple[int, dict[str, Any]]:
        try:
            said = msgspec.json.decode(body, type=_Said)
        except (ValueError, RecursionError) as error:
            raise VisitorError("bad_request", f"The body is no registration: {str(error)[:200]}.") from None
        name = clean_name(said.name)
        if name is None:
            raise VisitorError("bad_name", f"A name is 1 to {MAX_NAME} printable characters.")
        label = self._labels.find(name)
        if label is not None:
            self._check_holder(label, address)
        wanted = Registration(
            id=0,
            owner=principal.id,
            name=name,
            key_digest=sha256(said.server_key.encode()).digest(),
            description=_without_token(said.description),
            connection_url=_without_token(said.connection_url),
            updated=time(),
        )
        kept = await self._host.access.store.register(wanted, most=self._host.config.limits.v2_clients)
        if kept is None:
            raise VisitorError("key_taken")
        record, again = kept
        log.info("Registered %s", name, extra={"title": name, "registration": record.id, "again": again})
        answer: dict[str, Any] = {
            "success": True,
            "message": "Registered again." if again else "Registered.",
            "name": record.name,
            "id": record.id,
            "server_key": said.server_key,
            "owner_id": record.owner,
            "created_at": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        }
        return (200, {**answer, "is_reregistration": True}) if again else (201, answer)

    def refuse(self, call: LegacyCall, error: VisitorError) -> None:
        """Answer in the dialect's shape what was refused before its body was read."""
        status, headers, body = self._refusal(call.head, error)
        if isinstance(error, NotAllowed):
            headers.append(("Allow", ", ".join(error.allowed)))
        self._host.ingress.answer_whole(call.connection, status, headers, body)

    def refuse_form(self, form: Form, error: VisitorError) -> None:
        """Answer an error in the dialect's shape."""
        form.answer(*self._refusal(form.head, error))

    def _refusal(self, head: RequestHead, error: VisitorError) -> tuple[int, Headers, bytes]:
        """A problem document that is also the dialect's own ``{success, error, message}``."""
        status, headers, body = problem(
            error, self._host.ingress.new_id(), [("Accept", "application/json"), *head.headers]
        )
        if error.status == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        said = {"success": False, "error": error.code, "message": str(error), **json.loads(body)}
        return status, headers, json.dumps(said, ensure_ascii=False).encode()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run it until the server stops."""
        task = self._host.ingress.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _json_headers() -> Headers:
    return [("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]


def _without_token(text: str | None) -> str:
    """A client's words without a base address's token, which some repeat in their `connection_url`."""
    return _SECRET.sub("…", text or "")
