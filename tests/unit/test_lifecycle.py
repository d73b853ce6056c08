"""A daemon's life around its work: signals, drain, reload, and what the exit status says."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from tunneld.errors import ConfigError
from tunneld.lifecycle import die, raise_descriptor_limit, run, serve, warn_about_descriptors


class Work:
    """A daemon whose every step is the test's."""

    def __init__(self, drain_timeout: float = 30) -> None:
        self.drain_timeout = drain_timeout
        self.steps: list[str] = []
        self.empty = asyncio.Event()
        self.fault: Exception | None = None
        self.group = asyncio.TaskGroup()
        self.leave: Callable[[], None]

    def on_leave(self, leave: Callable[[], None]) -> None:
        self.leave = leave

    async def start(self) -> None:
        self.steps.append("start")
        if self.fault:
            raise self.fault

    async def drain(self) -> None:
        self.steps.append("drain")
        await self.empty.wait()
        self.steps.append("drained")

    async def stop(self) -> None:
        self.steps.append("stop")

    async def reload(self) -> object:
        self.steps.append("reload")
        if self.fault:
            raise self.fault
        return None

    def status_line(self) -> str:
        return "well"


def send(number: int) -> None:
    os.kill(os.getpid(), number)


async def until(work: Work, step: str, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while work.steps.count(step) < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_then_stops(lines: Any, number: int) -> None:
    work = Work()
    announced: list[int] = []
    task = asyncio.get_running_loop().create_task(serve(work, announce=lambda: announced.append(1)))
    await until(work, "start")
    assert announced == [1]
    send(number)
    await until(work, "drain")
    work.empty.set()
    assert await task == 0
    assert work.steps == ["start", "drain", "drained", "stop"]
    assert lines.find("Stopping: open streams have 30 s to end.")
    assert lines.find("Stopped.")


async def test_a_second_signal_waits_for_nobody(lines: Any) -> None:
    work = Work(3600)
    task = asyncio.get_running_loop().create_task(serve(work))
    await until(work, "start")
    send(signal.SIGTERM)
    await until(work, "drain")
    send(signal.SIGHUP)  # is no reason to leave, nor to reload any more
    await asyncio.sleep(0.01)
    assert "stop" not in work.steps
    send(signal.SIGINT)
    assert await task == 0
    assert work.steps == ["start", "drain", "stop"]


async def test_two_signals_before_the_drain_begins_leave_at_once_too(lines: Any) -> None:
    work = Work(3600)
    task = asyncio.get_running_loop().create_task(serve(work))
    await until(work, "start")
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert await task == 0
    assert work.steps[-1] == "stop"


async def test_an_operators_wish_drains_then_leaves(lines: Any) -> None:
    work = Work()
    task = asyncio.get_running_loop().create_task(serve(work))
    await until(work, "start")
    work.leave()
    await until(work, "drain")
    work.leave()  # said again, it is no more than once
    await asyncio.sleep(0.01)
    assert "stop" not in work.steps
    work.empty.set()
    assert await task == 0
    assert work.steps == ["start", "drain", "drained", "stop"]


async def test_the_service_managers_signal_does_not_cut_an_operators_drain_short(lines: Any) -> None:
    work = Work(3600)
    task = asyncio.get_running_loop().create_task(serve(work))
    await until(work, "start")
    work.leave()
    await until(work, "drain")
    send(signal.SIGTERM)
    await asyncio.sleep(0.01)
    assert "stop" not in work.steps
    send(signal.SIGTERM)
    assert await task == 0
    assert work.steps == ["start", "drain", "stop"]


async def test_the_time_to_drain_is_bounded(lines: Any) -> None:
    work = Work(0.1)
    task = asyncio.get_running_loop().create_task(serve(work))
    await until(work, "start")
    since = monotonic()
    send(signal.SIGTERM)
    assert await task == 0
    assert 0.09 <= monotonic() - since < 3
    assert work.steps == ["start", "drain", "stop"]


async def test_no_time_to_drain_is_no_fault(lines: Any) -> None:
    work = Work(0)
    task = asyncio.get_running_loop().create_task(serve(work))
    await until(work, "start")
    send(signal.SIGTERM)
    assert await task == 0
    assert work.steps[-1] == "stop"
    assert lines.find("Stopping at once: drain_timeout is 0.")
    assert not lines.find("have 0 s")


async def test_each_hangup_reloads_and_a_bad_file_goes_on(lines: Any) -> None:
    work = Work(0)
    task = asyncio.get_running_loop().create_task(serve(work))
    await until(work, "start")
    send(signal.SIGHUP)
    await until(work, "reload")
    work.fault = ConfigError(["one fault", "another"])
    send(signal.SIGHUP)
    await until(work, "reload", 2)
    assert [entry.text for entry in lines.find("The reload changed nothing")] == [
        "The reload changed nothing: one fault",
        "The reload changed nothing: another",
    ]
    assert not task.done()
    send(signal.SIGTERM)
    assert await task == 0


async def test_one_that_cannot_start_gives_the_signals_back() -> None:
    work = Work()
    work.fault = ConfigError(["no"])
    with pytest.raises(ConfigError):
        await serve(work)
    assert work.steps == ["start"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Broken(Work):
    """A daemon with a task that fails."""

    async def start(self) -> None:
        await super().start()
        await self.group.__aenter__()

        async def fail() -> None:
            raise ZeroDivisionError

        self.group.create_task(fail())

    async def stop(self) -> None:
        await super().stop()
        await self.group.__aexit__(None, None, None)


async def test_a_task_that_fails_ends_the_daemon_with_its_reason(lines: Any) -> None:
    work = Broken()
    assert await asyncio.get_running_loop().create_task(serve(work)) == 1
    (entry,) = lines.find("A task of the daemon failed")
    assert entry.level == logging.CRITICAL
    assert entry.fields["exc_info"]
    assert work.steps[-1] == "stop"


def test_a_configuration_that_cannot_be_used_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert die(ConfigError(["one", "two"])) == 2
    assert capsys.readouterr().err == "one\ntwo\n"


def test_run_returns_what_the_coroutine_does() -> None:
    async def main() -> int:
        return 5

    assert run(main) == 5


def test_descriptors(lines: Any) -> None:
    limit = raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limit, limit)
    warn_about_descriptors(1000, 1000, "900 streams")
    assert not lines.entries
    warn_about_descriptors(1000, 1014, "950 streams")
    (entry,) = lines.entries
    assert "950 streams" in entry.text
    assert "1014" in entry.text
    assert "LimitNOFILE" in entry.text
