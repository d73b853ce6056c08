"""A tunnel is `online` once a probe went server, agent, service and back: real daemons, and older peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.running import (
    Book,
    agent_settings,
    relay,
    running_agent,
    running_server,
    settled,
    url_of,
    written,
)
from tests.support.sockets import LOOPBACK, free_port
from tunneld.agent.checking import ServiceCheck
from tunneld.control.admin.shapes import tunnel_info
from tunneld.control.admin.states import tunnel_state
from tunneld.protocol.messages import Connected, ProbeSettings, Wishes
from tunneld.server.carried import IDLE
from tunneld.server.daemon import ServerDaemon


class Service:
    """Answers every request by `status`; counts the connections."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.connections = 0
        self.mute = False
        self._held: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if await reader.readuntil(b"\r\n\r\n") and not self.mute:
                writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            else:
                self._held.append(writer)
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def service() -> AsyncIterator[tuple[Service, str]]:
    made = Service()
    server = await asyncio.start_server(made.serve, LOOPBACK, 0)
    yield made, f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    server.close()


def tunnel_of(server: ServerDaemon) -> Any:
    known = server.registry.find("app")
    assert known is not None
    return tunnel_info(known, IDLE, monotonic())


QUICK = {"heartbeat": {"interval": 30, "timeout": 0.2, "min": 0.01}}


async def test_online_is_said_by_a_probe_that_came_back(lines: Book, service: tuple[Service, str]) -> None:
    _, url = service
    async with running_server() as server, running_agent(url_of(server), url) as (_, tunnel):
        await settled(lambda: tunnel.state == "online")
        known = server.registry.find("app")
        assert known is not None
        assert (known.proof.asked, known.proof.proved, known.proof.fault) == (True, True, None)
        assert server.registry.probes.count == 1
        assert tunnel_of(server)["state"] == "online"
        assert 0 < tunnel_of(server)["probe_ms"] < 5000


async def test_a_fault_of_the_service_is_told_at_both_ends(lines: Book, service: tuple[Service, str]) -> None:
    made, url = service
    check = {"path": "/healthz", "interval": 0.05}
    async with (
        running_server(**QUICK) as server,
        running_agent(url_of(server), url, tunnels=[{"name": "app", "service": url, "service_check": check}]) as (
            _,
            tunnel,
        ),
    ):
        await settled(lambda: tunnel.state == "online")
        made.status = "503 Busy"
        await lines.wait("The tunnel app is up, but degraded: GET /healthz was answered 503")
        assert (tunnel_of(server)["state"], tunnel_of(server)["last_error"]) == (
            "degraded",
            "GET /healthz was answered 503",
        )
        await settled(lambda: tunnel.state == "degraded")
        made.status = "200 OK"
        await lines.wait("The tunnel app serves again.")
        await settled(lambda: tunnel.state == "online")
        assert tunnel_of(server)["state"] == "online"


async def test_a_service_that_does_not_answer_in_time_is_degraded(lines: Book, service: tuple[Service, str]) -> None:
    made, url = service
    made.mute = True
    one = {"name": "app", "service": url, "service_check": {"path": "/", "interval": 0.05, "timeout": 0.1}}
    async with running_server(**QUICK) as server, running_agent(url_of(server), url, tunnels=[one]) as (_, tunnel):
        await lines.wait("The tunnel app is up, but degraded: no answer within 0.1 s")
        assert tunnel.last_error == "no answer within 0.1 s"
        assert tunnel_of(server)["state"] == "degraded"


async def test_an_agent_that_does_not_answer_probes_is_degraded_at_both_ends(
    lines: Book, service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connected, its heartbeats answered, and yet nothing goes through: that is not `online`."""
    _, url = service
    answering = ServiceCheck.asked
    monkeypatch.setattr(ServiceCheck, "asked", lambda *_: None)
    one = {"name": "app", "service": url, "service_check": {"interval": 0.05, "timeout": 0.05}}
    async with (
        running_server(**QUICK) as server,
        running_agent(url_of(server), url, tunnels=[one], heartbeat={"timeout": 0.1}) as (_, tunnel),
    ):
        await lines.wait("The tunnel app is up, but degraded: the server's probe did not come back within")
        # Its own check, which has 50 ms, may have failed before on a machine that was busy.
        await settled(lambda: "did not come back" in (tunnel.last_error or ""))
        assert tunnel.state == "degraded"
        assert tunnel_of(server)["state"] == "degraded"
        monkeypatch.setattr(ServiceCheck, "asked", answering)
        await settled(lambda: tunnel.state == "online")
        assert tunnel.last_error is None
        await lines.wait("The tunnel app serves again.")


async def test_what_was_proved_holds_over_a_resume_and_is_proved_again(
    lines: Book, service: tuple[Service, str]
) -> None:
    _, url = service
    async with (
        running_server() as server,
        relay(int(url_of(server).rpartition(":")[2])) as wire,
        running_agent(f"ws://{LOOPBACK}:{wire.port}", url) as (_, tunnel),
    ):
        await settled(lambda: tunnel.state == "online")
        wire.cut()
        await settled(lambda: tunnel.state == "resuming")
        await settled(lambda: tunnel.state == "online")
        await settled(lambda: server.registry.probes.count == 2)


async def test_a_changed_check_is_agreed_on_anew(lines: Book, service: tuple[Service, str], tmp_path: Path) -> None:
    made, url = service
    one: dict[str, Any] = {"name": "app", "service": url}
    path = tmp_path / "agent.yaml"
    async with (
        running_server(**QUICK) as server,
        running_agent(url_of(server), url, path=path, tunnels=[one]) as (agent, tunnel),
    ):
        await settled(lambda: tunnel.state == "online")
        made.status = "500 Broken"
        one["service_check"] = {"path": "/healthz", "interval": 0.05}
        written(path, agent_settings(url_of(server), url, {"tunnels": [one]}))
        await agent.reload()
        await lines.wait("The tunnel app is up, but degraded: GET /healthz was answered 500")
        assert tunnel.connected is not None
        assert tunnel.connected.probe == ProbeSettings(0.05, 5.0)


async def test_the_server_is_not_probing_more_often_than_its_heartbeats_may_go(
    lines: Book, service: tuple[Service, str]
) -> None:
    _, url = service
    one = {"name": "app", "service": url, "service_check": {"interval": 0.05}}
    async with running_server() as server, running_agent(url_of(server), url, tunnels=[one]) as (_, tunnel):
        await settled(lambda: tunnel.state == "online")
        assert tunnel.connected is not None
        assert tunnel.connected.probe == ProbeSettings(1.0, 5.0)  # and between two of them the agent looks by itself


async def test_a_server_that_knows_no_probes_leaves_it_to_the_agent(
    lines: Book, service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older server: `connected` without the key. Being connected, and the agent's own look, are all there is."""
    monkeypatch.setattr("tunneld.server.welcome.Connected", _without_probe)
    monkeypatch.setattr("tunneld.server.probing.Prober.start", lambda *_: None)
    _, url = service
    port = free_port()
    one = {"name": "app", "service": f"http://{LOOPBACK}:{port}", "service_check": {"interval": 0.05}}
    async with running_server() as server, running_agent(url_of(server), url, tunnels=[one]) as (_, tunnel):
        await settled(lambda: tunnel.state == "degraded")
        back = await asyncio.start_server(Service().serve, LOOPBACK, port)
        await settled(lambda: tunnel.state == "online")
        back.close()


def _without_probe(**keys: Any) -> Connected:
    return Connected(**(keys | {"probe": None}))


async def test_an_agent_that_knows_no_probes_is_online_when_it_is_connected(
    lines: Book, service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older agent: it wishes none, so the server sends none."""
    _, url = service

    def wishes(**keys: Any) -> Wishes:
        keys.pop("probe")
        return Wishes(**keys)

    monkeypatch.setattr("tunneld.agent.hello.Wishes", wishes)
    async with running_server() as server, running_agent(url_of(server), url) as (_, tunnel):
        await settled(lambda: tunnel.state == "online")
        known = server.registry.find("app")
        assert known is not None
        assert not known.proof.asked
        assert tunnel_state(known) == "online"
        assert server.registry.probes.count == 0
