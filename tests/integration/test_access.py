"""Who may visit a protected tunnel: real visitors on a real ingress, the service played by the test."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from time import time
from typing import Any

import bcrypt
import pytest

from tests.support.front import Client, Front, front
from tests.support.issuer import CLIENT, issuer
from tests.support.running import settled
from tunneld.protocol.links import sign
from tunneld.protocol.messages import AccessKey, AccessSettings, SseSettings
from tunneld.server.replay import COOKIE
from tunneld.server.visitors.cookies import Session
from tunneld.server.visitors.rules import OPEN_RULES, Claim, Rules

KEY = "k-0123456789abcdef"
LINKS = b"l" * 32
PASSWORD = "päss:word"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")


def basic(user: str = "ann", password: str = PASSWORD) -> str:
    return "Authorization: Basic " + b64encode(f"{user}:{password}".encode()).decode()


def hashed(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def said(mode: str, **more: Any) -> AccessSettings:
    keys = [AccessKey("bob", hashed(KEY))] if mode == "key" else []
    users = {"ann": HASH} if mode == "basic" else {}
    links = "" if mode == "open" else LINKS.hex()
    return AccessSettings(**{"mode": mode, "keys": keys, "users": users, "links": links} | more)


def protect(it: Front, access: AccessSettings) -> None:
    it.tunnel.protect(Rules("demo", access))


UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
UPGRADE += ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",)
#: Kind of visitor -> (method, lines).
VISITORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "browser": ("GET", ("Accept: text/html,application/xhtml+xml,*/*;q=0.8",)),
    "eventsource": ("GET", ("Accept: text/event-stream",)),
    "curl": ("GET", ("Accept: */*",)),
    "mcp": ("POST", ("Accept: application/json, text/event-stream", "Content-Length: 2")),
    "websocket": ("GET", UPGRADE),
    "head": ("HEAD", ()),
    "preflight": ("OPTIONS", ("Origin: https://app.example", "Access-Control-Request-Method: POST")),
}
SIGNED_IN = ("login", "token", "login_read_only")
USERS = {"key": "bob", "bearer": "bob", "basic": "ann", "link": "link", "read_only": "bob"}
USERS |= dict.fromkeys(SIGNED_IN, "ann@example.org")
#: Mode of access -> (settings, what a good visitor shows).
MODES: dict[str, tuple[AccessSettings, tuple[str, ...]]] = {
    "open": (said("open"), ()),
    "key": (said("key"), (f"X-API-Key: {KEY}",)),
    "bearer": (said("key"), (f"authorization: bearer {KEY}",)),
    "basic": (said("basic"), (basic(),)),
    "link": (said("key"), ()),
    "allowed": (said("open", allow=["127.0.0.0/8"]), ()),
    "denied": (said("open", deny=["127.0.0.1/32"]), ()),
    "read_only": (said("key", level="read_only"), (f"X-API-Key: {KEY}",)),
    "login": (said("login", emails=["ann@example.org"]), ()),  # with a session cookie
    "token": (said("login", domains=["example.org"]), ()),  # with a bearer token of the issuer's
    "login_read_only": (said("login", domains=["*"], level="read_only"), ()),
}


@asynccontextmanager
async def entrance(mode: str) -> AsyncIterator[tuple[Front, tuple[str, ...]]]:
    """A server for the mode, with an issuer where it takes one, and what a good visitor shows."""
    if MODES[mode][0].mode != "login":
        async with front() as it:
            yield it, MODES[mode][1]
        return
    async with issuer() as op, front(login={"issuer": op.url, "client_id": CLIENT}) as it:
        login = it.ingress.desk.login
        assert login is not None
        cookie = login._seal.sign(Session("ann@example.org", "demo", "id", time() + 60))
        token = f"Authorization: Bearer {op.token('http://h/t/demo')}"
        yield it, (token if mode == "token" else f"Cookie: a=b; tunnel-session={cookie}",)


def expected(mode: str, visitor: str, *, shows: bool) -> int:
    """The status that each visitor gets; 200 is the service's own."""
    if mode == "denied":
        return 403
    if mode in ("open", "allowed"):
        return 200
    if mode in SIGNED_IN and visitor == "browser" and not shows:
        return 302  # to the issuer
    if visitor == "preflight" and mode != "basic":
        return 204  # answered by the server: a key may be sent
    if not shows:
        return 401
    return 403 if mode in ("read_only", "login_read_only") and visitor in ("mcp", "websocket") else 200


@pytest.mark.parametrize("shows", [True, False], ids=["with", "without"])
@pytest.mark.parametrize("visitor", VISITORS)
@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_with_every_kind_of_visitor(mode: str, visitor: str, shows: bool) -> None:
    access = MODES[mode][0]
    method, more = VISITORS[visitor]
    path = "/x?a=1"
    async with entrance(mode) as (it, lines):
        it.ingress.desk.one_owner = lambda: True
        protect(it, access)
        if mode == "link" and shows:
            path = sign(LINKS, "demo", path, int(time()) + 60)
        client = await it.client()
        client.get(f"/t/demo{path}", *(lines if shows else ()), *more, "X-Tunnel-User: root", method=method)
        if method == "POST":
            client.send(b"{}")
        status = expected(mode, visitor, shows=shows)
        if status == 200:
            served = await it.served()
            assert served.request.path == "/x?a=1"
            told = {name: value for name, value in served.headers.items() if name.startswith("x-tunnel-")}
            user = USERS.get(mode)
            level = "read_only" if mode.endswith("read_only") else "read_write"
            wanted = {} if mode == "open" else {"x-tunnel-access": level} | ({"x-tunnel-user": user} if user else {})
            assert told == wanted
            if mode in SIGNED_IN:
                assert served.headers.get("cookie") == (None if mode == "token" else "a=b")
                assert "authorization" not in served.headers
            if method == "POST":
                assert await served.whole() == b"{}"
            served.answer(200, body=b"ok" if method != "HEAD" else None)
        answer = await client.answer(method=method)
        assert answer.status == status
        if status == 200:
            assert "x-tunnel-error" not in answer.headers
            await client.leave()
            return
        assert it.requests.empty(), "a byte reached the agent"
        if status == 401:
            challenge = answer.headers["www-authenticate"]
            assert challenge.startswith("Basic realm=" if mode == "basic" else "Bearer realm=")
            assert ("resource_metadata=" in challenge) == (mode in SIGNED_IN)
            assert answer.headers["x-tunnel-error"] == "login_required"
            page = answer.headers["content-type"].startswith("text/html")
            assert page == (visitor == "browser")
        if status == 403:
            assert answer.headers["x-tunnel-error"] == ("address_denied" if mode == "denied" else "read_only")
        await client.leave()


async def refused(
    it: Front, *lines: str, path: str = "/t/demo/x", code: str = "login_failed", status: int = 401
) -> Any:
    answer = await it.get(path, *lines)
    assert (answer.status, answer.headers["x-tunnel-error"]) == (status, code)
    assert it.requests.empty()
    return answer


async def test_wrong_keys_are_told_apart_and_none_gets_in() -> None:
    async with front() as it:
        old = AccessKey("old", hashed("expired-expired-"), time() - 1)
        protect(it, said("key", keys=[AccessKey("bob", hashed(KEY)), old]))
        wrong = await refused(it, "X-API-Key: nope")
        assert wrong.headers["www-authenticate"] == 'Bearer realm="demo", error="invalid_token"'
        assert b"has expired" in (await refused(it, "Authorization: Bearer expired-expired-")).body
        await refused(it, basic(), code="login_required")
        await refused(it, "X-API-Key: ")
        await refused(it, f"Authorization: Basic {KEY}", code="login_required")


async def test_signed_addresses_hold_for_their_path_tunnel_and_time() -> None:
    async with front() as it:
        protect(it, said("key"))
        until = int(time()) + 60
        await refused(it, path="/t/demo" + sign(LINKS, "demo", "/x", until - 61))
        await refused(it, path="/t/demo" + sign(LINKS, "other", "/x", until))
        await refused(it, path="/t/demo" + sign(b"x" * 32, "demo", "/x", until))
        good = sign(LINKS, "demo", "/x", until)
        await refused(it, path="/t/demo" + good.replace("/x", "/y"))
        await refused(it, path="/t/demo" + good.replace(str(until), str(until + 1)))
        await refused(it, path="/t/demo/x?tunnel_link=1.short", code="login_required")
        await refused(it, path="/t/demo" + good + "&more=1", code="login_required")


async def test_passwords_need_a_host_where_tunnels_have_several_owners() -> None:
    async with front(domain="tunnel.example") as it:
        protect(it, said("basic"))
        it.ingress.desk.one_owner = lambda: False
        await refused(it, basic(), code="needs_host", status=403)
        await refused(it, code="needs_host", status=403)
        client = await it.client()
        client.get("/x", basic(), host="demo.tunnel.example")
        (await it.served()).answer()
        assert (await client.answer()).status == 200
        client.get("/x", basic(password="wrong"), host="demo.tunnel.example")
        assert (await client.answer()).status == 401
        await client.leave()


async def test_a_good_password_is_checked_once_and_wrong_ones_are_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []
    check = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hash_: checked.append(password) or check(password, hash_))
    async with front(auth={"failure_window": 36000}) as it:
        it.ingress.desk.one_owner = lambda: True
        protect(it, said("basic"))
        client = await it.client()
        for _ in range(3):
            client.get("/t/demo/x", basic())
            (await it.served()).answer()
            assert (await client.answer()).status == 200
        assert checked == [PASSWORD.encode()]
        codes = [(await it.get("/t/demo/x", basic(user="eve", password=f"{n}"))).status for n in range(32)]
        assert codes == [401] * 30 + [429] * 2
        assert len(checked) == 31, "beyond the bound nothing is hashed"
        client.get("/t/demo/x", basic())
        (await it.served()).answer()
        assert (await client.answer()).status == 200, "who is remembered as good is let in"
        await client.leave()


async def test_wrong_users_take_as_long_as_wrong_passwords() -> None:
    rules = Rules("demo", said("basic"))
    claims = [rules.judge("/", [tuple(basic(user, "x").split(": ", 1))], 0.0)[0] for user in ("ann", "eve")]  # type: ignore[list-item]
    assert all(isinstance(claim, Claim) for claim in claims)
    assert claims[0].hash == claims[1].hash  # type: ignore[union-attr]  # the same work for both


async def streaming(it: Front, *lines: str, path: str = "/x") -> tuple[Client, Any]:
    client = await it.client()
    client.get(f"/t/demo{path}", "Accept: text/event-stream", *lines)
    served = await it.served()
    served.events()
    assert (await client.head())[0] == 200
    return client, served


@pytest.mark.parametrize("kind", ["revoked", "deny", "level", "mode", "users", "opened before"])
async def test_a_change_of_rules_ends_the_streams_that_they_let_in_no_longer(kind: str) -> None:
    async with front() as it:
        it.ingress.desk.one_owner = lambda: True
        first = said("basic" if kind == "users" else "open" if kind == "opened before" else "key")
        protect(it, first)
        client, served = await streaming(it, f"X-API-Key: {KEY}", basic())
        protect(it, first)  # nothing changes: it goes on
        served.stream.send(b"data: 1\n\n")
        assert await client.chunk() == b"data: 1\n\n"
        later = {
            "revoked": said("key", keys=[]),
            "deny": said("key", deny=["127.0.0.1/32"]),
            "level": said("key", level="read_only"),
            "mode": said("basic"),
            "users": said("basic", users={"ann": HASH[:-1] + ("a" if HASH[-1] != "a" else "b")}),
            "opened before": said("key"),
        }
        protect(it, later[kind])
        assert await served.cancel_reason() == "operator"
        assert await client.chunk() == b""
        if kind not in ("level", "opened before"):  # there it may read anew
            assert (await it.get("/t/demo/x", "Accept: text/event-stream", f"X-API-Key: {KEY}")).status in (401, 403)
        await client.leave()


async def test_streams_end_with_the_key_or_the_address_that_let_them_in() -> None:
    async with front() as it:
        soon = time() + 1.2
        protect(it, said("key", keys=[AccessKey("bob", hashed(KEY), soon), AccessKey("for-good", hashed("x" * 20))]))
        client, served = await streaming(it, f"X-API-Key: {KEY}")
        other, stays = await streaming(it, f"X-API-Key: {'x' * 20}")
        linked, shared = await streaming(it, path=sign(LINKS, "demo", "/x", int(soon) + 1))
        assert await served.cancel_reason() == "operator"
        assert soon <= time() < soon + 1
        assert await client.chunk() == b""
        assert await shared.cancel_reason() == "operator"
        assert await linked.chunk() == b""
        assert stays.reason is None
        for one in (client, other, linked):
            await one.leave()
        await it.settle()
        assert len(it.ingress.desk) == 0


async def test_coming_back_to_a_stream_needs_what_let_one_in() -> None:
    async with front(sse=SseSettings(keepalive=0, replay=60.0)) as it:
        protect(it, said("key"))
        client = await it.client()
        client.get("/t/demo/sse", "Accept: text/event-stream", f"X-API-Key: {KEY}")
        served = await it.served()
        served.events()
        _, pairs = await client.head()
        cookie = next(v for n, v in pairs if n.lower() == "set-cookie" and v.startswith(COOKIE)).partition(";")[0]
        served.stream.send(b"id: 1\ndata: 1\n\n")
        await client.chunk()
        await client.leave()
        async with asyncio.timeout(10):
            while next(iter(it.ingress.exchanges.values())).state != "kept":
                await asyncio.sleep(0)
        back = ("Accept: text/event-stream", f"Cookie: {cookie}", "Last-Event-ID: 1")
        assert (await it.get("/t/demo/sse", *back)).status == 401
        client = await it.client()
        client.get("/t/demo/sse", *back, f"X-API-Key: {KEY}")
        assert (await client.head())[0] == 200
        protect(it, said("key", keys=[]))  # and it ends for a visitor that came back as well
        assert await served.cancel_reason() == "operator"
        await client.leave()


async def test_who_waits_for_the_tunnel_is_judged_again_when_it_is_back() -> None:
    async with front() as it:
        it.tunnel.hold(0.0)
        it.tunnel.offline_since = asyncio.get_running_loop().time()
        client = await it.client()
        client.get("/t/demo/x")
        await settled(lambda: it.ingress.exchanges)
        protect(it, said("key"))
        answer = await client.answer()  # with the key, too, which meant nothing while the rules were not known
        assert (answer.status, answer.headers["x-tunnel-error"]) == (503, "tunnel_offline")
        assert answer.headers["retry-after"] == "1"
        assert it.requests.empty()
        protect(it, AccessSettings())
        assert it.tunnel.access.free == OPEN_RULES.free
        await client.leave()
