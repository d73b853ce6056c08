"""Connections before what answers them is loaded: nothing is, until one of them says something."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI

from tests.support.running import settled
from tunneld.control import doors
from tunneld.control.doors import Doors

REQUEST = b"GET /word HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
log = logging.getLogger("tunneld.test")


def application() -> FastAPI:
    app = FastAPI()

    @app.get("/word")
    async def word() -> str:
        return "heard"

    return app


@asynccontextmanager
async def opened(
    folder: Path, make: Callable[[], FastAPI], early: Callable[[bytes, object], bytes | None] | None = None
) -> AsyncIterator[str]:
    """Doors on a Unix socket; its path."""
    made = Doors(make, what="API of the test", log=log, early=early)
    path = str(folder / "s")
    server = await asyncio.get_running_loop().create_unix_server(made.open, path)
    try:
        yield path
    finally:
        server.close()
        await made.stop()


async def ended(reader: asyncio.StreamReader) -> bool:
    """The connection is over, and nothing came."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def test_who_says_nothing_loads_nothing_and_is_served_once_somebody_spoke(folder: Path) -> None:
    made: list[FastAPI] = []

    def make() -> FastAPI:
        made.append(application())
        return made[0]

    async with opened(folder, make) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        other, said = await asyncio.open_unix_connection(path)
        await asyncio.sleep(0)
        assert made == []
        said.write(REQUEST)
        assert (await other.read()).endswith(b'"heard"')
        assert len(made) == 1
        writer.write(REQUEST)  # the silent one stood all the while
        assert (await reader.read()).endswith(b'"heard"')
        assert len(made) == 1
        for each in (writer, said):
            each.close()


async def test_who_stays_silent_is_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "IDLE", 0.05)

    def never() -> FastAPI:
        raise AssertionError("nobody asked")

    async with opened(folder, never) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        assert await ended(reader)
        writer.close()


async def test_what_needs_no_application_loads_none(folder: Path) -> None:
    def never() -> FastAPI:
        raise AssertionError("nobody asked")

    async with opened(folder, never, lambda data, peer: b"HTTP/1.1 204 No\r\n\r\n") as path:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(REQUEST)
        assert await reader.read() == b"HTTP/1.1 204 No\r\n\r\n"
        writer.close()


async def test_what_cannot_be_loaded_is_tried_again_at_the_next_word(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def make() -> FastAPI:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("too many open files")
        return application()

    async with opened(folder, make) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(REQUEST)
        await settled(lambda: "The API of the test cannot be served." in caplog.text)
        assert await ended(reader)
        writer.close()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(REQUEST)
        assert (await reader.read()).endswith(b'"heard"')
        writer.close()


_COLLECTED = """
import asyncio, gc, logging, sys
from fastapi import FastAPI
from tunneld.control.doors import Doors

async def main():
    made = Doors(FastAPI, what="API", log=logging.getLogger())
    server = await asyncio.get_running_loop().create_unix_server(made.open, sys.argv[1])
    reader, writer = await asyncio.open_unix_connection(sys.argv[1])
    writer.write(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.close()
    server.close()
    await made.stop()

if "daemon" in sys.argv:
    gc.freeze()
asyncio.run(main())
print(gc.isenabled(), len(gc.get_objects()))
"""


def test_a_daemon_s_collector_leaves_what_was_loaded_alone(folder: Path) -> None:
    """In processes of their own, since what is left alone once stays so; nobody else's collector is touched."""

    def left(name: str, *more: str) -> tuple[str, int]:
        argv = [sys.executable, "-c", _COLLECTED, str(folder / name), *more]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=15)
        enabled, count = done.stdout.split()
        return enabled, int(count)

    enabled, count = left("d", "daemon")
    other_enabled, other_count = left("o")
    assert (enabled, other_enabled) == ("True", "True")
    assert count < 2000 < 20_000 < other_count
