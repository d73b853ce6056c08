"""The audit trail: one JSON line a change, in the file of the moment; what cannot be written is told."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tunneld.errors import ConfigError
from tunneld.telemetry.trail import Trail


async def test_lines_are_added_and_the_file_may_be_turned_over(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    trail = Trail(lambda: str(path))
    await trail.note("ünï (pid 1)", "cancel", "cancelled stream a\nb")
    await trail.note("other", "reload", "refused", ok=False)
    path.rename(tmp_path / "audit.log.1")
    await trail.note("other", "drain", "draining")
    old = [json.loads(line) for line in (tmp_path / "audit.log.1").read_text().splitlines()]
    assert [(line["actor"], line["action"], line["detail"], line["ok"]) for line in old] == [
        ("ünï (pid 1)", "cancel", "cancelled stream a\nb", True),
        ("other", "reload", "refused", False),
    ]
    assert all(line["at"].endswith("Z") for line in old)
    assert json.loads(path.read_text())["action"] == "drain"
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


async def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    await Trail().note("a", "b", "c")
    Trail().check()
    assert not list(tmp_path.iterdir())


async def test_a_file_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trail = Trail(lambda: str(tmp_path / "none" / "audit.log"))
    with pytest.raises(ConfigError, match=r"log\.audit: .*cannot be written: No such file or directory"):
        trail.check()
    await trail.note("a", "cancel", "c")  # the change is done: it is not undone for this
    assert "a change was not written" in caplog.text


def test_a_line_that_does_not_fit_is_told_and_leaves_no_part_of_itself(tmp_path: Path) -> None:
    """A process of its own, whose files may have no more than so many bytes, as on a disk that is full."""
    path = tmp_path / "audit.log"
    program = """
import resource, sys
from tunneld.telemetry.trail import append
resource.setrlimit(resource.RLIMIT_FSIZE, (250, 250))
append(sys.argv[1], "me", "drain", "one")
for _ in range(2):
    try:
        append(sys.argv[1], "me", "drain", "x" * 200)
    except OSError as error:
        print(error.strerror)
append(sys.argv[1], "me", "drain", "two")
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["No space left on device"] * 2
    assert [json.loads(line)["detail"] for line in path.read_text().splitlines()] == ["one", "two"]
