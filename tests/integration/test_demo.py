"""`tunneld demo` as a user runs it: what it prints works as pasted, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tunneld.demo import command

# One at a time, as `--dist loadfile` has it: each takes the port that people know if it is free, and two that begin
# together would both find it so. (The mark `xdist_group` did nothing: xdist 3.8 adds it to a name that pytest 9.2 does
# not read.)
ROOT = Path(__file__).parents[2]


@dataclass
class Demo:
    process: Process
    lines: list[str]

    def line(self, pattern: str) -> str:
        (found,) = [line for line in self.lines if re.match(pattern, line)]
        return found

    @property
    def page(self) -> str:
        return self.line("Open this page: ").split()[-1]

    async def logged(self, text: str) -> str:
        """The next line of the log that has `text`."""
        assert self.process.stderr is not None
        while True:
            line = (await self.process.stderr.readline()).decode()
            assert line, f"the log ended before {text!r}"
            if text in line:
                return line


@pytest.fixture
async def demo() -> AsyncIterator[Demo]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tunneld", "demo", cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    try:
        assert process.stdout is not None
        lines = []
        while not any("Ctrl-C ends" in line for line in lines):
            line = (await process.stdout.readline()).decode()
            if not line:
                assert process.stderr is not None
                pytest.fail((await process.stderr.read()).decode())
            lines.append(line.rstrip("\n"))
        yield Demo(process, lines)
    finally:
        if process.returncode is None:
            process.terminate()  # not kill: its folder goes with it
        await process.communicate()


async def _shell(command: str) -> tuple[int | None, str]:
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = await asyncio.create_subprocess_exec(
        *shlex.split(command), cwd=ROOT, env=environ, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    return process.returncode, (out + err).decode()


async def test_what_it_prints_works_and_a_closed_stream_stops_the_work(demo: Demo) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(demo.page)
        assert answer.status_code == 200
        assert "EventSource" in answer.text
        assert demo.line("curl -N ").replace("&", "&amp;") in answer.text

        answer = await client.post(demo.page + "echo", content=b"hello")
        assert answer.content == b"hello"

        url = demo.line("curl -N ").split()[-1]
        async with client.stream("GET", url) as stream:
            request_id = stream.headers["x-tunnel-request-id"]
            lines = stream.aiter_lines()
            assert await anext(lines) == "id: 1"
            status, text = await _shell(demo.line(".*tunnelctl .*streams"))
            assert status == 0
            assert request_id[:8] in text
            assert "/sse" in text
        await demo.logged("client gone, work stopped after")


def test_what_is_printed_works_in_a_shell_that_stands_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the interpreter and not on the PATH, as in a checkout's own environment."""
    (tmp_path / "tunnelctl").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.chdir(tmp_path)
    assert command._commands(1, Path("/x"))["streams"] == f"{tmp_path}/tunnelctl --socket /x/control.sock streams"


async def test_cancelling_as_printed_ends_the_stream_cleanly(demo: Demo) -> None:
    url = demo.line("curl -N ").split()[-1]
    async with httpx.AsyncClient() as client, client.stream("GET", url) as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "id: 1"
        status, _ = await _shell(demo.line(".*tunnelctl .*cancel"))
        assert status == 0
        async for _ in lines:
            pass  # to its end, with no error
        await demo.logged("client gone, work stopped after")
        assert (await client.get(url)).status_code == 204


async def test_reload_as_the_operator_would(demo: Demo) -> None:
    command = demo.line(".*tunnelctl .*streams").removesuffix("streams")
    status, text = await _shell(f"{command} reload")
    assert status == 0, text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_cleanly_with_a_stream_open(demo: Demo, number: signal.Signals) -> None:
    socket = Path(re.findall(r"--socket (\S+)", demo.line(".*tunnelctl .*streams"))[0])
    assert socket.is_socket()
    url = demo.line("curl -N ").split()[-1]
    async with httpx.AsyncClient() as client, client.stream("GET", url) as stream:
        lines = stream.aiter_lines()  # held: httpx closes the stream with it
        assert await anext(lines) == "id: 1"
        demo.process.send_signal(number)
        assert await demo.process.wait() == 0
    assert demo.process.stderr is not None
    log = (await demo.process.stderr.read()).decode()
    assert "Traceback" not in log
    assert not socket.parent.exists()


async def test_two_at_once_find_ports(demo: Demo) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tunneld", "demo", cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    try:
        assert process.stdout is not None
        text = b""
        while b"Ctrl-C ends" not in text:
            line = await process.stdout.readline()
            assert line
            text += line
        page = re.findall(r"Open this page:  (\S+)", text.decode())[0]
        assert page != demo.page
        async with httpx.AsyncClient() as client:
            assert (await client.get(page)).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 0
