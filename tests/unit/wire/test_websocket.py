"""Two real ends on real sockets, on both loops, plain and TLS; another implementation at either side; refusals."""

import asyncio
import contextlib
import os
import struct

import pytest
from websockets.asyncio.client import connect as other_connect
from websockets.asyncio.server import serve as other_serve

from tests.support.wired import LIMIT, OFFER, Door, House, Keep, dialled, head_of, joined, listening
from tunneld.errors import VisitorError
from tunneld.wire import ws_accept, ws_protocol
from tunneld.wire.websocket import (
    BINARY,
    TEXT,
    WebSocket,
    accept,
)
from tunneld.wire.ws_codec import ClientEncoder


def test_messages_of_every_size_arrive_in_order_both_ways(run, tls) -> None:
    async def main() -> None:
        async with joined(tls) as (near, far):
            assert near.subprotocol == far.subprotocol == "tunneld.v3"
            sizes = (0, 1, 120, 125, 126, 127, 65535, 65536, 70_000, 3, LIMIT, 16, 131_072) * 3
            want = [(BINARY, os.urandom(size)) for size in sizes] + [(TEXT, "déjà".encode())]
            for one, other in ((near, far), (far, near)):
                for opcode, payload in want:
                    one.send(opcode, [payload[:7], payload[7:]])
                for each in want:
                    assert await other.handler.got.get() == each
            near.close(4001, "bye")
            assert await far.handler.end == (4001, "bye")
            assert await near.handler.end == (4001, "bye")
        assert len(near.handler.ends) == len(far.handler.ends) == 1

    run(main())


def test_the_server_closes_and_what_is_sent_after_is_ignored(run, tls) -> None:
    async def main() -> None:
        async with joined(tls) as (near, far):
            far.send(BINARY, [b"last"])
            far.close(1001, "going")
            far.send(BINARY, [b"late"])
            far.close(4000)
            assert await near.handler.end == (1001, "going")
            assert await far.handler.end == (1001, "going")
            assert near.handler.got.get_nowait() == (BINARY, b"last")
            assert near.handler.got.empty()
            near.send(BINARY, [b"into the void"])
            near.close(1000)
            near.abort()

    run(main())


def test_both_close_at_once(run, tls) -> None:
    async def main() -> None:
        async with joined(tls) as (near, far):
            near.close(4001, "near")
            far.close(4002, "far")
            assert await near.handler.end == (4001, "near")
            assert await far.handler.end == (4002, "far")

    run(main())


def test_an_abort_is_a_break_for_both(run, tls) -> None:
    async def main() -> None:
        async with joined(tls) as (near, far):
            far.abort()
            assert await far.handler.end == (None, "")
            assert await near.handler.end == (None, "")

    run(main())


def test_a_reader_that_stops_pauses_the_writer(run, tls) -> None:
    async def main() -> None:
        async with joined(tls) as (near, far):
            far.transport.pause_reading()
            sent = 0
            while not near.paused:
                near.send(BINARY, [bytes(65536)])
                sent += 1
                assert sent < 1000
            assert not near.handler.drained.is_set()
            far.transport.resume_reading()
            await near.handler.drained.wait()
            assert not near.paused
            for _ in range(sent):
                await far.handler.got.get()
            near.send(BINARY, [b"more"])
            assert await far.handler.got.get() == (BINARY, b"more")

    run(main())


def test_bulk_both_ways_at_once(run, tls) -> None:
    async def main() -> None:
        async with joined(tls) as (near, far):
            payload = os.urandom(65536)
            for end in (near, far):

                def pump(end=end, left=[48]) -> None:  # noqa: B006
                    while left[0] and not end.paused:
                        end.send(BINARY, [payload])
                        left[0] -= 1

                pump.__defaults__ = (end, [48])
                end.handler.writable = pump
                pump()
            for end in (far, near):
                for _ in range(48):
                    assert await end.handler.got.get() == (BINARY, payload)

    run(main())


def test_a_silent_peer_is_given_up(run, monkeypatch) -> None:
    monkeypatch.setattr(ws_protocol, "CLOSE_TIMEOUT", 0.05)

    async def main() -> None:
        async with joined() as (near, far):
            far.transport.pause_reading()
            near.close(4001, "bye")
            assert await near.handler.end == (4001, "bye")
            far.transport.resume_reading()
            await far.handler.end

    run(main())


def test_life_is_heard(run) -> None:
    async def main() -> None:
        async with joined() as (near, far):
            before = far.last_heard
            near.send(BINARY, [b"x"])
            await far.handler.got.get()
            assert far.last_heard > before

    run(main())


# -- another implementation at the other end -----------------------------------------------------------


def test_a_client_of_another_make(run, tls) -> None:
    async def main() -> None:
        house = House()
        async with listening(lambda: Door(house), tls) as port:
            url = f"{'wss' if tls[1] else 'ws'}://localhost:{port}/"
            async with other_connect(
                url, ssl=tls[1], subprotocols=OFFER, compression="deflate", proxy=None, max_size=LIMIT
            ) as peer:
                socket = await house.accepted.get()
                assert peer.response.headers["X-Tunnel-Request-Id"] == "r1"
                assert "Sec-WebSocket-Extensions" not in peer.response.headers
                await peer.send("text")
                await peer.send([b"a", b"b" * 70_000, b"c"])
                assert await socket.handler.got.get() == (TEXT, b"text")
                assert await socket.handler.got.get() == (BINARY, b"a" + b"b" * 70_000 + b"c")
                await (await peer.ping(b"are you there"))
                socket.send(BINARY, [b"1" * 100_000])
                socket.send(TEXT, ["é".encode()])
                assert await peer.recv() == b"1" * 100_000
                assert await peer.recv() == "é"
                await peer.close(4123, "enough")
            assert await socket.handler.end == (4123, "enough")

    run(main())


def test_a_server_of_another_make(run, tls) -> None:
    async def main() -> None:
        async def echo(peer) -> None:
            await (await peer.ping())
            async for message in peer:
                await peer.send(message)

        async with other_serve(echo, "127.0.0.1", 0, ssl=tls[0], subprotocols=OFFER) as server:
            socket = await dialled(server.sockets[0].getsockname()[1], tls)
            socket.handler = keep = Keep()
            for opcode, payload in ((TEXT, b"hello"), (BINARY, bytes(90_000)), (BINARY, b"")):
                socket.send(opcode, [payload])
                assert await keep.got.get() == (opcode, payload)
            socket.close(1000, "done")
            assert await keep.end == (1000, "done")

    run(main())


def test_no_close_code_is_1005(run) -> None:
    async def main() -> None:
        async def leave(peer) -> None:
            peer.transport.write(b"\x88\x00")
            await peer.wait_closed()

        async with other_serve(leave, "127.0.0.1", 0) as server:
            socket = await dialled(server.sockets[0].getsockname()[1], subprotocols=())
            socket.handler = Keep()
            assert await socket.handler.end == (1005, "")

    run(main())


REQUEST = (
    b"GET /tunnel/connect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: tunneld.v3\r\n\r\n"
)


HELLO = b"\x81\x85\0\0\0\0hello"


# -- octets by hand ------------------------------------------------------------------------------------


def test_what_comes_with_the_request_is_delivered_once_there_is_a_handler(run, tls) -> None:
    async def main() -> None:
        for greet in (True, False):
            house = House(greet=greet)
            async with listening(lambda house=house: Door(house), tls) as port:
                reader, writer = await asyncio.open_connection("localhost", port, ssl=tls[1])
                writer.write(REQUEST + HELLO + HELLO[:5])
                socket = await house.accepted.get()
                writer.write(HELLO[5:] + HELLO)
                assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
                if not greet:
                    socket.handler = Keep()
                for _ in range(3):
                    assert await socket.handler.got.get() == (TEXT, b"hello")
                writer.close()
                assert await socket.handler.end == (None, "")
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    run(main())


class Watched(WebSocket):
    """Says in which order the transports of all connections ask for the shared buffer and fill it."""

    calls: list[tuple[str, int]] = []  # noqa: RUF012

    def get_buffer(self, sizehint: int) -> memoryview:
        self.calls.append(("get", id(self)))
        return super().get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        assert self.calls[-1] == ("get", id(self)), "between asking and filling, another connection came"
        super().buffer_updated(nbytes)
        self.calls.append(("filled", id(self)))


def test_connections_that_send_halves_in_turns(run, tls, monkeypatch) -> None:
    monkeypatch.setattr(ws_accept, "WebSocket", Watched)
    monkeypatch.setattr(Watched, "calls", [])

    async def main() -> None:
        house = House()
        async with listening(lambda: Door(house), tls) as port:
            writers, sockets = [], []
            for _ in range(3):
                _, writer = await asyncio.open_connection("localhost", port, ssl=tls[1])
                writer.write(REQUEST)
                writers.append(writer)
                sockets.append(await house.accepted.get())
            encode = ClientEncoder()
            wires = [encode(BINARY, (bytes([n]) * 90_000,)) for n in range(3)]
            for at in range(0, len(wires[0]), 7001):
                for wire, writer in zip(wires, writers, strict=True):
                    writer.write(wire[at : at + 7001])
                    await writer.drain()
                await asyncio.sleep(0)  # mostly enough for each part to be read by itself
            for n, socket in enumerate(sockets):
                opcode, payload = await socket.handler.got.get()
                assert (opcode, payload) == (BINARY, bytes([n]) * 90_000)
            for writer, socket in zip(writers, sockets, strict=True):
                writer.transport.abort()
                assert await socket.handler.end == (None, "")
        assert len({who for what, who in Watched.calls if what == "filled"}) == 3

    run(main())


@pytest.mark.parametrize(
    ("wire", "code", "reason"),
    [
        (b"\x82\x01x", 1002, "protocol_error"),
        (b"\x81\x81\0\0\0\0\xff", 1007, "protocol_error"),
        (b"\x82\xff\0\0\0\0\0\x10\0\0", 1009, "too_large"),
        (b"\x88\x81\0\0\0\0\x03", 1002, "protocol_error"),
        (b"\x88\x82\0\0\0\0\x03\xed", 1002, "protocol_error"),
        (b"\x88\x83\0\0\0\0\x03\xe8\xff", 1007, "protocol_error"),
    ],
)
def test_a_fault_is_answered_by_a_close_frame(run, wire: bytes, code: int, reason: str) -> None:
    async def main() -> None:
        house = House()
        async with listening(lambda: Door(house)) as port:
            reader, writer = await asyncio.open_connection("localhost", port)
            writer.write(REQUEST + HELLO)
            socket = await house.accepted.get()
            writer.write(wire + HELLO * 3)
            await reader.readuntil(b"\r\n\r\n")
            first, size = await reader.readexactly(2)
            assert first == 0x88
            assert await reader.readexactly(size) == struct.pack("!H", code) + reason.encode()
            writer.write(HELLO)
            writer.close()
            assert await socket.handler.end == (code, reason)
            assert socket.fault
            assert socket.handler.got.get_nowait() == (TEXT, b"hello")
            assert socket.handler.got.empty()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    run(main())


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"GET ", b"POST ", "method_not_allowed"),
        (b"HTTP/1.1", b"HTTP/1.0", "version_not_supported"),
        (b"Upgrade: websocket\r\n", b"", "upgrade_required"),
        (b"Upgrade: websocket", b"Upgrade: h2c", "upgrade_required"),
        (b"Connection: Upgrade", b"Connection: keep-alive", "upgrade_required"),
        (b"Version: 13", b"Version: 8", "upgrade_required"),
        (b"Sec-WebSocket-Version: 13\r\n", b"", "upgrade_required"),
        (b"Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Key: short", "bad_request"),
        (b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"", "bad_request"),
        (b"Protocol: tunneld.v3", b"Protocol: tunneld.v9, chat", "upgrade_required"),
        (b"Protocol: tunneld.v3", b"Protocol: ;;", "bad_request"),
        (b"Sec-WebSocket-Protocol: tunneld.v3\r\n", b"", "upgrade_required"),
    ],
)
def test_an_upgrade_that_is_not_accepted(old: bytes, new: bytes, code: str) -> None:
    assert old in REQUEST
    with pytest.raises(VisitorError) as caught:
        accept(
            None,
            None,
            head_of(REQUEST.replace(old, new)),
            b"",
            subprotocols=OFFER,
            max_message=LIMIT,  # type: ignore[arg-type]
        )
    assert caught.value.code == code
    assert caught.value.detail


def test_the_older_dialect_offers_no_subprotocol(run) -> None:
    async def main() -> None:
        accepted: asyncio.Queue[WebSocket] = asyncio.Queue()

        class Old(Door):
            def data_received(self, data: bytes) -> None:
                socket = accept(
                    asyncio.get_running_loop(),
                    self.transport,
                    head_of(data),
                    b"",
                    subprotocols=OFFER,
                    max_message=LIMIT,
                    require_subprotocol=False,
                )
                socket.handler = Keep()
                accepted.put_nowait(socket)

        async with listening(lambda: Old(House())) as port:
            near = await dialled(port, subprotocols=())
            near.handler = Keep()
            far = await accepted.get()
            assert near.subprotocol is far.subprotocol is None
            near.close(1000)
            await near.handler.end
            await far.handler.end

    run(main())
