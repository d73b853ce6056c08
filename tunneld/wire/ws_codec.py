"""WebSocket frames (RFC 6455 section 5) without I/O: bytes in, whole messages out; parts in, one frame out.

The tunnel's hop is the product, so this reads frames where the socket put them and copies a payload once, while
it takes the mask off. No extension is spoken: a reserved bit is an error.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence

from websockets.exceptions import ProtocolError as InvalidClose
from websockets.frames import Close

try:
    from websockets.speedups import apply_mask
except ImportError:  # no C module on this platform
    from websockets.utils import apply_mask

__all__ = [
    "BINARY",
    "CLOSE",
    "FIN",
    "MAX_HEADER",
    "PING",
    "PONG",
    "TEXT",
    "ClientEncoder",
    "Decoder",
    "Fault",
    "apply_mask",
    "check_start",
    "encode_close",
    "encode_plain",
    "long_size",
    "parse_close",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80
MAX_HEADER = 14
"""Octets of the longest frame header: two, a length of eight, a mask of four."""

_RANDOM_POOL = 4096
_MAX_CONTROL = 125
_MAX_REASON = _MAX_CONTROL - 2
_KNOWN = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))

_short = struct.Struct("!BB").pack
_medium = struct.Struct("!BBH").pack
_long = struct.Struct("!BBQ").pack
_masked_short = struct.Struct("!HI").pack
_masked_medium = struct.Struct("!II").pack
_masked_huge = struct.Struct("!HQI").pack

Receiver = Callable[[int, bytes], None]


class Fault(Exception):
    """What ends the connection: close code and what was seen."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def check_start(first: int, size: int, *, inside: bool) -> None:
    """The rules that a frame's first two octets must keep (sections 5.2, 5.4, 5.5).

    Args:
        size: the length as the second octet has it, its mask bit taken off.
        inside: a fragmented message is under way.

    Raises:
        Fault: one is broken.
    """
    opcode = first & 0x0F
    if first & 0x70:
        raise Fault(1002, "a reserved bit is set")
    if opcode not in _KNOWN:
        raise Fault(1002, f"reserved opcode {opcode}")
    if opcode & 0x08:
        if not first & FIN:
            raise Fault(1002, "a control frame is fragmented")
        if size > _MAX_CONTROL:
            raise Fault(1002, "a control frame of more than 125 octets")
    elif opcode == CONTINUATION:
        if not inside:
            raise Fault(1002, "a continuation of nothing")
    elif inside:
        raise Fault(1002, "a new message inside a fragmented one")


def long_size(buf: bytes | bytearray, kind: int, pos: int, *, shortest: bool = True) -> int:
    """The length of a frame that stands before ``pos``, in two octets (`kind` 126) or in eight.

    Args:
        shortest: hold the peer to the shortest form (section 5.2), which hardly any receiver does.

    Raises:
        Fault: it is of more than 63 bits, or not in its shortest form.
    """
    if kind == 126:
        size = buf[pos - 2] << 8 | buf[pos - 1]
        if size >= 126 or not shortest:
            return size
    else:
        size = int.from_bytes(buf[pos - 8 : pos], "big")
        if size >> 63:
            raise Fault(1002, "a length of more than 63 bits")
        if size > 0xFFFF or not shortest:
            return size
    raise Fault(1002, "a length is not in its shortest form")


class Decoder:
    """Frames of one direction of one connection.

    Args:
        masked: whether the peer is the client: its frames must be masked, a server's must not be (section 5.1).
        max_message: octets of the largest message; a frame that would pass it fails by its header alone.
        message: is given each whole message, (1 text | 2 binary, payload). Text is valid UTF-8.
        control: is given each control frame, (8 close | 9 ping | 10 pong, payload).

    Attributes:
        max_message: as above; another holds from the next frame on.
        need: after `feed`, octets of the frame that is not yet whole, header included; 0 when its header is
            not whole either.
        fault: None, or (close code, detail) once the peer broke a rule. Nothing is delivered afterwards.
        stopped: set by the owner to have nothing more delivered, not even what was read already.
    """

    __slots__ = (
        "_control",
        "_fragments",
        "_mask_bit",
        "_message",
        "_opcode",
        "fault",
        "max_message",
        "need",
        "stopped",
    )

    def __init__(self, *, masked: bool, max_message: int, message: Receiver, control: Receiver) -> None:
        self._mask_bit = 0x80 if masked else 0
        self.max_message = max_message
        self._message = message
        self._control = control
        self._opcode = 0  # of the fragmented message under way
        self._fragments: bytearray | None = None
        self.need = 0
        self.fault: tuple[int, str] | None = None
        self.stopped = False

    def deliver_to(self, message: Receiver) -> None:
        """Have the messages that come from now on given to another."""
        self._message = message

    def release(self) -> None:
        """Deliver nothing more, and let go of those who took: no cycle keeps a dead connection in memory."""
        self.stopped = True
        self._message = self._control = _nobody

    def feed(self, buf: bytearray, view: memoryview, pos: int, end: int) -> int:
        """Deliver the frames that stand whole in ``buf[pos:end]``; ``view`` is a view of the same bytes.

        Returns:
            Where the first octet stands that was not used: to be fed again, with more behind it. It is
            ``end`` after a fault or when `stopped`.
        """
        try:
            while not self.stopped:
                start = pos
                left = end - pos
                if left < 2:
                    self.need = 0
                    return start
                first = buf[pos]
                size = buf[pos + 1] ^ self._mask_bit
                if size > 127:
                    raise Fault(1002, "a frame is masked" if not self._mask_bit else "a frame is not masked")
                if first != 0x82 or self._opcode:
                    check_start(first, size, inside=self._opcode != 0)
                pos += 2
                if size >= 126:
                    pos += 2 if size == 126 else 8
                    if left < pos - start:
                        self.need = 0
                        return start
                    size = long_size(buf, size, pos)
                if size > self.max_message or (self._opcode and first & 0x08 == 0 and self._too_long(size)):
                    raise Fault(1009, f"a message of more than {self.max_message} octets")
                if self._mask_bit:
                    pos += 4
                    if end - pos < size:
                        self.need = pos + size - start
                        return start
                    payload = apply_mask(view[pos : pos + size], buf[pos - 4 : pos])
                else:
                    if end - pos < size:
                        self.need = pos + size - start
                        return start
                    payload = bytes(view[pos : pos + size])
                pos += size
                if first == 0x82:
                    self._message(BINARY, payload)
                else:
                    self._other(first, payload)
        except Fault as fault:
            self.fault = (fault.code, str(fault))
            self.stopped = True
        self.need = 0
        self._fragments = None
        return end

    def _too_long(self, size: int) -> bool:
        return self._fragments is not None and len(self._fragments) + size > self.max_message

    def _other(self, first: int, payload: bytes) -> None:
        """A whole frame that is not a binary message of its own."""
        opcode = first & 0x0F
        if opcode & 0x08:
            self._control(opcode, payload)
            return
        if opcode:
            if first & FIN:
                self._deliver(opcode, payload)
            else:
                self._opcode = opcode
                self._fragments = bytearray(payload)
            return
        assert self._fragments is not None
        self._fragments += payload
        if first & FIN:
            opcode, payload = self._opcode, bytes(self._fragments)
            self._opcode, self._fragments = 0, None
            self._deliver(opcode, payload)

    def _deliver(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT and not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                raise Fault(1007, "a text message is not UTF-8") from None
        self._message(opcode, payload)


def _nobody(opcode: int, payload: bytes) -> None:
    raise AssertionError("delivered after the end")


class ClientEncoder:
    """Frames of a client: each is masked with four unpredictable octets (section 5.3).

    The mask runs over header and payload in one go: the header is written XORed beforehand, with the mask so
    turned that it meets the payload in the right phase. That saves a copy of every message.
    """

    __slots__ = ("_at", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._at = _RANDOM_POOL

    def __call__(self, opcode: int, parts: Sequence[bytes | memoryview], final: int = FIN) -> bytes:
        """One frame of the joined parts; `final` is `FIN`, or 0 when more of the message follows."""
        at = self._at
        if at == _RANDOM_POOL:  # a system call for many masks
            self._pool = os.urandom(_RANDOM_POOL)
            at = 0
        self._at = at + 4
        pool = self._pool
        mask = pool[at : at + 4]
        size = sum(map(len, parts))
        if size < 126:
            # key = mask turned by two; octets 0-1 meet mask[0:2], octets 2-5 are the key itself: 0 after XOR
            lead = _masked_short(((0x0080 | (final | opcode) << 8 | size) ^ (mask[0] << 8 | mask[1])), 0)
        elif size < 0x10000:
            key = int.from_bytes(mask, "big")
            lead = _masked_medium((0x00FE0000 | (final | opcode) << 24 | size) ^ key, 0)
        else:
            key = int.from_bytes(mask[2:] + mask[:2], "big")
            lead = _masked_huge(
                (0x00FF | (final | opcode) << 8) ^ (mask[0] << 8 | mask[1]), size ^ (key << 32 | key), 0
            )
        return apply_mask(b"".join((lead, *parts)), mask)


def encode_plain(opcode: int, parts: Sequence[bytes | memoryview], final: int = FIN) -> bytes:
    """One frame of a server, which masks nothing, of the joined parts; `final` as a `ClientEncoder` takes it."""
    size = sum(map(len, parts))
    if size < 126:
        lead = _short(final | opcode, size)
    elif size < 0x10000:
        lead = _medium(final | opcode, 126, size)
    else:
        lead = _long(final | opcode, 127, size)
    return b"".join((lead, *parts))


def encode_close(code: int, reason: str) -> bytes:
    """The payload of a close frame; a reason that is too long is cut between two characters.

    Raises:
        ValueError: no endpoint may send that code (section 7.4).
    """
    octets = reason.encode("utf-8", "replace")
    if len(octets) > _MAX_REASON:
        reason = octets[:_MAX_REASON].decode("utf-8", "ignore")
    try:
        return Close(code, reason).serialize()
    except InvalidClose as error:
        raise ValueError(f"{error}: {code}") from None


def parse_close(payload: bytes) -> tuple[int, str]:
    """The code and the reason of a close frame's payload; 1005 when it carries none.

    Raises:
        ValueError: it is not valid (sections 5.5.1 and 7.4); a UnicodeDecodeError for a reason that is not
            UTF-8.
    """
    try:
        close = Close.parse(payload)
    except InvalidClose as error:
        raise ValueError(str(error)) from None
    return int(close.code), close.reason
