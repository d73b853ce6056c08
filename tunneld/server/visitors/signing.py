"""How a browser signs in and out: to the issuer, back by the server's own host, and on to the tunnel's.

A browser goes from the tunnel's page to the issuer, from there to the one address registered there, of the server's own
host, and with a code that works once, soon, and in that browser back to the tunnel's host, which sets the cookie.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from secrets import token_urlsafe
from time import monotonic, time
from urllib.parse import parse_qs, urlencode

from tunneld.config.login import LoginConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers, get
from tunneld.server.visitors import claims as tokens
from tunneld.server.visitors.browsers import cookie_names, home, origin, same_origin, values_of
from tunneld.server.visitors.cookies import CookieFault, Seal, Session, cookie_of, digest
from tunneld.server.visitors.issuer import Issuer, Refusal
from tunneld.server.visitors.pages import HEADERS, SIGN_IN, SIGN_OUT, ask_sign_out, signed_out
from tunneld.server.visitors.reception import Reception, Refused, Visited, Work
from tunneld.telemetry.failures import Failures
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_server import ServerConnection

__all__ = ["CALLBACK", "METADATA", "SigningIn"]

log = logging.getLogger("tunneld.login")

CALLBACK = "/login/callback"
"""Of the server's own host: what is registered at the issuer."""
METADATA = "/.well-known/oauth-protected-resource"
"""RFC 9728."""
_HANDED = 60.0  # seconds that a code from the callback to the tunnel's host is good for
_NO_STORE: Headers = [("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer")]


@dataclass(frozen=True, slots=True)
class _Handed:
    """Somebody who was signed in at the callback, on the way to the tunnel's host."""

    email: str
    tunnel: str
    prefixed: bool
    path: str
    binding: str
    until: float


class SigningIn:
    """Everybody who signs in or out at one server.

    Args:
        work: what visitors wait for.
        failures: of each address.
        signed_in: told the tunnel, the e-mail address and the visitor's address of whoever has signed in.
        signed_out: told the session.
        is_over: whether a session, by its id, was signed out.
    """

    def __init__(
        self,
        ingress: Reception,
        config: LoginConfig,
        *,
        issuer: Issuer,
        seal: Seal,
        work: Work,
        failures: Failures,
        signed_in: Callable[[Visited, str, str], None],
        signed_out: Callable[[Session], None],
        is_over: Callable[[str], bool],
    ) -> None:
        self._ingress = ingress
        self._config = config
        self._issuer = issuer
        self._seal = seal
        self._work = work
        self._failures = failures
        self._signed_in = signed_in
        self._signed_out = signed_out
        self._is_over = is_over
        self._handed: OrderedDict[str, _Handed] = OrderedDict()

    @property
    def handed(self) -> int:
        """Sign-ins that are done but for the tunnel's own host."""
        return len(self._handed)

    def reach(self) -> None:
        """Ask the issuer for its addresses and keys, before the next visitor needs them."""
        self._work.alone(self._issuer.refresh)

    def ask_again(self, connection: ServerConnection, head: RequestHead) -> None:
        """Ask the issuer for its keys while the visitor waits; then its request is routed again."""
        self._work.begin(connection, head, self._issuer.refresh, lambda _: self._ingress.request(connection, head))

    def begin(
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
        metadata = self._issuer.metadata
        if metadata is None:
            self.ask_again(connection, head)
            return
        if self._issuer.stale:
            self.reach()
        _, cookie, attributes = cookie_names(tunnel, prefix)
        known = [one for value in values_of(head.headers, "cookie") for one in cookie_of(value, cookie)]
        binding = known[0] if known and len(known[0]) == 43 and known[0].isascii() else token_urlsafe(32)
        begun, state = self._seal.begin(
            tunnel.name, path, prefixed=bool(prefix), binding=binding, expires=time() + self._config.begin
        )
        query = {
            "response_type": "code",
            "client_id": self._config.client_id,
            "redirect_uri": origin(tunnel.public_url) + CALLBACK,
            "scope": " ".join(self._config.scopes),
            "state": state,
            "nonce": begun.nonce,
            "code_challenge": begun.challenge,
            "code_challenge_method": "S256",
        } | ({"prompt": "login"} if choose else {})
        mark = "&" if "?" in metadata.authorize else "?"
        self._redirect(
            connection,
            f"{metadata.authorize}{mark}{urlencode(query)}",
            [("Set-Cookie", f"{cookie}={binding}; Max-Age={int(self._config.begin)}; {attributes}")],
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
        metadata = self._issuer.metadata
        if tunnel is None or tunnel.access.mode != "login":
            raise VisitorError("no_such_tunnel", f"No tunnel named {begun.tunnel} is signed in to here any more.")
        if metadata is None:  # this server was restarted
            self.ask_again(connection, head)
            return
        answered = self._code(said, says_issuer=metadata.says_issuer)

        async def identify() -> str:
            return await self._identify(answered, begun.verifier, begun.nonce, origin(tunnel.public_url))

        def known(email: str) -> None:
            code = token_urlsafe(32)
            self._handed[code] = _Handed(
                email, begun.tunnel, begun.prefixed, begun.path, begun.binding, time() + _HANDED
            )
            if len(self._handed) > self._config.remembered:
                self._handed.popitem(last=False)
            base = home(tunnel, "/t" if begun.prefixed else "")
            self._redirect(connection, f"{base}{SIGN_IN}?code={code}", [])

        def refused(error: VisitorError) -> None:
            fields = {"tunnel": begun.tunnel, "client": client}
            log.warning("refused a sign-in to %s: %s", begun.tunnel, error, extra=fields)
            if error.status < 500:
                self._failures.note(client, monotonic())

        self._work.begin(connection, head, identify, known, refused)

    def _code(self, said: dict[str, str], *, says_issuer: bool) -> str:
        """The code of the issuer's answer; raises VisitorError ``login_refused``."""
        if said.get("iss", self._config.issuer if not says_issuer else "") != self._config.issuer:
            raise VisitorError("login_refused", "The answer is of another issuer.")
        if "error" in said or "code" not in said:
            reason = "".join(c for c in said.get("error", "no code") if c.isascii() and c.isprintable())[:64]
            raise VisitorError("login_refused", f"The issuer answers: {reason}.")
        return said["code"]

    async def _identify(self, code: str, verifier: str, nonce: str, origin: str) -> str:
        """The e-mail address of whoever the issuer gave this code."""
        config, issuer = self._config, self._issuer
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

    def own(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, path: str, prefix: str, client: str
    ) -> bool:
        """Answer what is asked of the tunnel's own addresses for signing in and out; False: it is the service's."""
        bare, _, query = path.partition("?")
        if bare == SIGN_IN:
            self._only(head, "GET")
            codes = parse_qs(query, max_num_fields=4).get("code")
            if codes is None:
                self.begin(connection, head, tunnel, "/", prefix, choose=True)
            else:
                self._arrive(connection, head, tunnel, codes[0], prefix, client)
        elif bare == SIGN_OUT:
            self._only(head, "GET", "POST")
            self._sign_out(connection, head, tunnel, prefix)
        elif bare.startswith(METADATA) and bare[len(METADATA) :][:1] in ("", "/"):
            self._only(head, "GET", "HEAD")
            self.describe(connection, head, tunnel, home(tunnel, prefix) + bare[len(METADATA) :])
        else:
            return False
        return True

    def _arrive(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, code: str, prefix: str, client: str
    ) -> None:
        """Back on the tunnel's host: the code becomes a cookie, once, in the browser that began."""
        handed = self._handed.get(code)
        session_cookie, begun_cookie, attributes = cookie_names(tunnel, prefix)
        bindings = [one for value in values_of(head.headers, "cookie") for one in cookie_of(value, begun_cookie)]
        if handed is None or handed.until <= time() or (handed.tunnel, handed.prefixed) != (tunnel.name, bool(prefix)):
            self._failures.note(client, monotonic())
            raise VisitorError("login_begin_again", f"Begin at {home(tunnel, prefix)}/ .")
        del self._handed[code]
        if not any(compare_digest(digest(one), handed.binding) for one in bindings):
            raise VisitorError(
                "login_begin_again", f"It was begun in another browser, or cookies are off: {home(tunnel, prefix)}/ ."
            )
        session = Session(handed.email, tunnel.name, token_urlsafe(16), time() + self._config.session)
        fields = {"tunnel": tunnel.name, "client": client, "user": handed.email}
        log.info("%s signed in to %s", handed.email, tunnel.name, extra=fields)
        self._signed_in(tunnel, handed.email, client)
        cookie = f"{session_cookie}={self._seal.sign(session)}; Max-Age={int(self._config.session)}; {attributes}"
        self._redirect(connection, home(tunnel, prefix) + handed.path, [("Set-Cookie", cookie)])

    def _sign_out(self, connection: ServerConnection, head: RequestHead, tunnel: Visited, prefix: str) -> None:
        session_cookie, _, attributes = cookie_names(tunnel, prefix)
        session: Session | None = None
        for value in values_of(head.headers, "cookie"):
            for one in cookie_of(value, session_cookie):
                try:
                    session = self._seal.session(one, tunnel.name, time())
                except CookieFault:
                    continue
        if session is not None and self._is_over(session.id):
            session = None
        if head.method == "GET":
            page = ask_sign_out(tunnel.name, session.email if session is not None else None, prefix)
            self._ingress.answer_whole(connection, 200, HEADERS, page)
            return
        if not same_origin(head):
            raise VisitorError("login_required", "Only a page of the tunnel's own may sign out.")
        connection.discard_body()
        if session is not None:
            fields = {"tunnel": tunnel.name, "user": session.email}
            log.info("%s signed out of %s", session.email, tunnel.name, extra=fields)
        issuer = self._issuer.metadata.sign_out if self._issuer.metadata is not None else None
        if issuer is not None:
            issuer += ("&" if "?" in issuer else "?") + urlencode({"client_id": self._config.client_id})
        gone = ("Set-Cookie", f"{session_cookie}=; Max-Age=0; {attributes}")
        self._ingress.answer_whole(connection, 200, [*HEADERS, gone], signed_out(tunnel.name, issuer, prefix))
        if session is not None:
            self._signed_out(session)

    def describe(self, connection: ServerConnection, head: RequestHead, tunnel: Visited, resource: str) -> None:
        """The protected-resource metadata of RFC 9728."""
        body = json.dumps(
            {
                "resource": resource,
                "resource_name": tunnel.name,
                "authorization_servers": [self._config.issuer],
                "bearer_methods_supported": ["header"],
                "scopes_supported": list(self._config.scopes),
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

    def _redirect(self, connection: ServerConnection, url: str, headers: Headers) -> None:
        self._ingress.answer_whole(connection, 302, [("Location", url), *_NO_STORE, *headers], b"")
