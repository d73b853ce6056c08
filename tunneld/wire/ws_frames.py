"""WebSocket frames that only pass through (RFC 6455 section 5), without I/O: bytes in, frames out, one by one.

Unlike `ws_codec.Decoder` nothing is put together here: a fragment is passed on as a fragment, text and the payload of a
close frame are for those who read them, and a frame of any length goes on in pieces as it comes. What cannot be passed
on (reserved bits and opcodes, a mask where none may be, fragments out of order) is the fault of who sent it.
"""

from __future__ import annotations

from collections.abc import Callable

from tunneld.wire.ws_codec import CLOSE, FIN, Fault, apply_mask, check_start, long_size

__all__ = ["WHOLE", "FrameReader"]

WHOLE = 64 * 1024
"""Octets of the largest frame that waits until it is whole; one that is larger goes on in pieces."""
_PIECE = 16 * 1024  # octets of the smallest piece that goes on before the frame's end
_USUAL = frozenset((FIN | 1, FIN | 2))
_CLOSING = FIN | CLOSE


class FrameReader:
    """Frames of one direction of one connection.

    Args:
        masked: whether the peer is the client: its frames must be masked, a server's must not be (section 5.1).
        frame: is given (first octet, payload unmasked) of each frame, of a large one piece by piece: a frame without
            `FIN` and its continuations. Returns whether to go on: what is left waits for `go_on` otherwise.

    Attributes:
        held: the last frame's taker said to wait.
        closed: a close frame has come; what follows it is dropped.
        fault: None, or (close code, detail) once the peer broke a rule. Nothing is delivered afterwards.
    """

    __slots__ = (
        "_first",
        "_frame",
        "_inside",
        "_left",
        "_mask",
        "_masked",
        "_need",
        "_rest",
        "closed",
        "fault",
        "held",
    )

    def __init__(self, *, masked: bool, frame: Callable[[int, bytes], bool]) -> None:
        self._masked = masked
        self._frame = frame
        self._rest: bytearray | None = None  # input that waits, and how much of it there must be to go on
        self._need = 0
        self._inside = False  # a fragmented message is under way
        self._left = 0  # octets still to come of a frame that goes on in pieces, its next first octet and mask
        self._first = 0
        self._mask = b""
        self.held = False
        self.closed = False
        self.fault: tuple[int, str] | None = None

    @property
    def waiting(self) -> int:
        """Octets that came and were not delivered."""
        return len(self._rest) if self._rest is not None else 0

    def release(self) -> None:
        """Deliver nothing more, and let go of who took: no cycle keeps a dead connection in memory."""
        self.closed = True
        self._rest = None
        self._frame = _nobody

    def feed(self, data: bytes) -> None:
        """Deliver the frames that are whole by now; look at `fault` afterwards."""
        rest = self._rest
        if rest is not None:
            rest += data
            if self.held or len(rest) < self._need:
                return
            data = bytes(rest)
            self._rest = None
        elif self.held:
            self._rest = bytearray(data)
            self._need = 0
            return
        self._take(data)

    def go_on(self) -> None:
        """Deliver what waited; look at `fault` afterwards."""
        self.held = False
        rest = self._rest
        if rest is not None and len(rest) >= self._need:
            self._rest = None
            self._take(bytes(rest))

    def _take(self, data: bytes) -> None:
        pos, end = 0, len(data)
        self._need = 0
        try:
            while pos < end and not (self.held or self.closed):
                after = self._piece(data, pos, end) if self._left else self._next(data, pos, end)
                if after < 0:
                    break
                pos = after
        except Fault as fault:
            self.fault = (fault.code, str(fault))
            self.closed = True
        if pos < end and not self.closed:
            self._rest = bytearray(memoryview(data)[pos:])

    def _next(self, data: bytes, start: int, end: int) -> int:
        """Deliver the frame that begins at `start`, or begin a large one; returns where the next octet to use stands.

        -1, and `_need` set, when more must come first.
        """
        if end - start < 2:
            self._need = 2
            return -1
        masked = self._masked
        first = data[start]
        size = data[start + 1] ^ 0x80 if masked else data[start + 1]
        if size > 127:
            raise Fault(1002, "a frame is not masked" if masked else "a frame is masked")
        if self._inside or first not in _USUAL:
            check_start(first, size, inside=self._inside)
        pos = start + 2
        if size >= 126:
            pos += 2 if size == 126 else 8
            if end < pos:
                self._need = pos - start
                return -1
            size = long_size(data, size, pos, shortest=False)
        if masked:
            pos += 4
        if end - pos < size:
            if size <= WHOLE or end < pos:
                self._need = pos + min(size, WHOLE) - start
                return -1
            self._left, self._first = size, first
            self._mask = data[pos - 4 : pos] if masked else b""
        if not first & 0x08:
            self._inside = not first & FIN
        if self._left:
            return pos
        payload = data[pos : pos + size]
        if masked:
            payload = apply_mask(payload, data[pos - 4 : pos])
        self.closed = first == _CLOSING
        self.held = not self._frame(first, payload)
        return pos + size

    def _piece(self, data: bytes, pos: int, end: int) -> int:
        """Deliver what has come of a large frame; returns as `_next`."""
        size = min(end - pos, self._left)
        if size < self._left and size < _PIECE:
            self._need = min(_PIECE, self._left)
            return -1
        payload = data[pos : pos + size]
        if self._masked:
            payload = apply_mask(payload, self._mask)
            turn = size & 3  # the next piece meets the mask where this one leaves it
            self._mask = self._mask[turn:] + self._mask[:turn]
        first = self._first
        self._left -= size
        self._first = first & FIN
        self.held = not self._frame(first if not self._left else first & ~FIN, payload)
        return pos + size


def _nobody(first: int, payload: bytes) -> bool:
    raise AssertionError("delivered after the end")
