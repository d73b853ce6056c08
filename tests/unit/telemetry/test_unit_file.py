"""The systemd unit that ships: what the daemon relies on stands in it, and systemd itself takes it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[3] / "packaging" / "systemd" / "tunneld.service"


def _settings() -> dict[str, dict[str, list[str]]]:
    sections: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            sections[section] = {}
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            sections[section].setdefault(name, []).append(value)
    return sections


def _seconds(text: str) -> float:
    assert text.endswith("s"), text
    return float(text[:-1])


def test_what_the_daemon_relies_on() -> None:
    service = {name: values[-1] for name, values in _settings()["Service"].items()}
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert service["ExecStart"] == "/usr/bin/tunneld agent --config /etc/tunneld/tunneld.yaml"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["User"], service["Group"], service["RuntimeDirectory"]) == ("tunneld",) * 3
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["LoadCredential"] == "tunneld.token"
    assert _seconds(service["WatchdogSec"]) == 20
    assert _seconds(service["RestartSec"]) == 1


def test_stopping_has_more_time_than_draining() -> None:
    assert _seconds(_settings()["Service"]["TimeoutStopSec"][-1]) > 30  # drain_timeout's default


def test_the_boot_does_not_wait_for_the_network() -> None:
    text = str(_settings()["Unit"])
    assert "network-online" not in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_it(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/tunneld", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
