"""`tunnelctl doctor` on the way to the server: TLS, proxies, tokens, clocks, packets; each fault by a real cause."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.forward_proxies import forward_proxy
from tests.support.operators import Operator
from tests.support.processes import ROOT, clean_environment
from tests.support.running import port_of, running_agent, running_server, url_of
from tests.support.sockets import LOOPBACK, free_port
from tunnelctl.doctor import packets, there, way
from tunnelctl.doctor.findings import Finding
from tunnelctl.doctor.there import Server
from tunneld import __version__


async def looked(url: str, **more: Any) -> dict[str, Finding]:
    """What is found on the way there; of several of one name the last."""
    found = await asyncio.to_thread(there.look, Server(url, **more))
    for _turn in range(100):  # the loop hears of the connections that ended, and lets go of them
        await asyncio.sleep(0)
    assert all(one.advice for one in found if one.status in ("warn", "fail"))
    return {one.check: one for one in found}


# -- TLS


class Authority:
    """A root, an authority below it, and certificates for `localhost`; made by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._self_signed("root")
        self._issue("middle", by="root", days=30, ca=True)

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.pem")

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=self.folder)

    def _key(self, name: str) -> None:
        self._run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
        (self.folder / f"{name}.key").chmod(0o600)

    def _self_signed(self, name: str) -> None:
        self._key(name)
        subject = ["-subj", f"/O=Own Authority/CN={name}"]
        self._run("req", "-x509", "-key", f"{name}.key", "-days", "30", *subject, "-out", f"{name}.pem")

    def _issue(self, name: str, *, by: str, days: int, ca: bool = False, host: str = "localhost") -> None:
        self._key(name)
        self._run("req", "-new", "-key", f"{name}.key", "-subj", f"/O=Own Authority/CN={name}", "-out", "r.csr")
        words = "basicConstraints=critical,CA:TRUE" if ca else f"subjectAltName=DNS:{host}"
        (self.folder / "ext").write_text(words)
        signed_by = ["-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-CAcreateserial", "-extfile", "ext"]
        self._run("x509", "-req", "-in", "r.csr", *signed_by, "-days", str(days), "-out", f"{name}.pem")

    def pair(self, *, days: int = 90, host: str = "localhost", whole: bool = True) -> dict[str, str]:
        """A server's certificate below `middle`, with the chain or without it."""
        self._issue("leaf", by="middle", days=days, host=host)
        if whole:
            leaf = self.folder / "leaf.pem"
            leaf.write_text(leaf.read_text() + (self.folder / "middle.pem").read_text())
        return {"cert": self.path("leaf"), "key": str(self.folder / "leaf.key")}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def over_tls(pair: dict[str, str]) -> AsyncIterator[str]:
    """A server's address over TLS."""
    async with running_server(listen={"host": LOOPBACK, "port": 0, "tls": pair}) as server:
        yield f"wss://localhost:{port_of(server)}"


async def test_a_whole_chain_to_a_trusted_root_is_well(authority: Authority) -> None:
    async with over_tls(authority.pair(days=90)) as url:
        found = await looked(url, ca_file=authority.path("root"))
    assert found["tls"].status == found["server"].status == found["token"].status == found["clock"].status == "ok"
    assert found["tls"].detail.startswith("TLSv1.3, certificate of localhost by Own Authority, good until ")
    assert found["server"].detail == f"It speaks tunneld.v3 and takes the tunnel; this is tunneld {__version__}."


@pytest.mark.parametrize(
    ("pair", "trusts", "said"),
    [
        ({"days": -1}, "root", "certificate has expired"),
        ({"whole": False}, "root", "unable to get local issuer certificate"),
        ({"host": "other.example"}, "root", "Hostname mismatch"),
        ({}, None, "self-signed certificate in certificate chain"),
    ],
    ids=["expired", "chain with a gap", "another name", "unknown root"],
)
async def test_a_certificate_that_is_not_good_is_told_with_its_reason(
    authority: Authority, pair: dict[str, Any], trusts: str | None, said: str
) -> None:
    if trusts is None:
        (authority.folder / "leaf.pem").write_text("")
    made = authority.pair(**pair)
    if trusts is None:  # the root is sent too, and nobody here knows it
        leaf = authority.folder / "leaf.pem"
        leaf.write_text(leaf.read_text() + (authority.folder / "root.pem").read_text())
    async with over_tls(made) as url:
        found = await looked(url, ca_file=None if trusts is None else authority.path(trusts))
    assert found["tls"].status == "fail"
    assert said in found["tls"].detail
    assert "server" not in found  # nothing of the token was sent there


async def test_a_certificate_that_ends_soon_is_told(authority: Authority) -> None:
    async with over_tls(authority.pair(days=5)) as url:
        found = await looked(url, ca_file=authority.path("root"))
    assert found["tls"].status == "warn"
    assert found["tls"].detail.endswith("(4 days).")
    assert found["server"].status == "ok"


async def test_what_speaks_no_tls_and_a_ca_file_that_is_none_are_told(authority: Authority) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    url = f"wss://localhost:{server.sockets[0].getsockname()[1]}"
    try:
        found = await looked(url, ca_file=authority.path("root"))
        assert found["tls"].status == "fail"
        assert "does not speak TLS here" in found["tls"].detail
        found = await looked(url, ca_file="/no/such.pem")
        assert found["tls"].detail == "server.ca_file /no/such.pem: No such file or directory."
    finally:
        server.close()


# -- proxies


async def test_a_proxy_is_gone_through_and_looked_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server() as server, forward_proxy(port_of(server)) as proxy:
        proxy.credentials = "me:hunter2"
        found = await looked("ws://tunnel.example:8440", proxy=f"http://me:hunter2@{LOOPBACK}:{proxy.port}")
        assert found["proxy"].detail == f"http://…@{LOOPBACK}:{proxy.port} lets us through to tunnel.example:8440."
        assert found["server"].status == found["token"].status == "ok"
        assert proxy.asked[0] == ("CONNECT", "tunnel.example", 8440)
        assert "hunter2" not in repr(found)
        proxy.credentials = None
        monkeypatch.setenv("HTTP_PROXY", "")
        monkeypatch.setenv("http_proxy", f"http://{LOOPBACK}:{proxy.port}")  # the environment's, as the agent takes it
        found = await looked("ws://tunnel.example:8440")
        assert found["proxy"].status == found["server"].status == "ok"


@pytest.mark.parametrize(
    ("wanted", "status", "said", "advice"),
    [
        ("me:right", 200, "answers 407 to CONNECT tunnel.example:8440", "USER:PASSWORD@"),
        (None, 403, "answers 403 to CONNECT tunnel.example:8440", "must allow CONNECT"),
        (None, 502, "answers 502 to CONNECT tunnel.example:8440", "must allow CONNECT"),
    ],
)
async def test_a_proxy_that_refuses_is_told_with_what_to_do(
    wanted: str | None, status: int, said: str, advice: str
) -> None:
    async with forward_proxy(free_port()) as proxy:
        proxy.credentials, proxy.status = wanted, status
        found = await looked("ws://tunnel.example:8440", proxy=f"http://me:wrong@{LOOPBACK}:{proxy.port}")
    assert found["proxy"].status == "fail"
    assert said in found["proxy"].detail
    assert advice in found["proxy"].advice
    assert "wrong" not in repr(found)
    assert "server" not in found


async def test_proxies_that_are_not_there_or_of_other_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await looked("ws://tunnel.example:8440", proxy=f"http://{LOOPBACK}:{free_port()}")
    assert found["tcp"].status == "fail"
    async with forward_proxy(free_port()) as proxy:
        found = await looked("ws://tunnel.example:8440", proxy=f"socks5h://{LOOPBACK}:{proxy.port}")
        assert found["tls"].detail == "Behind a socks5h proxy the rest is not looked at; the agent's own dial tells."
        monkeypatch.setattr(way, "PATIENCE", 0.2)
        monkeypatch.setattr(packets, "_PATIENCE", 0.2)
        proxy.silent = True
        found = await looked("ws://tunnel.example:8440", proxy=f"http://{LOOPBACK}:{proxy.port}")
        assert found["proxy"].status == "fail"


# -- the server, its version and the token


async def test_each_thing_that_can_be_wrong_with_a_token_is_told(tmp_path: Path) -> None:
    operator = Operator(tmp_path / "cli.yaml")
    good = operator.do("token create app --expires 90d").strip()
    short = operator.do("token create short --tunnels app --expires 1s").strip()
    revoked = operator.do("token create gone --tunnels app").strip()
    other = operator.do("token create other").strip()
    rival = operator.do("token create rival --tunnels app").strip()
    listed = [line.split() for line in operator.do("token list").splitlines()]
    operator.do(f"token revoke {next(words[0] for words in listed if words[1] == 'gone')}")
    await asyncio.to_thread(time.sleep, 1.1)  # until the short one has ended: its end is a second, and so is wall time
    async with running_server(**operator.settings) as server:
        url = url_of(server)

        async def token(value: str | None, tunnel: str = "app", **more: Any) -> Finding:
            found = await looked(url, token=value, tunnel=tunnel, **more)
            assert found["server"].status == "ok"
            assert value is None or value not in repr(found)
            return found["token"]

        assert await token(good) == Finding("token", "ok", "It is accepted.")
        ends = await token(good, token_left=5.1 * 86400)
        assert (ends.status, ends.detail) == ("warn", "It is accepted, and ends in 5 days.")
        assert (await token(good, token_left=80 * 86400.0)).status == "ok"
        none = await token(None)
        assert (none.status, none.detail) == ("fail", "The server asks for one, and none was found here.")
        typed = good[:-1] + ("y" if good.endswith("x") else "x")
        for value, why in ((short, "has expired"), (revoked, "was revoked"), (typed, "mistyped")):
            refused = await token(value)
            assert refused.status == "fail"
            assert why in refused.detail
        assert (await token(other)).detail == "It does not open the name app."
        async with running_agent(url, server={"url": url, "token_file": _kept(tmp_path, good)}) as (_, tunnel):
            while tunnel.state != "online" and tunnel.connected is None:
                await asyncio.sleep(0)
            assert (await token(rival)).detail == "Another owner has the name app."


def _kept(folder: Path, token: str) -> str:
    path = folder / "token"
    path.write_text(token)
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize(
    ("version", "status", "said"),
    [
        (__version__, "ok", f"it is tunneld {__version__}, as this is."),
        ("9.8.7", "warn", f"it is tunneld 9.8.7, this is {__version__}."),
    ],
)
async def test_the_servers_version_is_shown_beside_ours(version: str, status: str, said: str) -> None:
    async with running_server() as server:
        found = await looked(url_of(server), version=version)
    assert found["server"].status == status
    assert found["server"].detail == f"It speaks tunneld.v3 and takes the tunnel; {said}"


@asynccontextmanager
async def answering(answer: Callable[[], bytes]) -> AsyncIterator[str]:
    """What answers each request so, and closes; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer())
        writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield f"ws://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: some-proxy/1\r\nContent-Length: 0\r\n\r\n", "fail", "some-proxy/1 answers 200"),
        (b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n", "fail", "tunneld.v3 is gone from its answer"),
        (b"HTTP/1.1 426 No\r\nContent-Length: 0\r\n\r\n", "fail", "no dialect that this agent speaks"),
        (b"HTTP/1.1 503 No\r\nX-Tunnel-Error: shutdown\r\nContent-Length: 0\r\n\r\n", "warn", "503 shutdown"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "fail", "does not answer as HTTP"),
        (b"", "fail", "it closed the connection"),
    ],
)
async def test_what_is_no_server_of_ours_is_told(answer: bytes, status: str, said: str) -> None:
    async with answering(lambda: answer) as url:
        found = await looked(url)
    assert found["server"].status == status
    assert said in found["server"].detail


@pytest.mark.parametrize(
    ("seconds", "status", "word"), [(-3600, "warn", "ahead of"), (3600, "warn", "behind"), (0, "ok", "")]
)
async def test_a_clock_that_differs_is_told(seconds: int, status: str, word: str) -> None:
    def answer() -> bytes:
        stamp = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        return f"HTTP/1.1 401 No\r\nX-Tunnel-Error: unauthorized\r\nDate: {stamp}\r\nContent-Length: 0\r\n\r\n".encode()

    async with answering(answer) as url:
        found = await looked(url)
    assert found["clock"].status == status
    assert word in found["clock"].detail
    assert found["token"].status == "fail"


async def test_addresses_that_lead_nowhere() -> None:
    assert (await looked("http://x"))["server"].detail == "http://x is no address."
    nowhere = await looked("ws://no-such-host.invalid")
    assert (nowhere["dns"].status, "tcp" in nowhere) == ("fail", False)


_SMALL = """
import http.server, threading
from tunnelctl.doctor.packets import mtu
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
found = mtu("127.0.0.1", server.server_port, tls=False).finding
print(found.status, found.detail)
"""


def test_a_way_of_small_packets_is_told() -> None:
    """Loopback of a network of its own, whose MTU is made small."""
    line = f"ip link set lo up mtu 1000 && exec {sys.executable} -c '{_SMALL}'"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", "sh", "-c", line],
        capture_output=True, text=True, timeout=15, cwd=ROOT, env=clean_environment({}), check=False,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert done.stdout.startswith("warn The way takes packets of 1000 bytes, segments of "), done.stderr
