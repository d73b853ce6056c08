"""The body of a visitor's request on its way to the service: what of it waits here, and when its credit goes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunneld.protocol.windows import PIECE

if TYPE_CHECKING:
    from tunneld.agent.exchange import Exchange
    from tunneld.agent.heads import Heads
    from tunneld.agent.origin import Connection
    from tunneld.protocol.messages import Headers
    from tunneld.protocol.streams import Stream
    from tunneld.protocol.windows import Holders

__all__ = ["Upload"]


class Upload:
    """Of one exchange, which tells of what comes and has the connection to the service.

    Args:
        exchange: whose body it is.
        stream: that it comes on; credit goes back to it for what the service has taken.
        heads: says how a body in chunks ends.
        holders: of the process, whose memory is bounded.

    Attributes:
        left: bytes that the request's Content-Length still promises; `CHUNKED`: it has none.
        begun: bytes of it went to the service.
    """

    __slots__ = (
        "_exchange", "_heads", "_held", "_holders", "_over", "_pending", "_stream", "_trailers", "_untaken", "begun",
        "left",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, stream: Stream, heads: Heads, holders: Holders) -> None:
        self._exchange = exchange
        self._stream = stream
        self._heads = heads
        self._holders = holders
        self._pending: list[bytes] | None = None  # what came while there is no connection
        self._trailers: Headers = []
        self._over = False  # all of it came
        self._untaken = 0  # bytes whose credit is withheld
        self._held = 0  # bytes that wait here, and count towards `limits.memory`
        self.left = 0
        self.begun = False

    def data(self, data: bytes, connection: Connection | None) -> bool:
        """Some of it came; returns whether that is no more than was promised."""
        if self.left >= 0:
            self.left -= len(data)
            if self.left < 0:
                return False
        if connection is not None:
            self._send(connection, data)
            return True
        if self._pending is None:
            self._pending = []
        self._pending.append(data)
        self._hold(len(data))
        return True

    def end(self, trailers: Headers, connection: Connection | None) -> None:
        """It is whole."""
        self._over = True
        if connection is not None:
            self._send_end(connection, trailers)
            return
        if self._pending is None:
            self._pending = []
        self._trailers = trailers

    def flush(self, connection: Connection) -> bool:
        """Send what waited for a connection; returns whether anything did and more of it follows."""
        pending, self._pending = self._pending, None
        if pending is None:
            return False
        self._let_go()
        for data in pending:
            self._send(connection, data)
            if connection.user is not self._exchange:
                return True
        if self._over:
            self._send_end(connection, self._trailers)
        return not self._over

    def again(self) -> None:
        """Nothing of it was sent but, maybe, its end, and that goes out once more."""
        if self._over and self.left < 0:
            self._pending = []

    def taken(self) -> None:
        """The service has taken all that went to it."""
        untaken, self._untaken = self._untaken, 0
        if untaken:
            self._let_go()
            self._stream.took(untaken)

    def close(self) -> None:
        """Nothing of it goes to the service any more. Idempotent."""
        self._pending = None
        self._let_go()

    def _send(self, connection: Connection, data: bytes) -> None:
        self.begun = True
        if self.left < 0:
            connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            connection.write(data)
        if connection.blocked:
            self._untaken += len(data)
            self._hold(len(data))
        else:
            self._stream.took(len(data))

    def _send_end(self, connection: Connection, trailers: Headers) -> None:
        if self.left < 0:
            connection.write(self._heads.last_chunk(trailers))

    def _hold(self, size: int) -> None:
        """Bytes wait for the service. Over the limit those that have waited the longest must go."""
        size += PIECE
        self._held += size
        self._holders.budget.add(size)
        self._holders.add(self._give_up, slow=True)

    def _let_go(self) -> None:
        """Nothing of it waits here any more."""
        held, self._held = self._held, 0
        if held:
            self._holders.budget.sub(held)
            self._holders.discard(self._give_up)

    def _give_up(self) -> None:
        self._exchange.held_up()
