"""Clients of the older dialect that say what they may not, do not read, or are not welcome."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.support.legacy_client import legacy
from tests.support.legacy_world import base_of, world
from tests.support.running import Book, port_of, running_server, settled
from tests.support.sockets import LOOPBACK


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", (1002, "protocol_error")),
        ("null", (1002, "protocol_error")),
        ('{"type":1}', (1002, "protocol_error")),
        ('{"type":"stream_end"}', (1002, "protocol_error")),
        (b"{}", (1002, "protocol_error")),
        ('{"type":"ping"}' + " " * 70_000, (1009, "too_large")),
    ],
)
async def test_bad_messages_close_that_connection_alone(
    message: str | bytes, code: tuple[int, str], lines: Book
) -> None:
    async with world(limits={"v2_message": "64KiB"}) as (server, client, guest):
        async with legacy(base_of(server), "Other") as other:
            guest.get("/t/other/a")
            await other.request()
            await other.socket.send(message)
            answer = await guest.answer()
            assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "peer_lost")
            assert await other.over() == code
            if code[0] == 1002:
                assert other.messages[-1]["type"] == "error"
        assert lines.find("✗ Tunnel error for other")
        guest.get("/t/my-server/a")
        await client.respond(await client.request())
        assert (await guest.answer()).status == 200


async def test_a_message_of_the_greatest_size_passes() -> None:
    async with world(limits={"v2_message": "1MiB"}) as (_, client, guest):
        guest.get("/t/my-server/big")
        request = await client.request()
        frame = len(
            json.dumps({"type": "response", "request_id": "0" * 32, "status_code": 200, "headers": {}, "body": ""})
        )
        body = "x" * ((1 << 20) - frame)
        await client.respond(request, body=body)
        assert (await guest.answer()).body == body.encode()


async def test_unknown_messages_are_ignored() -> None:
    async with world() as (_, client, guest):
        await client.say("hello", version=3)
        await client.say("unregister", what="nothing")
        guest.get("/t/my-server/a")
        await client.respond(await client.request())
        assert (await guest.answer()).status == 200


async def test_api_keys_are_kept_as_hashes_and_bounded() -> None:
    async with world() as (server, client, _):
        for number in range(40):
            await client.say("register_api_key", api_key=f"s3cret-{number}")
        await client.say("ping", timestamp=1)
        await client.want("pong")
        [connection] = server.connections
        assert len(connection.api_keys) == 16  # type: ignore[union-attr]
        assert all(len(digest) == 32 for digest in connection.api_keys)  # type: ignore[union-attr]


async def test_a_flood_of_pings_from_a_client_that_does_not_read() -> None:
    async with running_server() as server:
        reader, writer = await asyncio.open_connection(LOOPBACK, port_of(server), limit=4096)
        writer.write(
            b"GET /tunnel/connect?name=flood HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        text = json.dumps({"type": "ping", "timestamp": "x" * 100}).encode()
        frame = bytes([0x81, 0x80 | 126]) + len(text).to_bytes(2, "big") + bytes(4) + text
        if len(text) < 126:
            frame = bytes([0x81, 0x80 | len(text)]) + bytes(4) + text
        for _ in range(400):
            writer.write(frame * 200)
            await writer.drain()
        [connection] = server.connections
        transport = connection._pipe.transport  # type: ignore[union-attr]
        assert transport.get_write_buffer_size() < 512 * 1024
        assert not connection._queue  # type: ignore[union-attr]
        writer.transport.abort()
        await settled(lambda: not server.connections)


async def test_a_client_that_does_not_read_its_requests_is_let_go(lines: Book) -> None:
    limits = {"max_streams": 2, "v2_response_timeout": "100ms", "v2_message": "1MiB", "memory": "64MiB"}
    async with running_server(limits=limits) as server:
        reader, writer = await asyncio.open_connection(LOOPBACK, port_of(server), limit=4096)
        writer.write(
            b"GET /tunnel/connect?name=deaf HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        url = f"{base_of(server)}/t/deaf/up"
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            statuses = set()
            for _ in range(30):
                answer = await http.post(url, content="x" * 1_000_000)
                statuses.add(answer.headers["x-tunnel-error"])
        assert "service_timeout" in statuses
        [connection] = server.connections
        assert len(connection._queue) <= 2  # type: ignore[union-attr]  # what was never written is forgotten
        assert server.ingress.budget.held == 0
        writer.transport.abort()
        await settled(lambda: not server.connections)
