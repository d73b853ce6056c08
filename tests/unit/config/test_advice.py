import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.config.conftest import Write
from tunneld.config import advice
from tunneld.config.agent import AgentConfig
from tunneld.config.server import ServerConfig


def agent(**keys: Any) -> AgentConfig:
    return AgentConfig.model_validate({"server": {"url": "ws://127.0.0.1:1"}, **keys})


def test_warnings_are_about_what_may_not_be_meant() -> None:
    quiet = agent(tunnels=[{"name": "a", "service": "http://h"}])
    assert advice.warnings(quiet) == []
    nobody = agent(tunnels=[{"name": "a", "service": "http://h", "access": {"mode": "login"}}])
    assert "tunnels[a].access: no emails and no domains" in advice.warnings(nobody)[0]
    assert advice.warnings(agent()) == ["tunnels: there is none, so nothing is served"]
    far = quiet.model_copy(update={"server": agent(server={"url": "ws://tunnel.example.org"}).server})
    [warning] = advice.warnings(far)
    assert "wss://" in warning
    missing = quiet.model_copy(update={"server": agent(server={"url": "wss://h", "token_file": "/no/token"}).server})
    assert advice.warnings(missing) == ["server.token_file: /no/token: no such file yet"]
    authority = agent(server={"url": "wss://tunnel.example.org", "ca_file": "/no/ca.pem"})
    assert "server.ca_file: /no/ca.pem: no such file yet" in advice.warnings(authority)


def test_traces_without_their_packages_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    config = agent(telemetry={"otlp": "http://127.0.0.1:4318"}, tunnels=[{"name": "a", "service": "http://h"}])
    assert advice.warnings(config) == []
    monkeypatch.setattr(advice, "find_spec", lambda name: name == "pip" or None)
    [warning] = advice.warnings(config)
    assert f"{sys.executable} -m pip install 'tunneld[otlp]'" in warning
    assert advice.otlp_missing(agent().telemetry) is None


@pytest.mark.parametrize(
    ("beside", "programs", "said"),
    [
        ("pipx_metadata.json", (), "`pipx inject tunneld 'tunneld[otlp]'`"),
        (None, ("uv",), f"`uv pip install --python {sys.executable} 'tunneld[otlp]'`"),
        (None, (), "apt install --reinstall"),
    ],
    ids=["pipx", "uv", "package"],
)
def test_how_to_get_them_depends_on_how_it_was_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beside: str | None, programs: tuple[str, ...], said: str
) -> None:
    """Each is an environment without pip, told apart by what lies in it and on the PATH."""
    (tmp_path / "bin").mkdir()
    for name in programs:
        (tmp_path / "bin" / name).touch(0o755)
    if beside is not None:
        (tmp_path / beside).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(advice, "find_spec", lambda name: None)
    telemetry = agent(telemetry={"otlp": "http://127.0.0.1:4318"}).telemetry
    missing = advice.otlp_missing(telemetry)
    assert missing is not None
    assert said in missing
    assert ("-m pip" in missing) is False


def test_the_debian_package_is_not_added_to_by_a_tool_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "uv").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", "/usr/lib/tunneld")
    monkeypatch.setattr(advice, "find_spec", lambda name: None)
    missing = advice.otlp_missing(agent(telemetry={"otlp": "http://127.0.0.1:4318"}).telemetry)
    assert missing is not None
    assert "apt install --reinstall" in missing
    assert "uv pip" not in missing


def test_descriptors_are_counted() -> None:
    limit = advice.descriptor_limit()
    assert limit is None or limit > 0
    assert advice.descriptors_needed(agent(tunnels=[{"name": "a", "service": "http://h"}])) == 64 + 2001
    assert advice.descriptors_needed(ServerConfig()) == 64 + 10_000 + 1000


def test_secrets_that_others_can_read_are_faults(write: Write) -> None:
    public, private = write("x", "public"), write("x", "private", 0o600)
    assert advice.secret_faults(agent(server={"url": "ws://h", "token_file": private})) == []
    assert advice.secret_faults(agent(server={"url": "ws://h", "token_file": "/no/token"})) == []
    [fault] = advice.secret_faults(agent(server={"url": "ws://h", "token_file": public}))
    assert fault.startswith(f"server.token_file: {public}: others can read")
    config = ServerConfig.model_validate(
        {
            "listen": [{"port": 0, "tls": {"cert": public, "key": public}}],
            "tls": {"cert": public, "key": private},
            "admin": {"token_file": public},
        }
    )
    assert [fault.partition(":")[0] for fault in advice.secret_faults(config)] == [
        "admin.token_file",
        "listen[0].tls.key",
    ]
