"""How close each bound is, as real daemons tell it: there is a figure for each, and it follows what happens."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.bounds import FIGURES
from tests.support.daemons import Agent, Pair
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_ports, short_dir
from tunneld.server.visitors.passwords import Passwords
from tunneld.telemetry.usage import LOOK, Shares, Usage, fullest

_EVENTS = {"Accept": "text/event-stream"}


class World:
    """Both daemons with all that has bounds."""

    def __init__(self, folder: Path, service: SampleService) -> None:
        closed, self.metrics = free_ports(2)  # nobody listens on the first
        rules = [{"when": "limit_near", "to": [{"webhook": f"http://{LOOPBACK}:{closed}/"}]}]
        common: dict[str, Any] = {
            "alerts": rules,
            "telemetry": {"otlp": f"http://{LOOPBACK}:{closed}/v1/traces"},
            "dashboard": {"viewers": 4},
        }
        limits = {"address_streams": 8, "address_connections": 10, "max_waiting": 5, "hold": "30s", "max_streams": 20}
        login = {"issuer": f"http://{LOOPBACK}:{closed}", "client_id": "tunneld"}
        self.pair = Pair(
            folder,
            {
                "demo": {"service": f"http://{LOOPBACK}:{service.port}", "inspect": True},
                "other": f"http://{LOOPBACK}:{service.port}",
            },
            server={**common, "limits": limits, "login": login},
            agent={
                **common,
                "metrics": {"listen": f"{LOOPBACK}:{self.metrics}"},
                "limits": {"max_streams": 10},
                "control": {"event_readers": 4},
            },
        )
        self.agent: Agent = self.pair.agent
        self.addresses = {"agent": self.metrics, "server": self.pair.server.admin_port}

    def figures(self, role: str) -> dict[str, float]:
        """limit -> share, of both families."""
        answer = httpx.get(f"http://{LOOPBACK}:{self.addresses[role]}/metrics", timeout=15)
        return {
            sample.labels["limit"]: sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name in ("tunneld_limit_used_ratio", "tunneld_kept_used_ratio")
        }

    def until(self, role: str, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Its figures, once they are as wanted."""
        deadline = monotonic() + 15
        while not holds(found := self.figures(role)):
            assert monotonic() < deadline, found
            sleep(0.05)
        return found


def begun(answer: httpx.Response) -> Iterator[bytes]:
    """Its bytes, of which the first have come."""
    found = answer.iter_bytes()
    next(found)
    return found


@pytest.fixture
def world() -> Iterator[World]:
    service = SampleService()
    with short_dir() as folder:
        made = World(folder, service)
        try:
            yield made
        finally:
            made.pair.discard()
            service.stop()


def _has(wanted: set[str], figures: dict[str, float]) -> bool:
    return wanted <= figures.keys()


@pytest.mark.timeout(60)  # both applications are loaded at their first call
def test_each_figure_is_told_and_follows_what_happens(world: World) -> None:
    for role in ("agent", "server"):
        wanted = {limit for key, limit in FIGURES.items() if key.startswith(role)}
        found = world.until(role, functools.partial(_has, wanted))
        assert wanted - found.keys() == set()
        assert all(0 <= share <= 1 for share in found.values()), found
        assert found["dashboard_viewers"] == 0
    open_: list[Iterator[bytes]] = []  # what is let go of is closed
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(timeout=15)) for _ in range(5)]
        for client, role in zip(clients[:3], ("server", "agent", "agent"), strict=True):
            feed = f"http://{LOOPBACK}:{world.addresses[role]}/dashboard/feed"
            open_.append(begun(stack.enter_context(client.stream("GET", feed))))
        told = f"http://{LOOPBACK}:{world.metrics}/v1/events"
        open_.append(begun(stack.enter_context(httpx.stream("GET", told, timeout=15))))
        for client in clients[3:]:
            quiet = world.pair.url("demo", "/quiet")
            open_.append(begun(stack.enter_context(client.stream("GET", quiet, headers=_EVENTS))))
        agents = world.until("agent", lambda figures: figures["tunnel_streams"] > 0)
        assert (agents["dashboard_viewers"], agents["tunnel_streams"]) == (2 / 4, 2 / 10)
        assert (agents["inspected"], agents["event_readers"]) == (2 / 100, 1 / 4)
        servers = world.figures("server")
        assert (servers["dashboard_viewers"], servers["tunnel_streams"]) == (1 / 4, 2 / 10)  # the smaller wish wins
        assert (servers["address_streams"], servers["address_connections"]) == (2 / 8, 2 / 10)
    world.until("server", lambda figures: figures["dashboard_viewers"] == figures["tunnel_streams"] == 0)
    world.until("server", lambda figures: figures["dashboard_tunnels"] == 2 / 1000)  # with the next sample


@pytest.mark.timeout(60)
def test_visitors_that_wait_for_a_tunnel_are_told_of(world: World) -> None:
    world.agent.process.discard()  # killed: its session is kept, and new visitors wait
    waiting = [socket.create_connection((LOOPBACK, world.pair.server.port)) for _ in range(2)]
    for visitor in waiting:
        visitor.sendall(b"GET /t/demo/small HTTP/1.1\r\nHost: x\r\n\r\n")
    world.until("server", lambda figures: figures["tunnel_waiting"] == 2 / 5)
    for visitor in waiting:
        visitor.close()
    world.until("server", lambda figures: figures["tunnel_waiting"] == 0)


def test_the_fullest_of_many_is_told() -> None:
    assert fullest("x", [(1, 10), (0, 0), (3, 4), (7, 10)]) == Usage("x", 3, 4)
    assert fullest("x", []) == Usage("x", 0, 0)
    assert fullest("x", [(0, 5)], gives_way=True) == Usage("x", 0, 5, True)


def test_what_gives_way_or_has_no_limit_is_no_matter_for_alerts() -> None:
    usages = [Usage("tunnel_streams", 1, 4), Usage("store_waiting", 1, 2), Usage("passwords", 9, 9, True)]
    shares = Shares(lambda: [*usages, Usage("address_streams", 3, 0)])
    assert shares.read(0.0) == {"streams of a tunnel": 0.25, "store waiting": 0.5}


def test_what_is_used_is_looked_at_now_and_then_for_alerts() -> None:
    asked: list[int] = []

    def gather() -> list[Usage]:
        asked.append(1)
        return [Usage("memory", len(asked), 4)]

    shares = Shares(gather)
    found = [shares.read(100.0 + second)["memory"] for second in range(2 * int(LOOK))]
    assert found == [0.25] * int(LOOK) + [0.5] * int(LOOK)
    assert len(asked) == 2


def test_passwords_tell_both_of_their_bounds() -> None:
    made = Passwords(remembered=5, waiting=3)
    assert (made.checks(), made.kept()) == ((0, 3), (0, 5))
