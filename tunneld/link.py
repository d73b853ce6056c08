"""The one asyncio driver of a session over a WebSocket; the roles differ by the pipe that they hand it.

It reads the clock, gathers what the session has to say into few messages, keeps the heartbeat, and tells its
owner what happens to the connection. It decides nothing about what comes next: that is the owner's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Protocol

from tunneld.errors import RemoteError
from tunneld.protocol.frames import max_message
from tunneld.protocol.heartbeat import Alive, Dead, Heartbeat, SendPing, Silent
from tunneld.protocol.messages import ErrorMessage, GoAway, Message, Ping, Pong, StreamCancel, decode_text, encode
from tunneld.protocol.quality import Peer, Quality
from tunneld.protocol.replay import ACK_DELAY
from tunneld.protocol.session import BINARY, TEXT, Session
from tunneld.protocol.streams import Chunk
from tunneld.wire.flights import NOTHING, Flight, Flights
from tunneld.wire.pacing import Pace
from tunneld.wire.tcp_info import TcpInfo, ports, read_tcp_info

__all__ = ["CLOSE_CODES", "GATHER", "Link", "LinkOwner", "Pipe"]

log = logging.getLogger("tunneld.link")

#: Seconds that writing gathers for after the last write.
GATHER = 0.001

#: WebSocket close code of each error of the protocol (PROTOCOL.md, the table of errors).
CLOSE_CODES = {
    "hello_timeout": 1008,
    "bad_hello": 1008,
    "stale_hello": 1008,
    "protocol_error": 1002,
    "unknown_stream": 1002,
    "flow_control": 1002,
    "too_large": 1009,
    "replaced": 4001,
    "conflict": 4009,
    "revoked": 4003,
    "going_away": 1001,
    "overloaded": 1013,
}


class Pipe(Protocol):
    """What a link needs of a WebSocket (wire/websocket.py)."""

    paused: bool
    last_heard: float
    fault: str | None
    last_words: Callable[[str, str], None] | None

    @property
    def transport(self) -> asyncio.BaseTransport:
        """The transport below."""

    def send(self, opcode: int, parts: Sequence[Chunk]) -> None:
        """Write one message."""

    def hold(self, most: int) -> None:
        """Be paused from so many octets on that wait to be written."""

    def limit(self, max_message: int) -> None:
        """Take messages of so many octets at most."""

    def close(self, code: int, reason: str = "") -> None:
        """Close in order."""

    def abort(self) -> None:
        """Close at once."""


class LinkOwner(Protocol):
    """Who decides what a connection is for. No call may raise, but `link_text` RemoteError."""

    def link_text(self, link: Link, message: Message) -> None:
        """A text message that is not the link's own business: hello, connected, settings, goaway, error.

        Raises:
            RemoteError: the message is not allowed here; `link_fault` is called with it.
        """

    def link_fault(self, link: Link, error: RemoteError) -> None:
        """The peer broke the protocol. The owner ends the session and calls `Link.fail` or `Link.abort`."""

    def link_silent(self, link: Link, *, dead: bool) -> None:
        """Nothing was heard for an interval (`dead` False), or for interval + timeout (True)."""

    def link_heard(self, link: Link, round_trip: float | None) -> None:
        """A pong came (its round trip in seconds), or a silent peer is back (None)."""

    def link_closed(self, link: Link, code: int | None, reason: str) -> None:
        """The connection is gone: the last call. `code` None: it broke without a close frame; 1006: a fault of this
        side's own broke it, and the session with it."""


def _said(pong: Pong, flight: Flight) -> Peer | None:
    """What a pong says of the peer's kernel, beside what this one knows of its flight."""
    if pong.resent is None:
        return None
    if pong.arrived is None or flight.sent is None or pong.arrived > flight.most:
        return Peer(
            pong.resent, None, mending=pong.mending
        )  # where more came than was sent it counts another connection's
    return Peer(pong.resent, flight.sent + 1 - pong.arrived, mending=pong.mending)


class Link:
    """One connection, from its first message to its last; it carries at most one session.

    Args:
        pipe: the WebSocket; its handler is to be set to this link.
        owner: who is told.
        name: of the tunnel, for the log.
    """

    __slots__ = (
        "_ack_timer",
        "_beat_timer",
        "_closed",
        "_epoch",
        "_flights",
        "_flush_timer",
        "_loop",
        "_pace",
        "_scheduled",
        "_torn",
        "_wrote_at",
        "flight",
        "heartbeat",
        "name",
        "on_first_message",
        "owner",
        "peer",
        "pipe",
        "session",
    )

    def __init__(self, pipe: Pipe, owner: LinkOwner, *, name: str) -> None:
        self.pipe = pipe
        self.owner = owner
        self.name = name
        self.session: Session | None = None
        self.heartbeat: Heartbeat | None = None
        #: Called once, before the first message after `attach` is handled.
        self.on_first_message: Callable[[], None] | None = None
        #: Of the last ping that was answered.
        self.flight = NOTHING
        #: What the peer's kernel knew when it answered that ping; None: the peer does not say.
        self.peer: Peer | None = None
        self._loop = asyncio.get_running_loop()
        self._epoch = 0
        self._closed = False
        self._scheduled = False
        self._torn = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._ack_timer: asyncio.TimerHandle | None = None
        self._flights = Flights(pipe.transport)
        self._pace = Pace(pipe.transport)
        self._wrote_at = 0.0

    # -- life ------------------------------------------------------------------------------------------

    def say(self, message: Message) -> None:
        """Write a text message now, outside any session (hello, connected, error)."""
        if not self._closed:
            self.pipe.send(TEXT, [encode(message)])

    def tell(self, message: Message) -> None:
        """Queue a text message that is not counted (settings, goaway), if a session stands."""
        if self.session is not None:
            try:
                self.session.say(message)
            except RemoteError as error:  # the peer reads nothing
                self.owner.link_fault(self, error)

    def attach(self, session: Session, peer_received: int, *, interval: float, timeout: float) -> None:
        """Carry this session from now on, and keep its heartbeat (seconds); raises RemoteError (counters)."""
        self.session = session
        session.hurry = self._hurry
        self._epoch = session.attach(peer_received, self._wake)
        self.heartbeat = Heartbeat(interval, timeout, monotonic())
        self._beat()

    def retime(self, interval: float, timeout: float) -> None:
        """Change the heartbeat of a connection that stands (seconds)."""
        if self.heartbeat is not None and self.session is not None:
            self.heartbeat.update(interval, timeout, monotonic())
            self._again(0.0)  # not here and now: the caller need not expect a dead peer in the middle of its work

    def limit(self, max_header: int) -> None:
        """Take the messages that go with a `max_header` of so many bytes, and no larger ones."""
        self.pipe.limit(max_message(max_header))

    def doubt(self, within: float) -> None:
        """Ping now, and give the connection up unless something is heard within so many seconds."""
        if self.heartbeat is not None and self.session is not None:
            self.heartbeat.doubt(monotonic(), within)
            self._again(0.0)

    def detach(self) -> None:
        """Let go of the session: nothing of this connection reaches it any more."""
        session, self.session = self.session, None
        self.on_first_message = None  # what a fenced connection says confirms nothing
        if session is not None and session.epoch == self._epoch:
            session.detach()
        self._cancel_timers()

    def fail(self, error: RemoteError, *, tell: bool) -> None:
        """Close for an error of the peer's; with `tell` an `error` message goes first (server)."""
        self.refuse(error.code, error.detail, tell=tell)

    def refuse(self, code: str, message: str, *, retry_after: float | None = None, tell: bool = True) -> None:
        """Close with a code of `CLOSE_CODES`."""
        self.detach()
        if tell:
            self.say(ErrorMessage(code, message, retry_after))
        self.pipe.close(CLOSE_CODES.get(code, 1002), code)

    def go_away(self, reason: str, retry_after: float) -> None:
        """Ask the peer to open no new streams here."""
        self.tell(GoAway(reason, retry_after))

    def close(self, code: int, reason: str) -> None:
        """Close in order, once what is queued was handed over: ends and cancels; at most the windows' worth of DATA."""
        session = self.session
        if session is not None:
            now = monotonic()
            while (message := session.next_message(self._epoch, now)) is not None:
                self.pipe.send(*message)
        self.detach()
        self.pipe.close(code, reason)

    def abort(self) -> None:
        """Close at once."""
        self.detach()
        self.pipe.abort()

    @property
    def silent_for(self) -> float:
        """Seconds for which nothing was heard; 0 before the session stands."""
        return 0.0 if self.heartbeat is None else max(0.0, monotonic() - self.heartbeat.silent_since)

    def kernel(self) -> TcpInfo | None:
        """What the kernel knows of the connection; None where it knows nothing."""
        return read_tcp_info(self.pipe.transport)

    def _ports(self) -> tuple[int, int] | None:
        return ports(self.pipe.transport)

    def count_segments(self, quality: Quality) -> None:
        """Tell what the kernel knows of this connection; before each ping is counted."""
        quality.carried(self.kernel())

    def _cancel_timers(self) -> None:
        for timer in (self._flush_timer, self._beat_timer, self._ack_timer):
            if timer is not None:
                timer.cancel()
        self._flush_timer = self._beat_timer = self._ack_timer = None

    # -- writing ---------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """The session has something to say: at once when the line was quiet, else when the gathering is over."""
        if self._scheduled:
            return
        self._scheduled = True
        rest = GATHER - (monotonic() - self._wrote_at)
        if rest <= 0:
            self._loop.call_soon(self._flush)
        else:
            self._flush_timer = self._loop.call_later(rest, self._flush)

    def _hurry(self) -> None:
        """A message's worth waits: there is nothing more to gather for."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
            self._loop.call_soon(self._flush)

    def _flush_now(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._flush()

    def _flush(self) -> None:
        self._scheduled = False
        self._flush_timer = None
        session, pipe = self.session, self.pipe
        if session is None or pipe.paused:
            return  # `writable` goes on
        now = monotonic()
        epoch = self._epoch
        try:
            message = session.next_message(epoch, now)
            if message is None:
                return
            while message is not None:
                pipe.send(*message)
                if self.pipe.paused:
                    break
                message = session.next_message(epoch, now)
        except BaseException:  # a consumer's fault: what it was told with is lost, and the session not whole any more
            self._torn = True
            pipe.abort()
            raise
        self._wrote_at = now

    def flush(self) -> None:
        """Write now what is queued, as far as the pipe takes it."""
        self._flush()

    def writable(self) -> None:
        """The pipe has drained: there is bulk, and what stands before the next ping is to be no longer than it must."""
        if self.session is not None and self._pace.look(monotonic()):
            self.pipe.hold(self._pace.held)
            self.session.bulk = self._pace.held
        self._flush()

    # -- reading ---------------------------------------------------------------------------------------

    def message(self, opcode: int, payload: bytes) -> None:
        """A whole message came."""
        if self.on_first_message is not None:
            told, self.on_first_message = self.on_first_message, None
            told()
        try:
            if opcode == BINARY:
                session = self._standing("a binary message")
                session.receive(self._epoch, payload, monotonic())
                if self.session is session:
                    self._mind_ack()
            else:
                self._text(payload)
        except RemoteError as error:
            self.owner.link_fault(self, error)

    def _standing(self, what: str) -> Session:
        """The session that a message of this kind needs; raises RemoteError when there is none yet."""
        if self.session is None:
            raise RemoteError("protocol_error", f"{what} before the session stands")
        return self.session

    def _mind_ack(self) -> None:
        """Something was counted: an ACK of it goes out in time, whatever else is sent or not."""
        if self._ack_timer is None and self.session is not None and self.session.ack_at is not None:
            self._ack_timer = self._loop.call_later(ACK_DELAY, self._ack)

    def _ack(self) -> None:
        self._ack_timer = None
        if self.session is not None and (due := self.session.ack_at) is not None:
            left = due - monotonic()
            if left > 0:  # the one that this timer was for has gone out already
                self._ack_timer = self._loop.call_later(left, self._ack)
            else:
                self.session.wake_for_ack()

    def _text(self, payload: bytes) -> None:
        message = decode_text(payload)
        if isinstance(message, Ping):
            self._answer(self._standing("a ping"), self._pong_to(message))
        elif isinstance(message, Pong):
            self._pong(self._standing("a pong"), message)
        elif isinstance(message, StreamCancel):
            self._standing("a stream_cancel").receive_cancel(self._epoch, message, monotonic())
            self._mind_ack()
        elif message is not None:
            self.owner.link_text(self, message)

    def _pong_to(self, ping: Ping) -> Pong:
        """The answer, with what this kernel knows where the peer can use it."""
        if ping.ports is None or (kernel := self.kernel()) is None:
            return Pong(ping.timestamp, ping.seq)
        # Where a proxy is between, its connections have other ports, and what came here is not what the peer sent.
        same = ports(self.pipe.transport) == ping.ports[::-1]
        return Pong(ping.timestamp, ping.seq, kernel.retransmitted, kernel.arrived if same else None, kernel.mending)

    def _answer(self, session: Session, pong: Pong) -> None:
        try:
            session.say(pong)
        except RemoteError:  # many pings came in one read; a peer that reads takes the answers now
            self._flush_now()
            session.say(pong)

    def _pong(self, session: Session, pong: Pong) -> None:
        assert self.heartbeat is not None
        seq = pong.seq
        round_trip = self.heartbeat.pong(seq, monotonic())
        if round_trip is not None:
            session.round_trip = round_trip
            self.flight = self._flights.end(seq, self.kernel())
            self.peer = _said(pong, self.flight)
            log.debug("💓 Heartbeat acknowledged for %s", self.name, extra={"tunnel": self.name, "rtt_s": round_trip})
            self.owner.link_heard(self, round_trip)

    def closed(self, code: int | None, reason: str) -> None:
        """The pipe is gone."""
        self._closed = True
        self.detach()
        if self.pipe.fault is not None:
            fields = {"tunnel": self.name, "code": reason}
            log.warning("✗ Tunnel error for %s: %s", self.name, self.pipe.fault, extra=fields)
        self.owner.link_closed(self, 1006 if self._torn else code, reason)

    # -- heartbeat -------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Do what the heartbeat wants now, and come back when it next wants something."""
        heartbeat = self.heartbeat
        if heartbeat is None or self.session is None:
            return
        now = monotonic()
        heartbeat.heard(self.pipe.last_heard)
        for action in heartbeat.tick(now):
            if isinstance(action, SendPing):
                self._flights.begin(action.seq)
                stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
                self.tell(Ping(stamp.replace("+00:00", "Z"), action.seq, self._ports()))
            elif isinstance(action, Silent):
                self.owner.link_silent(self, dead=False)
            elif isinstance(action, Alive):
                self.owner.link_heard(self, None)
            elif isinstance(action, Dead):
                log.warning("💔 Heartbeat failed for %s", self.name, extra={"tunnel": self.name})
                self.owner.link_silent(self, dead=True)
                return
        if self.session is not None:  # nobody let go of it meanwhile
            self._again(heartbeat.next_wake(now) - now)

    def _again(self, seconds: float) -> None:
        """Look at the heartbeat after so many seconds."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._beat_timer = self._loop.call_later(max(0.0, seconds), self._beat)
