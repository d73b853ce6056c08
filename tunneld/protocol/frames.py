"""Frames of the v3 dialect: what one binary message is made of.

A frame is a header of nine bytes (``!BII``: type, stream id, payload length) and its payload. Several whole
frames share one binary message; a frame never spans messages. See PROTOCOL.md, "v3: frames".
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from tunneld.errors import RemoteError

__all__ = [
    "ACK",
    "COUNTED_FIRST",
    "COUNTED_LAST",
    "DATA",
    "END",
    "FIN",
    "HEAD",
    "HEADER",
    "HEADER_SIZE",
    "MAX_DATA",
    "MESSAGE_TARGET",
    "OPEN",
    "STOP",
    "WINDOW",
    "ack",
    "frame",
    "max_message",
    "parse_ack",
    "parse_window",
    "split",
    "window",
]

OPEN, HEAD, DATA, END, STOP, WINDOW, ACK = 1, 2, 3, 4, 5, 6, 7
#: Bit of a type: END follows with no trailers.
FIN = 0x80
#: Types that a newer peer may send: counted and ignored.
COUNTED_FIRST, COUNTED_LAST = 0x40, 0x7F
#: Types that may carry `FIN`, besides those that are counted and ignored.
_MAY_FIN = frozenset({OPEN, HEAD, DATA})
_KNOWN = frozenset({OPEN, HEAD, DATA, END, STOP, WINDOW, ACK})
#: What nearly every other frame is.
_PLAIN = frozenset({OPEN | FIN, OPEN, HEAD, HEAD | FIN, END, WINDOW})

HEADER = Struct("!BII")
HEADER_SIZE = HEADER.size
_U32 = Struct("!I")
_U64 = Struct("!Q")
_WINDOW_FRAME = Struct("!BIII")
_ACK_FRAME = Struct("!BIIQ")

#: The most bytes that one DATA carries.
MAX_DATA = 64 * 1024
#: A message is closed once it holds this many bytes: larger ones cost page faults, smaller ones system calls.
MESSAGE_TARGET = 64 * 1024


def max_message(max_header: int) -> int:
    """The largest message of a connection, in bytes, for a `max_header` in bytes (PROTOCOL.md, "connecting")."""
    return 64 * 1024 + 2 * max_header + 1024


def frame(kind: int, stream_id: int, payload: bytes) -> bytes:
    """One whole frame."""
    return HEADER.pack(kind, stream_id, len(payload)) + payload


def window(stream_id: int, credit: int) -> bytes:
    """A WINDOW frame that grants `credit` bytes."""
    return _WINDOW_FRAME.pack(WINDOW, stream_id, 4, credit)


def ack(count: int) -> bytes:
    """An ACK message: the count of messages received on this session."""
    return _ACK_FRAME.pack(ACK, 0, 8, count)


def parse_ack(message: bytes) -> int | None:
    """The count that an ACK message carries; None when the message is something else.

    Raises:
        RemoteError: ``protocol_error``, an ACK of a wrong shape.
    """
    if message[0] != ACK:
        return None
    if len(message) != _ACK_FRAME.size:
        raise RemoteError("protocol_error", f"an ACK of {len(message)} bytes, or one that is not alone")
    _, stream_id, length, count = _ACK_FRAME.unpack(message)
    if stream_id or length != 8:
        raise RemoteError("protocol_error", "an ACK with a stream id or a wrong length")
    return int(count)


def parse_window(payload: bytes) -> int:
    """The credit that a WINDOW's payload carries.

    Raises:
        RemoteError: ``protocol_error``, a payload that is not four bytes, or a credit of 0.
    """
    if len(payload) != 4:
        raise RemoteError("protocol_error", f"a WINDOW of {len(payload)} bytes")
    (credit,) = _U32.unpack(payload)
    if not credit:
        raise RemoteError("protocol_error", "a WINDOW of 0")
    return int(credit)


def split(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (type with its FIN bit, stream id, payload) of each frame in a binary message, in order.

    Raises:
        RemoteError: ``protocol_error``: an empty message, a frame that does not end within it, a type that is
            not known and not in 0x40-0x7f, FIN on a type that may not carry it, DATA over 64 KiB, an ACK in
            company. Frames before the fault were yielded.
    """
    size = len(message)
    if not size:
        raise RemoteError("protocol_error", "an empty binary message")
    position = 0
    unpack = HEADER.unpack_from
    while position < size:
        start = position + HEADER_SIZE
        if start > size:
            raise RemoteError("protocol_error", "a frame's header is cut short")
        kind, stream_id, length = unpack(message, position)
        position = start + length
        if position > size:
            raise RemoteError("protocol_error", "a frame's payload is cut short")
        if kind & 0x7F == DATA:
            if length > MAX_DATA:
                raise RemoteError("protocol_error", f"DATA of {length} bytes")
        elif kind not in _PLAIN:
            _check_kind(kind)
        yield kind, stream_id, message[start:position]


def _check_kind(kind: int) -> None:
    base = kind & 0x7F
    if COUNTED_FIRST <= base <= COUNTED_LAST:
        return
    if base not in _KNOWN or base == ACK:
        raise RemoteError("protocol_error", f"a frame of type {base:#04x} where none may stand")
    if kind & FIN and base not in _MAY_FIN:
        raise RemoteError("protocol_error", f"the END bit on a frame of type {base:#04x}")
