"""One tunnel of the agent: dial, hello, serve, and back again after a loss, until it is closed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_bytes, token_hex
from time import monotonic, time
from typing import Any, Literal

from tunneld import __version__
from tunneld.agent.access import access_wish, enforces
from tunneld.agent.asking import Asking
from tunneld.agent.checking import ServiceCheck
from tunneld.agent.dialer import DIAL_ERRORS, DIAL_TIMEOUT, MAX_HEADER, Dial, of_dial, open_pipe
from tunneld.agent.dials import Dials
from tunneld.agent.exchange import Exchange
from tunneld.agent.handover import Legacy
from tunneld.agent.proxy import Proxy
from tunneld.agent.reconnect import Backoff, Failed, Retry, Verdict, of_close, of_error_code
from tunneld.config.agent import AgentConfig, TunnelConfig
from tunneld.errors import RemoteError, VisitorError
from tunneld.link import CLOSE_CODES, Link
from tunneld.protocol.handshake import check_connected, check_live, check_probe
from tunneld.protocol.links import secret_of, sign
from tunneld.protocol.messages import (
    Connected,
    ErrorMessage,
    GoAway,
    HeartbeatSettings,
    Hello,
    Message,
    Permitted,
    Probe,
    Probed,
    ResumeSettings,
    Settings,
    SseSettings,
    Wishes,
)
from tunneld.protocol.quality import Quality, Reading
from tunneld.protocol.session import Session, SessionSettings
from tunneld.telemetry.outages import Outage, Outages
from tunneld.wire.tcp_info import TcpInfo
from tunneld.wire.tls import peer_certificate_end
from tunneld.wire.ws_protocol import WebSocket

__all__ = ["AgentTunnel", "Dial", "Identity", "State"]

log = logging.getLogger("tunneld.tunnel")

_ASKED = Retry("a new connection was asked for")

State = Literal["connecting", "online", "degraded", "resuming", "offline", "failed", "draining", "closed"]

#: Errors of the server that leave the session as it is.
_KEPT_BY = frozenset({"hello_timeout", "bad_hello", "stale_hello", "going_away", "overloaded"})
#: Seconds within which a doubted connection must say something, at least, and in round trips.
_DOUBT, _DOUBT_TRIPS = 2.0, 4
#: Seconds that a server has to acknowledge all that was sent before the session is handed over to another process.
_QUIET = 2.0
#: Close code of a connection whose agent is about to be back (RFC 6455's registry: service restart).
_RESTART = 1012


@dataclass(slots=True)
class Identity:
    """This process, as all its tunnels tell it: `instance` in every hello, `dial` raised with each.

    Attributes:
        links: what shared addresses are signed with where there is no token. Told to nobody: a server is told what is
            made of it for a protected tunnel, and only then.
    """

    instance: str = field(default_factory=lambda: token_hex(16))
    dials: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    links: bytes = field(default_factory=lambda: token_bytes(32), repr=False)


class AgentTunnel:
    """Runs as one task of the daemon (`run`); everything else is called on the same loop.

    Args:
        config: this tunnel's part of the file, whole.
        agent: the file.
        proxy: what serves its streams.
        identity: of the process.
        dial: asked before each dial, so that a changed credential is used.
        changed: called after each change of `state` with (tunnel, the state before).
        heard: called with (tunnel, round trip in seconds or None for one that failed) for each heartbeat.
        legacy: the session that the process before this one left; None: there is none.
    """

    def __init__(
        self,
        config: TunnelConfig,
        agent: AgentConfig,
        *,
        proxy: Proxy,
        identity: Identity,
        dial: Callable[[], Dial],
        changed: Callable[[AgentTunnel, State], None],
        heard: Callable[[AgentTunnel, float | None], None],
        legacy: Legacy | None = None,
    ) -> None:
        self.name = config.name
        self.config = config
        self.proxy = proxy
        self.state: State = "connecting"
        self.connected: Connected | None = None
        self.connected_at: float | None = None
        self.last_pong_at: float | None = None
        #: Seconds of the epoch; None without TLS.
        self.server_certificate_end: float | None = None
        #: The same of the token that it came with; None: for ever, or the server does not say.
        self.token_end: float | None = None
        self.last_error: str | None = None
        self.reconnects = 0
        #: Why the service does not answer, while it does not, or the server's probe does not come back; None: all is
        #: well, as far as is known.
        self.service_fault: str | None = None
        #: Looks at the service, for the server's probes too.
        self.check = ServiceCheck(proxy, config, self._looked)
        #: Times without a connection, and what they cost.
        self.outages = Outages()
        #: Of all its connections.
        self.quality = Quality(agent.quality)
        self._agent = agent
        self._identity = identity
        self._dial = dial
        self._changed = changed
        self._heard = heard
        self._dials = Dials(Backoff(agent.reconnect.initial, agent.reconnect.max, random.uniform))
        self._link: Link | None = None
        self._asking = Asking()
        self._links: set[Link] = set()  # those not gone yet, that which is in use among them
        self._gone = asyncio.Event()
        self._session: Session | None = None
        self._legacy = legacy
        #: Session id and resume token.
        self._ticket = (legacy.session_id, legacy.resume_token) if legacy is not None else None
        self._lost_at: float | None = None  # since when the session is without a connection
        self._asked = False  # a hello that resumes waits for its answer
        self._expired = False  # the grace is over, and only that answer is still waited for
        self._untold: Outage | None = None  # an outage that is over, for the next event
        self._draining = False
        self._token: str | None = None  # the credential of the last dial
        self._expiry: asyncio.TimerHandle | None = None
        self._leaving = False  # the server said goaway
        self._over: asyncio.Future[Verdict] | None = None
        self._logged: Verdict | None = None  # the log says it already
        self._told: tuple[object, ...] = ()
        self._looked_fault: str | None = None  # what the last look at the service found
        self._way_fault: str | None = None  # what the server says of its last probe
        self._proved = False  # a probe went the whole way and back
        self._closing = False
        self._silent = False

    # -- what the daemon asks ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the tunnel up, and look after its service, until `close`, or until the task is cancelled."""
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self.check.run(), name=f"service check {self.name}")
            await self._keep_up(looking)

    async def _keep_up(self, looking: asyncio.Task[None]) -> None:
        try:
            while (verdict := await self._one_connection()) is not None:
                self._note(verdict)
                await self._dials.pause(verdict, kept=self._kept())
        finally:
            looking.cancel()
            self._drop("shutdown")
            self.proxy.close()
            await self.proxy.wait_closed()
            await self._all_gone()
            self._set("closed")

    def reconnect(self, *, elsewhere: bool = False) -> None:
        """Drop the connection or the dial, if there is one, and dial as soon as two dials may follow each other.

        Args:
            elsewhere: another server: nothing of the session can go on there, so it ends here and at the old one.
        """
        self._dials.hurry()
        if elsewhere:
            for exchange in list(self.proxy.exchanges.values()):
                exchange.cancel("shutdown")
        if self._link is not None:
            link, self._link = self._link, None
            if elsewhere:
                link.go_away("shutdown", 0.0)
                link.close(1000, "shutdown")
            else:
                self._lose("reconnect was asked for")
                link.close(1000, "reconnect")
        if elsewhere:
            self._end_session("shutdown")
        self._finish(_ASKED)

    def doubt(self) -> None:
        """The machine woke, or its network changed: the connection may be dead, and where there is none, dial now."""
        link = self._link
        if link is not None and link.session is not None:
            session = link.session
            if session.settings.grace > 0:  # without, a connection that is given up costs its streams: let it be silent
                link.doubt(max(_DOUBT, _DOUBT_TRIPS * (session.round_trip or 0.0)))
            return
        if (link is not None or self._dials.under_way) and self._dials.spares():
            return
        if link is not None:  # its hello was said over what is gone by now
            self._link = None
            link.abort()
            self._dials.hurry()
            self._finish(Retry("the network changed"))
        elif self.state != "failed":
            self._dials.hurry()

    def take_outage(self) -> Outage | None:
        """The outage that is over since this was asked last."""
        outage, self._untold = self._untold, None
        return outage

    def drain(self) -> None:
        """Take no new streams, on this connection or the next; those that are open may end."""
        self._draining = True
        self._tell_drain()
        if self.state in ("online", "degraded", "resuming"):
            self._set("draining")

    def must_end(self, *, succession: bool) -> int:
        """Streams that a drain waits for: not WebSockets, nor, with a successor, what that one could go on with."""
        kept = succession and self._session is not None and self._session.settings.grace > 0
        waited = [exchange for exchange in self.proxy.exchanges.values() if exchange.kind != "websocket"]
        return sum(not (kept and _goes_on(exchange)) for exchange in waited)

    async def hand_over(self, within: float) -> Legacy | None:
        """Leave the session to another process, which is to come back within so many seconds; then `close`.

        Returns:
            What that process needs; None where there is no session that could be taken up: its hello is a fresh one,
            and event streams go on by that as well.
        """
        session, link = self._session, self._link
        if session is None or link is None or session.settings.grace <= 0:
            return None
        link.go_away("restart", within)
        left = []
        for exchange in list(self.proxy.exchanges.values()):
            if isinstance(exchange, Exchange) and exchange.goes_on:
                left.append(exchange.leave())
            else:
                exchange.cancel("shutdown")
        link.flush()
        await self._quiet(session)
        if self._session is not session or self._link is not link or self._ticket is None:
            return None  # lost meanwhile
        ticket = self._ticket
        self._link = self._session = self._ticket = None
        link.close(_RESTART, "restart")
        standing = session.standing()
        session.end("shutdown")
        return Legacy(*ticket, standing, tuple(left)) if standing is not None else None

    async def _quiet(self, session: Session) -> None:
        """Return when the server has acknowledged everything, or when it takes too long."""
        acknowledged = asyncio.Event()
        session.acknowledged = acknowledged.set
        try:
            async with asyncio.timeout(_QUIET):
                while session.standing() is None and not session.ended:
                    acknowledged.clear()
                    await acknowledged.wait()
        except TimeoutError:
            log.info("The session of %s cannot be handed over whole", self.name, extra={"tunnel": self.name})

    def close(self, reason: str = "shutdown") -> None:
        """Cancel what is open, close in order, and let `run` return."""
        self._closing = True
        session, link = self._session, self._link
        self.proxy.close(reason)
        if session is not None:
            for stream in list(session.streams.values()):
                stream.cancel(reason)
        self._link = None
        if link is not None:
            link.go_away(reason, 0.0)
            link.close(1000, reason)
        self._end_session(reason)
        self._dials.close()
        self._finish(Retry("closed"))

    def update(self, config: TunnelConfig, agent: AgentConfig) -> None:
        """Apply a reloaded file: what may change while the tunnel is up does, the rest at the next session."""
        self.config, self._agent = config, agent
        self.quality.thresholds = agent.quality
        self._dials.update(agent.reconnect.initial, agent.reconnect.max)
        self.proxy.update(config)
        self.proxy.inspect(agent.inspection if config.inspect else None)
        self.check.update(config)
        self._tell_wishes()

    def _looked(self, fault: str | None) -> None:
        """What the last look at the service found; None: it answers."""
        self._looked_fault = fault
        self._service(fault or self._way_fault)

    def _probed(self, said: Probed) -> None:
        """Whether the server's probe came back to it."""
        self._way_fault = said.fault
        self._proved = self._proved or said.fault is None
        self._service(self._looked_fault or self._way_fault)
        self._stand()

    def _service(self, fault: str | None) -> None:
        if fault == self.service_fault:
            return
        before, self.service_fault = self.service_fault, fault
        if fault is not None:
            self.last_error = fault
            log.warning("The service of %s fails: %s", self.name, fault, extra={"tunnel": self.name})
        else:
            if self.last_error == before:
                self.last_error = None
            log.info("The service of %s answers again.", self.name, extra={"tunnel": self.name})
        self._stand()

    def _stand(self) -> None:
        """The state of a connection that stands."""
        if self.connected_at is None or self._silent:
            return
        if self.service_fault is not None:
            self._set("degraded")
        else:
            self._set("online" if self._proved else "connecting")

    @property
    def active_streams(self) -> int:
        """Streams under way."""
        return len(self.proxy.exchanges)

    @property
    def round_trip(self) -> float | None:
        """Seconds, of the last heartbeat; None before the first."""
        return self._session.round_trip if self._session is not None else None

    @property
    def kernel(self) -> TcpInfo | None:
        """What the kernel knows of the connection that stands; None where it knows nothing, or none stands."""
        return self._link.kernel() if self._link is not None else None

    def read_quality(self, now: float) -> Reading:
        """How good the connection is (`now`: monotonic seconds)."""
        return self.quality.read(now, connected=self.connected_at is not None and not self._silent)

    # -- one connection ----------------------------------------------------------------------------------

    async def _one_connection(self) -> Verdict | None:
        """Dial and serve until the connection is over; why it ended, or None when the tunnel was closed."""
        await self._all_gone()  # one connection at a time
        if self._is_closing():
            return None
        self._dials.hurried = False
        if self.state != "failed":
            self._set("connecting")
        number = next(self._identity.dials)
        try:
            pipe = await self._dials.dial(self._open_pipe)
        except DIAL_ERRORS as error:
            if self._is_closing():
                return None
            return _ASKED if self._dials.hurried else of_dial(error)
        if self._is_closing() or self._dials.hurried:  # in the very turn of the loop in which the dial was done
            pipe.abort()
            return None if self._is_closing() else _ASKED
        over = self._over = asyncio.get_running_loop().create_future()
        self._link = link = Link(pipe, self, name=self.name)
        self._links.add(link)
        pipe.handler = link
        try:
            link.say(self._hello(number))
            waiting = asyncio.get_running_loop().call_later(DIAL_TIMEOUT, self._no_answer, link)
            try:
                verdict: Verdict = await over
            finally:
                waiting.cancel()
            return None if self._is_closing() else verdict
        finally:
            self._over = None
            if self._link is link:
                self._link = None
                link.abort()
            self._lose("the connection was lost")
            self._asked = False
            if self._expired:
                self._end_session("peer_lost")

    def _kept(self) -> float | None:
        """Seconds that the session without a connection is still kept for; None where there is none."""
        if self._session is None or self._lost_at is None:
            return None
        return self._lost_at + self._session.settings.grace - monotonic()

    async def _open_pipe(self) -> WebSocket:
        dial = self._dial()
        self._token = dial.token
        return await open_pipe(dial, self.name)

    def _hello(self, number: int) -> Hello:
        """Fresh, or with what it takes to resume. No connection is attached here, so the count stands still."""
        wishes = self._wishes()
        self._told = (wishes.heartbeat, wishes.sse, wishes.probe, wishes.access)
        hello = Hello(instance=self._identity.instance, dial=number, agent_version=__version__, wishes=wishes)
        if self._session is not None and self._ticket is not None:
            self._asked = True
            hello.session_id, hello.resume_token = self._ticket
            hello.received = self._session.received
        elif self._legacy is not None:
            self._asked = True
            hello.session_id, hello.resume_token = self._legacy.session_id, self._legacy.resume_token
            hello.received = self._legacy.standing.received
        return hello

    async def _all_gone(self) -> None:
        """Return when no connection is left; each ends within the WebSocket's close timeout once it was closed."""
        while self._links:
            self._gone.clear()
            await self._gone.wait()

    def _is_closing(self) -> bool:
        return self._closing

    def _wishes(self) -> Wishes:
        config = self.config
        return Wishes(
            heartbeat=HeartbeatSettings(config.heartbeat.interval, config.heartbeat.timeout),
            sse=SseSettings(**config.sse.model_dump()),
            resume=ResumeSettings(self._agent.resume.grace, self._agent.resume.buffer),
            max_streams=config.limits.max_streams,
            stream_window=config.limits.stream_window,
            probe=self.check.wish,
            access=access_wish(config.access, self._link_secret()),
        )

    def _link_secret(self) -> bytes:
        """What shared addresses are signed with: of the token, so that they outlive this process; else of its own."""
        token = self._token
        return secret_of(token.encode() if token else self._identity.links, self.name)

    def share(self, path: str, until: int) -> str:
        """A public address that lets a visitor in for `path` until then, seconds since the epoch.

        Raises:
            VisitorError: ``not_protected``, or ``tunnel_offline`` while the address is not known yet.
        """
        if self.config.access.mode == "open":
            raise VisitorError("not_protected", f"The tunnel {self.name} is open: its address needs no signature.")
        if self.connected is None:
            raise VisitorError("tunnel_offline", f"The tunnel {self.name} has not been connected yet.", retry_after=5)
        return self.connected.public_url + sign(self._link_secret(), self.name, path, until)

    async def permit(self, do: str, **fields: Any) -> Permitted:
        """Ask the server for its tunnel's permissions, or change them; fields as in `Permit`.

        Raises:
            VisitorError: ``tunnel_offline``, or the server's.
        """
        link = self._link
        if link is None or link.session is None:
            raise VisitorError("tunnel_offline", f"The tunnel {self.name} is not connected.", retry_after=5)
        return await self._asking.ask(link.tell, do, **fields)

    def _no_answer(self, link: Link) -> None:
        if self._link is link and link.session is None:
            self._finish(Retry(f"no answer to hello within {DIAL_TIMEOUT:.0f} s"))

    def _finish(self, verdict: Verdict) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(verdict)

    # -- LinkOwner ---------------------------------------------------------------------------------------

    def link_text(self, link: Link, message: Message) -> None:
        """Connected, settings, goaway and error; anything else is the server's error."""
        if isinstance(message, ErrorMessage):
            verdict = of_error_code(message.code, message.message, message.retry_after)
            if isinstance(verdict, Retry):  # `_note` tells of the other kind
                fields = {"tunnel": self.name, "code": message.code}
                log.warning("✗ Tunnel error for %s: %s", self.name, verdict.why, extra=fields)
                self._logged = verdict
            self._finish(verdict)
            if message.code not in _KEPT_BY:
                self._end_session("peer_lost")
            self._part(link, 1000, "")
        elif isinstance(message, Connected):
            if link.session is not None:
                raise RemoteError("protocol_error", "a second connected")
            self._said_connected(link, message)
        elif link.session is None:
            raise RemoteError("protocol_error", f"{type(message).__name__} where connected was due")
        elif isinstance(message, Probe):
            self.check.asked(message.seq, link.tell)
        elif isinstance(message, Probed):
            self._probed(message)
        elif isinstance(message, Permitted):
            self._asking.answered(message)
        elif isinstance(message, Settings):
            check_live(message.heartbeat, message.sse, code="protocol_error")
            check_probe(message.probe, code="protocol_error")
            self._said_settings(link, message)
        elif isinstance(message, GoAway):
            self._leaving = True
            log.info("The server goes away: %s", message.reason, extra={"tunnel": self.name})
        else:
            raise RemoteError("protocol_error", f"{type(message).__name__} from the server")

    def link_fault(self, link: Link, error: RemoteError) -> None:
        """The server broke the protocol: drop the session, say a fresh hello after the backoff."""
        log.warning("✗ Tunnel error for %s: %s", self.name, error, extra={"tunnel": self.name, "code": error.code})
        self._logged = Retry(str(error), fault=True)
        self._finish(self._logged)
        self._end_session("peer_lost")
        self._part(link, CLOSE_CODES.get(error.code, 1002), error.code)

    def link_silent(self, link: Link, *, dead: bool) -> None:
        """The server is silent."""
        self._heard(self, None)
        if dead:
            if link.heartbeat is not None:
                now = monotonic()
                link.count_segments(self.quality)
                self.quality.lost(now, link.heartbeat.overdue(now))
            self._lose("the server was silent for longer than interval + timeout")
            link.abort()
            self._finish(Retry("the server was silent for longer than interval + timeout"))
        else:
            self._silent = True
            self._set("resuming")

    def link_heard(self, link: Link, round_trip: float | None) -> None:
        """A pong came, or a silent server is back."""
        if round_trip is not None:
            self.last_pong_at = now = monotonic()
            if link.heartbeat is not None:
                link.count_segments(self.quality)
                self.quality.answered(now, round_trip, late=round_trip > link.heartbeat.timeout)
            self._heard(self, round_trip)
        if self._silent:
            self._silent = False
            self._stand()

    def link_closed(self, link: Link, code: int | None, reason: str) -> None:
        """The connection is gone."""
        self._links.discard(link)
        self._asking.lost()
        self._gone.set()
        if self._link is link:
            self._link = None
            verdict = of_close(code, reason)
            if isinstance(verdict, Retry) and verdict.fault:
                self._end_session("peer_lost")
            else:
                self._lose(verdict.why)
            self._finish(verdict)

    # -- inside ------------------------------------------------------------------------------------------

    def _said_connected(self, link: Link, said: Connected) -> None:
        check_connected(said, most_header=MAX_HEADER)
        if not enforces(said.access, self.config.access):
            self._unprotected(link)
            return
        session = self._session
        legacy, self._legacy = self._legacy, None
        kept = session is not None or (legacy is not None and said.resume.grace > 0)
        if said.resumed and not (kept and self._ticket is not None and said.session_id == self._ticket[0]):
            raise RemoteError("protocol_error", "connected resumes a session that this agent does not have")
        if not said.resumed:
            if session is not None:
                log.warning(
                    "The session of %s was not resumed: %s",
                    self.name,
                    said.resume_refused or "no reason given",
                    extra={"tunnel": self.name, "streams_lost": len(session.streams)},
                )
                self._end_session("peer_lost")
            session = self._new_session(said)
        elif session is None:
            assert legacy is not None
            session = self._taken_up(said, legacy)
        if self.connected is not None:
            self.reconnects += 1
        self.connected, self._session = said, session
        self._ticket = (said.session_id, said.resume_token)
        self.connected_at = monotonic()
        self.server_certificate_end = peer_certificate_end(link.pipe.transport)
        self.token_end = None if said.token_expires_s is None else time() + said.token_expires_s
        self._silent = self._leaving = False
        self._asked = False
        self._dials.connected()
        self.proxy.head_limit = 2 * said.max_header
        link.name = said.tunnel_id
        link.attach(session, said.received, interval=said.heartbeat.interval, timeout=said.heartbeat.timeout)
        self._log_established(said, session)
        self._way_fault = None
        self.service_fault = self.last_error = self._looked_fault
        if not said.resumed or said.probe is None:
            self._proved = said.probe is None  # a server that does not probe leaves it at being connected
        self.check.agreed(said.probe)
        self._stand()
        self._tell_wishes()
        if self._draining:
            self._tell_drain()

    def _unprotected(self, link: Link) -> None:
        """The server does not enforce who may visit: nothing that it sends is taken, and the tunnel fails."""
        self._finish(of_error_code("access_unsupported", "", None))
        self._end_session("peer_lost")
        self._part(link, 1000, "")

    def _taken_up(self, said: Connected, legacy: Legacy) -> Session:
        """The session of the process before this one; what it left open is lost to it, and the server hears of each."""
        session = self._new_session(said)
        session.take_up(legacy.standing)
        for request_id in legacy.streams:
            session.disown(request_id, "peer_lost")
        return session

    def _tell_wishes(self) -> None:
        """Say what the file wishes now, where that differs from what was said last."""
        wishes = self._wishes()
        live = (wishes.heartbeat, wishes.sse, wishes.probe, wishes.access)
        if self.connected is not None and self.connected.access is None and not enforces(None, self.config.access):
            self.reconnect()  # and be told so: this server would go on letting everybody in
            return
        link = self._link
        # Before `connected` nothing can be said: what differs from the hello by then is said behind it.
        if link is not None and link.session is not None and live != self._told:
            self._told = live
            link.tell(Settings(*live))

    def _tell_drain(self) -> None:
        if self._session is not None:
            self._session.refuse_new()
            if self._link is not None:
                self._link.go_away("drain", 0.0)

    def _new_session(self, said: Connected) -> Session:
        return Session(
            SessionSettings(
                max_streams=said.max_streams,
                stream_window=said.stream_window,
                stream_window_max=max(said.stream_window, self.config.limits.stream_window_max),
                max_header=said.max_header,
                grace=said.resume.grace,
                buffer=said.resume.buffer,
                peer_buffer=said.resume.buffer,
            ),
            accept=self.proxy.accept,
            budget=self.proxy.holders.budget,
        )

    def _log_established(self, said: Connected, session: Session) -> None:
        fields: dict[str, object] = {
            "tunnel": self.name,
            "public_url": said.public_url,
            "server_version": said.server_version,
        }
        if said.resumed:
            outage = self._untold = self.outages.resumed(monotonic(), session.replayed)
            fields |= {
                "resumed": True,
                "outage_s": outage.seconds if outage is not None else 0.0,
                "replayed_bytes": session.replayed,
                "streams": len(session.streams),
            }
        self._kept_no_longer()
        log.info("✓ Tunnel established: %s", said.tunnel_id, extra=fields)

    def _said_settings(self, link: Link, said: Settings) -> None:
        assert self.connected is not None
        if said.heartbeat is not None:
            self.connected.heartbeat = said.heartbeat
            link.retime(said.heartbeat.interval, said.heartbeat.timeout)
        if said.sse is not None:
            self.connected.sse = said.sse
        if said.probe is not None:
            self.connected.probe = said.probe
            self.check.agreed(said.probe)

    def _lose(self, why: str) -> None:
        """The connection is gone: keep the session for its grace, its services waiting; without grace end it."""
        session = self._session
        if session is None or self._lost_at is not None:
            return
        if session.settings.grace <= 0 or self._closing:
            self._end_session("peer_lost")
            return
        session.detach()
        self.proxy.hold()
        self.connected_at = None
        self.check.agreed(None)
        self._lost_at = monotonic()
        self.outages.begin(self._lost_at, time())
        self._expiry = asyncio.get_running_loop().call_later(session.settings.grace, self._grace_over)
        log.warning(
            "✗ Tunnel disconnected: %s",
            self.name,
            extra={"tunnel": self.name, "why": why, "kept_streams": len(session.streams)},
        )
        self._set("resuming")

    def _grace_over(self) -> None:
        """The session is given up; but a hello that asks for it may be answered yet."""
        self._expiry = None
        if self._asked:
            self._expired = True
        else:
            self._end_session("peer_lost")

    def _kept_no_longer(self) -> None:
        self._lost_at = None
        self._expired = False
        self.proxy.go_on()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _end_session(self, reason: str) -> None:
        session, self._session = self._session, None
        self._legacy = None
        if session is None:
            return
        was_kept = self._lost_at is not None
        self.check.agreed(None)
        self._kept_no_longer()
        self._ticket = None
        self.connected_at = None
        fields: dict[str, object] = {"tunnel": self.name, "streams_lost": len(session.streams)}
        if (outage := self.outages.lost(monotonic(), len(session.streams))) is not None:
            self._untold = outage
            fields["outage_s"] = outage.seconds
        log.warning("The session of %s is over" if was_kept else "✗ Tunnel disconnected: %s", self.name, extra=fields)
        session.end(reason)
        if was_kept and self.state == "resuming":
            self._set("offline")

    def _part(self, link: Link, code: int, reason: str) -> None:
        """Close in order; the close goes out whatever the tunnel does next."""
        if self._link is link:
            self._link = None
        link.close(code, reason)

    def _drop(self, reason: str) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.abort()
        self._end_session(reason)

    def _note(self, verdict: Verdict) -> None:
        self.last_error = verdict.why
        advice = f". {verdict.advice}" if verdict.advice else ""
        if isinstance(verdict, Failed):
            log.error(
                "✗ Tunnel error for %s: %s%s", self.name, verdict.why.rstrip("."), advice, extra={"tunnel": self.name}
            )
            self._set("failed")
        else:
            if verdict is _ASKED:
                log.info("The tunnel %s dials again: %s", self.name, verdict.why, extra={"tunnel": self.name})
            elif verdict is self._logged:
                log.debug("The tunnel %s is offline", self.name, extra={"tunnel": self.name})
            else:
                why = verdict.why.rstrip(".") if advice else verdict.why
                log.warning("✗ Tunnel error for %s: %s%s", self.name, why, advice, extra={"tunnel": self.name})
            self._set("offline")

    def _set(self, state: State) -> None:
        before = self.state
        if self._lost_at is not None and state in ("connecting", "offline"):
            state = "resuming"
        if self._draining and state in ("online", "degraded", "resuming"):
            state = "draining"
        if state != before:
            self.state = state
            log.debug("The tunnel %s is %s", self.name, state, extra={"tunnel": self.name, "was": before})
            self._changed(self, before)


def _goes_on(exchange: object) -> bool:
    return isinstance(exchange, Exchange) and exchange.goes_on
