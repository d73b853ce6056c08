"""Names of clients of the older dialect: labels made of them, taken over, and told apart."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.support.legacy_client import legacy, register
from tests.support.legacy_world import base_of, visitor
from tests.support.peers import peer
from tests.support.running import Book, port_of, running_server
from tests.support.sockets import LOOPBACK


async def test_names_that_share_a_label_are_told_apart_and_keep_theirs() -> None:
    async with running_server() as server:
        async with legacy(base_of(server), "My Server") as one, legacy(base_of(server), "my server") as two:
            assert one.tunnel_id == "my-server"
            assert re.fullmatch(r"my-server-[0-9a-f]{8}", two.tunnel_id)
        async with legacy(base_of(server), "my server") as again:
            assert again.tunnel_id == two.tunnel_id


async def test_labels_outlive_the_server(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/server.db"
    async with running_server(store=store) as server:
        async with legacy(base_of(server), "My Server"), legacy(base_of(server), "my server") as two:
            second = two.tunnel_id
        assert (await register(base_of(server))).status_code == 201
    async with running_server(store=store) as server:
        async with legacy(base_of(server), "my server") as again:
            assert again.tunnel_id == second != "my-server"
        assert (await register(base_of(server))).status_code == 200


async def test_the_label_of_an_agent_is_not_given_away() -> None:
    async with running_server() as server, peer(base_of(server).replace("http", "ws"), name="my-server") as agent:
        await agent.hello()
        async with legacy(base_of(server), "My Server") as client:
            assert re.fullmatch(r"my-server-[0-9a-f]{8}", client.tunnel_id)


async def test_the_same_client_again_replaces_its_old_connection(lines: Book) -> None:
    async with running_server() as server, legacy(base_of(server)) as old, visitor(server) as guest:
        guest.get("/t/my-server/a")
        await old.request()
        async with legacy(base_of(server)) as new:
            assert new.tunnel_id == "my-server"
            assert (await old.want("error"))["message"]
            assert (await old.over())[0] == 4001
            answer = await guest.answer()
            assert (answer.status, answer.headers["x-tunnel-error"]) == (502, "peer_lost")
            guest.get("/t/my-server/b")
            await new.respond(await new.request(), body="new")
            assert (await guest.answer()).body == b"new"


async def test_a_live_name_of_another_address_is_refused(lines: Book) -> None:
    async with running_server() as server, legacy(base_of(server)) as first:
        sock = socket.create_connection((LOOPBACK, port_of(server)), source_address=("127.0.0.2", 0))
        sock.setblocking(False)
        async with legacy(base_of(server), wait=False, sock=sock) as second:
            said = await second.want("error")
            assert "my-server" in said["message"]
            assert await second.over() == (1008, "name_taken")
            assert second.of("connected") == []
        await first.say("ping", timestamp=1)
        await first.want("pong")


async def test_an_agent_may_take_the_name_back() -> None:
    async with (
        running_server() as server,
        legacy(base_of(server), "app") as client,
        peer(base_of(server).replace("http", "ws"), name="app") as agent,
    ):
        await agent.hello()
        assert (await client.over())[0] == 4001
        async with legacy(base_of(server), "app") as again:
            assert again.tunnel_id == "app"
            assert (await agent.over())[:2] == ("replaced", 4001)


@pytest.mark.parametrize("query", ["", "?", "?name=", "?name=%20", "?name=a&name=b", "?name=" + "x" * 300, "?name=%00"])
async def test_a_name_that_is_none(query: str) -> None:
    async with running_server() as server:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(f"ws://{LOOPBACK}:{port_of(server)}/tunnel/connect{query}", proxy=None):
                pass
        assert caught.value.response.status_code == 400
        assert caught.value.response.headers["X-Tunnel-Error"] == "bad_name"
