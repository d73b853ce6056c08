"""A close is told while reading is paused, on both kinds of event loop."""

from __future__ import annotations

import asyncio
import gc
import select
import socket
import struct
import weakref
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from tunneld.wire.closewatch import CloseWatch
from tunneld.wire.sockets import LOWAT, descriptor, reset, tune

Loops = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=Loops, ids=["asyncio", "uvloop"])
def run(request):
    def runner(main: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=request.param, debug=True) as it:
            it.run(main())

    return runner


class Paused(asyncio.Protocol):
    """Takes no byte of its connection and watches for its close."""

    def __init__(self, made: asyncio.Future, closed: asyncio.Future) -> None:
        self.made, self.closed, self.lost = made, closed, asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        transport.pause_reading()
        self.transport = transport
        self.fd = descriptor(transport)
        CloseWatch.of(asyncio.get_running_loop()).watch(self.fd, self.closed.set_result)
        self.made.set_result(self)

    def connection_lost(self, exc) -> None:
        CloseWatch.of(asyncio.get_running_loop()).unwatch(self.fd)
        self.lost.set_result(exc)


async def pair() -> tuple[Paused, socket.socket, asyncio.Server]:
    loop = asyncio.get_running_loop()
    made = loop.create_future()
    closed = loop.create_future()
    server = await loop.create_server(lambda: Paused(made, closed), "127.0.0.1", 0)
    client = socket.create_connection(server.sockets[0].getsockname())
    return await made, client, server


def test_a_close_behind_unread_input_is_told(run):
    async def main() -> None:
        protocol, client, server = await pair()
        client.sendall(b"x" * 40_000)
        assert len(CloseWatch.of(asyncio.get_running_loop())) == 1
        client.close()
        assert await protocol.closed & select.EPOLLRDHUP
        assert len(CloseWatch.of(asyncio.get_running_loop())) == 0
        protocol.transport.abort()
        await protocol.lost
        server.close()

    run(main)


def test_a_reset_is_told(run):
    async def main() -> None:
        protocol, client, server = await pair()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert await protocol.closed & (select.EPOLLERR | select.EPOLLHUP)
        protocol.transport.abort()
        await protocol.lost
        server.close()

    run(main)


def test_a_close_before_the_watch_is_told_too(run):
    async def main() -> None:
        protocol, client, server = await pair()
        watch = CloseWatch.of(asyncio.get_running_loop())
        watch.unwatch(protocol.fd)
        watch.unwatch(protocol.fd)
        client.shutdown(socket.SHUT_WR)
        told = asyncio.get_running_loop().create_future()
        watch.watch(protocol.fd, told.set_result)
        watch.watch(protocol.fd, told.set_result)
        await told
        assert not protocol.closed.done()
        protocol.transport.abort()
        await protocol.lost
        client.close()
        server.close()

    run(main)


def test_unwatched_and_closed_sockets_harm_nothing(run):
    async def main() -> None:
        watch = CloseWatch.of(asyncio.get_running_loop())
        one, other = socket.socketpair()
        watch.watch(one.fileno(), lambda _: None)
        fd = one.fileno()
        one.close()
        watch.unwatch(fd)
        watch.watch(-1, lambda _: None)
        assert len(watch) == 0
        other.close()

    run(main)


def test_a_loop_takes_its_watch_along():
    async def main() -> weakref.ref:
        return weakref.ref(CloseWatch.of(asyncio.get_running_loop()))

    with asyncio.Runner() as runner:
        ref = runner.run(main())
    del runner
    gc.collect()
    assert ref() is None


def test_reset_is_seen_as_a_reset(run):
    async def main() -> None:
        protocol, client, server = await pair()
        protocol.transport.write(b"half")
        assert client.recv(100) == b"half"
        reset(protocol.transport)
        await protocol.lost
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        client.close()
        server.close()

    run(main)


def test_accepted_sockets_inherit_what_their_listener_was_tuned_to():
    listener = socket.create_server(("127.0.0.1", 0))
    tune(listener)
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    with listener, client, accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", 25)) == LOWAT
    one, other = socket.socketpair()
    with one, other:
        tune(one)
