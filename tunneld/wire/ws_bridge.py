"""A visitor's WebSocket between a peer's connection and a stream of the tunnel: the same at both ends of it.

A direction ends with the peer's close frame and END behind it. Where a connection ends without one, END comes without
one, behind all that came before, and STOP with it: the other end's peer sees its connection end without a close frame
too, which no WebSocket takes for a clean end. See PROTOCOL.md, "v3: WebSockets of visitors".
"""

from __future__ import annotations

from typing import ClassVar

from tunneld.protocol.headers import Headers
from tunneld.protocol.streams import Stream
from tunneld.protocol.websockets import CLOSING, COST
from tunneld.wire.ws_hop import Hop

__all__ = ["Bridge"]


class Bridge:
    """`Sink` of a stream after HEAD 101 and `HopUser` of the connection; one that counts and is listed extends it.

    Attributes:
        NEAR: why it ended when the peer of this connection ended it.
        FAR: why, when the other end's did.
        CLOSES: reason of a cancel -> close code and words that the peer is told; any other: its connection is aborted.
        stream: whose sink this is.
        hop: the connection.
    """

    __slots__ = ()

    NEAR: ClassVar[str]
    FAR: ClassVar[str]
    CLOSES: ClassVar[dict[str, tuple[int, str]]]
    stream: Stream
    hop: Hop

    # -- what is counted and listed ----------------------------------------------------------------------

    def _came(self, size: int) -> None:
        """The peer sent a frame of that many bytes."""
        raise NotImplementedError

    def _went(self, size: int) -> None:
        """A frame of that many bytes goes to the peer."""
        raise NotImplementedError

    def _owe(self, size: int) -> None:
        """The peer is slow: so much credit waits until it takes bytes."""
        raise NotImplementedError

    def _note(self, reason: str) -> None:
        """Why it will be over, once both directions have ended; the first counts, and none is ``done``."""
        raise NotImplementedError

    def _over(self, reason: str) -> None:
        """It is over, but for the end of the connection; called again it does nothing."""
        raise NotImplementedError

    # -- ends from here ----------------------------------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """End it from this side; nothing happens once the stream is over."""
        if not self.stream.closed:
            self.stream.cancel(reason)
            self.cancelled(reason)

    # -- HopUser -----------------------------------------------------------------------------------------

    def frame(self, first: int, payload: bytes) -> bool:
        """A frame from the peer."""
        self._came(len(payload))
        stream = self.stream
        goes_on = stream.send_frame(first, payload)
        if first == CLOSING:
            stream.send_end()
        return goes_on

    def lost(self) -> None:
        """The peer's connection is over, or its frames cannot be read on."""
        stream = self.stream
        if stream.closed:
            return
        if not self.hop.close_received:
            self._note(self.NEAR)
            if stream.stuck:  # nobody takes what came before: do not wait for that
                stream.cancel(self.NEAR)
                self._over(self.NEAR)
                return
            stream.send_end()
        stream.stop()

    def gone(self) -> None:
        """The connection is closed."""
        self.stream.stop()  # where only END is missing; else it ended long ago

    # -- Sink --------------------------------------------------------------------------------------------

    def head(self, status: int, headers: Headers) -> None:
        """Nothing comes behind a 101 that is a head."""

    def data(self, data: bytes) -> None:
        """A frame for the peer."""
        size = len(data)
        self._went(size - 1)
        hop = self.hop
        hop.send(data[0], memoryview(data)[1:])
        if hop.congested:
            self._owe(size + COST)
        else:
            self.stream.took(size + COST)

    def end(self, trailers: Headers) -> None:
        """The other end has no more: in order behind its close frame, or it lost its peer."""
        hop, stream = self.hop, self.stream
        if not hop.close_sent:
            self._note(self.FAR)
            hop.end()
            stream.send_end()
        elif stream.sending_ended and not hop.close_received:
            hop.end()  # `stopped` came before: nobody waits for the peer's close frame

    def stopped(self) -> None:
        """The other end takes no more: its peer is gone. What that still said comes before its END."""
        if self.stream.receiving_ended:
            self.hop.end()
        else:
            self.hop.drop()

    def cancelled(self, reason: str) -> None:
        """The stream is over on both sides."""
        told = self.CLOSES.get(reason)
        if told is not None:
            self.hop.close(*told)
        else:
            self.hop.abort()
        self._over(reason)

    def writable(self) -> None:
        """The tunnel takes more."""
        self.hop.resume()
