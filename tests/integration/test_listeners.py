"""A server on several listeners at once, and daemons that cannot have what they need."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.processes import Process, python_module
from tests.support.running import Book, port_of, running_agent, running_server
from tests.support.sockets import LOOPBACK, certificate, free_port
from tests.support.tunnelled import read_head, reply, serving


async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_head(reader)
    writer.write(reply(b"hello"))


async def test_visitors_and_tunnels_on_listeners_of_their_own(lines: Book, folder: Path) -> None:
    made = certificate(folder)
    tls = {"cert": str(made.cert), "key": str(made.key)}
    listen = [
        {"host": LOOPBACK, "port": 0, "serve": ["visitors"]},
        {"host": LOOPBACK, "port": 0, "serve": ["tunnels"], "tls": tls},
        {"host": "::1", "port": 0, "serve": ["visitors"], "tls": tls},
        {"unix": str(folder / "all.sock")},
    ]
    trust = ssl.create_default_context(cafile=str(made.cert))
    async with serving(plain) as address, running_server(listen=listen) as server:
        visitors, tunnels, secure = (port_of(server, index) for index in range(3))
        ca = {"ca_file": str(made.cert)}
        async with running_agent(f"wss://localhost:{tunnels}", address, server=ca) as (_, tunnel):
            await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
            assert tunnel.connected is not None
            assert tunnel.connected.public_url == f"http://{LOOPBACK}:{visitors}/t/app"
            unix = httpx.AsyncHTTPTransport(uds=str(folder / "all.sock"))
            async with (
                httpx.AsyncClient(verify=trust) as client,
                httpx.AsyncClient(transport=unix) as by_unix,
            ):
                for url in (f"http://{LOOPBACK}:{visitors}", f"https://[::1]:{secure}"):
                    assert (await client.get(f"{url}/t/app/x")).text == "hello"
                    answer = await client.get(f"{url}/tunnel/connect?name=other")
                    assert (answer.status_code, answer.headers["X-Tunnel-Error"]) == (404, "not_found")
                assert (await by_unix.get("http://localhost/t/app/x")).text == "hello"
                answer = await client.get(f"https://{LOOPBACK}:{tunnels}/t/app/x")
                assert (answer.status_code, answer.headers["X-Tunnel-Error"]) == (404, "not_found")
                assert (await client.get(f"https://{LOOPBACK}:{tunnels}/healthz")).status_code == 200


async def test_garbage_on_a_tls_listener_ends_that_connection(lines: Book, folder: Path) -> None:
    made = certificate(folder)
    tls = {"cert": str(made.cert), "key": str(made.key)}
    async with running_server(tls=tls) as server:
        _, writer = await asyncio.open_connection(LOOPBACK, port_of(server))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await writer.drain()
        writer.close()
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(made.cert))) as client:
            assert (await client.get(f"https://localhost:{port_of(server)}/healthz")).status_code == 200


async def test_a_handshake_that_does_not_come_is_not_waited_for(folder: Path) -> None:
    made = certificate(folder)
    tls = {"cert": str(made.cert), "key": str(made.key)}
    async with running_server(tls=tls, limits={"header_timeout": 0.2}) as server:
        reader, writer = await asyncio.open_connection(LOOPBACK, port_of(server))
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()


# -- programs that cannot start


def run(folder: Path, role: str, settings: dict[str, Any]) -> Process:
    path = folder / f"{role}-{free_port()}.yaml"
    path.write_text(yaml.safe_dump(settings))
    path.chmod(0o600)
    return Process(python_module("tunneld", role, "--config", str(path)), name=role)


def server(**settings: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"admin": False, "auth": {"mode": "open"}, "store": "memory:"}
    return {**base, "listen": {"host": LOOPBACK, "port": free_port()}, **settings}


def ends_with(process: Process, *wanted: str) -> None:
    try:
        assert process.wait() == 2
        texts = [line.text for line in process.lines]
        assert len(texts) == len(wanted), texts
        for text, want in zip(texts, wanted, strict=True):
            assert want in text
        process.assert_clean(codes=(2,))
    finally:
        process.discard()


def test_a_busy_port_and_an_address_of_another_machine(folder: Path) -> None:
    first = run(folder, "server", both := server())
    try:
        first.wait_line("Listening on")
        port = both["listen"]["port"]
        listen = [both["listen"], {"host": "192.0.2.1", "port": port}]
        ends_with(
            run(folder, "server", server(listen=both["listen"])),
            f"listen[0]: cannot listen on 127.0.0.1:{port}: another process listens there",
        )
        ends_with(
            run(folder, "server", server(listen=listen, auth={"mode": "token"})),
            f"listen[0]: cannot listen on 127.0.0.1:{port}: another process listens there",
            f"listen[1]: cannot listen on 192.0.2.1:{port}: this machine has no such address",
        )
        assert first.stop() == 0
    finally:
        first.discard()


def test_a_certificate_that_is_none(folder: Path) -> None:
    made = certificate(folder)
    made.cert.write_text("no certificate")
    tls = {"cert": str(made.cert), "key": str(made.key)}
    ends_with(run(folder, "server", server(tls=tls)), str(made.cert))


def test_open_to_the_world_is_refused(folder: Path) -> None:
    ends_with(run(folder, "server", server(listen={"host": "0.0.0.0", "port": 1})), "auth.mode: open lets anyone")


def test_a_second_agent_on_the_same_socket(folder: Path) -> None:
    settings = {
        "server": {"url": f"ws://{LOOPBACK}:1"},
        "tunnels": [{"name": "app", "service": f"http://{LOOPBACK}:1"}],
        "control": {"socket": str(folder / "c.sock")},
        "drain_timeout": 0,
    }
    first = run(folder, "agent", settings)
    try:
        first.wait_line("control socket")
        ends_with(run(folder, "agent", settings), f"pid {first.pid}")
        assert (folder / "c.sock").exists()
        assert first.stop() == 0
        assert not (folder / "c.sock").exists()
        first.assert_clean()
    finally:
        first.discard()
