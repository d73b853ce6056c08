"""The tunnels' side of the server: one `TunnelConnection` a WebSocket, from the upgrade to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from secrets import token_hex, token_urlsafe
from time import monotonic, time

from tunneld.errors import RemoteError, VisitorError
from tunneld.link import Link, Pipe
from tunneld.protocol.handshake import (
    agree,
    check_hello,
)
from tunneld.protocol.messages import (
    AccessSettings,
    ErrorMessage,
    GoAway,
    Hello,
    Message,
    Permit,
    Probed,
    Settings,
)
from tunneld.protocol.resume import Kept, Tokens
from tunneld.protocol.session import Session
from tunneld.protocol.windows import MemoryBudget
from tunneld.server.carriers import Seen
from tunneld.server.conflicts import PAUSE, Conflict
from tunneld.server.names import NameRegistry
from tunneld.server.permissions import Permissions
from tunneld.server.permitting import Permitting
from tunneld.server.principals import Principal
from tunneld.server.registry import SessionDirectory, Tunnel
from tunneld.server.terms import Terms
from tunneld.server.visitors.rules import Rules
from tunneld.server.welcome import TunnelPolicy, connected, new_session, refusal

__all__ = ["TunnelConnection"]

#: Close codes by which an agent says that the server broke the protocol: its session is gone.
_FAULTS = (1002, 1006, 1009)  # 1006: a fault of this side's own (wire/ws_protocol.py)

log = logging.getLogger("tunneld.tunnels")


class TunnelConnection:
    """One agent's connection: waits for `hello`, then serves the name until the connection ends.

    Args:
        pipe: the WebSocket; set its handler to `self.link`.
        tunnel_name: from the query of the upgrade, allowed already.
        peer: the agent's address, for people.
        principal: whose credential it came with.
        policy: asked anew at each hello and at each change, so that a reload holds.
        registry: of who serves what.
        names: whose they are.
        permissions: of visitors.
        budget: of the process's memory.
        forget: called with this connection when it is over.
    """

    def __init__(
        self,
        pipe: Pipe,
        tunnel_name: str,
        *,
        peer: str,
        principal: Principal,
        policy: Callable[[], TunnelPolicy],
        registry: SessionDirectory,
        names: NameRegistry,
        permissions: Permissions,
        budget: MemoryBudget,
        forget: Callable[[TunnelConnection], None],
    ) -> None:
        self.name = tunnel_name
        self.peer = peer
        self.link = Link(pipe, self, name=tunnel_name)
        pipe.last_words = self._last_words
        self.tunnel: Tunnel | None = None
        self.session: Session | None = None
        self.hello: Hello | None = None
        self.round_trip: float | None = None
        self._pong_at: float | None = None
        self._policy = policy
        self._registry = registry
        self._budget = budget
        self._forget = forget
        self.principal = principal
        self._names = names
        self._permitting = Permitting(tunnel_name, principal, peer=peer, permissions=permissions, tell=self.link.tell)
        self._terms: Terms | None = None  # of the session, once its hello was taken
        self._claiming: asyncio.Task[None] | None = None
        self._since = monotonic()
        self._closed = False
        self._fresh = False  # the session began here, and nothing shows that the agent knows of it
        self._leaving = ""  # the reason of the agent's goaway
        self._back_within = 0.0  # seconds in which it wants to be back, where it said so
        self._timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            policy().hello_timeout, self._no_hello
        )

    # -- what the server asks ----------------------------------------------------------------------------

    def replaced(self, *, resumed: bool) -> None:
        """A newer connection took the name over, and with `resumed` the session too."""
        self._stop_timer()
        self._end_terms()
        if resumed:
            self.session = None
        else:
            self._end_session("peer_lost", "replaced by a newer connection")
        self.link.refuse("replaced", "a newer connection took this tunnel over")
        if self._closed:
            self._forget(self)

    def seen(self, now: float) -> Seen:
        """What operators are shown of this connection."""
        return Seen(
            peer=self.peer,
            agent_version=self.hello.agent_version if self.hello is not None else None,
            connected_s=round(now - self._since, 3),
            last_heard_s=round(max(0.0, now - self.link.pipe.last_heard), 3),
            last_pong_s=None if self._pong_at is None else round(now - self._pong_at, 3),
            round_trip_ms=None if self.round_trip is None else round(self.round_trip * 1000, 3),
            kernel=self.link.kernel(),
        )

    def go_away(self, retry_after: float) -> None:
        """The server is about to leave: no new streams, those that are open may end."""
        if self.tunnel is not None and self.tunnel.connection is self:
            self.tunnel.hold(monotonic())
        self.link.go_away("shutdown", retry_after)

    def shut(self, retry_after: float) -> None:
        """The server leaves now: what is open ends with reason `shutdown`, and the agent is told of each."""
        session = self.session
        if session is not None:
            for stream in list(session.streams.values()):
                stream.cancel("shutdown")
            self.link.flush()
        self._stop_claiming()
        self._end_session("shutdown", "the server is stopping")
        self.link.refuse("going_away", "the server is stopping", retry_after=retry_after)
        if self._closed:
            self._forget(self)

    def reconnect(self) -> None:
        """An operator asks for another connection."""
        self.link.abort()

    def revoke(self) -> None:
        """The credential is good no longer: the session and its streams end, and the agent is told why."""
        self._stop_claiming()
        self._stop_timer()
        self._end_session("peer_lost", "its token is good no longer", for_good=True)
        self.link.refuse("revoked", "the token was revoked, has expired or was replaced")
        if self._closed:
            self._forget(self)

    def retune(self) -> None:
        """The server's own bounds or defaults were reloaded: say what holds now."""
        if self._terms is not None and self.session is not None:
            self._terms.retune()

    # -- LinkOwner ---------------------------------------------------------------------------------------

    def link_text(self, link: Link, message: Message) -> None:
        """Hello, settings and goaway; anything else is the agent's error."""
        if isinstance(message, Hello):
            if self.session is not None or self._claiming is not None:
                raise RemoteError("protocol_error", "a second hello")
            self._said_hello(message)
        elif self.session is None:
            raise RemoteError("bad_hello", f"{type(message).__name__} where hello was due")
        elif isinstance(message, Probed):
            if self._terms is not None:
                self._terms.probed(message)
        elif isinstance(message, Permit):
            self._permitting.asked(message)
        elif isinstance(message, Settings):
            assert self._terms is not None
            self._terms.said(message)
        elif isinstance(message, GoAway):
            self._leaving = message.reason or "drain"
            self._back_within = message.retry_after
            if self.tunnel is not None and self.tunnel.connection is self:
                self.tunnel.hold(monotonic())
            log.info("The agent of %s goes away: %s", self.name, message.reason, extra={"tunnel": self.name})
        else:
            raise RemoteError("protocol_error", f"{type(message).__name__} from the agent")

    def link_fault(self, link: Link, error: RemoteError) -> None:
        """The agent broke the protocol: its session ends, if one stands."""
        if self.hello is None and error.code == "protocol_error":
            error = RemoteError("bad_hello", error.detail)
        log.warning("✗ Tunnel error for %s: %s", self.name, error, extra={"tunnel": self.name, "code": error.code})
        self._end_session("peer_lost", str(error))
        link.fail(error, tell=True)

    def link_silent(self, link: Link, *, dead: bool) -> None:
        """The agent is silent."""
        if dead:
            if self.tunnel is not None and link.heartbeat is not None:
                now = monotonic()
                link.count_segments(self.tunnel.quality)
                self.tunnel.quality.lost(now, link.heartbeat.overdue(now))
            self._lose("the agent was silent for longer than interval + timeout", link.silent_for)
            link.abort()

    def link_heard(self, link: Link, round_trip: float | None) -> None:
        """A pong came."""
        if round_trip is not None:
            self.round_trip, self._pong_at = round_trip, monotonic()
            if self.tunnel is not None and link.heartbeat is not None:
                late = round_trip > link.heartbeat.timeout
                self._registry.round_trips.answered(
                    self.tunnel.quality,
                    monotonic(),
                    round_trip,
                    link.kernel(),
                    late=late,
                    beside=link.flight.beside,
                    held=link.flight.held,
                    peer=link.peer,
                )

    def link_closed(self, link: Link, code: int | None, reason: str) -> None:
        """The connection is gone. The session waits for the agent, unless the agent said that it will not come back."""
        self._closed = True
        self._end_terms()
        self._stop_claiming()
        why = f"closed ({code}{f' {reason}' if reason else ''})" if code else "the connection was lost"
        if self._leaving and self.tunnel is not None and self.tunnel.connection is self:
            self.tunnel.away = "its agent was drained"
        if code in _FAULTS or ((self._leaving or self._fresh) and code in (1000, 1001)):
            left = "shutdown" if self._leaving == "shutdown" else "peer_lost"
            self._end_session(left, why, for_good=code not in _FAULTS)
        else:
            self._lose(why)
        if self.session is None:
            self._stop_timer()
            self._forget(self)

    # -- inside ------------------------------------------------------------------------------------------

    def _last_words(self, code: str, detail: str) -> None:
        """The agent broke a rule of WebSocket, or sent too large a message: it hears which, as of every other error."""
        self.link.say(ErrorMessage(code, detail))

    def _no_hello(self) -> None:
        self._timer = None
        log.warning("✗ Tunnel error for %s: no hello came", self.name, extra={"tunnel": self.name, "peer": self.peer})
        self.link.refuse("hello_timeout", "no hello came in time")

    def _said_hello(self, hello: Hello) -> None:
        check_hello(hello, login=self._policy().bounds.login)
        self._stop_timer()
        if self._names.owns(self.name, self.principal):
            self._take(hello)
            return
        claim = self._names.claim(self.name, self.principal, time())
        self._claiming = asyncio.get_running_loop().create_task(claim, name=f"claim {self.name}")
        self._claiming.add_done_callback(lambda done: self._claimed(done, hello))

    def _claimed(self, done: asyncio.Task[None], hello: Hello) -> None:
        """The name was nobody's: now it is written down as this owner's, or another was quicker."""
        if done.cancelled():
            return
        self._claiming = None
        try:
            if (error := done.exception()) is not None:
                if not isinstance(error, VisitorError):
                    raise error
                raise RemoteError("overloaded", str(error))
            self._take(hello)
        except RemoteError as fault:
            self.link_fault(self.link, fault)

    def _take(self, hello: Hello) -> None:
        """From here to `attach` nothing waits: no other connection of the name comes between (PROTOCOL.md, epoch)."""
        tunnel = self._claim(hello)
        if tunnel is None:
            return
        policy = self._policy()
        most = self.principal.most_streams(policy.bounds.max_streams)
        agreed = agree(hello, replace(policy.bounds, max_streams=most))
        kept, refused = tunnel.kept, None
        if hello.session_id is not None:
            refused = refusal(tunnel, hello, self.principal.id)
        resumed = hello.session_id is not None and refused is None
        tunnel.grace = policy.bounds.resume.grace
        tunnel.take(self, resumed=resumed)
        tunnel.principal = self.principal
        token = token_urlsafe(32)
        if resumed and kept is not None:
            assert hello.resume_token is not None
            kept.tokens.renew(hello.resume_token, token)
        else:
            session = new_session(agreed, policy, self._budget)
            session.cancelling = self._cancelling
            kept = tunnel.kept = Kept(token_hex(16), self.name, self.principal.id, session, Tokens(token))
        self.tunnel, self.session, self.hello = tunnel, kept.session, hello
        access = hello.wishes.access or AccessSettings()
        self.link.say(
            connected(tunnel, kept, agreed, token, refused, resumed=resumed, mode=access.mode, expires=self._expires_s)
        )
        self._fresh = not resumed
        self.link.limit(kept.session.settings.max_header)
        self.link.on_first_message = self._heard_first
        received = (hello.received or 0) if resumed else 0
        self.link.attach(kept.session, received, interval=agreed.heartbeat.interval, timeout=agreed.heartbeat.timeout)
        self._log_established(hello, kept, resumed=resumed, refused=refused)
        tunnel.protect(Rules(self.name, access))  # before it takes a visitor
        tunnel.serve(kept.session, agreed.heartbeat, agreed.sse)
        self._terms = Terms(self, tunnel, hello, self.link, policy=self._policy, times=self._registry.probes)
        self._terms.begin(agreed.probe, resumed=resumed)

    def _claim(self, hello: Hello) -> Tunnel | None:
        """The tunnel that the hello asks for; None: it is another's for now, who was told. Raises RemoteError."""
        now = monotonic()
        try:
            self._registry.check_owner(self.name, self.principal.id)
            tunnel = self._registry.claim(self.name, now)
        except VisitorError as error:
            raise RemoteError("overloaded", str(error)) from None
        if not tunnel.newest_dial(hello.instance, hello.dial):
            raise RemoteError("stale_hello", f"dial {hello.dial} is not above the last one seen")
        held = tunnel.kept is not None
        if (conflict := tunnel.conflicts.hello(hello.instance, self.peer, now, held=held)) is not None:
            self._in_conflict(conflict)
            return None
        return tunnel

    @property
    def _expires_s(self) -> float | None:
        """Seconds that the credential is still good; None: for ever."""
        expires = self.principal.expires
        return None if expires is None else round(max(0.0, expires - time()), 3)

    def _heard_first(self) -> None:
        """The agent has its `connected`, and with it the newest token."""
        self._fresh = False
        if self.tunnel is not None and self.tunnel.kept is not None:
            self.tunnel.kept.tokens.heard()

    def _in_conflict(self, conflict: Conflict) -> None:
        """The one that serves stays; this one hears of both."""
        why = f"{conflict.address} and {conflict.other} replace each other under this name; {conflict.other} serves it"
        if conflict.first:
            log.error(
                "✗ Tunnel error for %s: conflict: %s. Give each its own name, or stop one.",
                self.name,
                why,
                extra={"tunnel": self.name, "code": "conflict", "peer": conflict.address, "serving": conflict.other},
            )
        self.link.refuse("conflict", why, retry_after=PAUSE)

    def _cancelling(self, request_id: str) -> Callable[[], None]:
        """A stream is cancelled; what is returned is called once the agent has it."""
        began, seen = monotonic(), self._registry.cancels
        return lambda: seen.observe(monotonic() - began, request_id)

    def _log_established(self, hello: Hello, kept: Kept, *, resumed: bool, refused: str | None) -> None:
        fields: dict[str, object] = {"tunnel": self.name, "peer": self.peer, "agent_version": hello.agent_version}
        if resumed:
            assert self.tunnel is not None
            outage = self.tunnel.outages.resumed(monotonic(), kept.session.replayed)
            fields |= {
                "resumed": True,
                "outage_s": outage.seconds if outage is not None else 0.0,
                "replayed_bytes": kept.session.replayed,
                "streams": len(kept.session.streams),
            }
        elif hello.session_id is not None:
            fields |= {"resumed": False, "resume_refused": refused}
        kept.lost_at = None
        log.info("✓ Tunnel established: %s", self.name, extra=fields)

    def _lose(self, why: str, silent: float = 0.0) -> None:
        """The connection is gone: keep the session for its grace, with its visitors waiting; without grace end it."""
        session, tunnel = self.session, self.tunnel
        if session is None or tunnel is None or tunnel.kept is None:
            return
        if session.settings.grace <= 0:
            self._end_session("peer_lost", why)
            return
        if tunnel.kept.lost_at is not None:
            return
        now = monotonic()
        self._end_terms()
        self.link.detach()
        tunnel.hold(now)
        tunnel.kept.lost_at = now
        tunnel.outages.begin(now, time(), silent)
        self._log_disconnected(why, kept_streams=len(session.streams))
        patience = session.settings.grace
        if self._back_within > 0:  # it restarts: who waits for it need not wait longer than it said
            patience = min(patience, self._back_within)
        self._timer = asyncio.get_running_loop().call_later(patience, self._grace_over)

    def _grace_over(self) -> None:
        self._timer = None
        kept = self.tunnel.kept if self.tunnel is not None else None
        if self.tunnel is not None and kept is not None and kept.session is self.session:
            self.tunnel.expired = kept.session_id
        self._end_session("peer_lost", "the agent did not come back in time", for_good=True)
        if self._closed:
            self._forget(self)

    def _end_session(self, reason: str, why: str, *, for_good: bool = False) -> None:
        """The session is over. Unless the agent left `for_good`, recoverable event streams wait for a fresh one."""
        session, self.session = self.session, None
        if session is None:
            return
        self._stop_timer()
        self._end_terms()
        tunnel, streams = self.tunnel, len(session.streams)
        fields: dict[str, float] = {}
        kept = False  # the loss of the connection is in the log already
        if tunnel is None:
            session.end(reason)
        else:
            lost_at = None
            if tunnel.kept is not None and tunnel.kept.session is session:
                lost_at = tunnel.kept.lost_at
                tunnel.kept = None
            kept = lost_at is not None
            tunnel.leave(self, monotonic())
            tunnel.lose(monotonic() if lost_at is None else lost_at, for_good=for_good)
            before = len(tunnel.recovering) + tunnel.outages.streams_lost
            session.end(reason)
            # Those that wait are lost when they cannot go on; those lost before that cannot are counted already.
            streams -= len(tunnel.recovering) + tunnel.outages.streams_lost - before
            if (outage := tunnel.outages.lost(monotonic(), streams)) is not None:
                fields = {"outage_s": outage.seconds}
        self._log_disconnected(why, over=kept, streams_lost=streams, **fields)

    def _log_disconnected(self, why: str, *, over: bool = False, **fields: float) -> None:
        log.warning(
            "The session of %s is over" if over else "✗ Tunnel disconnected: %s",
            self.name,
            extra={"tunnel": self.name, "why": why, "peer": self.peer, **fields},
        )

    def _end_terms(self) -> None:
        if self._terms is not None:
            self._terms.end()

    def _stop_claiming(self) -> None:
        if self._claiming is not None:
            self._claiming.cancel()
            self._claiming = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
