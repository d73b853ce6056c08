"""How the agent dials: through proxies of every kind, with its own certificate, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.authority import Authority
from tests.support.forward_proxies import ForwardProxy, forward_proxy
from tests.support.loops import on_both_loops
from tests.support.running import Book, book, port_of, running_agent, running_server
from tests.support.sockets import LOOPBACK, Certificate, free_port

NAME = "tunnel.test"  # resolves nowhere: only a proxy can know it


def pair(made: Certificate) -> dict[str, str]:
    return {"cert": str(made.cert), "key": str(made.key)}


def address(proxy: ForwardProxy, scheme: str = "http", user: str = "") -> str:
    return f"{scheme}://{user}{LOOPBACK}:{proxy.port}"


async def up(lines: Book, url: str, **server: Any) -> None:
    """The tunnel comes up, and goes."""
    mark = lines.mark()
    async with running_agent(url, server=server):
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel", after=mark)


async def refused(lines: Book, url: str, **server: Any) -> str:
    """The line that says why the tunnel does not come up."""
    mark = lines.mark()
    async with running_agent(url, server=server, reconnect={"initial": 5, "max": 5}) as (_, tunnel):
        entry = await lines.wait("✗ Tunnel error for app", by="tunneld.tunnel", after=mark)
        assert tunnel.last_error
    assert "secret" not in "".join(line.text for line in lines.entries)
    return entry.text


@contextlib.asynccontextmanager
async def secured(folder: Path, **more: Any) -> AsyncIterator[tuple[int, dict[str, str]]]:
    """A server behind TLS: its port, and what an agent needs to trust it."""
    authority = Authority(folder)
    made = authority.issue("server", f"DNS:{NAME}", "DNS:localhost")
    async with running_server(tls=pair(made), **more) as server:
        yield port_of(server), {"ca_file": str(authority.cert)}


@pytest.mark.parametrize("user", ["", "us%40er:secret@"])
@pytest.mark.parametrize(("scheme", "how"), [("http", "CONNECT"), ("socks5h", "SOCKS5 3")])
@on_both_loops
async def test_through_a_proxy_over_tls(scheme: str, how: str, user: str, folder: Path) -> None:
    with book() as lines:
        async with secured(folder) as (port, trust), forward_proxy(port) as proxy:
            proxy.credentials = "us@er:secret" if user else None
            await up(lines, f"wss://{NAME}", proxy=address(proxy, scheme, user), **trust)
            assert proxy.asked == [(how, NAME, 443)]
            assert lines.find(f"Dialling through the proxy {scheme}://{LOOPBACK}:{proxy.port} (server.proxy)")
            assert "secret" not in "".join(entry.text for entry in lines.entries)


@on_both_loops
async def test_socks5_resolves_here(folder: Path) -> None:
    with book() as lines:
        async with secured(folder) as (port, trust), forward_proxy(port) as proxy:
            await up(lines, "wss://localhost:5", proxy=address(proxy, "socks5"), **trust)
            assert proxy.asked == [("SOCKS5 1", "127.0.0.1", 5)]


@on_both_loops
async def test_through_a_proxy_that_speaks_tls_itself(folder: Path) -> None:
    with book() as lines:
        authority = Authority(folder / "proxy")
        made = authority.issue("proxy", "IP:127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.cert, made.key)
        both = folder / "both.pem"
        async with secured(folder / "server") as (port, trust), forward_proxy(port, tls=context) as proxy:
            both.write_bytes(authority.cert.read_bytes() + Path(trust["ca_file"]).read_bytes())
            proxy.credentials = "u:secret"
            how = {"proxy": address(proxy, "https", "u:secret@"), "ca_file": str(both)}
            await up(lines, f"wss://{NAME}", **how)
            assert proxy.asked == [("CONNECT", NAME, 443)]
            text = await refused(lines, f"wss://{NAME}", **{**how, "ca_file": trust["ca_file"]})
            assert "its certificate is not trusted" in text
        async with running_server() as server, forward_proxy(port_of(server), tls=context) as proxy:
            how = {"proxy": address(proxy, "https"), "ca_file": str(both)}
            await up(lines, f"ws://{NAME}:8440", **how)  # the tunnel itself in plain
            assert proxy.asked == [("CONNECT", NAME, 8440)]


async def test_the_environment_names_the_proxy(lines: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server() as server, forward_proxy(port_of(server)) as proxy:
        monkeypatch.setenv("http_proxy", address(proxy))
        await up(lines, f"ws://{NAME}:8440")
        assert proxy.asked == [("CONNECT", NAME, 8440)]
        assert lines.find("(http_proxy)")
        await up(lines, f"ws://{LOOPBACK}:{port_of(server)}")
        monkeypatch.setenv("NO_PROXY", "test")
        text = await refused(lines, f"ws://{NAME}:8440")
        assert "resolve" in text
        assert "check server.url and this machine's DNS" in text
        assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    ("scheme", "user", "change", "wanted"),
    [
        (
            "http",
            "",
            {"credentials": "u:p"},
            "answered CONNECT with 407 Words of it. Give it a user name and a password",
        ),
        ("http", "u:secret@", {"credentials": "u:p"}, "407 Words of it. Correct the user name and the password"),
        ("http", "", {"status": 403}, "answered CONNECT with 403 Words of it. Ask who runs the proxy"),
        ("http", "", {"status": 502}, "answered CONNECT with 502 Words of it. Check server.url"),
        ("http", "", {"status": 404}, "answered CONNECT with 404 Words of it. Check the proxy's address"),
        ("http", "", {"greets": b"hello"}, "it sent something behind its answer"),
        (
            "socks5h",
            "",
            {"credentials": "u:p"},
            "none of the ways to authenticate that were offered. Give it a user name",
        ),
        ("socks5h", "u:secret@", {"credentials": "u:p"}, "it refused the user name or the password. Correct"),
        ("socks5h", "", {"reply": 2}, "its rules do not allow this connection. Ask who runs the proxy"),
        ("socks5h", "", {"reply": 5}, "the server refused the connection. Check server.url"),
        ("socks5h", "", {"reply": 99}, "it answered 99"),
    ],
)
async def test_what_a_proxy_refuses_is_said(
    lines: Book, scheme: str, user: str, change: dict[str, Any], wanted: str
) -> None:
    async with forward_proxy(free_port()) as proxy:
        for name, value in change.items():
            setattr(proxy, name, value)
        text = await refused(lines, f"ws://{NAME}", proxy=address(proxy, scheme, user))
        assert f"the proxy {scheme}://{LOOPBACK}:{proxy.port} (server.proxy): " in text
        assert wanted in text


async def test_a_proxy_that_is_none(lines: Book) -> None:
    async with running_server() as server:
        port = port_of(server)
        text = await refused(lines, f"ws://{NAME}", proxy=f"socks5h://{LOOPBACK}:{port}")
        assert "it does not speak SOCKS5" in text
        text = await refused(lines, f"ws://{NAME}", proxy=f"http://{LOOPBACK}:{port}")
        assert "answered CONNECT with 400" in text
        text = await refused(lines, f"ws://{NAME}", proxy=f"https://{LOOPBACK}:{port}")
        assert "TLS with it failed" in text
    text = await refused(lines, f"ws://{NAME}", proxy=f"http://{LOOPBACK}:{port}")
    assert "it cannot be reached: Connection refused. Start it, or correct server.proxy" in text
    text = await refused(lines, f"ws://{NAME}", proxy="http://proxy.invalid:1")
    assert "it cannot be reached: " in text


async def test_a_step_that_takes_too_long_is_named(lines: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunneld.agent.dialer.DIAL_TIMEOUT", 0.2)
    async with forward_proxy(0) as silent:
        silent.silent = True
        text = await refused(lines, f"ws://{NAME}", proxy=address(silent))
        assert f"(connecting through the proxy http://{LOOPBACK}:{silent.port})" in text
        assert "(the TLS handshake)" in await refused(lines, f"wss://localhost:{silent.port}")
        assert "(the upgrade)" in await refused(lines, f"ws://{LOOPBACK}:{silent.port}")


async def test_what_is_wrong_with_a_certificate_is_said(lines: Book, folder: Path) -> None:
    authority, other = Authority(folder / "a"), Authority(folder / "b", "Another root")
    stale = authority.issue("stale", "DNS:localhost", end="20210101000000Z")
    early = authority.issue("early", "DNS:localhost", start="20980101000000Z")
    good = authority.issue("good", "DNS:localhost")
    trust = {"ca_file": str(authority.cert)}
    for made, url, how, wanted in [
        (stale, "wss://localhost", trust, "it has expired. The server's operator has to renew it"),
        (early, "wss://localhost", trust, "it is not valid yet. If the server's operator"),
        (good, f"wss://{LOOPBACK}", trust, "IP address mismatch, certificate is not valid for '127.0.0.1'. Write into"),
        (good, "wss://localhost", {"ca_file": str(other.cert)}, "an authority that is unknown here signed it"),
        (good, "wss://localhost", {}, "an authority that is unknown here signed it"),
    ]:
        async with running_server(tls=pair(made)) as server:
            text = await refused(lines, f"{url}:{port_of(server)}", **how)
            assert "the server's certificate is not trusted: " in text
            assert wanted in text
    async with running_server(tls=pair(good)) as server:
        await up(lines, f"wss://localhost:{port_of(server)}", **trust)
        text = await refused(lines, f"ws://localhost:{port_of(server)}")
        assert "Check scheme and port in server.url (wss:// with TLS)" in text
    async with running_server() as server:
        text = await refused(lines, f"wss://localhost:{port_of(server)}", **trust)
        assert "the server does not speak TLS on that port. Write ws://" in text
    text = await refused(lines, f"ws://{LOOPBACK}:{free_port()}")
    assert "Connection refused. Nothing listens there" in text


class Strict:
    """A server that asks for a client's certificate by OpenSSL alone, and says which one it was shown."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.shown: list[Any] = []
        self.sock = socket.create_server((LOOPBACK, 0))
        self.url = f"wss://localhost:{self.sock.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self.sock.accept()
                with self.context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False) as sock:
                    try:
                        sock.do_handshake()
                    except ssl.SSLError:  # the alert is out: let the client read it, a close would reset it away
                        with socket.socket(fileno=sock.detach()) as left:
                            while left.recv(4096):
                                pass
                        continue
                    sock.recv(4096)
                    self.shown.append(sock.getpeercert())
                    sock.sendall(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\nX-Tunnel-Error: shutdown\r\n\r\n")
                    sock.recv(4096)

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(10)


@on_both_loops
async def test_a_server_that_wants_a_client_certificate(folder: Path) -> None:
    """What the agent shows, and what it says when it has none or a wrong one."""
    authority, other = Authority(folder / "a"), Authority(folder / "b", "Another root")
    made, mine, wrong = authority.issue("s", "DNS:localhost"), authority.issue("mine"), other.issue("wrong")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    context.load_verify_locations(authority.cert)
    context.verify_mode = ssl.CERT_REQUIRED
    strict = Strict(context)
    trust = {"ca_file": str(authority.cert)}
    with book() as lines:
        try:
            how = {"client_cert": str(mine.cert), "client_key": str(mine.key)}
            assert "refused with 503 shutdown" in await refused(lines, strict.url, **trust, **how)
            assert strict.shown[0]["subject"] == ((("commonName", "mine"),),)
            text = await refused(lines, strict.url, **trust)
            assert "refused this agent in the TLS handshake: certificate required. Set server.client_cert" in text
            how = {"client_cert": str(wrong.cert), "client_key": str(wrong.key)}
            text = await refused(lines, strict.url, **trust, **how)
            assert "refused this agent in the TLS handshake: unknown ca. Set server.client_cert" in text
        finally:
            strict.close()
