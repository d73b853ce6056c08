"""One tunnel's session: begun, kept without a connection for its grace, gone on with, handed over, ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic, time

from tunneld.agent.exchange import Exchange
from tunneld.agent.handover import Legacy
from tunneld.agent.proxy import Proxy
from tunneld.errors import RemoteError
from tunneld.protocol.messages import Connected, Hello
from tunneld.protocol.session import Session, SessionSettings
from tunneld.telemetry.outages import Outage, Outages

__all__ = ["Keeping"]

log = logging.getLogger("tunneld.tunnel")

#: Why a server resumes a session no more, by its word for it (PROTOCOL.md, `resume_refused`).
_REFUSED = {
    "unknown": "the server does not have it any more, as after its own restart",
    "expired": "the outage was longer than the server's resume.grace",
    "token": "the server did not take the token that this agent has for it",
    "counters": "the server and this agent do not agree on what had arrived",
}

#: Seconds that a server has to acknowledge all that was sent before the session is handed over to another process.
_QUIET = 2.0


class Keeping:
    """Knows whether there is a session, and whether a connection carries it. At most one at a time.

    Args:
        name: of the tunnel.
        proxy: takes the session's streams; its clocks stand still while no connection carries them.
        legacy: the session that the process before this one left; None: there is none.
        grace_over: called when the session was without a connection for its grace; it is to be ended.

    Attributes:
        session: that which stands or is kept; None: there is none.
        connected_at: monotonic seconds since when a connection carries it; None: none does.
        lost_at: monotonic seconds since when it is kept without a connection; None: it is not.
        outages: times without a connection, and what they cost.
    """

    def __init__(self, name: str, proxy: Proxy, legacy: Legacy | None, *, grace_over: Callable[[], None]) -> None:
        self.session: Session | None = None
        self.connected_at: float | None = None
        self.lost_at: float | None = None
        self.outages = Outages()
        self._name = name
        self._proxy = proxy
        self._legacy = legacy
        #: Session id and resume token.
        self._ticket = (legacy.session_id, legacy.resume_token) if legacy is not None else None
        self._grace_over = grace_over
        self._expiry: asyncio.TimerHandle | None = None
        self._asked = False  # a hello that resumes waits for its answer
        self._expired = False  # the grace is over, and only that answer is still waited for
        self._untold: Outage | None = None  # an outage that is over, for the next event

    @property
    def left(self) -> float | None:
        """Seconds that the session without a connection is still kept for; None where there is none."""
        if self.session is None or self.lost_at is None:
            return None
        return self.lost_at + self.session.settings.grace - monotonic()

    @property
    def lasting(self) -> bool:
        """Whether there is a session that outlives its connection."""
        return self.session is not None and self.session.settings.grace > 0

    def must_end(self, *, succession: bool) -> int:
        """Streams that a drain waits for: not WebSockets, nor, with a successor, what that one could go on with."""
        kept = succession and self.lasting
        waited = [exchange for exchange in self._proxy.exchanges.values() if exchange.kind != "websocket"]
        return sum(not (kept and isinstance(exchange, Exchange) and exchange.goes_on) for exchange in waited)

    def take_outage(self) -> Outage | None:
        """The outage that is over since this was asked last."""
        outage, self._untold = self._untold, None
        return outage

    # -- a new connection --------------------------------------------------------------------------------

    def ask(self, hello: Hello) -> None:
        """Let a hello ask for the session, if there is one. No connection is attached, so the count stands still."""
        if self.session is not None and self._ticket is not None:
            self._asked = True
            hello.session_id, hello.resume_token = self._ticket
            hello.received = self.session.received
        elif self._legacy is not None:
            self._asked = True
            hello.session_id, hello.resume_token = self._legacy.session_id, self._legacy.resume_token
            hello.received = self._legacy.standing.received

    def unasked(self) -> bool:
        """The connection whose hello may have asked is over; returns whether the session's time is over with it."""
        self._asked = False
        return self._expired

    def check(self, said: Connected) -> None:
        """Raises RemoteError where `connected` resumes what is not here; says so where it resumes nothing."""
        session = self.session
        here = session is not None or (self._legacy is not None and said.resume.grace > 0)
        if said.resumed and not (here and self._ticket is not None and said.session_id == self._ticket[0]):
            raise RemoteError("protocol_error", "connected resumes a session that this agent does not have")
        if not said.resumed and session is not None:
            refused = said.resume_refused or "no reason given"
            log.warning(
                "The session of %s was not resumed: %s",
                self._name,
                _REFUSED.get(refused, refused),
                extra={"tunnel": self._name, "resume_refused": refused, "streams_lost": len(session.streams)},
            )

    def agree(self, said: Connected, *, window_max: int) -> Session:
        """The session that stands by `connected`, `check`ed before; one that it does not resume has been ended.

        Args:
            window_max: bytes that a stream's window may grow to.
        """
        legacy, self._legacy = self._legacy, None
        if self.session is None:
            self.session = self._begin(said, window_max)
            if said.resumed:
                assert legacy is not None
                self._take_up(self.session, legacy)
        self._ticket = (said.session_id, said.resume_token)
        self._asked = False
        self.connected_at = monotonic()
        return self.session

    def resumed(self) -> Outage | None:
        """A connection carries the session again; returns what the time without one cost, if there was such a time."""
        assert self.session is not None
        self._untold = self.outages.resumed(monotonic(), self.session.replayed)
        return self._untold

    def end_grace(self) -> None:
        """A connection carries the session, or there is none any more: no grace runs."""
        self._expired = False
        self.lost_at = None
        self._proxy.go_on()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _begin(self, said: Connected, window_max: int) -> Session:
        return Session(
            SessionSettings(
                max_streams=said.max_streams,
                stream_window=said.stream_window,
                stream_window_max=max(said.stream_window, window_max),
                max_header=said.max_header,
                grace=said.resume.grace,
                buffer=said.resume.buffer,
                peer_buffer=said.resume.buffer,
            ),
            accept=self._proxy.accept,
            budget=self._proxy.holders.budget,
        )

    def _take_up(self, session: Session, legacy: Legacy) -> None:
        """Go on as the process before this one; what it left open is lost to it, and the server hears of each."""
        session.take_up(legacy.standing)
        for request_id in legacy.streams:
            session.disown(request_id, "peer_lost")

    # -- no connection -----------------------------------------------------------------------------------

    def lost(self, why: str, silent: float) -> None:
        """The connection is gone, `silent` seconds after the last byte: keep the session, its services waiting."""
        session = self.session
        assert session is not None
        session.detach()
        self._proxy.hold()
        self.connected_at = None
        self.lost_at = monotonic()
        self.outages.begin(self.lost_at, time(), silent)
        self._expiry = asyncio.get_running_loop().call_later(session.settings.grace, self._expire)
        log.warning(
            "✗ Tunnel disconnected: %s",
            self._name,
            extra={"tunnel": self._name, "why": why, "kept_streams": len(session.streams)},
        )

    def _expire(self) -> None:
        """The session is given up; but a hello that asks for it may be answered yet."""
        self._expiry = None
        if self._asked:
            self._expired = True
        else:
            self._grace_over()

    def end(self, reason: str) -> bool:
        """End it, if there is one; returns whether it was kept without a connection."""
        session, self.session = self.session, None
        self._legacy = None
        if session is None:
            return False
        was_kept = self.lost_at is not None
        self.end_grace()
        self._ticket = self.connected_at = None
        fields: dict[str, object] = {"tunnel": self._name, "streams_lost": len(session.streams)}
        if (outage := self.outages.lost(monotonic(), len(session.streams))) is not None:
            self._untold = outage
            fields["outage_s"] = outage.seconds
        log.warning("The session of %s is over" if was_kept else "✗ Tunnel disconnected: %s", self._name, extra=fields)
        session.end(reason)
        return was_kept

    # -- another process ---------------------------------------------------------------------------------

    def leave_streams(self) -> list[str]:
        """Let go of what another process could go on with, by their ids, and cancel the rest."""
        left = []
        for exchange in list(self._proxy.exchanges.values()):
            if isinstance(exchange, Exchange) and exchange.goes_on:
                left.append(exchange.leave())
            else:
                exchange.cancel("shutdown")
        return left

    async def quiet(self) -> None:
        """Return when the server has acknowledged everything, or when it takes too long."""
        session = self.session
        if session is None:
            return
        acknowledged = asyncio.Event()
        session.acknowledged = acknowledged.set
        try:
            async with asyncio.timeout(_QUIET):
                while session.standing() is None and not session.ended:
                    acknowledged.clear()
                    await acknowledged.wait()
        except TimeoutError:
            log.info("The session of %s cannot be handed over whole", self._name, extra={"tunnel": self._name})

    def leave(self, streams: list[str]) -> Legacy | None:
        """End the session here, for another process to take up; None where that cannot be: not all has arrived."""
        session, self.session = self.session, None
        ticket, self._ticket = self._ticket, None
        if session is None or ticket is None:
            return None
        standing = session.standing()
        session.end("shutdown")
        return Legacy(*ticket, standing, tuple(streams)) if standing is not None else None
