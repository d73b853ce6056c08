"""The tunnels' endpoint against agents of the test's own making: what is refused, how, and what it harms."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.support.peers import Peer, hello, peer
from tests.support.running import Book, port_of, running_server, settled, url_of
from tunneld.wire import ws_protocol


@pytest.fixture(autouse=True)
def _short_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that answers no close frame is waited for, and these are many."""
    monkeypatch.setattr(ws_protocol, "CLOSE_TIMEOUT", 0.1)


async def test_hello_is_answered_with_what_holds(lines: Book) -> None:
    async with (
        running_server(domain="localhost", public_url="http://pub.example:81") as server,
        peer(url_of(server)) as agent,
    ):
        wishes = {
            "heartbeat": {"interval": 0.001, "timeout": 5},
            "sse": {"keepalive": 0.01, "max_event": 1 << 30},
            "max_streams": 5,
            "stream_window": 1,
            "resume": {"grace": 1e6, "buffer": 1},
        }
        said = await agent.hello(wishes=wishes)
        assert said["tunnel_id"] == "app"
        assert said["public_url"] == "http://pub.example:81/t/app"
        assert said["host_url"] == "http://app.localhost:81"
        assert said["heartbeat"] == {"interval": 1, "timeout": 5}
        assert said["sse"]["keepalive"] == 1
        assert said["sse"].get("max_event", 256 << 10) == 256 << 10
        assert said["max_streams"] == 5
        assert said["stream_window"] == 16 << 10
        assert len(said["session_id"]) >= 16
        assert len(said["resume_token"]) >= 32
        assert not said.get("resumed", False)
        entry = await lines.wait("✓ Tunnel established: app", by="tunneld.tunnels")
        assert entry.fields["peer"].startswith("127.0.0.1")
        assert server.registry.find("app").online  # type: ignore[union-attr]
    await lines.wait("✗ Tunnel disconnected: app", by="tunneld.tunnels")


async def test_a_keepalive_of_zero_is_allowed_whatever_min_says() -> None:
    async with running_server() as server, peer(url_of(server)) as agent:
        said = await agent.hello(wishes={"sse": {"keepalive": 0}})
        assert said["sse"]["keepalive"] == 0


BAD_HELLOS: list[dict[str, Any]] = [
    {"instance": None},
    {"instance": ""},
    {"instance": "x" * 129},
    {"instance": 5},
    {"dial": None},
    {"dial": -1},
    {"dial": 2**63},
    {"dial": "1"},
    {"dial": 1.5},
    {"wishes": []},
    {"wishes": {"heartbeat": {"interval": 0, "timeout": 1}}},
    {"wishes": {"heartbeat": {"interval": -1, "timeout": 1}}},
    {"wishes": {"heartbeat": {"interval": 1, "timeout": -1}}},
    {"wishes": {"heartbeat": {"interval": 1e300, "timeout": 1}}},
    {"wishes": {"heartbeat": {"interval": 1}}},
    {"wishes": {"sse": {"keepalive": -1}}},
    {"wishes": {"sse": {"max_event": 0}}},
    {"wishes": {"resume": {"grace": -1}}},
    {"wishes": {"resume": {"buffer": -1}}},
    {"wishes": {"max_streams": 0}},
    {"wishes": {"stream_window": -5}},
    {"session_id": "x"},
    {"session_id": "x", "resume_token": "y"},
    {"session_id": "x", "resume_token": "y", "received": -1},
    {"agent_version": 7},
]


@pytest.mark.parametrize("fields", BAD_HELLOS, ids=str)
async def test_a_bad_hello_is_named_and_harms_nobody(fields: dict[str, Any]) -> None:
    async with running_server() as server, peer(url_of(server)) as good, peer(url_of(server)) as bad:
        await good.hello()
        await bad.say(hello(**fields))
        assert await bad.over() == ("bad_hello", 1008, "bad_hello")
        assert server.registry.find("app").online  # type: ignore[union-attr]
        await good.say({"type": "ping", "timestamp": "t", "seq": 3})
        assert (await good.want("pong"))["seq"] == 3


NOT_HELLO: list[dict[str, Any] | bytes | str] = [
    b"\x03\0\0\0\x01\0\0\0\x01x",
    b"",
    b"\xff" * 70,
    "",
    "no json",
    "[1]",
    "{}",
    '{"type": 5}',
    "\ufeff{}",
    '{"type":"ping","timestamp":"t","seq":1}',
    '{"type":"pong","timestamp":"t","seq":1}',
    '{"type":"stream_cancel","request_id":"x","reason":"visitor"}',
    '{"type":"settings"}',
    '{"type":"goaway","reason":"x"}',
    "[" * 50_000,
]


@pytest.mark.parametrize("message", NOT_HELLO, ids=lambda message: repr(message)[:30])
async def test_anything_but_hello_is_a_bad_hello(message: Any) -> None:
    async with running_server() as server, peer(url_of(server)) as agent:
        await agent.say(message)
        assert await agent.over() == ("bad_hello", 1008, "bad_hello")
        assert server.registry.find("app") is None


async def test_a_type_of_a_newer_peer_is_passed_over() -> None:
    async with running_server() as server, peer(url_of(server)) as agent:
        await agent.say('{"type": "greeting", "of": 2030}')
        await agent.hello(new_key=1, wishes={"teleport": True})
        await agent.say('{"type": "dance"}', {"type": "ping", "timestamp": "t", "seq": 1})
        assert (await agent.want("pong"))["seq"] == 1


async def test_no_hello_in_time() -> None:
    async with running_server(limits={"hello_timeout": 0.1}) as server, peer(url_of(server)) as agent:
        assert await agent.over() == ("hello_timeout", 1008, "hello_timeout")
        assert server.registry.find("app") is None


async def test_a_stale_hello_harms_nothing() -> None:
    async with running_server() as server, peer(url_of(server)) as first, peer(url_of(server)) as late:
        await first.hello(instance="i", dial=7)
        for dial in (7, 6):
            async with peer(url_of(server)) as late:
                await late.say(hello(instance="i", dial=dial))
                assert await late.over() == ("stale_hello", 1008, "stale_hello")
        assert server.registry.find("app").online  # type: ignore[union-attr]


async def test_a_second_hello_ends_the_session() -> None:
    async with running_server() as server, peer(url_of(server)) as agent:
        await agent.hello()
        await agent.say(hello())
        assert await agent.over() == ("protocol_error", 1002, "protocol_error")
        assert not server.registry.find("app").online  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("message", "code", "number"),
    [
        (b"\x01\0\0\0\x01\0\0\0\x02{}", "protocol_error", 1002),  # an OPEN from the agent
        (b"\x03\0\0\0\x05\0\0\0\x01x", "unknown_stream", 1002),
        (b"\x3f\0\0\0\x01\0\0\0\0", "protocol_error", 1002),
        (b"\x03\0\0\0\x01\0\0\0\x09x", "protocol_error", 1002),
        (b"\0" * 8, "protocol_error", 1002),
        ("{", "protocol_error", 1002),
        ({"type": "connected"}, "protocol_error", 1002),
        ({"type": "error", "code": "x"}, "protocol_error", 1002),
        ({"type": "settings", "heartbeat": {"interval": 0, "timeout": 1}}, "protocol_error", 1002),
        ({"type": "settings", "sse": {"keepalive": -3}}, "protocol_error", 1002),
    ],
    ids=str,
)
async def test_a_fault_ends_the_session_with_its_code(lines: Book, message: Any, code: str, number: int) -> None:
    async with running_server() as server, peer(url_of(server)) as agent:
        await agent.hello()
        await agent.say(message)
        assert await agent.over() == (code, number, code)
        await lines.wait("✗ Tunnel error for app:", by="tunneld.tunnels")
        await lines.wait("✗ Tunnel disconnected: app", by="tunneld.tunnels")
        await settled(lambda: not server.connections)


@pytest.mark.parametrize("before_hello", [True, False])
async def test_a_message_that_is_too_large(lines: Book, before_hello: bool) -> None:
    async with running_server(limits={"max_header": "16KiB"}) as server, peer(url_of(server)) as agent:
        if not before_hello:
            await agent.hello()
        await agent.say(b"\x40" * (64 * 1024 + 2 * 16 * 1024 + 1024 + 1))
        assert await agent.over() == ("too_large", 1009, "too_large")
        await lines.wait("✗ Tunnel error for app:", by="tunneld.link")
        await settled(lambda: not server.connections)


async def test_the_newest_connection_wins_at_once(lines: Book) -> None:
    async with running_server() as server, peer(url_of(server)) as first, peer(url_of(server)) as second:
        await first.hello(instance="a")
        await second.hello(instance="b")
        assert await first.over() == ("replaced", 4001, "replaced")
        tunnel = server.registry.find("app")
        assert tunnel is not None
        assert tunnel.online
        await settled(lambda: len(server.connections) == 1)
        await second.say({"type": "ping", "timestamp": "t", "seq": 1})
        await second.want("pong")
        assert len(lines.find("✗ Tunnel disconnected: app")) == 1


async def test_a_connection_that_has_not_said_hello_replaces_nobody() -> None:
    async with running_server() as server, peer(url_of(server)) as first, peer(url_of(server)):
        await first.hello()
        async with peer(url_of(server)) as third:
            await third.say(b"garbage")
            await third.over()
        assert server.registry.find("app").online  # type: ignore[union-attr]


async def test_settings_of_an_agent_change_what_holds_live() -> None:
    async with running_server() as server, peer(url_of(server)) as agent:
        await agent.hello(wishes={"heartbeat": {"interval": 30, "timeout": 10}, "sse": {"keepalive": 20}})
        tunnel = server.registry.find("app")
        assert tunnel is not None
        told: list[float] = []
        tunnel.keepalive_changed.add(lambda: told.append(tunnel.keepalive))
        await agent.say({"type": "settings", "heartbeat": {"interval": 2, "timeout": 1}})
        said = await agent.want("settings")
        assert said["heartbeat"] == {"interval": 2, "timeout": 1}
        assert not told
        await agent.say({"type": "settings", "sse": {"keepalive": 0.001}})
        said = await agent.want("settings")
        assert said["sse"]["keepalive"] == 1  # within the server's bounds
        assert told == [1]
        assert tunnel.heartbeat.interval == 2  # the earlier wish stands
        await agent.say({"type": "settings"}, {"type": "ping", "timestamp": "t", "seq": 9})
        assert (await agent.next())["seq"] in (1, 9)  # nothing changed, nothing is said
        tunnel.keepalive_changed.clear()


async def test_settings_of_an_agent_say_only_what_changes() -> None:
    async with running_server() as server, peer(url_of(server)) as agent:
        said = await agent.hello(wishes={"sse": {"keepalive": 20, "replay": 9, "identity": False}})
        await agent.say({"type": "settings", "sse": {"keepalive": 7}})
        told = (await agent.want("settings"))["sse"]
        assert told == {**said["sse"], "keepalive": 7}
        assert (told["replay"], told["identity"]) == (9, False)


async def test_a_flood_of_pings_is_answered_and_one_that_is_not_read_ends() -> None:
    async with running_server() as server, peer(url_of(server)) as agent:
        await agent.hello()
        for number in range(2000):
            await agent.say({"type": "ping", "timestamp": "t", "seq": number})
        seen = -1
        while seen < 1999:
            seen = (await agent.want("pong"))["seq"]
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(server), limit=1)
        writer.write(
            b"GET /tunnel/connect?name=deaf HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: tunneld.v3\r\n\r\n" + masked(json.dumps(hello(instance="deaf")).encode())
        )
        await settled(lambda: server.registry.find("deaf"))
        tunnel = server.registry.find("deaf")
        assert tunnel is not None
        one = masked(json.dumps({"type": "ping", "timestamp": "t" * 50_000, "seq": 1}).encode())

        async def ask_for_ever() -> None:
            async with asyncio.timeout(10):
                while True:
                    writer.write(one)
                    await writer.drain()

        with pytest.raises(ConnectionError):  # it reads nothing, so it is cut in the end
            await ask_for_ever()
        assert not tunnel.online
        writer.close()


def masked(payload: bytes) -> bytes:
    """A client's text frame, masked with zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81" + length + b"\0\0\0\0" + payload


# -- before the upgrade


async def refused(url: str, name: str, **options: Any) -> tuple[int, Any, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught:
        async with peer(url, name, **options):
            pass
    response = caught.value.response
    return response.status_code, response.headers, json.loads(response.body)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a.b", "a_b", "x" * 64, "a/b", "%00", "a%20b", "a&name=b", "caf%C3%A9"]
)
async def test_a_bad_name(name: str) -> None:
    async with running_server() as server:
        status, headers, body = await refused(url_of(server), name)
        assert (status, headers["X-Tunnel-Error"], body["code"]) == (400, "bad_name", "bad_name")
        assert headers["Content-Type"] == "application/problem+json"
        assert not server.connections


async def test_no_name_at_all() -> None:
    async with running_server() as server, httpx.AsyncClient() as client:
        for query in ("", "?", "?nome=x"):
            answer = await client.get(f"http://127.0.0.1:{port_of(server)}/tunnel/connect{query}")
            assert answer.status_code == 400
            assert answer.headers["X-Tunnel-Error"] == "bad_name"


@pytest.mark.parametrize("token", [None, "Bearer x", "Basic eA=="])
async def test_with_tokens_nobody_comes_in_yet(token: str | None) -> None:
    async with running_server(auth={"mode": "token"}) as server:
        extra = {"Authorization": token} if token else {}
        status, headers, body = await refused(url_of(server), "app", additional_headers=extra)
        assert (status, body["code"]) == (401, "unauthorized")
        assert headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("offer", "v2"), [(["tunneld.v4"], "open"), (["chat"], "open"), (["tunneld.v4"], "refuse"), (None, "refuse")]
)
async def test_without_our_subprotocol(offer: Any, v2: str) -> None:
    async with running_server(auth={"mode": "open", "v2": v2}) as server:
        status, headers, _ = await refused(url_of(server), "app", subprotocols=offer)
        assert status == 426
        assert headers["Upgrade"] == "websocket"
        assert headers["Sec-WebSocket-Version"] == "13"
        assert headers["X-Tunnel-Error"] == "upgrade_required"


async def test_a_plain_get_is_told_what_belongs_there() -> None:
    async with running_server() as server, httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port_of(server)}/tunnel/connect?name=app")
        assert answer.status_code == 426


async def test_no_room_for_another_name() -> None:
    async with running_server(limits={"max_tunnels": 1}) as server, peer(url_of(server)) as first:
        await first.hello()
        status, headers, _ = await refused(url_of(server), "other")
        assert status == 503
        assert int(headers["Retry-After"]) >= 1
        assert headers["X-Tunnel-Error"] == "too_many_tunnels"


async def test_two_hellos_for_the_last_place() -> None:
    async with running_server(limits={"max_tunnels": 1}, resume={"grace": 0}) as server:
        async with peer(url_of(server), "one") as one, peer(url_of(server), "two") as two:
            await one.hello()
            await two.say(hello())
            assert await two.over() == ("overloaded", 1013, "overloaded")
        await settled(lambda: not server.connections)
        async with peer(url_of(server), "two") as two:  # the place of one that is offline
            await two.hello()
        assert server.registry.find("one") is None


RANDOM = [b"", b"\x81", b"\x81\x00", b"\x82\x80\0\0\0\0", b"\x81\x81\0\0\0\0\xff", b"\xff" * 40, b"\x88\x80\0\0\0\0"]


@pytest.mark.parametrize("octets", [*RANDOM, b"\x88\x82\0\0\0\0\0\x01", b"\x89\xfe\x00\xff", b"GET / HTTP/1.1\r\n\r\n"])
async def test_any_octets_at_all_close_that_one_connection(octets: bytes) -> None:
    async with running_server(limits={"hello_timeout": 0.2}) as server, peer(url_of(server)) as good:
        await good.hello(wishes={})
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.write(
            b"GET /tunnel/connect?name=app HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: tunneld.v3\r\n\r\n" + octets
        )
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # the close handshake is not ours to finish
            async with asyncio.timeout(10):
                while piece := await reader.read(65536):
                    answer += piece
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"\x88" in answer.partition(b"\r\n\r\n")[2]  # a close frame, with its code
        writer.close()
        assert server.registry.find("app").online  # type: ignore[union-attr]
        assert isinstance(good, Peer)
