"""All tunnels of a process: what happens is told, counted, and stays within its tunnel."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running import Book, port_of, running_agent, running_server, tasks, url_of
from tests.support.sockets import LOOPBACK
from tests.support.tunnelled import read_head, reply, serving
from tunneld.agent.daemon import AgentDaemon
from tunneld.config.agent import AgentConfig
from tunneld.errors import ConfigError, VisitorError


async def test_several_tunnels_count_together_and_apart(lines: Book) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(reply(b"hello"))
        writer.close()

    async with serving(handler) as address, running_server() as server:
        two = [{"name": "app", "service": address}, {"name": "other", "service": address}]
        async with (
            running_agent(url_of(server), address, tunnels=two) as (agent, _),
            httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port_of(server)}") as client,
        ):
            told: list[dict[str, Any]] = []
            leave = agent.subscribe(told.append)
            await lines.wait("✓ Tunnel established", by="tunneld.tunnel", count=2)
            for name in ("app", "other", "other"):
                assert (await client.get(f"/t/{name}/x")).text == "hello"
            await lines.until(lambda: not agent.active_streams)
            assert agent.sums() == [3, 0, 15]
            opened = [event["tunnel"] for event in told if event["type"] == "stream_opened"]
            assert opened == ["app", "other", "other"]
            closed = [event for event in told if event["type"] == "stream_closed"]
            assert [(event["reason"], event["bytes_out"]) for event in closed] == [("done", 5)] * 3
            ids = [event["id"] for event in told]
            assert ids == sorted(set(ids))
            assert all(event["time"].endswith("Z") for event in told)
            leave()
            leave()
            count = len(told)
            agent.reconnect("app")
            await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel", count=2)
            assert len(told) == count
            agent._close("other", "shutdown")
            assert agent.sums() == [3, 0, 15]  # of a tunnel that is gone, too
            with pytest.raises(VisitorError) as caught:
                agent.reconnect("other")
            assert caught.value.code == "no_such_tunnel"
            assert not agent.cancel("no such request")


async def test_a_credential_that_cannot_be_read_stops_it_before_it_dials(tmp_path: Path) -> None:
    before = tasks()
    config = AgentConfig(
        server={"url": "ws://127.0.0.1:1", "token_file": str(tmp_path / "none")},
        tunnels=[{"name": "app", "service": "http://127.0.0.1:1"}],
    )
    agent = AgentDaemon(config, None)
    with pytest.raises(ConfigError) as caught:
        await agent.start()
    assert str(tmp_path / "none") in str(caught.value)
    assert not agent.tunnels
    assert tasks() == before


async def test_draining_twice_is_one_drain(lines: Book) -> None:
    async with running_agent("ws://127.0.0.1:1") as (agent, _):
        assert agent.begin_drain() == 0
        await agent.drain()
        assert len(lines.find("Draining")) == 1
