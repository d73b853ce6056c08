"""Daemons and services for the tests with real clients: one pair a module where nothing is broken on purpose."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.daemons import Pair
from tests.support.services import SampleService
from tests.support.sockets import short_dir

MakePair = Callable[..., Pair]

APT = "apt-get install chromium chromium-driver"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder carry the marker and a time limit that fits real programs."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(60))


def need(program: str, how: str) -> str:
    """The program's path, or a skip that says how to get it."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{program} is missing: {how}")
    return found


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    with short_dir() as path:
        yield path


@pytest.fixture(scope="module")
def browser(module_folder: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a profile of its own."""
    program, driver = need("chromium", APT), need("chromedriver", APT)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in [*FLAGS, f"--user-data-dir={module_folder / 'profile'}"]:
        options.add_argument(flag)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


def wait_events(browser: webdriver.Chrome, count: int) -> None:
    WebDriverWait(browser, 15, poll_frequency=0.05).until(lambda driver: int(driver.title or 0) >= count)


@pytest.fixture(scope="module")
def service() -> Iterator[SampleService]:
    """The sample service, shared by a module's tests."""
    made = SampleService()
    yield made
    made.stop()


@pytest.fixture
def own(folder: Path) -> Iterator[SampleService]:
    """A service of the test's own, which it may kill; it is asked by curl."""
    need("curl", "apt-get install curl")
    made = SampleService()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def pair(module_folder: Path, service: SampleService) -> Iterator[Pair]:
    """Server and agent with the tunnel `app` before the sample service; judged when the module ends."""
    made = Pair(module_folder, {"app": service.url})
    try:
        yield made
        made.close()
    finally:
        made.discard()


@pytest.fixture
def make_pair(folder: Path) -> Iterator[MakePair]:
    """Pairs of a test's own: `make_pair({"name": url}, server={…}, agent={…})`; judged when the test ends."""
    with ExitStack() as ends:

        def make(tunnels: Mapping[str, Any], **settings: Any) -> Pair:
            made = Pair(folder, tunnels, **settings)
            ends.callback(made.discard)
            pairs.append(made)
            return made

        pairs: list[Pair] = []
        yield make
        for made in pairs:
            made.close()
