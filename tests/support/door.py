"""A door into a network namespace: `python -m tests.support.door FD PORT`.

Takes connections on a listening socket that was made outside, and passes their bytes to that port of the loopback that
it runs beside: a socket belongs to the namespace that it was made in, whoever holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

LOOPBACK = "127.0.0.1"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _main(fd: int, port: int) -> None:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, back), _copy(there, writer))

    server = await asyncio.start_server(take, sock=socket.socket(fileno=fd))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
