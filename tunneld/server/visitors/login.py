"""Visitors who sign in (`access: {mode: login}`): a session cookie of the tunnel's own host, or the issuer's token.

A browser goes from the tunnel's page to the issuer, from there to the one address registered there, of the server's own
host, and with a code that works once, soon, and in that browser back to the tunnel's host, which sets the cookie. What
cannot follow pages shows a bearer token of the same issuer, as MCP's clients do (RFC 9728). Who somebody is, and
whether they may come, are two questions: the second is asked anew whenever the answer may have changed.
"""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from secrets import token_urlsafe
from time import monotonic, time
from typing import Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

from tunneld.config.login import LoginConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers, get, lower, prefers_html
from tunneld.server.visitors import claims as tokens
from tunneld.server.visitors.cookies import CookieFault, Seal, Session, cookie_of, digest, names_of, without
from tunneld.server.visitors.issuer import Issuer, Refusal
from tunneld.server.visitors.pages import HEADERS, SIGN_IN, SIGN_OUT, ask_sign_out, denied, signed_out
from tunneld.server.visitors.reception import Reception, Refused, Visited, Work
from tunneld.server.visitors.rules import Grant, granted
from tunneld.telemetry.failures import Failures
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_server import ServerConnection

__all__ = ["CALLBACK", "METADATA", "Login", "Permits"]

log = logging.getLogger("tunneld.login")

CALLBACK = "/login/callback"
"""Of the server's own host: what is registered at the issuer."""
METADATA = "/.well-known/oauth-protected-resource"
"""RFC 9728."""
_HANDED = 60.0  # seconds that a code from the callback to the tunnel's host is good for
_QUOTABLE = re.compile(r"[!#-\[\]-~]{0,512}").fullmatch
_LONG = 4096  # characters of a header that is checked anew each time: what is remembered has a bound in bytes too
_NO_STORE: Headers = [("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer")]


class Permits(Protocol):
    """What is asked of the permissions that owners gave (`server.permissions.Permissions`)."""

    def standing(self, tunnel: Visited, email: str) -> object | None:
        """What was said of that address, whether it holds or not; None: nothing."""

    def permission_of(self, tunnel: Visited, email: str) -> str | None:
        """The level that holds now."""

    def activated(self, tunnel: Visited, email: str, address: str) -> None:
        """That address has signed in."""


@dataclass(frozen=True, slots=True)
class _Handed:
    """Somebody who was signed in at the callback, on the way to the tunnel's host."""

    email: str
    tunnel: str
    prefixed: bool
    path: str
    binding: str
    until: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """A cookie header or a token that was checked: what it was worth, and for which rules.

    Attributes:
        grant: None: they may not come.
        kept: the header without what was ours; empty: nothing is left.
    """

    rules: object
    email: str
    grant: Grant | None
    kept: str
    expires: float
    id: str = field(repr=False)


class Login:
    """The sign-ins of one server, at one issuer.

    Args:
        secret: signs the cookies.
        failures: of each address, those of other credentials among them.
        permits: the permissions, if there are any by now.
        left: told when somebody signed out: their streams end.
    """

    def __init__(
        self,
        ingress: Reception,
        config: LoginConfig,
        *,
        secret: bytes,
        failures: Failures,
        permits: Callable[[], Permits | None],
        left: Callable[[], None],
    ) -> None:
        self._ingress = ingress
        self.config = config
        self.issuer = Issuer(config)
        self._seal = Seal(secret, config.issuer, config.client_id)
        self._failures = failures
        self._permits = permits
        self._left = left
        self._work = Work(ingress, most=config.waiting)
        self._seen: dict[str, _Seen] = {}  # header's value, as it came -> what it is worth
        self._handed: OrderedDict[str, _Handed] = OrderedDict()
        self._out: OrderedDict[str, float] = (
            OrderedDict()
        )  # sessions that were signed out -> when they would have ended

    async def close(self) -> None:
        """Let go of what waits and of the issuer."""
        await self._work.close()
        await self.issuer.close()

    def forget(self) -> None:
        """Who may come may have changed: ask anew of everybody."""
        self._seen.clear()

    def reach(self) -> None:
        """Ask the issuer for its addresses and keys, before the first visitor needs them."""
        self._work.alone(self.issuer.refresh)

    # -- in ----------------------------------------------------------------------------------------------

    def admit(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, path: str, prefix: str, client: str
    ) -> Grant | None:
        """What lets this visitor in; their credential is taken off `head`. None: it is answered, or will be.

        Raises:
            Refused: it is not let in.
        """
        if path.startswith("/.") and self._own(connection, head, tunnel, path, prefix, client):
            return None
        headers, now = head.headers, time()
        bearer = -1
        fault: CookieFault | None = None
        for at, (name, value) in enumerate(headers):
            size = len(name)
            if size == 6 and lower(name) == "cookie":
                seen = self._seen.get(value)
                if seen is None or seen.rules is not tunnel.access or seen.expires <= now:
                    try:
                        seen = self._cookie(value, tunnel, prefix, now, client)
                    except CookieFault as error:
                        fault = error
                        continue
                if seen is not None and _same_origin(head):
                    head.headers = headers[:at] + headers[at + 1 :]
                    if seen.kept:
                        head.headers.insert(at, (name, seen.kept))
                    return self._let_in(connection, head, tunnel, seen, prefix)
            elif size == 13 and value[:7].lower() == "bearer " and lower(name) == "authorization":
                bearer = at
        if bearer >= 0:
            return self._by_token(connection, head, tunnel, bearer, prefix, client)
        if _is_navigation(head):
            self._begin(connection, head, tunnel, path, prefix)
            return None
        challenge = self.challenge(tunnel, path, prefix)
        if fault is None:
            raise Refused(VisitorError("login_required", f"Sign in at {_base(tunnel, prefix)}/ ."), challenge)
        if fault.over:
            raise Refused(VisitorError("login_required", str(fault)), challenge)
        raise self._failed(str(fault), tunnel, client, challenge)

    def challenge(self, tunnel: Visited, path: str, prefix: str, *, error: str = "") -> Headers:
        """How a client is told where it gets a token."""
        below = prefix + path.partition("?")[0]
        if below == "/" or not _QUOTABLE(below):
            below = prefix
        metadata = f"{_origin(_base(tunnel, prefix))}{METADATA}{below}"
        wrong = f', error="{error}"' if error else ""
        return [("WWW-Authenticate", f'Bearer realm="{tunnel.name}", resource_metadata="{metadata}"{wrong}')]

    def renewed(self, tunnel: Visited, grant: Grant) -> Grant | None:
        """What a grant of before is worth now."""
        _, email, session, issuer = grant.proof
        if issuer != self.config.issuer or session in self._out:
            return None
        level = self._level(tunnel, email)
        return granted(email, level, grant.proof, grant.expires) if level is not None else None

    # -- cookies and tokens ------------------------------------------------------------------------------

    def _cookie(self, header: str, tunnel: Visited, prefix: str, now: float, client: str) -> _Seen | None:
        """What a Cookie header is worth; None: it has no session. Raises CookieFault."""
        session_name, begun_name, _ = self._names(tunnel, prefix)
        fault: CookieFault | None = None
        for value in cookie_of(header, session_name):
            try:
                session = self._seal.session(value, tunnel.name, now)
            except CookieFault as error:
                fault = error
                continue
            if session.id in self._out:
                fault = CookieFault("This session was signed out.", over=True)
                continue
            kept = without(header, (session_name, begun_name))
            return self._remember(header, tunnel, session.email, session.id, kept, session.expires, client)
        if fault is not None:
            raise fault
        return None

    def _remember(
        self, value: str, tunnel: Visited, email: str, identity: str, kept: str, expires: float, client: str
    ) -> _Seen:
        """Ask whether they may come, and keep the answer until it may be another."""
        level = self._level(tunnel, email)
        proof = ("login", email, identity, self.config.issuer)
        grant = None
        if level is not None:
            grant = granted(email, level, proof, expires)
            permits = self._permits()
            if permits is not None:
                permits.activated(tunnel, email, client)
        seen = _Seen(tunnel.access, email, grant, kept, expires, identity)
        if len(value) > _LONG:
            return seen
        if len(self._seen) >= self.config.remembered:
            del self._seen[next(iter(self._seen))]
        self._seen[value] = seen
        return seen

    def _level(self, tunnel: Visited, email: str) -> str | None:
        """What this address may do there: by its permission, where it has one, else by the agent's file."""
        permits = self._permits()
        if permits is not None and permits.standing(tunnel, email) is not None:
            return permits.permission_of(tunnel, email)
        return tunnel.access.person(email)

    def _let_in(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, seen: _Seen, prefix: str
    ) -> Grant | None:
        if seen.grant is not None:
            return seen.grant
        error = VisitorError("login_denied", f"{seen.email} may not visit {tunnel.name}.")
        if not _is_navigation(head):
            raise Refused(error, [])
        headers = [*HEADERS, ("X-Tunnel-Error", error.code), ("X-Tunnel-Request-Id", self._ingress.new_id())]
        self._ingress.answer_whole(connection, error.status, headers, denied(tunnel.name, seen.email, prefix))
        return None

    def _by_token(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, at: int, prefix: str, client: str
    ) -> Grant | None:
        value, now = head.headers[at][1], time()
        seen = self._seen.get(value)
        if seen is None or seen.rules is not tunnel.access or seen.expires <= now:
            keys = self.issuer.keys
            if keys is None:
                self._ask_again(connection, head)
                return None
            try:
                said = tokens.check(
                    keys.claims(value[7:].strip()),
                    issuer=self.config.issuer,
                    meant=lambda audience: self._is_us(audience, tunnel, prefix),
                    now=now,
                    skew=self.config.skew,
                )
                email = tokens.email_of(said, verified=self.config.verified)
            except tokens.UnknownKey as error:
                if self.issuer.may_ask(monotonic()):
                    self._ask_again(connection, head)
                    return None
                raise self._bad_token(error, head, tunnel, prefix, client) from None
            except tokens.TokenFault as error:
                raise self._bad_token(error, head, tunnel, prefix, client) from None
            ends = float(said["exp"]) + self.config.skew
            seen = self._remember(value, tunnel, email, "", "", ends, client)
            if self.issuer.stale:
                self.reach()
        head.headers = head.headers[:at] + head.headers[at + 1 :]
        return self._let_in(connection, head, tunnel, seen, prefix)

    def _bad_token(
        self, error: tokens.TokenFault, head: RequestHead, tunnel: Visited, prefix: str, client: str
    ) -> Refused:
        challenge = self.challenge(tunnel, head.target.removeprefix(prefix), prefix, error="invalid_token")
        if isinstance(error, tokens.Expired):
            return Refused(VisitorError("login_failed", str(error)), challenge)
        return self._failed(str(error), tunnel, client, challenge)

    def _failed(self, why: str, tunnel: Visited, client: str, challenge: Headers) -> Refused:
        """Count and log a credential that is none."""
        log.warning("refused a visitor of %s: %s", tunnel.name, why, extra={"tunnel": tunnel.name, "client": client})
        wait = self._failures.note(client, monotonic())
        if wait is not None:
            return Refused(VisitorError("rate_limited", retry_after=int(wait) + 1), [])
        return Refused(VisitorError("login_failed", why), challenge)

    def _is_us(self, audience: str, tunnel: Visited, prefix: str) -> bool:
        base = _base(tunnel, prefix)
        return audience == base or audience.startswith(f"{base}/") or audience in self.config.audience

    def _ask_again(self, connection: ServerConnection, head: RequestHead) -> None:
        """Ask the issuer for its keys while the visitor waits; then its request is routed again."""
        self._work.begin(connection, head, self.issuer.refresh, lambda _: self._ingress.request(connection, head))

    # -- signing in --------------------------------------------------------------------------------------

    def _begin(
        self,
        connection: ServerConnection,
        head: RequestHead,
        tunnel: Visited,
        path: str,
        prefix: str,
        *,
        choose: bool = False,
    ) -> None:
        """Send a browser to the issuer."""
        metadata = self.issuer.metadata
        if metadata is None:
            self._ask_again(connection, head)
            return
        if self.issuer.stale:
            self.reach()
        _, cookie, attributes = self._names(tunnel, prefix)
        known = [one for value in _all(head.headers, "cookie") for one in cookie_of(value, cookie)]
        binding = known[0] if known and len(known[0]) == 43 and known[0].isascii() else token_urlsafe(32)
        begun, state = self._seal.begin(
            tunnel.name, path, prefixed=bool(prefix), binding=binding, expires=time() + self.config.begin
        )
        query = {
            "response_type": "code",
            "client_id": self.config.client_id,
            "redirect_uri": _origin(tunnel.public_url) + CALLBACK,
            "scope": " ".join(self.config.scopes),
            "state": state,
            "nonce": begun.nonce,
            "code_challenge": begun.challenge,
            "code_challenge_method": "S256",
        } | ({"prompt": "login"} if choose else {})
        mark = "&" if "?" in metadata.authorize else "?"
        self._redirect(
            connection,
            f"{metadata.authorize}{mark}{urlencode(query)}",
            [("Set-Cookie", f"{cookie}={binding}; Max-Age={int(self.config.begin)}; {attributes}")],
        )

    def answers(self, connection: ServerConnection, head: RequestHead, client: str) -> bool:
        """Answer what is asked of the server's own host: the callback, and the metadata of tunnels below ``/t/``.

        Raises:
            VisitorError: as `callback`.
        """
        path = head.target.partition("?")[0]
        if path == CALLBACK:
            self.callback(connection, head, client)
            return True
        if not path.startswith(f"{METADATA}/t/"):
            return False
        name, _, rest = path.removeprefix(f"{METADATA}/t/").partition("/")
        tunnel = self._ingress.tunnel(name)
        if tunnel is None or tunnel.access.mode != "login":
            return False
        self._only(head, "GET", "HEAD")
        self.describe(connection, head, tunnel, f"{tunnel.public_url}/{rest}" if rest else tunnel.public_url)
        return True

    def callback(self, connection: ServerConnection, head: RequestHead, client: str) -> None:
        """The issuer sent a browser back.

        Raises:
            VisitorError: ``login_begin_again``, ``login_refused``, ``login_unavailable``, ``rate_limited``.
        """
        if head.method != "GET":
            raise Refused(VisitorError("method_not_allowed"), [("Allow", "GET")])
        wait = self._failures.full(client, monotonic())
        if wait is not None:
            raise VisitorError("rate_limited", retry_after=int(wait) + 1)
        query = parse_qs(head.target.partition("?")[2], max_num_fields=16)
        said = {name: values[0] for name, values in query.items() if len(values) == 1}
        try:
            begun = self._seal.begun(said.get("state", ""), time())
        except CookieFault as error:
            self._failures.note(client, monotonic())
            raise VisitorError("login_begin_again", str(error)) from None
        tunnel = self._ingress.tunnel(begun.tunnel)
        metadata = self.issuer.metadata
        if tunnel is None or tunnel.access.mode != "login":
            raise VisitorError("no_such_tunnel", f"No tunnel named {begun.tunnel} is signed in to here any more.")
        if metadata is None:  # this server was restarted
            self._ask_again(connection, head)
            return
        if said.get("iss", self.config.issuer if not metadata.says_issuer else "") != self.config.issuer:
            raise VisitorError("login_refused", "The answer is of another issuer.")
        if "error" in said or "code" not in said:
            reason = "".join(c for c in said.get("error", "no code") if c.isascii() and c.isprintable())[:64]
            raise VisitorError("login_refused", f"The issuer answers: {reason}.")

        async def identify() -> str:
            return await self._identify(said["code"], begun.verifier, begun.nonce, _origin(tunnel.public_url))

        def known(email: str) -> None:
            code = token_urlsafe(32)
            self._handed[code] = _Handed(
                email, begun.tunnel, begun.prefixed, begun.path, begun.binding, time() + _HANDED
            )
            if len(self._handed) > self.config.remembered:
                self._handed.popitem(last=False)
            base = _base(tunnel, "/t" if begun.prefixed else "")
            self._redirect(connection, f"{base}{SIGN_IN}?code={code}", [])

        def refused(error: VisitorError) -> None:
            fields = {"tunnel": begun.tunnel, "client": client}
            log.warning("refused a sign-in to %s: %s", begun.tunnel, error, extra=fields)
            if error.status < 500:
                self._failures.note(client, monotonic())

        self._work.begin(connection, head, identify, known, refused)

    async def _identify(self, code: str, verifier: str, nonce: str, origin: str) -> str:
        """The e-mail address of whoever the issuer gave this code."""
        config, issuer = self.config, self.issuer
        try:
            answer = await issuer.redeem(code, verifier, origin + CALLBACK)
        except Refusal as error:
            raise VisitorError("login_begin_again", str(error)) from None
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise VisitorError("login_refused", "The issuer gives no ID token.")
        assert issuer.keys is not None
        try:
            try:
                said = issuer.keys.claims(token)
            except tokens.UnknownKey:
                await issuer.refresh()
                said = issuer.keys.claims(token)
            said = tokens.check(said, issuer=config.issuer, meant=config.client_id.__eq__, now=time(), skew=config.skew)
            if said.get("azp", config.client_id) != config.client_id:
                raise tokens.TokenFault("The ID token was given to another client.")
            if not compare_digest(str(said.get("nonce")).encode(), nonce.encode()):
                raise tokens.TokenFault("The ID token is not of this sign-in.")
            if "email" not in said and isinstance(access := answer.get("access_token"), str):
                more = await issuer.userinfo(access)
                if more.get("sub") == said.get("sub"):
                    said = {**more, **said}
            return tokens.email_of(said, verified=config.verified)
        except tokens.TokenFault as error:
            raise VisitorError("login_refused", str(error)) from None

    # -- a tunnel's own addresses ------------------------------------------------------------------------

    def _own(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, path: str, prefix: str, client: str
    ) -> bool:
        """Answer what is asked of the tunnel's own addresses for signing in and out; False: it is the service's."""
        bare, _, query = path.partition("?")
        if bare == SIGN_IN:
            self._only(head, "GET")
            codes = parse_qs(query, max_num_fields=4).get("code")
            if codes is None:
                self._begin(connection, head, tunnel, "/", prefix, choose=True)
            else:
                self._arrive(connection, head, tunnel, codes[0], prefix, client)
        elif bare == SIGN_OUT:
            self._only(head, "GET", "POST")
            self._sign_out(connection, head, tunnel, prefix)
        elif bare.startswith(METADATA) and bare[len(METADATA) :][:1] in ("", "/"):
            self._only(head, "GET", "HEAD")
            self.describe(connection, head, tunnel, _base(tunnel, prefix) + bare[len(METADATA) :])
        else:
            return False
        return True

    def _arrive(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, code: str, prefix: str, client: str
    ) -> None:
        """Back on the tunnel's host: the code becomes a cookie, once, in the browser that began."""
        handed = self._handed.get(code)
        session_cookie, begun_cookie, attributes = self._names(tunnel, prefix)
        bindings = [one for value in _all(head.headers, "cookie") for one in cookie_of(value, begun_cookie)]
        if handed is None or handed.until <= time() or (handed.tunnel, handed.prefixed) != (tunnel.name, bool(prefix)):
            self._failures.note(client, monotonic())
            raise VisitorError("login_begin_again", f"Begin at {_base(tunnel, prefix)}/ .")
        del self._handed[code]
        if not any(compare_digest(digest(one), handed.binding) for one in bindings):
            raise VisitorError(
                "login_begin_again", f"It was begun in another browser, or cookies are off: {_base(tunnel, prefix)}/ ."
            )
        session = Session(handed.email, tunnel.name, token_urlsafe(16), time() + self.config.session)
        fields = {"tunnel": tunnel.name, "client": client, "user": handed.email}
        log.info("%s signed in to %s", handed.email, tunnel.name, extra=fields)
        permits = self._permits()
        if permits is not None:
            permits.activated(tunnel, handed.email, client)
        cookie = f"{session_cookie}={self._seal.sign(session)}; Max-Age={int(self.config.session)}; {attributes}"
        self._redirect(connection, _base(tunnel, prefix) + handed.path, [("Set-Cookie", cookie)])

    def _sign_out(self, connection: ServerConnection, head: RequestHead, tunnel: Visited, prefix: str) -> None:
        session_cookie, _, attributes = self._names(tunnel, prefix)
        session: Session | None = None
        for value in _all(head.headers, "cookie"):
            for one in cookie_of(value, session_cookie):
                try:
                    session = self._seal.session(one, tunnel.name, time())
                except CookieFault:
                    continue
        if session is not None and session.id in self._out:
            session = None
        if head.method == "GET":
            page = ask_sign_out(tunnel.name, session.email if session is not None else None, prefix)
            self._ingress.answer_whole(connection, 200, HEADERS, page)
            return
        if not _same_origin(head):
            raise VisitorError("login_required", "Only a page of the tunnel's own may sign out.")
        connection.discard_body()
        if session is not None:
            self._out[session.id] = session.expires
            if len(self._out) > self.config.remembered:
                self._out.popitem(last=False)
            fields = {"tunnel": tunnel.name, "user": session.email}
            log.info("%s signed out of %s", session.email, tunnel.name, extra=fields)
        issuer = self.issuer.metadata.sign_out if self.issuer.metadata is not None else None
        if issuer is not None:
            issuer += ("&" if "?" in issuer else "?") + urlencode({"client_id": self.config.client_id})
        gone = ("Set-Cookie", f"{session_cookie}=; Max-Age=0; {attributes}")
        self._ingress.answer_whole(connection, 200, [*HEADERS, gone], signed_out(tunnel.name, issuer, prefix))
        self.forget()
        self._left()

    def describe(self, connection: ServerConnection, head: RequestHead, tunnel: Visited, resource: str) -> None:
        """The protected-resource metadata of RFC 9728."""
        body = json.dumps(
            {
                "resource": resource,
                "resource_name": tunnel.name,
                "authorization_servers": [self.config.issuer],
                "bearer_methods_supported": ["header"],
                "scopes_supported": list(self.config.scopes),
            }
        ).encode()
        headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
        if get(head.headers, "origin") is not None:
            headers.append(("Access-Control-Allow-Origin", "*"))
        self._ingress.answer_whole(connection, 200, headers, body)

    @staticmethod
    def _only(head: RequestHead, *methods: str) -> None:
        if head.method not in methods:
            raise Refused(VisitorError("method_not_allowed"), [("Allow", ", ".join(methods))])

    def _names(self, tunnel: Visited, prefix: str) -> tuple[str, str, str]:
        return names_of(secure=tunnel.public_url.startswith("https:"), prefix=prefix)

    def _redirect(self, connection: ServerConnection, url: str, headers: Headers) -> None:
        self._ingress.answer_whole(connection, 302, [("Location", url), *_NO_STORE, *headers], b"")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _base(tunnel: Visited, prefix: str) -> str:
    """Where the tunnel's visitors are, without a slash at its end: never taken from what they sent."""
    return tunnel.public_url if prefix or tunnel.host_url is None else tunnel.host_url


def _all(headers: Headers, name: str) -> list[str]:
    return [value for found, value in headers if lower(found) == name]


def _is_navigation(head: RequestHead) -> bool:
    """A browser that shows a page in a window of its own: it can follow to the issuer."""
    if head.method != "GET" or head.upgrade:
        return False
    mode = get(head.headers, "sec-fetch-mode")
    if mode is not None:
        return mode == "navigate" and get(head.headers, "sec-fetch-dest") in (None, "document")
    return prefers_html(get(head.headers, "accept") or "")


def _same_origin(head: RequestHead) -> bool:
    """Whether the browser sends the cookie for a page of this very host, or because somebody follows a link.

    Neighbouring tunnels are the same site to a browser, which sends them the cookie whatever its SameSite says.
    """
    site = origin = None
    for name, value in head.headers:
        size = len(name)
        if size == 14 and lower(name) == "sec-fetch-site":
            site = value
        elif size == 6 and lower(name) == "origin":
            origin = value
    if origin is not None and origin.partition("://")[2].lower() != head.host.lower():
        return False
    if site is None or site in ("same-origin", "none"):
        return True
    return (
        head.method in ("GET", "HEAD")
        and get(head.headers, "sec-fetch-mode") == "navigate"
        and get(head.headers, "sec-fetch-dest") == "document"
    )
