"""`tunnelctl top` in a real terminal of 80 columns and 24 lines: tmux, whose screen is read as a person would."""

import os
import pty
import re
import shlex
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from tests.e2e.conftest import MakePair, need
from tests.e2e.test_dashboard import Visitors
from tests.support.processes import ROOT, clean_environment, eventually, python_module
from tests.support.services import SampleService

QUICK = {"heartbeat": {"interval": "1s", "timeout": "1s"}}


class Terminal:
    """One tmux server of the test's own, with one window."""

    def __init__(self, folder: Path, command: list[str], *, env: dict[str, str] | None = None) -> None:
        self._tmux = [need("tmux", "apt-get install tmux"), "-u", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        self._end = folder / "status"
        line = f"trap : INT; {shlex.join(command)}; echo left with $? >{shlex.quote(str(self._end))}; exec cat"
        self._run("new-session", "-d", "-x", "80", "-y", "24", "/bin/sh", "-c", line, env=env)

    def _run(self, *words: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*self._tmux, *words], capture_output=True, text=True, timeout=15, cwd=ROOT, check=True,
            env=clean_environment({"LC_ALL": "C.UTF-8", **(env or {})}),
        )  # fmt: skip
        return done.stdout

    def lines(self, *how: str) -> list[str]:
        return self._run("capture-pane", "-p", *how).split("\n")[:24]

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(lines))

    def until(self, *texts: str, without: str | None = None) -> list[str]:
        """The screen, once it has all of these texts in it."""
        deadline = time.monotonic() + 20
        while True:
            lines = self.lines()
            shown = "\n".join(lines)
            if all(text in shown for text in texts) and (without is None or without not in shown):
                return lines
            assert time.monotonic() < deadline, f"not shown: {texts}\n{shown}"
            time.sleep(0.05)

    def left(self) -> str:
        deadline = time.monotonic() + 20
        while not (self._end.exists() and (said := self._end.read_text().strip())):
            assert time.monotonic() < deadline, "\n".join(self.lines())
            time.sleep(0.05)
        return said

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=15, check=False)


@pytest.fixture
def visitors(make_pair: MakePair, service: SampleService) -> Iterator[Visitors]:
    made = Visitors(make_pair({"app": service.url, "notes": service.url}, agent=QUICK))
    yield made
    made.leave()


@pytest.fixture
def top(visitors: Visitors, folder: Path) -> Iterator[Terminal]:
    for name in ("red", "green", "blue"):
        visitors.come(name, tunnel="app" if name == "red" else "notes")
    command = python_module("tunnelctl", "top", "--socket", str(visitors.pair.agent.socket), "--interval", "200ms")
    made = Terminal(folder, command)
    yield made
    made.close()


def test_it_lives_sorts_filters_and_cancels_in_80x24(top: Terminal, visitors: Visitors) -> None:
    lines = top.until("TUNNELS 2, by name", "STREAMS 3", "/events?id=red", "excellent", "q quit")
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("> app") and "online" in line for line in lines)
    eventually(lambda: re.search(" [▁▂▃▄▅▆▇█]{2,12} ", "\n".join(top.lines())), timeout=20, what="a curve")
    top.press("Tab")
    top.until("> STREAMS 3, by age (largest first)")
    top.press("s", "s")
    lines = top.until("by path")
    order = [line[2:].split()[0] for line in lines if "/events?id=" in line]
    assert order == ["/events?id=blue", "/events?id=green", "/events?id=red"]
    top.press("/", "i", "d", "=", "g", "r")
    top.until("Filter: id=gr", "STREAMS 1 of 3", without="/events?id=red")
    top.press("Enter")
    top.until("q quit")
    top.press("Enter")
    top.until("request id", "last event id", "Esc goes back")
    top.press("c")
    top.until("Cancel /events?id=green of notes? [y/N]")
    top.press("n")
    top.until("Nothing was done.", "STREAMS 1 of 3")
    assert len(visitors.pair.agent.streams()) == 3
    top.press("c", "y")
    top.until("cancelled", "STREAMS 0 of 2")
    assert sorted(one["path"] for one in visitors.pair.agent.streams()) == ["/events?id=blue", "/events?id=red"]
    top.press("q")
    assert top.left() == "left with 0"
    assert "TUNNELS" not in "\n".join(top.lines())  # the screen that was there is back


def test_it_reconnects_and_says_when_the_agent_is_gone_and_back(top: Terminal, visitors: Visitors) -> None:
    top.until("> app", "STREAMS 3")
    top.press("r")
    top.until("Reconnect app? [y/N]")
    top.press("y")
    top.until("app dials again")
    assert len(visitors.pair.agent.streams()) == 3
    visitors.pair.agent.process.kill()
    top.until("trying again")
    visitors.pair.agent.restart()
    top.until("It answers again.")
    top.press("C-c")
    assert top.left() == "left with 0"


def test_keys_find_those_beyond_the_screen_too(top: Terminal, visitors: Visitors) -> None:
    """Only as many streams are asked for as a screen shows, until a key needs the others."""
    top.until("STREAMS 3")  # the first answer, which has all; each after it has what the screen shows
    for number in range(60):
        visitors.come(f"many{number:02}", tunnel="app")
    top.until("> TUNNELS", "STREAMS 63, by age", "/events?id=many05", without="/events?id=many40")
    top.press("Tab", "End", "i")
    top.until("request id", "/events?id=many59")
    top.press("Escape", "Home", "Tab", "/", "m", "a", "n", "y", "4")
    lines = top.until("STREAMS 10 of 63", "/events?id=many49", without="/events?id=many50")
    assert not any("id=red" in line for line in lines)


def test_it_follows_the_terminals_size(top: Terminal) -> None:
    top.until("STREAMS 3")
    top.resize(44, 12)
    lines = top.until("q quit", "STREAMS 3", without="CLIENT")
    assert max(map(len, lines)) <= 44
    top.resize(140, 40)
    top.until("PUBLIC URL", "LAST ID")
    top.press("?")
    top.until("between tunnels and streams")


def test_without_colour_the_choice_is_marked(visitors: Visitors, folder: Path) -> None:
    visitors.come("one")
    command = python_module("tunnelctl", "top", "--socket", str(visitors.pair.agent.socket))
    made = Terminal(folder, ["env", "NO_COLOR=1", *command])
    try:
        made.until("> app", "/events?id=one")
        # no colour, whatever else marks the choice; 39 and 49 are the terminal's own
        assert not re.search(r"\x1b\[[0-9;]*[349][0-7]m", "\n".join(made.lines("-e")))
    finally:
        made.close()


class SlowLine:
    """A terminal behind a line that takes so many bytes a second, such as a bad ssh's."""

    def __init__(self, command: list[str], rate: int) -> None:
        self._ours, theirs = pty.openpty()
        ioctl(theirs, TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        env = clean_environment({"LC_ALL": "C.UTF-8", "TERM": "xterm", "NO_COLOR": "1"})
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=env, start_new_session=True
        )
        os.close(theirs)
        self.shown = b""
        self._rate = rate
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, self._rate // 20)
            except OSError:  # how Linux tells that the other side is closed
                data = b""
            with self._more:
                self.shown += data
                self._more.notify_all()
            if not data:
                return
            time.sleep(len(data) / self._rate)  # the line itself

    def until(self, text: str, *, after: int = 0) -> None:
        with self._more:
            assert self._more.wait_for(lambda: text.encode() in self.shown[after:], 30), self.shown[after:]

    def press(self, keys: str) -> int:
        """Press these; how much was shown before."""
        before = len(self.shown)
        os.write(self._ours, keys.encode())
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._thread.join(30)
        os.close(self._ours)


def test_over_a_slow_line_it_shows_what_is_true_now_and_keys_work(visitors: Visitors) -> None:
    visitors.come("one")
    socket = str(visitors.pair.agent.socket)
    line = SlowLine(python_module("tunnelctl", "top", "--socket", socket, "--interval", "100ms"), 4000)
    try:
        line.until("STREAMS 1")
        visitors.come("two")
        line.until("STREAMS 2")
        # ten pictures a second are made and two at most pass: none may wait behind the others
        began = time.monotonic()
        before = line.press("?")
        line.until("between tunnels and streams", after=before)
        waited = time.monotonic() - began
        assert waited < 10, f"{len(line.shown) - before} bytes stood before it"
        line.press("?")
        before = line.press("q")
        assert line.process.wait(20) == 0
        assert len(line.shown) - before < 30_000
    finally:
        line.close()


def test_without_a_terminal_it_is_printed_once(visitors: Visitors) -> None:
    visitors.come("one")
    done = visitors.pair.agent.tunnelctl("top")
    assert done.returncode == 0
    assert "TUNNELS 2" in done.stdout
    assert "\x1b" not in done.stdout
    told = visitors.pair.agent.ask("top")
    assert [tunnel["name"] for tunnel in told["status"]["tunnels"]] == ["app", "notes"]
    assert visitors.pair.agent.tunnelctl("top", "--interval", "soon").returncode == 2
    gone = visitors.pair.agent.tunnelctl("top", "--socket", "/nonexistent/socket")
    assert gone.returncode == 3


def test_it_shows_a_server_sorts_cancels_reconnects_and_asks_for_a_token(
    make_pair: MakePair, service: SampleService, folder: Path
) -> None:
    token = folder / "admin-token"
    token.write_text("the-operators-own-secret")
    token.chmod(0o600)
    pair = make_pair(
        {"app": service.url, "notes": service.url}, agent=QUICK, server={"admin": {"token_file": str(token)}}
    )
    visitors = Visitors(pair)
    url = f"http://127.0.0.1:{pair.server.admin_port}"
    command = python_module("tunnelctl", "top", "--server", url, "--token-file", str(token), "--interval", "200ms")
    made = None
    try:
        visitors.come("red", tunnel="app")
        visitors.come("blue", tunnel="notes")
        made = Terminal(folder, command)
        lines = made.until("TUNNELS 2, by name", "STREAMS 2", "/events?id=red", "online")
        assert max(map(len, lines)) <= 80
        made.press("Tab", "/", "i", "d", "=", "r", "e", "d")
        made.until("STREAMS 1 of 2", without="/events?id=blue")
        made.press("Enter")
        made.until("q quit")
        made.press("c")
        made.until("Cancel /events?id=red of app? [y/N]")
        made.press("y")
        made.until("cancelled", "STREAMS 0 of 1")
        assert [one["path"] for one in pair.agent.streams()] == ["/events?id=blue"]
        made.press("Escape", "Tab", "r")
        made.until("Reconnect app? [y/N]")
        made.press("y")
        made.until("app dials again")
        pair.server.process.kill()
        made.until("trying again")
        pair.server.restart()
        made.until("It answers again.")
        made.press("q")
        assert made.left() == "left with 0"
    finally:
        if made is not None:
            made.close()
        visitors.leave()
    without = subprocess.run(
        python_module("tunnelctl", "top", "--server", url), capture_output=True, text=True, timeout=15, cwd=ROOT,
        env=clean_environment({}), check=False,
    )  # fmt: skip
    assert (without.returncode, without.stdout) == (1, "")
    assert "bearer token" in without.stderr
