"""A tunnel against servers of the test's own making: how it dials, waits, gives up, and what it says about it."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.peers import Peer, accept_key, answering, connected, serving_tunnels
from tests.support.running import Book, running_agent, settled
from tests.support.sockets import certificate, free_port
from tunneld.agent.dialer import Dial
from tunneld.errors import CODES
from tunneld.protocol.messages import HeartbeatSettings, SseSettings


def answer(status: str, *headers: str, body: bytes = b"") -> Any:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode()
    return lambda key: head + body


def spaces(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


async def until(times: list[float], count: int) -> None:
    async with asyncio.timeout(10):
        while len(times) < count:
            await asyncio.sleep(0.005)


async def test_hello_says_who_and_what_is_wished() -> None:
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def play(agent: Peer) -> None:
        said.put_nowait({**(await agent.next()), "target": agent.socket.request.path})  # type: ignore[union-attr]
        await agent.socket.close(1011)

    settings = {
        "heartbeat": {"interval": 7, "timeout": 3},
        "sse": {"keepalive": 5},
        "limits": {"max_streams": 17, "stream_window": "32KiB"},
        "resume": {"grace": 9, "buffer": "1MiB"},
    }
    async with serving_tunnels(play) as url, running_agent(url, **settings):
        first, second = await said.get(), await said.get()
    assert first["target"] == "/tunnel/connect?name=app"
    assert first["wishes"]["heartbeat"] == {"interval": 7, "timeout": 3}
    assert first["wishes"]["sse"]["keepalive"] == 5
    assert first["wishes"]["max_streams"] == 17
    assert first["wishes"]["stream_window"] == 32768
    assert first["wishes"]["resume"] == {"grace": 9, "buffer": 1 << 20}
    assert first["instance"] == second["instance"]
    assert second["dial"] > first["dial"]


async def test_a_refused_connection_is_retried(lines: Book) -> None:
    port = free_port()
    async with running_agent(f"ws://127.0.0.1:{port}", reconnect={"initial": 0.05, "max": 0.2}) as (_, tunnel):
        await lines.wait("✗ Tunnel error for app: cannot reach the server", count=4)
        assert "refused" in (tunnel.last_error or "").lower()
        await lines.until(lambda: tunnel.state in ("offline", "connecting"))


class Dials:
    """Numbers of dials, and when each was taken."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __next__(self) -> int:
        self.times.append(monotonic())
        return len(self.times)


async def test_dials_are_never_closer_than_initial() -> None:
    async with (
        answering(lambda key: b"") as (url, _),
        running_agent(url, reconnect={"initial": 0.1, "max": 0.2}) as (agent, tunnel),
    ):
        dials = Dials()
        agent._identity.dials = dials  # type: ignore[assignment]
        while len(dials.times) < 4:
            tunnel.reconnect()
            await asyncio.sleep(0.01)
        assert min(spaces(dials.times)) >= 0.1 - 0.001


async def test_a_name_that_does_not_resolve_is_retried(lines: Book) -> None:
    async with running_agent("ws://nowhere.invalid:1") as (_, tunnel):
        await lines.wait("✗ Tunnel error for app: cannot reach the server", count=2)
        assert tunnel.state in ("offline", "connecting")


async def test_a_server_that_is_not_trusted_fails_with_advice(lines: Book, tmp_path: Path) -> None:
    made = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)

    async def play(agent: Peer) -> None:
        await agent.next()

    async with serving_tunnels(play, ssl=context) as url, running_agent(url.replace("ws:", "wss:")) as (_, tunnel):
        entry = await lines.wait("✗ Tunnel error for app")
        assert "not trusted" in entry.text
        assert ". Set server.ca_file" in entry.text
        assert "ca_file" in entry.text
        assert tunnel.state == "failed"


@pytest.mark.parametrize(
    ("status", "code"), [("401 Unauthorized", "unauthorized"), ("403 Forbidden", None), ("301 Moved", None)]
)
async def test_a_refusal_fails_and_is_not_retried_at_once(lines: Book, status: str, code: str | None) -> None:
    headers = [f"X-Tunnel-Error: {code}"] if code else []
    async with (
        answering(answer(status, *headers, body=b'{"detail": "no\\nsuch token"}')) as (url, times),
        running_agent(url, reconnect={"initial": 0.01, "max": 0.5}) as (_, tunnel),
    ):
        entry = await lines.wait("✗ Tunnel error for app")
        assert status[:3] in entry.text
        assert "no such token" in entry.text
        if code:
            assert CODES[code].advice in entry.text
        assert tunnel.state == "failed"
        assert tunnel.last_error is not None
        await until(times, 3)
        assert min(spaces(times)) >= 0.49
        assert tunnel.state == "failed"


async def test_retry_after_is_honoured_and_spread() -> None:
    async with (
        answering(answer("503 Busy", "Retry-After: 1", "X-Tunnel-Error: shutdown")) as (url, times),
        running_agent(url, reconnect={"initial": 0.01, "max": 60}) as (_, tunnel),
    ):
        await until(times, 2)
        assert 0.99 <= spaces(times)[0] <= 1.52 + 1
        assert tunnel.state in ("offline", "connecting")


async def test_a_101_without_our_subprotocol_fails_and_says_what_to_do(lines: Book) -> None:
    def upgraded(key: str) -> bytes:
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(key).encode() + b"\r\n\r\n"
        )

    async with answering(upgraded) as (url, times), running_agent(url) as (_, tunnel):
        entry = await lines.wait("✗ Tunnel error for app: subprotocol_removed")
        assert "proxy" in entry.text
        assert tunnel.state == "failed"
        assert len(times) == 1


@pytest.mark.parametrize("octets", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"])
async def test_something_else_answers_there(lines: Book, octets: bytes) -> None:
    async with answering(lambda key: octets) as (url, _), running_agent(url) as (_, tunnel):
        await lines.until(lambda: tunnel.last_error)
        assert tunnel.state in ("failed", "offline", "connecting")


async def test_an_operators_reconnect_ends_the_wait_but_keeps_the_distance(lines: Book) -> None:
    async with (
        answering(answer("401 Unauthorized")) as (url, times),
        running_agent(url, reconnect={"initial": 0.2, "max": 60}) as (agent, tunnel),
    ):
        await lines.wait("✗ Tunnel error for app")
        for _ in range(3):
            assert agent.reconnect("app") == "failed"
        await lines.wait("✗ Tunnel error for app", count=2)
        for _ in range(5):
            tunnel.reconnect()
            await asyncio.sleep(0.1)
        # Seen from the far end, where a busy machine lets any one dial arrive late: so all of them together.
        assert times[-1] - times[0] >= 0.2 * (len(times) - 1) - 0.1


async def test_a_dial_that_hangs_is_ended_by_reconnect_and_by_close() -> None:
    accepted = asyncio.Queue[float]()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait(monotonic())
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    begun = monotonic()
    async with running_agent(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as (_, tunnel):
        await accepted.get()
        tunnel.reconnect()
        await accepted.get()
        assert tunnel.state == "connecting"
    assert monotonic() - begun < 5  # not the ten seconds that a dial may take
    server.close()


async def test_a_reload_of_the_address_leaves_a_hanging_dial(lines: Book) -> None:
    """What the old address answers, however late, must not become the tunnel."""

    async def play(agent: Peer) -> None:
        await agent.next()
        await agent.say(connected())
        await agent.over()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read(-1)
        writer.close()

    reached = asyncio.Event()
    old = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with (
        serving_tunnels(play) as url,
        running_agent(f"ws://127.0.0.1:{old.sockets[0].getsockname()[1]}") as (agent, tunnel),
    ):
        await reached.wait()
        agent._dial = Dial(url, None, None)
        tunnel.reconnect()
        await lines.wait("✓ Tunnel established: app")
    old.close()


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("bad_hello", "failed"),
        ("hello_timeout", "failed"),
        ("stale_hello", "failed"),
        ("replaced", "failed"),
        ("revoked", "failed"),
        ("conflict", "failed"),
        ("overloaded", "offline"),
        ("going_away", "offline"),
        ("protocol_error", "offline"),
        ("from_2030", "offline"),
    ],
)
@pytest.mark.parametrize("after_connected", [True, False])
async def test_each_error_of_the_server(lines: Book, code: str, state: str, after_connected: bool) -> None:
    ended: asyncio.Queue[int | None] = asyncio.Queue()

    async def play(agent: Peer) -> None:
        await agent.next()
        if after_connected:
            await agent.say(connected())
        await agent.say({"type": "error", "code": code, "message": "because", "retry_after": 30})
        await agent.over()
        ended.put_nowait(agent.socket.close_code)

    async with serving_tunnels(play) as url, running_agent(url, reconnect={"initial": 20, "max": 30}) as (_, tunnel):
        await lines.wait(f"✗ Tunnel error for app: {code}: because")
        await lines.until(lambda: tunnel.state == state)
        assert tunnel.last_error == f"{code}: because"
        assert await ended.get() == 1000  # closed in order, not torn
        assert len(lines.find("✗ Tunnel error for app")) == 1
        assert len(lines.find("✗ Tunnel disconnected: app")) == int(after_connected)


BAD_ANSWERS: list[Any] = [
    (b"\x01\0\0\0\x01\0\0\0\0", "protocol_error"),
    ({"type": "ping", "timestamp": "t", "seq": 1}, "protocol_error"),
    ({"type": "hello", "instance": "x", "dial": 1}, "protocol_error"),
    ({"type": "settings"}, "protocol_error"),
    ({"type": "connected"}, "protocol_error"),
    (connected(stream_window=1), "protocol_error"),
    (connected(max_streams=0), "protocol_error"),
    (connected(max_header=1 << 40), "protocol_error"),
    (connected(heartbeat={"interval": 0, "timeout": 0}), "protocol_error"),
    (connected(sse={"keepalive": -1}), "protocol_error"),
    (connected(received=5), "protocol_error"),
    ("no json", "protocol_error"),
]


@pytest.mark.parametrize(("message", "code"), BAD_ANSWERS, ids=lambda value: repr(value)[:40])
async def test_a_server_that_breaks_the_protocol(lines: Book, message: Any, code: str) -> None:
    closed: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()

    async def play(agent: Peer) -> None:
        await agent.next()
        await agent.say(message)
        await agent.over()
        closed.put_nowait((agent.socket.close_code, agent.socket.close_reason))

    async with serving_tunnels(play) as url, running_agent(url, reconnect={"initial": 20, "max": 30}) as (_, tunnel):
        assert await closed.get() == (1002, code)
        entry = await lines.wait("✗ Tunnel error for app")
        assert code in entry.text
        assert tunnel.state == "offline"
        assert not tunnel.proxy.exchanges


async def test_a_second_connected_is_a_fault() -> None:
    closed: asyncio.Queue[int | None] = asyncio.Queue()

    async def play(agent: Peer) -> None:
        await agent.next()
        await agent.say(connected(), connected())
        await agent.over()
        closed.put_nowait(agent.socket.close_code)

    async with serving_tunnels(play) as url, running_agent(url, reconnect={"initial": 20, "max": 30}):
        assert await closed.get() == 1002


@pytest.mark.parametrize("max_header", [8 * 1024, 128 * 1024])
async def test_the_largest_message_is_what_connected_says(lines: Book, max_header: int) -> None:
    closed: asyncio.Queue[tuple[int | None, str | None]] = asyncio.Queue()
    most = 64 * 1024 + 2 * max_header + 1024

    async def play(agent: Peer) -> None:
        await agent.next()
        await agent.say(connected(max_header=max_header))
        await agent.say(b"\x40" + bytes(4) + (most - 9).to_bytes(4, "big") + bytes(most - 9))
        await agent.say({"type": "ping", "timestamp": "t", "seq": 7})
        await agent.want("pong")
        await agent.say(b"\x40" + bytes(4) + (most - 8).to_bytes(4, "big") + bytes(most - 8))
        await agent.over()
        closed.put_nowait((agent.socket.close_code, agent.socket.close_reason))

    async with serving_tunnels(play) as url, running_agent(url):
        assert await closed.get() == (1009, "too_large")


async def test_types_of_a_newer_server_are_passed_over(lines: Book) -> None:
    async def play(agent: Peer) -> None:
        await agent.say('{"type": "greeting"}')
        await agent.next()
        await agent.say('{"type": "greeting"}', connected(new=1), '{"type": "greeting"}')
        await agent.say({"type": "ping", "timestamp": "2030", "seq": 77})
        pong = await agent.want("pong")
        assert (pong["timestamp"], pong["seq"]) == ("2030", 77)
        done.set()
        await agent.over()

    done = asyncio.Event()
    async with serving_tunnels(play) as url, running_agent(url):
        async with asyncio.timeout(10):
            await done.wait()


async def test_settings_of_the_server_hold(lines: Book) -> None:
    async def play(agent: Peer) -> None:
        await agent.next()
        await agent.say(connected())
        await agent.want("ping")
        await agent.say({"type": "settings", "heartbeat": {"interval": 0.05, "timeout": 5}, "sse": {"keepalive": 3}})
        for _ in range(3):
            await agent.want("ping")
        done.set()
        await agent.over()

    done = asyncio.Event()
    async with serving_tunnels(play) as url, running_agent(url) as (_, tunnel):
        async with asyncio.timeout(10):
            await done.wait()
        assert tunnel.connected is not None
        assert tunnel.connected.heartbeat.interval == 0.05
        assert tunnel.connected.sse.keepalive == 3


async def test_settings_change_what_they_say_and_nothing_else(lines: Book) -> None:
    async def play(agent: Peer) -> None:
        await agent.next()
        await agent.say(connected(heartbeat={"interval": 30, "timeout": 7}, sse={"keepalive": 9, "identity": False}))
        await agent.say({"type": "settings", "sse": {"keepalive": 3}})
        await agent.say({"type": "settings", "sse": {"max_event": 1000}})
        await agent.say({"type": "ping", "timestamp": "t", "seq": 1})
        await agent.want("pong")
        done.set()
        await agent.over()

    done = asyncio.Event()
    async with serving_tunnels(play) as url, running_agent(url) as (_, tunnel):
        async with asyncio.timeout(10):
            await done.wait()
        assert tunnel.connected is not None
        assert tunnel.connected.heartbeat == HeartbeatSettings(30, 7)
        assert tunnel.connected.sse == SseSettings(keepalive=3, max_event=1000, identity=False)


async def test_a_drain_that_began_without_a_connection_holds_on_the_next(lines: Book) -> None:
    async def play(agent: Peer) -> None:
        await agent.next()
        await go.wait()
        await agent.say(connected())
        assert (await agent.want("goaway"))["reason"] == "drain"
        request = b'{"request_id":"r1","method":"GET","path":"/","headers":[["A","B"]]}'
        await agent.say(b"\x81\0\0\0\x01" + len(request).to_bytes(4, "big") + request)
        said = await agent.want("stream_cancel")
        assert (said["request_id"], said["reason"]) == ("r1", "refused")
        done.set()
        await agent.over()

    go, done = asyncio.Event(), asyncio.Event()
    async with serving_tunnels(play) as url, running_agent(url) as (agent, tunnel):
        await settled(lambda: tunnel.state == "connecting")
        agent.begin_drain()
        go.set()
        async with asyncio.timeout(10):
            await done.wait()
        assert tunnel.state == "draining"


async def test_a_tunnel_that_is_closed_says_so_and_goes(lines: Book) -> None:
    closed: asyncio.Queue[Any] = asyncio.Queue()

    async def play(agent: Peer) -> None:
        await agent.next()
        await agent.say(connected())
        try:
            while True:
                await agent.next()
        except ConnectionClosed:
            closed.put_nowait((agent.socket.close_code, agent.socket.close_reason))

    async with serving_tunnels(play) as url:
        async with running_agent(url):
            await lines.wait("✓ Tunnel established: app")
        assert await closed.get() == (1000, "shutdown")
        assert len(lines.find("✗ Tunnel disconnected: app")) == 1


async def test_a_server_that_never_answers_hello_is_left(lines: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunneld.agent.connections.DIAL_TIMEOUT", 0.1)

    async def play(agent: Peer) -> None:
        await agent.over()

    async with serving_tunnels(play) as url, running_agent(url) as (_, tunnel):
        await lines.wait("✗ Tunnel error for app: no answer to hello")
        assert tunnel.reconnects == 0
