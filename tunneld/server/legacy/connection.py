"""A client of the older dialect on its WebSocket: `connected`, then requests, streams and pings (PROTOCOL.md, v2).

To the registry it is a `Connection` and a `Carrier` in one: there is no resume, so the connection is the session.
It keeps the same heartbeat as a v3 connection, and bounds what it holds for a client that does not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic

from tunneld.errors import RemoteError, VisitorError
from tunneld.link import CLOSE_CODES, Pipe
from tunneld.protocol.legacy import (
    ApiKey,
    ClientMessage,
    LegacyPing,
    LegacyPong,
    Response,
    StreamChunk,
    StreamEnd,
    decode,
    encode_connected,
    encode_error,
    encode_pong,
)
from tunneld.protocol.messages import HeartbeatSettings, Open, SseSettings
from tunneld.protocol.session import TEXT
from tunneld.protocol.sinks import Sink
from tunneld.protocol.windows import MemoryBudget
from tunneld.server.carriers import Seen
from tunneld.server.legacy.keys import MAX_KEYS
from tunneld.server.legacy.pulse import MAX_PINGS, LegacyPulse, timestamp
from tunneld.server.legacy.stream import LegacyStream
from tunneld.server.principals import Principal
from tunneld.server.registry import SessionDirectory, Tunnel
from tunneld.server.visitors.rules import Rules
from tunneld.wire.flights import Flight
from tunneld.wire.tcp_info import TcpInfo, read_tcp_info

__all__ = ["LegacyConnection", "LegacyPolicy"]

log = logging.getLogger("tunneld.tunnels")

#: Close code of a refusal that is no error of the protocol.
_REFUSED = 1008


@dataclass(frozen=True, slots=True)
class LegacyPolicy:
    """What a server allows clients of the older dialect.

    Attributes:
        heartbeat: of our own pings.
        sse: what holds for events.
        max_streams: requests at one time.
        max_message: bytes of a message, and of a request's body.
        queue: bytes of a stream that may wait for its visitor.
        response_timeout: seconds that a `response` may take.
    """

    heartbeat: HeartbeatSettings
    sse: SseSettings
    max_streams: int
    max_message: int
    queue: int
    response_timeout: float


class LegacyConnection:
    """One client's connection, from its upgrade to its end.

    Args:
        pipe: the WebSocket; `start` sets its handler.
        name: the tunnel's id, a label made from what the client calls it.
        title: what the client calls it.
        peer: its address, for people and for who may replace it.
        principal: whose credential it came with.
        policy: asked anew at each reload.
        registry: of names.
        budget: of the process, for requests that wait to be whole, or to be written.
        rules: who may visit the tunnel that it serves, given the keys that it registered: none yet, those of before.
        forget: called with this connection when it is over.

    Attributes:
        streams: request id -> the request, until it is over.
        api_keys: hashes of the keys that the client registered for its visitors, the oldest first.
        late: messages that named a request which is gone.
        round_trip: seconds of the last answered ping; None before.
    """

    dialect = "v2"

    def __init__(
        self,
        pipe: Pipe,
        name: str,
        *,
        title: str,
        peer: str,
        principal: Principal,
        policy: Callable[[], LegacyPolicy],
        registry: SessionDirectory,
        budget: MemoryBudget,
        rules: Callable[[LegacyConnection], Rules],
        forget: Callable[[LegacyConnection], None],
    ) -> None:
        self.name = name
        self.title = title
        self.peer = peer
        self.principal = principal
        self.tunnel: Tunnel | None = None
        self.streams: dict[str, LegacyStream] = {}
        self.api_keys: dict[bytes, None] = {}
        self.late = 0
        self.round_trip: float | None = None
        self._pong_at: float | None = None
        self.policy = policy()
        self.budget = budget
        self.loop = asyncio.get_running_loop()
        self._pipe = pipe
        self._read_policy = policy
        self._registry = registry
        self._rules = rules
        self._forget = forget
        self._queue: deque[tuple[bytes, LegacyStream | None]] = deque()  # while the pipe is full
        self._pong: bytes | None = None  # the newest answer to a ping, while the pipe is full
        self._pulse = LegacyPulse(self, pipe, self.policy.heartbeat, self.send)
        self._over = False
        self._since = monotonic()

    # -- life --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Say `connected` and serve the name, or `error` and close; then take messages."""
        try:
            tunnel = self._registry.claim(self.name, monotonic())
        except VisitorError as error:
            self.refuse("overloaded", str(error))
            return
        self.tunnel = tunnel
        tunnel.grace = 0.0  # nothing is kept of a connection that is lost
        tunnel.take(self, resumed=False)
        tunnel.proof.begin(asked=False, resumed=False)
        tunnel.principal = self.principal
        tunnel.protect(self._rules(self))  # before it takes a visitor
        self._write(encode_connected(self.name, tunnel.public_url))
        log.info("✓ Tunnel established: %s", self.name, extra={**self._fields(), "title": self.title})
        tunnel.serve(self, self.policy.heartbeat, self.policy.sse)
        self._pulse.start()

    def refuse(self, code: str, message: str) -> None:
        """Say `error` and close; what is open ends."""
        if self._over:
            return
        self._end("shutdown" if code == "going_away" else "peer_lost", message)
        self._pipe.send(TEXT, [encode_error(message)])
        self._pipe.close(CLOSE_CODES.get(code, _REFUSED), code)

    def replaced(self, *, resumed: bool) -> None:
        """A newer connection took the name over."""
        self.refuse("replaced", "a newer connection took this tunnel over")

    def seen(self, now: float) -> Seen:
        """What operators are shown of this connection."""
        return Seen(
            peer=self.peer,
            agent_version=self.dialect,
            connected_s=round(now - self._since, 3),
            last_heard_s=round(max(0.0, now - self._pipe.last_heard), 3),
            last_pong_s=None if self._pong_at is None else round(now - self._pong_at, 3),
            round_trip_ms=None if self.round_trip is None else round(self.round_trip * 1000, 3),
            kernel=read_tcp_info(self._pipe.transport),
        )

    def reconnect(self) -> None:
        """An operator asks for another connection."""
        self._pipe.abort()

    def protect(self) -> None:
        """Other keys or permissions hold: whoever they do not let in has to leave."""
        if self.tunnel is not None and self.tunnel.connection is self:
            self.tunnel.protect(self._rules(self))

    def revoke(self) -> None:
        """Its credential is good no longer."""
        self.refuse("revoked", "the token of this connection was revoked, or has expired")

    def go_away(self, retry_after: float) -> None:
        """The server is about to leave: no new requests, those that are open may end."""
        if self.tunnel is not None and self.tunnel.connection is self:
            self.tunnel.hold(monotonic())

    def shut(self, retry_after: float) -> None:
        """The server leaves now."""
        for stream in list(self.streams.values()):
            sink = stream.sink
            stream.cancel("shutdown")
            if sink is not None:
                sink.cancelled("shutdown")
        self.refuse("going_away", "the server is stopping")

    def retune(self) -> None:
        """The server's configuration was reloaded."""
        self.policy = self._read_policy()
        self.protect()
        beat = self.policy.heartbeat
        if self.tunnel is None or self.tunnel.connection is not self:
            return
        self.tunnel.retune(beat, self.policy.sse)
        self.protect()
        self._pulse.retune(beat)

    def _end(self, reason: str, why: str) -> None:
        """Nothing of this connection is served any more."""
        self._over = True
        self._queue.clear()
        self._pong = None
        self._pulse.stop()
        tunnel, count = self.tunnel, len(self.streams)
        if tunnel is not None:
            now = monotonic()
            if tunnel.leave(self, now):
                tunnel.lose(now, for_good=True)
            extra = {**self._fields(), "why": why, "streams_lost": count}
            log.warning("✗ Tunnel disconnected: %s", self.name, extra=extra)
        for stream in list(self.streams.values()):
            stream.lost(reason)

    # -- Carrier -----------------------------------------------------------------------------------------

    @property
    def max_streams(self) -> int:
        """Requests at one time."""
        return self.principal.most_streams(self.policy.max_streams)

    def open(self, request: Open, sink: Sink, *, ended: bool) -> LegacyStream:
        """Carry a visitor's request; raises VisitorError ``too_many_streams`` or ``tunnel_offline``."""
        if self._over:
            raise VisitorError("tunnel_offline", retry_after=1)
        if len(self.streams) >= self.max_streams:
            raise VisitorError(
                "too_many_streams",
                f"{len(self.streams)} requests are open on this tunnel, the most it may carry.",
                retry_after=1,
            )
        stream = LegacyStream(self, request, sink)
        self.streams[request.request_id] = stream
        if ended:
            stream.send_end()
        return stream

    # -- writing -----------------------------------------------------------------------------------------

    def send(self, message: bytes, stream: LegacyStream | None = None) -> None:
        """Write a message, or keep it until the client reads again; `stream` is told when its request is written."""
        if self._over:
            return
        if not self._pipe.paused and not self._queue:
            self._write(message)
            if stream is not None:
                stream.sent()
            return
        self._queue.append((message, stream))
        if len(self._queue) == 4 * self.policy.max_streams + MAX_PINGS:
            self.loop.call_soon(self._deaf)  # not here: the caller need not expect its own end

    def unsend(self, stream: LegacyStream) -> None:
        """A request that may wait to be written is over: the client never hears of it."""
        for index, (_, waiting) in enumerate(self._queue):
            if waiting is stream:
                del self._queue[index]
                return

    def writable(self) -> None:
        """The pipe takes more."""
        while self._queue and not self._pipe.paused:
            message, stream = self._queue.popleft()
            self._write(message)
            if stream is not None:
                stream.sent()
        if self._pong is not None and not self._pipe.paused:
            pong, self._pong = self._pong, None
            self._write(pong)

    def _write(self, message: bytes) -> None:
        self._pipe.send(TEXT, [message])

    # -- reading -----------------------------------------------------------------------------------------

    def message(self, opcode: int, payload: bytes) -> None:
        """A whole message came."""
        if self._over:
            return
        try:
            if opcode != TEXT:
                raise RemoteError("protocol_error", "a binary message; this dialect is text")
            said = decode(payload)
        except RemoteError as error:
            self._fault(error.detail)
            return
        if said is not None:
            self._take(said)

    def _take(self, said: ClientMessage) -> None:
        if isinstance(said, LegacyPing):
            self._answer_ping(said)
        elif isinstance(said, LegacyPong):
            self._pulse.answered(said)
        elif isinstance(said, ApiKey):
            self._take_key(said)
        else:
            stream = self.streams.get(said.request_id)
            if stream is None or not stream.handed_over:
                self.late += 1  # cancelled, answered, or never asked for: of no consequence
            elif isinstance(said, StreamChunk):
                stream.chunk(said.body or "")
            elif isinstance(said, StreamEnd):
                stream.ended()
            elif isinstance(said, Response):
                stream.respond(said)
            else:
                stream.broken(said.why)

    def _answer_ping(self, ping: LegacyPing) -> None:
        pong = encode_pong(ping.timestamp, timestamp())
        if self._pipe.paused:
            self._pong = pong  # of a client that does not read, only the newest ping needs an answer
        else:
            self._write(pong)

    def _take_key(self, said: ApiKey) -> None:
        """Visitors need it from now on, or another that was registered. Kept as its hash."""
        if not said.api_key:
            return
        digest = sha256(said.api_key.encode()).digest()
        self.api_keys.pop(digest, None)
        self.api_keys[digest] = None
        if len(self.api_keys) > MAX_KEYS:
            del self.api_keys[next(iter(self.api_keys))]
        self.protect()

    def closed(self, code: int | None, reason: str) -> None:
        """The WebSocket is gone: the last call."""
        if self._pipe.fault is not None:
            fields = {**self._fields(), "code": reason}
            log.warning("✗ Tunnel error for %s: %s", self.name, self._pipe.fault, extra=fields)
        if not self._over:
            self._end("peer_lost", f"closed ({code})" if code else "the connection was lost")
        self._forget(self)

    def _fault(self, why: str) -> None:
        """The client broke the dialect: it alone loses its connection."""
        fields = {**self._fields(), "code": "protocol_error"}
        log.warning("✗ Tunnel error for %s: %s", self.name, why, extra=fields)
        self.refuse("protocol_error", why)

    def _deaf(self) -> None:
        """Too much waits to be read by the client."""
        if not self._over:
            self._end("peer_lost", "the client reads nothing of what it is told")
            self._pipe.abort()

    # -- PulseOwner --------------------------------------------------------------------------------------

    def pulse_heard(self, round_trip: float, kernel: TcpInfo | None, flight: Flight, *, late: bool) -> None:
        """A ping was answered."""
        self.round_trip, self._pong_at = round_trip, monotonic()
        if self.tunnel is not None:
            quality, now = self.tunnel.quality, monotonic()
            told = self._registry.round_trips
            told.answered(quality, now, round_trip, kernel, late=late, beside=flight.beside, held=flight.held)
        log.debug("💓 Heartbeat acknowledged for %s", self.name, extra={"tunnel": self.name, "rtt_s": round_trip})

    def pulse_died(self, kernel: TcpInfo | None, overdue: int) -> None:
        """The client was silent for too long."""
        log.warning("💔 Heartbeat failed for %s", self.name, extra=self._fields())
        if self.tunnel is not None:
            if kernel is not None:
                self.tunnel.quality.carried(kernel)
            self.tunnel.quality.lost(monotonic(), overdue)
        self._end("peer_lost", "the client was silent for longer than interval + timeout")
        self._pipe.abort()

    def _fields(self) -> dict[str, object]:
        return {"tunnel": self.name, "peer": self.peer, "dialect": self.dialect}
