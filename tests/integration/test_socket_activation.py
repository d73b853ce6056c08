"""A server whose port systemd holds: adopted, matched with the file, kept over a restart."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.held import handed
from tests.support.processes import Process
from tests.support.sockets import LOOPBACK, free_port


@contextmanager
def server(
    folder: Path, held: list[socket.socket], listen: Any, *, pid: str = "", auth: str = "open"
) -> Iterator[Process]:
    path = folder / "server.yaml"
    path.write_text(
        yaml.safe_dump(
            {"listen": listen, "admin": False, "auth": {"mode": auth}, "store": "memory:", "drain_timeout": 0}
        )
    )
    command = [sys.executable, "-u", "-m", "tunneld", "server", "--config", str(path)]
    process = handed(held, command, name="server", pid=pid)
    try:
        yield process
    finally:
        process.discard()


def listening(host: str = LOOPBACK, family: int = socket.AF_INET) -> socket.socket:
    return socket.create_server((host, 0), family=family, dualstack_ipv6=family == socket.AF_INET6)


def faults(process: Process) -> list[str]:
    """What is not a line of the log."""
    return [line.text for line in process.lines if not line.text.startswith("{")]


def ask(port: int, host: str = LOOPBACK) -> bytes:
    with socket.create_connection((host, port), 15) as visitor:
        visitor.settimeout(15)
        visitor.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return visitor.recv(64)


def test_the_port_is_held_while_the_server_restarts(folder: Path) -> None:
    with listening() as held:
        port = held.getsockname()[1]
        with server(folder, [held], {"host": LOOPBACK, "port": port}) as first:
            assert ask(port).startswith(b"HTTP/1.1 200 ")
            assert first.stop() == 0
            first.assert_clean()
        with socket.create_connection((LOOPBACK, port), 5) as early:  # nobody serves, nobody is refused
            early.settimeout(15)
            early.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with server(folder, [held], {"host": LOOPBACK, "port": port}) as second:
                assert early.recv(64).startswith(b"HTTP/1.1 200 ")
                assert second.stop() == 0


def test_each_socket_goes_to_the_listener_of_its_address(folder: Path) -> None:
    own = free_port()
    with listening() as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "held.sock"))
        unix.listen()
        port = tcp.getsockname()[1]
        listen = [
            {"host": LOOPBACK, "port": own},
            {"unix": str(folder / "held.sock")},
            {"host": LOOPBACK, "port": port},
        ]
        with server(folder, [unix, tcp], listen) as process:
            assert ask(port).startswith(b"HTTP/1.1 200 ")
            assert ask(own).startswith(b"HTTP/1.1 200 ")
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.settimeout(15)
                visitor.connect(str(folder / "held.sock"))
                visitor.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert visitor.recv(64).startswith(b"HTTP/1.1 200 ")
            assert process.stop() == 0
        assert (folder / "held.sock").exists()  # its holder's to remove


def test_one_wildcard_of_ipv6_is_both_families(folder: Path) -> None:
    with listening("::", socket.AF_INET6) as held:
        port = held.getsockname()[1]
        listen = [{"host": "0.0.0.0", "port": port}, {"host": "::", "port": port}]
        with server(folder, [held], listen, auth="token") as process:
            assert ask(port).startswith(b"HTTP/1.1 200 ")
            assert ask(port, "::1").startswith(b"HTTP/1.1 200 ")
            assert process.stop() == 0
        listen[1]["serve"] = ["visitors"]
        with server(folder, [held], listen, auth="token") as process:
            assert process.wait() == 2
            (line,) = faults(process)
            assert line.endswith("differ, but systemd holds one socket for both of them")


def test_a_socket_that_no_listener_names_is_one_clear_line(folder: Path) -> None:
    with listening() as held, server(folder, [held], {"host": LOOPBACK, "port": free_port()}) as process:
        assert process.wait() == 2
        address = f"{LOOPBACK}:{held.getsockname()[1]}"
        (line,) = faults(process)
        assert line.startswith(f"listen: systemd holds {address} for this server, which no listener names; ")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_cannot_listen_is_refused(folder: Path, kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as held:
        held.bind((LOOPBACK, 0))
        with server(folder, [held], {"host": LOOPBACK, "port": held.getsockname()[1]}) as process:
            assert process.wait() == 2
            (line,) = faults(process)
            assert line.startswith("web: systemd passes something that cannot listen: ")


def test_what_was_meant_for_another_process_is_left_alone(folder: Path) -> None:
    port = free_port()
    with listening() as held, server(folder, [held], {"host": LOOPBACK, "port": port}, pid="1") as process:
        process.wait_line("Listening on")
        assert ask(port).startswith(b"HTTP/1.1 200 ")
        assert process.stop() == 0
