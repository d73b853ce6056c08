"""What systemd is told by real daemons, on a socket of our own in its place."""

from __future__ import annotations

import itertools
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.processes import Process, eventually, python_module
from tests.support.sockets import LOOPBACK, accepts, free_port


class Manager:
    """Receives; knows every assignment it was told, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.told: list[str] = []

    def next(self, timeout: float = 15) -> list[str]:
        """The assignments of the next message."""
        self.socket.settimeout(timeout)
        found = self.socket.recv(65536).decode().split("\n")
        self.told += found
        return found

    def want(self, text: str) -> list[str]:
        """The next message with an assignment that begins so."""
        while True:
            found = self.next()
            if any(one.startswith(text) for one in found):
                return found

    def empty(self) -> None:
        """Forget what waits."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(65536):
                pass
        except BlockingIOError:
            pass


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    made = Manager(folder / "notify")
    yield made
    made.socket.close()


def start(folder: Path, manager: Manager, role: str, settings: dict[str, object], **env: str) -> Process:
    path = folder / f"{role}.yaml"
    path.write_text(yaml.safe_dump(settings))
    path.chmod(0o600)
    argv = python_module("tunneld", role, "--config", str(path))
    return Process(argv, name=role, env={"NOTIFY_SOCKET": str(manager.path), **env})


def agent_file(folder: Path) -> dict[str, object]:
    return {
        "server": {"url": f"ws://{LOOPBACK}:1"},
        "tunnels": [{"name": "app", "service": f"http://{LOOPBACK}:1"}],
        "control": {"socket": str(folder / "c.sock")},
        "drain_timeout": 3,
        "reconnect": {"initial": 5},
    }


def server_file(port: int) -> dict[str, object]:
    return {
        "listen": {"host": LOOPBACK, "port": port},
        "admin": False,
        "auth": {"mode": "open"},
        "store": "memory:",
        "drain_timeout": 3,
    }


def test_an_agents_life_as_systemd_sees_it(folder: Path, manager: Manager) -> None:
    agent = start(folder, manager, "agent", agent_file(folder))
    try:
        ready = manager.want("READY=1")
        assert ready[0] == "READY=1"
        assert ready[1].startswith("STATUS=0 of 1 tunnels up, 0 streams")
        assert manager.told[0] == "READY=1"  # nothing before it
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(str(folder / "c.sock"))
            probe.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert probe.recv(64).startswith(b"HTTP/1.1 ")
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        agent.signal(signal.SIGHUP)
        reloading = manager.want("RELOADING=1")
        stamp = int(reloading[1].removeprefix("MONOTONIC_USEC="))
        assert before <= stamp <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert manager.next()[0] == "READY=1"
        (folder / "agent.yaml").write_text("tunels: []\n")
        mark = agent.mark()
        agent.signal(signal.SIGHUP)
        manager.want("RELOADING=1")
        assert manager.next()[0] == "READY=1"  # a bad file is no reason to be restarted
        agent.wait_line("The reload changed nothing:", after=mark)
        agent.signal(signal.SIGTERM)
        assert manager.next() == ["STOPPING=1"]
        assert manager.next() == ["EXTEND_TIMEOUT_USEC=15000000"]
        assert manager.next()[0].startswith("STATUS=stopping, at most 3 s more: 0 of 1 tunnels up")
        assert agent.wait() == 0
        agent.assert_clean()
    finally:
        agent.discard()


def test_a_server_is_ready_once_it_listens(folder: Path, manager: Manager) -> None:
    port = free_port()
    server = start(folder, manager, "server", server_file(port))
    try:
        ready = manager.want("READY=1")
        assert ready[1] == "STATUS=0 tunnels up, 0 streams"
        assert accepts(port)
        server.signal(signal.SIGHUP)
        manager.want("RELOADING=1")
        manager.want("READY=1")
        assert server.stop() == 0
        manager.want("STOPPING=1")
        server.assert_clean()
    finally:
        server.discard()


def stopped(pid: int) -> bool:
    """The kernel has stopped the process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("role", ["agent", "server"])
def test_the_watchdog_is_fed_by_the_loop_that_works(folder: Path, manager: Manager, role: str) -> None:
    settings = agent_file(folder) if role == "agent" else server_file(free_port())
    daemon = start(folder, manager, role, settings, WATCHDOG_USEC="600000")
    try:
        manager.want("READY=1")
        times = []
        for _ in range(4):
            manager.want("WATCHDOG=1")
            times.append(time.monotonic())
            assert manager.next()[0].startswith("STATUS=")
        spaces = [after - before for before, after in itertools.pairwise(times)]
        assert 0.2 < sum(spaces) / len(spaces) < 0.55  # half of what is allowed
        daemon.pause()
        eventually(lambda: stopped(daemon.pid), what="stopped")
        manager.empty()
        with pytest.raises(TimeoutError):
            manager.next(timeout=1)
        daemon.resume()
        manager.want("WATCHDOG=1")
        assert daemon.stop() == 0
    finally:
        daemon.discard()


def test_a_daemon_that_cannot_start_is_never_ready(folder: Path, manager: Manager) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        server = start(folder, manager, "server", server_file(taken.getsockname()[1]))
        assert server.wait() == 2
        server.discard()
    with pytest.raises(TimeoutError):
        manager.next(timeout=0.1)
