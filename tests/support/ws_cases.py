"""RFC 6455 as a table: what a client sends octet by octet, for services that are asked direct and through the tunnel.

In the spirit of the Autobahn test suite's sections: framing (1), pings (2), reserved bits (3), opcodes (4),
fragmentation (5), UTF-8 (6), closing (7), and what a length may look like.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.ws_raw import BINARY, CLOSE, CONT, FIN, PING, PONG, TEXT, close_payload, frame

__all__ = ["CASES", "Case"]

EURO = "κόσμε€𝄞".encode()
LONG = "k" * 123


@dataclass(frozen=True, slots=True)
class Case:
    """One row.

    Attributes:
        name: of it.
        sent: what the client sends, after which it closes with 1000 and reads to the end.
        end: what it does instead of closing: ``eof``.
        echo: the service says all back; without, what it reads does not hang on whether it still can.
        strict: a service may say another code than the tunnel's hop does: only that both refuse is compared.
    """

    name: str
    sent: bytes
    end: str = ""
    echo: bool = True
    strict: bool = True


def _one(first: int, payload: bytes = b"", **kwargs: int) -> bytes:
    return frame(first, payload, mask=True, **kwargs)


def _text(data: bytes) -> bytes:
    return _one(FIN | TEXT, data)


def _parts(opcode: int, *pieces: bytes, between: bytes = b"") -> bytes:
    """One message in fragments, something else between each two of them."""
    frames = [
        _one((opcode if number == 0 else CONT) | (FIN if number == len(pieces) - 1 else 0), piece)
        for number, piece in enumerate(pieces)
    ]
    return between.join(frames)


def _close(code: int, reason: str | bytes = b"") -> bytes:
    return _one(FIN | CLOSE, close_payload(code, reason))


def _framing() -> list[Case]:
    sizes = (0, 1, 125, 126, 127, 128, 65535, 65536, 131072)
    return [
        *(Case(f"1 text of {size}", _text(b"*" * size)) for size in sizes),
        *(Case(f"1 binary of {size}", _one(FIN | BINARY, bytes(range(256)) * (size // 256 + 1))) for size in sizes),
        Case("1 a hundred texts in one piece", b"".join(_text(b"%d" % n) for n in range(100)), echo=False),
        Case("1 length in 16 bits where 7 would do", _one(FIN | TEXT, b"short", form=16)),
        Case("1 length in 64 bits where 7 would do", _one(FIN | TEXT, b"short", form=64)),
        Case("1 length with its highest bit", b"\x81\xff\x80" + bytes(11), strict=False),
        Case("1 not masked", frame(FIN | TEXT, b"bare", mask=False)),
        Case("1 good, then not masked", _text(b"good") + frame(FIN | TEXT, b"bare", mask=False)),
    ]


def _pings() -> list[Case]:
    return [
        Case("2 ping", _one(FIN | PING)),
        Case("2 ping with payload", _one(FIN | PING, b"are you there")),
        Case("2 ping of octets", _one(FIN | PING, b"\x00\xff\xfe\xfd")),
        Case("2 ping of 125", _one(FIN | PING, b"p" * 125)),
        Case("2 ping of 126", _one(FIN | PING, b"p" * 126)),
        Case("2 unsolicited pong", _one(FIN | PONG, b"nobody asked") + _text(b"x")),
        Case("2 pong, ping, text", _one(FIN | PONG) + _one(FIN | PING, b"1") + _text(b"x")),
        Case("2 ten pings", b"".join(_one(FIN | PING, b"%d" % number) for number in range(10))),
        Case("2 fragmented ping", _one(PING, b"half") + _one(FIN | CONT, b"half")),
        Case("2 fragmented pong", _one(PONG, b"half") + _one(FIN | CONT, b"half")),
    ]


def _reserved() -> list[Case]:
    return [
        *(Case(f"3 bits {bits:#x} on text", _one(FIN | bits | TEXT, b"x")) for bits in (0x10, 0x20, 0x40, 0x70)),
        *(Case(f"3 bits {bits:#x} on ping", _one(FIN | bits | PING, b"x")) for bits in (0x10, 0x20, 0x40)),
        Case("3 bits on close", _one(FIN | 0x40 | CLOSE, close_payload(1000))),
        Case("3 bits on a continuation", _one(TEXT, b"x") + _one(FIN | 0x40 | CONT, b"y")),
        Case("3 good, then bits", _text(b"good") + _one(FIN | 0x20 | TEXT, b"x")),
        *(Case(f"4 opcode {opcode}", _one(FIN | opcode, b"x")) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        Case("4 good, then opcode 3", _text(b"good") + _one(FIN | 3) + _one(FIN | PING)),
    ]


def _fragments() -> list[Case]:
    ping, pong = _one(FIN | PING, b"between"), _one(FIN | PONG, b"between")
    return [
        Case("5 text in two", _parts(TEXT, b"frag", b"ment")),
        Case("5 binary in three, some empty", _parts(BINARY, b"", b"mid", b"")),
        Case("5 all empty", _parts(TEXT, b"", b"", b"")),
        Case("5 fifty fragments", _parts(TEXT, *(b"%d " % number for number in range(50)))),
        Case("5 a ping between", _parts(TEXT, b"a", b"b", b"c", between=ping)),
        Case("5 a pong between", _parts(TEXT, b"a", b"b", between=pong)),
        Case("5 pings and pongs between", _parts(BINARY, b"a", b"b", b"c", b"d", between=ping + pong)),
        Case("5 large fragments", _parts(BINARY, b"a" * 70_000, b"b" * 70_000, between=ping)),
        Case("5 a close between", _one(TEXT, b"half") + _close(1001, "in between")),
        Case("5 never ended", _one(TEXT, b"half")),
        Case("5 continuation of nothing", _one(FIN | CONT, b"x")),
        Case("5 continuation of nothing, not final", _one(CONT, b"x") + _one(FIN | CONT, b"y")),
        Case("5 continuation behind a whole message", _text(b"whole") + _one(FIN | CONT, b"x")),
        Case("5 text inside a message", _one(TEXT, b"a") + _text(b"b")),
        Case("5 binary inside a message", _one(TEXT, b"a") + _one(BINARY, b"b")),
    ]


def _utf8() -> list[Case]:
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
        Case("6 many scripts", _text(EURO * 100)),
        Case("6 last code points", _text("\ud7ff\ue000\ufffd\U0010ffff\x00".encode())),
        Case("6 cut inside a code point", _parts(TEXT, EURO[:5], EURO[5:6], EURO[6:])),
        Case("6 octet by octet", _parts(TEXT, *(EURO[at : at + 1] for at in range(len(EURO))))),
        *(Case(f"6 {name}", _text(data)) for name, data in bad.items()),
        *(Case(f"6 {name} behind good text", _text(b"good") + _text(b"x" + data)) for name, data in bad.items()),
        Case("6 bad in the last fragment", _parts(TEXT, "good €".encode(), b"\xff")),
        Case("6 cut short in fragments", _parts(TEXT, EURO[:3], EURO[3:-1])),
        Case("6 bad octets as binary", _one(FIN | BINARY, b"\xff\xfe\x80")),
    ]


def _closing() -> list[Case]:
    good = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
    never = (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    return [
        Case("7 without a code", _one(FIN | CLOSE)),
        *(Case(f"7 code {code}", _close(code)) for code in good),
        *(Case(f"7 code {code} and a reason", _close(code, f"because {code} €")) for code in good),
        Case("7 longest reason", _close(1000, LONG)),
        Case("7 reason too long", _one(FIN | CLOSE, close_payload(1000, LONG + "k"))),
        Case("7 one octet", _one(FIN | CLOSE, b"\x03")),
        *(Case(f"7 code {code} that nobody may send", _close(code, "x")) for code in never),
        Case("7 reason not UTF-8", _close(1000, b"\xff\xfe")),
        Case("7 text behind close", _text(b"before") + _close(1000, "bye") + _text(b"behind")),
        Case("7 ping behind close", _close(1000, "bye") + _one(FIN | PING, b"x")),
        Case("7 two closes", _close(3001, "first") + _close(3002, "second")),
        Case("7 texts, then close", _text(b"1") + _text(b"2") + _text(b"3") + _close(4001, "bye")),
        Case("7 fragmented close", _one(CLOSE, close_payload(1000)) + _one(FIN | CONT, b"x")),
    ]


def _ends() -> list[Case]:
    return [
        Case("8 end without close", b"", end="eof", echo=False),
        Case("8 text, then end without close", _text(b"last words"), end="eof", echo=False),
        Case(
            "8 many texts, then end without close",
            b"".join(_text(b"%d" % n) for n in range(500)),
            end="eof",
            echo=False,
        ),
        Case("8 large message, then end without close", _one(FIN | BINARY, b"x" * 300_000), end="eof", echo=False),
        Case("8 end inside a header", b"\x81", end="eof", echo=False),
        Case("8 end inside a payload", _text(b"whole") + _text(b"not whole")[:-3], end="eof", echo=False),
        Case("8 end inside a large payload", _one(FIN | BINARY, b"x" * 300_000)[:-1], end="eof", echo=False),
        Case("8 end inside a message", _one(TEXT, b"half"), end="eof", echo=False),
        Case("8 close, then end at once", _close(1000, "going"), end="eof", echo=False),
        Case("8 text, close, then end at once", _text(b"x") + _close(1001, "tab"), end="eof", echo=False),
    ]


CASES = [*_framing(), *_pings(), *_reserved(), *_fragments(), *_utf8(), *_closing(), *_ends()]
