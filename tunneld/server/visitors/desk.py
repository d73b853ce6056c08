"""The server's desk for visitors: lets them in to protected tunnels, and out when what let them in ends."""

from __future__ import annotations

import asyncio
import logging
import os
from time import monotonic, time
from typing import TYPE_CHECKING

from tunneld.config.login import LoginConfig
from tunneld.config.server import ServerConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers, get
from tunneld.server.visitors.passwords import Passwords
from tunneld.server.visitors.reception import Reception, Refused, Visited, Waiting
from tunneld.server.visitors.rules import READ_METHODS, Claim, Grant
from tunneld.telemetry.failures import Failures

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneld.server.visitors.login import Login, Permits
    from tunneld.wire.http1 import RequestHead
    from tunneld.wire.http_server import ServerConnection

__all__ = ["Desk", "Refused"]

log = logging.getLogger("tunneld.access")

#: Seconds at most until grants are looked at again: the wall clock may be set.
_LOOK = 60.0


class Desk:
    """Visitors of protected tunnels on one server.

    Args:
        ingress: whose visitors they are.
        config: `configure` changes it.
        secret: gives what the cookies of those who sign in are signed with; None: it is made anew with the process.

    Attributes:
        login: where visitors sign in; None: nowhere.
        permissions: by e-mail address, that owners of tunnels gave; None: there are none.
        one_owner: all tunnels of this server are one owner's, so that they may share one origin.
    """

    def __init__(self, ingress: Reception, config: ServerConfig, *, secret: Callable[[], bytes] | None = None) -> None:
        self._ingress = ingress
        own = os.urandom(32)
        self._secret = secret or (lambda: own)
        self.login: Login | None = None
        self.permissions: Permits | None = None
        self.one_owner: Callable[[], bool] = lambda: config.auth.mode == "open"
        limits, auth = config.limits, config.auth
        self.passwords = Passwords(remembered=limits.passwords, waiting=limits.password_checks)
        self._failures = Failures(most=auth.max_failures, window=auth.failure_window)
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0  # when it looks, seconds since the epoch
        self._closing: set[asyncio.Task[None]] = set()
        self._sign_in_at(config.login)

    def __len__(self) -> int:
        """Who is inside by a grant."""
        return sum(visit.grant is not None for visit in self._ingress.exchanges.values())

    def configure(self, config: ServerConfig) -> None:
        """Let another configuration hold from now on."""
        limits, auth = config.limits, config.auth
        self.passwords.configure(remembered=limits.passwords, waiting=limits.password_checks)
        self._failures.configure(most=auth.max_failures, window=auth.failure_window)
        self._sign_in_at(config.login)

    def _sign_in_at(self, config: LoginConfig | None) -> None:
        before = self.login
        if (before.config if before is not None else None) == config:
            return
        self.login = None
        if before is not None:
            task = self._ingress.loop.create_task(before.close(), name="sign-in")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        if config is not None:
            from tunneld.server.visitors.login import Login  # a server where nobody signs in goes without it

            self.login = Login(
                self._ingress,
                config,
                secret=self._secret(),
                failures=self._failures,
                permits=lambda: self.permissions,
                left=self._look,
                before=before,
            )
        if before is not None:
            self._look()

    async def close(self) -> None:
        """Let go of timer, threads and tasks; whoever waits to be judged is told to come back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.passwords.close()
        if self.login is not None:
            await self.login.close()
        if self._closing:
            await asyncio.wait(self._closing)

    def admit(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, path: str, prefix: str, client: str
    ) -> tuple[Grant, str] | None:
        """What lets this visitor in, and the path without it; None: it is answered, or will be.

        Args:
            prefix: ``/t/NAME``, or empty where the host names the tunnel.

        Raises:
            Refused: it is not let in.
        """
        rules = tunnel.access
        if not rules.within(client):
            raise Refused(VisitorError("address_denied"), [])
        if head.method == "OPTIONS" and rules.mode in ("key", "login") and self._preflight(connection, head):
            return None
        try:
            found, path = rules.judge(path, head.headers, time())
        except VisitorError as error:
            if rules.mode == "basic" and error.status == 401:
                self._check_host(tunnel, prefix)
            raise self._refused(error, tunnel, client) from None
        if not isinstance(found, Grant):
            self._check_host(tunnel, prefix)
            grant = self._look_up(connection, head, tunnel, found, path, prefix, client)
            if grant is None:
                return None
            found = grant
        if found.level == "read_only" and (head.method not in READ_METHODS or head.upgrade):
            why = "This visitor may only look: GET, HEAD and OPTIONS, and no WebSocket."
            raise Refused(VisitorError("read_only", why), [("Allow", "GET, HEAD, OPTIONS")])
        return found, path

    def _check_host(self, tunnel: Visited, prefix: str) -> None:
        if prefix and not self.one_owner():
            raise Refused(VisitorError("needs_host", _elsewhere(tunnel)), [])

    def _look_up(
        self,
        connection: ServerConnection,
        head: RequestHead,
        tunnel: Visited,
        claim: Claim | None,
        path: str,
        prefix: str,
        client: str,
    ) -> Grant | None:
        """What a password is worth, or who has signed in; None: it is answered, or will be."""
        if claim is None:
            if self.login is None:
                raise VisitorError("login_unavailable", "This server has no issuer to sign in at.", retry_after=60)
            return self.login.admit(connection, head, tunnel, path, prefix, client)
        if not self.passwords.known(claim):
            self._check(connection, head, tunnel, claim, client)
            return None
        return claim.grant

    def answers(self, connection: ServerConnection, head: RequestHead, client: str) -> bool:
        """Answer what is asked of the server's own addresses for signing in; False: it is none of them.

        Raises:
            VisitorError: see `Login.callback`.
        """
        return self.login is not None and self.login.answers(connection, head, client)

    def enter(self, grant: Grant) -> None:
        """Somebody was let in by a grant that ends by itself; their request, which has it, ends with it."""
        assert grant.expires is not None
        if self._timer is None or grant.expires < self._at:
            self._arm(grant.expires)

    def changed(self, tunnel: Visited) -> None:
        """Other rules, or permissions, hold for a tunnel: whoever they do not let in has to leave."""
        if self.login is not None:
            self.login.forget()
        self._look(tunnel)

    # -- inside ------------------------------------------------------------------------------------------

    def _look(self, only: Visited | None = None) -> None:
        now, next_end = time(), 0.0
        for request_id, visit in list(self._ingress.exchanges.items()):
            grant = visit.grant
            if only is None or visit.tunnel is only:
                visit.grant = grant = self._renewed(visit.tunnel, grant, visit.client, now)
                if grant is None and not visit.tunnel.access.free:
                    log.info("The access of %s has ended", request_id, extra={"request_id": request_id})
                    visit.shut_out()
                    continue
            if grant is not None and grant.expires is not None:
                next_end = min(next_end or grant.expires, grant.expires)
        self._arm(next_end)

    def _renewed(self, tunnel: Visited, grant: Grant | None, client: str, now: float) -> Grant | None:
        """What a grant is worth now; None: nothing. So is none at all: its request came while everybody could."""
        if grant is None:
            return None
        signed_in = None
        if grant.proof[0] == "login" and self.login is not None:
            signed_in = self.login.renewed(tunnel, grant)
        return tunnel.access.renewed(grant, client, now, signed_in)

    def _arm(self, end: float) -> None:
        """Look again when the next grant ends by itself; 0: none does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at = end
        if end:
            self._timer = self._ingress.loop.call_later(min(max(0.0, end - time()), _LOOK), self._look)

    def _preflight(self, connection: ServerConnection, head: RequestHead) -> bool:
        """Answer a browser that asks, without any key, whether a script may send one: it may, the key decides."""
        if get(head.headers, "origin") is None:
            return False
        method = get(head.headers, "access-control-request-method")
        if method is None:
            return False
        headers: Headers = [
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", method),
            ("Access-Control-Allow-Headers", get(head.headers, "access-control-request-headers") or "Authorization"),
            ("Access-Control-Max-Age", "600"),
        ]
        self._ingress.answer_whole(connection, 204, headers, b"")
        return True

    def _refused(self, error: VisitorError, tunnel: Visited, client: str, user: str = "") -> Refused:
        """Count and log a failure; neither secret nor address with query stands in the line."""
        if error.status != 401:
            return Refused(error, [])
        tried = error.code == "login_failed"
        if tried:
            fields = {"tunnel": tunnel.name, "client": client, "user": user[:64]}
            log.warning("refused a visitor of %s: %s", tunnel.name, error, extra=fields)
            wait = self._failures.note(client, monotonic())
            if wait is not None:
                return Refused(VisitorError("rate_limited", retry_after=int(wait) + 1), [])
        return Refused(error, tunnel.access.challenge(tried=tried))

    def _check(
        self, connection: ServerConnection, head: RequestHead, tunnel: Visited, claim: Claim, client: str
    ) -> None:
        """Compare a password while the visitor waits; then its request is routed again."""
        wait = self._failures.full(client, monotonic())
        if wait is not None:
            raise Refused(VisitorError("rate_limited", retry_after=int(wait) + 1), [])
        waiting = Waiting(connection)
        later = self._ingress.loop.call_soon_threadsafe

        def done(good: bool) -> None:
            later(self._checked, waiting, head, tunnel, claim, client, good)

        self.passwords.check(claim, done)
        waiting.begin()

    def _checked(
        self, waiting: Waiting, head: RequestHead, tunnel: Visited, claim: Claim, client: str, good: bool
    ) -> None:
        self.passwords.settled(claim, good=good)
        connection = waiting.connection
        if not waiting.over():
            return
        if good:
            self._ingress.request(connection, head)
            return
        error = VisitorError("login_failed", "No such user, or another password.")
        connection.discard_body()
        self._ingress.fault(connection, head, self._refused(error, tunnel, client, claim.user))


def _elsewhere(tunnel: Visited) -> str:
    where = f"Use {tunnel.host_url}/ ." if tunnel.host_url else "The server's operator has to set `domain`."
    return f"Nobody signs in under /t/, which every tunnel's pages share. {where}"
