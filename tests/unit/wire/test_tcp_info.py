"""What the kernel says of a connection, of real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from tunneld.wire.sockets import reset
from tunneld.wire.tcp_info import TcpInfo, read_tcp_info


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_tcp_connection_has_figures_and_others_have_none(run: Callable[[Awaitable[None]], None]) -> None:
    run(_figures())


async def _figures() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1")
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(60):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        info = read_tcp_info(writer.transport)
        assert info is not None
        assert info.segments >= 60
        assert info.carried in (120, 121)  # there and back; the kernel counts the SYN of the side that dialled
        assert 0 < info.least_rtt <= info.rtt < 1
        assert 0 <= info.lost <= info.retransmitted <= info.segments
        writer.close()
        await writer.wait_closed()
        assert read_tcp_info(writer.transport) is None
        reset(writer.transport)  # does nothing to one that is gone
    one, other = socket.socketpair()
    with other:
        _, unix = await asyncio.open_connection(sock=one)
        assert read_tcp_info(unix.transport) is None
        unix.close()
        await unix.wait_closed()


def test_what_the_peer_had_already_was_not_lost() -> None:
    assert TcpInfo(0.1, 0.1, 0.1, 0, 0, 100, 5, 2, 0, 0).lost == 3
