"""Tunnels that `tunnelctl open --save` keeps: what the packaged units let the agent write, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.box import Box
from tests.systemd.conftest import agent_file

SAVED = "/var/lib/tunneld/tunnels.d/kept.yaml"


@pytest.fixture(scope="module")
def agent(booted: Box) -> Iterator[Box]:
    """The agent and an instance beside it, without a server."""
    booted.revert()
    booted.configure("/etc/tunneld/tunneld.yaml", agent_file())
    booted.configure("/etc/tunneld/one.yaml", agent_file())
    booted.systemctl("start", "tunneld", "tunneld@one")
    yield booted
    booted.sh("rm -rf /etc/tunneld/tunnels.d /var/lib/tunneld")
    booted.revert()


def tunnels(box: Box, *words: str) -> dict[str, str]:
    """Name to the file that it stands in."""
    told = json.loads(box.run("tunnelctl", *words, "status", "--json").stdout)
    return {one["name"]: one["file"] for one in told["tunnels"]}


def test_it_is_kept_in_the_state_directory_until_it_is_closed(agent: Box) -> None:
    said = agent.sh("tunnelctl open kept 9001 --save", check=False)  # no server is there: it goes on trying
    assert f"saved in {SAVED}" in said
    assert agent.sh(f"stat -c '%a %U:%G' {SAVED} $(dirname {SAVED}) /var/lib/tunneld").splitlines() == [
        "640 tunneld:tunneld",
        "700 tunneld:tunneld",  # made under the unit's UMask
        "750 tunneld:tunneld",
    ]
    agent.systemctl("restart", "tunneld")
    assert tunnels(agent) == {"demo": "/etc/tunneld/tunneld.yaml", "kept": SAVED}
    agent.systemctl("reload", "tunneld")
    assert tunnels(agent)["kept"] == SAVED
    agent.sh("tunnelctl close kept")
    assert agent.sh(f"ls {SAVED}", check=False).strip() == ""
    agent.systemctl("restart", "tunneld")
    assert set(tunnels(agent)) == {"demo"}


def test_an_instance_keeps_its_own(agent: Box) -> None:
    agent.sh("tunnelctl --instance one open kept 9001 --save", check=False)
    assert tunnels(agent, "--instance", "one")["kept"] == "/var/lib/tunneld/one/tunnels.d/kept.yaml"
    agent.systemctl("restart", "tunneld", "tunneld@one")
    assert set(tunnels(agent, "--instance", "one")) == {"demo", "kept"}
    assert set(tunnels(agent)) == {"demo"}
    agent.sh("tunnelctl --instance one close kept")


def test_what_stands_beside_the_settings_is_read_and_out_of_the_agents_reach(agent: Box) -> None:
    text = "tunnels:\n  - {name: hand, service: 'http://127.0.0.1:9002'}\n"
    agent.sh("install -d -m 0750 -g tunneld /etc/tunneld/tunnels.d")
    agent.write("/etc/tunneld/tunnels.d/hand.yaml", text, mode=0o640, owner="root:tunneld")
    agent.sh("tunnelctl reload")
    assert tunnels(agent)["hand"] == "/etc/tunneld/tunnels.d/hand.yaml"
    refused = agent.run("tunnelctl", "close", "hand", check=False)
    assert refused.returncode == 1
    assert "/etc/tunneld/tunnels.d/hand.yaml cannot be removed: read-only file system" in refused.stderr
    assert "hand" in tunnels(agent)
    checked = agent.run("tunneld", "check", "--config", "/etc/tunneld/tunneld.yaml", check=False)
    assert checked.returncode == 0
