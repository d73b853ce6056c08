"""The audit trail: one JSON line a change, in the file of the moment; what cannot be written is told."""

from __future__ import annotations

import json
import stat
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
