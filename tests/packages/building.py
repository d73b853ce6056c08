"""Packages built by the tests: this tree once more, and the version before it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, clean_environment

__all__ = ["before", "build", "environment", "git", "tracked", "wheel_of"]

SYSTEM_PYTHON = "/usr/bin/python3"


def build(folder: Path, *, source: Path = ROOT, version: str | None = None, umask: int = 0o022) -> Path:
    """The Debian package of a tree, built below `folder` by this tree's own packaging."""
    output = folder / "dist"
    command = [SYSTEM_PYTHON, ROOT / "packaging/deb/build.py", "--pip", sys.executable, "--source", source]
    command += ["--output", output, *(["--version", version] if version else [])]
    command += [] if (source / "tunnelctl/shells.py").exists() else ["--bare"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=False,
        preexec_fn=lambda: os.umask(umask),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = output.glob("tunneld_*.deb")
    return made


def git(*args: str) -> str:
    """What git says of this repository."""
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"git {' '.join(args)}: {done.stderr}"
    return done.stdout.strip()


def before(folder: Path) -> tuple[str, Path]:
    """The release before this one, as (what git calls it, its tree below `folder`).

    That is the newest tag that this commit does not stand on itself; while there is none, the oldest commit of this
    clone. A repository of one commit has none: what asks for it is skipped.

    Raises:
        AssertionError: this clone has no history.
    """
    here = set(git("tag", "--points-at", "HEAD").split())
    tags = [
        tag for tag in git("tag", "--merged", "HEAD", "--sort=-creatordate", "--list", "v*").split() if tag not in here
    ]
    name = tags[0] if tags else git("rev-list", "--max-parents=0", "HEAD").split()[-1]
    if name == git("rev-parse", "HEAD"):
        if git("rev-parse", "--is-shallow-repository") == "true":
            raise AssertionError(
                "this clone is shallow: run `git fetch --unshallow --tags` for a version before this one"
            )
        pytest.skip("this repository has one commit: there is no version before it")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", name], capture_output=True, check=True).stdout
    tree = folder / "before"
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)  # tarfile knows no filter, or wants one
    # A version from before the packaging is packed by today's, with its own units where it has them.
    for path in sorted((ROOT / "packaging").iterdir()):
        shutil.copytree(path, tree / "packaging" / path.name, dirs_exist_ok=True, ignore=_kept(tree))
    return name, tree


def _kept(tree: Path):  # type: ignore[no-untyped-def]
    """For copytree: leave out what the older tree has itself."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        relative = Path(folder).relative_to(ROOT)
        return {name for name in names if (tree / relative / name).is_file() or name == "__pycache__"}

    return ignored


def tracked(folder: Path) -> Path:
    """A copy of this tree's own files, without what builds and tests left between them."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def environment(folder: Path, wheel: Path) -> Path:
    """A fresh environment with a wheel and what it depends on; its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


def wheel_of(tree: Path, folder: Path) -> Path:
    """The wheel of a tree, which is built inside it."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, tree]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("tunneld-*.whl")
    return made
