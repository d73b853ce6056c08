"""``register_api_key``: what a client of the older dialect registers is what its visitors need."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.front import Client
from tests.support.legacy_client import LegacyClient, legacy, register
from tests.support.legacy_world import base_of
from tests.support.running import port_of, running_server
from tests.support.sockets import LOOPBACK
from tunneld.server.daemon import ServerDaemon
from tunneld.server.permissions import Change

KEY = "older-client-key"


async def visitor(server: ServerDaemon) -> Client:
    return Client(*await asyncio.open_connection(LOOPBACK, port_of(server)))


async def status(server: ServerDaemon, client: LegacyClient, *lines: str) -> int:
    """What a visitor is answered; 200 is the client's own."""
    guest = await visitor(server)
    guest.get("/t/my-server/a", *lines)
    if not lines or KEY not in lines[0]:
        answer = await guest.answer()
    else:
        request = await client.request()
        await client.respond(request)
        answer = await guest.answer()
    await guest.leave()
    return answer.status


async def registered(client: LegacyClient, *keys: str) -> None:
    for key in keys:
        await client.say("register_api_key", api_key=key)
    await client.say("ping", timestamp=1)
    await client.want("pong")


async def test_a_key_protects_its_tunnel_from_then_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/server.db"}
    async with running_server(**settings) as server, legacy(base_of(server)) as client:
        guest = await visitor(server)
        guest.get("/t/my-server/sse", "Accept: text/event-stream")
        opened = await client.request()
        await client.chunk(opened, "data: 1\n\n")
        assert (await guest.head())[0] == 200
        await registered(client, KEY)
        assert [told["request_id"] for told in client.of("stream_cancel")] == [opened["request_id"]]
        await guest.leave()
        assert await status(server, client) == 401
        assert await status(server, client, "X-API-Key: another-key-of-nobody") == 401
        assert await status(server, client, f"X-API-Key: {KEY}") == 200
        assert await status(server, client, f"Authorization: Bearer {KEY}") == 200
    async with running_server(**settings) as server, legacy(base_of(server)) as client:
        assert await status(server, client) == 401, "a client that dials again never leaves its tunnel open"
        assert await status(server, client, f"X-API-Key: {KEY}") == 200


async def test_the_first_key_of_a_connection_replaces_those_of_before() -> None:
    async with running_server() as server:
        async with legacy(base_of(server)) as client:
            await registered(client, KEY, f"{KEY}-2")
            assert await status(server, client, f"X-API-Key: {KEY}-2") == 200
        async with legacy(base_of(server)) as client:
            guest = await visitor(server)
            guest.get("/t/my-server/sse", f"X-API-Key: {KEY}", "Accept: text/event-stream")
            opened = await client.request()
            await client.chunk(opened, "data: 1\n\n")
            await registered(client, f"{KEY}-3")
            assert [told["request_id"] for told in client.of("stream_cancel")] == [opened["request_id"]]
            await guest.leave()
            refused = await visitor(server)
            refused.get("/t/my-server/a", f"X-API-Key: {KEY}")
            assert (await refused.answer()).status == 401
            await refused.leave()
            assert await status(server, client, f"X-API-Key: {KEY}-3") == 200


async def test_a_tunnel_with_permissions_is_for_those_alone() -> None:
    async with running_server() as server, legacy(base_of(server)) as client:
        base = base_of(server)
        await register(base)
        guest = await visitor(server)
        guest.get("/t/my-server/sse", "Accept: text/event-stream")
        opened = await client.request()
        await client.chunk(opened, "data: 1\n\n")
        await server.access.permissions.grant("open", "my-server", ["ann@example.org"], Change())
        assert (await client.want("stream_cancel"))["request_id"] == opened["request_id"]
        await guest.leave()
        assert await status(server, client) == 401
        (one,) = server.access.permissions.all_of("open", "my-server")
        await server.access.permissions.change("open", one.id, Change(status="revoked"))
        assert await status(server, client) == 401, "revoking the last opens it to nobody"
        await registered(client, KEY)
        assert await status(server, client, f"X-API-Key: {KEY}") == 200
