"""The server's desk for visitors: lets them in to protected tunnels, and out when what let them in ends."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic, time
from typing import TYPE_CHECKING, Protocol

from tunneld.config.server import ServerConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers, get
from tunneld.server.failures import Failures
from tunneld.server.permissions import Permissions
from tunneld.server.visitors.passwords import Passwords
from tunneld.server.visitors.rules import READ_METHODS, Claim, Grant, Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunneld.wire.http1 import RequestHead
    from tunneld.wire.http_server import ServerConnection

__all__ = ["Desk", "Reception", "Refused"]

log = logging.getLogger("tunneld.access")

#: Seconds at most until grants are looked at again: the wall clock may be set.
_LOOK = 60.0


class _Tunnel(Protocol):
    """What is asked of a `server.registry.Tunnel`."""

    name: str
    host_url: str | None
    access: Rules


class _Visit(Protocol):
    """A request under way."""

    def cancel(self, reason: str) -> None:
        """End it."""


class Reception(Protocol):
    """What the desk asks of its `Ingress`."""

    loop: asyncio.AbstractEventLoop

    @property
    def exchanges(self) -> Mapping[str, _Visit]:
        """Request id -> the request under way."""

    def request(self, connection: ServerConnection, head: RequestHead) -> None:
        """Route a request, again."""

    def fault(self, connection: ServerConnection, head: RequestHead | None, error: VisitorError) -> None:
        """Answer a request with a problem."""

    def answer_whole(self, connection: ServerConnection, status: int, headers: Headers, body: bytes) -> None:
        """Answer a request."""


class Refused(VisitorError):
    """A visitor is not let in.

    Args:
        why: code and words.
        extra: headers of the answer.
    """

    def __init__(self, why: VisitorError, extra: Headers) -> None:
        super().__init__(why.code, why.detail, retry_after=why.retry_after, limit=why.limit)
        self.extra = extra


class Desk:
    """Visitors of protected tunnels on one server.

    Args:
        ingress: whose visitors they are.
        config: `configure` changes it.

    Attributes:
        permissions: by e-mail address, that owners of tunnels gave; None: there are none.
        one_owner: all tunnels of this server are one owner's, so that they may share one origin.
    """

    def __init__(self, ingress: Reception, config: ServerConfig) -> None:
        self._ingress = ingress
        self.permissions: Permissions | None = None
        self.one_owner: Callable[[], bool] = lambda: config.auth.mode == "open"
        limits, auth = config.limits, config.auth
        self.passwords = Passwords(remembered=limits.passwords, waiting=limits.password_checks)
        self._failures = Failures(most=auth.max_failures, window=auth.failure_window)
        #: request id -> (its tunnel, what let it in, the visitor's address)
        self._inside: dict[str, tuple[_Tunnel, Grant, str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0  # when it looks, seconds since the epoch

    def __len__(self) -> int:
        return len(self._inside)

    def configure(self, config: ServerConfig) -> None:
        """Let another configuration hold from now on."""
        limits, auth = config.limits, config.auth
        self.passwords.configure(remembered=limits.passwords, waiting=limits.password_checks)
        self._failures.configure(most=auth.max_failures, window=auth.failure_window)

    def close(self) -> None:
        """Let go of timer and threads."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.passwords.close()

    def admit(
        self, connection: ServerConnection, head: RequestHead, tunnel: _Tunnel, path: str, prefix: str, client: str
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
        if head.method == "OPTIONS" and rules.mode == "key" and self._preflight(connection, head):
            return None
        try:
            found, path = rules.judge(head.method, path, head.headers, time())
            if rules.mode == "basic" and prefix and found.__class__ is Claim and not self.one_owner():
                raise VisitorError("needs_host", _elsewhere(tunnel))
        except VisitorError as error:
            if rules.mode == "basic" and prefix and error.status == 401 and not self.one_owner():
                error = VisitorError("needs_host", _elsewhere(tunnel))
            raise self._refused(error, tunnel, client) from None
        if isinstance(found, Claim):
            if not self.passwords.known(found):
                self._check(connection, head, tunnel, found, client)
                return None
            found = found.grant
        if found.level == "read_only" and (head.method not in READ_METHODS or head.upgrade):
            raise Refused(VisitorError("read_only"), [("Allow", "GET, HEAD, OPTIONS")])
        return found, path

    def enter(self, request_id: str, tunnel: _Tunnel, grant: Grant, client: str) -> None:
        """This request was let in; it ends when the grant does."""
        self._inside[request_id] = tunnel, grant, client
        if grant.expires is not None and (self._timer is None or grant.expires < self._at):
            self._arm()

    def leave(self, request_id: str) -> None:
        """It is over."""
        self._inside.pop(request_id, None)

    def changed(self, tunnel: _Tunnel) -> None:
        """Other rules hold for a tunnel: whoever they do not let in has to leave."""
        if tunnel.access.free and not self._inside:
            return
        for request_id, visit in list(self._ingress.exchanges.items()):
            if getattr(visit, "tunnel", None) is tunnel and request_id not in self._inside and not tunnel.access.free:
                self._end(request_id)  # it came while everybody could
        self._look(tunnel)

    # -- inside ------------------------------------------------------------------------------------------

    def _look(self, only: _Tunnel | None = None) -> None:
        now = time()
        for request_id, (tunnel, grant, client) in list(self._inside.items()):
            if only is not None and tunnel is not only:
                continue
            renewed = tunnel.access.renewed(grant, client, now)
            if renewed is None:
                self._end(request_id)
            else:
                self._inside[request_id] = tunnel, renewed, client
        self._arm()

    def _end(self, request_id: str) -> None:
        visit = self._ingress.exchanges.get(request_id)
        self._inside.pop(request_id, None)
        if visit is not None:
            log.info("The access of %s has ended", request_id, extra={"request_id": request_id})
            visit.cancel("operator")

    def _arm(self) -> None:
        """Look again when the next grant ends by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = (grant.expires for _, grant, _ in self._inside.values() if grant.expires is not None)
        self._at = min(ends, default=0.0)
        if self._at:
            self._timer = self._ingress.loop.call_later(min(max(0.0, self._at - time()), _LOOK), self._look)

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

    def _refused(self, error: VisitorError, tunnel: _Tunnel, client: str, user: str = "") -> Refused:
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
        self, connection: ServerConnection, head: RequestHead, tunnel: _Tunnel, claim: Claim, client: str
    ) -> None:
        """Compare a password while the visitor waits; then its request is routed again."""
        wait = self._failures.full(client, monotonic())
        if wait is not None:
            raise Refused(VisitorError("rate_limited", retry_after=int(wait) + 1), [])
        waiting = _Waiting(connection)
        later = self._ingress.loop.call_soon_threadsafe

        def done(good: bool) -> None:
            later(self._checked, waiting, head, tunnel, claim, client, good)

        self.passwords.check(claim, done)
        connection.begin(waiting)
        connection.hold_body()

    def _checked(
        self, waiting: _Waiting, head: RequestHead, tunnel: _Tunnel, claim: Claim, client: str, good: bool
    ) -> None:
        self.passwords.settled(claim, good=good)
        connection = waiting.connection
        if connection.consumer is not waiting:
            return
        connection.consumer = None
        if good:
            self._ingress.request(connection, head)
            return
        error = VisitorError("login_failed", "No such user, or another password.")
        connection.discard_body()
        self._ingress.fault(connection, head, self._refused(error, tunnel, client, claim.user))


def _elsewhere(tunnel: _Tunnel) -> str:
    where = f"Use {tunnel.host_url}/ ." if tunnel.host_url else "The server's operator has to set `domain`."
    return f"A password is not asked for under /t/, which every tunnel's pages share. {where}"


class _Waiting:
    """A request whose password is being checked; `Consumer` of its connection, which holds the body back."""

    __slots__ = ("connection",)

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

    def body(self, data: bytes) -> bool:
        """None comes."""
        return False

    def body_end(self, trailers: Headers) -> None:
        """None comes."""

    def body_fault(self, error: VisitorError) -> None:
        """None comes."""

    def drained(self) -> None:
        """Nothing was written."""

    def stalled(self) -> None:
        """Nothing was written."""

    def gone(self) -> None:
        """The visitor has left: what the check finds is of no use to it."""
