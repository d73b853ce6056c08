"""`tunneld login`: stored for nobody else to read, taken by `tunneld expose`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.daemons import Server
from tests.support.processes import ROOT, Process, clean_environment, python_module
from tests.support.services import SampleService
from tests.support.sockets import short_dir


def login(home: Path, url: str, token: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_module("tunneld", "login", url),
        input=f"{token}\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean_environment({"XDG_CONFIG_HOME": str(home)}),
        check=False,
    )


@pytest.mark.timeout(60)  # four processes start one after the other
def test_what_is_stored_opens_a_tunnel_and_nobody_else_reads_it() -> None:
    service = SampleService()
    with short_dir() as folder:
        server = Server(folder, settings={"auth": {"mode": "token"}, "store": f"sqlite:///{folder}/s.db"})
        made = python_module("tunneld", "server", "token", "create", "mine", "--config", str(server.file))
        token = subprocess.run(made, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
        done = login(folder / "home", server.tunnel_url, token)
        assert (done.returncode, done.stderr) == (0, "")
        assert token not in done.stdout
        kept = folder / "home" / "tunneld"
        assert {path.name: path.stat().st_mode & 0o777 for path in kept.iterdir()} == {"server": 0o600, "token": 0o600}
        assert kept.stat().st_mode & 0o777 == 0o700
        command = python_module("tunneld", "expose", str(service.port), "--name", "mine")
        process = Process(command, name="expose", env={"XDG_CONFIG_HOME": str(folder / "home")})
        try:
            process.wait_line(f"{server.url('mine')} -> http://127.0.0.1:{service.port}")
        finally:
            process.discard()
            server.process.stop()
            service.stop()


def test_what_cannot_be_used_is_refused_and_an_empty_token_removes_the_old(tmp_path: Path) -> None:
    bad = login(tmp_path, "https://not-a-websocket")
    assert (bad.returncode, bad.stderr.startswith("URL: expected")) == (2, True), bad.stderr
    assert not (tmp_path / "tunneld").exists()
    assert login(tmp_path, "ws://127.0.0.1:1", "two words").returncode == 2
    assert login(tmp_path, "ws://127.0.0.1:1", "secret").returncode == 0
    assert (tmp_path / "tunneld" / "token").read_text() == "secret\n"
    assert login(tmp_path, "ws://127.0.0.1:1").returncode == 0
    assert [path.name for path in (tmp_path / "tunneld").iterdir()] == ["server"]
