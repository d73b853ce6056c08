"""The wire's bytes, as golden hex: they cannot drift by themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sessions import SMALL, Joined
from tunneld.errors import RemoteError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, FIN, HEAD, OPEN, STOP, WINDOW


@pytest.mark.parametrize(
    ("made", "golden"),
    [
        (frames.frame(OPEN, 1, b"{}"), "01 00000001 00000002 7b7d"),
        (frames.frame(OPEN | FIN, 2, b"{}"), "81 00000002 00000002 7b7d"),
        (frames.frame(HEAD, 3, b"{}"), "02 00000003 00000002 7b7d"),
        (frames.frame(HEAD | FIN, 3, b"{}"), "82 00000003 00000002 7b7d"),
        (frames.frame(DATA, 0xFFFFFFFF, b"abc"), "03 ffffffff 00000003 616263"),
        (frames.frame(DATA | FIN, 4, b"a"), "83 00000004 00000001 61"),
        (frames.frame(END, 5, b""), "04 00000005 00000000"),
        (frames.frame(STOP, 6, b""), "05 00000006 00000000"),
        (frames.window(7, 65536), "06 00000007 00000004 00010000"),
        (frames.ack(2**33 + 1), "07 00000000 00000008 0000000200000001"),
    ],
)
def test_golden_bytes(made: bytes, golden: str) -> None:
    assert made == bytes.fromhex(golden.replace(" ", ""))


def test_a_whole_exchange_on_the_wire() -> None:
    joined = Joined(SMALL)
    server = joined.open(ended=True)
    joined.write("server")
    opcode, opening = joined.connection.to["agent"][0]
    body = b'{"request_id":"r1","method":"GET","path":"/1","headers":[["X-N","1"]],"client":"::1"}'
    assert (opcode, opening) == (2, bytes.fromhex("8100000001") + len(body).to_bytes(4, "big") + body)
    joined.deliver("agent")
    agent = joined.sides["r1", "agent"]
    agent.answer(200)
    agent.send(3)
    agent.finish()
    joined.write("agent")
    head = b'{"status":200,"headers":[["X","y"]]}'
    expected = bytes.fromhex("0200000001") + len(head).to_bytes(4, "big") + head + bytes.fromhex("830000000100000003")
    opcode, answer = joined.connection.to["server"][0]
    assert (opcode, answer[:-3]) == (2, expected)
    joined.deliver("server")
    assert server.ends == 1
    assert server.over
    assert agent.over


def test_several_frames_in_one_message_are_split_in_order() -> None:
    message = frames.frame(HEAD, 1, b"h") + frames.frame(DATA | FIN, 1, b"d") + frames.window(2, 9)
    assert list(frames.split(message)) == [(HEAD, 1, b"h"), (DATA | FIN, 1, b"d"), (WINDOW, 2, b"\0\0\0\x09")]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "empty"),
        (b"\x03\0\0\0\x01\0\0\0", "header is cut"),
        (frames.frame(DATA, 1, b"abc")[:-1], "payload is cut"),
        (frames.frame(DATA, 1, b"abc") + b"\x03", "header is cut"),
        (frames.frame(DATA, 1, bytes(65537)), "DATA of 65537 bytes"),
        (frames.frame(DATA | FIN, 1, bytes(65537)), "DATA of 65537 bytes"),
        (frames.frame(0, 1, b""), "0x00"),
        (frames.frame(8, 1, b""), "0x08"),
        (frames.frame(0x3F, 1, b""), "0x3f"),
        (frames.frame(END | FIN, 1, b""), "END bit"),
        (frames.frame(STOP | FIN, 1, b""), "END bit"),
        (frames.frame(WINDOW | FIN, 1, b"\0\0\0\1"), "END bit"),
        (frames.frame(STOP, 1, b"") + frames.ack(1), "0x07"),
        (frames.frame(7 | FIN, 0, bytes(8)), "0x07"),
    ],
)
def test_what_is_no_message_of_frames(message: bytes, words: str) -> None:
    with pytest.raises(RemoteError, match=words) as caught:
        list(frames.split(message))
    assert caught.value.code == "protocol_error"


@pytest.mark.parametrize("kind", [0x40, 0x45, 0x7F, 0x40 | FIN, 0x7F | FIN])
def test_types_of_newer_peers_pass(kind: int) -> None:
    assert list(frames.split(frames.frame(kind, 1, b"x"))) == [(kind, 1, b"x")]


def test_an_ack_is_told_from_frames() -> None:
    assert frames.parse_ack(frames.ack(2**64 - 1)) == 2**64 - 1
    assert frames.parse_ack(frames.frame(STOP, 1, b"")) is None


@pytest.mark.parametrize(
    "message",
    [frames.ack(1)[:-1], frames.ack(1) + b"x", frames.frame(7, 1, bytes(8)), b"\x07", frames.ack(1) + frames.ack(2)],
)
def test_acks_of_a_wrong_shape(message: bytes) -> None:
    with pytest.raises(RemoteError, match="protocol_error"):
        frames.parse_ack(message)


@pytest.mark.parametrize("payload", [b"", b"\0\0\0", b"\0\0\0\0", b"\0\0\0\1\0"])
def test_windows_of_a_wrong_shape(payload: bytes) -> None:
    with pytest.raises(RemoteError, match="protocol_error"):
        frames.parse_window(payload)


def test_the_largest_message() -> None:
    assert frames.max_message(64 * 1024) == 64 * 1024 + 2 * 64 * 1024 + 1024


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4, 5, 6, 0x81, 0x83, 0x40]), st.integers(0, 2**32 - 1), st.binary())))
def test_what_is_joined_is_split_again(given_frames: list[tuple[int, int, bytes]]) -> None:
    message = b"".join(frames.frame(*one) for one in given_frames)
    if given_frames:
        assert list(frames.split(message)) == given_frames


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_frames_or_a_protocol_error(message: bytes) -> None:
    code = "protocol_error"
    try:
        joined = b"".join(frames.frame(*one) for one in frames.split(message))
        assert joined == message
    except RemoteError as error:
        code = error.code
    assert code == "protocol_error"
