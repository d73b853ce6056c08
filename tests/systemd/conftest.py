"""One box for all of these tests; each starts with no unit of ours running and leaves none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.box import Box, missing
from tests.support.processes import eventually
from tests.systemd.service import Visitor


@pytest.fixture(scope="session")
def booted() -> Iterator[Box]:
    lacks = missing()
    if lacks is not None:
        pytest.exit(f"tests/systemd cannot boot a systemd here: {lacks}", returncode=3)
    box = Box(f"suite-{os.getpid()}")
    try:
        yield box
    finally:
        box.close()


@pytest.fixture
def box(booted: Box) -> Iterator[Box]:
    """The box, with nothing of ours in it but the package."""
    booted.revert()
    yield booted
    for visitor in list(Visitor.here):
        visitor.close()
    booted.revert()


def started(box: Box) -> None:
    """Start server and agent, and wait until the server has the tunnel: a daemon is ready before that."""
    since = box.now()
    box.systemctl("start", "tunneld-server", "tunneld")

    def there() -> bool:
        said = box.journal(since, "--unit=tunneld-server", "TUNNEL=demo")
        return any(str(one["MESSAGE"]).startswith("✓ Tunnel established") for one in said)

    eventually(there, timeout=60, what="established")


PORT = 8440
"""Of the server inside the box: what tunneld-server.socket holds."""


def server_file(**over: object) -> dict[str, object]:
    """The server's file: open, on loopback."""
    return {
        "listen": {"host": "127.0.0.1", "port": PORT},
        "admin": False,
        "auth": {"mode": "open"},
        "store": "memory:",
        "resume": {"grace": "20s"},
        "limits": {"hold": "15s"},
        **over,
    }


def agent_file(port: int = 9000, **over: object) -> dict[str, object]:
    """The agent's file: one tunnel, `demo`."""
    return {
        "server": {"url": f"ws://127.0.0.1:{PORT}"},
        "tunnels": [{"name": "demo", "service": f"http://127.0.0.1:{port}"}],
        "reconnect": {"initial": "100ms", "max": "1s"},
        **over,
    }
