"""The wheel and `pipx install .`: both programs, no file of the checkout needed."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.packages.building import environment, git, tracked
from tests.support.processes import ROOT, Process, clean_environment

PROGRAMS = ("tunneld", "tunnelctl")


def works(programs: Path) -> None:
    """Both say their version, and a whole tunnel runs out of what is installed there."""
    for program in PROGRAMS:
        done = subprocess.run([programs / program, "--version"], capture_output=True, text=True, check=True, cwd="/")
        assert done.stdout.startswith(f"{program} ")
    # on a loopback of its own, where its ports are free
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    demo = Process([*alone, str(programs / "tunneld"), "demo"], name="demo")
    try:
        demo.wait_line(lambda text: "curl -N " in text, timeout=60)
        demo.wait_line("✓ Tunnel established", timeout=60)
    finally:
        demo.discard()


def test_the_wheel(tmp_path: Path) -> None:
    (wheel,) = (ROOT / "dist").glob("tunneld-*.whl")  # which `make wheel` left
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"tunneld", "tunnelctl"}
    # pages, styles and documents too, not the modules alone
    assert set(git("ls-files", *PROGRAMS).split()) - set(names) == set()
    works(environment(tmp_path / "venv", wheel))


def test_pipx_install(tmp_path: Path) -> None:
    pipx = shutil.which("pipx")
    if pipx is None:
        pytest.fail("pipx is missing: apt-get install pipx")
    tree = tracked(tmp_path / "tree")
    places = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin"), "PIPX_MAN_DIR": str(tmp_path)}
    environ = {**clean_environment(), **places, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = [pipx, "install", "--python", "/usr/bin/python3", "."]
    done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == sorted(PROGRAMS)
    works(tmp_path / "bin")
    subprocess.run([pipx, "uninstall", "tunneld"], env=environ, capture_output=True, check=True)
    assert list((tmp_path / "bin").iterdir()) == []
