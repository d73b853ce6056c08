"""`tunneld expose`, as a user types it: an address within a second, who visits, Ctrl-C, and nothing left."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest

from tests.support.daemons import Server
from tests.support.processes import Process, python_module
from tests.support.services import SampleService
from tests.support.sockets import free_port


def exposed(*args: str, **environment: str) -> Process:
    return Process(python_module("tunneld", "expose", *args), name="expose", env=environment)


def test_one_tunnel_from_the_command_to_ctrl_c(folder: Path) -> None:
    server, service = Server(folder), SampleService()
    process = exposed(str(service.port), "--name", "mine", TUNNELD_SERVER=server.tunnel_url)
    try:
        process.wait_line(f"{server.url('mine')} -> http://127.0.0.1:{service.port}")
        assert httpx.get(server.url("mine", "/nothing?q=1")).status_code == 404
        process.wait_line("GET /nothing?q=1  127.0.0.1  done after")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert httpx.get(server.url("mine"), timeout=10).status_code == 503
    finally:
        process.discard()
        service.stop()
        server.process.stop()


def test_a_server_that_is_not_there_is_told_and_tried_again() -> None:
    process = exposed("9", "--server", f"ws://127.0.0.1:{free_port()}")
    try:
        process.wait_line("no connection: cannot reach the server: Connection refused; dialling again")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.discard()


def test_a_refusal_ends_it_with_what_to_do(folder: Path) -> None:
    server = Server(folder, settings={"auth": {"mode": "token"}, "store": f"sqlite:///{folder}/s.db"})
    process = exposed("9", "--server", server.tunnel_url, TUNNELD_TOKEN="tnl_wrong")
    try:
        assert process.wait() == 1
        text = process.tail()
        assert "tunneld server token create" in text
        assert "tnl_wrong" not in text
    finally:
        process.discard()
        server.process.stop()


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (("ftp://x",), "service"),
        (("9", "--name", "No_Label"), "name"),
        (("9", "--server", "nonsense"), "--server"),
    ],
)
def test_what_cannot_be_is_one_line(args: tuple[str, ...], fault: str) -> None:
    process = exposed(*args)
    try:
        assert process.wait() == 2
        (line,) = [line.text for line in process.lines]
        assert line.startswith(f"{fault}: expected")
    finally:
        process.discard()
