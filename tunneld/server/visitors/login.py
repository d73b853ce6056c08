"""Visitors who sign in (`access: {mode: login}`): a session cookie of the tunnel's own host, or the issuer's token.

Browsers get the one (signing.py); what cannot follow pages shows the other, as MCP's clients do (RFC 9728). Who
somebody is, and whether they may come, are two questions: the second is asked anew when its answer may have changed.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Protocol

from tunneld.config.login import LoginConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers, lower
from tunneld.server.visitors import claims as tokens
from tunneld.server.visitors.browsers import cookie_names, home, is_navigation, origin, same_origin
from tunneld.server.visitors.cookies import CookieFault, Seal, Session, cookie_of, without
from tunneld.server.visitors.issuer import Issuer
from tunneld.server.visitors.pages import HEADERS, denied
from tunneld.server.visitors.reception import Reception, Refused, Visited, Work
from tunneld.server.visitors.rules import Grant, granted
from tunneld.server.visitors.signing import METADATA, SigningIn
from tunneld.telemetry.failures import Failures
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_server import ServerConnection

__all__ = ["Login", "Permits"]

log = logging.getLogger("tunneld.login")

_QUOTABLE = re.compile(r"[!#-\[\]-~]{0,512}").fullmatch
_LONG = 4096  # characters of a header that is checked anew each time: what is remembered has a bound in bytes too


class Permits(Protocol):
    """What is asked of the permissions that owners gave (`server.permissions.Permissions`)."""

    def standing(self, tunnel: Visited, email: str) -> object | None:
        """What was said of that address, whether it holds or not; None: nothing."""

    def permission_of(self, tunnel: Visited, email: str) -> str | None:
        """The level that holds now."""

    def activated(self, tunnel: Visited, email: str, address: str) -> None:
        """That address has signed in."""


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
        before: whom this one takes over from, at a reload: who has signed out there stays out.
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
        before: Login | None = None,
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
        #: Sessions that were signed out, the oldest first.
        self._out: OrderedDict[str, None] = before._out if before is not None else OrderedDict()
        self._signing = SigningIn(
            ingress,
            config,
            issuer=self.issuer,
            seal=self._seal,
            work=self._work,
            failures=failures,
            signed_in=self._signed_in,
            signed_out=self._signed_out,
            is_over=self._out.__contains__,
        )
        self.answers, self.reach = self._signing.answers, self._signing.reach

    async def close(self) -> None:
        """Let go of what waits and of the issuer."""
        await self._work.close()
        await self.issuer.close()

    def waiting(self) -> tuple[int, int]:
        """Sign-ins and tokens that wait for the issuer, and how many may."""
        return len(self._work), self.config.waiting

    def remembered(self) -> tuple[int, int]:
        """How many are remembered of that kind of which there are most, and how many may be."""
        return max(len(self._seen), len(self._out), self._signing.handed), self.config.remembered

    def forget(self) -> None:
        """Who may come may have changed: ask anew of everybody."""
        self._seen.clear()

    # -- in ----------------------------------------------------------------------------------------------

    def admit(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, path: str, prefix: str, client: str
    ) -> Grant | None:
        """What lets this visitor in; their credential is taken off `head`. None: it is answered, or will be.

        Raises:
            Refused: it is not let in.
        """
        if path.startswith("/.") and self._signing.own(connection, head, tunnel, path, prefix, client):
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
                if seen is not None and same_origin(head):
                    head.headers = headers[:at] + headers[at + 1 :]
                    if seen.kept:
                        head.headers.insert(at, (name, seen.kept))
                    return self._let_in(connection, head, tunnel, seen, prefix)
            elif size == 13 and value[:7].lower() == "bearer " and lower(name) == "authorization":
                bearer = at
        if bearer >= 0:
            return self._by_token(connection, head, tunnel, bearer, prefix, client)
        if is_navigation(head):
            self._signing.begin(connection, head, tunnel, path, prefix)
            return None
        challenge = self.challenge(tunnel, path, prefix)
        if fault is None:
            raise Refused(VisitorError("login_required", f"Sign in at {home(tunnel, prefix)}/ ."), challenge)
        if fault.over:
            raise Refused(VisitorError("login_required", str(fault)), challenge)
        raise self._failed(str(fault), tunnel, client, challenge)

    def challenge(self, tunnel: Visited, path: str, prefix: str, *, error: str = "") -> Headers:
        """How a client is told where it gets a token."""
        below = prefix + path.partition("?")[0]
        if below == "/" or not _QUOTABLE(below):
            below = prefix
        metadata = f"{origin(home(tunnel, prefix))}{METADATA}{below}"
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
        session_name, begun_name, _ = cookie_names(tunnel, prefix)
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
            self._signed_in(tunnel, email, client)
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
        if not is_navigation(head):
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
                self._signing.ask_again(connection, head)
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
                    self._signing.ask_again(connection, head)
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
        here = home(tunnel, prefix)
        return audience == here or audience.startswith(f"{here}/") or audience in self.config.audience

    # -- told by SigningIn -------------------------------------------------------------------------------

    def _signed_in(self, tunnel: Visited, email: str, client: str) -> None:
        permits = self._permits()
        if permits is not None:
            permits.activated(tunnel, email, client)

    def _signed_out(self, session: Session) -> None:
        self._out[session.id] = None
        if len(self._out) > self.config.remembered:
            self._out.popitem(last=False)
        self.forget()
        self._left()
