"""Sockets as they are bound: all of them or none, and one clear line for each that cannot be."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import descriptors
from tests.support.sockets import certificate
from tunneld.config.server import ServerConfig
from tunneld.errors import ConfigError
from tunneld.server.listeners import Listeners


def make(*listen: dict[str, Any], **settings: Any) -> Listeners:
    return Listeners(ServerConfig(listen=listen, **settings))


def test_several_at_once(folder: Path) -> None:
    before = descriptors()
    listeners = make(
        {"host": "127.0.0.1", "port": 0},
        {"host": "::1", "port": 0},
        {"unix": str(folder / "v.sock"), "mode": "0600"},
    )
    listeners.open()
    (_, four), (_, six), (_, unix) = listeners.addresses
    assert four.startswith("127.0.0.1:")
    assert six.startswith("[::1]:")
    assert unix == f"unix:{folder / 'v.sock'}"
    assert stat.S_IMODE(os.stat(folder / "v.sock").st_mode) == 0o600
    listeners.close()
    assert not (folder / "v.sock").exists()
    assert descriptors() == before


def test_a_wildcard_of_ipv6_leaves_ipv4_to_others() -> None:
    first = make({"host": "::", "port": 0}, auth={"mode": "token"})
    first.open()
    port = int(first.addresses[0][1].rpartition(":")[2])
    second = make({"host": "0.0.0.0", "port": port}, auth={"mode": "token"})
    second.open()
    second.close()
    first.close()


def test_localhost_is_every_address_of_it_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),  # not one of this machine
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    listeners = make({"host": "localhost", "port": 0})
    listeners.open()
    assert len(listeners.addresses) == 1
    listeners.close()


def test_each_fault_has_a_line_and_then_none_is_bound(folder: Path) -> None:
    (folder / "file").touch()
    before = descriptors()
    with socket.socket() as taken, socket.socket(socket.AF_UNIX) as live:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        live.bind(str(folder / "live.sock"))
        live.listen()
        port = taken.getsockname()[1]
        listeners = make(
            {"unix": str(folder / "fine.sock")},
            {"host": "127.0.0.1", "port": port},
            {"host": "192.0.2.1", "port": 1},
            {"host": "nowhere.invalid", "port": 1},
            {"host": "127.0.0.1", "port": 0, "tls": {"cert": str(folder / "no.pem"), "key": str(folder / "no.key")}},
            {"unix": str(folder / "live.sock")},
            {"unix": str(folder / "file" / "x.sock")},
            auth={"mode": "token"},
        )
        with pytest.raises(ConfigError) as caught:
            listeners.open()
    faults = caught.value.faults
    assert faults[0].startswith(f"listen[1]: cannot listen on 127.0.0.1:{port}: another process listens there")
    assert faults[1].startswith("listen[2]: cannot listen on 192.0.2.1:1: this machine has no such address")
    assert faults[2].startswith("listen[3].host: nowhere.invalid cannot be resolved")
    assert faults[3].startswith("listen[4].tls.cert")
    assert faults[4].startswith("listen[4].tls.key")
    assert faults[5].startswith("listen[5].unix")
    assert faults[6].startswith("listen[6].unix")
    assert len(faults) == 7
    assert not (folder / "fine.sock").exists()
    assert (folder / "live.sock").exists()
    assert not listeners.addresses
    assert descriptors() == before


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "s.sock"))
    listeners = make({"unix": str(folder / "s.sock")})
    listeners.open()
    listeners.close()
    assert not (folder / "s.sock").exists()


@pytest.mark.parametrize("broken", ["cert", "key"])
def test_a_broken_certificate_is_named(folder: Path, broken: str) -> None:
    made = certificate(folder)
    (made.cert if broken == "cert" else made.key).write_text("no pem")
    listeners = make({"host": "127.0.0.1", "port": 0}, tls={"cert": str(made.cert), "key": str(made.key)})
    with pytest.raises(ConfigError) as caught:
        listeners.open()
    (fault,) = caught.value.faults
    assert fault.startswith("tls")
    assert "\n" not in fault
