"""The version before and this one, as agent and server: they work together, whichever is the newer."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.packages.building import before, environment, wheel_of
from tests.support.daemons import Agent, Server
from tests.support.processes import eventually
from tests.support.services import SampleService, pattern
from tests.support.visitors import Curl, request_id

SERVED = 1024 * 1024


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of the version before are installed."""
    folder = tmp_path_factory.mktemp("before")
    _, tree = before(folder)
    return environment(folder / "venv", wheel_of(tree, folder))


@pytest.fixture
def older_server(older: Path) -> type[Server]:
    class Older(Server):
        def command(self, *args: str) -> list[str]:
            return [str(older / "tunneld"), *args]

    return Older


@pytest.fixture
def older_agent(older: Path) -> type[Agent]:
    class Older(Agent):
        def command(self, *args: str) -> list[str]:
            return [str(older / "tunneld"), *args]

    return Older


@pytest.fixture
def service() -> Iterator[SampleService]:
    made = SampleService()
    yield made
    made.stop()


def together(server: Server, agent: Agent, service: SampleService) -> None:
    """What a tunnel is for: bodies both ways, events, a visitor that leaves, a cancel, a restart of either side."""
    got = httpx.get(server.url("app", f"/bytes?n={SERVED}"), timeout=20)
    assert got.content == pattern(SERVED)
    assert httpx.post(server.url("app", "/upload"), content=got.content, timeout=20).json()["bytes"] == SERVED
    curl = Curl(server.url("app", "/events?id=leaves&gap=0.05"))
    curl.wait_line("data: event 3")
    curl.stop()
    service.wait_closed("leaves")
    curl = Curl(server.url("app", "/events?id=told&gap=0.05"))
    try:
        curl.wait_line("data: event 3")
        one = request_id(curl.head())
        assert agent.ask("cancel", one) == {"cancelled": [one]}
        service.wait_closed("told")
    finally:
        curl.stop()
    for side in (server, agent):
        mark = agent.process.mark()
        side.process.stop()
        side.restart()
        agent.process.wait_line("✓ Tunnel established: app", after=0 if side is agent else mark, timeout=20)
        eventually(lambda: httpx.get(server.url("app", "/small"), timeout=20).status_code == 200, what="served")
    assert [one["state"] for one in agent.ask("status")["tunnels"]] == ["online"]


def test_the_agent_of_the_version_before(folder: Path, service: SampleService, older_agent: type[Agent]) -> None:
    server = Server(folder)
    try:
        agent = older_agent(folder, server, {"app": service.url})
        try:
            together(server, agent, service)
        finally:
            agent.process.discard()
    finally:
        server.process.discard()


def test_the_server_of_the_version_before(folder: Path, service: SampleService, older_server: type[Server]) -> None:
    server = older_server(folder)
    try:
        agent = Agent(folder, server, {"app": service.url})
        try:
            together(server, agent, service)
        finally:
            agent.process.discard()
    finally:
        server.process.discard()


def test_they_are_two_versions(older: Path) -> None:
    """What is installed there is the older tree, not this one."""
    code = "import tunneld, pathlib; print(pathlib.Path(tunneld.__file__).parent)"
    done = subprocess.run([older / "python", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(older.parent)
