"""Agents behind forward proxies that others wrote: tinyproxy for HTTP CONNECT, microsocks for SOCKS5."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import need
from tests.support.authority import Authority
from tests.support.daemons import Agent, Server
from tests.support.processes import Process, eventually
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, accepts, free_port

USER, SECRET = "agent", "of-the-proxy"


@contextmanager
def forward(kind: str, folder: Path) -> Iterator[tuple[Process, str]]:
    """A proxy that wants USER and SECRET: its process, and ``HOST:PORT``."""
    port = free_port()
    if kind == "tinyproxy":
        program = need(kind, "apt-get install tinyproxy-bin")
        file = folder / "tinyproxy.conf"
        file.write_text(
            f"Port {port}\nListen {LOOPBACK}\nTimeout 600\nMaxClients 20\nLogLevel Connect\n"
            f"Allow {LOOPBACK}\nBasicAuth {USER} {SECRET}\n"
        )
        command = [program, "-d", "-c", str(file)]
    else:
        program = need(kind, "apt-get install microsocks")
        command = [program, "-i", LOOPBACK, "-p", str(port), "-u", USER, "-P", SECRET]
    process = Process(command, name=kind)
    try:
        process.wait_until(functools.partial(accepts, port), timeout=20, what=f"listening on {port}")
        yield process, f"{LOOPBACK}:{port}"
    finally:
        process.discard()


@pytest.mark.parametrize(
    ("kind", "scheme", "told"),
    [
        ("tinyproxy", "http", "CONNECT localhost:{port}"),
        ("microsocks", "socks5", "connected to 127.0.0.1:{port}"),
        ("microsocks", "socks5h", "connected to localhost:{port}"),
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_a_tunnel_goes_through_a_proxy_of_debian(
    kind: str, scheme: str, told: str, tls: bool, folder: Path, service: SampleService
) -> None:
    trust: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if tls:
        authority = Authority(folder)
        made = authority.issue("server", "DNS:localhost")
        settings["tls"] = {"cert": str(made.cert), "key": str(made.key)}
        trust["ca_file"] = str(authority.cert)
    server = Server(folder, settings=settings)
    try:
        with forward(kind, folder) as (proxy, address):
            url = f"{'wss' if tls else 'ws'}://localhost:{server.port}"
            through = {"url": url, "proxy": f"{scheme}://{USER}:{SECRET}@{address}", **trust}
            agent = Agent(folder, server, {"app": service.url}, settings={"server": through})
            try:
                eventually(lambda: told.format(port=server.port) in seen(proxy), what="seen by the proxy")
                with httpx.Client(verify=False) as visitor:
                    base = f"{'https' if tls else 'http'}://{LOOPBACK}:{server.port}/t/app"
                    body = b"x" * 3_000_000
                    assert visitor.post(f"{base}/echo", content=body, timeout=30).status_code == 200
                    assert visitor.get(f"{base}/echo", timeout=30).status_code == 200
                agent.process.stop()
                assert SECRET not in seen(agent.process)
            finally:
                agent.process.discard()
    finally:
        server.process.discard()


@pytest.mark.parametrize(("kind", "scheme"), [("tinyproxy", "http"), ("microsocks", "socks5")])
def test_a_wrong_password_is_told_as_the_proxys_and_shown_nowhere(kind: str, scheme: str, folder: Path) -> None:
    server = Server(folder)
    try:
        with forward(kind, folder) as (_, address):
            through = {"url": f"ws://localhost:{server.port}", "proxy": f"{scheme}://{USER}:not-it@{address}"}
            agent = Agent(folder, server, {"app": "http://127.0.0.1:9"}, settings={"server": through}, online=False)
            try:
                line = agent.process.wait_line("✗ Tunnel error for app", timeout=20).text
                assert "proxy" in line
                assert "not-it" not in seen(agent.process)
            finally:
                agent.process.discard()
    finally:
        server.process.discard()


def seen(process: Process) -> str:
    """All that it wrote."""
    return "\n".join(line.text for line in process.lines)
