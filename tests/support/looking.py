"""An agent whose tunnel may be looked into, with a service that says what a test wants."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from tests.support.running import agent_settings, port_of, running_server, settled, url_of
from tests.support.sockets import LOOPBACK
from tests.support.ws_raw import accept_of
from tunneld.agent.inspection import Seen
from tunneld.agent.inspector import Inspector
from tunneld.agent.record import Record
from tunneld.config.agent import AgentConfig, InspectionConfig
from tunneld.control.host import AgentHost
from tunneld.protocol.headers import Headers
from tunneld.protocol.messages import Open, encode

__all__ = ["LookedInto", "Service", "head", "looking", "stream_id"]


class LookedInto:
    """An inspector, and requests that come and go without a tunnel."""

    def __init__(self, **config: int) -> None:
        self.live: dict[str, Record] = {}
        self.inspector = Inspector(InspectionConfig(**config), self.live)

    def begin(self, request: Open, opening: bytes = b"") -> Record:
        """One comes; `opening`: as it came, where that is not as our own encoding."""
        record = self.live[request.request_id] = Record("demo", request)
        record.opening = opening or encode(request)
        return record

    def seen(self, request: Open) -> Seen:
        """One that is asked for at once."""
        seen = self.inspector.of(self.begin(request))
        assert seen is not None
        return seen

    def end(self, request_id: str, reason: str = "done") -> None:
        """It is over."""
        record = self.live.pop(request_id)
        record.reason = reason
        self.inspector.over(record, monotonic())


def head(headers: Headers, status: int = 200) -> str:
    """An answer's head, as a service sends it."""
    return "".join([f"HTTP/1.1 {status} X\r\n", *(f"{name}: {value}\r\n" for name, value in headers), "\r\n"])


class Service:
    """SSE at /sse, a WebSocket at /ws, as `push` says; an echo of method, path, body and one header elsewhere.

    Attributes:
        packed: Content-Encoding of the event streams, whose bytes are pushed as they are; the echo's where it is gzip.
            Empty: none.
    """

    def __init__(self) -> None:
        self.open: set[asyncio.StreamWriter] = set()
        self.bodies: list[bytes] = []
        self.packed = ""
        self.host: AgentHost

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET /sse"):
                    packed = f"Content-Encoding: {self.packed}\r\n" if self.packed else ""
                    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{packed}\r\n".encode())
                    self.open.add(writer)
                    await reader.read()
                    return
                if head.startswith("GET /ws"):
                    key = next(line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key:"))
                    upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    writer.write(f"{upgrade}Sec-WebSocket-Accept: {accept_of(key[18:].strip())}\r\n\r\n".encode())
                    self.open.add(writer)
                    await reader.read()
                    return
                found = [line for line in head.lower().splitlines() if line.startswith("content-length:")]
                body = await reader.readexactly(int(found[0][15:])) if found else b""
                self.bodies.append(body)
                told = json.dumps([head.split(" ")[0], head.split(" ")[1], body.decode(), "topsecret" in head]).encode()
                packed = b""
                if self.packed == "gzip":
                    told, packed = gzip.compress(told), b"Content-Encoding: gzip\r\n"
                begin = b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=topsecret\r\n%bContent-Length: %d" % (packed, len(told))
                writer.write(b"%b\r\n\r\n%b" % (begin, told))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()

    async def push(self, data: bytes) -> None:
        """Say this on every open event stream; waits for the first of them."""
        await settled(lambda: bool(self.open))
        for writer in self.open:
            writer.write(data)


@asynccontextmanager
async def looking(
    folder: Path, *, inspect: bool = True, **more: Any
) -> AsyncIterator[tuple[Service, httpx.AsyncClient, str, httpx.AsyncClient]]:
    """(service, client of the control socket, public address, visitors' client)."""
    service = Service()
    listening = await asyncio.start_server(service.serve, LOOPBACK, 0)
    address = f"http://{LOOPBACK}:{listening.sockets[0].getsockname()[1]}"
    one = {"name": "app", "service": address, "inspect": inspect}
    async with running_server() as server:
        over = {"control": {"socket": str(folder / "c.sock")}, "tunnels": [one], **more}
        host = AgentHost(AgentConfig(**agent_settings(url_of(server), address, over)), None)
        service.host = host
        await host.start()
        try:
            transport = httpx.AsyncHTTPTransport(uds=str(folder / "c.sock"))
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as control,
                httpx.AsyncClient(timeout=20) as visitor,
            ):
                await settled(lambda: host.agent.tunnels[0].state == "online")
                yield service, control, f"http://{LOOPBACK}:{port_of(server)}/t/app", visitor
        finally:
            await host.stop()
            listening.close()


async def stream_id(control: httpx.AsyncClient) -> str:
    """The id of the stream that is, or will be, under way."""
    found: list[Any] = []
    while not found:
        found = (await control.get("/v1/streams")).json()["streams"]
    return str(found[0]["request_id"])
