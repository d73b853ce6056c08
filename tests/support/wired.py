"""Two ends of our WebSocket on real sockets, plain or TLS, and the door between them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tunneld.wire.websocket import (
    WebSocket,
    accept,
    connect,
)

__all__ = ["LIMIT", "OFFER", "Door", "Head", "House", "Keep", "Says", "dialled", "head_of", "joined", "listening"]

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


def head_of(request: bytes) -> Head:
    return Head(request)


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
