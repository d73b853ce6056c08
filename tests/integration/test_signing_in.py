"""Visitors who sign in: real visitors on a real ingress, the issuer and the service played by the test."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic, time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest

from tests.support.front import Answer, Front, front
from tests.support.issuer import CLIENT, FakeIssuer, issuer
from tests.support.running import book, settled
from tunneld.protocol.messages import AccessSettings
from tunneld.server.visitors.pages import SIGN_IN, SIGN_OUT
from tunneld.server.visitors.rules import Rules

HOST = "demo.tunnel.example"
PAGE = "Accept: text/html,*/*;q=0.8"
NAVIGATION = (PAGE, "Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document")


class World:
    """A server with an issuer, and a browser of few lines."""

    def __init__(self, it: Front, op: FakeIssuer) -> None:
        self.it = it
        self.op = op
        self.jar: dict[str, str] = {}

    def protect(self, **more: Any) -> None:
        said = {"mode": "login", "emails": ["ann@example.org"], "domains": ["good.example"]} | more
        self.it.tunnel.protect(Rules("demo", AccessSettings(**said)))

    def hurry(self) -> None:
        """Wait 0.2 s for the issuer from now on, and not for ten."""
        desk = self.it.ingress.desk.login
        assert desk is not None
        desk.issuer.config = desk.issuer.config.model_copy(update={"timeout": 0.2})

    @property
    def cookies(self) -> str:
        return "Cookie: " + "; ".join(f"{name}={value}" for name, value in self.jar.items())

    async def get(self, path: str, *lines: str, host: str = HOST, method: str = "GET", cookies: bool = True) -> Answer:
        """One request of the browser's, which keeps its cookies."""
        sent = (self.cookies,) if cookies and self.jar else ()
        client = await self.it.client()
        client.get(path, *lines, *sent, host=host, method=method)
        answer = await client.answer(method=method)
        await client.leave()
        for name, value in answer.pairs:
            if name.lower() == "set-cookie":
                cookie, _, rest = value.partition(";")
                key, _, content = cookie.partition("=")
                self.jar[key] = content
                if "Max-Age=0" in rest:
                    del self.jar[key]
        return answer

    async def begin(self, path: str = "/page?a=1") -> str:
        """Open a page, not signed in: the issuer's address that the browser is sent to."""
        self.jar.pop("tunnel-session", None)
        answer = await self.get(path, *NAVIGATION)
        assert answer.status == 302, answer.body
        return answer.headers["location"]

    async def back(self, address: str, **claims: Any) -> Answer:
        """Sign in at the issuer, and come back to the callback."""
        state = parse_qs(urlsplit(address).query)["state"][0]
        return await self.get(f"/login/callback?code={self.op.code(address, **claims)}&state={state}", PAGE, host="h")

    async def sign_in(self, path: str = "/page?a=1", **claims: Any) -> Answer:
        """The whole way; the answer that leads back to the page."""
        handed = await self.back(await self.begin(path), **claims)
        assert handed.status == 302, handed.body
        where = urlsplit(handed.headers["location"])
        return await self.get(f"{where.path}?{where.query}", PAGE, host=where.netloc)

    async def visit(self, path: str = "/x", *lines: str) -> dict[str, str]:
        """A request that gets through: its headers at the service."""
        client = await self.it.client()
        client.get(path, self.cookies, *lines, host=HOST)
        served = await self.it.served()
        served.answer()
        assert (await client.answer()).status == 200
        await client.leave()
        return served.headers

    async def refused(self, *lines: str, code: str, status: int, path: str = "/x", cookies: bool = True) -> Answer:
        answer = await self.get(path, *lines, cookies=cookies)
        assert (answer.status, answer.headers["x-tunnel-error"]) == (status, code), answer.body
        assert self.it.requests.empty(), "a byte reached the agent"
        return answer


@asynccontextmanager
async def world(*, public_url: str = "http://h", **login: Any) -> AsyncIterator[World]:
    async with issuer() as op:
        section = {"issuer": op.url, "client_id": CLIENT, "rest": 0.01, **login}
        settings = {"domain": "tunnel.example", "public_url": public_url, "auth": {"failure_window": 36000}}
        async with front(**settings, login=section) as it:
            it.ingress.desk.one_owner = lambda: False
            made = World(it, op)
            made.protect()
            yield made


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


async def test_a_browser_signs_in_and_the_service_is_told_who_it_is() -> None:
    async with world() as it:
        back = await it.sign_in()
        assert (back.status, back.headers["location"]) == (302, f"http://{HOST}/page?a=1")
        cookie = next(value for name, value in back.pairs if name.lower() == "set-cookie")
        assert cookie.startswith("tunnel-session=")
        assert "; HttpOnly; SameSite=Lax" in cookie
        told = await it.visit("/x", "X-Tunnel-User: root@example.org", "X-Tunnel-Access: admin")
        assert (told["x-tunnel-user"], told["x-tunnel-access"]) == ("ann@example.org", "read_write")
        assert "cookie" not in told, "the session is nobody's business"
        it.jar["other"] = "1"
        assert (await it.visit())["cookie"] == "other=1"


async def test_the_address_of_the_sign_in_hides_where_it_leads_back_to() -> None:
    async with world() as it:
        query = {name: value[0] for name, value in parse_qs(urlsplit(await it.begin("/secret?token=x")).query).items()}
        assert query["redirect_uri"] == "http://h/login/callback"
        assert (query["code_challenge_method"], query["response_type"]) == ("S256", "code")
        assert query["nonce"]
        assert "secret" not in jwt.utils.base64url_decode(query["state"]).decode("latin-1")


async def test_over_tls_the_cookies_are_of_that_host_alone() -> None:
    async with world(public_url="https://h") as it:
        back = await it.sign_in()
        cookie = next(value for name, value in back.pairs if name.lower() == "set-cookie")
        assert cookie.startswith("__Host-tunnel-session=")
        assert cookie.endswith("; Path=/; HttpOnly; SameSite=Lax; Secure")


async def test_below_a_prefix_only_where_the_server_has_one_owner() -> None:
    async with world() as it:
        answer = await it.get("/t/demo/x", *NAVIGATION, host="h")
        assert (answer.status, answer.headers["x-tunnel-error"]) == (403, "needs_host")
        answer = await it.get("/t/demo/x", bearer(it.op.token("http://h/t/demo")), host="h")
        assert answer.headers["x-tunnel-error"] == "needs_host"
        it.it.ingress.desk.one_owner = lambda: True
        address = (await it.get("/t/demo/x", *NAVIGATION, host="h")).headers["location"]
        handed = await it.back(address)
        where = urlsplit(handed.headers["location"])
        assert where.path == "/t/demo" + SIGN_IN
        back = await it.get(f"{where.path}?{where.query}", host="h")
        assert back.headers["location"] == "http://h/t/demo/x"
        cookie = next(value for name, value in back.pairs if name.lower() == "set-cookie")
        assert "; Path=/t/demo; " in cookie


@pytest.mark.parametrize(
    "lines",
    [
        ("Accept: text/event-stream",),
        ("Accept: */*",),
        (PAGE, "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty"),
        (PAGE, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"),
    ],
)
async def test_what_cannot_follow_a_page_is_told_where_it_gets_a_token(lines: tuple[str, ...]) -> None:
    async with world() as it:
        answer = await it.refused(*lines, code="login_required", status=401, path="/mcp?x=1")
        where = f"http://{HOST}/.well-known/oauth-protected-resource/mcp"
        assert answer.headers["www-authenticate"] == f'Bearer realm="demo", resource_metadata="{where}"'
        described = json.loads((await it.get(urlsplit(where).path)).body)
        assert described["resource"] == f"http://{HOST}/mcp"
        assert described["authorization_servers"] == [it.op.url]


async def test_metadata_below_a_prefix_stands_on_the_servers_own_host() -> None:
    async with world() as it:
        answer = await it.get("/.well-known/oauth-protected-resource/t/demo/mcp", "Origin: http://a", host="h")
        assert json.loads(answer.body)["resource"] == "http://h/t/demo/mcp"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert (await it.get("/.well-known/oauth-protected-resource/t/none/x", host="h")).status == 404


async def test_a_token_of_the_issuer_lets_in_and_does_not_reach_the_service() -> None:
    async with world() as it:
        it.jar["own"] = "1"
        for audience in (f"http://{HOST}", f"http://{HOST}/mcp"):
            told = await it.visit("/mcp", bearer(it.op.token(audience)))
            assert told["x-tunnel-user"] == "ann@example.org"
            assert "authorization" not in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"aud": "http://other.tunnel.example"}, "another audience"),
        ({"aud": f"http://{HOST}.evil.example"}, "another audience"),
        ({"aud": CLIENT}, "another audience"),
        ({"iss": "http://127.0.0.1:1"}, "another issuer"),
        ({"exp": 1}, "is over"),
        ({"exp": None}, "no end"),
        ({"nbf": 9_999_999_999}, "clock"),
        ({"email": None}, "no e-mail address"),
        ({"email": "ann@example.org\r\nX: y"}, "no e-mail address"),
        ({"email_verified": False}, "verified"),
    ],
)
async def test_a_token_that_is_not_meant_so_lets_nobody_in(change: dict[str, Any], words: str) -> None:
    async with world() as it:
        said = {name: value for name, value in ({"aud": f"http://{HOST}"} | change).items() if value is not None}
        base = {"iss": it.op.url, "iat": int(time()), "exp": int(time()) + 60, "email": "ann@example.org"}
        gone = {name for name, value in change.items() if value is None}
        claims = {k: v for k, v in ({**base, "email_verified": True} | said).items() if k not in gone}
        answer = await it.refused(bearer(it.op.sign(claims)), code="login_failed", status=401)
        assert words in json.loads(answer.body)["detail"]
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_forged_tokens_let_nobody_in() -> None:
    async with world() as it:
        good = it.op.token(f"http://{HOST}")
        claims = jwt.decode(good, options={"verify_signature": False})
        forged = [
            jwt.encode(claims, None, "none"),
            jwt.encode(claims, "k" * 32, "HS256", headers={"kid": "key-1"}),
            FakeIssuer().sign(claims),  # another key of the same name
            good[:-6] + ("AAAAAA" if not good.endswith("AAAAAA") else "BBBBBB"),
            good[:50],
            "x",
            it.op.sign(claims, crit=["x"]),
            "a." * 9000,
        ]
        for token in forged:
            await it.refused(bearer(token), code="login_failed", status=401)


async def test_who_is_signed_in_with_another_address_is_told_so() -> None:
    async with world() as it:
        await it.sign_in(email="eve@bad.example")
        answer = await it.refused(*NAVIGATION, code="login_denied", status=403)
        assert b"eve@bad.example" in answer.body
        assert SIGN_IN.encode() in answer.body
        await it.refused("Accept: text/event-stream", code="login_denied", status=403)
        await it.sign_in(SIGN_IN, email="Bob@Good.example")
        assert (await it.visit())["x-tunnel-user"] == "bob@good.example"


@pytest.mark.parametrize("how", ["state", "cut", "other server", "none", "late"])
async def test_a_state_that_is_not_ours_begins_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as it:
        address = await it.begin()
        state = parse_qs(urlsplit(address).query)["state"][0]
        code = it.op.code(address)
        if how == "state":
            state = "AAAA" + state[4:]
        elif how == "cut":
            state = state[:-4]
        elif how == "none":
            state = ""
        elif how == "late":
            now = time()
            monkeypatch.setattr("tunneld.server.visitors.signing.time", lambda: now + 700)
        else:
            async with world() as other:
                state = parse_qs(urlsplit(await other.begin()).query)["state"][0]
        answer = await it.get(f"/login/callback?code={code}&state={state}", host="h")
        assert (answer.status, answer.headers["x-tunnel-error"]) == (400, "login_begin_again")
        assert "/token" not in it.op.asked


async def test_codes_work_once_soon_and_in_the_browser_that_began(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as it:
        address = await it.begin()
        state = parse_qs(urlsplit(address).query)["state"][0]
        callback = f"/login/callback?code={it.op.code(address)}&state={state}"
        handed = await it.get(callback, host="h")
        replayed = await it.get(callback, host="h")
        assert (replayed.status, replayed.headers["x-tunnel-error"]) == (400, "login_begin_again")
        where = urlsplit(handed.headers["location"])
        path = f"{where.path}?{where.query}"
        assert where.netloc == HOST
        elsewhere = await it.get(path, host="other.tunnel.example")
        assert elsewhere.status == 404
        assert (await it.get(path)).status == 302
        assert (await it.get(path)).headers["x-tunnel-error"] == "login_begin_again"
        handed = await it.back(await it.begin())
        path = f"{SIGN_IN}?{urlsplit(handed.headers['location']).query}"
        stranger = await it.get(path, cookies=False)
        assert (stranger.status, stranger.headers["x-tunnel-error"]) == (400, "login_begin_again")
        assert (await it.get(path)).status == 400, "it was used"
        handed = await it.back(await it.begin())
        now = time()
        monkeypatch.setattr("tunneld.server.visitors.signing.time", lambda: now + 61)
        path = f"{SIGN_IN}?{urlsplit(handed.headers['location']).query}"
        assert (await it.get(path)).status == 400


async def test_where_a_sign_in_leads_is_never_another_host() -> None:
    async with world() as it:
        for path in ("//evil.example/x", "/\\evil.example", "/%2F%2Fevil.example"):
            back = await it.sign_in(path)
            assert back.headers["location"] == f"http://{HOST}{path}"
        back = await it.sign_in("/" + "x" * 3000)
        assert back.headers["location"] == f"http://{HOST}/"


async def test_id_tokens_must_be_of_this_sign_in() -> None:
    async with world() as it:
        for claims, words in (
            ({"nonce": "x"}, b"not of this sign-in"),
            ({"aud": "somebody"}, b"another audience"),
            ({"iss": "http://127.0.0.1:1"}, b"another issuer"),
            ({"azp": "somebody"}, b"another client"),
            ({"email_verified": False}, b"verified"),
        ):
            it.op.claims = {}
            answer = await it.back(await it.begin(), **claims)
            assert (answer.status, answer.headers["x-tunnel-error"]) == (403, "login_refused")
            assert words in answer.body


@pytest.mark.parametrize("clock", [3600, -3600])
async def test_a_clock_that_is_off_is_named(clock: float) -> None:
    async with world() as it:
        it.op.clock = clock
        with book() as lines:
            answer = await it.back(await it.begin())
            assert (answer.status, answer.headers["x-tunnel-error"]) == (403, "login_refused")
            assert (b"clock" if clock > 0 else b"is over") in answer.body
            assert lines.find("refused a sign-in to demo")
        it.op.clock = clock / 3600 * 50
        assert (await it.sign_in()).status == 302


async def test_cookies_that_are_not_whole_or_not_for_here_let_nobody_in() -> None:
    async with world() as it, world() as other:
        await it.sign_in()
        await other.sign_in()
        good = it.jar["tunnel-session"]
        for bad in (good[:-1], good[:20], "x", ".", "é", other.jar["tunnel-session"], good[1:]):
            it.jar["tunnel-session"] = bad
            with book() as lines:
                await it.refused("Accept: */*", code="login_failed", status=401)
                text = "\n".join(entry.text for entry in lines.entries)
                assert "refused a visitor of demo" in text
                assert good[:16] not in text
            assert (await it.get("/x", *NAVIGATION)).status == 302, "a browser begins again"
        it.jar["tunnel-session"] = good
        tunnel = it.it.registry.claim("second", 0.0)
        tunnel.protect(Rules("second", AccessSettings(mode="login", emails=["ann@example.org"])))
        answer = await it.get("/x", "Accept: */*", host="second.tunnel.example")
        assert (answer.status, "another tunnel" in json.loads(answer.body)["detail"]) == (401, True)
        await it.visit()


async def test_neighbouring_pages_do_not_act_for_who_is_signed_in() -> None:
    async with world() as it:
        await it.sign_in()
        neighbour = "Origin: http://evil.tunnel.example"
        await it.refused(neighbour, code="login_required", status=401)
        await it.refused(neighbour, "Sec-Fetch-Site: same-site", code="login_required", status=401)
        for lines in (
            ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"),
            ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"),
        ):
            await it.refused(*lines, code="login_required", status=401)
        await it.visit("/x", f"Origin: http://{HOST}", "Sec-Fetch-Site: same-origin")
        await it.visit("/x", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document")


async def streaming(it: World, path: str = "/events") -> tuple[Any, Any]:
    client = await it.it.client()
    client.get(path, "Accept: text/event-stream", it.cookies, host=HOST)
    served = await it.it.served()
    served.events()
    assert (await client.head())[0] == 200
    return client, served


async def test_signing_out_needs_the_tunnels_own_page_and_ends_the_streams() -> None:
    async with world() as it:
        await it.sign_in()
        old = dict(it.jar)
        client, served = await streaming(it)
        page = await it.get(SIGN_OUT)
        assert b"ann@example.org" in page.body
        assert (await it.get(SIGN_OUT, "Origin: http://evil.tunnel.example", method="POST")).status == 401
        assert served.reason is None
        gone = await it.get(SIGN_OUT, f"Origin: http://{HOST}", "Content-Length: 0", method="POST")
        assert gone.status == 200
        assert f"{it.op.url}/out?client_id={CLIENT}".encode() in gone.body
        assert await served.cancel_reason() == "operator"
        assert await client.chunk() == b""
        assert "tunnel-session" not in it.jar
        it.jar = old
        await it.refused("Accept: */*", code="login_required", status=401)
        config = it.it.config
        later = config.login.model_copy(update={"session": 60.0})  # type: ignore[union-attr]
        it.it.ingress.configure(config.model_copy(update={"login": later}))
        await it.refused("Accept: */*", code="login_required", status=401)
        await client.leave()


async def test_streams_end_with_the_session_and_with_the_token() -> None:
    async with world(session="2.5s", skew=0) as it:
        await it.sign_in()
        client, served = await streaming(it)
        assert await served.cancel_reason() == "operator"
        assert await client.chunk() == b""
        answer = await it.refused("Accept: */*", code="login_required", status=401)
        assert b"over" in answer.body
        other = await it.it.client()
        token = it.op.token(f"http://{HOST}", exp=int(time()) + 3)
        other.get("/more", "Accept: text/event-stream", bearer(token), host=HOST)
        served = await it.it.served()
        served.events()
        assert await served.cancel_reason() == "operator"
        for one in (client, other):
            await one.leave()


class Permits:
    """Permissions as owners give them."""

    def __init__(self) -> None:
        self.levels: dict[str, str | None] = {}
        self.active: list[str] = []

    def standing(self, tunnel: Any, email: str) -> object | None:
        return email if email in self.levels else None

    def permission_of(self, tunnel: Any, email: str) -> str | None:
        return self.levels.get(email)

    def activated(self, tunnel: Any, email: str, address: str) -> None:
        self.active.append(email)


@pytest.mark.parametrize("websocket", [False, True])
async def test_permissions_let_in_and_taking_one_back_ends_what_it_let_in(websocket: bool) -> None:
    async with world() as it:
        permits = it.it.ingress.desk.permissions = Permits()
        permits.levels["cat@else.example"] = "admin"
        await it.sign_in(email="cat@else.example")
        assert permits.active == ["cat@else.example"]
        assert (await it.visit())["x-tunnel-access"] == "admin"
        if websocket:
            client = await it.it.client()
            upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
            client.get("/ws", it.cookies, *upgrade, key, f"Origin: http://{HOST}", host=HOST)
            served = await it.it.served()
            accept = ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
            served.stream.send_head(101, [("Upgrade", "websocket"), ("Connection", "Upgrade"), accept])
            assert (await client.head())[0] == 101
        else:
            client, served = await streaming(it)
        permits.levels["cat@else.example"] = "read_only"
        it.it.ingress.desk.changed(it.it.tunnel)
        assert await served.cancel_reason() == "operator", "less than it was"
        refused = await it.get("/x", "Content-Length: 0", method="POST")
        assert refused.headers["x-tunnel-error"] == "read_only"
        assert (await it.visit())["x-tunnel-access"] == "read_only"
        second, served = await streaming(it, "/more")
        permits.levels["cat@else.example"] = None
        it.it.ingress.desk.changed(it.it.tunnel)
        assert await served.cancel_reason() == "operator"
        await it.refused("Accept: */*", code="login_denied", status=403)
        permits.levels["ann@example.org"] = None
        await it.sign_in(SIGN_IN, email="ann@example.org")
        await it.refused("Accept: */*", code="login_denied", status=403)
        for one in (client, second):
            await one.leave()


async def test_an_issuer_that_is_down_keeps_out_the_new_ones_alone() -> None:
    async with world() as it:
        await it.sign_in()
        token = it.op.token(f"http://{HOST}")
        await it.visit("/x", bearer(token))
        it.hurry()
        it.op.hanging |= {"/.well-known/openid-configuration", "/jwks", "/token"}
        await it.visit()
        signed_in = dict(it.jar)
        answer = await it.back(await it.begin())
        assert (answer.status, answer.headers["x-tunnel-error"]) == (503, "login_unavailable")
        assert b"does not answer within" in answer.body
        assert "retry-after" in answer.headers
        it.jar = signed_in
        await it.visit()


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/.well-known/openid-configuration", b"<html>", "no JSON"),
        ("/.well-known/openid-configuration", b"[" * 100_000, "nested"),
        ("/.well-known/openid-configuration", b'{"issuer": "http://evil"}', "calls itself"),
        ("/.well-known/openid-configuration", b" " * 300_000, "longer than 262144 bytes"),
        ("/jwks", b'{"keys": 1}', "no JSON Web Key Set"),
        ("/jwks", None, "does not answer"),
        ("/.well-known/openid-configuration", b"down", "cannot be reached"),
    ],
)
async def test_an_issuer_that_answers_rubbish_is_named(path: str, body: bytes | None, words: str) -> None:
    async with world() as it:
        if body is None:
            it.hurry()
            it.op.hanging.add(path)
        elif body == b"down":
            it.it.ingress.configure(
                it.it.config.model_copy(
                    update={"login": it.it.config.login.model_copy(update={"issuer": "http://127.0.0.1:9"})}  # type: ignore[union-attr]
                )
            )
        else:
            it.op.bodies[path] = body
        with book() as lines:
            for asked in (NAVIGATION, (bearer(it.op.token(f"http://{HOST}")),)):
                answer = await it.refused(*asked, code="login_unavailable", status=503)
                assert words in answer.body.decode(), answer.body
            assert lines.find(words, by="tunneld.login")
        it.op.hanging.clear()
        it.op.bodies.clear()
        if body is not None and body != b"down":
            desk = it.it.ingress.desk.login
            assert desk is not None
            await settled(lambda: desk.issuer.may_ask(monotonic()))  # it is left alone for `login.rest`
            assert (await it.sign_in()).status == 302, "it works as soon as the issuer does"


async def test_keys_are_rotated_and_an_unknown_one_is_asked_for_at_most_now_and_then() -> None:
    async with world(rest="30s") as it:
        await it.visit("/x", bearer(it.op.token(f"http://{HOST}")))
        desk = it.it.ingress.desk.login
        assert desk is not None
        desk.issuer._tried -= 31
        it.op.rotate()
        await it.visit("/x", bearer(it.op.token(f"http://{HOST}", jti="2")))
        asked = it.op.asked.count("/jwks")
        assert asked == 2
        it.op.rotate()
        for number in range(5):
            await it.refused(bearer(it.op.token(f"http://{HOST}", jti=f"{number}")), code="login_failed", status=401)
        assert it.op.asked.count("/jwks") == asked


async def test_one_fetch_serves_all_who_wait_and_more_than_the_bound_are_sent_away() -> None:
    async with world(waiting=3, timeout="5s") as it:
        it.op.hanging.add("/jwks")
        clients = [await it.it.client() for _ in range(5)]
        for client in clients:
            client.get("/x", *NAVIGATION, host=HOST)
        late = await clients[3].answer()
        assert (late.status, late.headers["x-tunnel-error"]) == (503, "too_many_checks")
        await settled(lambda: "/jwks" in it.op.asked)
        assert it.op.asked.count("/jwks") == 1
        for client in clients:
            await client.leave()


async def test_other_rules_or_another_issuer_end_what_they_let_in_no_longer() -> None:
    async with world() as it:
        await it.sign_in()
        client, served = await streaming(it)
        it.protect()
        assert served.reason is None
        it.protect(emails=["bob@example.org"])
        assert await served.cancel_reason() == "operator"
        it.protect()
        second, served = await streaming(it, "/more")
        config = it.it.config
        other = config.login.model_copy(update={"client_id": "another"})  # type: ignore[union-attr]
        it.it.ingress.configure(config.model_copy(update={"login": other}))
        await it.refused("Accept: */*", code="login_failed", status=401)
        it.it.ingress.configure(config.model_copy(update={"login": None}))
        assert await served.cancel_reason() == "operator"
        await it.refused("Accept: */*", code="login_unavailable", status=503)
        for one in (client, second):
            await one.leave()


async def test_wrong_credentials_are_slowed_down() -> None:
    async with world() as it:
        token = FakeIssuer().sign({"iss": it.op.url})
        codes = [(await it.get("/x", bearer(token))).status for _ in range(32)]
        assert codes == [401] * 30 + [429] * 2
        answer = await it.get("/login/callback?code=x&state=y", host="h")
        assert answer.status == 429
