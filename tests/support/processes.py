"""Real processes under test: started, watched by their output lines, signalled and stopped by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import usage

__all__ = ["ROOT", "Died", "Line", "NotSeen", "Process", "eventually", "python_module"]

ROOT = Path(__file__).resolve().parents[2]
_UNWANTED = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class NotSeen(AssertionError):
    """What a test waited for did not come in time; the message ends with the last lines of output."""


class Died(AssertionError):
    """The process ended while a test waited for something from it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output and when it was read (`time.monotonic()`)."""

    text: str
    at: float


def python_module(module: str, *args: str) -> list[str]:
    """The command that runs `module` with this interpreter, output unbuffered."""
    return [sys.executable, "-u", "-m", module, *args]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change a daemon's behaviour: proxies and systemd's sockets."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key.upper() not in _UNWANTED and not key.startswith("TUNNELD_")
    }
    kept["PYTHONUTF8"] = "1"
    return {**kept, **(extra or {})}


def eventually(check: Callable[[], object], *, timeout: float = 10.0, what: str = "true") -> None:
    """Wait for a state of another process that nothing announces; asked every 50 ms. Raises NotSeen."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise NotSeen(f"not {what} in {timeout} s")
        time.sleep(0.05)


class Process:
    """A subprocess in a session of its own, its stdout and stderr gathered as lines.

    All waits end at the awaited thing, at the process's end or at the deadline; from a coroutine call them
    by `asyncio.to_thread`. `spoken` is called in the reader's thread for each line, where a test wants that.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        spoken: Callable[[str, float], None] | None = None,
        keep: bool = True,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.lines: list[Line] = []
        self._spoken = spoken
        self._keep = keep
        self._news = threading.Condition()
        self._ended = False
        self._stopped = False
        #: Monotonic seconds.
        self.started = time.monotonic()
        self._popen = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=clean_environment(env),
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self.pid = self._popen.pid
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as pipe:
            for raw in pipe:
                line = Line(raw.decode("utf-8", "replace").rstrip("\n"), time.monotonic())
                if self._spoken is not None:
                    self._spoken(line.text, line.at)
                if self._keep:
                    with self._news:
                        self.lines.append(line)
                        self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    # -- looking

    @property
    def running(self) -> bool:
        """Whether the process itself still lives."""
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    def mark(self) -> int:
        """How many lines have come: pass it as `after` to look only at later ones."""
        with self._news:
            return len(self.lines)

    def matching(self, want: str | Callable[[str], bool], *, after: int = 0) -> list[Line]:
        """The lines so far, from `after` on, that hold the text (or satisfy the function)."""
        test = want if callable(want) else lambda text: want in text
        with self._news:
            return [line for line in self.lines[after:] if test(line.text)]

    def wait_line(
        self, want: str | Callable[[str], bool], *, after: int = 0, timeout: float = 10.0, count: int = 1
    ) -> Line:
        """The `count`th line from `after` on that holds the text. Raises NotSeen or Died."""
        test = want if callable(want) else lambda text: want in text
        deadline = time.monotonic() + timeout
        at, found = after, 0
        with self._news:
            while True:
                while at < len(self.lines):
                    line = self.lines[at]
                    at += 1
                    if test(line.text):
                        found += 1
                        if found == count:
                            return line
                if self._ended:
                    raise Died(f"{self.name} ended while {want!r} was awaited\n{self.tail()}")
                if not self._news.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise NotSeen(f"{self.name}: {want!r} not seen in {timeout} s\n{self.tail()}")

    def wait_until(self, done: Callable[[], bool], *, timeout: float = 10.0, what: str = "ready") -> None:
        """Wait for a state outside (a port, a socket file); tried at each line of output and every 20 ms."""
        deadline = time.monotonic() + timeout
        while not done():
            with self._news:
                if self._ended:
                    raise Died(f"{self.name} ended before it was {what}\n{self.tail()}")
                if time.monotonic() > deadline:
                    raise NotSeen(f"{self.name} was not {what} in {timeout} s\n{self.tail()}")
                self._news.wait(0.02)

    def tail(self, count: int = 30) -> str:
        """The last lines of output, for a message."""
        return "\n".join(f"  {self.name}| {line.text}" for line in self.lines[-count:])

    def family(self) -> list[int]:
        """Its pid and those of its descendants."""
        return usage.tree(self.pid)

    # -- doing

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP: it falls silent and its sockets stay."""
        self._stopped = True
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._stopped = False
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._popen.kill()
        self._popen.wait(10)
        self._reader.join(5)

    def wait(self, timeout: float = 15.0) -> int:
        """Wait for its own end; the exit status. Raises NotSeen."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise NotSeen(f"{self.name} did not end in {timeout} s\n{self.tail()}") from None
        self._reader.join(5)
        return code

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM and wait; killed when it overruns, which raises NotSeen. The exit status."""
        if self._stopped:
            self.resume()
        if self.running:
            self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except NotSeen:
            self.kill()
            raise

    def discard(self) -> None:
        """End it and all of its session without a question asked: the last step of a clean-up."""
        if self.running:
            self._popen.kill()
            self._popen.wait(10)
        for pid in self.leftovers():  # they hold its output open, for whose end the reader waits
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(5)

    # -- judging

    def leftovers(self) -> list[int]:
        """Living processes of its session other than itself."""
        return [pid for pid in usage.session_members(self.pid) if pid != self.pid]

    def tracebacks(self) -> list[str]:
        """Lines that begin a traceback or speak of what asyncio could not tell anyone."""
        signs = (
            "Traceback (most recent call last)",
            "was never awaited",
            "was never retrieved",
            "Task was destroyed",
            "Exception ignored in",
        )
        return [line.text for line in self.lines if any(sign in line.text for sign in signs)]

    def assert_clean(self, *, codes: Sequence[int] = (0,)) -> None:
        """It ended with one of `codes`, printed no traceback and left no process behind."""
        code = self.returncode
        assert code is not None, f"{self.name} still runs"
        assert not self.tracebacks(), f"{self.name} printed a traceback\n{self.tail(80)}"
        assert code in codes, f"{self.name} ended with {code}, expected {codes}\n{self.tail()}"
        assert not self.leftovers(), f"{self.name} left {self.leftovers()} behind"
