"""What stands before every call: who asks, whether a web page asks, how much it sends. And the record of changes."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import pwd
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from tunneld.errors import CODES, VisitorError
from tunneld.telemetry.failures import network
from tunneld.wire.unix import Credentials

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tunneld.telemetry.trail import Trail

__all__ = [
    "MAX_BODY",
    "Guard",
    "Problem",
    "address_of",
    "as_json",
    "audit",
    "bounded",
    "json_bytes",
    "note_refusal",
    "noting",
    "refusal",
    "subject_of",
    "who_asks",
]

MAX_BODY = 64 * 1024
"""Bytes of a call's body; the largest that a call can need is a filter."""

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_SHOWN = 200  # characters of a path that a line of the audit names
log = logging.getLogger("tunneld.control")


def json_bytes(value: object) -> bytes:
    """Return compact UTF-8 JSON; not-a-number and infinities become null, half a surrogate is escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


class Problem(Response):
    """An error of RFC 9457 with our stable code, also in ``X-Tunnel-Error``."""

    media_type = "application/problem+json"

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        faults: list[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        meaning = CODES[code]
        body: dict[str, Any] = {
            "type": f"urn:tunneld:error:{code}",
            "title": meaning.title,
            "status": meaning.status,
            "detail": detail or meaning.advice,
            "code": code,
        }
        if faults is not None:
            body["faults"] = faults
        super().__init__(json_bytes(body), meaning.status, {**(headers or {}), "X-Tunnel-Error": code})


def refusal(error: VisitorError) -> Problem:
    """What a caller is told whom a guard does not let pass."""
    headers: dict[str, str] = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return Problem(error.code, error.detail, headers=headers)


@functools.lru_cache(maxsize=256)
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


async def audit(
    scope: Mapping[str, Any],
    action: str,
    text: str,
    *,
    failed: bool = False,
    reason: str | None = None,
    tunnel: str | None = None,
) -> None:
    """Log one change, done or refused, with the peer's credentials; the audit trail has it too.

    Args:
        scope: of the request; its state carries the `Credentials` that the listener read, or `who` a guard let in.
        action: the stable word of the change.
        text: what was done, a phrase.
        failed: it was asked for, but refused or not possible: a warning.
        reason: of what costs its caller nothing and may come without end: of one caller one line in
            `log.audit_repeat`, the others counted. None: each has its line.
        tunnel: that it is of, where the request's path does not say so.
    """
    state = scope.get("state", {})
    state["noted"] = True
    trail: Trail | None = getattr(scope["app"].state, "trail", None) if "app" in scope else None
    subject = {"tunnel": tunnel} if tunnel is not None else {} if failed else subject_of(scope)
    write = functools.partial(_write, trail, state.get("peer"), who_asks(scope), {"action": action, **subject}, failed)
    if reason is not None and trail is not None:
        key = (*_caller(scope), action, reason)
        if not trail.first(key, lambda more: write(f"{more} like this: {text}")):
            return
    await write(text)


def subject_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """The log's fields of what a request's path names: ``request_id``, ``tunnel``."""
    named: Mapping[str, str] = scope.get("path_params", {})
    return {field: named[key] for key, field in (("request_id", "request_id"), ("name", "tunnel")) if key in named}


def who_asks(scope: Mapping[str, Any]) -> str:
    """Who calls, for people: as the guard knows them, or by their address."""
    known = scope.get("state", {}).get("who")
    return str(known) if known else f"somebody at {address_of(scope)}"


def address_of(scope: Mapping[str, Any]) -> str:
    """The address of who calls."""
    client = scope.get("client")
    return str(client[0]) if client and client[0] else "unix"


def _caller(scope: Mapping[str, Any]) -> tuple[object, str]:
    """What a caller cannot change at will: a user's id, or the network and the credential."""
    peer: Credentials | None = scope.get("state", {}).get("peer")
    if peer is not None:
        return peer.uid, ""
    return network(address_of(scope)), scope.get("state", {}).get("who") or ""


async def _write(
    trail: Trail | None, peer: Credentials | None, who: str, subject: dict[str, str], failed: bool, text: str
) -> None:
    fields: dict[str, object] = {**subject}
    if peer is not None:
        # The name may come from a directory service over the network: never on the loop.
        user = await asyncio.get_running_loop().run_in_executor(None, _user_name, peer.uid)
        fields |= {"peer_pid": peer.pid, "peer_uid": peer.uid, "peer_gid": peer.gid, "peer_user": user}
        who = f"{user or 'uid'} (pid {peer.pid}, uid {peer.uid}, gid {peer.gid})"
    log.log(logging.WARNING if failed else logging.INFO, "control: %s, by %s", text, who, extra=fields)
    if trail is not None:
        await trail.note(who, subject["action"], text, ok=not failed)


def noting(scope: Scope, send: Send) -> Send:
    """A `send` that notes in the audit which changes were refused, or failed, of which nothing was noted yet."""
    if scope["method"] in _READS:
        return send

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            codes = [value for name, value in message["headers"] if name.lower() == b"x-tunnel-error"]
            await note_refusal(scope, codes[0].decode("latin-1") if codes else str(message["status"]))
        await send(message)

    return told


async def note_refusal(scope: Scope, code: str) -> None:
    """Note a change that was asked for and not made, once, and what it was answered."""
    if not scope["state"].get("noted"):
        await audit(scope, "refused", f"refused {_asked(scope)}: {code}", failed=True, reason=code)


def _asked(scope: Scope) -> str:
    """Its method and its path, as far as a line needs it."""
    path = scope["path"] if len(scope["path"]) <= _SHOWN else scope["path"][:_SHOWN] + "…"
    return f"{scope['method']} {path!r}"


class Guard:
    """ASGI middleware: refuses web pages, other hosts, large bodies, and changes on a read-only socket.

    A browser reaches a Unix socket only through a forwarder; then `Origin`, `Sec-Fetch-Site` or a rebound
    `Host` gives it away.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or let the application answer (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        refusal = await _refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, noting(scope, send))
            return
        await self._app(as_json(scope), bounded(receive), noting(scope, send))


def as_json(scope: Scope) -> Scope:
    """A request whose body is read as JSON, which every body here is: ``curl -d`` names another type by itself."""
    headers = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


async def _refusal(scope: Scope) -> Problem | None:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    names = {name for name, _ in scope["headers"]}
    sites = {value for name, value in scope["headers"] if name == b"sec-fetch-site"}
    if b"origin" in names or not sites <= {b"none"}:
        text = f"refused {_asked(scope)} of a web page"
        await audit(scope, "refused", text, failed=True, reason="web_page_refused")
        return Problem("web_page_refused")
    if len(hosts) != 1 or hosts[0].lower() != b"localhost":
        return Problem("misdirected")
    if scope["method"] not in _READS and scope.get("state", {}).get("readonly"):
        return Problem("read_only", "This socket only shows: use control.socket, or ask someone of its group.")
    return None


def bounded(receive: Receive) -> Receive:
    """Return a receive that refuses a body over `MAX_BODY` while the application reads it."""
    seen = 0

    async def next_part() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY:
            # FastAPI lets only this one through its body parser. The rest is not read, so the connection ends.
            raise HTTPException(413, f"at most {MAX_BODY} bytes", {"Connection": "close"})
        return message

    return next_part
