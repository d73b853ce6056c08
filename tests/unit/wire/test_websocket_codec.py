"""The codec alone, in memory: what is sent is what arrives, however it is cut; each rule of RFC 6455 section 5."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.utils import apply_mask as slow_mask

from tunneld.wire import ws_codec
from tunneld.wire.ws_codec import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    ClientEncoder,
    Decoder,
    encode_close,
    encode_plain,
    parse_close,
)

LIMIT = 100_000
SIZES = (0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, LIMIT)


class Taken:
    """One end that reads: keeps what a decoder delivers, with the pieces that are cut put together."""

    def __init__(self, *, masked: bool, limit: int = LIMIT) -> None:
        self.got: list[tuple[int, bytes]] = []
        self.decoder = Decoder(masked=masked, max_message=limit, message=self._take, control=self._take)
        self.rest = bytearray()

    def _take(self, opcode: int, payload: bytes) -> None:
        assert type(payload) is bytes
        self.got.append((opcode, payload))

    def feed(self, data: bytes) -> None:
        buf = self.rest + data
        pos = self.decoder.feed(buf, memoryview(buf), 0, len(buf))
        assert 0 <= pos <= len(buf)
        self.rest = buf[pos:]
        if self.rest and self.decoder.need:
            assert self.decoder.need > len(self.rest)


def frame(first: int, payload: bytes, *, mask: bytes | None = b"\1\2\3\4", form: int | None = None) -> bytes:
    """Any frame, valid or not: `form` forces the length's form, 126 or 127."""
    size = len(payload)
    if form is None:
        form = size if size < 126 else 126 if size < 65536 else 127
    bit = 0 if mask is None else 0x80
    lead = struct.pack("!BB", first, bit | form)
    lead += {126: struct.pack("!H", size & 0xFFFF), 127: struct.pack("!Q", size)}.get(form, b"")
    return lead + (payload if mask is None else mask + slow_mask(payload, mask))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_what_is_encoded_is_what_another_implementation_reads(size: int, opcode: int) -> None:
    payload = bytes(i & 0x7F for i in range(size))
    parts = [payload[:3], payload[3 : size // 2], payload[max(3, size // 2) :]]
    if size < 3:
        parts = [payload]
    encoded = ClientEncoder()(opcode, parts)
    plain = encode_plain(opcode, parts)
    assert plain == Frame(Opcode(opcode), payload).serialize(mask=False)
    assert len(encoded) == len(plain) + 4
    at = len(encoded) - size
    assert encoded[1] & 0x80
    assert encoded[2 : at - 4] == plain[2 : at - 4]
    assert slow_mask(encoded[at:], encoded[at - 4 : at]) == payload
    for data, masked in ((encoded, True), (plain, False)):
        end = Taken(masked=masked)
        end.feed(data)
        assert end.got == [(opcode, payload)]
        assert not end.rest


def test_masks_do_not_repeat() -> None:
    encode = ClientEncoder()
    keys = {encode(BINARY, (b"",))[2:] for _ in range(3000)}
    assert len(keys) > 2990


@pytest.mark.parametrize("size", SIZES)
def test_without_the_c_module_the_codec_is_the_same(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws_codec, "apply_mask", slow_mask)
    end = Taken(masked=True)
    payload = b"\xa5" * size
    end.feed(ClientEncoder()(BINARY, (payload,)))
    assert end.got == [(BINARY, payload)]


messages = st.lists(
    st.one_of(
        st.tuples(st.just(BINARY), st.binary(max_size=300)),
        st.tuples(st.just(TEXT), st.text(max_size=80).map(str.encode)),
        st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)),
        st.tuples(st.just(BINARY), st.sampled_from([65535, 65536, 70_000]).map(bytes)),
    ),
    max_size=8,
)


@given(messages, st.booleans(), st.lists(st.integers(0, 1 << 17), max_size=12))
def test_any_cut_gives_the_same_messages(sent: list[tuple[int, bytes]], masked: bool, cuts: list[int]) -> None:
    encode = ClientEncoder() if masked else encode_plain
    wire = b"".join(encode(opcode, (payload,)) for opcode, payload in sent)
    end = Taken(masked=masked)
    last = 0
    for cut in [*sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]:
        end.feed(wire[last:cut])
        last = cut
    assert end.decoder.fault is None
    assert end.got == sent
    assert not end.rest


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=6), st.sampled_from([TEXT, BINARY]))
def test_fragments_are_put_together_around_control_frames(payload: bytes, cuts: list[int], opcode: int) -> None:
    if opcode == TEXT:
        payload = payload.hex().encode()
    edges = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    pieces = [payload[a:b] for a, b in itertools.pairwise(edges)]
    end = Taken(masked=True)
    for index, piece in enumerate(pieces):
        fin = 0x80 if index == len(pieces) - 1 else 0
        end.feed(frame(fin | (0 if index else opcode), piece))
        if not fin:
            end.feed(frame(0x80 | PING, b"between"))
    assert [each for each in end.got if each[0] != PING] == [(opcode, payload)]
    assert len(end.got) == len(pieces)


RULES = [
    ("RSV1", frame(0xC2, b"x"), 1002, "reserved bit"),
    ("RSV2", frame(0xA1, b"x"), 1002, "reserved bit"),
    ("RSV3 on a ping", frame(0x99, b"x"), 1002, "reserved bit"),
    *((f"opcode {n}", frame(0x80 | n, b""), 1002, "reserved opcode") for n in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    ("no mask", frame(0x82, b"x", mask=None), 1002, "not masked"),
    ("no mask, long", frame(0x82, b"x" * 300, mask=None), 1002, "not masked"),
    ("ping of 126", frame(0x89, b"x" * 126), 1002, "more than 125"),
    ("ping in a long form", frame(0x89, b"x" * 5, form=126), 1002, "more than 125"),
    ("close of 65536", frame(0x88, b"x" * 65536), 1002, "more than 125"),
    ("fragmented ping", frame(0x09, b"x"), 1002, "control frame is fragmented"),
    ("fragmented close", frame(0x08, b""), 1002, "control frame is fragmented"),
    ("continuation first", frame(0x80, b"x"), 1002, "continuation of nothing"),
    ("open continuation first", frame(0x00, b"x"), 1002, "continuation of nothing"),
    ("text in text", frame(0x01, b"x") + frame(0x81, b"x"), 1002, "inside a fragmented"),
    ("binary in binary", frame(0x02, b"x") + frame(0x82, b"x"), 1002, "inside a fragmented"),
    ("continuation after the end", frame(0x01, b"") + frame(0x80, b"") + frame(0x80, b""), 1002, "of nothing"),
    ("125 in 16 bits", frame(0x82, b"x" * 125, form=126), 1002, "shortest form"),
    ("0 in 16 bits", frame(0x81, b"", form=126), 1002, "shortest form"),
    ("65535 in 64 bits", frame(0x82, b"x" * 65535, form=127), 1002, "shortest form"),
    ("length of 64 bits", b"\x82\xff\x80" + bytes(7), 1002, "63 bits"),
    ("text not UTF-8", frame(0x81, b"\xc3\x28"), 1007, "not UTF-8"),
    ("surrogate", frame(0x81, b"\xed\xa0\x80"), 1007, "not UTF-8"),
    ("overlong", frame(0x81, b"\xc0\xaf"), 1007, "not UTF-8"),
    ("torn at the end", frame(0x81, "é".encode()[:1]), 1007, "not UTF-8"),
    ("fragments not UTF-8", frame(0x01, b"\xe2\x82") + frame(0x80, b"\x28"), 1007, "not UTF-8"),
    ("too large", frame(0x82, bytes(LIMIT + 1))[:10], 1009, f"more than {LIMIT}"),
    ("huge", b"\x82\xff\x7f" + b"\xff" * 7, 1009, f"more than {LIMIT}"),
    ("fragments too large", frame(0x02, bytes(60000)) + frame(0x80, bytes(60000))[:4], 1009, "more than"),
]


@pytest.mark.parametrize(("wire", "code", "words"), [row[1:] for row in RULES], ids=[row[0] for row in RULES])
@pytest.mark.parametrize("step", [1 << 20, 1])
def test_a_broken_rule_is_a_fault_and_nothing_after_it_counts(wire: bytes, code: int, words: str, step: int) -> None:
    if step == 1 and len(wire) > 70_000:
        step = 1021
    end = Taken(masked=True)
    wire = frame(0x82, b"before") + wire + frame(0x82, b"after") * 3
    for at in range(0, len(wire), step):
        end.feed(wire[at : at + step])
    assert end.decoder.fault is not None
    assert end.decoder.fault[0] == code
    assert words in end.decoder.fault[1]
    assert end.got[0] == (BINARY, b"before")
    assert (BINARY, b"after") not in end.got
    assert end.decoder.stopped


FINE = [
    ("text of two fragments, a character across them", frame(0x01, b"\xe2\x82") + frame(0x80, b"\xac")),
    ("exactly the limit", frame(0x82, bytes(LIMIT))),
    ("fragments of exactly the limit", frame(0x02, bytes(LIMIT - 1)) + frame(0x80, b"x")),
    ("empty fragments", frame(0x02, b"") + frame(0x00, b"") * 50 + frame(0x80, b"")),
    ("empty text", frame(0x81, b"")),
    ("NUL and the last plane", frame(0x81, "\0\U0010ffff".encode())),
]


@pytest.mark.parametrize("wire", [row[1] for row in FINE], ids=[row[0] for row in FINE])
def test_what_is_allowed_is_one_message(wire: bytes) -> None:
    end = Taken(masked=True)
    end.feed(wire)
    assert end.decoder.fault is None
    assert len(end.got) == 1


def test_a_server_must_not_mask() -> None:
    end = Taken(masked=False)
    end.feed(frame(0x82, b"x", mask=None) + frame(0x82, b"x"))
    assert end.got == [(BINARY, b"x")]
    assert end.decoder.fault == (1002, "a frame is masked")


def test_a_control_frame_between_fragments_does_not_count_towards_the_limit() -> None:
    end = Taken(masked=True, limit=200)
    end.feed(frame(0x02, bytes(190)) + frame(0x89, bytes(100)) + frame(0x80, bytes(10)))
    assert [len(payload) for _, payload in end.got] == [100, 200]


def test_who_is_stopped_hears_nothing_more() -> None:
    got = []

    def take(opcode: int, payload: bytes) -> None:
        got.append(payload)
        decoder.stopped = True

    decoder = Decoder(masked=False, max_message=100, message=take, control=take)
    buf = bytearray(frame(0x82, b"one", mask=None) + frame(0x82, b"two", mask=None))
    assert decoder.feed(buf, memoryview(buf), 0, len(buf)) == len(buf)
    assert got == [b"one"]
    assert decoder.fault is None


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4999])
def test_close_codes_that_may_be_sent(code: int) -> None:
    assert parse_close(encode_close(code, "why: é")) == (code, "why: é")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_close_codes_that_may_not_be_sent(code: int) -> None:
    with pytest.raises(ValueError, match="status code"):
        encode_close(code, "")
    with pytest.raises(ValueError, match="status code"):
        parse_close(struct.pack("!H", code))


def test_a_close_payload_is_whole_or_empty() -> None:
    assert parse_close(b"") == (1005, "")
    with pytest.raises(ValueError, match="too short"):
        parse_close(b"\x03")
    with pytest.raises(UnicodeDecodeError):
        parse_close(b"\x03\xe8\xff")


def test_a_long_reason_is_cut_between_characters() -> None:
    payload = encode_close(4000, "é" * 100)
    assert len(payload) == 124
    assert parse_close(payload) == (4000, "é" * 61)
    assert Taken(masked=False).decoder.fault is None
    end = Taken(masked=True)
    end.feed(ClientEncoder()(CLOSE, (payload,)))
    assert end.got == [(CLOSE, payload)]
