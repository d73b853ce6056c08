"""What let a visitor in is taken back: whatever it has open ends within a second, whichever state it is in."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest

from tests.integration.test_access import KEY, LINKS, UPGRADE, hashed, protect, said
from tests.integration.test_access_daemons import key
from tests.integration.test_recovery import event
from tests.support.front import Client, Front, front
from tests.support.peers import accept_key
from tests.support.running import agent_settings, port_of, relay, running_agent, running_server, settled, written
from tests.support.sockets import LOOPBACK
from tests.support.tunnelled import read_head, serving
from tunneld.protocol.links import sign
from tunneld.protocol.messages import AccessKey, SseSettings

SHOWN = f"X-API-Key: {KEY}"
ACCEPTED = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
]
#: How what let somebody in ends -> the rules that hold first, those that hold then; None: it ends by itself.
WAYS: dict[str, Any] = {
    "key revoked": lambda: (said("key"), said("key", keys=[])),
    "key expired": lambda: (said("key", keys=[AccessKey("bob", hashed(KEY), time() + 1)]), None),
    "link expired": lambda: (said("key", keys=[]), None),
    "link revoked": lambda: (said("key", keys=[]), said("key", keys=[], links=(b"n" * 32).hex())),
    "denied": lambda: (said("key"), said("key", deny=["127.0.0.0/8"])),
    "not allowed": lambda: (said("key"), said("key", allow=["192.0.2.0/24"])),
    "mode changed": lambda: (said("key"), said("basic")),
    "less allowed": lambda: (said("key"), said("key", level="read_only")),
}


async def opened(it: Front, state: str, path: str, *lines: str) -> tuple[Client, Any]:
    """A visitor whose request is in that state, and the request at the agent."""
    client = await it.client()
    if state == "long request":
        client.get(path, *lines, "Content-Length: 10", method="POST")
        return client, await it.served()
    if state == "websocket":
        client.get(path, *lines, *UPGRADE)
        served = await it.served()
        served.stream.send_head(101, ACCEPTED)
        assert (await client.head())[0] == 101
        return client, served
    client.get(path, *lines, "Accept: text/event-stream")
    served = await it.served()
    served.events()
    assert (await client.head())[0] == 200
    served.stream.send(event(1))
    await client.chunk()
    if state == "recovered":
        it.lose_agent(grace=30.0)
        it.connect_agent(SseSettings(keepalive=0))
        served = await it.served()
        served.events()
        served.stream.send(event(1) + event(2))
        assert await client.chunk() == event(2)
    elif state == "being recovered":
        it.lose_agent(grace=30.0)
        await settled(lambda: next(iter(it.ingress.exchanges.values())).state == "recovering")
    return client, served


STATES = ("event stream", "long request", "websocket", "recovered", "being recovered")
#: Each state that each way may find a stream in; addresses that are shared are asked for with GET.
CASES = [(state, way) for state in STATES for way in WAYS if not (state == "long request" and way.startswith("link"))]


@pytest.mark.parametrize(("state", "way"), CASES)
async def test_whatever_is_open_ends_within_a_second(state: str, way: str) -> None:
    async with front(sse=SseSettings(keepalive=0)) as it:
        it.tunnel.grace = 30.0
        first, later = WAYS[way]()
        protect(it, first)
        until = int(time()) + 2 if later is None else int(time()) + 60
        path = "/t/demo" + sign(LINKS, "demo", "/x", until) if way.startswith("link") else "/t/demo/x"
        client, served = await opened(it, state, path, *(() if way.startswith("link") else (SHOWN,)))
        if later is None:
            ends = first.keys[0].expires if first.keys else until
            await settled(lambda: time() >= ends)
        else:
            protect(it, later)
        began = monotonic()
        await settled(lambda: not it.ingress.exchanges)
        assert monotonic() - began < 1
        if state != "being recovered":
            assert await served.cancel_reason() == "operator"
        await client.leave()
        await it.settle()
        assert len(it.ingress.desk) == 0


@pytest.mark.parametrize("kind", ["event stream", "websocket"])
async def test_what_was_resumed_after_a_cut_ends_too(kind: str, tmp_path: Path) -> None:
    """Real daemons and a wire that is cut; then the agent's file says otherwise."""
    file = tmp_path / "agent.yaml"
    visitor = Visitor(kind)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(visitor.answer(await read_head(reader)))
            await reader.read()
        writer.close()

    def section(*keys: dict[str, Any]) -> dict[str, Any]:
        return {"tunnels": [{"name": "app", "service": address, "access": {"mode": "key", "keys": list(keys)}}]}

    other = key("another-key-0000", "eve")
    async with serving(serve) as address, running_server() as server, relay(port_of(server)) as wire:
        url = f"ws://{LOOPBACK}:{wire.port}"
        async with running_agent(url, path=file, **section(key(KEY), other)) as (agent, app):
            await settled(lambda: app.state == "online")
            tunnel = server.registry.find("app")
            assert tunnel is not None
            client = Client(*await asyncio.open_connection(LOOPBACK, port_of(server)))
            client.get("/t/app/x", SHOWN, *visitor.lines)
            assert (await client.head())[0] == visitor.status
            wire.cut()
            await settled(lambda: tunnel.outages.resumes == 1 and tunnel.online)
            assert len(server.ingress.exchanges) == 1
            written(file, agent_settings(url, "", section(other)))
            await agent.reload()
            began = monotonic()
            await settled(lambda: not server.ingress.exchanges)
            assert monotonic() - began < 1
            await client.leave()


class Visitor:
    """What one kind of visitor asks for, and what the service answers."""

    def __init__(self, kind: str) -> None:
        self._socket = kind == "websocket"
        self.status = 101 if self._socket else 200
        self.lines = UPGRADE if self._socket else ("Accept: text/event-stream", "Connection: close")

    def answer(self, head: bytes) -> bytes:
        if not self._socket:
            return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nid: 1\ndata: 1\n\n"
        sent = next(line for line in head.decode().split("\r\n") if line.lower().startswith("sec-websocket-key"))
        accepted = accept_key(sent.partition(":")[2].strip())
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        return "\r\n".join([*lines, f"Sec-WebSocket-Accept: {accepted}", "", ""]).encode()
