"""Fair turns in reading: how much of one peer's flood is read between two words of another, counted on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from itertools import repeat
from types import SimpleNamespace

import pytest

from tunneld.agent.origin import Connection
from tunneld.protocol.windows import MemoryBudget
from tunneld.wire.http_client import AnswerReader
from tunneld.wire.http_server import ServerConnection
from tunneld.wire.short_reads import ShortReads
from tunneld.wire.turns import ROUNDS_ALONE, SHARE
from tunneld.wire.ws_codec import BINARY, ClientEncoder
from tunneld.wire.ws_hop import Hop
from tunneld.wire.ws_protocol import ROOM, WebSocket

WORDS = 40
FRAME = 64 * 1024
UVLOOP_READ = 256 * 1024
"""Octets of one read of uvloop, and of asyncio, where the protocol gives no buffer."""


class Flooded:
    """Counts what a reader under flood is given."""

    def __init__(self) -> None:
        self.bytes = 0
        self.since = 0

    def take(self, size: int) -> None:
        self.bytes += size
        self.since += size

    # -- WebSocketHandler, HopUser, Consumer, AnswerSink: as far as a flood goes --

    def message(self, opcode: int, payload: bytes) -> None:
        self.take(len(payload))

    def frame(self, first: int, payload: bytes) -> bool:
        self.take(len(payload))
        return True

    def body(self, data: bytes) -> bool:
        self.take(len(data))
        return True

    def answer_data(self, data: bytes) -> None:
        self.take(len(data))

    def answer_head(self, status: int, headers: object, length: int) -> None:
        pass

    def closed(self, code: int | None, reason: str) -> None:
        pass

    def gone(self) -> None:
        pass

    lost = service_gone = writable = drained = lambda self, *_: None


class Raw(asyncio.Protocol):
    """An accepted connection, not yet read."""

    def __init__(self, made: asyncio.Future[asyncio.Transport]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.pause_reading()
        self._made.set_result(transport)


class Word(asyncio.Protocol):
    """The other peer: each of its words is answered by asking for the next at once."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask

    def data_received(self, data: bytes) -> None:
        self._ask()


def websocket(loop, transport, flooded) -> Iterator[bytes]:
    end = WebSocket(loop, transport, b"", client=False, max_message=FRAME, subprotocol=None)
    end.handler = flooded
    return repeat(ClientEncoder()(BINARY, (bytes(FRAME),)))


def hop(loop, transport, flooded) -> Iterator[bytes]:
    Hop(loop, transport, client=False, user=flooded, reads=ShortReads(MemoryBudget())).begin(b"", paused=True)
    return repeat(ClientEncoder()(BINARY, (bytes(FRAME),)))


def upload(loop, transport, flooded) -> Iterator[bytes]:
    limits = SimpleNamespace(
        max_header=65536, header_timeout=10, idle_timeout=10, body_timeout=10, min_rate=0, max_body=0, stall=10
    )

    def request(connection, head) -> None:
        connection.begin(flooded)

    quiet = lambda *_: None  # noqa: E731
    service = SimpleNamespace(
        loop=loop,
        draining=False,
        limits=limits,
        reads=ShortReads(MemoryBudget()),
        request=request,
        opened=quiet,
        closed=quiet,
    )
    protocol = ServerConnection(service, None)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    transport.resume_reading()
    yield b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    yield from repeat(bytes(FRAME))


def download(loop, transport, flooded) -> Iterator[bytes]:
    protocol = Connection(loop, None)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    protocol.begin(flooded, AnswerReader(flooded, to_head=False, limit=65536), b"GET / HTTP/1.1\r\n\r\n")
    transport.resume_reading()
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    yield from repeat(bytes(FRAME))


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request):
    library = asyncio if request.param == "asyncio" else pytest.importorskip("uvloop")
    with asyncio.Runner(debug=True, loop_factory=library.new_event_loop) as loop:
        yield loop


@pytest.mark.parametrize(
    ("reader", "most"),
    [(websocket, 2 * SHARE), (hop, UVLOOP_READ), (upload, UVLOOP_READ), (download, UVLOOP_READ)],
)
def test_between_two_words_of_one_no_more_than_a_turn_of_another_is_read(runner, reader, most) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        flooded, turns = Flooded(), []
        enough = loop.create_future()
        async with pairs(2) as ((flood, flood_end), (words, words_end)):
            wire = reader(loop, flood_end, flooded)
            left = bytearray(next(wire))

            def pour() -> None:  # as much as the kernel takes: the reader finds more than it may read in a turn
                with contextlib.suppress(BlockingIOError):
                    while True:
                        del left[: flood.send(left)]
                        if not left:
                            left.extend(next(wire))

            def ask() -> None:
                turns.append(flooded.since)
                flooded.since = 0
                if len(turns) <= WORDS:
                    pour()
                    words.send(b"w")
                elif not enough.done():
                    enough.set_result(None)

            pour()
            words_end.set_protocol(Word(ask))
            words_end.resume_reading()
            words.send(b"w")
            await enough
        assert max(turns) <= most, turns
        assert flooded.bytes >= WORDS / 4 * SHARE  # and the flood had its turns too

    runner.run(asyncio.wait_for(main(), 15))


def test_one_that_is_alone_reads_as_much_as_there_is(runner) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with pairs(1) as ((_, transport),):
            end = WebSocket(loop, transport, b"", client=True, max_message=FRAME, subprotocol=None)
            end.handler = Flooded()
            assert len(end.get_buffer(-1)) == SHARE
            for _ in range(ROUNDS_ALONE + 1):
                end.get_buffer(-1)[:2] = b"\x82\x00"
                end.buffer_updated(2)
            assert len(end.get_buffer(-1)) == ROOM

    runner.run(main())


@contextlib.asynccontextmanager
async def pairs(count: int):
    """So many connections: (a plain socket that does not block, our transport, paused)."""
    loop = asyncio.get_running_loop()
    made: list[tuple[socket.socket, asyncio.Transport]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(count):
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
            near.setblocking(False)
            far.setblocking(False)
            ready = loop.create_future()
            await loop.connect_accepted_socket(lambda ready=ready: Raw(ready), far)
            made.append((near, await ready))
    try:
        yield made
    finally:
        for near, transport in made:
            near.close()
            transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)
