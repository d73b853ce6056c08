import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def made(program: str, folder: Path) -> Path:
    """What a program of packaging/ writes, as the package's build runs it."""
    subprocess.run([sys.executable, ROOT / "packaging" / program, folder], check=True, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def manual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every page by its file name, as roff."""
    folder = made("man/pages.py", tmp_path_factory.mktemp("man"))
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with each shell's completions."""
    return made("completions/scripts.py", tmp_path_factory.mktemp("completions"))


__all__ = ["ROOT", "made"]
