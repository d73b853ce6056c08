"""The pool: who gets a connection, how many are made at a time."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tests.support.loops import on_both_loops
from tests.support.tunnelled import serving, turns_until
from tunneld.agent import pool as pool_module
from tunneld.agent.origin import Connection, Origin
from tunneld.agent.pool import Pool
from tunneld.agent.probe import _Check
from tunneld.config.service import parse_service
from tunneld.wire import dial as dial_module


class Client(_Check):
    """Wants a connection and remembers what came of it."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.connection: Connection | None = None
        self.detail: str | None = None

    def connected(self, connection: Connection) -> None:
        self.connection = connection

    def unreachable(self, detail: str) -> None:
        self.detail = detail


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def made(address: str) -> Pool:
    return Pool(asyncio.get_running_loop(), Origin(parse_service(address)))


@on_both_loops
async def test_connects_beyond_the_bound_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_CONNECTING", 2)
    async with serving(silent) as address:
        pool = made(address)
        clients = [Client() for _ in range(7)]
        for client in clients:
            pool.want(client)
        assert len(pool._tasks) == 2
        assert pool.connecting == 7
        pool.abandon(clients[0])
        pool.abandon(clients[5])
        wanted = [client for client in clients if client not in (clients[0], clients[5])]
        await turns_until(lambda: all(client.connection for client in wanted))
        assert clients[0].connection is clients[5].connection is None
        assert pool.open == 5
        assert pool.connecting == 0
        for client in wanted:
            assert client.connection
            client.connection.kill()
        assert pool.open == 0
        pool.close()
        await pool.wait_closed()


@on_both_loops
async def test_a_connection_that_is_released_serves_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_CONNECTING", 1)
    async with serving(silent) as address:
        pool = made(address)
        first, second, third = Client(), Client(), Client()
        pool.want(first)
        await turns_until(lambda: first.connection)
        pool.want(second)
        pool.want(third)
        assert first.connection
        first.connection.leave(reusable=True)
        assert third.connection is first.connection
        await turns_until(lambda: second.connection)
        for client in (second, third):
            assert client.connection
            client.connection.close()
        pool.close()
        await pool.wait_closed()


@on_both_loops
async def test_no_more_than_the_bound_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_IDLE", 2)
    async with serving(silent) as address:
        pool = made(address)
        clients = [Client() for _ in range(4)]
        for client in clients:
            pool.want(client)
        await turns_until(lambda: all(client.connection for client in clients))
        for client in clients:
            assert client.connection
            client.connection.leave(reusable=True)
        assert pool.idle == pool.open == 2
        assert pool.take(repeatable=False) is clients[1].connection  # the one that was at work last
        pool.close()
        assert clients[1].connection
        clients[1].connection.leave(reusable=True)
        assert pool.open == 0
        await pool.wait_closed()


@on_both_loops
async def test_a_request_that_may_not_be_repeated_gets_none_that_has_ended() -> None:
    ends: list[Any] = []

    async def ending(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer.get_extra_info("socket").dup())
        await reader.read()

    async with serving(ending) as address:
        pool = made(address)
        client = Client()
        pool.want(client)
        await turns_until(lambda: client.connection and ends)
        assert client.connection
        client.connection.leave(reusable=True)
        ends[0].shutdown(1)  # its end is in our kernel, and the loop has not read it
        ends[0].close()
        assert pool.take(repeatable=False) is None
        assert pool.open == 0
        pool.close()
        await pool.wait_closed()


@on_both_loops
async def test_close_stops_connects_that_have_not_begun() -> None:
    async with serving(silent) as address:
        pool = made(address)
        clients = [Client() for _ in range(3)]
        for client in clients:
            pool.want(client)
        pool.close()
        await pool.wait_closed()
        assert pool.connecting == pool.open == 0
        assert not any(client.connection or client.detail for client in clients)


@on_both_loops
async def test_a_service_is_looked_up_beside_the_loops_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name as any other: a resolver that hangs holds up no other service, and no end of the agent."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
        asked.append(host)
        return [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr(dial_module, "resolve", resolve)
    async with serving(silent) as address:
        pool, client = made(address.replace("127.0.0.1", "service.example.org")), Client()
        pool.want(client)
        await turns_until(lambda: client.connection is not None)
        assert asked == ["service.example.org"], "and the second address was taken, the first being refused"
        pool.close()
