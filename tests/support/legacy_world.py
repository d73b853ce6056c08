"""A server with clients of the older dialect, and visitors who come to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any

from tests.support.front import Client
from tests.support.legacy_client import LegacyClient, legacy
from tests.support.running import port_of, running_server
from tests.support.sockets import LOOPBACK
from tunneld.server.daemon import ServerDaemon
from tunneld.server.keys import new_token

__all__ = ["TOKENS", "base_of", "token_for", "visitor", "world"]


TOKENS: dict[str, Any] = {"auth": {"mode": "token"}}


def base_of(server: ServerDaemon, token: str | None = None) -> str:
    return f"http://{LOOPBACK}:{port_of(server)}" + (f"/v2/{token}" if token else "")


async def token_for(server: ServerDaemon, name: str = "my-server", **fields: Any) -> str:
    """A token's secret; its id is found by its name."""
    token, secret = new_token(name, now=time(), **fields)
    assert secret is not None
    await server.access.store.add_token(token)
    await server.access.refresh()
    return secret


@asynccontextmanager
async def visitor(server: ServerDaemon, *, buffer: int = 0) -> AsyncIterator[Client]:
    """A visitor; with `buffer` one whose socket takes hardly more than that, and that reads nothing by itself."""
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (LOOPBACK, port_of(server)))
    client = Client(*await asyncio.open_connection(sock=sock, limit=buffer or 1 << 24))
    try:
        yield client
    finally:
        await client.leave()


@asynccontextmanager
async def world(**settings: Any) -> AsyncIterator[tuple[ServerDaemon, LegacyClient, Client]]:
    """A server, a client of it, and a visitor."""
    async with running_server(**settings) as server, legacy(base_of(server)) as client, visitor(server) as guest:
        yield server, client, guest
