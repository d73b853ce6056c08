"""A scrape of daemons with 1,000 tunnels: how long it takes, and how long it holds up what passes meanwhile."""

from __future__ import annotations

import asyncio
import signal
import statistics
import subprocess
import time
from typing import Any

from tests.bench.load import Where
from tests.bench.measures import Numbers, Run
from tests.bench.stepped import STEPPED, longest
from tests.support.daemons import Agent, Pair, Server
from tests.support.processes import Process
from tests.support.sockets import LOOPBACK, short_dir

__all__ = ["OPEN", "QUIET", "scrape", "scraped"]

_TUNNELS = 1000
_SCRAPES = 15
OPEN = "application/openmetrics-text;version=1.0.0"
QUIET: dict[str, Any] = {"limits": {"max_streams": 2000}, "log": {"level": "info", "format": "json"}}


class _Paced:
    """One request after the other through a tunnel: what holds either loop up delays one."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self.took: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self._where.port)
        try:
            while True:
                begun = time.perf_counter()
                writer.write(self._where.request("/small"))
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length[15:]))
                self.took.append(time.perf_counter() - begun)
                await asyncio.sleep(0.001)
        finally:
            writer.close()


async def scraped(address: list[str], accept: str) -> tuple[float, int]:
    """One scrape by a process of its own: seconds, and bytes of the text."""
    argv = ["curl", "-sS", "-o", "/dev/null", "-w", "%{time_total} %{size_download} %{http_code}"]
    done = await asyncio.to_thread(
        subprocess.run, [*argv, "-H", f"Accept: {accept}", *address], capture_output=True, text=True, check=True
    )
    took, size, status = done.stdout.split()
    if status != "200":
        raise RuntimeError(f"a scrape was answered {status}")
    return float(took), int(size)


class _Server(Server):
    module = "tests.bench.stepped"


class _Agent(Agent):
    module = "tests.bench.stepped"


class _Pair(Pair):
    """Whose loops time their turns when they are told to."""

    server_kind, agent_kind = _Server, _Agent


async def scrape(run: Run) -> Numbers:
    """Scrapes of both daemons with 1,000 tunnels: how long requests through one of them take meanwhile, and the longest
    turn of each loop. Requests wait for other programs too, so those beside a curl of something else are told.
    """
    numbers: Numbers = {}
    with short_dir() as folder:
        tunnels = {f"t{number}": f"http://{LOOPBACK}:{run.service.port}" for number in range(_TUNNELS)}
        pair = await asyncio.to_thread(_Pair, folder, tunnels, server=QUIET, agent=QUIET)
        try:
            paced = _Paced(Where(pair.server.port, "/t/t0"))
            beside = asyncio.get_running_loop().create_task(paced.run())
            ways = {
                "agent": ["--unix-socket", str(pair.agent.socket), "http://localhost/metrics"],
                "server": [f"http://{LOOPBACK}:{pair.server.admin_port}/metrics"],
            }
            for address in ways.values():
                await scraped(address, "*/*")  # the application is loaded at the first call
            await asyncio.sleep(2)
            paced.took.clear()
            await asyncio.sleep(3)
            numbers["quiet_max_ms"] = max(paced.took) * 1e3
            other = await _of_one("other", [f"http://{LOOPBACK}:{run.service.port}/small"], "*/*", paced)
            numbers |= {f"other_stall{which}_ms": other[f"other_stall{which}_ms"] for which in ("", "_max")}
            processes = dict(zip(ways, pair.processes, strict=True))
            for name, address in ways.items():
                for form, accept in (("text", "text/plain"), ("open", OPEN)):
                    numbers |= await _of_one(f"{name}_{form}", address, accept, paced)
                    numbers |= await _steps(f"{name}_{form}", address, accept, processes[name])
            beside.cancel()
        finally:
            pair.discard()
    return numbers


async def _of_one(key: str, address: list[str], accept: str, paced: _Paced) -> Numbers:
    took: list[float] = []
    stalls: list[float] = []
    size = 0
    for _ in range(_SCRAPES):
        paced.took.clear()
        seconds, size = await scraped(address, accept)
        took.append(seconds)
        stalls.append(max(paced.took, default=0.0))
        await asyncio.sleep(0.05)
    return {
        f"{key}_ms": statistics.median(took) * 1e3,
        f"{key}_max_ms": max(took) * 1e3,
        f"{key}_stall_ms": statistics.median(stalls) * 1e3,
        f"{key}_stall_max_ms": max(stalls) * 1e3,
        f"{key}_kib": size / 1024,
    }


async def _steps(key: str, address: list[str], accept: str, process: Process) -> Numbers:
    """The longest turn of the loop in which a scrape is answered, requests beside it."""
    found: list[tuple[float, float]] = []
    for _ in range(_SCRAPES):
        mark = process.mark()
        process.signal(signal.SIGUSR1)
        await scraped(address, accept)
        process.signal(signal.SIGUSR2)
        line = await asyncio.to_thread(process.wait_line, STEPPED, after=mark)
        found.append(longest(line.text))
    walls, cpus = zip(*found, strict=True)
    return {
        f"{key}_step_ms": statistics.median(walls),
        f"{key}_step_max_ms": max(walls),
        f"{key}_step_cpu_ms": max(cpus),
    }
