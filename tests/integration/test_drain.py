"""Leaving: open work ends by itself or visibly, new work goes elsewhere, and nothing is left of the process."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import httpx
import pytest

from tests.support.daemons import Pair
from tests.support.peers import Peer, hello, peer
from tests.support.running import Book, port_of, running_agent, running_server, settled, url_of
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK
from tests.support.tunnelled import read_head, reply, serving
from tests.support.visitors import Curl, request_id
from tunneld.errors import VisitorError
from tunneld.protocol.frames import OPEN, split

ABORTED = (18, 56)


async def test_a_draining_agent_finishes_what_is_open_and_takes_nothing_new(lines: Book) -> None:
    release, begun = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        begun.set()
        await release.wait()
        writer.write(reply(b"late"))

    async with (
        serving(slow) as address,
        running_server(limits={"hold": 0.2}) as server,
        running_agent(url_of(server), address) as (agent, tunnel),
        httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port_of(server)}", timeout=10) as client,
    ):
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
        loop = asyncio.get_running_loop()
        open_one = loop.create_task(client.get("/t/app/x"))
        await begun.wait()
        drained = loop.create_task(agent.drain())
        await lines.wait("goes away", by="tunneld.tunnels")
        assert tunnel.state == "draining"
        refused = await client.get("/t/app/y")
        assert refused.status_code == 503
        assert refused.headers["X-Tunnel-Error"] == "tunnel_offline"
        assert int(refused.headers["Retry-After"]) >= 1
        with pytest.raises(VisitorError, match="draining"):  # it would end what may end by itself
            agent.reconnect("app")
        assert tunnel.state == "draining"
        assert not drained.done()
        release.set()
        assert (await open_one).text == "late"
        await drained
        assert agent.status_line().startswith("0 of 1 tunnels up, 0 streams")


async def opened(agent: Peer, count: int) -> list[tuple[int, str]]:
    """(stream id, request id) of the next OPENs."""
    found: list[tuple[int, str]] = []
    while len(found) < count:
        message = await agent.next()
        if isinstance(message, bytes):
            frames = split(message)
            found += [
                (number, json.loads(payload)["request_id"]) for kind, number, payload in frames if kind & 0x7F == OPEN
            ]
    return found


async def test_an_open_that_crosses_goaway_is_not_lost() -> None:
    async with (
        running_server(limits={"hold": 10}) as server,
        httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port_of(server)}", timeout=10) as client,
    ):
        async with peer(url_of(server)) as leaving:
            await leaving.hello(instance="old")
            visitor = asyncio.get_running_loop().create_task(client.get("/t/app/x"))
            ((_, name),) = await opened(leaving, 1)
            await leaving.say({"type": "goaway", "reason": "drain", "retry_after": 0})
            await leaving.say({"type": "stream_cancel", "request_id": name, "reason": "refused"})
            await settled(lambda: not server.registry.find("app").online)  # type: ignore[union-attr]
            later = asyncio.get_running_loop().create_task(client.get("/t/app/y"))
            await settled(lambda: len(server.ingress.exchanges) == 2)
        assert not visitor.done()
        async with peer(url_of(server)) as coming:
            await coming.say(hello(instance="new"))
            for number, _ in await opened(coming, 2):
                head = b'{"status":204,"headers":[]}'
                await coming.say(b"\x82" + number.to_bytes(4, "big") + len(head).to_bytes(4, "big") + head)
            assert (await visitor).status_code == 204
            assert (await later).status_code == 204


async def test_a_server_that_stops_tells_its_agents(lines: Book) -> None:
    async with running_server(drain_timeout=0.2) as server, peer(url_of(server)) as agent:
        await agent.hello()
        draining = asyncio.get_running_loop().create_task(server.drain())
        assert (await agent.want("goaway"))["reason"] == "shutdown"
        await draining
        stopping = asyncio.get_running_loop().create_task(server.stop())
        said = await agent.want("error")
        assert said["code"] == "going_away"
        assert said["retry_after"] > 0
        assert (await agent.over())[1] == 1001
        await stopping


# -- processes and signals


@pytest.fixture
def service() -> Iterator[SampleService]:
    made = SampleService()
    yield made
    made.stop()


def begin(folder: Path, service: SampleService, drain: float) -> Pair:
    settings = {"drain_timeout": drain, "reconnect": {"initial": 0.1, "max": 1}}
    server = {"drain_timeout": drain, "limits": {"hold": 0.1}}
    return Pair(folder, {"app": service.url}, server=server, agent=settings)


def listening(pair: Pair, name: str) -> Curl:
    curl = Curl(pair.url("app", f"/quiet?id={name}"), "-H", "Accept: text/event-stream")
    curl.wait_line("data: hello")
    return curl


def test_an_agent_that_is_stopped_ends_events_visibly_and_lets_short_work_end(
    folder: Path, service: SampleService
) -> None:
    pair = begin(folder, service, 1.5)
    try:
        events = listening(pair, "sse")
        short = Curl(pair.url("app", "/slow?s=0.7&id=short"))
        service.wait_open("short")
        agent, server = pair.processes
        since = monotonic()
        agent.signal(signal.SIGTERM)
        agent.wait_line("Stopping: open streams have 1.5 s to end.")
        assert short.wait() == 0
        assert short.matching("late")
        assert events.wait() in ABORTED
        took = (agent.wait() and 0) or monotonic() - since
        assert 1.4 <= took < 4
        server.wait_line(f"🧹 Cleaned up stream: {request_id(events.head())}")
        (line,) = server.matching(f"🧹 Cleaned up stream: {request_id(events.head())}")
        assert "shutdown" in line.text
        (line,) = agent.matching(f"🧹 Cleaned up stream: {request_id(events.head())}")
        assert "shutdown" in line.text
        service.wait_closed("sse")
        assert not pair.agent.socket.exists()
        agent.assert_clean()
        assert not agent.matching("Warning")
        pair.close()
    finally:
        pair.discard()


@pytest.mark.parametrize("who", ["agent", "server"])
def test_a_second_signal_leaves_at_once(folder: Path, service: SampleService, who: str) -> None:
    pair = begin(folder, service, 30)
    try:
        events = listening(pair, "sse")
        process = pair.agent.process if who == "agent" else pair.server.process
        process.signal(signal.SIGTERM)
        process.wait_line("Stopping: open streams have 30 s to end.")
        since = monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert monotonic() - since < 4
        assert events.wait() in ABORTED
        service.wait_closed("sse")
        process.assert_clean()
        pair.close()
    finally:
        pair.discard()


def test_without_a_drain_timeout_the_end_is_at_once(folder: Path, service: SampleService) -> None:
    pair = begin(folder, service, 0)
    try:
        events = listening(pair, "sse")
        for process in pair.processes:
            process.signal(signal.SIGTERM)
            process.wait_line("Stopping at once: drain_timeout is 0.")
            assert process.wait() == 0
        assert events.wait() in ABORTED
        pair.close()
    finally:
        pair.discard()


@pytest.mark.timeout(60)  # three programs start in turn, and the agent waits for as long as the server asked it to
def test_a_server_that_restarts_gets_its_agents_back(folder: Path, service: SampleService) -> None:
    pair = begin(folder, service, 0.3)
    try:
        events = listening(pair, "sse")
        agent, server = pair.processes
        mark = agent.mark()
        server.signal(signal.SIGTERM)
        agent.wait_line("The server goes away: shutdown", after=mark)
        assert events.wait() in ABORTED
        (line,) = [agent.wait_line("🧹 Cleaned up stream", after=mark)]
        assert "shutdown" in line.text
        assert server.wait() == 0
        server.assert_clean()
        agent.wait_line("going_away", after=mark)
        pair.server.restart()
        agent.wait_line("✓ Tunnel established: app", after=mark, timeout=30)
        assert httpx.get(pair.url("app", "/small")).status_code == 200
        pair.close()
    finally:
        pair.discard()


def test_tunnelctl_drain(folder: Path, service: SampleService) -> None:
    """What is open may end, nothing new comes in, and the agent leaves when the last one is over."""
    pair = begin(folder, service, 20)
    try:
        events = listening(pair, "sse")
        said = pair.agent.ask("drain")
        assert said["draining"] is True
        assert said["streams"] == 1
        assert said["timeout_s"] == 20
        assert httpx.get(pair.url("app", "/small")).status_code == 503
        (tunnel,) = pair.agent.ask("status")["tunnels"]
        assert tunnel["state"] == "draining"
        assert events.running
        events.signal(signal.SIGTERM)
        events.wait()
        assert pair.agent.process.wait(10) == 0
        pair.server.process.wait_line("closed (1000 shutdown)", timeout=5)
        pair.close()
    finally:
        pair.discard()


def test_tunnelctl_drain_with_nothing_open_is_answered_and_leaves_at_once(folder: Path, service: SampleService) -> None:
    pair = begin(folder, service, 20)
    try:
        done = pair.agent.tunnelctl("drain")
        assert done.returncode == 0, done.stderr
        assert "0 streams left" in done.stdout
        assert pair.agent.process.wait(5) == 0
        pair.close()
    finally:
        pair.discard()


def test_tunnelctl_drain_ends_what_is_left_after_drain_timeout(folder: Path, service: SampleService) -> None:
    pair = begin(folder, service, 1)
    try:
        events = listening(pair, "sse")
        since = monotonic()
        pair.agent.ask("drain")
        assert pair.agent.process.wait(10) == 0
        assert monotonic() - since >= 0.9
        assert events.wait() in ABORTED
        assert pair.agent.process.matching("shutdown")
        pair.close()
    finally:
        pair.discard()
