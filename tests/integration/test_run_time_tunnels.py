"""Tunnels that an operator opens and closes beside those of the file, on a real agent and server."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.support.daemons import Pair
from tests.support.processes import python_module
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
    assert "Take it out of the file, then `tunnelctl reload`." in kept.stderr
    assert agent.tunnelctl("reload").returncode == 0
    assert agent.ask("info", "mine")["state"] == "online"
    closed = agent.tunnelctl("close", "--all")
    assert (closed.returncode, closed.stdout) == (0, "closed mine, 0 streams ended\n")
    assert agent.tunnelctl("info", "mine").returncode == 1
    assert httpx.get(made.url("demo", "/")).status_code < 500


def test_faults_of_what_is_asked_for_are_told_by_key(pair: tuple[Pair, SampleService]) -> None:
    agent = pair[0].agent
    bad = agent.tunnelctl("open", "Not_A_Label", "ftp://x")
    assert bad.returncode == 2
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


def test_a_saved_tunnel_stands_over_restarts_until_it_is_closed(pair: tuple[Pair, SampleService]) -> None:
    made, service = pair
    agent = made.agent
    file = agent.folder / "tunnels.d" / "kept.yaml"
    opened = agent.tunnelctl("open", "kept", str(service.port), "--heartbeat", "5s", "--access", "key", "--save")
    assert (opened.returncode, opened.stderr) == (0, "")
    assert opened.stdout.splitlines()[1:] == [f"{made.url('kept', '/')} -> {service.url}", f"saved in {file}"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600  # as the agent's own
    key = opened.stdout.splitlines()[0].rpartition(" ")[2]
    assert key not in file.read_text()
    found = agent.ask("info", "kept")
    assert (found["configured"], found["file"], found["expires_s"]) == (True, str(file), None)
    assert agent.ask("info", "demo")["file"] == str(agent.file)
    assert agent.ask("reload") == {"changed": [], "restart": []}  # what was read is what runs
    agent.process.stop()
    agent.restart()
    assert agent.process.wait_line("✓ Tunnel established: kept")
    assert httpx.get(made.url("kept", "/small")).status_code == 401
    assert httpx.get(made.url("kept", "/small"), headers={"X-API-Key": key}).status_code == 200
    shown = dict(line.split(None, 1) for line in agent.tunnelctl("info", "kept").stdout.splitlines())
    assert (shown["address"], shown["registered"]) == (made.url("kept", "/"), "as kept")
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \(", shown["since"])
    assert shown["quality"].split()[0].rstrip(",") in ("excellent", "good", "fair", "poor")
    assert shown["stands"].split() == ["in", str(file)]
    closed = agent.tunnelctl("close", "kept")
    assert (closed.returncode, file.exists()) == (0, False)
    assert agent.ask("reload") == {"changed": [], "restart": []}
    assert agent.tunnelctl("info", "kept").returncode == 1


def test_reload_reads_them_and_close_takes_only_what_is_its_own(pair: tuple[Pair, SampleService]) -> None:
    made, service = pair
    agent = made.agent
    folder = agent.folder / "tunnels.d"
    folder.mkdir()
    both = folder / "both.yaml"
    both.write_text(f"tunnels:\n  - {{name: a, service: '{service.url}'}}\n  - {{name: b, service: '{service.url}'}}\n")
    assert agent.ask("reload")["changed"] == ["tunnel a: opened", "tunnel b: opened"]
    refused = agent.tunnelctl("close", "a")
    assert (refused.returncode, f"{both} does not hold the tunnel a alone" in refused.stderr) == (1, True)
    assert agent.tunnelctl("close", "demo").returncode == 1
    twice = folder / "twice.yaml"
    twice.write_text(f"tunnels:\n  - {{name: demo, service: '{service.url}'}}\n")
    bad = agent.tunnelctl("reload")
    assert bad.returncode == 1
    assert str(twice) in bad.stderr
    assert str(agent.file) in bad.stderr
    assert {one["name"] for one in agent.ask("status")["tunnels"]} == {"demo", "a", "b"}
    checked = subprocess.run(
        python_module("tunneld", "check", "--config", str(agent.file)),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (checked.returncode, f"{twice}:2: tunnels[0].name: the tunnel demo stands in" in checked.stderr) == (2, True)
    twice.unlink()
    both.unlink()
    assert agent.ask("reload")["changed"] == ["tunnel a: closed", "tunnel b: closed"]


def test_what_cannot_be_saved_is_not_opened(pair: tuple[Pair, SampleService]) -> None:
    made, service = pair
    agent = made.agent
    (agent.folder / "tunnels.d").write_text("no folder")
    refused = agent.tunnelctl("open", "kept", str(service.port), "--save")
    assert (refused.returncode, "needs a folder" in refused.stderr) == (1, True)
    assert agent.tunnelctl("info", "kept").returncode == 1
    assert agent.tunnelctl("open", "kept", str(service.port), "--save", "--for", "1h").returncode == 2
    (agent.folder / "tunnels.d").unlink()
    for name in ("one", "two"):
        assert agent.tunnelctl("open", name, str(service.port), "--save").returncode == 0
    assert agent.tunnelctl("open", "brief", str(service.port)).returncode == 0
    assert agent.tunnelctl("close", "--all").returncode == 0
    assert [one["name"] for one in agent.ask("status")["tunnels"]] == ["demo"]
    assert list((agent.folder / "tunnels.d").iterdir()) == []
