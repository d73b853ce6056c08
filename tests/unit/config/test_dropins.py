"""Tunnels in files of their own: read with the agent's, each fault with its file, written whole and for few eyes."""

import os
import stat
from pathlib import Path

import pytest

from tunneld.config import dropins
from tunneld.config.load import diff, load_agent, load_tunnel
from tunneld.errors import ConfigError

MAIN = """\
server: {url: ws://localhost:1}
heartbeat: {interval: 7s}
tunnels:
  - {name: demo, service: http://127.0.0.1:9000}
"""


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    path = tmp_path / "tunneld.yaml"
    path.write_text(MAIN)
    path.chmod(0o640)
    return path


def drop(main: Path, name: str, text: str, mode: int = 0o640) -> Path:
    folder = main.parent / "tunnels.d"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def faults(main: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_agent(str(main))
    return caught.value.faults


def test_they_are_whole_like_those_of_the_main_file(main: Path) -> None:
    path = drop(
        main, "more.yaml", "tunnels:\n  - {name: a, service: 'http://h:1'}\n  - {name: b, service: 'http://h:2'}\n"
    )
    drop(main, "left.yml", "not read")
    drop(main, ".hidden.yaml", "not read")
    config = load_agent(str(main))
    assert [tunnel.name for tunnel in config.tunnels] == ["demo", "a", "b"]
    assert {tunnel.heartbeat.interval for tunnel in config.tunnels} == {7.0}
    assert [config.source(name) for name in ("demo", "a", "b")] == [None, str(path), str(path)]
    assert load_agent(str(main)) == config


def test_every_fault_of_every_file_has_its_file_and_line(main: Path) -> None:
    first = drop(main, "a.yaml", "tunnels:\n  - name: a\n    service: http://h:1\n    hedaers: {}\n")
    second = drop(main, "b.yaml", "tunnel: []\n")
    third = drop(main, "c.yaml", "tunnels:\n  - {name: c, service: 'ftp://h'}\n  - {name: d}\n")
    empty = drop(main, "d.yaml", "# nothing\n")
    found = faults(main)
    assert f'{first}:4: tunnels[0].hedaers: unknown key (did you mean "headers"?)' in found
    assert any(line.startswith(f"{second}:1: tunnel: unknown key") for line in found)
    assert any(line.startswith(f"{third}:2: tunnels[0].service: ") for line in found)
    assert any(line.startswith(f"{third}:3: tunnels[1].service: missing") for line in found)
    assert any(line.startswith(f"{empty}: the file has no keys") for line in found)


def test_a_name_that_stands_twice_is_told_with_both_files(main: Path) -> None:
    own = drop(main, "a.yaml", "tunnels:\n  - {name: demo, service: 'http://h:1'}\n")
    assert faults(main) == [
        f"{own}:2: tunnels[0].name: the tunnel demo stands in {main}:4 already; take one of the two out"
    ]
    own.write_text("tunnels:\n  - {name: x, service: 'http://h:1'}\n")
    other = drop(main, "b.yaml", "# twice\ntunnels:\n  - {name: x, service: 'http://h:1'}\n")
    assert faults(main) == [
        f"{other}:3: tunnels[0].name: the tunnel x stands in {own}:2 already; take one of the two out"
    ]


def test_a_secret_in_one_that_others_can_read_is_refused(main: Path) -> None:
    text = "tunnels:\n  - {name: a, service: 'http://h:1', headers: {Authorization: hidden}}\n"
    path = drop(main, "a.yaml", text, 0o644)
    (fault,) = faults(main)
    assert fault.startswith(f"{path}:2: tunnels[0].headers.Authorization: a secret stands here")
    assert "hidden" not in fault
    path.chmod(0o640)
    assert load_agent(str(main)).tunnel("a") is not None


def test_what_is_saved_is_read_again_as_it_was(main: Path) -> None:
    section = {
        "name": "mine",
        "service": "http://127.0.0.1:9000",
        "heartbeat": {"interval": 2.5},
        "sse": {"keepalive": 0},
        "headers": {"X-Plain": "no: yes"},
        "access": {"mode": "key", "keys": [{"name": "visitor", "hash": "0" * 64}]},
    }
    before = load_agent(str(main))
    tunnel = load_tunnel(section, before)
    path = dropins.save(str(main), section)
    assert path == main.parent / "tunnels.d" / "mine.yaml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["mine.yaml"]
    assert not diff(before.with_dropins([tunnel], {"mine": str(path)}), load_agent(str(main)))
    dropins.forget(str(path), "mine")
    assert os.listdir(path.parent) == []
    main.chmod(0o600)
    assert stat.S_IMODE(dropins.save(str(main), section).stat().st_mode) == 0o600


def test_nothing_is_written_over_and_no_secret_is_saved(main: Path) -> None:
    section = {"name": "mine", "service": "http://127.0.0.1:9000"}
    path = drop(main, "mine.yaml", "tunnels: []\n")
    with pytest.raises(ConfigError, match="is there already"):
        dropins.save(str(main), section)
    assert path.read_text() == "tunnels: []\n"
    assert os.listdir(path.parent) == ["mine.yaml"]
    with pytest.raises(ConfigError, match=r"headers\.X-Api-Key: a secret is not saved") as caught:
        dropins.save(str(main), {**section, "name": "other", "headers": {"X-Api-Key": "hidden"}})
    assert "hidden" not in str(caught.value)
    dropins.forget(str(main.parent / "gone.yaml"), "gone")  # somebody took it away: nothing is left to do


def test_a_file_that_holds_others_too_is_not_removed(main: Path) -> None:
    path = drop(
        main, "two.yaml", "tunnels:\n  - {name: a, service: 'http://h:1'}\n  - {name: b, service: 'http://h:1'}\n"
    )
    with pytest.raises(ConfigError, match="does not hold the tunnel a alone"):
        dropins.forget(str(path), "a")
    path.write_text("[")
    with pytest.raises(ConfigError, match="does not hold the tunnel a alone"):
        dropins.forget(str(path), "a")
    assert path.exists()


def test_under_a_service_manager_its_state_directory_is_written_and_both_are_read(
    main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    drop(main, "a.yaml", "tunnels:\n  - {name: a, service: 'http://h:1'}\n")
    path = dropins.save(str(main), {"name": "b", "service": "http://127.0.0.1:9000"})
    assert path == state / "tunnels.d" / "b.yaml"
    assert [tunnel.name for tunnel in load_agent(str(main)).tunnels] == ["demo", "a", "b"]
