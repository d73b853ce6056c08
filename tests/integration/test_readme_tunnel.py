"""The README's first tunnel, typed as it stands (but for the ports, which may be taken here)."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import httpx

from tunneld.demo.hosting import Hosted
from tunneld.demo.service import create_app

ROOT = Path(__file__).parents[2]


def _commands() -> str:
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"^```sh\n(cat >server\.yaml.*?)^```$", text, re.M | re.S)
    return str(block)


async def test_a_first_tunnel(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        public = probe.getsockname()[1]
    sock = socket.create_server(("127.0.0.1", 0))
    hosted = Hosted(create_app(commands={}, interval=0.01), sock)
    await hosted.start()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    script = _commands().replace("8440", str(public)).replace("9000", str(sock.getsockname()[1]))
    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", script, cwd=tmp_path, stdin=DEVNULL, stderr=PIPE, env={"PATH": os.environ["PATH"]}, process_group=0
    )
    try:
        assert shell.stderr is not None
        while "Tunnel established" not in (line := (await shell.stderr.readline()).decode()):
            assert line, "the programs ended"
        async with httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{public}/t/mine/sse"
            async with client.stream("GET", url) as answer:
                lines = answer.aiter_lines()  # held: httpx closes the stream with it
                assert await anext(lines) == "id: 1"
                tunnelctl = await asyncio.create_subprocess_exec(
                    ".venv/bin/tunnelctl", "--socket", "control.sock", "streams", cwd=tmp_path, stdout=PIPE
                )
                out, _ = await tunnelctl.communicate()
                assert answer.headers["x-tunnel-request-id"][:8] in out.decode()
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        await shell.communicate()
        await hosted.stop()
