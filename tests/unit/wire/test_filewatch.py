"""Changes of files, however they come to be: written, renamed over, or behind a link that points elsewhere now."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.loops import on_both_loops
from tests.support.running import descriptors
from tunneld.wire.filewatch import FileWatch


def written(file: Path) -> None:
    file.write_text("new")


def renamed(file: Path) -> None:
    fresh = file.with_name("fresh")
    fresh.write_text("new")
    fresh.rename(file)


def relinked(file: Path) -> None:
    """As certbot does it."""
    (file.parent / "archive2").write_text("new")
    fresh = file.with_name("fresh")
    fresh.symlink_to("archive2")
    fresh.rename(file)


def folder_relinked(file: Path) -> None:
    """As Kubernetes does it: the file's folder is behind a link."""
    home = file.parent.parent
    (home / "data2").mkdir()
    (home / "data2" / file.name).write_text("new")
    (home / "fresh").symlink_to("data2")
    (home / "fresh").rename(home / "data")


def prepared(change: Callable[[Path], None], folder: Path) -> Path:
    if change is folder_relinked:
        (folder / "data1").mkdir()
        (folder / "data").symlink_to("data1")
        file = folder / "data" / "file"
    else:
        file = folder / "file"
    if change is relinked:
        (folder / "archive1").write_text("old")
        file.symlink_to("archive1")
    else:
        file.write_text("old")
    return file


@pytest.mark.parametrize("change", [written, renamed, relinked, folder_relinked])
@on_both_loops
async def test_a_change_is_told_once_and_the_next_one_too(change: Callable[[Path], None], tmp_path: Path) -> None:
    before = descriptors()
    file = prepared(change, tmp_path)
    told: list[str] = []
    news = asyncio.Event()

    def tell() -> None:
        told.append(file.read_text())
        news.set()

    watch = FileWatch([str(file)], tell)
    if not watch.active:
        pytest.skip("no inotify on this platform")
    (tmp_path / "another").write_text("of no interest")
    change(file)
    await asyncio.wait_for(news.wait(), 5)
    news.clear()
    file.write_text("once more")  # through whatever link there is now
    file.write_text("twice more")
    await asyncio.wait_for(news.wait(), 5)
    assert told == ["new", "twice more"]
    watch.close()
    watch.close()
    file.unlink()
    assert descriptors() <= before  # those of other tests may have gone meanwhile


@on_both_loops
async def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    news = asyncio.Event()
    watch = FileWatch([str(tmp_path / "file")], news.set)
    if not watch.active:
        pytest.skip("no inotify on this platform")
    os.close(os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY, 0o600))
    await asyncio.wait_for(news.wait(), 5)
    watch.close()
