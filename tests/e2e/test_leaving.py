"""A daemon is told to go while all that it can carry is under way, and all that it tells of hangs: it goes in time.

Behind it stand a download and an upload that stall, streams of events over TCP, TLS and a Unix socket, a WebSocket, a
client of the older dialect, a slow request, half a head, a visitor who waits for a tunnel that is away, a reader that
reads nothing, readers of events and of one stream, `top`, both dashboards' feeds, a collector of traces that hangs,
alerts that are tried again, hang, and run a program that does not want to end. The agent dials through a proxy.

Who takes over from a daemon that left finds nothing of it but what was meant for it, and leaves nothing either.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.authority import Authority
from tests.support.daemons import Agent, Server
from tests.support.forward_proxies import forward_proxy
from tests.support.leaving import DRAIN, World, leave
from tests.support.processes import NotSeen, Process, eventually
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK
from tests.support.usage import threads
from tests.support.visitors import Curl

pytestmark = pytest.mark.timeout(120)

ABORTED = (18, 56)
STREAMS = ("app", "local", "secure", "unix", "old")
TUNNELS = ("app", "local", "ws", "secure", "failing")
#: What the agent makes beside its file, as long as it lives.
AGENTS = {"agent.sock", "agent.sock.lock", "read.sock", "read.sock.lock"}
#: What a test lets the world be instead of what it is.
SOCKS5, SOCKS5H, HTTPS = {"way": "socks5"}, {"way": "socks5h"}, {"way": "https"}


@pytest.fixture(autouse=True)
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon tells of a descriptor that it forgot; `leave` looks for that."""
    monkeypatch.setenv("PYTHONWARNINGS", "default::ResourceWarning")


@pytest.fixture
async def world(folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        made = World(folder, stack, **getattr(request, "param", {}))
        monkeypatch.setenv("SSL_CERT_FILE", str(made.authority.cert))
        monkeypatch.setenv("TMPDIR", str(made.temporary))
        if made.succession:
            monkeypatch.setenv("RUNTIME_DIRECTORY", str(made.runtime))
        await made.build()
        await asyncio.to_thread(made.visit)
        await made.visit_socket()
        await made.watch()
        await made.hang()
        yield made


async def visitors_know(world: World, *, but: tuple[str, ...] = ()) -> None:
    """Whoever asked knows of the end, and the services do, except for those named."""
    for name, curl in world.curls.items():
        if name not in but:
            status = await asyncio.to_thread(curl.wait)
            assert name == "slow" or name.startswith("feed") or status in ABORTED, (name, status, curl.tail())
    for service, stream in world.streams:
        if stream not in but:
            await asyncio.to_thread(service.wait_closed, stream)
    assert await world.web_socket.until_end() is not None
    with pytest.raises((ConnectionError, TimeoutError)):  # a body that was cut is no body that ended
        await asyncio.to_thread(world.download.read_all)


async def operators_know(world: World) -> None:
    """Whoever watched the agent knows of its end."""
    for name, status in (("events", 3), ("tail", 0), ("a test of the alerts", 1)):
        tool = world.tools[name]
        assert await asyncio.to_thread(tool.wait) in (status, 3), tool.tail()
        assert not tool.tracebacks(), tool.tail()
    world.screen.type("q")
    assert await world.top.wait() == 0
    assert "Traceback" not in world.screen.shown


async def ended(world: World) -> None:
    """Whoever hung on them knows of their end; nothing is left behind."""
    await visitors_know(world)
    await operators_know(world)
    assert not world.running()
    assert world.files() == {"app.sock"}  # which is the service's
    assert not list(world.temporary.iterdir())
    assert not list(world.runtime.iterdir())
    await unproxied(world)


async def unproxied(world: World) -> None:
    """No connection stands at the proxy, on either side of it."""
    await asyncio.to_thread(eventually, lambda: not world.through.open, what="left by the agent")


@pytest.mark.parametrize(
    ("first", "world"),
    [("agent", {}), ("server", {}), ("agent", SOCKS5), ("server", SOCKS5H), ("agent", HTTPS)],
    indirect=["world"],
    ids=["agent", "server", "agent by SOCKS5", "server by SOCKS5", "agent by a proxy with TLS"],
)
async def test_each_leaves_and_so_does_the_other(world: World, first: str) -> None:
    both = [world.agent.process, world.server.process]
    for process in both if first == "agent" else reversed(both):
        await asyncio.to_thread(leave, process)
    await ended(world)


async def test_an_agent_leaves_whose_server_is_silent(world: World) -> None:
    world.server.process.pause()
    await asyncio.to_thread(leave, world.agent.process)
    world.server.process.resume()
    await asyncio.to_thread(leave, world.server.process)
    await ended(world)


async def test_a_server_leaves_that_waits_for_its_agent(world: World) -> None:
    """Sessions are kept, and visitors held, for an agent that was killed."""
    orphans = world.of(world.agent.process)
    world.agent.process.kill()
    await asyncio.to_thread(lambda: world.server.process.wait_line("the connection was lost", count=5))
    await asyncio.to_thread(leave, world.server.process)
    for name in STREAMS:
        assert await asyncio.to_thread(world.curls[name].wait) in ABORTED
    assert orphans
    assert set(world.running()) == orphans  # of the agent, which could do nothing any more


@pytest.mark.parametrize("silent", ["proxy", "server"])
@pytest.mark.parametrize("way", ["http", "https", "socks5", "socks5h"])
async def test_an_agent_leaves_that_dials(way: str, silent: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has asked the proxy, or the server through it, and gets no answer."""
    authority = Authority(folder / "ca")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    server = await asyncio.to_thread(Server, folder, settings={"drain_timeout": DRAIN})
    try:
        tls = authority.context("here", "DNS:localhost") if way == "https" else None
        async with forward_proxy(server.port, tls=tls) as through:
            through.silent = silent == "proxy"
            server.process.pause()
            link = {"url": f"ws://localhost:{server.port}", "proxy": f"{way}://localhost:{through.port}"}
            over = {"server": link, "drain_timeout": DRAIN}
            tunnels = {"app": f"http://{LOOPBACK}:9"}
            agent = await asyncio.to_thread(Agent, folder, server, tunnels, settings=over, online=False)
            try:
                asked = (lambda: through.open) if through.silent else (lambda: through.asked)
                await asyncio.to_thread(eventually, asked, what="asked")
                await asyncio.to_thread(leave, agent.process)
                await asyncio.to_thread(eventually, lambda: not through.open, what="left by the agent")
            finally:
                agent.process.discard()
        server.process.resume()
        await asyncio.to_thread(leave, server.process)
    finally:
        server.process.discard()
    assert {path.name for path in folder.iterdir()} == {"ca", "agent.yaml", "server.yaml"}


@pytest.mark.parametrize("world", [{"succession": True, **SOCKS5}], indirect=True)
async def test_an_agent_takes_over_and_leaves(world: World) -> None:
    """One stream goes on, for the same visitor; all else that was the first one's is over before the second starts."""
    first, going_on = world.agent.process, world.curls.pop("app")
    servers = world.of(world.server.process)
    await asyncio.to_thread(leave, first)
    await visitors_know(world, but=("old", "feed of the server"))
    await operators_know(world)
    assert set(world.running()) == servers
    assert world.files() == {"app.sock", "server.sock", "server.sock.lock"}
    assert [path.name for path in world.runtime.iterdir()] == ["sessions.json"]
    await unproxied(world)

    mark = going_on.mark()
    await asyncio.to_thread(world.agent.restart)
    for name in TUNNELS:
        (line,) = world.agent.process.matching(f"✓ Tunnel established: {name}")
        assert '"resumed":true' in line.text
    assert not list(world.runtime.iterdir())
    await asyncio.to_thread(going_on.wait_line, "data: ", after=mark, count=20)
    one = "/events?id=app&n=0&gap=0.05"
    assert await carried(world.server, world.agent) == ([one, "/quiet?x=/sse&id=old"], [one])

    world.streams.clear()
    old = world.curls["old"]
    await asyncio.to_thread(world.visit, "-again")
    await world.visit_socket()
    await world.watch()
    await asyncio.to_thread(world.run_programs)
    await asyncio.to_thread(leave, world.agent.process, lambda: world.agent.tunnelctl("drain"))  # nobody comes after it
    await asyncio.to_thread(leave, world.server.process)
    for curl in (going_on, old):
        assert await asyncio.to_thread(curl.wait) in ABORTED
    numbers = [int(line.text[4:]) for line in going_on.matching(lambda text: text.startswith("id: "))]
    assert numbers == list(range(1, len(numbers) + 1))
    await ended(world)


@pytest.mark.parametrize("world", [{"held": True, **SOCKS5}], indirect=True)
async def test_a_server_takes_over_and_leaves(world: World) -> None:
    """The ports are its manager's, who hands them over; the agent stays and dials the second one."""
    agents = world.of(world.agent.process)
    await asyncio.to_thread(leave, world.server.process)
    await visitors_know(world, but=("feed of the agent",))
    assert set(world.running()) == agents
    assert world.files() == {"app.sock", *AGENTS}

    early = world.raw()  # nobody serves, and nobody is refused
    early.get("/healthz")
    mark = world.agent.process.mark()
    await asyncio.to_thread(world.server.restart)
    assert await asyncio.to_thread(early.read_until, b"\r\n\r\n")
    await established(world.agent, mark)
    assert await carried(world.server, world.agent) == ([], [])

    world.streams.clear()
    await world.dial_as_of_old()
    await asyncio.to_thread(world.visit, "-again")
    await world.visit_socket()
    await world.follow("server")
    await asyncio.to_thread(world.run_programs)
    await asyncio.to_thread(leave, world.server.process)
    await asyncio.to_thread(leave, world.agent.process)
    await ended(world)


async def established(agent: Agent, mark: int) -> None:
    """All its tunnels are up again, as its lines behind the mark say."""
    for tunnel in agent.tunnels:
        told = f"✓ Tunnel established: {tunnel['name']}"
        await asyncio.to_thread(agent.process.wait_line, told, after=mark)


async def carried(server: Server, agent: Agent) -> tuple[list[str], list[str]]:
    """What each of them knows to be under way, by what was asked for."""
    async with httpx.AsyncClient(trust_env=False) as operator:
        answer = await operator.get(f"http://{LOOPBACK}:{server.admin_port}/api/v1/streams")
    streams = answer.json()["streams"], await asyncio.to_thread(agent.streams)
    on_server, on_agent = (sorted(one["path"] for one in found) for found in streams)
    return on_server, on_agent


def holds(process: Process) -> Counter[str]:
    """Descriptors and threads of a process, by what they are."""
    found = Counter({"thread": threads(process.pid)})
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            found[os.readlink(entry).partition(":[")[0]] += 1
        except FileNotFoundError:  # closed meanwhile
            pass
    return found


async def comes_to_hold(process: Process, what: Counter[str]) -> None:
    with contextlib.suppress(NotSeen):
        await asyncio.to_thread(eventually, lambda: holds(process) == what)
    assert holds(process) == what


async def test_who_takes_over_holds_what_the_first_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither it, nor the daemon at the other end, has a descriptor or a thread more than before; each in turn."""
    runtime = folder / "run"
    runtime.mkdir(0o700)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(runtime))
    async with AsyncExitStack() as stack:
        service = await asyncio.to_thread(SampleService)
        stack.push_async_callback(asyncio.to_thread, service.stop)
        port = stack.enter_context(socket.create_server((LOOPBACK, 0)))
        ports = (port.getsockname()[1],) * 2
        over: dict[str, Any] = {"drain_timeout": DRAIN}
        server = await asyncio.to_thread(Server, folder, settings=over, ports=ports, held=[port])
        stack.callback(lambda: server.process.discard())
        through = await stack.enter_async_context(forward_proxy(server.port))
        over["server"] = {"url": f"ws://localhost:{server.port}", "proxy": f"socks5h://{LOOPBACK}:{through.port}"}
        agent = await asyncio.to_thread(Agent, folder, server, {"app": service.url}, settings=over)
        stack.callback(lambda: agent.process.discard())
        visitor = await visiting(server, stack)
        before = holds(agent.process), holds(server.process), through.open
        for one in (agent, server, agent):
            mark = agent.process.mark()
            await asyncio.to_thread(leave, one.process)
            await asyncio.to_thread(one.restart)
            if one is server:
                assert await asyncio.to_thread(visitor.wait) in ABORTED
                await established(agent, mark)
                visitor = await visiting(server, stack)
            await asyncio.to_thread(visitor.wait_line, "data: ", after=visitor.mark(), count=20)
            await comes_to_hold(agent.process, before[0])
            await comes_to_hold(server.process, before[1])
            assert through.open == before[2]
        await asyncio.to_thread(leave, agent.process, lambda: agent.tunnelctl("drain"))
        await asyncio.to_thread(leave, server.process)
        assert await asyncio.to_thread(visitor.wait) in ABORTED
    assert {path.name for path in folder.rglob("*")} == {"run", "agent.yaml", "server.yaml"}


async def visiting(server: Server, stack: AsyncExitStack) -> Curl:
    """A visitor who has read events of the tunnel for a second."""
    visitor = Curl(server.url("app", "/events?id=app&n=0&gap=0.05"))
    stack.callback(visitor.discard)
    await asyncio.to_thread(visitor.wait_line, "data: ", count=20)
    return visitor
