"""The systemd units that ship: what the daemons rely on stands in them, and systemd itself takes them.

tests/systemd shows in a real systemd that each directive is in force.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[3] / "packaging"
UNITS = PACKAGING / "systemd"
AGENT, INSTANCE, SERVER = "tunneld.service", "tunneld@.service", "tunneld-server.service"
SERVICES = (AGENT, INSTANCE, SERVER)
#: Where two units of a role may differ.
OWN = {"ExecStart", "RuntimeDirectory", "StateDirectory", "LoadCredential"}
#: Directives that systemd 252, Debian 12's, does not know.
TOO_NEW = ("notify-reload", "RestartSteps", "RestartMaxDelaySec", "RestartMode", "MemoryKSM", "PrivatePIDs")

Settings = dict[str, dict[str, list[str]]]


def settings(unit: str) -> Settings:
    sections: Settings = {}
    section = ""
    for line in (UNITS / unit).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            sections[section] = {}
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            sections[section].setdefault(name, []).append(value)
    return sections


def last(unit: str, section: str = "Service") -> dict[str, str]:
    return {name: values[-1] for name, values in settings(unit)[section].items()}


def seconds(text: str) -> float:
    unit = {"min": 60, "s": 1}["min" if text.endswith("min") else "s"]
    return float(text.rstrip("mins")) * unit


@pytest.mark.parametrize("unit", SERVICES)
def test_what_the_daemons_rely_on(unit: str) -> None:
    service = last(unit)
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["User"], service["Group"]) == ("tunneld", "tunneld")
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["RuntimeDirectoryPreserve"] == "restart"
    assert "ExecStartPre" not in service  # its exit 2 would not be covered by RestartPreventExitStatus=
    assert 0 < seconds(service["WatchdogSec"]) <= 30
    assert seconds(service["RestartSec"]) == 1
    starts = last(unit, "Unit")
    # A daemon that dies at once is started again about once a second: the limit is reached.
    assert int(starts["StartLimitBurst"]) < seconds(starts["StartLimitIntervalSec"]) / 2


def test_each_has_its_own_file_and_directory() -> None:
    services = [last(unit) for unit in SERVICES]
    assert [one["ExecStart"] for one in services] == [
        "/usr/bin/tunneld agent --config /etc/tunneld/tunneld.yaml",
        "/usr/bin/tunneld agent --config /etc/tunneld/%i.yaml",
        "/usr/bin/tunneld server --config /etc/tunneld/server.yaml",
    ]
    assert [one["RuntimeDirectory"] for one in services] == ["tunneld", "tunneld-%i", "tunneld-server"]
    assert [one["StateDirectory"] for one in services] == ["tunneld", "tunneld/%i", "tunneld-server"]
    assert {one["LogsDirectory"] for one in services} == {"tunneld"}


def test_an_instance_is_an_agent_like_the_other() -> None:
    one, other = settings(AGENT)["Service"], settings(INSTANCE)["Service"]
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} == OWN


def test_secrets_come_as_credentials() -> None:
    # Without a path: a file that is missing is fine. A path that is missing would fail the unit.
    assert last(AGENT)["LoadCredential"] == "tunneld.token"
    assert last(INSTANCE)["LoadCredential"] == "tunneld.token:tunneld-%i.token"
    assert "Environment" not in str([settings(unit) for unit in SERVICES])


@pytest.mark.parametrize("unit", [AGENT, INSTANCE])
def test_peers_of_the_agent_keep_their_names(unit: str) -> None:
    assert "PrivateUsers" not in settings(unit)["Service"]


@pytest.mark.parametrize("unit", SERVICES)
def test_stopping_has_more_time_than_draining(unit: str) -> None:
    assert seconds(last(unit)["TimeoutStopSec"]) > 30  # drain_timeout's default


@pytest.mark.parametrize("unit", SERVICES)
def test_the_boot_does_not_wait_for_the_network(unit: str) -> None:
    assert "network-online" not in str(settings(unit))


@pytest.mark.parametrize("path", sorted(UNITS.rglob("*.*")), ids=lambda path: path.name)
def test_nothing_is_newer_than_debian_12(path: Path) -> None:
    if path.is_file():
        assert [word for word in TOO_NEW if word in path.read_text()] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_them(tmp_path: Path) -> None:
    copies = []
    for unit in (*SERVICES, "tunneld-server.socket"):
        copy = tmp_path / unit.replace("@.", "@one.")
        copy.write_text((UNITS / unit).read_text().replace("/usr/bin/tunneld", "/bin/true"))
        copies.append(str(copy))
    command = ["systemd-analyze", "verify", "--man=no", *copies]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
