"""Programs whose stdin, stdout or stderr is closed: as cron, and daemons that start daemons, leave them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import eventually

SERVER = "listen: {host: 127.0.0.1, port: 0}\nauth: {mode: open}\nlimits: {max_tunnels: 1, max_streams: 1}\n"
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


def started(words: str, closed: str) -> subprocess.Popen[bytes]:
    line = f"exec {shlex.quote(sys.executable)} -m {words} {closed}"
    return subprocess.Popen(["/bin/sh", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("tunneld check {file}", 0),
        ("tunneld check /none", 2),
        ("tunneld --version", 0),
        ("tunnelctl --version", 0),
        ("tunnelctl status --socket /none", 3),
    ],
)
def test_a_verb_ends_as_ever(tmp_path: Path, words: str, status: int, closed: str) -> None:
    (tmp_path / "server.yaml").write_text(SERVER)
    process = started(words.format(file=tmp_path / "server.yaml"), closed)
    out, err = process.communicate()
    assert process.returncode == status
    assert b"Traceback" not in out + err
    assert b"defect" not in out + err


@pytest.mark.parametrize("closed", CLOSED)
def test_a_daemon_runs_and_takes_no_number_of_theirs(folder: Path, closed: str) -> None:
    path = folder / "agent.yaml"
    path.write_text(f"server: {{url: 'ws://127.0.0.1:1'}}\ncontrol: {{socket: {folder}/c.sock}}\n")
    process = started(f"tunneld agent --config {path}", closed)
    try:
        eventually(lambda: (folder / "c.sock").exists() or process.poll() is not None, what="its socket")
        assert process.poll() is None
        for number, sign in enumerate(("<&-", " >&-", "2>&-")):
            if sign in f" {closed}":
                assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path("/dev/null")
        process.terminate()
        process.communicate()
        assert process.returncode == 0
    finally:
        process.kill()


def test_a_full_disk_is_said() -> None:
    for program in ("tunneld --version", "tunnelctl --version", "tunnelctl completion bash"):
        process = started(program, ">/dev/full")
        _, err = process.communicate()
        assert process.returncode == 1
        assert err.decode() == f"{program.split()[0]}: No space left on device\n"
