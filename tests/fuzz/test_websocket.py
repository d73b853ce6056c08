"""Any octets at all: only documented ends, and cutting the input differently changes nothing."""

import asyncio
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.uri import parse_uri

from tunneld.errors import VisitorError
from tunneld.wire.ws_accept import accept
from tunneld.wire.ws_codec import MAX_HEADER, ClientEncoder, Decoder, parse_close
from tunneld.wire.ws_connect import UpgradeFailed, UpgradeRefused, _Upgrade

LIMIT = 2000


def decode(data: bytes, *, masked: bool, step: int):
    """What comes of these octets: the messages, and the fault."""
    got: list[tuple[int, bytes]] = []
    decoder = Decoder(
        masked=masked,
        max_message=LIMIT,
        message=lambda opcode, payload: got.append((opcode, payload)),
        control=lambda opcode, payload: got.append((opcode, payload)),
    )
    rest = bytearray()
    for at in range(0, len(data), step):
        buf = rest + data[at : at + step]
        rest = buf[decoder.feed(buf, memoryview(buf), 0, len(buf)) :]
        assert decoder.need <= LIMIT + MAX_HEADER
        assert len(rest) < (decoder.need or MAX_HEADER)
        if decoder._fragments is not None:
            assert len(decoder._fragments) <= LIMIT
    return got, decoder.fault, bytes(rest)


lead = st.one_of(st.sampled_from([0x82, 0x81, 0x01, 0x02, 0x80, 0x00, 0x88, 0x89, 0x8A]), st.integers(0, 255))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Something like a frame, with lengths that may lie."""
    first, bit = draw(lead), draw(st.sampled_from([0, 0x80, 0x80, 0x80]))
    payload = draw(st.one_of(st.binary(max_size=140), st.text(max_size=30).map(str.encode)))
    size = draw(st.one_of(st.just(len(payload)), st.sampled_from([0, 125, 126, LIMIT, LIMIT + 1, 1 << 62])))
    form = draw(st.sampled_from([0, 0, 0, 126, 127]))
    if not form and size > 125:
        form = 126 if size < 65536 else 127
    head = struct.pack("!BB", first, bit | (form or size))
    if form:
        head += struct.pack("!H", size & 0xFFFF) if form == 126 else struct.pack("!Q", size)
    return head + (b"\0\0\0\0" if bit else b"") + payload


octets = st.one_of(st.binary(max_size=300), st.lists(frames(), max_size=8).map(b"".join))


@settings(max_examples=400, deadline=None)
@given(octets, st.booleans(), st.integers(2, 50))
def test_garbage_is_a_fault_with_a_named_code_however_it_is_cut(data: bytes, masked: bool, step: int) -> None:
    whole = decode(data, masked=masked, step=max(1, len(data)))
    got, fault, _ = whole
    for opcode, payload in got:
        assert opcode in (1, 2, 8, 9, 10)
        assert len(payload) <= (LIMIT if opcode < 8 else 125)
        if opcode == 1:
            payload.decode()
        if opcode == 8:
            try:
                code, reason = parse_close(payload)
            except ValueError:
                pass
            else:
                assert 1000 <= code < 5000
                assert len(reason.encode()) <= 123
    assert fault is None or fault[0] in (1002, 1007, 1009)
    assert decode(data, masked=masked, step=1) == whole
    assert decode(data, masked=masked, step=step) == whole


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.data())
def test_one_octet_changed(payloads: list[bytes], data: st.DataObject) -> None:
    encode = ClientEncoder()
    wire = bytearray(b"".join(encode(2, (payload,)) for payload in payloads))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= data.draw(st.integers(1, 255))
    whole = decode(bytes(wire), masked=True, step=len(wire))
    assert decode(bytes(wire), masked=True, step=1) == whole
    assert whole[1] is None or whole[1][0] in (1002, 1007, 1009)


class Deaf(asyncio.Transport):
    def write(self, data) -> None:
        pass

    def pause_reading(self) -> None:
        pass


def answered(data: bytes, step: int) -> str:
    """How a client's upgrade ends that is answered with these octets and the end of the stream."""
    loop = asyncio.new_event_loop()
    try:
        upgrade = _Upgrade(loop, parse_uri("ws://x/"), ["tunneld.v3"], [])
        upgrade.connection_made(Deaf())
        for at in range(0, len(data), step):
            upgrade.data_received(data[at : at + step])
        upgrade.eof_received()
        upgrade.connection_lost(None)
        error = upgrade.done.exception()
        if isinstance(error, UpgradeRefused):
            return f"{error.status} {error.code} {error.retry_after} {error.headers} {error.body!r}"
        assert isinstance(error, UpgradeFailed | ConnectionError)
        return type(error).__name__
    finally:
        loop.close()


answer = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"HTTP/1.1 101 Switching Protocols\r\n",
                b"HTTP/1.1 401 No\r\n",
                b"HTTP/1.1 100 Continue\r\n",
                b"HTTP/1.0 503 Later\r\n",
                b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
                b"Sec-WebSocket-Accept: x\r\n",
                b"Content-Length: 5\r\n",
                b"Content-Length: 50000000000\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Retry-After: 9\r\n",
                b"Retry-After: \xb2\r\n",
                b"X-Tunnel-Error: replaced\r\n",
                b"\r\n",
                b"5\r\nhello\r\n0\r\n\r\n",
                b"hello",
            ]
        ),
        st.binary(max_size=20),
    ),
    max_size=10,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(answer)
@example(b"HTTP/1.1 101 S\r\nTransfer-Encoding: chunked\r\n\r\n")
@example(b"HTTP/1.1 101 S\r\nContent-Length: 5\r\n\r\n")
def test_any_answer_to_an_upgrade_ends_it_in_a_documented_way(data: bytes) -> None:
    assert answered(data, 1) == answered(data, max(1, len(data)))


class Head:
    version = "1.1"
    method = "GET"
    target = "/"

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.headers = headers


latin = st.text(st.characters(max_codepoint=255), max_size=30)
names = st.sampled_from(
    ["Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol",
     "Sec-WebSocket-Extensions", "Origin"]
)  # fmt: skip
values = st.one_of(latin, st.sampled_from(["websocket", "Upgrade", "13", "A" * 22 + "==", "a, b", '"', ",", ";"]))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(names, values), max_size=9))
def test_any_headers_are_refused_with_a_known_code(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(VisitorError) as caught:
        # a subprotocol that nobody can name: every offer is refused before the transport is touched
        accept(None, None, Head(headers), b"", subprotocols=["\0"], max_message=1)  # type: ignore[arg-type]
    assert caught.value.code in ("bad_request", "upgrade_required")
