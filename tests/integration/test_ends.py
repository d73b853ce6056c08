"""A process that a daemon failed in ends, whatever it left open: its own loop, closed with transports of every kind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import ROOT, clean_environment

_PROGRAM = '''
import asyncio, sys, tempfile
from tunneld.errors import ConfigError
from tunneld.lifecycle import run

kept = []

class Deaf(asyncio.Protocol):
    """Reads once, and no more: what its peer writes waits."""

    def connection_made(self, transport):
        self.transport = transport
        kept.append(self)

    def data_received(self, data):
        self.transport.pause_reading()

async def echo(reader, writer):
    while data := await reader.read(1024):
        writer.write(data)
    writer.close()

async def main():
    loop = asyncio.get_running_loop()
    path = tempfile.mkdtemp(dir=sys.argv[2]) + "/s"
    tcp, unix = await loop.create_server(Deaf, "127.0.0.1", 0), await loop.create_unix_server(Deaf, path)
    for _ in range(3):
        one, _ = await loop.create_connection(Deaf, *tcp.sockets[0].getsockname())
        other, _ = await loop.create_unix_connection(Deaf, path)
        one.write(b"x" * 5_000_000)
        other.write(b"x" * 5_000_000)
    talking = await asyncio.start_server(echo, "127.0.0.1")
    reader, writer = await asyncio.open_connection(*talking.sockets[0].getsockname())
    writer.write(b"x")
    await reader.readexactly(1)
    while len(kept) < 12:  # both ends of each stand
        await asyncio.sleep(0)
    kept.extend([tcp, unix, talking, reader, writer])
    if sys.argv[1] == "fails":
        raise AssertionError("on purpose")
    if sys.argv[1] == "cannot start":
        raise ConfigError(["on purpose"])
    if sys.argv[1] == "leaves its server":
        async with talking:
            raise AssertionError("on purpose")
    return 0

try:
    run(main)
except (AssertionError, ConfigError) as error:
    print("ended by", type(error).__name__)
else:
    print("ended")
'''


_STUCK = """
import sys, time
from tunneld import lifecycle
import asyncio

class Stuck(asyncio.SelectorEventLoop):
    def close(self):
        time.sleep(60)

async def main():
    if sys.argv[1] == "fails":
        raise AssertionError("on purpose")
    return 3

lifecycle.event_loop, lifecycle._CLOSE = Stuck, 0.2
lifecycle.run(main)
"""


@pytest.mark.parametrize(("how", "status"), [("returns", 3), ("fails", 1)])
def test_a_loop_that_does_not_close_holds_nobody_up(how: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STUCK, how],
        env=clean_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.returncode == status
    assert "did not close within 0.2 s" in done.stderr
    assert ("AssertionError: on purpose" in done.stderr) == (how == "fails")


@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("returns", "ended"),
        ("fails", "ended by AssertionError"),
        ("cannot start", "ended by ConfigError"),
        ("leaves its server", "ended by AssertionError"),
    ],
)
def test_a_loop_with_open_transports_is_closed(
    how: str, said: str, debug: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("e")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how, str(folder)],
        env=clean_environment({"PYTHONASYNCIODEBUG": debug}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
