"""One tunnel of the agent: dial, hello, serve, and back again after a loss, until it is closed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from time import time
from typing import Any

from tunneld.agent.asking import Asking
from tunneld.agent.checking import ServiceCheck, ServiceHealth
from tunneld.agent.connections import Connections
from tunneld.agent.dialer import DIAL_ERRORS, MAX_HEADER, Dial, of_dial, open_pipe
from tunneld.agent.dials import Dials
from tunneld.agent.handover import Legacy
from tunneld.agent.hello import Identity, Wishing
from tunneld.agent.keeping import Keeping
from tunneld.agent.proxy import Proxy
from tunneld.agent.pulse import Pulse
from tunneld.agent.reconnect import Backoff, Retry, Verdict, of_close, of_error_code
from tunneld.agent.state import ASKED, State, TunnelState
from tunneld.config.agent import AgentConfig
from tunneld.config.tunnel import TunnelConfig
from tunneld.errors import RemoteError, VisitorError
from tunneld.link import CLOSE_CODES, Link
from tunneld.protocol.handshake import check_connected, check_live, check_probe
from tunneld.protocol.messages import (
    Connected,
    ErrorMessage,
    GoAway,
    Message,
    Permitted,
    Probe,
    Probed,
    Settings,
)
from tunneld.protocol.quality import Reading
from tunneld.protocol.session import Session
from tunneld.protocol.settings import changed
from tunneld.telemetry.flow import Flow
from tunneld.telemetry.outages import Outage, Outages
from tunneld.wire.tcp_info import TcpInfo
from tunneld.wire.tls import peer_certificate_end
from tunneld.wire.ws_protocol import WebSocket

__all__ = ["AgentTunnel"]

log = logging.getLogger("tunneld.tunnel")

#: Errors of the server that leave the session as it is.
_KEPT_BY = frozenset({"hello_timeout", "bad_hello", "stale_hello", "going_away", "overloaded"})
#: Seconds within which a doubted connection must say something, at least, and in round trips.
_DOUBT, _DOUBT_TRIPS = 2.0, 4
#: Close code of a connection whose agent is about to be back (RFC 6455's registry: service restart).
_RESTART = 1012


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
        self.connected: Connected | None = None
        #: Seconds of the epoch; None without TLS.
        self.server_certificate_end: float | None = None
        #: The same of the token that it came with; None: for ever, or the server does not say.
        self.token_end: float | None = None
        self.reconnects = 0
        #: Of visitors' bodies; the daemon samples it.
        self.flow = Flow()
        #: Of the service, as visitors would find it.
        self.health = ServiceHealth(self._health_changed)
        self._check = ServiceCheck(proxy, config, self.health.looked)
        self._wishing = Wishing(config, agent, identity, self._check)
        self._keeping = Keeping(self.name, proxy, legacy, grace_over=lambda: self._end_session("peer_lost"))
        self._state = TunnelState(self.name, self._keeping, lambda before: changed(self, before))
        self._pulse = Pulse(agent.quality)
        self._identity = identity
        self._dial = dial
        self._heard = heard
        self._dials = Dials(Backoff(agent.reconnect.initial, agent.reconnect.max, random.uniform))
        self._connections = Connections(self, name=self.name)
        self._asking = Asking()
        self._closing = False
        self._met = False  # the server answered a hello at this address

    # -- what the daemon asks ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the tunnel up, and look after its service, until `close`, or until the task is cancelled."""
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self._check.run(), name=f"service check {self.name}")
            await self._keep_up(looking)

    async def _keep_up(self, looking: asyncio.Task[None]) -> None:
        try:
            while (verdict := await self._one_connection()) is not None:
                self._state.over(verdict)
                await self._dials.pause(verdict, kept=self._keeping.left)
        finally:
            looking.cancel()
            if (link := self._connections.take()) is not None:
                link.abort()
            self._end_session("shutdown")
            self.proxy.close()
            await self.proxy.wait_closed()
            await self._connections.all_gone()
            self._state.set("closed")

    def reconnect(self, *, elsewhere: bool = False) -> None:
        """Drop the connection or the dial, if there is one, and dial as soon as two dials may follow each other.

        Args:
            elsewhere: another server: nothing of the session can go on there, so it ends here and at the old one.
        """
        self._dials.hurry()
        if elsewhere:
            self._met = False
            for exchange in list(self.proxy.exchanges.values()):
                exchange.cancel("shutdown")
        if (link := self._connections.take()) is not None:
            if elsewhere:
                link.go_away("shutdown", 0.0)
                link.close(1000, "shutdown")
            else:
                self._lose("reconnect was asked for")
                link.close(1000, "reconnect")
        if elsewhere:
            self._end_session("shutdown")
        self._connections.finish(ASKED)

    def doubt(self) -> None:
        """The machine woke, or its network changed: the connection may be dead, and where there is none, dial now."""
        link = self._connections.link
        if link is not None and link.session is not None:
            session = link.session
            if session.settings.grace > 0:  # without, a connection that is given up costs its streams: let it be silent
                link.doubt(max(_DOUBT, _DOUBT_TRIPS * (session.round_trip or 0.0)))
            return
        if (link is not None or self._dials.under_way) and self._dials.spares():
            return
        if link is not None:  # its hello was said over what is gone by now
            self._connections.take()
            link.abort()
            self._dials.hurry()
            self._connections.finish(Retry("the network changed"))
        elif self.state != "failed":
            self._dials.hurry()

    def take_outage(self) -> Outage | None:
        """The outage that is over since this was asked last."""
        return self._keeping.take_outage()

    def drain(self) -> None:
        """Take no new streams, on this connection or the next; those that are open may end."""
        self._state.draining = True
        self._tell_drain()
        if self.state in ("online", "degraded", "resuming"):
            self._state.set("draining")

    def must_end(self, *, succession: bool) -> int:
        """Streams that a drain waits for: not WebSockets, nor, with a successor, what that one could go on with."""
        return self._keeping.must_end(succession=succession)

    async def hand_over(self, within: float) -> Legacy | None:
        """Leave the session to another process, which is to come back within so many seconds; then `close`.

        Returns:
            What that process needs; None where there is no session that could be taken up: its hello is a fresh one,
            and event streams go on by that as well.
        """
        keeping, session, link = self._keeping, self._keeping.session, self._connections.link
        if link is None or not keeping.lasting:
            return None
        link.go_away("restart", within)
        left = keeping.leave_streams()
        link.flush()
        await keeping.quiet()
        if keeping.session is not session or self._connections.link is not link:
            return None  # lost meanwhile
        self._connections.part(link, _RESTART, "restart")
        return keeping.leave(left)

    def close(self, reason: str = "shutdown") -> None:
        """Cancel what is open, close in order, and let `run` return."""
        self._closing = True
        session = self._keeping.session
        self.proxy.close(reason)
        if session is not None:
            for stream in list(session.streams.values()):
                stream.cancel(reason)
        if (link := self._connections.take()) is not None:
            link.go_away(reason, 0.0)
            link.close(1000, reason)
        self._end_session(reason)
        self._dials.close()
        self._connections.finish(Retry("closed"))

    def update(self, config: TunnelConfig, agent: AgentConfig) -> None:
        """Apply a reloaded file: what may change while the tunnel is up does, the rest at the next session."""
        self.config = config
        self._pulse.update(agent.quality)
        self._dials.update(agent.reconnect.initial, agent.reconnect.max)
        self.proxy.update(config)
        self.proxy.inspect(agent.inspection if config.inspect else None)
        self._check.update(config)
        self._wishing.update(config, agent)
        self._tell_wishes()

    def _health_changed(self, before: str | None) -> None:
        self._state.service_changed(self.health.fault, before)
        self._stand()

    def _stand(self) -> None:
        """The state of a connection that stands."""
        if self.connected_at is None or self._pulse.silent:
            return
        if self.health.fault is not None:
            self._state.set("degraded")
        else:
            self._state.set("online" if self.health.proved else "connecting")

    @property
    def state(self) -> State:
        """How it is."""
        return self._state.now

    @property
    def last_error(self) -> str | None:
        """Why it is not well, or was not; None: nothing is known to be wrong."""
        return self._state.last_error

    @property
    def connected_at(self) -> float | None:
        """Monotonic seconds since when a connection stands; None: none does."""
        return self._keeping.connected_at

    @property
    def last_pong_at(self) -> float | None:
        """Monotonic seconds; None: no heartbeat was answered yet."""
        return self._pulse.last_pong_at

    @property
    def heard_at(self) -> float | None:
        """Monotonic seconds, when the last byte came on the connection that stands; None: none stands."""
        link = self._connections.link
        return link.pipe.last_heard if link is not None and self.connected_at is not None else None

    @property
    def outages(self) -> Outages:
        """Times without a connection, and what they cost."""
        return self._keeping.outages

    @property
    def unacknowledged(self) -> tuple[int, int]:
        """As its session's; (0, 0) without one."""
        session = self._keeping.session
        return session.unacknowledged if session is not None else (0, 0)

    @property
    def active_streams(self) -> int:
        """Streams under way."""
        return len(self.proxy.exchanges)

    @property
    def round_trip(self) -> float | None:
        """Seconds, of the last heartbeat; None before the first."""
        session = self._keeping.session
        return session.round_trip if session is not None else None

    @property
    def kernel(self) -> TcpInfo | None:
        """What the kernel knows of the connection that stands; None where it knows nothing, or none stands."""
        link = self._connections.link
        return link.kernel() if link is not None else None

    def read_quality(self, now: float) -> Reading:
        """How good the connection is (`now`: monotonic seconds)."""
        return self._pulse.read(now, connected=self.connected_at is not None)

    # -- one connection ----------------------------------------------------------------------------------

    async def _one_connection(self) -> Verdict | None:
        """Dial and serve until the connection is over; why it ended, or None when the tunnel was closed."""
        await self._connections.all_gone()  # one connection at a time
        if self._is_closing():
            return None
        self._dials.hurried = False
        if self.state != "failed":
            self._state.set("connecting")
        number = next(self._identity.dials)
        try:
            pipe = await self._dials.dial(self._open_pipe)
        except DIAL_ERRORS as error:
            if self._is_closing():
                return None
            return ASKED if self._dials.hurried else of_dial(error, known=self._met)
        if self._is_closing() or self._dials.hurried:  # in the very turn of the loop in which the dial was done
            pipe.abort()
            return None if self._is_closing() else ASKED
        hello = self._wishing.hello(number)
        self._keeping.ask(hello)
        why = "the connection was lost"
        try:
            verdict = await self._connections.serve(pipe, hello)
            why = verdict.why
            return None if self._is_closing() else verdict
        finally:
            self._lose(why)
            if self._keeping.unasked():
                self._end_session("peer_lost")

    async def _open_pipe(self) -> WebSocket:
        dial = self._dial()
        self._wishing.token = dial.token
        return await open_pipe(dial, self.name)

    def _is_closing(self) -> bool:
        return self._closing

    def share(self, path: str, until: int) -> str:
        """A public address that lets a visitor in for `path` until then, seconds since the epoch.

        Raises:
            VisitorError: ``not_protected``, or ``tunnel_offline`` while the address is not known yet.
        """
        return self._wishing.share(path, until, self.connected)

    async def permit(self, do: str, **fields: Any) -> Permitted:
        """Ask the server for its tunnel's permissions, or change them; fields as in `Permit`.

        Raises:
            VisitorError: ``tunnel_offline``, or the server's.
        """
        if (link := self._connections.standing) is None:
            raise VisitorError("tunnel_offline", f"The tunnel {self.name} is not connected.", retry_after=5)
        return await self._asking.ask(link.tell, do, **fields)

    # -- LinkOwner ---------------------------------------------------------------------------------------

    def link_text(self, link: Link, message: Message) -> None:
        """Connected, settings, goaway and error; anything else is the server's error."""
        if isinstance(message, ErrorMessage):
            verdict = of_error_code(message.code, message.message, message.retry_after)
            if isinstance(verdict, Retry):  # of the other kind the end of the connection tells
                self._state.told(verdict, message.code)
            self._connections.finish(verdict)
            if message.code not in _KEPT_BY:
                self._end_session("peer_lost")
            self._connections.part(link, 1000, "")
        elif isinstance(message, Connected):
            if link.session is not None:
                raise RemoteError("protocol_error", "a second connected")
            self._said_connected(link, message)
        elif link.session is None:
            raise RemoteError("protocol_error", f"{type(message).__name__} where connected was due")
        elif isinstance(message, Probe):
            self._check.asked(message.seq, link.tell)
        elif isinstance(message, Probed):
            self.health.probed(message)
            self._stand()
        elif isinstance(message, Permitted):
            self._asking.answered(message)
        elif isinstance(message, Settings):
            check_live(message.heartbeat, message.sse, code="protocol_error")
            check_probe(message.probe, code="protocol_error")
            self._said_settings(link, message)
        elif isinstance(message, GoAway):
            log.info("The server goes away: %s", message.reason, extra={"tunnel": self.name})
        else:
            raise RemoteError("protocol_error", f"{type(message).__name__} from the server")

    def link_fault(self, link: Link, error: RemoteError) -> None:
        """The server broke the protocol: drop the session, say a fresh hello after the backoff."""
        verdict = Retry(str(error), fault=True)
        self._state.told(verdict, error.code)
        self._connections.finish(verdict)
        self._end_session("peer_lost")
        self._connections.part(link, CLOSE_CODES.get(error.code, 1002), error.code)

    def link_silent(self, link: Link, *, dead: bool) -> None:
        """The server is silent."""
        self._heard(self, None)
        if dead:
            self._pulse.died(link)
            self._lose("the server was silent for longer than interval + timeout", link.silent_for)
            link.abort()
            self._connections.finish(Retry("the server was silent for longer than interval + timeout"))
        else:
            self._pulse.silent = True
            self._state.set("resuming")

    def link_heard(self, link: Link, round_trip: float | None) -> None:
        """A pong came, or a silent server is back."""
        if round_trip is not None:
            self._pulse.answered(link, round_trip)
            self._heard(self, round_trip)
        if self._pulse.silent:
            self._pulse.silent = False
            self._stand()

    def link_closed(self, link: Link, code: int | None, reason: str) -> None:
        """The connection is gone."""
        self._asking.lost()
        if self._connections.closed(link):
            verdict = of_close(code, reason)
            if isinstance(verdict, Retry) and verdict.fault:
                self._end_session("peer_lost")
            else:
                self._lose(verdict.why)
            self._connections.finish(verdict)

    # -- inside ------------------------------------------------------------------------------------------

    def _said_connected(self, link: Link, said: Connected) -> None:
        check_connected(said, most_header=MAX_HEADER)
        if not self._wishing.enforced(said.access):
            self._unprotected(link)
            return
        self._keeping.check(said)
        if not said.resumed:
            self._end_session("peer_lost")
        session = self._keeping.agree(said, window_max=self.config.limits.stream_window_max)
        if self.connected is not None:
            self.reconnects += 1
        self.connected = said
        self._met = True
        self.server_certificate_end = peer_certificate_end(link.pipe.transport)
        self.token_end = None if said.token_expires_s is None else time() + said.token_expires_s
        self._pulse.silent = False
        self._dials.connected()
        self.proxy.head_limit = 2 * said.max_header
        link.name = said.tunnel_id
        link.limit(said.max_header)
        link.attach(session, said.received, interval=said.heartbeat.interval, timeout=said.heartbeat.timeout)
        self._log_established(said, session)
        self.health.connected(resumed=said.resumed, probing=said.probe is not None)
        self._state.last_error = self.health.fault
        self._check.agreed(said.probe)
        self._stand()
        self._tell_wishes()
        if self._state.draining:
            self._tell_drain()

    def _unprotected(self, link: Link) -> None:
        """The server does not enforce who may visit: nothing that it sends is taken, and the tunnel fails."""
        self._connections.finish(of_error_code("access_unsupported", "", None))
        self._end_session("peer_lost")
        self._connections.part(link, 1000, "")

    def _tell_wishes(self) -> None:
        """Say what the file wishes now, where that differs from what was said last."""
        if self.connected is not None and self.connected.access is None and not self._wishing.enforced(None):
            self.reconnect()  # and be told so: this server would go on letting everybody in
            return
        # Before `connected` nothing can be said: what differs from the hello by then is said behind it.
        if (link := self._connections.standing) is not None and (news := self._wishing.news()) is not None:
            link.tell(news)

    def _tell_drain(self) -> None:
        if self._keeping.session is not None:
            self._keeping.session.refuse_new()
            if self._connections.link is not None:
                self._connections.link.go_away("drain", 0.0)

    def _log_established(self, said: Connected, session: Session) -> None:
        fields: dict[str, object] = {
            "tunnel": self.name,
            "public_url": said.public_url,
            "server_version": said.server_version,
        }
        if said.resumed:
            outage = self._keeping.resumed()
            fields |= {
                "resumed": True,
                "outage_s": outage.seconds if outage is not None else 0.0,
                "replayed_bytes": session.replayed,
                "streams": len(session.streams),
            }
        self._keeping.end_grace()
        log.info("✓ Tunnel established: %s", said.tunnel_id, extra=fields)

    def _said_settings(self, link: Link, said: Settings) -> None:
        assert self.connected is not None
        if said.heartbeat is not None:
            self.connected.heartbeat = said.heartbeat
            link.retime(said.heartbeat.interval, said.heartbeat.timeout)
        if said.sse is not None:
            self.connected.sse = changed(self.connected.sse, said.sse)
        if said.probe is not None:
            self.connected.probe = said.probe
            self._check.agreed(said.probe)

    def _lose(self, why: str, silent: float = 0.0) -> None:
        """The connection is gone: keep the session for its grace, its services waiting; without grace end it."""
        if self._keeping.session is None or self._keeping.lost_at is not None:
            return
        if self._closing or not self._keeping.lasting:
            self._end_session("peer_lost")
            return
        self._check.agreed(None)
        self._keeping.lost(why, silent)
        self._state.set("resuming")

    def _end_session(self, reason: str) -> None:
        if self._keeping.session is not None:
            self._check.agreed(None)
        if self._keeping.end(reason) and self.state == "resuming":
            self._state.set("offline")
