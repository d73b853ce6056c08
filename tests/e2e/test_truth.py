"""`online` is said of what a visitor would reach, and of nothing else: real daemons, and services that fail in turn."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from tests.support.authority import Authority
from tests.support.daemons import Pair
from tests.support.processes import Process, python_module
from tests.support.sockets import LOOPBACK, accepts, free_port, free_ports, short_dir

pytestmark = pytest.mark.timeout(120)

_INTERVAL, _TIMEOUT, _PATIENCE = 0.5, 1.0, 1.0  # of the checks, and of the way beside them
_CHECK = {"interval": _INTERVAL, "timeout": _TIMEOUT}
_ASKED = 10.0  # seconds for the programs that ask, on a machine that does more
_ALERTS = [{"when": "service_failing", "for": 0, "group": 0, "to": [{"log": True}]}]


@contextmanager
def deaf(port: int) -> Iterator[None]:
    """Something that takes every connection there and answers nothing."""
    with socket.create_server((LOOPBACK, port), backlog=64) as listening:
        kept: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    kept.append(listening.accept()[0])
                except OSError:
                    return

        taking = threading.Thread(target=take, name="deaf")
        taking.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            taking.join(5)
            for each in kept:
                each.close()


class World:
    """One agent with a tunnel for each way to fail."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.ports = dict(zip(("killed", "stopped", "status", "deaf", "expired"), free_ports(5), strict=True))
        self.path = folder / "app.sock"
        self.services: dict[str, Process] = {}
        for name in ("killed", "stopped", "status", "deaf", "unix"):
            self.start(name)
        ok = {"path": "/status?code=200", **_CHECK}
        self.tunnels: dict[str, dict[str, Any]] = {
            "killed": {"service": self.url("killed"), "service_check": _CHECK},
            "stopped": {"service": self.url("stopped"), "service_check": ok},
            "status": {"service": self.url("status"), "service_check": ok},
            "deaf": {"service": self.url("deaf"), "service_check": ok},
            "unix": {"service": f"unix:{self.path}", "service_check": _CHECK},
            "expired": {"service": f"https://{LOOPBACK}:{self._expired()}", "service_check": _CHECK},
        }
        beat = {"interval": 5, "timeout": _PATIENCE}
        self.pair = Pair(
            folder,
            self.tunnels,
            server={"heartbeat": {**beat, "min": "100ms"}, "alerts": _ALERTS},
            agent={"heartbeat": beat, "alerts": _ALERTS},
        )
        stack.callback(self.pair.discard)

    def url(self, name: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[name]}"

    def start(self, name: str) -> None:
        """The sample service behind that tunnel, once it takes connections."""
        where = ["--unix", str(self.path)] if name == "unix" else ["--port", str(self.ports[name])]
        made = self.services[name] = Process(python_module("tests.support.services", *where), name=name)
        self.stack.callback(made.discard)
        made.wait_line("ready", timeout=20)

    def _expired(self) -> int:
        """A TLS service whose certificate is over; its port."""
        authority = Authority(self.folder)
        self.stack.enter_context(mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(authority.cert)}))
        made = authority.issue("old", f"IP:{LOOPBACK}", end="20210101000000Z")
        port = self.ports["expired"]
        command = ["openssl", "s_server", "-accept", f"{LOOPBACK}:{port}", "-www", "-quiet"]
        process = Process([*command, "-cert", str(made.cert), "-key", str(made.key)], name="expired")
        self.stack.callback(process.discard)
        process.wait_until(lambda: accepts(port), timeout=20)
        return port

    def seen(self) -> dict[str, tuple[str, str | None, str, str | None]]:
        """Of each tunnel its state and the reason, at the agent and at the server."""
        there = httpx.get(f"http://{LOOPBACK}:{self.pair.server.admin_port}/api/v1/tunnels", timeout=20).json()[
            "tunnels"
        ]
        servers = {one["name"]: (one["state"], one["last_error"]) for one in there}
        agents = {one["name"]: (one["state"], one["last_error"]) for one in self.pair.agent.ask("status")["tunnels"]}
        assert servers.keys() == agents.keys()
        return {name: (*agents[name], *servers[name]) for name in agents}

    def until(self, name: str, state: str, reason: str | None, within: float) -> None:
        """Both ends say so, within so many seconds and those that the asking takes."""
        found: list[Any] = []

        def said() -> bool:
            found[:] = self.seen()[name]
            at_agent, why, at_server, why_there = found
            if (at_agent, at_server) != (state, state):
                return False
            return (
                (why, why_there) == (None, None) if reason is None else reason in str(why) and reason in str(why_there)
            )

        self.pair.agent.process.wait_until(said, timeout=within + _ASKED, what=f"{name} {state} ({found})")

    def agree(self) -> None:
        """Metrics of both daemons and the alerts of both say what the status says."""
        seen = self.seen()
        failing = {name for name, (state, *_) in seen.items() if state == "degraded"}
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.pair.agent.socket)), timeout=20) as agent:
            texts = [agent.get("http://localhost/metrics").text]
            health = agent.get("http://localhost/v1/health").json()
        url = f"http://{LOOPBACK}:{self.pair.server.admin_port}/metrics"
        texts.append(urllib.request.urlopen(url, timeout=20).read().decode())
        for text in texts:
            assert f'tunneld_tunnels{{state="degraded"}} {len(failing)}\n' in text
            assert f'tunneld_tunnels{{state="online"}} {len(seen) - len(failing)}\n' in text
        assert health["status"] == ("degraded" if failing else "ok")
        self.pair.agent.process.wait_until(
            lambda: self.alerted() == {name: seen[name][1] for name in failing}, timeout=_ASKED, what="alerted"
        )

    def alerted(self) -> dict[str, str]:
        """What the agent's alerts that fire say of which tunnel, in the status's words."""
        told = {one["subject"]: one["message"] for one in self.pair.agent.ask("alerts")["alerts"]}
        return {name: text.removeprefix(f"The service of {name} fails: ").rstrip(".") for name, text in told.items()}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with short_dir() as folder, ExitStack() as stack:
        yield World(folder, stack)


#: How long a trouble may last before it is told: until the next check, its own bound, and the way's.
_BOUND = _INTERVAL + _TIMEOUT + _PATIENCE


def test_an_expired_certificate_is_never_online(world: World) -> None:
    world.until("expired", "degraded", "its certificate has expired", _BOUND)
    world.agree()


def test_a_killed_service(world: World) -> None:
    world.until("killed", "online", None, _BOUND)
    world.services["killed"].kill()
    world.until("killed", "degraded", "connection refused", _BOUND)
    world.agree()
    world.start("killed")
    world.until("killed", "online", None, _BOUND)


def test_a_stopped_service(world: World) -> None:
    world.services["stopped"].pause()
    world.until("stopped", "degraded", "no answer within 1 s", _BOUND)
    world.services["stopped"].resume()
    world.until("stopped", "online", None, _BOUND)


def test_a_service_that_hangs_after_the_connect(world: World) -> None:
    world.services["deaf"].stop()
    with deaf(world.ports["deaf"]):
        world.until("deaf", "degraded", "no answer within 1 s", _BOUND)
    world.start("deaf")
    world.until("deaf", "online", None, _BOUND)


def test_another_check_by_reload(world: World) -> None:
    tunnels = [dict(one) for one in world.pair.agent.tunnels]
    for one in tunnels:
        if one["name"] == "status":
            one["service_check"] = {**one["service_check"], "path": "/status?code=500"}
    world.pair.agent.rewrite({"tunnels": tunnels})
    world.pair.agent.ask("reload")
    world.until("status", "degraded", "GET /status?code=500 was answered 500", _BOUND)
    world.pair.agent.rewrite({"tunnels": world.pair.agent.tunnels})
    world.pair.agent.ask("reload")
    world.until("status", "online", None, _BOUND)


def test_a_unix_socket_that_vanishes(world: World) -> None:
    world.path.unlink()
    world.until("unix", "degraded", "its socket does not exist", _BOUND)
    world.services["unix"].stop()
    world.start("unix")
    world.until("unix", "online", None, _BOUND)


def test_a_tunnel_of_run_time_to_nothing(world: World) -> None:
    port = free_port()
    world.pair.agent.ask("open", "late", f"http://{LOOPBACK}:{port}")
    world.until("late", "degraded", "connection refused", _BOUND)
    world.pair.agent.ask("close", "late")
