"""`tunnelctl doctor` against real daemons, real faults, and real streams that are buffered or cut on the way."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.support.daemons import Pair
from tests.support.processes import ROOT, clean_environment, python_module
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, certificate, free_port, short_dir
from tunnelctl.doctor import stream
from tunnelctl.doctor.browsers import tabs
from tunnelctl.doctor.findings import CHECKS
from tunneld import __version__
from tunneld.control.models.doctor import DoctorReport

REPORT: TypeAdapter[DoctorReport] = TypeAdapter(DoctorReport)
TOKEN = "tnl_not-to-be-seen-anywhere"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    service = SampleService()
    with short_dir() as folder:
        token = folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        over = {"server": {"token_file": str(token)}}
        made = Pair(folder, {"demo": f"http://{LOOPBACK}:{service.port}", "gone": f"http://{LOOPBACK}:9"}, agent=over)
        try:
            yield made
        finally:
            made.discard()
            service.stop()


def findings(told: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {one["check"]: one for one in told["findings"]}


def shaped(text: str, status: int) -> dict[str, Any]:
    """What ``--json`` printed, once it is as `DoctorReport` documents it, and the exit status goes with it."""
    told: dict[str, Any] = json.loads(text)
    REPORT.validate_python(told, strict=True, extra="forbid")
    assert told["version"] == __version__
    grades = [one["status"] for one in told["findings"]]
    assert told["status"] == next((grade for grade in ("fail", "warn") if grade in grades), "ok")
    assert status == (1 if told["status"] == "fail" else 0)
    for one in told["findings"]:
        assert one["id"] in CHECKS
        assert one["check"] == (f"{one['id']} {one['subject']}" if one["subject"] is not None else one["id"])
        assert bool(one["advice"]) is (one["status"] in ("warn", "fail"))
        assert one["detail"][-1] == "." or one["id"] == "config", "a fault of the file is told as it is"
    return told


def doctor(pair: Pair, *args: str) -> tuple[int, dict[str, Any]]:
    done = pair.agent.tunnelctl("doctor", "--json", *args, timeout=40)
    assert done.stderr == ""
    return done.returncode, shaped(done.stdout, done.returncode)


@pytest.mark.timeout(60)
def test_it_looks_at_the_whole_way_and_finds_the_service_that_is_gone(pair: Pair) -> None:
    status, told = doctor(pair)
    found = findings(told)
    assert (status, told["status"]) == (1, "fail")
    well = {"socket", "agent", "config", "tunnel demo", "dns", "tcp", "mtu", "server", "token", "clock", "service demo"}
    well |= {"browsers"}
    assert {check for check, one in found.items() if one["status"] == "ok"} >= well
    assert found["tunnel gone"]["detail"] == "connected, but connection refused."
    assert found["service gone"]["status"] == "fail"
    assert "six tabs with an open event stream block the seventh" in found["browsers"]["detail"]
    assert all(one["advice"] for one in found.values() if one["status"] in ("warn", "fail"))
    assert TOKEN not in json.dumps(told)
    ids = [(one["id"], one["subject"]) for one in told["findings"] if one["subject"] is not None]
    assert sorted(ids) == [("service", "demo"), ("service", "gone"), ("tunnel", "demo"), ("tunnel", "gone")]
    shown = pair.agent.tunnelctl("doctor", timeout=40)
    assert "✓ token: It is accepted." in shown.stdout
    assert "✗ service gone: " in shown.stdout
    assert "  → Start the service" in shown.stdout
    assert "looks at" not in shown.stderr


@pytest.mark.timeout(60)
def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "tunneld.yaml"
    file.write_text(
        f"server: {{url: 'ws://{LOOPBACK}:{free_port()}'}}\ntunnels: [{{nam: x, service: 'http://127.0.0.1:9'}}]\n"
    )
    done = subprocess.run(
        python_module("tunnelctl", "doctor", "--socket", str(tmp_path / "none.sock"), "--config", str(file), "--json"),
        capture_output=True,
        text=True,
        timeout=40,
        cwd=ROOT,
        env=clean_environment({}),
        check=False,
    )
    assert done.returncode == 1
    told = shaped(done.stdout, done.returncode)
    found = findings(told)
    assert "does not exist" in found["socket"]["detail"]
    assert "tunnels[0].nam" in " ".join(one["detail"] for one in told["findings"] if one["check"] == "config")
    assert found["tcp"]["advice"] == "Start the server, or correct the port in server.url."
    assert "server" not in found or found["server"]["status"] != "ok"


# -- streams -------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
Way = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(way: Way) -> AsyncIterator[str]:
    """A service that answers in a given way; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await way(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}/sse"
    finally:
        server.close()


async def judged(way: Way, seconds: float, known: dict[str, Any] | None = None) -> dict[str, Any]:
    async with served(way) as url:
        found = await asyncio.to_thread(stream.measure, url, seconds, lambda _: known)
        return {one.check: one for one in stream.judge(found)}


@pytest.mark.parametrize(
    "text",
    [
        "tunnels: 5",
        "tunnels: [3, {name: [a], service: 5}]",
        "{server: {url: 'ws://127.0.0.1:9', proxy: 9, ca_file: 3, token_file: 7}, tunnels: [{name: {a: b}}]}",
        "a: 2026-13-45",
        "[" * 3000,
    ],
    ids=["a number", "a list as a name", "numbers as texts", "no such day", "too deep"],
)
def test_a_file_with_anything_in_it_ends_no_doctor(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    argv = python_module("tunnelctl", "--socket", str(tmp_path / "s"), "doctor", "--config", str(tmp_path / "c.yaml"))
    done = subprocess.run([*argv, "--json"], cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
    found = findings(shaped(done.stdout, done.returncode))
    assert (found["config"]["status"], found["server" if "url" not in text else "tcp"]["status"]) == ("fail", "fail")


async def test_a_buffer_shows_by_what_the_agent_sent() -> None:
    async def way(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            HEAD.replace(b"\r\n\r\n", b"\r\nX-Tunnel-Request-Id: abc\r\nVia: 1.1 hoarder\r\n\r\n") + b"data: 1\n\n"
        )
        await asyncio.sleep(5)

    found = await judged(way, 0.3, {"events": 30})
    assert found["sse-buffering"].status == "fail"
    assert "sent 30 events, 1 arrived" in found["sse-buffering"].detail
    assert "hoarder" in found["sse-way"].detail


async def test_a_buffer_shows_by_heaps_after_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_PAUSE", 0.1)

    async def way(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"data: 0\n\n")
        for _each in range(3):
            await asyncio.sleep(0.2)
            writer.write(b"data: x\n\n" * 10)
        await asyncio.sleep(5)

    found = await judged(way, 1.0)
    assert found["sse-buffering"].status == "fail"
    assert "in heaps (10 at once" in found["sse-buffering"].detail


async def test_events_that_come_one_by_one_are_well() -> None:
    async def way(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for number in range(200):
            writer.write(b": comment\n\n" if number % 2 else b"data: x\n\n")
            await asyncio.sleep(0.05)

    found = await judged(way, 0.6)
    assert found["sse-buffering"].status == found["sse-idle"].status == "ok"
    assert "keepalive comments came" in found["sse-idle"].detail


async def test_a_cut_when_quiet_says_which_keepalive_would_save_it() -> None:
    async def way(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"data: x\n\n")
        await asyncio.sleep(2.3)
        writer.transport.abort()

    found = await judged(way, 8)
    assert found["sse-idle"].status == "fail"
    assert "`sse: {keepalive: 1s}`" in found["sse-idle"].advice


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 No\r\nX-Tunnel-Error: no_such_tunnel\r\nContent-Length: 0\r\n\r\n", "404 no_such_tunnel"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", "text/html"),
    ],
)
async def test_what_is_no_stream_is_said(answer: bytes, said: str) -> None:
    async def way(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    found = await judged(way, 1)
    assert found["sse"].status == "fail"
    assert said in found["sse"].detail


async def test_a_stream_that_is_encoded_is_told() -> None:
    async def way(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"data: x\n\n")

    found = await judged(way, 1)
    assert found["sse-encoding"].status == "warn"


@pytest.mark.timeout(60)
def test_a_stream_through_a_real_tunnel_is_measured_against_the_agent(pair: Pair) -> None:
    status, told = doctor(pair, "--sse", pair.url("demo", "/quiet"), "--for", "700ms")
    found = findings(told)
    assert status == 0
    assert found["sse-buffering"]["detail"].startswith("1 events of 1 that the agent sent arrived")


@pytest.mark.parametrize(("speaks", "status"), [(["h2", "http/1.1"], "ok"), (["http/1.1"], "warn")])
def test_six_tabs_are_told_of_where_no_http_2_is_spoken(tmp_path: Path, speaks: list[str], status: str) -> None:
    made = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.cert, made.key)
    context.set_alpn_protocols(speaks)

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as plain, context.wrap_socket(plain, server_side=True) as secured:
            secured.recv(1)

    with socket.create_server((LOOPBACK, 0)) as listener:
        answering = threading.Thread(target=serve, args=(listener,))
        answering.start()
        found = tabs(f"https://{LOOPBACK}:{listener.getsockname()[1]}/t/a", ca_file=str(made.cert))
        answering.join(10)
    assert (found.check, found.status) == ("browsers", status)
    assert ("packaging/proxies" in found.advice) is (status == "warn")


def test_a_plain_public_address_is_told_of_too() -> None:
    assert tabs("http://tunnel.example.org/t/a").status == "warn"
    assert tabs("http://demo.localhost:8440/t/a").status == "ok"
