"""Whatever a service streams reaches its visitor as it is made, not only events: no kind of content is collected.

Visitor and service go in step: each part is written once the one before was read, so that whatever holds one back stops
the test, however fast the machine is.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.support.running import port_of, running_agent, running_server, settled
from tests.support.sockets import LOOPBACK
from tests.support.tunnelled import chunk, read_head, serving

PARTS = [b'{"part": %d}\n' % number for number in range(4)]
KINDS = (
    "application/x-ndjson",
    "application/json",
    "application/grpc-web+proto",
    "application/octet-stream",
    "multipart/x-mixed-replace; boundary=b",
    "text/plain; charset=utf-8",
    "text/html",
    "",
)
FRAMINGS = {
    "chunked": b"Transfer-Encoding: chunked\r\n",
    "length": b"Content-Length: %d\r\n" % sum(map(len, PARTS)),
    "close": b"Connection: close\r\n",
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_each_part_arrives_before_the_next_is_made(framing: str, method: str) -> None:
    read = asyncio.Semaphore(0)

    async def in_step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = KINDS[int((await read_head(reader)).split()[1][1:])]
        head = b"HTTP/1.1 200 OK\r\n" + FRAMINGS[framing]
        writer.write(head + (f"Content-Type: {kind}\r\n\r\n".encode() if kind else b"\r\n"))
        for part in PARTS:
            writer.write(chunk(part) if framing == "chunked" else part)
            await read.acquire()
        writer.write(b"0\r\n\r\n" if framing == "chunked" else b"")

    async with (
        serving(in_step) as address,
        running_server() as server,
        running_agent(f"ws://{LOOPBACK}:{port_of(server)}", address) as (_, tunnel),
    ):
        await settled(lambda: tunnel.state in ("online", "degraded"))
        for number in range(len(KINDS)):
            reader, writer = await asyncio.open_connection(LOOPBACK, port_of(server))
            more = "Content-Length: 0\r\n" if method == "POST" else ""
            writer.write(f"{method} /t/app/{number} HTTP/1.1\r\nHost: h\r\n{more}\r\n".encode())
            async with asyncio.timeout(5):
                await reader.readuntil(b"\r\n\r\n")
                for part in PARTS:
                    await reader.readuntil(part)
                    read.release()
            writer.close()
            await writer.wait_closed()
