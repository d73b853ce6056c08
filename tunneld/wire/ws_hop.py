"""One end of a WebSocket that passes through: frames from a peer's connection, frames to it, and how it ends.

No task, no queue: bytes go from the transport's callback to `HopUser.frame`, and from `Hop.send` to the transport.
Pings are not answered here and messages are not put together: that is for the two who talk.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Sequence
from typing import Protocol

from tunneld.wire.closewatch import CloseWatch
from tunneld.wire.short_reads import ShortReads
from tunneld.wire.sockets import descriptor, not_taken, reset
from tunneld.wire.turns import LARGE, let_others
from tunneld.wire.ws_codec import CLOSE, FIN, ClientEncoder, encode_close, encode_plain
from tunneld.wire.ws_frames import FrameReader

__all__ = ["CLOSE_TIMEOUT", "Hop", "HopUser"]

CLOSE_TIMEOUT = 1.0
"""Seconds that a peer has to answer our own close frame or to end its connection after both; and in which somebody must
take what stands before a close that came while reading was paused."""
_SLOW = 60.0  # seconds without progress after which a close is forced while bytes wait for the peer
_CLOSING = FIN | CLOSE


class HopUser(Protocol):
    """What stands behind a hop. The calls come from the transport's callbacks and must not raise."""

    def frame(self, first: int, payload: bytes) -> bool:
        """A frame, or a piece of one (`FrameReader`); False: give no more until `Hop.resume`."""

    def blocked(self) -> None:
        """The transport holds more than it should: `Hop.congested` is true."""

    def drained(self) -> None:
        """The peer takes bytes again."""

    def lost(self) -> None:
        """The peer's connection ended, or is ended for its fault (`Hop.fault`): once, unless the user ended it first.

        `Hop.close_received` says whether in order.
        """

    def gone(self) -> None:
        """The transport is closed: the last call."""


class Hop(asyncio.Protocol):
    """One peer's connection after its upgrade.

    Args:
        loop: that the transport runs on.
        transport: taken over by `begin`.
        client: whether this end is the client, and masks.
        user: is told what comes.
        reads: how it is read, and where what waits here counts.

    Attributes:
        congested: the transport holds more than it should: what is written waits.
        close_received: the peer has sent its close frame.
        close_sent: a close frame went to the peer.
        fault: what the peer did wrong, in words; empty when nothing.
    """

    __slots__ = (
        "__weakref__",
        "_client",
        "_dropping",
        "_encode",
        "_fd",
        "_half_closed",
        "_impatience",
        "_kept",
        "_loop",
        "_over",
        "_reader",
        "_reading",
        "_reads",
        "_short",
        "_timer",
        "_told",
        "_transport",
        "_user",
        "_waiting",
        "_written",
        "close_received",
        "close_sent",
        "congested",
        "fault",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        *,
        client: bool,
        user: HopUser,
        reads: ShortReads,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._client = client
        self._user = user
        self._reads = reads
        self._short = False  # it is read a little at a time
        self._kept = 0  # octets that came and wait here, as they were counted last
        self._reader = FrameReader(masked=not client, frame=self._frame)
        self._encode: Callable[[int, Sequence[bytes | memoryview], int], bytes] = (
            ClientEncoder() if client else encode_plain
        )
        self._fd = -1  # watched for its close while reading is paused
        self._reading = True
        self._half_closed = False  # the peer has ended its direction, behind its close frame
        self._dropping = False  # what comes interests nobody, but the end
        self._told = False  # `lost` was called, or will not be
        self._over = False  # the transport is closing, or closed
        self._timer: asyncio.TimerHandle | None = None
        self._impatience: asyncio.TimerHandle | None = None  # a close that waits behind what nobody takes
        self._waiting = 0
        self._written = 0
        self.congested = False
        self.close_received = False
        self.close_sent = False
        self.fault = ""

    def begin(self, early: bytes, *, paused: bool) -> None:
        """Take the transport over.

        Args:
            early: octets that came behind the upgrade's head.
            paused: reading from the transport is paused.
        """
        self._transport.set_protocol(self)
        if early:
            self.data_received(early)
        if paused and self._reading and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def passed_on(self) -> int:
        """Octets that the peer's kernel has taken so far; with TLS, near enough."""
        return self._written - not_taken(self._transport)

    # -- what a user does --------------------------------------------------------------------------------

    def send(self, first: int, payload: bytes | memoryview) -> None:
        """Send one frame; look at `congested` afterwards. Behind a close frame nothing is sent."""
        if self.close_sent or self._over:
            return
        self._write(first, payload)
        if first == _CLOSING:
            self.close_sent = True
            if self.close_received:
                self._finish()

    def resume(self) -> None:
        """Go on reading."""
        reader = self._reader
        if reader.held:
            reader.go_on()
            self._mind_fault()
        if reader.waiting != self._kept:
            self._count()
        if not reader.held:
            self._read_on()

    def drop(self) -> None:
        """What the peer still says interests nobody; its end does."""
        self._dropping = True
        self.resume()

    def close(self, code: int, reason: str) -> None:
        """End it in order, whatever the peer is doing: a close frame of our own, and `CLOSE_TIMEOUT` for the answer."""
        self._told = True
        if self._over:
            return
        if self.close_sent:
            self.end()
            return
        self._write(_CLOSING, encode_close(code, reason))
        self.close_sent = True
        if self.close_received:
            self._finish()
            return
        self.drop()
        if not self._over:
            self._wait()

    def end(self) -> None:
        """End the connection once what was written is out: the peer sees its end, not a close frame."""
        self._told = True
        if not self._over:
            self._hang_up(CLOSE_TIMEOUT)

    def abort(self) -> None:
        """End the connection now, by a reset where there is one; what was not sent is dropped."""
        self._told = True
        self._leave()
        reset(self._transport)

    # -- input -------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._over or self.fault:
            return
        reader = self._reader
        reader.feed(data)
        if reader.fault is not None:
            self._mind_fault()
        elif reader.held and self._reading:
            self._pause()
        elif len(data) >= LARGE and self._reading and not self._over:
            let_others(self._loop, self._transport, self._goes_on)
        if reader.waiting != self._kept:
            self._count()

    def _count(self) -> None:
        """What waits here is held for somebody who does not take it."""
        waiting = self._reader.waiting
        self._reads.budget.held += waiting - self._kept
        self._kept = waiting

    def _goes_on(self) -> bool:
        return self._reading

    def _frame(self, first: int, payload: bytes) -> bool:
        if first == _CLOSING:
            self.close_received = True
        goes_on = self._dropping or self._user.frame(first, payload)
        if first == _CLOSING and self.close_sent:
            self._finish()
        return goes_on

    def _mind_fault(self) -> None:
        """The peer broke a rule: say so, take nothing more from it, and end once it has had time to hear."""
        found = self._reader.fault
        if found is None or self.fault or self._over:
            return
        self.fault = found[1]
        if not self.close_sent:
            self._write(_CLOSING, encode_close(*found))
            self.close_sent = True
        self._tell_lost()
        self._read_on()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._wait()

    def _pause(self) -> None:
        if self._transport.is_closing():
            return
        self._reading = False
        self._transport.pause_reading()
        self._fd = descriptor(self._transport)
        CloseWatch.of(self._loop).watch(self._fd, self._closed_while_paused)

    def _read_on(self) -> None:
        if self._reading:
            return
        self._reading = True
        self._unwatch()
        if not self._transport.is_closing():
            self._short = self._reads.mind(self._transport, self, short=self._short, reading=False)
            self._transport.resume_reading()

    def _closed_while_paused(self, events: int) -> None:
        """The peer closed, and what it sent before waits for somebody to take it: not for long."""
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._give_up()
        else:
            self._impatience = self._loop.call_later(CLOSE_TIMEOUT, self._give_up)

    def _give_up(self) -> None:
        self._leave()
        reset(self._transport)
        self._tell_lost()

    # -- ends --------------------------------------------------------------------------------------------

    def eof_received(self) -> bool:
        """See asyncio: the transport closes itself after this, unless the answer to the peer's close is still due."""
        over = self.close_sent or self._told or self._over
        if self.close_received and not over and self._transport.can_write_eof():
            self._half_closed = True
            self._wait_for_close(-1)
            return True
        self._over = True
        self._arm(CLOSE_TIMEOUT)
        self._tell_lost()
        return False

    def _wait_for_close(self, written: int) -> None:
        """The peer may read on after its close and its end: a client for as long as it is told something."""
        if self._written == written:
            self._give_up()
        else:
            patience = CLOSE_TIMEOUT if self._client else _SLOW
            self._timer = self._loop.call_later(patience, self._wait_for_close, self._written)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._leave()
        self._reader.release()
        self._count()
        self._tell_lost()
        self._user.gone()

    def _tell_lost(self) -> None:
        if not self._told:
            self._told = True
            self._user.lost()

    def _finish(self) -> None:
        """Both close frames are under way: the server ends the connection, the client waits for it (section 7.1.1)."""
        self._told = True
        if self._client and not self._half_closed:
            self._dropping = True
            self._wait()
        else:
            self._hang_up(_SLOW)

    def _wait(self) -> None:
        """Give the peer `CLOSE_TIMEOUT` to end the connection."""
        self._stop_timer()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._hang_up, CLOSE_TIMEOUT)

    def _hang_up(self, patience: float) -> None:
        self._over = True
        self._unwatch()
        self._arm(patience)
        self._transport.close()

    def _arm(self, patience: float) -> None:
        """Force the close once the peer has taken none of the bytes that wait for it for so many seconds."""
        self._stop_timer()
        self._waiting = self._transport.get_write_buffer_size()
        # without any it is TLS, whose own closing takes a moment
        self._timer = self._loop.call_later(patience if self._waiting else CLOSE_TIMEOUT, self._still_there, patience)

    def _still_there(self, patience: float) -> None:
        self._timer = None
        if 0 < self._transport.get_write_buffer_size() < self._waiting:
            self._arm(patience)
        else:
            reset(self._transport)

    def _leave(self) -> None:
        self._over = True
        self._unwatch()
        self._stop_timer()

    def _unwatch(self) -> None:
        if self._fd >= 0:
            CloseWatch.of(self._loop).unwatch(self._fd)
            self._fd = -1
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- output ------------------------------------------------------------------------------------------

    def _write(self, first: int, payload: bytes | memoryview) -> None:
        data = self._encode(first & 0x0F, (payload,), first & FIN)
        self._written += len(data)
        self._transport.write(data)

    def pause_writing(self) -> None:
        """See asyncio."""
        self.congested = True
        if not self._told:
            self._user.blocked()

    def resume_writing(self) -> None:
        """See asyncio."""
        self.congested = False
        if not self._told:
            self._user.drained()
