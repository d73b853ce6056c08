"""WebSockets in a stream: which frames may stand where, what they cost, and that they arrive as they were sent."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.support.sessions import SMALL, Joined, kept
from tunneld.errors import LocalError, RemoteError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, HEAD, WINDOW
from tunneld.protocol.messages import Head, Headers, Open, encode
from tunneld.protocol.outgoing import TURN
from tunneld.protocol.session import Session
from tunneld.protocol.streams import Stream
from tunneld.protocol.websockets import (
    CLOSING,
    COST,
    FINAL,
    LEAST,
    MAX_PAYLOAD,
    FrameOrder,
    Frames,
    asks_for_websocket,
)

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
UPGRADE = [("Upgrade", "websocket"), ("Connection", "Upgrade")]


class Socket:
    """One end of a WebSocket: the sink of its stream, which notes what comes and takes as slowly as it is told."""

    def __init__(self, stream: Stream | None = None) -> None:
        self.stream: Stream = stream  # type: ignore[assignment]
        self.status = 0
        self.got: list[tuple[int, bytes]] = []
        self.sent: list[tuple[int, bytes]] = []
        self.untaken: deque[int] = deque()
        self.most = 0
        self.blocked = False
        self.ended = False

    def head(self, status: int, headers: Headers) -> None:
        self.status = status

    def data(self, data: bytes) -> None:
        assert not self.ended
        self.got.append((data[0], data[1:]))
        self.untaken.append(len(data) + COST)
        self.most = max(self.most, sum(self.untaken))

    def end(self, trailers: Headers) -> None:
        self.ended = True

    def stopped(self) -> None: ...

    def cancelled(self, reason: str) -> None:
        raise AssertionError(reason)

    def writable(self) -> None:
        assert self.blocked
        self.blocked = False

    def send(self, first: int, payload: bytes) -> None:
        self.sent.append((first, payload))
        self.blocked = not self.stream.send_frame(first, payload)

    def take(self, count: int) -> None:
        for _ in range(min(count, len(self.untaken))):
            self.stream.took(self.untaken.popleft())


def _opened(settings: object = SMALL) -> tuple[Joined, Socket, Socket]:
    """(sessions, the visitor's end, the service's), after HEAD 101."""
    joined = Joined(settings)  # type: ignore[arg-type]
    ends: list[Socket] = []

    def accept(stream: Stream, request: Open, ended: bool) -> Socket:
        assert not ended
        ends.append(Socket(stream))
        return ends[-1]

    joined.agent._accept = accept
    visitor = Socket()
    visitor.stream = joined.server.open(Open("r1", "GET", "/", UPGRADE), visitor, ended=False)
    joined.settle()
    (service,) = ends
    service.stream.send_head(101, [])
    joined.settle()
    assert visitor.status == 101
    return joined, visitor, service


def _merged(parts: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Messages and control frames, in the order of their ends."""
    found: list[tuple[int, bytes]] = []
    message: tuple[int, bytes] | None = None
    for first, payload in parts:
        if first & 0x08:
            found.append((first, payload))
            continue
        message = (first & 0x0F, payload) if message is None else (message[0], message[1] + payload)
        if first & FINAL:
            found.append(message)
            message = None
    if message is not None:
        found.append((-1, message[1]))
    return found


# -- what may stand where ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["start", "inside", "closed"])
def test_every_first_byte_in_every_place(before: str) -> None:
    for first in range(256):
        order = FrameOrder()
        if before == "inside":
            order.check(bytes((TEXT,)) + b"half")
            order.check(bytes((FINAL | PING,)))
        elif before == "closed":
            order.check(bytes((CLOSING,)) + b"\x03\xe8")
        opcode, final = first & 0x0F, bool(first & FINAL)
        good = not first & 0x70 and (
            (opcode in (CLOSE, PING, PONG) and final)
            or (opcode in (TEXT, BINARY) and before == "start")
            or (opcode == CONT and before == "inside")
        )
        if good and before != "closed":
            order.check(bytes((first,)) + b"x")
            if opcode < 8:
                assert order._inside is not final
        else:
            with pytest.raises(RemoteError) as caught:
                order.check(bytes((first,)) + b"x")
            assert caught.value.code == "protocol_error"


def test_a_control_frame_has_at_most_125_bytes() -> None:
    FrameOrder().check(bytes((FINAL | PING,)) + bytes(125))
    with pytest.raises(RemoteError):
        FrameOrder().check(bytes((FINAL | PING,)) + bytes(126))


def test_data_before_a_head_is_no_frame_and_no_frame_goes_before_it() -> None:
    joined = Joined(SMALL)
    side = joined.open(ended=False)
    joined.settle()
    with pytest.raises(LocalError):
        side.stream.send_frame(FINAL | TEXT, b"too early")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x40x", b"\x81x", b"\x03x", b"\x08x", bytes((FINAL | PING,)) + bytes(126), b"\x88\x03\xe8"],
)
def test_what_comes_from_the_peer_is_checked(payload: bytes) -> None:
    joined, _, _ = _opened()
    joined.server.receive(joined.server.epoch, frames.frame(DATA, 1, b"\x01half"), 0.0)
    if payload[:1] == b"\x88":  # a close may stand inside a message; nothing behind it
        joined.server.receive(joined.server.epoch, frames.frame(DATA, 1, payload), 0.0)
        payload = b"\x80behind"
    with pytest.raises(RemoteError) as caught:
        joined.server.receive(joined.server.epoch, frames.frame(DATA, 1, payload), 0.0)
    assert caught.value.code == "protocol_error"


@pytest.mark.parametrize(
    ("headers", "asks"),
    [
        (UPGRADE, True),
        ([("upgrade", "WebSocket"), ("CONNECTION", "keep-alive, Upgrade")], True),
        ([("Upgrade", "h2c, websocket"), ("Connection", "x"), ("Connection", "upgrade")], True),
        ([("Upgrade", "websocket")], False),
        ([("Connection", "Upgrade")], False),
        ([("Upgrade", "websocket2"), ("Connection", "Upgrade")], False),
        ([("Upgrade", "websocket"), ("Connection", "upgraded")], False),
    ],
)
def test_who_asks(headers: Headers, asks: bool) -> None:
    assert asks_for_websocket(headers) is asks


# -- what it costs -------------------------------------------------------------------------------------------


def _sent(session: Session) -> list[bytes]:
    """Payloads of the DATA that the session writes now."""
    found = []
    while (message := session.next_message(session.epoch, 0.0)) is not None:
        parts = frames.split(b"".join(message[1]))
        found += [payload for kind, _, payload in parts if kind & 0x7F == DATA]
    return found


def _with_credit(credit: int) -> tuple[Session, Socket]:
    """A server's session whose stream has just so much credit to send with."""
    session = Session(replace(SMALL, grace=0.0))
    session.attach(0, lambda: None)
    socket = Socket()
    socket.stream = session.open(Open("r1", "GET", "/", UPGRADE), socket, ended=False)
    session.next_message(session.epoch, 0.0)
    session.receive(session.epoch, frames.frame(HEAD, 1, encode(Head(101, []))), 0.0)
    socket.stream._credit = credit
    return session, socket


@pytest.mark.parametrize(
    ("credit", "frame", "goes"),
    [
        (LEAST, (FINAL | TEXT, b""), []),
        (LEAST + 1, (FINAL | TEXT, b""), [b"\x81"]),
        (LEAST + 1, (FINAL | TEXT, b"ab"), [b"\x01a"]),
        (LEAST + 2, (FINAL | TEXT, b"ab"), [b"\x81ab"]),
        (LEAST + 1, (TEXT, b"ab"), [b"\x01a"]),
        (LEAST + 1, (FINAL | PING, b"ab"), []),
        (LEAST + 2, (FINAL | PING, b"ab"), [b"\x89ab"]),
        (2 * LEAST + 2, (FINAL | BINARY, b"x" * 200), [b"\x02" + b"x" * (LEAST + 2)]),
    ],
)
def test_the_credit_that_a_frame_needs(credit: int, frame: tuple[int, bytes], goes: list[bytes]) -> None:
    session, socket = _with_credit(credit)
    stream = socket.stream
    socket.send(*frame)
    assert _sent(session) == goes
    assert stream._credit == credit - sum(len(payload) + COST for payload in goes)
    session.receive(session.epoch, frames.window(1, 10_000), 0.0)
    again = _sent(session)
    assert _merged([(payload[0], payload[1:]) for payload in goes + again]) == [
        (frame[0] if frame[0] & 0x08 else frame[0] & 0x0F if frame[0] & FINAL else -1, frame[1])
    ]
    assert not stream.stuck


def test_the_receiver_holds_the_sender_to_it() -> None:
    joined, visitor, _ = _opened(replace(SMALL, grace=0.0))
    count = SMALL.stream_window // LEAST
    data = frames.frame(DATA, 1, b"\x81")
    joined.server.receive(joined.server.epoch, data * count, 0.0)
    assert sum(visitor.untaken) <= SMALL.stream_window
    with pytest.raises(RemoteError) as caught:
        joined.server.receive(joined.server.epoch, data, 0.0)
    assert caught.value.code == "flow_control"


@pytest.mark.parametrize("limit", [66, 1000, TURN, 30_000, 65_536])
def test_what_fits_into_an_empty_message_is_not_cut_for_the_little_that_others_left(limit: int) -> None:
    waiting = Frames()
    waiting.waiting.append((FINAL | BINARY, b"x" * MAX_PAYLOAD))
    taken = waiting.take(limit, 1 << 20)
    if limit in (TURN, 65_536):
        assert taken is not None
        assert taken[1] == limit
    else:
        assert taken is None


def test_end_goes_with_the_last_frame_and_a_stop_drops_what_waits() -> None:
    session, socket = _with_credit(10_000)
    socket.send(CLOSING, b"\x03\xe8")
    socket.stream.send_end()
    (message,) = [session.next_message(session.epoch, 0.0)]
    assert message is not None
    assert [kind for kind, _, _ in frames.split(b"".join(message[1]))] == [DATA | 0x80]
    session, socket = _with_credit(LEAST)
    stream = socket.stream
    socket.send(FINAL | TEXT, b"never")
    session.receive(session.epoch, frames.frame(frames.STOP, 1, b""), 0.0)
    assert stream.pending == 0
    message = session.next_message(session.epoch, 0.0)
    assert message is not None
    assert [kind for kind, _, _ in frames.split(b"".join(message[1]))] == [END]
    session.receive(session.epoch, frames.frame(WINDOW, 1, b"\0\0\1\0"), 0.0)
    assert stream.send_frame(FINAL | TEXT, b"dropped")


# -- invariants ----------------------------------------------------------------------------------------------

_SIZES = st.sampled_from([0, 1, 60, 125, 500, 5_000, 16_300, 16_384, 40_000, 65_535, 100_000])
_MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([TEXT, BINARY]), st.lists(_SIZES, min_size=1, max_size=3)),
        st.tuples(st.sampled_from([FINAL | PING, FINAL | PONG]), st.lists(st.integers(0, 125), min_size=1, max_size=1)),
    ),
    max_size=12,
)


def _script(messages: list[tuple[int, list[int]]], close: bool) -> deque[tuple[int, bytes]]:
    """The frames of these messages; control frames fall between the fragments of the message before them."""
    script: list[tuple[int, bytes]] = []
    for number, (opcode, sizes) in enumerate(messages):
        for at, size in enumerate(sizes):
            payload = bytes([number % 251]) * size
            if opcode & 0x08:
                between = len(script) > 1 and not script[-2][0] & (FINAL | 0x08)
                script.insert(len(script) - between, (opcode, payload))
            else:
                last = at == len(sizes) - 1
                script.append(((CONT if at else opcode) | (FINAL if last else 0), payload))
    if close:
        script.append((CLOSING, b"\x03\xe8bye"))
    return deque(script)


@given(
    up=_MESSAGES,
    down=_MESSAGES,
    close=st.booleans(),
    cuts=st.lists(st.integers(0, 80), max_size=3),
    lost=st.integers(0, 3),
    window=st.sampled_from([16 * 1024, 20_001, 200 * 1024]),
    takes=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    grace=st.sampled_from([0.0, 60.0]),
)
@settings(max_examples=120, deadline=None)
def test_frames_arrive_in_order_once_and_no_more_than_the_window_is_held(
    up: list[tuple[int, list[int]]],
    down: list[tuple[int, list[int]]],
    close: bool,
    cuts: list[int],
    lost: int,
    window: int,
    takes: list[int],
    grace: float,
) -> None:
    """Invariants 1, 2 and 3, for WebSockets: whatever the connection does, at whatever pace each end takes."""
    joined, visitor, service = _opened(replace(SMALL, grace=grace, stream_window=window, stream_window_max=window))
    scripts = {visitor: _script(up, close), service: _script(down, close)}
    wanted = {visitor: _merged(list(scripts[service])), service: _merged(list(scripts[visitor]))}
    for step in range(10_000):
        busy = False
        for end, script in scripts.items():
            if script and not end.blocked:
                end.send(*script.popleft())
                if not script and close:
                    end.stream.send_end()
        for who in ("server", "agent"):
            busy |= joined.write(who)
        if grace and step in cuts:
            for queue in joined.connection.to.values():
                for _ in range(min(lost, len(queue))):
                    queue.pop()
            joined.connect()
        for who in ("server", "agent"):
            busy |= joined.deliver(who)
        for end in scripts:
            end.take(takes[step % len(takes)] if step < 400 else 1000)
            busy |= bool(end.untaken)
        if not busy and not any(scripts.values()):
            joined.now += 1.0
            for who in ("server", "agent"):
                joined.session(who).wake_for_ack()
                busy |= joined.write(who)
            if not busy and not any(joined.connection.to.values()):
                break
    for end in scripts:
        assert _merged(end.got) == wanted[end]
        assert all(len(payload) <= MAX_PAYLOAD for _, payload in end.got)
        assert end.most <= window
        assert end.stream.closed is close
        assert end.ended is close
    if close:
        assert not kept(joined.server)
        assert not kept(joined.agent)
