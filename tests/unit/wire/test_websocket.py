"""Two real ends on real sockets, on both loops, plain and TLS; another implementation at either side; refusals."""

import asyncio
import contextlib
import os
import socket as socketlib
import ssl
import struct
from collections.abc import Awaitable, Callable

import pytest
from websockets.asyncio.client import connect as other_connect
from websockets.asyncio.server import serve as other_serve
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.support.sockets import certificate
from tunneld.errors import VisitorError
from tunneld.wire import dial, ws_accept, ws_connect, ws_protocol
from tunneld.wire.tls import client_context, server_context
from tunneld.wire.websocket import (
    BINARY,
    TEXT,
    SubprotocolRemoved,
    UpgradeFailed,
    UpgradeRefused,
    WebSocket,
    accept,
    connect,
)
from tunneld.wire.ws_codec import ClientEncoder

LIMIT = 200_000
OFFER = ["tunneld.v3"]


class Head:
    """The ingress's part, as little of it as will do."""

    def __init__(self, text: bytes) -> None:
        lines = text.decode("latin-1").split("\r\n")
        self.method, self.target, version = lines[0].split(" ")
        self.version = version.removeprefix("HTTP/")
        self.headers = [tuple(line.split(": ", 1)) for line in lines[1:] if line]


class Keep:
    """A handler that keeps everything and can be awaited."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.drained = asyncio.Event()
        self.ends: list[tuple[int | None, str]] = []
        self.end = asyncio.get_running_loop().create_future()

    def message(self, opcode: int, payload: bytes) -> None:
        assert not self.ends
        self.got.put_nowait((opcode, payload))

    def writable(self) -> None:
        assert not self.ends
        self.drained.set()

    def closed(self, code: int | None, reason: str) -> None:
        self.ends.append((code, reason))
        self.end.set_result((code, reason))


class Door(asyncio.Protocol):
    """Takes a head and accepts."""

    def __init__(self, house: "House") -> None:
        self.house = house
        self.read = b""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.read += data
        end = self.read.find(b"\r\n\r\n")
        if end < 0:
            return
        head, leftover = self.read[: end + 4], self.read[end + 4 :]
        loop = asyncio.get_running_loop()
        socket = accept(
            loop,
            self.transport,
            Head(head),
            leftover,
            subprotocols=OFFER,
            max_message=LIMIT,
            headers=[("X-Tunnel-Request-Id", "r1")],
        )
        if self.house.greet:
            socket.handler = Keep()
        self.house.accepted.put_nowait(socket)


class House:
    """A listener of ours."""

    def __init__(self, *, greet: bool = True) -> None:
        self.greet = greet
        self.accepted: asyncio.Queue[WebSocket] = asyncio.Queue()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine to its end on one of the loops, debug on."""
    library = asyncio if request.param == "asyncio" else pytest.importorskip("uvloop")
    factory = library.new_event_loop

    def runner(main: Awaitable[None]) -> None:
        with asyncio.Runner(debug=True, loop_factory=factory) as loop:
            loop.run(asyncio.wait_for(main, 10))

    return runner


@pytest.fixture(params=["plain", "tls"])
def tls(request, pair):
    if request.param == "plain":
        return None, None
    return server_context(pair.cert, pair.key), client_context(ca_file=pair.cert)


@contextlib.asynccontextmanager
async def listening(factory: Callable[[], asyncio.Protocol], tls=(None, None)):
    """A listener; gives its port."""
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0, ssl=tls[0])
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def dialled(port: int, tls=(None, None), **more) -> Awaitable[WebSocket]:
    url = f"{'wss' if tls[1] else 'ws'}://localhost:{port}/tunnel/connect?name=x"
    options = {"subprotocols": OFFER, "max_message": LIMIT, "timeout": 5, "ssl_context": tls[1]}
    return connect(url, **(options | more))


@contextlib.asynccontextmanager
async def joined(tls=(None, None), **more):
    """Both ends of one connection, with handlers; closed and awaited at the end."""
    house = House()
    async with listening(lambda: Door(house), tls) as port:
        near = await dialled(port, tls, **more)
        near.handler = Keep()
        far = await house.accepted.get()
        try:
            yield near, far
        finally:
            near.close(1000)
            await near.handler.end
            await far.handler.end


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


# -- another implementation at the other end --------------------------------------------------------------


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


# -- octets by hand ---------------------------------------------------------------------------------------

REQUEST = (
    b"GET /tunnel/connect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: tunneld.v3\r\n\r\n"
)
HELLO = b"\x81\x85\0\0\0\0hello"


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


def head_of(request: bytes) -> Head:
    return Head(request)


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


# -- what a client may meet -------------------------------------------------------------------------------


class Says(asyncio.Protocol):
    """A server that answers the first octets with what it was told to, and perhaps closes."""

    def __init__(self, answer: bytes, *, close: bool = False) -> None:
        self.answer = answer
        self.close = close

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if b"KEY" in answer:
            head = head_of(data)
            response = ServerProtocol().accept(Request(head.target, Headers(head.headers)))
            answer = answer.replace(b"KEY", response.headers["Sec-WebSocket-Accept"].encode())
        self.transport.write(answer)
        if self.close:
            self.transport.close()


PROBLEM = b'{"type": "about:blank", "code": "unauthorized"}'
HEAD_401 = b"HTTP/1.1 401 Unauthorized\r\nX-Tunnel-Error: unauthorized\r\nRetry-After: 7\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("answer", "close", "body"),
    [
        (HEAD_401 + b"Content-Length: %d\r\n\r\n" % len(PROBLEM) + PROBLEM, False, PROBLEM),
        (HEAD_401 + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", False, b"abcde"),
        (HEAD_401 + b"\r\nuntil the end", True, b"until the end"),
        (HEAD_401 + b"Content-Length: 100\r\n\r\ncut", True, b"cut"),
        (HEAD_401 + b"Content-Length: 100\r\n\r\nslow", False, b"slow"),
        (HEAD_401 + b"Content-Length: 0\r\n\r\n", False, b""),
        (HEAD_401 + b"\r\n" + b"x" * 100_000, False, b"x" * 65536),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD_401 + b"Content-Length: 0\r\n\r\n", False, b""),
        (HEAD_401.replace(b"1.1", b"1.0") + b"\r\nold", True, b"old"),
    ],
    ids=["length", "chunked", "eof", "cut", "slow", "empty", "endless", "interim", "1.0"],
)
def test_a_refusal_brings_its_document(run, tls, monkeypatch, answer: bytes, close: bool, body: bytes) -> None:
    monkeypatch.setattr(ws_connect, "_BODY_TIME", 0.2)

    async def main() -> None:
        async with listening(lambda: Says(answer, close=close), tls) as port:
            with pytest.raises(UpgradeRefused) as caught:
                await dialled(port, tls)
            refused = caught.value
            assert (refused.status, refused.code, refused.retry_after) == (401, "unauthorized", 7)
            assert refused.body == body
            assert ("X-Tunnel-Error", "unauthorized") in refused.headers
            assert "401" in str(refused)

    run(main())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (SWITCH + b"Sec-WebSocket-Accept: KEY\r\n\r\n", SubprotocolRemoved),
        (SWITCH + b"Sec-WebSocket-Accept: KEY\r\nSec-WebSocket-Protocol: chat\r\n\r\n", UpgradeFailed),
        (SWITCH + b"Sec-WebSocket-Accept: wrong\r\nSec-WebSocket-Protocol: tunneld.v3\r\n\r\n", UpgradeFailed),
        (SWITCH + b"Sec-WebSocket-Accept: KEY\r\nSec-WebSocket-Extensions: x\r\n\r\n", UpgradeFailed),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", UpgradeFailed),
        (b"HTTP/1.1 101 S\r\n" + b"no colon\r\n\r\n", UpgradeFailed),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", UpgradeFailed),
        (b"\0" * 70_000, UpgradeFailed),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, UpgradeFailed),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", UpgradeFailed),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, UpgradeFailed),
    ],
)
def test_an_answer_that_is_no_upgrade(run, answer: bytes, error: type[Exception]) -> None:
    async def main() -> None:
        async with listening(lambda: Says(answer)) as port:
            with pytest.raises(error) as caught:
                await dialled(port)
            assert type(caught.value) is error

    run(main())


def test_no_answer_at_all(run, tls) -> None:
    async def main() -> None:
        async with listening(lambda: Says(b"", close=True), tls) as port:
            with pytest.raises(ConnectionError):
                await dialled(port, tls)
        async with listening(lambda: Says(b"HTTP/1.1 "), tls) as port:
            with pytest.raises(TimeoutError):
                await dialled(port, tls, timeout=0.2)
        with pytest.raises(ConnectionRefusedError):
            await dialled(port)

    run(main())


def test_tls_that_does_not_come_about(run, tls, pair) -> None:
    if tls[0] is None:
        pytest.skip("only TLS")

    async def main() -> None:
        async with listening(lambda: Says(b""), tls) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await dialled(port, (None, client_context()))
        async with listening(lambda: Says(b"no TLS here\n" * 20)) as port:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await dialled(port, tls)

    run(main())


@pytest.mark.parametrize("url", ["http://x/", "ws://", "nonsense", "ws://x:99999/", "ws://x/#part"])
async def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a WebSocket"):
        await connect(url, max_message=1, timeout=1)


# -- addresses --------------------------------------------------------------------------------------------


async def test_names_below_localhost_are_loopback() -> None:
    for name in ("localhost", "demo.localhost", "a.b.LOCALHOST."):
        assert [address[:2] for _, address in await dial.resolve(name, 7)] == [("127.0.0.1", 7), ("::1", 7)]
    assert [address[:2] for _, address in await dial.resolve("127.0.0.9", 7)] == [("127.0.0.9", 7)]
    assert [address[:2] for _, address in await dial.resolve("::1", 7)] == [("::1", 7)]


def test_the_second_address_is_tried_when_the_first_refuses(run) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Says(b""), "::1", 0)
        port = server.sockets[0].getsockname()[1]
        sock = await dial.dial("demo.localhost", port)
        assert sock.getpeername()[0] == "::1"
        sock.close()
        server.close()
        await server.wait_closed()
        with pytest.raises(OSError, match=str(port)):
            await dial.dial("demo.localhost", port)

    run(main())


def test_an_address_that_hangs_is_overtaken(run, monkeypatch) -> None:
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.05)

    async def main() -> None:
        with socketlib.socket() as full, contextlib.ExitStack() as waiting:
            full.bind(("127.0.0.1", 0))
            full.listen(0)  # with its queue full, the kernel answers no further SYN
            for _ in range(4):
                each = waiting.enter_context(socketlib.socket())
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            hangs = (socketlib.AF_INET, full.getsockname())
            async with listening(lambda: Says(b"")) as port:
                answers = (socketlib.AF_INET, ("127.0.0.1", port))
                sock = await dial._race([hangs, answers], None)
                assert sock.getpeername()[1] == port
                sock.close()
            with pytest.raises(TimeoutError):
                await connect(f"ws://127.0.0.1:{hangs[1][1]}/", max_message=1, timeout=0.1)

    run(main())


def test_a_local_address_is_used(run) -> None:
    async def main() -> None:
        async with joined(local_addr=("127.0.0.3", 0)) as (_, far):
            assert far.transport.get_extra_info("peername")[0] == "127.0.0.3"

    run(main())
