"""An agent that is restarted leaves its sessions to its successor: what goes on, what ends, and how each is seen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.resumable import ResumableService, read_events
from tests.support.running import Book, agent_settings, book, port_of, running_server, url_of
from tunneld.agent import handover
from tunneld.agent.daemon import AgentDaemon
from tunneld.config.agent import AgentConfig
from tunneld.server.daemon import ServerDaemon

GRACE = {"resume": {"grace": 20}}


class World:
    """A server, a service, and agents one after another in one runtime directory."""

    server: ServerDaemon
    agent: AgentDaemon

    def __init__(self, folder: Path, log: Book) -> None:
        self.folder = folder
        self.log = log
        self.service = ResumableService()
        self.agents = 0
        self.settings: dict[str, Any] = {"drain_timeout": 1}
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        """The next agent, online."""
        mark = self.log.mark()
        config = AgentConfig(**agent_settings(url_of(self.server), self.service.url, self.settings))
        self.agent = AgentDaemon(config, None, self.folder)
        await self.agent.start()
        await self.log.wait("✓ Tunnel established", by="tunneld.tunnel", after=mark)
        self.resumed = bool(
            self.log.find("✓ Tunnel established", by="tunneld.tunnel", after=mark)[0].fields.get("resumed")
        )

    async def stop(self) -> None:
        """As SIGTERM does."""
        try:
            async with asyncio.timeout(self.agent.drain_timeout):
                await self.agent.drain()
        except TimeoutError:
            pass
        await self.agent.stop()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def visit(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(self.server))
        self.writers.append(writer)
        writer.write(f"GET /t/app{path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head, head
        return reader, writer


@asynccontextmanager
async def world(folder: Path, **server: Any) -> AsyncIterator[World]:
    with book() as log:
        it = World(folder, log)
        await it.service.start()
        async with running_server(**(server or GRACE)) as it.server:
            await it.start()
            try:
                yield it
            finally:
                await it.agent.stop()
                for writer in it.writers:
                    writer.transport.abort()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        await it.service.close()


async def test_an_event_stream_goes_on_in_the_same_response(folder: Path) -> None:
    async with world(folder) as it:
        reader, _ = await it.visit("/resume")
        await read_events(reader, 5, after=0)
        began = asyncio.get_running_loop().time()
        await it.restart()
        assert asyncio.get_running_loop().time() - began < it.agent.drain_timeout  # nothing waited for its end
        assert it.resumed
        await it.log.wait("▶ Event stream recovered")
        await read_events(reader, 200, after=5)
        assert [path for path, _ in it.service.asked] == ["/resume", "/resume"]


async def test_one_that_does_not_drain_leaves_them_too(folder: Path) -> None:
    async with world(folder) as it:
        reader, _ = await it.visit("/resume")
        await read_events(reader, 3, after=0)
        await it.agent.stop()  # drain_timeout: 0, or a second signal
        await it.start()
        assert it.resumed
        await read_events(reader, 20, after=3)


async def test_again_and_again(folder: Path) -> None:
    async with world(folder) as it:
        reader, _ = await it.visit("/resume")
        last = 0
        for _ in range(6):
            last = await read_events(reader, 5, after=last)
            await it.restart()
            assert it.resumed
        await read_events(reader, 50, after=last)
        assert not it.log.find("conflict")


async def test_without_streams_the_session_is_the_same(folder: Path) -> None:
    async with world(folder) as it:
        before = it.agent.tunnels[0].connected
        await it.restart()
        after = it.agent.tunnels[0].connected
        assert before is not None
        assert after is not None
        assert it.resumed
        assert after.session_id == before.session_id
        assert not it.log.find("The session of app is over")


async def test_what_cannot_go_on_ends_visibly(folder: Path) -> None:
    async with world(folder) as it:
        plain, _ = await it.visit("/plain")
        await plain.readuntil(b"\n")
        none, _ = await it.visit("/none")
        await none.readuntil(b"\n\n")
        await it.restart()
        for reader in (plain, none):
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_requests_that_come_meanwhile_wait_for_the_successor(folder: Path) -> None:
    async with world(folder) as it:
        stopping = asyncio.get_running_loop().create_task(it.restart(), name="restart")
        for _ in range(30):
            await it.visit("/resume")  # answered 200, whenever it comes
            await asyncio.sleep(0.01)
        await stopping


async def test_nobody_waits_longer_than_was_said(folder: Path) -> None:
    async with world(folder) as it:
        it.settings["resume"] = {"restart": 0.5}
        await it.restart()
        reader, _ = await it.visit("/resume")
        await read_events(reader, 3, after=0)
        await it.stop()
        stopped = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert 0.2 < asyncio.get_running_loop().time() - stopped < 10  # the grace is 20
        await it.start()
        assert not it.resumed


async def test_an_operator_who_drains_wants_it_to_go(folder: Path) -> None:
    async with world(folder) as it:
        reader, _ = await it.visit("/resume")
        await read_events(reader, 3, after=0)
        it.agent.begin_drain()
        await it.stop()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert not (folder / handover.FILE).exists()
        await it.start()


async def test_where_nothing_is_kept_nothing_is_left(folder: Path) -> None:
    async with world(folder, resume={"grace": 0}) as it:
        reader, _ = await it.visit("/resume")
        await read_events(reader, 3, after=0)
        await it.stop()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        estate = handover.take(folder)
        assert estate is not None
        assert estate.tunnels == {}
        await it.start()


async def test_the_file_is_for_one_pair_of_eyes_and_one_reading(folder: Path) -> None:
    async with world(folder) as it:
        await it.stop()
        path = folder / handover.FILE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await it.start()
        assert it.resumed
        assert not path.exists()


@pytest.mark.parametrize("harm", ["damaged", "open", "link", "old"])
async def test_a_file_that_cannot_be_trusted_costs_the_sessions_and_no_more(folder: Path, harm: str) -> None:
    async with world(folder) as it:
        reader, _ = await it.visit("/resume")
        await read_events(reader, 3, after=0)
        await it.stop()
        path = folder / handover.FILE
        if harm == "damaged":
            path.write_bytes(path.read_bytes()[:-9])
        elif harm == "open":
            path.chmod(0o644)
        elif harm == "link":
            os.replace(path, folder / "elsewhere")
            path.symlink_to(folder / "elsewhere")
        else:
            old = path.read_bytes()
            await it.start()
            await it.stop()
            path.write_bytes(old)
        await it.start()
        assert not it.resumed
        if harm != "old":
            assert it.log.find("all sessions are new", by="tunneld.agent")
        await read_events(reader, 20, after=3)  # the fresh hello is enough for it


async def test_a_full_disk_costs_the_sessions_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    async with world(folder) as it:
        reader, _ = await it.visit("/resume")
        await read_events(reader, 3, after=0)
        with monkeypatch.context() as patch:
            patch.setattr(handover.os, "open", full)
            await it.stop()
        assert it.log.find("cannot be written, a successor begins with new sessions: No space left on device")
        await it.start()
        assert not it.resumed
        await read_events(reader, 20, after=3)
