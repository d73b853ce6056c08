"""`tunnelctl doctor` comes to its end, in words, whatever it is pointed at: each question has its time, and no more."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.sockets import LOOPBACK, free_port
from tunnelctl.doctor import certificate, handshake, here, packets, stream, there, way
from tunnelctl.doctor.bounds import dial
from tunnelctl.doctor.findings import Finding
from tunnelctl.doctor.there import Server
from tunneld.errors import UsageError

PATIENCE = 0.5


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way, "PATIENCE", PATIENCE)
    monkeypatch.setattr(handshake, "PATIENCE", PATIENCE)
    monkeypatch.setattr(packets, "_PATIENCE", PATIENCE)
    monkeypatch.setattr(certificate, "_PATIENCE", PATIENCE)
    monkeypatch.setattr(here, "_PATIENCE", PATIENCE)
    monkeypatch.setattr(stream, "_PATIENCE", PATIENCE)


@asynccontextmanager
async def trickling(begin: bytes = b"HTTP/1.1 200 OK\r\n", again: bytes = b"X-More: 1\r\n") -> AsyncIterator[int]:
    """A port whose answer goes on for ever, a little now and then: no single read of it takes long."""
    leave = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(begin)
            while not leave.is_set():
                writer.write(again)
                await writer.drain()
                try:
                    async with asyncio.timeout(0.05):
                        await leave.wait()
                except TimeoutError:
                    pass
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        leave.set()
        server.close()


async def looked(url: str, **more: Any) -> Finding:
    """The last thing that is found on the way there."""
    found = await asyncio.to_thread(there.look, Server(url, **more))
    assert found[-1].advice
    return found[-1]


@pytest.mark.usefixtures("hurried")
async def test_an_answer_that_goes_on_for_ever_ends_for_the_doctor() -> None:
    async with trickling() as port:
        found = {one.check: one for one in await asyncio.to_thread(there.look, Server(f"ws://{LOOPBACK}:{port}"))}
        assert (found["server"].status, found["server"].detail) == ("fail", "No answer within 0.5 s.")
        proxied = await looked("wss://tunnel.example", proxy=f"http://{LOOPBACK}:{port}")
        assert (proxied.check, proxied.status) == ("proxy", "fail")
        assert "does not answer CONNECT tunnel.example:443 within 0.5 s" in proxied.detail
        services = [{"name": name, "service": f"http://{LOOPBACK}:{port}"} for name in ("one", "two")]
        for one in await asyncio.to_thread(here.services, services):
            assert (one.status, one.detail) == ("fail", "No head of an answer to GET / within 0.5 s.")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(stream.measure, f"http://{LOOPBACK}:{port}/sse", 0.2, lambda _: None)


@pytest.mark.usefixtures("hurried")
async def test_a_chunk_whose_length_never_ends_ends_with_the_measure() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with trickling(head, b"0") as port:
        found = await asyncio.to_thread(stream.measure, f"http://{LOOPBACK}:{port}/sse", 0.2, lambda _: None)
    assert found.events == 0


@pytest.mark.usefixtures("hurried")
async def test_a_port_that_takes_a_connection_and_begins_no_tls_is_told() -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        found = await looked(f"wss://{LOOPBACK}:{silent.getsockname()[1]}")
    assert found.detail == f"{LOOPBACK} took the connection, but began no TLS within 0.5 s."


@pytest.mark.usefixtures("hurried")
async def test_a_resolver_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def deaf(*args: object, **more: object) -> list[Any]:
        over.wait(15)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", deaf)
    try:
        found = await looked("wss://tunnel.example")
    finally:
        over.set()
    assert (found.check, found.detail) == ("dns", "The resolver says nothing of tunnel.example within 0.5 s.")


@pytest.mark.parametrize(
    ("url", "more", "check", "said"),
    [
        ("wss://[::1", {}, "server", "is no address"),
        ("wss://a..b", {}, "dns", "that is no name of a host"),
        (f"wss://{'a' * 64}.example", {}, "dns", "that is no name of a host"),
        ("wss://h", {"proxy": "http://127.0.0.1:99999"}, "proxy", "is no address of a proxy"),
        ("wss://h", {"proxy": "http://[::1"}, "proxy", "is no address of a proxy"),
    ],
)
async def test_addresses_that_are_none(url: str, more: dict[str, str], check: str, said: str) -> None:
    found = await looked(url, **more)
    assert (found.check, found.status) == (check, "fail")
    assert said in found.detail


async def test_a_proxy_that_is_not_there_is_to_be_started_not_the_server() -> None:
    found = await looked("wss://tunnel.example", proxy=f"http://{LOOPBACK}:{free_port()}")
    assert found.advice == "Start the proxy, or correct the port in server.proxy."


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({"service": "unix:/nowhere/app.sock"}, "unix:/nowhere/app.sock does not answer: No such file"),
        ({"service": "http://a..b"}, "does not answer: that is no name of a host"),
        ({"service": "http://h:99999"}, "is no address"),
        ({"service": "ftp://h"}, "is no address"),
        ({"service": "unix:" + "x" * 200}, "does not answer: AF_UNIX path too long"),
        ({"service": "unix:/nowhere/app.sock", "service_check": "/healthz"}, "does not answer"),
    ],
)
def test_services_that_are_not_there(service: dict[str, str], said: str) -> None:
    (found,) = here.services([{"name": "app", **service}])
    assert (found.check, found.status) == ("service app", "fail")
    assert said in found.detail
    assert found.advice


@pytest.mark.parametrize("url", ["http://h:99999/", "http://[::1/", "ftp://h/", "/sse"])
def test_addresses_of_streams_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="is no address such as"):
        stream.measure(url, 1, lambda _: None)


def test_a_pipe_instead_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert here.read_config(str(pipe)) == {}
    (found,) = here.config(str(pipe))
    assert (found.status, found.detail) == ("fail", f"{pipe} is no ordinary file.")


def test_the_second_address_is_dialled_where_the_first_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        taken = listener.getsockname()
        family = socket.AF_INET
        both = [
            (family, socket.SOCK_STREAM, 6, "", (LOOPBACK, free_port())),
            (family, socket.SOCK_STREAM, 6, "", taken),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: both)
        with dial("two.example", 1, 5) as sock:
            assert sock.getpeername() == taken


async def test_one_that_takes_no_further_connection_is_not_taken_for_a_black_hole() -> None:
    """It went away, or lets in no more connections of an address: that says nothing of packets."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    found = await asyncio.to_thread(packets.mtu, LOOPBACK, port, tls=False)
    assert (found.segment, found.finding.status) == (None, "skip")
    assert "took no further connection" in found.finding.detail
