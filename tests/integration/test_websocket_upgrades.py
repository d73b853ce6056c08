"""The upgrade of a visitor's WebSocket: what passes, what belongs to a hop, and every answer that is no 101."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.front import front
from tests.support.loops import on_both_loops
from tests.support.running import port_of
from tests.support.socketed import closed, echo, through
from tests.support.sockets import Certificate, certificate
from tests.support.tunnelled import Handler, read_head, reply, serving
from tests.support.ws_raw import FIN, TEXT, RawSocket, accept_of, frame, raw_client, raw_service, told_closes
from tunneld.errors import VisitorError
from tunneld.protocol.messages import HeartbeatSettings, SseSettings
from tunneld.wire.tls import client_context, server_context

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def _fields(head: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in head.split("\r\n")[1:] if line)
    return {name.lower(): value.strip() for name, _, value in pairs}


@on_both_loops
async def test_the_services_head_and_the_visitors() -> None:
    """Query, cookies, Origin and subprotocols pass; key, accept and extensions are each hop's own."""
    heads: list[str] = []

    async def script(socket: RawSocket) -> None:
        heads.append(socket.head)
        await echo(socket)

    answer = (
        "Sec-WebSocket-Protocol: chat.v2\r\nSet-Cookie: a=b; Path=/\r\nX-Mine: 1\r\nX-Tunnel-Error: refused\r\n"
        "Keep-Alive: timeout=5\r\n"
    )
    async with raw_service(script, answer=answer) as service, through(service) as world:
        asked = (
            "Origin: https://page.example\r\nCookie: s=1\r\nAuthorization: Bearer x\r\n"
            "Sec-WebSocket-Protocol: chat.v1\r\nSec-WebSocket-Protocol: chat.v2, other\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nX-Tunnel-Request-Id: forged\r\n"
        )
        socket = await raw_client(f"{world.url}a%2Fb?q=1&u=%C3%BC", extra=asked, key=KEY)
        assert socket.head.startswith("HTTP/1.1 101 ")
        assert {one[0] & 0x0F for one in await closed(socket)} == {8}
    told = _fields(heads[0])
    assert heads[0].startswith("GET /a%2Fb?q=1&u=%C3%BC HTTP/1.1\r\n")
    assert heads[0].count("Sec-WebSocket-Protocol") == 2
    assert told["sec-websocket-key"] != KEY
    assert (told["upgrade"], told["connection"], told["sec-websocket-version"]) == ("websocket", "Upgrade", "13")
    assert (told["origin"], told["cookie"]) == ("https://page.example", "s=1")
    assert told["authorization"] == "Bearer x"
    assert told["host"] == service.removeprefix("http://")
    assert (told["x-forwarded-prefix"], told["x-forwarded-for"]) == ("/t/app", "127.0.0.1")
    assert "sec-websocket-extensions" not in told
    assert "transfer-encoding" not in told
    got = _fields(socket.head)
    assert got["sec-websocket-accept"] == accept_of(KEY)
    assert got["sec-websocket-protocol"] == "chat.v2"
    assert got["set-cookie"] == "a=b; Path=/t/app/"
    assert got["x-mine"] == "1"
    assert got["x-tunnel-request-id"] == told["x-tunnel-request-id"] != "forged"
    assert not {"x-tunnel-error", "keep-alive", "sec-websocket-extensions"} & set(got)


@on_both_loops
async def test_frames_that_come_with_the_request_or_with_the_answer_are_not_lost() -> None:
    async def script(socket: RawSocket) -> None:
        socket.send(FIN | TEXT, b"early from the service")
        await echo(socket)

    early = b"".join(frame(FIN | TEXT, b"%d" % number, mask=True) for number in range(100))
    async with raw_service(script) as service, through(service) as world:
        socket = await raw_client(world.url, sent=early)
        for _ in range(101):
            await socket.receive()
        assert [payload for _, payload in socket.got] == [
            b"early from the service",
            *(b"%d" % number for number in range(100)),
        ]
        await closed(socket)


@pytest.mark.parametrize(
    ("status", "extra", "body"),
    [
        ("200 OK", "Content-Type: text/plain\r\n", b"a page, and no WebSocket"),
        ("401 Unauthorized", "WWW-Authenticate: Basic realm=x\r\n", b""),
        ("302 Found", "Location: /elsewhere\r\n", b""),
        ("403 Forbidden", "", b"not for this origin"),
        ("404 Not Found", "", b"x" * 100_000),
        ("426 Upgrade Required", "Sec-WebSocket-Version: 13\r\n", b""),
        ("503 Service Unavailable", "Retry-After: 7\r\n", b"later"),
        ("204 No Content", "", b""),
    ],
)
async def test_another_answer_of_the_service_is_passed_on(status: str, extra: str, body: bytes) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            assert b"Upgrade: websocket" in await read_head(reader)
            writer.write(reply(body, status=status, extra=extra))

    async with serving(service) as address, through(address) as world:
        socket = await raw_client(world.url)
        found = _fields(socket.head)
        assert socket.head.startswith(f"HTTP/1.1 {status}\r\n")
        for line in extra.splitlines():
            name, _, value = line.partition(": ")
            assert found[name.lower()] == ("/t/app/elsewhere" if name == "Location" else value)
        assert await socket.reader.readexactly(len(body)) == body
        # and the connection is one of HTTP still
        socket.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await socket.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        socket.close()
        await world.quiet()
        assert world.tunnel.proxy.totals.ended == {"done": 1}


def _answering(data: bytes) -> Handler:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await read_head(reader)).decode()
        writer.write(data.replace(b"ACCEPT", accept_of(_fields(head)["sec-websocket-key"]).encode()))
        await reader.read()

    return service


_GOOD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (_GOOD + b"\r\n", 502, "bad_answer"),
        (_GOOD + b"Sec-WebSocket-Accept: " + accept_of(KEY).encode() + b"\r\n\r\n", 502, "bad_answer"),
        (_GOOD + b"Sec-WebSocket-Accept: ACCEPT\r\nSec-WebSocket-Protocol: other\r\n\r\n", 502, "bad_answer"),
        (
            _GOOD + b"Sec-WebSocket-Accept: ACCEPT\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            502,
            "bad_answer",
        ),
        (_GOOD.replace(b"websocket", b"h2c") + b"Sec-WebSocket-Accept: ACCEPT\r\n\r\n", 502, "bad_answer"),
        (_GOOD + b"Sec-WebSocket-Accept: ACCEPT\r\nX: " + b"y" * 140_000 + b"\r\n\r\n", 502, "answer_too_large"),
        (b"", 504, "service_timeout"),
        (b"what is this\r\n\r\n", 502, "bad_answer"),
    ],
    ids=["no accept", "wrong accept", "subprotocol", "extension", "other upgrade", "too large", "silent", "no http"],
)
async def test_what_is_no_answer_to_an_upgrade(data: bytes, status: int, code: str) -> None:
    limits = {"limits": {"response_timeout": 0.2}}
    async with serving(_answering(data)) as address, through(address, **limits) as world:
        socket = await raw_client(world.url, extra="Sec-WebSocket-Protocol: mine\r\n")
        assert socket.head.startswith(f"HTTP/1.1 {status} ")
        assert _fields(socket.head)["x-tunnel-error"] == code
        socket.close()


async def test_a_service_that_is_not_there_or_leaves() -> None:
    async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)

    async with serving(leaves) as address, through(address) as world:
        socket = await raw_client(world.url)
        assert _fields(socket.head)["x-tunnel-error"] == "service_broke"
        socket.close()
    async with through("http://127.0.0.1:9") as world:
        socket = await raw_client(world.url)
        assert _fields(socket.head)["x-tunnel-error"] == "service_unreachable"
        socket.close()


_ASK = "GET /t/app/ HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
_VERSION = "Sec-WebSocket-Version: 13\r\n"


@pytest.mark.parametrize(
    ("request_head", "status", "code"),
    [
        (f"{_ASK}Sec-WebSocket-Key: {KEY}\r\n\r\n", 426, "websocket_version"),
        (f"{_ASK}Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: {KEY}\r\n\r\n", 426, "websocket_version"),
        (f"{_ASK}{_VERSION}\r\n", 400, "bad_upgrade"),
        (f"{_ASK}{_VERSION}Sec-WebSocket-Key: short\r\n\r\n", 400, "bad_upgrade"),
        (f"{_ASK}{_VERSION}Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Key: {KEY}\r\n\r\n", 400, "bad_upgrade"),
        (f"{_ASK}{_VERSION}Sec-WebSocket-Key: \xe9{KEY[1:]}\r\n\r\n", 400, "bad_upgrade"),
    ],
)
async def test_an_upgrade_that_is_none_is_refused_here(request_head: str, status: int, code: str) -> None:
    async with through("http://127.0.0.1:9") as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(request_head.encode("latin-1"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert _fields(head)["x-tunnel-error"] == code
        if status == 426:
            assert (_fields(head)["sec-websocket-version"], _fields(head)["upgrade"]) == ("13", "websocket")
        writer.close()


@pytest.mark.parametrize(
    "change",
    [
        ("GET", "POST"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("Connection: keep-alive, Upgrade", "Connection: keep-alive"),
        ("Upgrade: WebSocket", "Upgrade: h2c, other"),
        ("Host: x", "Content-Length: 2\r\nHost: x"),
    ],
    ids=["method", "version", "connection", "upgrade", "body"],
)
async def test_an_upgrade_that_may_be_passed_over_is_an_ordinary_request(change: tuple[str, str]) -> None:
    """RFC 9110, 7.8: the service sees no Upgrade, and answers as it likes."""
    heads: list[bytes] = []

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_head(reader))
        writer.write(reply(b"plain"))
        await reader.read()

    async with serving(service) as address, through(address) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(f"{_ASK}{_VERSION}Sec-WebSocket-Key: {KEY}\r\n\r\n".replace(*change).encode() + b"{}")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert b"\r\nUpgrade:" not in heads[0]
        writer.close()


@pytest.mark.parametrize("kind", ["unix", "wss", "wss both", "by host", "ipv6 host"])
async def test_services_and_visitors_of_every_kind(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours: Certificate | None = None
    service_tls = visitor_tls = None
    server: dict[str, Any] = {"domain": "tunnels.test"}
    if kind.startswith("wss"):
        ours = certificate(tmp_path)
        service_tls = server_context(str(ours.cert), str(ours.key))
        monkeypatch.setenv("SSL_CERT_FILE", str(ours.cert))
    if ours is not None and kind == "wss both":
        plain, secure = (
            {"port": 0, "serve": ["tunnels"]},
            {"port": 0, "tls": {"cert": str(ours.cert), "key": str(ours.key)}},
        )
        server["listen"] = [plain, secure]
        visitor_tls = client_context(ca_file=str(ours.cert))
    unix = str(folder / "s") if kind == "unix" else None
    async with raw_service(echo, ssl=service_tls, unix=unix) as service, through(service, server=server) as world:
        url, host = world.url, ""
        if kind == "by host":
            url, host = url.replace("/t/app/", "/deep/t/app/"), f"app.tunnels.test:{world.port}"
        elif kind == "ipv6 host":
            host = "[::1]:80"
        if kind == "wss both":
            url = url.replace("ws://", "wss://").replace(f":{world.port}/", f":{port_of(world.server, 1)}/")
        socket = await raw_client(url, host=host, ssl=visitor_tls)
        assert socket.head.startswith("HTTP/1.1 101 ")
        for message in (b"hello", b"x" * 200_000):
            socket.send(FIN | TEXT, message)
            got = b""
            while len(got) < len(message):
                found = await socket.receive()
                assert found is not None
                got += found[1]
            assert got == message
        if kind == "by host":
            assert [one.path for one in world.agent.exchanges()] == ["/deep/t/app/"]
        assert told_closes(await closed(socket)) == [1000]


class _Older:
    """What carries requests of the older dialect."""

    max_streams = 10

    def open(self, request: object, sink: object, *, ended: bool) -> Any:
        raise VisitorError("internal", "it must not be asked")


async def test_the_older_dialect_carries_none() -> None:
    async with front() as it:
        it.tunnel.serve(_Older(), HeartbeatSettings(30, 10), SseSettings())
        asked = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")
        answer = await it.get("/t/demo/", *asked)
        assert (answer.status, answer.headers["x-tunnel-error"]) == (501, "no_websocket")


async def test_an_upgrade_waits_for_its_tunnel() -> None:
    async with raw_service(echo) as service, through(service) as world:
        world.tunnel.reconnect()
        socket = await raw_client(world.url)
        assert socket.head.startswith("HTTP/1.1 101 ")
        await closed(socket)
