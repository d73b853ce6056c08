"""What arrives on a notification socket of our own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunneld.telemetry.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_every_word(manager: socket.socket) -> None:
    notifier = Notifier()
    assert notifier.active
    notifier.ready("2 tunnels, 0 streams")
    notifier.ready()
    notifier.status("online — ✓\nREADY=1")
    notifier.stopping()
    notifier.watchdog()
    notifier.extend_timeout(1.5)
    words = [manager.recv(4096).decode() for _ in range(6)]
    assert words == [
        "READY=1\nSTATUS=2 tunnels, 0 streams",
        "READY=1",
        "STATUS=online — ✓ READY=1",
        "STOPPING=1",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=1500000",
    ]
    notifier.close()
    notifier.status("after")
    assert not notifier.active


def test_reloading_says_when(manager: socket.socket) -> None:
    notifier = Notifier()
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    first, second = manager.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.close()


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0tunneld-test-{os.getpid()}")
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@tunneld-test-{os.getpid()}")
        notifier = Notifier()
        notifier.ready()
        assert receiver.recv(4096) == b"READY=1"
        notifier.close()


@pytest.mark.parametrize("where", [None, "", "/nonexistent/notify", "relative", "vsock:2:1234", "@", "x" * 300])
def test_nobody_there_is_quiet(where: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if where is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", where)
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    notifier = Notifier()
    notifier.ready("x")
    notifier.watchdog()
    assert not notifier.active
    assert notifier.interval is None
    notifier.close()


def test_a_manager_that_goes_away_is_quiet(manager: socket.socket) -> None:
    notifier = Notifier()
    manager.close()
    notifier.ready()
    notifier.watchdog()
    notifier.close()


def test_a_full_socket_blocks_nobody_and_loses_nothing_new(manager: socket.socket) -> None:
    notifier = Notifier()
    sent = 0
    while not notifier._pending:
        notifier.status(str(sent))
        sent += 1
    notifier.ready("done")
    for _ in range(sent - 1):
        manager.recv(4096)
    notifier.watchdog()
    words = [manager.recv(4096) for _ in range(3)]
    assert words == [f"STATUS={sent - 1}".encode(), b"READY=1\nSTATUS=done", b"WATCHDOG=1"]
    notifier.close()


def test_what_waits_for_a_manager_that_stands_still_is_bounded_and_the_newest(manager: socket.socket) -> None:
    notifier = Notifier()
    sent = 0
    while not notifier._pending:
        notifier.status(str(sent))
        sent += 1
    for number in range(100):
        notifier.status(f"later {number}")
    for _ in range(sent - 1):
        manager.recv(4096)
    manager.setblocking(False)
    words = []
    notifier.status("last")
    while True:
        try:
            words.append(manager.recv(4096).decode())
        except BlockingIOError:
            if not notifier._pending:
                break
            notifier.watchdog()
    told = [word for word in words if word != "WATCHDOG=1"]
    assert told == [f"STATUS=later {number}" for number in range(85, 100)] + ["STATUS=last"]
    notifier.close()


@pytest.mark.parametrize(
    ("micros", "pid", "interval"),
    [
        ("20000000", None, 10.0),
        pytest.param("20000000", str(os.getpid()), 10.0, id="20000000-ours-10.0"),
        ("20000000", "1", None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        ("20000000", "me", None),
        (None, None, None),
    ],
)
def test_watchdog_interval_is_half(
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    micros: str | None,
    pid: str | None,
    interval: float | None,
) -> None:
    for name, value in (("WATCHDOG_USEC", micros), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    notifier = Notifier()
    assert notifier.interval == interval
    notifier.close()
