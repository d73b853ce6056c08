"""Sources that never stop and readers that never read, of each kind of stream: what a tunnel then holds is bounded.

`python -m tests.support.flooding --port N` is the service: what it sends, it sends as fast as it is taken.

| address | what |
| --- | --- |
| `/down` | a body without an end, under a Content-Length |
| `/events` | SSE: small events with ids |
| `/drip` | a chunked body of one byte a write |
| `/up` | takes an upload and drops it |
| `/deaf` | takes no byte of an upload |
| `/socket` | a WebSocket that sends small messages |
| `/poll` | never answers |
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import signal
import socket
import sys
from collections.abc import AsyncIterator

from tests.support.processes import python_module
from tests.support.programs import run
from tests.support.services import ToldService
from tests.support.sockets import LOOPBACK, free_port
from tests.support.ws_raw import FIN, TEXT, accept_of, frame

__all__ = ["KINDS", "FloodingService", "flooded"]

#: Each with a reader that does not read, or a sender that does not stop.
KINDS = ("down", "events", "drip", "up", "deaf", "socket", "poll")
_BLOCK = bytes(64 * 1024)
_EVENT = b"id: %08d\ndata: an event of the flood\n\n"
_EVENTS = b"".join(b"%x\r\n%b\r\n" % (len(_EVENT % 0), _EVENT % number) for number in range(500))
_MESSAGES = frame(FIN | TEXT, b"a message of the flood", mask=False) * 500
_LENGTH = 1 << 40


class FloodingService(ToldService):
    """This module's service in a process of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        argv = python_module("tests.support.flooding", "--port", str(self.port))
        super().__init__(argv, name="flood", url=f"http://{LOOPBACK}:{self.port}")


@contextlib.asynccontextmanager
async def flooded(port: int, prefix: str, count: int) -> AsyncIterator[None]:
    """`count` visitors of the server on that port, of all `KINDS` in turn; each has sent its request."""
    loop = asyncio.get_running_loop()
    writers: list[asyncio.StreamWriter] = []
    sending: list[asyncio.Task[None]] = []
    try:
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            # its StreamReader takes two kibibytes and then reads no more
            _, writer = await asyncio.open_connection(LOOPBACK, port, limit=1024)
            writers.append(writer)
            writer.write(_request(prefix, kind))
            if kind in ("up", "deaf"):
                sending.append(loop.create_task(_pour(writer, _BLOCK), name=f"upload {number}"))
        yield
    finally:
        for task in sending:
            task.cancel()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*sending, return_exceptions=True)


def _request(prefix: str, kind: str) -> bytes:
    method = "POST" if kind in ("up", "deaf") else "GET"
    head = f"{method} {prefix}/{kind} HTTP/1.1\r\nHost: localhost\r\n"
    if method == "POST":
        head += f"Content-Length: {_LENGTH}\r\n"
    if kind == "events":
        head += "Accept: text/event-stream\r\n"
    if kind == "socket":
        head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    return head.encode() + b"\r\n"


async def _pour(writer: asyncio.StreamWriter, block: bytes, *, pause: float = 0.0) -> None:
    """Write for ever, as fast as it is taken."""
    with contextlib.suppress(OSError):
        while True:
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(pause)


async def _visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        kind = head.split(" ", 2)[1].rpartition("/")[2]
        if kind == "down":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % _LENGTH)
            await _pour(writer, _BLOCK)
        elif kind == "events":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            await _pour(writer, _EVENTS)
        elif kind == "drip":
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await _pour(writer, b"1\r\nx\r\n", pause=0.02)
        elif kind == "socket":
            key = next(line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key:"))
            answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            answer += f"Sec-WebSocket-Accept: {accept_of(key.partition(':')[2].strip())}\r\n\r\n"
            writer.write(answer.encode())
            await _pour(writer, _MESSAGES)
        elif kind == "up":
            while await reader.read(1 << 18):
                pass
        else:  # a StreamReader takes two times its limit, and then reads no more
            await _never().wait()
    writer.transport.abort()


@functools.cache
def _never() -> asyncio.Event:
    """Kept here: a task that waits for what nobody else has may be collected."""
    return asyncio.Event()


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(_visited, LOOPBACK, port, backlog=4096)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.stdout.write('{"event": "ready"}\n')
    await stop.wait()
    server.close()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    run(_serve(port))


if __name__ == "__main__":
    main()
