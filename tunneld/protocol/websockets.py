"""WebSockets of visitors inside a stream: what one DATA carries after HEAD 101, and what it costs.

Each DATA is one frame: a first byte (the opcode, with `FINAL` on a message's last frame) and the payload, unmasked.
See PROTOCOL.md, "v3: WebSockets of visitors".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tunneld.errors import RemoteError
from tunneld.protocol.fields import Headers, get_all
from tunneld.protocol.frames import MAX_DATA
from tunneld.protocol.outgoing import TURN

__all__ = [
    "CLOSING",
    "COST",
    "FINAL",
    "LEAST",
    "MAX_PAYLOAD",
    "FrameOrder",
    "Frames",
    "asks_for_websocket",
    "names_option",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
#: Bit of the first byte: the message ends with this frame.
FINAL = 0x80
#: The first byte of a close frame, the last of its direction.
CLOSING = FINAL | CLOSE
#: Bytes of credit that each DATA costs besides its payload: small frames cost memory, too.
COST = 64
#: Bytes of credit that send nothing: the cost and the first byte alone.
LEAST = COST + 1
#: Bytes that one frame carries at most; a longer one goes in pieces.
MAX_PAYLOAD = MAX_DATA - 1
#: Bytes that a control frame carries at most (RFC 6455, 5.5).
_MAX_CONTROL = 125
# What there is room for in an empty message. A frame that does not fit into what others left of one waits for the next,
# rather than be cut.
_WHOLE_ROOMS = (TURN, MAX_DATA)
_FIRST = [bytes((octet,)) for octet in range(256)]
_WHOLE = frozenset((FINAL | TEXT, FINAL | BINARY))
_CONTROL = frozenset((FINAL | CLOSE, FINAL | PING, FINAL | PONG))
_DATA = frozenset((CONTINUATION, TEXT, BINARY))


class FrameOrder:
    """What came last in one direction, so that what comes next can be told right from wrong (RFC 6455, 5.4 and 5.5)."""

    __slots__ = ("_closed", "_inside")

    def __init__(self) -> None:
        self._inside = False  # a message whose last frame has not come
        self._closed = False

    def check(self, data: bytes) -> None:
        """One DATA came, not empty; raises RemoteError ``protocol_error`` for one that may not stand there."""
        first = data[0]
        if first in _WHOLE and not self._inside and not self._closed:
            return
        if self._closed:
            raise RemoteError("protocol_error", "DATA behind a WebSocket's close frame")
        if first in _CONTROL:
            if len(data) > _MAX_CONTROL + 1:
                raise RemoteError("protocol_error", f"a WebSocket's control frame of {len(data) - 1} bytes")
            self._closed = first == CLOSING
            return
        opcode = first & ~FINAL
        if opcode not in _DATA or (opcode == CONTINUATION) is not self._inside:
            raise RemoteError("protocol_error", f"a WebSocket's frame {first:#04x} where none may stand")
        self._inside = not first & FINAL


class Frames:
    """What a stream keeps once it carries a WebSocket: frames that wait to be sent, the order of those that come."""

    __slots__ = ("order", "waiting")

    def __init__(self) -> None:
        self.order = FrameOrder()
        self.waiting: deque[tuple[int, bytes | memoryview]] = deque()  # (first byte, payload)

    def can_go_on(self, credit: int) -> bool:
        """Whether this credit sends some of what waits."""
        if not self.waiting or credit <= LEAST:
            return False
        first, payload = self.waiting[0]
        return not first & 0x08 or credit >= len(payload) + LEAST

    def take(self, limit: int, credit: int) -> tuple[tuple[bytes, bytes | memoryview], int, int] | None:
        """Take one frame, or a piece of it: what is left goes on as its continuation. A control frame goes whole.

        Args:
            limit: bytes that there is room for, the first byte's included.
            credit: of the stream.

        Returns:
            (first byte and payload, their size, by how much the cost of what waits is less now); None: nothing goes.
        """
        waiting = self.waiting
        if not waiting:
            return None
        first, payload = waiting[0]
        size = len(payload)
        room = min(limit - 1, credit - LEAST, MAX_PAYLOAD)
        if room < 1 or (room < size and (first & 0x08 or (size >= limit and limit not in _WHOLE_ROOMS))):
            return None
        if size <= room:
            waiting.popleft()
            return (_FIRST[first], payload), size + 1, size + LEAST
        view = memoryview(payload)  # its rest is not copied at each piece
        waiting[0] = first & FINAL, view[room:]
        return (_FIRST[first & ~FINAL], view[:room]), room + 1, room


def names_option(values: Iterable[str], option: str) -> bool:
    """Whether one of these header values, comma-separated lists, names the option, in any case."""
    return any(member.strip(" \t").lower() == option for value in values for member in value.split(","))


def asks_for_websocket(headers: Headers) -> bool:
    """Whether these headers of a GET ask for a WebSocket (RFC 6455, 4.2.1): Upgrade and Connection say so."""
    return names_option(get_all(headers, "upgrade"), "websocket") and names_option(
        get_all(headers, "connection"), "upgrade"
    )
