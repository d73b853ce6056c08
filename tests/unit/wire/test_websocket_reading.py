"""Reading into the buffer that all connections of a loop share, in memory: any cut, any interleaving."""

import asyncio
import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunneld.wire import ws_protocol
from tunneld.wire.turns import ROUNDS_ALONE
from tunneld.wire.ws_codec import BINARY, PING, PONG, TEXT, ClientEncoder, encode_plain
from tunneld.wire.ws_protocol import ROOM, WebSocket

LIMIT = 3 * ROOM


class Memory(asyncio.Transport):
    """A transport with no socket: keeps what is written, and reads as a transport does."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.reading = True
        self.over = False

    def write(self, data) -> None:
        self.written.append(bytes(data))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.over

    def set_protocol(self, protocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def abort(self) -> None:
        self.over = True

    close = abort

    def read(self, data: bytes) -> int:
        """One read: as much as fits the buffer that the protocol gives; how much that was."""
        view = self.protocol.get_buffer(-1)
        assert len(view) > 0
        size = min(len(view), len(data))
        view[:size] = data[:size]
        del view
        self.protocol.buffer_updated(size)
        return size

    def read_all(self, data: bytes) -> None:
        """As many reads as it takes."""
        while data:
            data = data[self.read(data) :]


class Keep:
    def __init__(self) -> None:
        self.got: list[tuple[int, bytes]] = []
        self.ends: list[tuple[int | None, str]] = []

    def message(self, opcode, payload) -> None:
        self.got.append((opcode, payload))

    def writable(self) -> None:
        pass

    def closed(self, code, reason) -> None:
        self.ends.append((code, reason))


def end(loop, *, early: bytes = b"", client: bool = False) -> tuple[Memory, WebSocket, Keep]:
    transport = Memory()
    socket = WebSocket(loop, transport, early, client=client, max_message=LIMIT, subprotocol=None)
    keep = Keep()
    assert not transport.reading
    socket.handler = keep
    return transport, socket, keep


sizes = st.one_of(
    st.integers(0, 300),
    st.sampled_from([4000, 65530, 65535, 65536, ROOM - 20, ROOM - 8, ROOM, ROOM + 1, LIMIT]),
)
steps = st.one_of(st.integers(1, 20), st.sampled_from([1000, 16384, 100_000, 200_000, ROOM]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(sizes, max_size=6), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), steps), max_size=60),
    st.integers(0, 40),
)
def test_connections_that_read_in_turns_do_not_meet(plans, schedule, early) -> None:
    loop = asyncio.new_event_loop()
    try:
        encode = ClientEncoder()
        wires, wants, ends = [], [], []
        for index, plan in enumerate(plans):
            sent = [(BINARY, bytes([65 + index]) * size) for size in plan]
            wire = b"".join(encode(opcode, (payload,)) for opcode, payload in sent)
            ends.append(end(loop, early=wire[:early]))
            wires.append(wire[early:])
            wants.append(sent)
        for who, step in schedule:
            index = who % len(plans)
            taken = ends[index][0].read(wires[index][:step]) if wires[index] else 0
            wires[index] = wires[index][taken:]
        for index, wire in enumerate(wires):
            rest = wire
            while rest:
                rest = rest[ends[index][0].read(rest) :]
        for (_, socket, keep), want in zip(ends, wants, strict=True):
            assert keep.got == want
            assert socket.fault is None
            socket.connection_lost(None)
            assert keep.ends == [(None, "")]
        assert ws_protocol._room_of(loop).holder is None
    finally:
        loop.close()


def test_a_frame_cut_in_two_stays_where_it_is_until_another_reads() -> None:
    loop = asyncio.new_event_loop()
    encode = ClientEncoder()
    room = ws_protocol._room_of(loop)
    one, first, got = end(loop)
    wire = encode(BINARY, (bytes(70_000),))
    one.read_all(wire[:50_000])
    assert room.holder is first
    one.read_all(wire[50_000:60_000])
    assert room.holder is first
    two, second, other = end(loop)
    two.read_all(encode(BINARY, (b"short",)) + wire[:10])
    assert room.holder is second
    assert other.got == [(BINARY, b"short")]
    assert len(first.get_buffer(-1)) == len(wire) - 60_000
    one.read_all(wire[60_000:])
    assert got.got == [(BINARY, bytes(70_000))]
    assert room.holder is second
    two.read_all(wire[10:])
    assert other.got[1:] == [(BINARY, bytes(70_000))]
    assert room.holder is None
    for each in (first, second):
        each.connection_lost(None)
    loop.close()


def test_a_frame_larger_than_the_shared_buffer_has_its_own() -> None:
    loop = asyncio.new_event_loop()
    transport, socket, keep = end(loop, client=True)
    wire = encode_plain(BINARY, (bytes(LIMIT),))
    transport.read_all(wire[:20])
    ws_protocol._room_of(loop).alone = ROUNDS_ALONE
    assert len(socket.get_buffer(-1)) == len(wire) - 20
    rest = wire[20:]
    while rest:
        rest = rest[transport.read(rest[:16384]) :]
    transport.read_all(encode_plain(TEXT, (b"next",)))
    assert keep.got == [(BINARY, bytes(LIMIT)), (TEXT, b"next")]
    socket.connection_lost(None)
    loop.close()


def test_while_paused_only_the_newest_ping_is_answered() -> None:
    loop = asyncio.new_event_loop()
    transport, socket, _ = end(loop, client=True)
    transport.read_all(encode_plain(PING, (b"0",)))
    assert len(transport.written) == 1
    socket.pause_writing()
    for n in range(100):
        transport.read_all(encode_plain(PING, (b"%d" % n,)))
    assert len(transport.written) == 1
    socket.resume_writing()
    assert len(transport.written) == 2
    peer, peers, _ = end(loop)
    pongs = []
    peers._decoder._control = lambda opcode, payload: pongs.append((opcode, payload))
    peer.read_all(b"".join(transport.written))
    assert pongs == [(PONG, b"0"), (PONG, b"99")]
    for each in (socket, peers):
        each.connection_lost(None)
    loop.close()


def test_who_closes_inside_a_message_hears_nothing_more() -> None:
    for act in ("abort", "close"):
        loop = asyncio.new_event_loop()
        transport, socket, keep = end(loop, client=True)

        def take(opcode, payload, act=act, socket=socket, keep=keep) -> None:
            keep.got.append((opcode, payload))
            socket.abort() if act == "abort" else socket.close(4000)

        socket._decoder.deliver_to(take)
        transport.read_all(encode_plain(BINARY, (b"one",)) + encode_plain(BINARY, (b"two",)))
        assert keep.got == [(BINARY, b"one")]
        socket.send(BINARY, (b"late",))
        assert not any(b"late" in each for each in transport.written)
        socket.connection_lost(None)
        assert keep.ends == [(4000, "") if act == "close" else (None, "")]
        loop.close()


def test_a_connection_lost_before_there_is_a_handler_is_told_to_it() -> None:
    loop = asyncio.new_event_loop()
    socket = WebSocket(loop, Memory(), b"\x81", client=True, max_message=LIMIT, subprotocol=None)
    socket.connection_lost(None)
    socket.handler = keep = Keep()
    assert keep.got == []
    assert keep.ends == [(None, "")]
    loop.close()


def test_a_fault_in_what_came_with_the_upgrade() -> None:
    loop = asyncio.new_event_loop()
    transport, socket, keep = end(loop, early=b"\x80\x80\0\0\0\0", client=False)
    assert transport.written[0][:4] == b"\x88\x10\x03\xea"
    assert transport.reading  # for the end of the connection
    socket.connection_lost(None)
    assert keep.ends == [(1002, "protocol_error")]
    loop.close()


def test_after_the_end_of_the_stream_nothing_is_written() -> None:
    loop = asyncio.new_event_loop()
    transport, socket, keep = end(loop)
    assert not socket.eof_received()
    socket.send(BINARY, (b"late",))
    socket.close(1000)
    assert transport.written == []
    socket.connection_lost(None)
    assert keep.ends == [(None, "")]
    loop.close()


@pytest.mark.parametrize(
    ("fault", "told"), [(MemoryError(), (1006, "")), (ConnectionResetError(), (None, "")), (None, (None, ""))]
)
def test_a_fault_of_ones_own_is_told_from_a_lost_connection(fault, told) -> None:
    loop = asyncio.new_event_loop()
    _, socket, keep = end(loop)
    socket.connection_lost(fault)
    assert keep.ends == [told]
    assert (socket.fault == "a message could not be taken here (MemoryError)") is isinstance(fault, MemoryError)
    loop.close()


def test_who_closed_before_there_was_a_handler_delivers_nothing() -> None:
    loop = asyncio.new_event_loop()
    socket = WebSocket(loop, Memory(), encode_plain(TEXT, (b"x",)), client=True, max_message=LIMIT, subprotocol=None)
    socket.close(4000)
    socket.handler = keep = Keep()
    socket.connection_lost(None)
    assert keep.got == []
    assert keep.ends == [(4000, "")]
    loop.close()


def test_a_dead_connection_is_freed_at_once() -> None:
    loop = asyncio.new_event_loop()
    transport, socket, _ = end(loop)
    transport.read_all(ClientEncoder()(BINARY, (b"x",)))
    socket.connection_lost(None)
    del transport.protocol
    gone = weakref.ref(socket)
    gc.disable()
    try:
        del socket
        assert gone() is None
    finally:
        gc.enable()
    loop.close()
