"""A service whose event streams resume by ``Last-Event-ID``, or fail to, each in its way; it can be broken."""

from __future__ import annotations

import asyncio
import contextlib

from tunneld.wire.sockets import reset

__all__ = ["ResumableService", "read_events"]


class ResumableService:
    """Answers each path in its own way, every `gap` seconds one event, in chunks.

    | path | what |
    | --- | --- |
    | `/resume` | numbered events, from the one after ``Last-Event-ID`` |
    | `/repeat` | the same, but the last one is sent again |
    | `/anew` | from 1, whatever is asked for |
    | `/none`, `/empty` | events without an id, with an empty one |
    | `/plain` | bytes that are no events |

    Attributes:
        asked: (path, ``Last-Event-ID`` or None) of each request, in order.
        live: streams under way.
    """

    def __init__(self, gap: float = 0.01) -> None:
        self.gap = gap
        self.asked: list[tuple[str, str | None]] = []
        self.live: set[asyncio.StreamWriter] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the port that it had before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Be gone, as if killed: no listener, and every stream is reset."""
        assert self._server is not None
        self._server.close()
        for writer in list(self.live):
            reset(writer.transport)  # type: ignore[arg-type]

    async def close(self) -> None:
        """Stop, and wait until nothing is left."""
        self.stop()
        while self.live:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.live.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            path = first.split(" ")[1]
            fields = dict(line.lower().split(": ", 1) for line in lines if line)
            last = fields.get("last-event-id")
            self.asked.append((path, last))
            kind = "text/plain" if path == "/plain" else "text/event-stream"
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            number = 1 if last is None or path == "/anew" else int(last) + (path != "/repeat")
            while not writer.transport.is_closing():
                mark = {"/none": "", "/empty": "id\n"}.get(path, f"id: {number}\n")
                event = f"{mark}data: {number}\n\n".encode()
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
                number += 1
                await asyncio.sleep(self.gap)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.live.discard(writer)


async def read_events(reader: asyncio.StreamReader, count: int, *, after: int) -> int:
    """Read events until `after + count`, each exactly one above the one before; returns the last number."""
    last = after
    while last < after + count:
        line = await reader.readline()
        assert line, "the visitor's stream ended"
        if line.startswith(b"data: "):
            assert int(line[6:]) == last + 1, f"after {last} came {line!r}"
            last += 1
    return last
