"""RFC 6455 as a table: what one end sends octet by octet, to a peer that is met direct and through the tunnel.

In the spirit of the Autobahn test suite's sections: framing (1), pings (2), reserved bits (3), opcodes (4),
fragmentation (5), UTF-8 (6), closing (7), and what a length may look like.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.ws_raw import BINARY, CLOSE, CONT, FIN, PING, PONG, TEXT, close_payload, frame

__all__ = ["CASES", "SERVED", "Case"]

EURO = "κόσμε€𝄞".encode()
LONG = "k" * 123


@dataclass(frozen=True, slots=True)
class Case:
    """One row.

    Attributes:
        name: of it.
        sent: what is sent, after which it closes with 1000 and reads to the end.
        end: what the sender does instead of closing: ``eof``.
        echo: the service says all back; without, what it reads does not hang on whether it still can.
        strict: a service may say another code than the tunnel's hop does: only that both refuse is compared.
    """

    name: str
    sent: bytes
    end: str = ""
    echo: bool = True
    strict: bool = True


class _Table:
    """The cases as a client sends them, masked, or as a service does."""

    def __init__(self, *, masked: bool) -> None:
        self.masked = masked

    def cases(self) -> list[Case]:
        """All rows."""
        return [
            *self._framing(),
            *self._pings(),
            *self._reserved(),
            *self._fragments(),
            *self._utf8(),
            *self._closing(),
            *self._ends(),
        ]

    def _one(self, first: int, payload: bytes = b"", **kwargs: int) -> bytes:
        return frame(first, payload, mask=self.masked, **kwargs)

    def _text(self, data: bytes) -> bytes:
        return self._one(FIN | TEXT, data)

    def _parts(self, opcode: int, *pieces: bytes, between: bytes = b"") -> bytes:
        """One message in fragments, something else between each two of them."""
        frames = [
            self._one((opcode if number == 0 else CONT) | (FIN if number == len(pieces) - 1 else 0), piece)
            for number, piece in enumerate(pieces)
        ]
        return between.join(frames)

    def _close(self, code: int, reason: str | bytes = b"") -> bytes:
        return self._one(FIN | CLOSE, close_payload(code, reason))

    def _framing(self) -> list[Case]:
        sizes = (0, 1, 125, 126, 127, 128, 65535, 65536, 131072)
        return [
            *(Case(f"1 text of {size}", self._text(b"*" * size)) for size in sizes),
            *(
                Case(f"1 binary of {size}", self._one(FIN | BINARY, bytes(range(256)) * (size // 256 + 1)))
                for size in sizes
            ),
            Case("1 a hundred texts in one piece", b"".join(self._text(b"%d" % n) for n in range(100)), echo=False),
            Case("1 length in 16 bits where 7 would do", self._one(FIN | TEXT, b"short", form=16)),
            Case("1 length in 64 bits where 7 would do", self._one(FIN | TEXT, b"short", form=64)),
            Case(
                "1 length with its highest bit",
                bytes((0x81, 0xFF if self.masked else 0x7F, 0x80)) + bytes(11),
                strict=False,
            ),
            Case("1 masked as it must not be", frame(FIN | TEXT, b"bare", mask=not self.masked)),
            Case(
                "1 good, then masked as it must not be",
                self._text(b"good") + frame(FIN | TEXT, b"bare", mask=not self.masked),
                echo=False,
            ),
        ]

    def _pings(self) -> list[Case]:
        return [
            Case("2 ping", self._one(FIN | PING)),
            Case("2 ping with payload", self._one(FIN | PING, b"are you there")),
            Case("2 ping of octets", self._one(FIN | PING, b"\x00\xff\xfe\xfd")),
            Case("2 ping of 125", self._one(FIN | PING, b"p" * 125)),
            Case("2 ping of 126", self._one(FIN | PING, b"p" * 126)),
            Case("2 unsolicited pong", self._one(FIN | PONG, b"nobody asked") + self._text(b"x")),
            Case("2 pong, ping, text", self._one(FIN | PONG) + self._one(FIN | PING, b"1") + self._text(b"x")),
            Case("2 ten pings", b"".join(self._one(FIN | PING, b"%d" % number) for number in range(10))),
            Case("2 fragmented ping", self._one(PING, b"half") + self._one(FIN | CONT, b"half")),
            Case("2 fragmented pong", self._one(PONG, b"half") + self._one(FIN | CONT, b"half")),
        ]

    def _reserved(self) -> list[Case]:
        return [
            *(
                Case(f"3 bits {bits:#x} on text", self._one(FIN | bits | TEXT, b"x"))
                for bits in (0x10, 0x20, 0x40, 0x70)
            ),
            *(Case(f"3 bits {bits:#x} on ping", self._one(FIN | bits | PING, b"x")) for bits in (0x10, 0x20, 0x40)),
            Case("3 bits on close", self._one(FIN | 0x40 | CLOSE, close_payload(1000))),
            Case("3 bits on a continuation", self._one(TEXT, b"x") + self._one(FIN | 0x40 | CONT, b"y")),
            Case("3 good, then bits", self._text(b"good") + self._one(FIN | 0x20 | TEXT, b"x"), echo=False),
            *(
                Case(f"4 opcode {opcode}", self._one(FIN | opcode, b"x"))
                for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
            ),
            Case("4 good, then opcode 3", self._text(b"good") + self._one(FIN | 3) + self._one(FIN | PING), echo=False),
        ]

    def _fragments(self) -> list[Case]:
        ping, pong = self._one(FIN | PING, b"between"), self._one(FIN | PONG, b"between")
        return [
            Case("5 text in two", self._parts(TEXT, b"frag", b"ment")),
            Case("5 binary in three, some empty", self._parts(BINARY, b"", b"mid", b"")),
            Case("5 all empty", self._parts(TEXT, b"", b"", b"")),
            Case("5 fifty fragments", self._parts(TEXT, *(b"%d " % number for number in range(50)))),
            Case("5 a ping between", self._parts(TEXT, b"a", b"b", b"c", between=ping)),
            Case("5 a pong between", self._parts(TEXT, b"a", b"b", between=pong)),
            Case("5 pings and pongs between", self._parts(BINARY, b"a", b"b", b"c", b"d", between=ping + pong)),
            Case("5 large fragments", self._parts(BINARY, b"a" * 70_000, b"b" * 70_000, between=ping)),
            Case("5 a close between", self._one(TEXT, b"half") + self._close(1001, "in between")),
            Case("5 never ended", self._one(TEXT, b"half")),
            Case("5 continuation of nothing", self._one(FIN | CONT, b"x")),
            Case("5 continuation of nothing, not final", self._one(CONT, b"x") + self._one(FIN | CONT, b"y")),
            Case(
                "5 continuation behind a whole message", self._text(b"whole") + self._one(FIN | CONT, b"x"), echo=False
            ),
            Case("5 text inside a message", self._one(TEXT, b"a") + self._text(b"b")),
            Case("5 binary inside a message", self._one(TEXT, b"a") + self._one(BINARY, b"b")),
        ]

    def _utf8(self) -> list[Case]:
        bad = {
            "overlong slash": b"\xc0\xaf",
            "overlong nul": b"\xe0\x80\x80",
            "surrogate": b"\xed\xa0\x80",
            "above the last": b"\xf4\x90\x80\x80",
            "five octets": b"\xf8\x88\x80\x80\x80",
            "cut short": EURO[:-1],
            "lone continuation": b"\x80",
            "ff": b"abc\xffdef",
        }
        return [
            Case("6 many scripts", self._text(EURO * 100)),
            Case("6 last code points", self._text("\ud7ff\ue000\ufffd\U0010ffff\x00".encode())),
            Case("6 cut inside a code point", self._parts(TEXT, EURO[:5], EURO[5:6], EURO[6:])),
            Case("6 octet by octet", self._parts(TEXT, *(EURO[at : at + 1] for at in range(len(EURO))))),
            *(Case(f"6 {name}", self._text(data)) for name, data in bad.items()),
            *(
                Case(f"6 {name} behind good text", self._text(b"good") + self._text(b"x" + data))
                for name, data in bad.items()
            ),
            Case("6 bad in the last fragment", self._parts(TEXT, "good €".encode(), b"\xff")),
            Case("6 cut short in fragments", self._parts(TEXT, EURO[:3], EURO[3:-1])),
            Case("6 bad octets as binary", self._one(FIN | BINARY, b"\xff\xfe\x80")),
        ]

    def _closing(self) -> list[Case]:
        good = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
        never = (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
        return [
            Case("7 without a code", self._one(FIN | CLOSE)),
            *(Case(f"7 code {code}", self._close(code)) for code in good),
            *(Case(f"7 code {code} and a reason", self._close(code, f"because {code} €")) for code in good),
            Case("7 longest reason", self._close(1000, LONG)),
            Case("7 reason too long", self._one(FIN | CLOSE, close_payload(1000, LONG + "k"))),
            Case("7 one octet", self._one(FIN | CLOSE, b"\x03")),
            *(Case(f"7 code {code} that nobody may send", self._close(code, "x")) for code in never),
            Case("7 reason not UTF-8", self._close(1000, b"\xff\xfe")),
            Case("7 text behind close", self._text(b"before") + self._close(1000, "bye") + self._text(b"behind")),
            Case("7 ping behind close", self._close(1000, "bye") + self._one(FIN | PING, b"x")),
            Case("7 two closes", self._close(3001, "first") + self._close(3002, "second")),
            Case(
                "7 texts, then close", self._text(b"1") + self._text(b"2") + self._text(b"3") + self._close(4001, "bye")
            ),
            Case("7 fragmented close", self._one(CLOSE, close_payload(1000)) + self._one(FIN | CONT, b"x")),
        ]

    def _ends(self) -> list[Case]:
        return [
            Case("8 end without close", b"", end="eof", echo=False),
            Case("8 text, then end without close", self._text(b"last words"), end="eof", echo=False),
            Case(
                "8 many texts, then end without close",
                b"".join(self._text(b"%d" % n) for n in range(500)),
                end="eof",
                echo=False,
            ),
            Case(
                "8 large message, then end without close",
                self._one(FIN | BINARY, b"x" * 300_000),
                end="eof",
                echo=False,
            ),
            Case("8 end inside a header", b"\x81", end="eof", echo=False),
            Case("8 end inside a payload", self._text(b"whole") + self._text(b"not whole")[:-3], end="eof", echo=False),
            Case("8 end inside a large payload", self._one(FIN | BINARY, b"x" * 300_000)[:-1], end="eof", echo=False),
            Case("8 end inside a message", self._one(TEXT, b"half"), end="eof", echo=False),
            Case("8 close, then end at once", self._close(1000, "going"), end="eof", echo=False),
            Case("8 text, close, then end at once", self._text(b"x") + self._close(1001, "tab"), end="eof", echo=False),
        ]


#: What a client sends, and what a service does.
CASES = _Table(masked=True).cases()
SERVED = _Table(masked=False).cases()
