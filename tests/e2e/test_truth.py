"""`online` is said of what a visitor would reach, and of nothing else: real daemons, and services that fail in turn.

Each case is seen with its reason wherever an operator may look, at both ends: status, metrics, dashboard, alerts.
"""

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
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.pages import api, chromium, leave, text, wait
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
        *ports, self.metrics = free_ports(6)
        self.ports = dict(zip(("killed", "stopped", "status", "deaf", "expired"), ports, strict=True))
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
            agent={"heartbeat": beat, "alerts": _ALERTS, "metrics": {"listen": f"{LOOPBACK}:{self.metrics}"}},
        )
        stack.callback(self.pair.discard)
        self.browser = stack.enter_context(chromium(folder / "profile"))
        self.pages: dict[str, str] = {}  # role -> handle of its tab
        admin = self.pair.server.admin_port
        for role, port in (("server", admin), ("agent", self.metrics)):
            if self.pages:
                self.browser.switch_to.new_window("tab")
            leave(self.browser)
            self.browser.get(f"http://{LOOPBACK}:{port}/dashboard")
            wait(self.browser, lambda: text(self.browser, "#live-text").startswith("Live"), 30)
            self.pages[role] = self.browser.current_window_handle

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

    def agree(self, name: str, cause: str) -> None:
        """Metrics, dashboard and alerts of both daemons say what the status says, of that tunnel with its reason.

        Args:
            name: of a tunnel that fails.
            cause: what the metrics call it.
        """
        seen = self.seen()
        failing = {one for one, (state, *_) in seen.items() if state == "degraded"}
        assert name in failing
        metrics = self.metrics_of()
        for role, found in metrics.items():
            assert found["tunneld_tunnels", ("degraded",)] == len(failing), role
            assert found["tunneld_tunnels", ("online",)] == len(seen) - len(failing), role
        assert metrics["agent"]["tunneld_service_fault", (cause, name)] == 1
        assert metrics["agent"]["tunneld_service_up", (name,)] == 0
        at_server = {key: value for key, value in metrics["server"].items() if key[0] == "tunneld_service_fault"}
        assert at_server["tunneld_service_fault", (cause,)] >= 1
        assert sum(at_server.values()) == len(failing)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.pair.agent.socket)), timeout=20) as agent:
            assert agent.get("http://localhost/v1/health").json()["status"] == "degraded"
        for role, reasons in (("agent", 1), ("server", 3)):
            wanted = {one: seen[one][reasons] for one in failing}
            self.pair.agent.process.wait_until(
                lambda role=role, wanted=wanted: self.alerted(role) == wanted, timeout=_ASKED, what=f"alerted at {role}"
            )
            self.shown(role, name, str(wanted[name]))

    def metrics_of(self) -> dict[str, dict[tuple[str, tuple[str, ...]], float]]:
        """Role -> (name, values of the labels in their order) -> value."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.pair.agent.socket)), timeout=20) as agent:
            texts = {"agent": agent.get("http://localhost/metrics").text}
        url = f"http://{LOOPBACK}:{self.pair.server.admin_port}/metrics"
        texts["server"] = urllib.request.urlopen(url, timeout=20).read().decode()
        return {
            role: {
                (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(found)
                for sample in family.samples
            }
            for role, found in texts.items()
        }

    def alerted(self, role: str) -> dict[str, str]:
        """What that daemon's alerts that fire say of which tunnel, in the status's words."""
        told = (self.pair.agent.ask("alerts") if role == "agent" else api(self.pair, "alerts"))["alerts"]
        texts = {one["subject"]: one["message"] for one in told if one["state"] == "firing"}
        return {name: text_.removeprefix(f"The service of {name} fails: ").rstrip(".") for name, text_ in texts.items()}

    def shown(self, role: str, name: str, reason: str) -> None:
        """On the page the tunnel stands as degraded with the reason, and so it does among the alerts."""
        self.browser.switch_to.window(self.pages[role])
        wait(self.browser, lambda: self.row(name)[:2] == ["degraded", reason], _ASKED)
        message = f"The service of {name} fails: {reason}."
        wait(self.browser, lambda: message in text(self.browser, "#alerts-list"), _ASKED)

    def well(self, name: str) -> None:
        """Neither page says anything of it any more."""
        for handle in self.pages.values():
            self.browser.switch_to.window(handle)
            wait(self.browser, lambda: self.row(name)[:1] == ["online"], _ASKED)
            wait(self.browser, lambda: f"The service of {name} fails" not in text(self.browser, "#alerts-list"), _ASKED)

    def row(self, name: str) -> list[str]:
        """State and second line of a tunnel's row; empty: it has none."""
        found = self.browser.execute_script(
            "const row = [...document.querySelectorAll('#tunnels tbody tr:not(.space)')]"
            ".find((each) => each.querySelector('.one').textContent === arguments[0]);"
            "return row ? [row.querySelector('.c-state').textContent, row.querySelector('.two').textContent] : []",
            name,
        )
        return [str(one) for one in found]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with short_dir() as folder, ExitStack() as stack:
        yield World(folder, stack)


#: How long a trouble may last before it is told: until the next check, its own bound, and the way's.
_BOUND = _INTERVAL + _TIMEOUT + _PATIENCE


def test_an_expired_certificate_is_never_online(world: World) -> None:
    world.until("expired", "degraded", "its certificate has expired", _BOUND)
    world.agree("expired", "certificate")


def test_a_killed_service(world: World) -> None:
    world.until("killed", "online", None, _BOUND)
    world.services["killed"].kill()
    world.until("killed", "degraded", "connection refused", _BOUND)
    world.agree("killed", "refused")
    world.start("killed")
    world.until("killed", "online", None, _BOUND)
    world.well("killed")


def test_a_stopped_service(world: World) -> None:
    world.services["stopped"].pause()
    world.until("stopped", "degraded", "no answer within 1 s", _BOUND)
    world.agree("stopped", "timeout")
    world.services["stopped"].resume()
    world.until("stopped", "online", None, _BOUND)
    world.well("stopped")


def test_a_service_that_hangs_after_the_connect(world: World) -> None:
    world.services["deaf"].stop()
    with deaf(world.ports["deaf"]):
        world.until("deaf", "degraded", "no answer within 1 s", _BOUND)
        world.agree("deaf", "timeout")
    world.start("deaf")
    world.until("deaf", "online", None, _BOUND)
    world.well("deaf")


def test_another_check_by_reload(world: World) -> None:
    tunnels = [dict(one) for one in world.pair.agent.tunnels]
    for one in tunnels:
        if one["name"] == "status":
            one["service_check"] = {**one["service_check"], "path": "/status?code=500"}
    world.pair.agent.rewrite({"tunnels": tunnels})
    world.pair.agent.ask("reload")
    world.until("status", "degraded", "GET /status?code=500 was answered 500", _BOUND)
    world.agree("status", "status")
    world.pair.agent.rewrite({"tunnels": world.pair.agent.tunnels})
    world.pair.agent.ask("reload")
    world.until("status", "online", None, _BOUND)
    world.well("status")


def test_a_unix_socket_that_vanishes(world: World) -> None:
    world.path.unlink()
    world.until("unix", "degraded", "its socket does not exist", _BOUND)
    world.agree("unix", "socket")
    world.services["unix"].stop()
    world.start("unix")
    world.until("unix", "online", None, _BOUND)
    world.well("unix")


def test_a_tunnel_of_run_time_to_nothing(world: World) -> None:
    port = free_port()
    world.pair.agent.ask("open", "late", f"http://{LOOPBACK}:{port}")
    world.until("late", "degraded", "connection refused", _BOUND)
    world.agree("late", "refused")
    world.pair.agent.ask("close", "late")
