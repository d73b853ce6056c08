"""The tunnel's WebSocket on a transport, at either end: whole messages in, whole messages out.

Upgrade and close payloads go by the sans-I/O classes of ``websockets``; data frames by `ws_codec`. There are no
extensions and no pings of its own; a peer's ping is answered.

Reading is into one buffer a loop that all connections share: a transport asks for a buffer, reads and tells in
one go, so that only a frame cut in two outlives it. Such a piece stays where it is until another connection
reads, and moves to a buffer of its own then: no octet is moved more than once, however the input is cut.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from tunneld.wire.sockets import reset, tune
from tunneld.wire.turns import ROUNDS_ALONE, SHARE, let_others
from tunneld.wire.ws_codec import (
    CLOSE,
    MAX_HEADER,
    PING,
    PONG,
    ClientEncoder,
    Decoder,
    encode_close,
    encode_plain,
    parse_close,
)

__all__ = ["CLOSE_TIMEOUT", "HIGH_WATER", "LOW_WATER", "WebSocket", "WebSocketHandler"]

CLOSE_TIMEOUT = 1.0
"""Seconds that a peer has to answer a close frame, and to take what was written before it."""
HIGH_WATER = 64 * 1024
"""Octets that a transport holds before `WebSocket.paused`. Measured: twice and four times as many moved bulk no
faster; four times as many stood before a ping."""
LOW_WATER = 16 * 1024
ROOM = 256 * 1024
_ROOM_LOW = 64 * 1024  # with less than this behind a partial frame, it is moved to the front
_OPEN, _CLOSING, _OVER, _LOST = range(4)


class WebSocketHandler(Protocol):
    """Who takes a connection's messages. The calls are synchronous and must not raise."""

    def message(self, opcode: int, payload: bytes) -> None:
        """A whole message: opcode 1 text (valid UTF-8) or 2 binary."""

    def writable(self) -> None:
        """The transport drained below its low-water mark: `WebSocket.paused` is False again."""

    def closed(self, code: int | None, reason: str) -> None:
        """The connection is over. Exactly once, the last call.

        Args:
            code: of the first close frame, whoever sent it (1005: the peer's carried none); None when the
                connection broke without one.
            reason: of the same frame.
        """


class _ReadRoom:
    """The buffer that all connections of a loop read into, whose partial frame stands in it, and whose turn it was.

    Attributes:
        reader: which connection read last.
        alone: how often it did so with no other between.
    """

    __slots__ = ("__weakref__", "alone", "buf", "holder", "reader", "view")

    def __init__(self) -> None:
        self.buf = bytearray(ROOM)
        self.view = memoryview(self.buf)
        self.holder: WebSocket | None = None
        self.reader: WebSocket | None = None
        self.alone = 0


_rooms: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _ReadRoom] = weakref.WeakKeyDictionary()


def _room_of(loop: asyncio.AbstractEventLoop) -> _ReadRoom:
    room = _rooms.get(loop)
    if room is None:
        room = _rooms[loop] = _ReadRoom()
    return room


class WebSocket(asyncio.BufferedProtocol):
    """One open WebSocket. Made by `ws_connect.connect` and `ws_accept.accept`.

    Args:
        loop: the loop that the transport runs on.
        transport: whose upgrade is done; it is taken over.
        early: octets that came behind the upgrade's head.
        client: whether this end is the client, and masks.
        max_message: octets of the largest message that is taken; a larger one closes 1009.
        subprotocol: what the upgrade agreed on.

    Attributes:
        paused: the transport holds more than its high-water mark: send no bulk.
        last_heard: `time.monotonic` of the last octet that came.
        subprotocol: None when none was agreed on.
        fault: what the peer did wrong, in words, when this end closed for it, or what failed here; else None.
        last_words: called before this end closes for what the peer did wrong, with the code that is the close's reason
            and the words: what it sends goes out first.
    """

    __slots__ = (
        "__weakref__",
        "_close",
        "_decoder",
        "_early",
        "_encode",
        "_end",
        "_handler",
        "_have",
        "_lent",
        "_loop",
        "_own",
        "_own_view",
        "_pong",
        "_room",
        "_start",
        "_state",
        "_timer",
        "_transport",
        "fault",
        "last_heard",
        "last_words",
        "paused",
        "subprotocol",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        early: bytes,
        *,
        client: bool,
        max_message: int,
        subprotocol: str | None,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._early = early
        self._encode: Callable[[int, Sequence[bytes | memoryview]], bytes] = ClientEncoder() if client else encode_plain
        self._decoder = Decoder(masked=not client, max_message=max_message, message=_too_early, control=self._control)
        self._handler: WebSocketHandler | None = None
        self.last_words: Callable[[str, str], None] | None = None
        self._room = _room_of(loop)
        self._start = self._end = 0  # the partial frame in the shared buffer, while that is held
        self._own: bytearray | None = None  # or the frame's own buffer, with _have octets in it
        self._own_view: memoryview | None = None
        self._have = 0
        self._lent = 0  # octets of the buffer that the transport reads into
        self._state = _OPEN
        self._close: tuple[int | None, str] = (None, "")
        self._timer: asyncio.TimerHandle | None = None
        self._pong: bytes | None = None
        self.paused = False
        self.last_heard = time.monotonic()
        self.subprotocol = subprotocol
        self.fault: str | None = None
        sock = transport.get_extra_info("socket")
        if sock is not None:
            try:
                tune(sock)
            except OSError:  # gone already: `connection_lost` comes
                pass
        # uvloop fixes at the start of reading which kind of protocol it reads for: stop and start again.
        # And nothing is read before there is a handler to take it.
        transport.pause_reading()
        transport.set_protocol(self)
        transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)

    @property
    def handler(self) -> WebSocketHandler | None:
        """Who takes the messages. Setting it delivers what came before, and starts the reading."""
        return self._handler

    @handler.setter
    def handler(self, handler: WebSocketHandler) -> None:
        first = self._handler is None
        self._handler = handler
        if self._state != _CLOSING:
            self._decoder.deliver_to(handler.message)
        if not first:
            return
        early, self._early = bytearray(self._early), b""
        if early:
            self._feed_apart(early, len(early))
        if self._state == _LOST:
            handler.closed(*self._close)
        elif self._state != _OVER:
            self._transport.resume_reading()

    @property
    def transport(self) -> asyncio.Transport:
        """The transport below: for addresses, TLS and metrics. Nobody else writes to it."""
        return self._transport

    # -- writing -----------------------------------------------------------------------------------------

    def send(self, opcode: int, parts: Sequence[bytes | memoryview]) -> None:
        """Send one message of the joined parts, opcode 1 or 2. Ignored once the connection closes."""
        if self._state == _OPEN:
            self._transport.write(self._encode(opcode, parts))

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and wait at most `CLOSE_TIMEOUT` for the peer's, then abort.

        Nothing but `WebSocketHandler.closed` is called afterwards. Ignored when closing already.

        Args:
            code: one that may be sent (RFC 6455 section 7.4; 4000-4999 are the tunnel's own).
            reason: cut to 123 octets of UTF-8.

        Raises:
            ValueError: the code may not be sent.
        """
        if self._state != _OPEN:
            return
        payload = encode_close(code, reason)
        self._close = (code, reason)
        self._transport.write(self._encode(CLOSE, (payload,)))
        self._state = _CLOSING
        self._decoder.deliver_to(_ignore)
        self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._give_up)

    def hold(self, most: int) -> None:
        """Be paused from so many octets on that the transport holds: fewer than `HIGH_WATER` on a slow network."""
        if self._state == _OPEN:
            self._transport.set_write_buffer_limits(high=most, low=most // 4)

    def limit(self, max_message: int) -> None:
        """Take messages of so many octets at most from now on: what is agreed only once the connection stands."""
        self._decoder.max_message = max_message

    def abort(self) -> None:
        """End the connection now, by a reset. Nothing but `closed` is called afterwards."""
        if self._state != _LOST:
            self._decoder.stopped = True
            self._give_up()

    def _give_up(self) -> None:
        self._state = _OVER
        reset(self._transport)

    def _hang_up(self) -> None:
        """Both close frames are under way: end the connection, aborting what does not get through."""
        self._state = _OVER
        if self._timer is None:
            self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._give_up)
        self._transport.close()

    def pause_writing(self) -> None:
        """The transport went above its high-water mark."""
        self.paused = True

    def resume_writing(self) -> None:
        """The transport drained below its low-water mark."""
        self.paused = False
        if self._state != _OPEN:
            return
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self._transport.write(self._encode(PONG, (pong,)))
        if self._handler is not None:
            self._handler.writable()

    # -- reading -----------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport reads to: behind the partial frame, if there is one."""
        view = self._next_buffer()
        self._lent = size = len(view)
        if size > SHARE and self._room.alone < ROUNDS_ALONE:
            self._lent = SHARE
            return view[:SHARE]
        return view

    def _next_buffer(self) -> memoryview:
        if self._own_view is not None:
            return self._own_view[self._have :]
        room = self._room
        if room.holder is self:
            start, end = self._start, self._end
            if start and ROOM - end < _ROOM_LOW:
                room.view[: end - start] = room.view[start:end]
                self._start, self._end = 0, end - start
                end -= start
            return room.view[end:]
        if room.holder is not None:
            room.holder._move_out()
        return room.view

    def buffer_updated(self, nbytes: int) -> None:
        """So many octets were read to where `get_buffer` said."""
        self.last_heard = time.monotonic()
        if self._decoder.stopped:
            return
        room = self._room
        if room.reader is self:
            room.alone += 1
        else:
            room.reader = self
            room.alone = 0
        if nbytes == self._lent >= SHARE:
            let_others(self._loop, self._transport, self._goes_on)
        if self._own is not None:
            self._have = have = self._have + nbytes
            if have == len(self._own) or len(self._own) <= MAX_HEADER:
                self._feed_apart(self._own, have)
            return
        start = 0
        if room.holder is self:
            start = self._start
            nbytes += self._end
            room.holder = None
        pos = self._decoder.feed(room.buf, room.view, start, nbytes)
        if self._decoder.fault is not None:
            self._fail()
        elif pos < nbytes:
            room.holder = self
            self._start, self._end = pos, nbytes
            if self._decoder.need > ROOM:
                self._move_out()

    def _goes_on(self) -> bool:
        return self._state in (_OPEN, _CLOSING)

    def _move_out(self) -> None:
        """Take the partial frame out of the shared buffer."""
        room = self._room
        room.holder = None
        self._hold(room.view[self._start : self._end])

    def _hold(self, piece: memoryview) -> None:
        """Begin a buffer of the frame's own size, or of a header's when that is not known yet."""
        self._own = bytearray(self._decoder.need or MAX_HEADER)
        self._own_view = memoryview(self._own)
        self._have = len(piece)
        self._own_view[: self._have] = piece

    def _feed_apart(self, own: bytearray, end: int) -> None:
        """Feed what does not stand in the shared buffer."""
        view = memoryview(own)
        self._own = self._own_view = None
        pos = self._decoder.feed(own, view, 0, end)
        if self._decoder.fault is not None:
            self._fail()
        elif pos < end:
            self._hold(view[pos:end])

    def _fail(self) -> None:
        """The peer broke a rule: say so, and take nothing more from it but the end of the connection."""
        assert self._decoder.fault is not None
        code, detail = self._decoder.fault
        if self._state == _OPEN:
            self.fault = detail
            reason = "too_large" if code == 1009 else "protocol_error"
            if self.last_words is not None:
                self.last_words(reason, detail)
            self.close(code, reason)
        elif self._state == _CLOSING:
            self._hang_up()

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self._peer_closes(payload)
        elif opcode == PING and self._state == _OPEN:
            if self.paused:  # only the newest ping needs an answer (RFC 6455 section 5.5.3)
                self._pong = payload
            else:
                self._transport.write(self._encode(PONG, (payload,)))

    def _peer_closes(self, payload: bytes) -> None:
        decoder = self._decoder
        decoder.stopped = True
        try:
            code, reason = parse_close(payload)
        except ValueError as error:
            bad_text = isinstance(error, UnicodeDecodeError)
            decoder.fault = (1007, "a close reason is not UTF-8") if bad_text else (1002, str(error))
            return
        if self._state == _OPEN:
            self._close = (code, reason)
            self._transport.write(self._encode(CLOSE, (payload[:2],)))
        self._hang_up()

    def eof_received(self) -> None:
        """The peer sends no more: the transport closes, which is told by `connection_lost`."""
        if self._state == _OPEN:
            self._state = _OVER

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone. With anything but an OSError it was given up because a message could not be taken here
        (out of memory, say): where that was half done nothing can go on, and the same message again would do no better.
        """
        if exc is not None and not isinstance(exc, OSError):
            self.fault = f"a message could not be taken here ({type(exc).__name__})"
            self._close = (1006, "")  # which no peer may send (RFC 6455 section 7.4.1)
        self._state = _LOST
        self._decoder.release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._room.holder is self:
            self._room.holder = None
        if self._room.reader is self:
            self._room.reader = None
        self._own = self._own_view = self._pong = self.last_words = None
        if self._handler is not None:
            self._handler.closed(*self._close)


def _too_early(opcode: int, payload: bytes) -> None:
    raise AssertionError("read before there was a handler")


def _ignore(opcode: int, payload: bytes) -> None:
    """After our close frame, messages are of no use to anyone."""
