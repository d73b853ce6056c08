"""Services behind Unix sockets and TLS that are full, absent, cut or something else; and what a probe says of one."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.support.loops import on_both_loops
from tests.support.sockets import certificate, short_dir
from tests.support.tunnelled import (
    Reader,
    Writer,
    assert_problem,
    read_head,
    reply,
    serving,
    tunnelled_to,
    turns_until,
)
from tunneld.agent.origin import Origin
from tunneld.agent.probe import ServiceProbe
from tunneld.config.service import parse_service
from tunneld.wire.tls import client_context, server_context


@on_both_loops
async def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        async with tunnelled_to(f"http://127.0.0.1:{held.getsockname()[1]}") as made:
            visitor = await made.get()
            document = await assert_problem(visitor, "service_unreachable", made)
            assert "connection refused" in document["detail"]
            assert visitor.headers["retry-after"] == "2"


@on_both_loops
async def test_a_name_that_does_not_resolve() -> None:
    async with tunnelled_to("http://no-such-host.invalid:80") as made:
        document = await assert_problem(await made.get(), "service_unreachable", made)
        assert "does not resolve" in document["detail"]


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose backlog is full: further connects hang."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    held = []
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
        held.append(client)
    return listener, held


@on_both_loops
async def test_a_connect_that_hangs_times_out_or_is_cancelled() -> None:
    listener, held = full_listener()
    try:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with tunnelled_to(address, limits={"connect_timeout": 0.1}) as made:
            left = made.open()
            await turns_until(lambda: made.proxy.exchanges)
            assert made.proxy.exchanges["r1"].state == "connecting"
            left.stream.cancel("visitor")
            await turns_until(lambda: not made.proxy.exchanges)
            await turns_until(lambda: not made.proxy.pool.connecting)
            assert made.ended.pop("visitor") == 1
            visitor = await made.open("POST", "/", [], ended=False).finished()
            document = await assert_problem(visitor, "service_unreachable", made)
            assert "0.1 s" in document["detail"]
            assert visitor.stop
    finally:
        for sock in (listener, *held):
            sock.close()


@on_both_loops
async def test_a_unix_socket() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        writer.write(reply(await read_head(reader)))
        await reader.read()

    with short_dir() as folder:
        path = folder / "s"
        async with tunnelled_to(f"unix:{path}") as made:
            document = await assert_problem(await made.get(), "service_unreachable", made)
            assert "does not exist" in document["detail"]
        async with serving(serve, path=path) as address, tunnelled_to(address) as made:
            visitor = await made.get()
            assert visitor.body.startswith(b"GET / HTTP/1.1\r\nHost: localhost\r\n")


@on_both_loops
async def test_a_unix_socket_whose_backlog_is_full() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        try:
            await read_head(reader)
            writer.write(reply(b"at last", extra="Connection: close\r\n"))
            await writer.drain()
        except asyncio.IncompleteReadError:  # the one that filled the backlog
            pass
        finally:
            writer.close()
            await writer.wait_closed()

    with short_dir() as folder:
        path = str(folder / "s")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(path)
            listener.listen(0)
            first.connect(path)
            async with tunnelled_to(f"unix:{path}") as made:
                visitors = [made.open() for _ in range(3)]
                await turns_until(lambda: made.proxy.pool.connecting == 3)
                for _ in range(20):
                    await asyncio.sleep(0)
                assert made.proxy.pool.connecting == 3
                first.close()
                async with await asyncio.start_unix_server(serve, sock=listener):
                    for visitor in visitors:
                        assert (await visitor.finished()).body == b"at last"


@on_both_loops
async def test_tls_is_verified_and_a_cut_is_no_clean_end() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        head = await read_head(reader)
        if b"/cut" in head:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
            await writer.drain()
            under = writer.get_extra_info("socket").fileno()
            with socket.fromfd(under, socket.AF_INET, socket.SOCK_STREAM) as same:
                same.shutdown(socket.SHUT_RDWR)
        elif b"/whole" in head:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nwhole")
        else:
            writer.write(reply(b"x" * 300_000, extra="Connection: close\r\n"))

    with short_dir() as folder:
        ours = certificate(folder)
        async with serving(serve, ssl=server_context(ours.cert, ours.key)) as address:
            async with tunnelled_to(address, tls=client_context(ca_file=ours.cert)) as made:
                visitor = await made.get()
                assert len(visitor.body) == 300_000
                assert (await made.get("/whole")).ended
                cut = await made.get("/cut")
                assert (cut.body, cut.reason) == (b"half", "service")
                assert made.ended == {"done": 2, "service": 1}
            async with tunnelled_to(address) as made:
                document = await assert_problem(await made.get(), "service_unreachable", made)
                assert "certificate" in document["detail"]


@on_both_loops
async def test_a_plain_service_spoken_to_in_tls() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(serve) as address, tunnelled_to(address.replace("http:", "https:")) as made:
        document = await assert_problem(await made.get(), "service_unreachable", made)
        assert "TLS failed" in document["detail"]


@on_both_loops
async def test_a_service_that_takes_the_connection_and_speaks_no_tls() -> None:
    async def deaf(reader: Reader, writer: Writer) -> None:
        await reader.read()

    async with (
        serving(deaf) as address,
        tunnelled_to(address.replace("http:", "https:"), limits={"connect_timeout": 0.1}) as made,
    ):
        document = await assert_problem(await made.get(), "service_unreachable", made)
        assert "no connection with TLS within 0.1 s" in document["detail"]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", None),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "GET /healthz was answered 503"),
        (b"nonsense\r\n", "its answer cannot be used: it begins with no status line of HTTP/1"),
        (b"", "no answer within 0.1 s"),
    ],
)
@on_both_loops
async def test_a_probe_says_why_a_service_is_not_well(answer: bytes, fault: str | None) -> None:
    heads: list[bytes] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        heads.append(await read_head(reader))
        writer.write(answer)
        await reader.read()

    async with serving(serve) as address:
        origin = Origin(parse_service(address))
        probe = ServiceProbe(origin, path="/healthz", headers={"Host": "app"})
        assert await probe.probe(5 if answer else 0.1) == fault
        assert heads[0].startswith(b"GET /healthz HTTP/1.1\r\nHost: app\r\n")
    assert await ServiceProbe(origin).probe(1) == "connection refused"


@on_both_loops
async def test_a_probe_without_a_path_only_connects() -> None:
    closed = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        assert await reader.read() == b""
        closed.set()

    async with serving(serve) as address, tunnelled_to(address) as made:
        assert await made.proxy.probe() is None
        await closed.wait()
