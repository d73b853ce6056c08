"""The demo's sample service, asked directly, without a tunnel."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tunneld.demo.hosting import Hosted
from tunneld.demo.service import MAX_ECHO, create_app


@pytest.fixture
async def address() -> AsyncIterator[str]:
    sock = socket.create_server(("127.0.0.1", 0))
    app = create_app(commands={"curl": "curl -N <x>", "streams": "s", "cancel": "c"}, interval=0.01)
    hosted = Hosted(app, sock)
    host, port = sock.getsockname()
    await hosted.start()
    yield f"http://{host}:{port}"
    await hosted.stop()


class _Said(logging.Handler):
    """Awaits a line of the service."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put_nowait(record.getMessage())


@pytest.fixture
def said() -> Iterator[_Said]:
    log = logging.getLogger("tunneld.demo")
    handler, level = _Said(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


async def test_the_page_offers_its_commands_and_loads_nothing_from_elsewhere(address: str) -> None:
    async with httpx.AsyncClient(base_url=address) as client:
        answer = await client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "curl -N &lt;x&gt;" in answer.text
    assert "{{" not in answer.text
    assert "://" not in answer.text
    assert 'EventSource("./sse")' in answer.text


async def test_events_go_on_after_the_last_one_and_stop_with_their_client(address: str, said: _Said) -> None:
    async with httpx.AsyncClient(base_url=address) as client:
        async with client.stream("GET", "/sse", headers={"Last-Event-ID": "41"}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            assert await anext(lines) == "id: 42"
            data = json.loads((await anext(lines)).removeprefix("data: "))
            assert (data["number"], data["live"]) == (42, 1)
            assert (await client.get("/live")).json() == {"live": 1}
        line = await said.lines.get()
        assert line.startswith("service: client gone, work stopped after ")
        assert line.endswith(" ms")
        assert (await client.get("/live")).json() == {"live": 0}


@pytest.mark.parametrize("last", ["", "x", "-1", "٣", "1" * 5])
async def test_any_last_id_is_survived(address: str, last: str) -> None:
    headers = {"Last-Event-ID": last.encode()}
    async with (
        httpx.AsyncClient(base_url=address) as client,
        client.stream("GET", "/sse", headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert (await anext(answer.aiter_lines())).startswith("id: ")


async def test_echo(address: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    async with httpx.AsyncClient(base_url=address) as client:
        answer = await client.post("/echo", content=body(), headers={"Content-Type": "text/x"})
        assert (answer.content, answer.headers["content-type"]) == (b"one two", "text/x")
        assert (await client.post("/echo", content=bytes(MAX_ECHO + 1))).status_code == 413


async def test_slow_answers_in_its_time_or_stops_with_its_client(address: str, said: _Said) -> None:
    async with httpx.AsyncClient(base_url=address) as client:
        assert (await client.get("/slow?seconds=0.01")).text == "thought for 0.01 s\n"
    reader, writer = await asyncio.open_connection(*address.removeprefix("http://").split(":"))
    writer.write(b"GET /slow?seconds=60 HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.write_eof()
    assert "work stopped" in await said.lines.get()
    assert await reader.read() == b""
    writer.close()


async def test_stopping_ends_the_work(said: _Said) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    hosted = Hosted(create_app(commands={}, interval=60), sock)
    await hosted.start()
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\n\n")
    await hosted.stop()
    assert "work stopped" in said.lines.get_nowait()
    writer.close()
