"""Tunnels that an operator opens and closes beside those of the file, on a real agent and server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.daemons import Pair
from tests.support.services import SampleService
from tests.support.sockets import short_dir


@pytest.fixture
def pair() -> Iterator[tuple[Pair, SampleService]]:
    service = SampleService()
    with short_dir() as folder:
        made = Pair(folder, {"demo": f"http://127.0.0.1:{service.port}"})
        try:
            yield made, service
            made.close()
        finally:
            made.discard()
            service.stop()


def test_open_info_close(pair: tuple[Pair, SampleService]) -> None:
    made, service = pair
    agent = made.agent
    opened = agent.tunnelctl("open", "mine", str(service.port), "--for", "1h", "--heartbeat", "5s", "--keepalive", "0")
    assert (opened.returncode, opened.stderr) == (0, "")
    assert opened.stdout.split()[0] == made.url("mine", "/")
    assert httpx.get(made.url("mine", "/")).status_code == httpx.get(made.url("demo", "/")).status_code
    found = agent.ask("info", "mine")
    assert (found["state"], found["configured"], found["heartbeat"]["interval_s"]) == ("online", False, 5.0)
    assert 3500 < found["expires_s"] <= 3600
    shown = agent.tunnelctl("info", "mine").stdout
    assert "opened       at run time, for " in shown
    taken = agent.tunnelctl("open", "mine", str(service.port))
    assert (taken.returncode, "has a tunnel named mine already" in taken.stderr) == (1, True)
    kept = agent.tunnelctl("close", "demo")
    assert (kept.returncode, "The tunnel demo stands in" in kept.stderr) == (1, True)
    assert agent.tunnelctl("reload").returncode == 0
    assert agent.ask("info", "mine")["state"] == "online"
    closed = agent.tunnelctl("close", "--all")
    assert (closed.returncode, closed.stdout) == (0, "closed mine, 0 streams ended\n")
    assert agent.tunnelctl("info", "mine").returncode == 1
    assert httpx.get(made.url("demo", "/")).status_code < 500


def test_faults_of_what_is_asked_for_are_told_by_key(pair: tuple[Pair, SampleService]) -> None:
    agent = pair[0].agent
    bad = agent.tunnelctl("open", "Not_A_Label", "ftp://x")
    assert bad.returncode == 1
    assert [line.partition(": ")[2].partition(":")[0] for line in bad.stderr.splitlines()] == ["name", "service"]
    assert agent.tunnelctl("open", "x").returncode == 2
    assert agent.tunnelctl("close").returncode == 2
    assert agent.tunnelctl("open", "x", "9", "--for", "soon").returncode == 2


def test_it_goes_when_its_time_is_over(pair: tuple[Pair, SampleService]) -> None:
    made, service = pair
    assert made.agent.tunnelctl("open", "brief", str(service.port), "--for", "300ms").returncode == 0
    for _ in range(100):
        if made.agent.tunnelctl("info", "brief").returncode == 1:
            break
    else:
        pytest.fail("it stayed")
