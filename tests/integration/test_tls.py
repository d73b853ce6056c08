"""The server's own TLS: a certificate renewed under open connections, a pair that does not match, names by SNI."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.support.authority import Authority
from tests.support.running import Book, port_of, running_server
from tests.support.sockets import LOOPBACK, Certificate
from tunneld.config.server import ServerConfig
from tunneld.control.admin.host import ServerHost

GET = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"


def pair(made: Certificate) -> dict[str, str]:
    return {"cert": str(made.cert), "key": str(made.key)}


class Visitor:
    """A connection over TLS, and the common name that its server showed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        subject = writer.get_extra_info("peercert")["subject"]
        self.name = dict(item[0] for item in subject)["commonName"]
        self.version = writer.get_extra_info("cipher")[1]

    @classmethod
    async def come(cls, authority: Authority, port: int, name: str | None) -> Visitor:
        trust = ssl.create_default_context(cafile=str(authority.cert))
        trust.check_hostname = False
        how: dict[str, Any] = {"ssl": trust, "server_hostname": name if name else ""}
        return cls(*await asyncio.open_connection(LOOPBACK, port, **how))

    async def ask(self) -> bytes:
        self.writer.write(GET)
        head = await self.reader.readuntil(b"\r\n\r\n")
        return head.partition(b"\r\n")[0] + await self.reader.readexactly(3)

    async def leave(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_a_renewed_certificate_is_shown_and_open_connections_go_on(lines: Book, folder: Path) -> None:
    authority = Authority(folder)
    old, new = authority.issue("old", "DNS:a.test"), authority.issue("new", "DNS:a.test")
    live = Certificate(folder / "live.pem", folder / "live.key")
    for source, target in ((old.cert, live.cert), (old.key, live.key)):
        shutil.copy(source, target)
    async with running_server(tls=pair(live)) as server:
        first = await Visitor.come(authority, port_of(server), "a.test")
        assert (first.name, first.version) == ("old", "TLSv1.3")
        shutil.copy(new.key, live.key)  # the key alone: for a moment, or for good, the two do not match
        fault = await lines.wait("The certificate stays as it was")
        assert fault.text == (
            f"The certificate stays as it was: tls.key: {live.key} is not the key of the certificate {live.cert}"
        )
        second = await Visitor.come(authority, port_of(server), "a.test")
        assert second.name == "old"
        shutil.copy(new.cert, live.cert)
        await lines.wait("Certificate read again: tls")
        third = await Visitor.come(authority, port_of(server), "a.test")
        assert third.name == "new"
        for visitor in (first, second, third):  # each over the connection that it has had
            assert await visitor.ask() == b"HTTP/1.1 200 OKok\n"
            await visitor.leave()
        assert len(lines.find("The certificate stays as it was")) == 1


async def test_the_certificate_of_the_admin_listener_is_watched_too(lines: Book, folder: Path) -> None:
    authority = Authority(folder)
    old, new = authority.issue("old", "DNS:a.test"), authority.issue("new", "DNS:a.test")
    live = Certificate(folder / "live.pem", folder / "live.key")
    for source, target in ((old.cert, live.cert), (old.key, live.key)):
        shutil.copy(source, target)
    settings: dict[str, Any] = {
        "listen": {"host": LOOPBACK, "port": 0},
        "admin": {"listen": {"host": LOOPBACK, "port": 0, "tls": pair(live)}},
        "auth": {"mode": "open"},
        "store": "memory:",
    }
    host = ServerHost(ServerConfig(**settings), None)
    await host.start()
    try:
        port = int(host.admin_addresses[0][1].rpartition(":")[2])
        first = await Visitor.come(authority, port, "a.test")
        assert first.name == "old"
        shutil.copy(new.key, live.key)
        shutil.copy(new.cert, live.cert)
        await lines.wait("Certificate read again: admin.listen.tls")
        second = await Visitor.come(authority, port, "a.test")
        assert second.name == "new"
        for visitor in (first, second):
            visitor.writer.write(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await visitor.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
            await visitor.leave()
    finally:
        await host.stop()


async def test_each_name_gets_its_certificate_on_each_listener(lines: Book, folder: Path) -> None:
    authority = Authority(folder)
    base, wild = authority.issue("base", "DNS:tunnel.test"), authority.issue("wild", "DNS:*.tunnel.test")
    other = authority.issue("other", "DNS:other.test")
    both = {**pair(base), "sni": [pair(wild)]}
    listen = [{"host": LOOPBACK, "port": 0}, {"host": LOOPBACK, "port": 0, "tls": pair(other)}]
    async with running_server(tls=both, listen=listen) as server:
        found = []
        for index, name in [
            (0, "tunnel.test"),
            (0, "a.tunnel.test"),
            (0, "nobody.test"),
            (0, None),
            (1, "a.tunnel.test"),
        ]:
            visitor = await Visitor.come(authority, port_of(server, index), name)
            assert await visitor.ask() == b"HTTP/1.1 200 OKok\n"
            found.append(visitor.name)
            await visitor.leave()
    assert found == ["base", "wild", "base", "base", "other"]


async def test_old_versions_are_refused_and_an_expired_certificate_is_told(lines: Book, folder: Path) -> None:
    authority = Authority(folder)
    stale = authority.issue("stale", "DNS:a.test", end="20210101000000Z")
    async with running_server(tls=pair(stale)) as server:
        (line,) = lines.find("expired on 2021-01-01")
        assert str(stale.cert) in line.text
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection(LOOPBACK, port_of(server), ssl=old)
