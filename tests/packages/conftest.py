"""The package as `make deb` left it, and Debian roots to install it into."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.roots import Root, debootstrapped, overlaid


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def deb() -> Path:
    """The one package in dist/."""
    found = list((ROOT / "dist").glob("tunneld_*.deb"))
    assert len(found) == 1, f"`make deb` leaves exactly one package in dist/, found {found}"
    return found[0]


@pytest.fixture(scope="session")
def debian() -> Iterator[Path]:
    """A small Debian, made once; not to be changed."""
    if os.geteuid() != 0:
        pytest.fail("these tests make Debian roots and enter them: run them as root")
    with tempfile.TemporaryDirectory(prefix="tunneld-root-") as folder:
        yield debootstrapped(Path(folder))


@pytest.fixture
def root(debian: Path) -> Iterator[Root]:
    """A Debian of the test's own."""
    with tempfile.TemporaryDirectory(prefix="tunneld-root-") as folder, overlaid(debian, Path(folder)) as made:
        yield made
