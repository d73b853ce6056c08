"""`tunneld expose`, as a user types it: an address within a second, who visits, Ctrl-C, and nothing left."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.support.daemons import Server
from tests.support.processes import ROOT, Process, clean_environment, python_module
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


def test_what_is_killed_leaves_nothing_for_longer_than_the_grace(folder: Path) -> None:
    server, service = Server(folder, settings={"resume": {"grace": "1s"}, "limits": {"hold": 0}}), SampleService()
    process = exposed(str(service.port), "--name", "mine", "--server", server.tunnel_url)
    try:
        process.wait_line(f"{server.url('mine')} -> ")
        with httpx.stream("GET", server.url("mine", "/events"), timeout=10) as answer:
            pieces = answer.iter_raw()
            assert b"event 1" in next(pieces)
            process.signal(signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises(httpx.TransportError):  # cut, never ended cleanly
                for _ in pieces:
                    pass
            assert time.monotonic() - killed < 1 + 2
        assert httpx.get(server.url("mine"), timeout=10).status_code == 503
    finally:
        process.discard()
        service.stop()
        server.process.stop()


def test_a_reader_that_leaves_ends_it(folder: Path) -> None:
    server, service = Server(folder), SampleService()
    command = python_module(
        "tunneld", "expose", str(service.port), "--name", "mine", "--server", server.tunnel_url, "--qr"
    )
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment({}), cwd=ROOT, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(f"{server.url('mine')} -> ")
        process.stdout.close()
        httpx.get(server.url("mine", "/small"), timeout=10)  # there is something to tell, and nobody to tell it to
        assert process.wait(timeout=15) == 0
        assert process.stderr.read() == "--qr: no terminal to draw it on; the address alone is printed\n"
        assert httpx.get(server.url("mine"), timeout=10).status_code == 503
    finally:
        process.kill()
        process.communicate()
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
