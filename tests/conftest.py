"""What every test may use."""

import random
import signal
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.sockets import short_dir

if TYPE_CHECKING:
    from tests.support.receivers import Hook
    from tests.support.running import Book

# A busy machine makes any example slow, and every test has its own limit.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--seed` replays what a chaos run did; `--thorough` lets it try every offset."""
    parser.addoption("--seed", type=int, default=random.randrange(1 << 24), help="replay a chaos run")
    parser.addoption("--thorough", action="store_true", help="chaos: every byte offset, not some by the seed")


def pytest_report_header(config: pytest.Config) -> str:
    """The seed, so that a run can be had again."""
    return f"chaos seed: --seed {config.getoption('seed')}"


def pytest_configure(config: pytest.Config) -> None:
    """Markers of the tests with real programs; `make test-e2e` runs them."""
    config.addinivalue_line("markers", "e2e: real daemons and real clients; a skip names what is missing")
    config.addinivalue_line("markers", "chaos: real daemons, and faults by a seed; `make test-chaos` runs them")
    # A shell's background job has SIGINT ignored, and every daemon and command would inherit that: Ctrl-C ends nothing.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logs or prints may be no UTF-8; pytest-xdist could not carry it to the process that reports."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def folder() -> Iterator[Path]:
    """A new folder with a path short enough for Unix sockets."""
    with short_dir() as path:
        yield path


@pytest.fixture
def lines() -> "Iterator[Book]":
    """All that tunneld logs in this process, from debug on."""
    from tests.support.running import book  # here: tests of packages run without tunneld's own modules

    with book() as made:
        yield made


@pytest.fixture
async def hook() -> "AsyncIterator[Hook]":
    """A receiver of webhooks, listening."""
    from tests.support.receivers import listening

    async with listening() as made:
        yield made


@pytest.fixture
def quick_alerts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alerts are looked for, and told again, without the waits of a real life."""
    from tunneld.alerts import delivery, watch

    monkeypatch.setattr(watch, "_EVERY", 0.02)
    monkeypatch.setattr(delivery, "_FIRST", 0.02)
