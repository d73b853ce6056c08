"""Visitors by TLS and by a Unix socket."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.support.front import Client, front
from tests.support.loops import on_both_loops
from tests.support.sockets import Certificate, certificate, short_dir
from tunneld.config.server import ListenConfig

POST = b"POST /t/demo/up HTTP/1.1\r\nHost: h\r\n"


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("pem"))


def contexts(pem: Certificate) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem.cert, pem.key)
    return server, ssl.create_default_context(cafile=str(pem.cert))


@on_both_loops
async def test_visitors_by_tls(pem):
    here, there = contexts(pem)
    async with front() as it:
        loop = asyncio.get_running_loop()
        factory = it.ingress.protocol_factory(ListenConfig(port=0), tls=True)
        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=here)
        port = server.sockets[0].getsockname()[1]

        async def connect() -> Client:
            client = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=there))
            it.clients.append(client)
            return client

        client = await connect()
        client.get("/t/demo/")
        served = await it.served()
        assert served.headers["x-forwarded-proto"] == "https"
        served.answer()
        assert (await client.answer()).body == b"ok"

        client.send(POST + b"Content-Length: 900000\r\n\r\n")
        served = await it.served()
        served.greedy = False
        client.send(b"x" * 900_000)
        await served.until(lambda: len(served.body) >= 256 * 1024)
        served.greedy = True
        served.take()
        assert len(await served.whole()) == 900_000
        served.answer(413, body=b"no")
        assert (await client.answer()).body == b"no"

        client.get("/t/demo/sse")
        served = await it.served()
        served.events()
        await client.head()
        client.writer.transport.abort()
        assert await served.cancel_reason() == "visitor"

        client = await connect()
        client.get("/t/demo/")
        served = await it.served()
        served.stream.send_head(200, [])
        served.stream.send(b"half")
        await client.head()
        assert await client.chunk() == b"half"
        served.stream.cancel("service")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError, ssl.SSLError)):
            await client.chunk()
        await it.settle()
        server.close()


@on_both_loops
async def test_visitors_by_a_unix_socket_are_those_that_the_proxy_names():
    with short_dir() as folder:
        path = Path(folder) / "s"
        async with front() as it:
            loop = asyncio.get_running_loop()
            factory = it.ingress.protocol_factory(ListenConfig(unix=str(path)))
            server = await loop.create_unix_server(factory, str(path))

            async def connect() -> Client:
                client = Client(*await asyncio.open_unix_connection(str(path)))
                it.clients.append(client)
                return client

            client = await connect()
            client.get("/t/demo/", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")
            served = await it.served()
            assert served.request.client == "203.0.113.9"
            assert served.headers["x-forwarded-proto"] == "https"
            served.answer()
            assert (await client.answer()).body == b"ok"
            client.get("/t/demo/")
            served = await it.served()
            assert served.request.client == ""
            served.events()
            await client.head()
            await client.leave()
            assert await served.cancel_reason() == "visitor"

            client = await connect()
            client.send(POST + b"Content-Length: 100000000\r\n\r\n")
            served = await it.served()
            served.greedy = False
            await it.send_until_paused(client)
            client.writer.transport.abort()
            assert await served.cancel_reason() == "visitor"
            await it.settle()
            server.close()
