"""What it costs to be watched: a scrape with 1,000 tunnels, and all that looks at a daemon on against all of it off."""

from __future__ import annotations

import asyncio
import functools
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.bench.load import Tally, Where, close_streams, open_streams
from tests.bench.measures import Numbers, Run
from tests.support import usage
from tests.support.daemons import Pair
from tests.support.otlp import Collector
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, certificate, free_port, short_dir

__all__ = ["observed", "observed_otlp", "scrape"]

_TUNNELS = 1000
_SCRAPES = 15
_OPEN = "application/openmetrics-text;version=1.0.0"
_QUIET: dict[str, Any] = {"limits": {"max_streams": 2000}, "log": {"level": "info", "format": "json"}}


# -- a scrape ----------------------------------------------------------------------------------------------------------


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


async def _scraped(address: list[str], accept: str) -> tuple[float, int]:
    """One scrape by a process of its own: seconds, and bytes of the text."""
    argv = ["curl", "-sS", "-o", "/dev/null", "-w", "%{time_total} %{size_download} %{http_code}"]
    done = await asyncio.to_thread(
        subprocess.run, [*argv, "-H", f"Accept: {accept}", *address], capture_output=True, text=True, check=True
    )
    took, size, status = done.stdout.split()
    if status != "200":
        raise RuntimeError(f"a scrape was answered {status}")
    return float(took), int(size)


async def scrape(run: Run) -> Numbers:
    """Scrapes of both daemons with 1,000 tunnels, and how long requests through one of them take meanwhile."""
    numbers: Numbers = {}
    with short_dir() as folder:
        tunnels = {f"t{number}": f"http://{LOOPBACK}:{run.service.port}" for number in range(_TUNNELS)}
        pair = await asyncio.to_thread(Pair, folder, tunnels, server=_QUIET, agent=_QUIET)
        try:
            paced = _Paced(Where(pair.server.port, "/t/t0"))
            beside = asyncio.get_running_loop().create_task(paced.run())
            ways = {
                "agent": ["--unix-socket", str(pair.agent.socket), "http://localhost/metrics"],
                "server": [f"http://{LOOPBACK}:{pair.server.admin_port}/metrics"],
            }
            for address in ways.values():
                await _scraped(address, "*/*")  # the application is loaded at the first call
            await asyncio.sleep(2)
            paced.took.clear()
            await asyncio.sleep(3)
            numbers["quiet_max_ms"] = max(paced.took) * 1e3
            for name, address in ways.items():
                for form, accept in (("text", "text/plain"), ("open", _OPEN)):
                    numbers |= await _of_one(f"{name}_{form}", address, accept, paced)
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
        seconds, size = await _scraped(address, accept)
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


# -- all of it on against all of it off --------------------------------------------------------------------------------

_ALERTS: list[dict[str, Any]] = [
    {"when": when}
    for when in ("tunnel_down", "service_failing", "reconnects", "rtt", "loss", "data_lost", "limit_near")
]


class _Side:
    """A pair of daemons of its own, with a service of its own."""

    def __init__(self, folder: Path, *, watched: bool, collector: str | None = None) -> None:
        self.service = SampleService()
        self.metrics = free_port()
        agent: dict[str, Any] = dict(_QUIET)
        server: dict[str, Any] = dict(_QUIET)
        tunnel: dict[str, Any] = {"service": f"http://{LOOPBACK}:{self.service.port}"}
        if watched:
            agent |= {"metrics": {"listen": f"{LOOPBACK}:{self.metrics}"}, "alerts": _ALERTS}
            server |= {"alerts": _ALERTS}
            tunnel["inspect"] = True
        else:
            server |= {"admin": False}
        if collector is not None:
            agent |= {"telemetry": {"otlp": collector}}
            server |= {"telemetry": {"otlp": collector}}
        try:
            self.pair = Pair(folder, {"bench": tunnel}, tls=certificate(folder), server=server, agent=agent)
        except BaseException:
            self.service.stop()
            raise
        self.where = Where(self.pair.server.port, "/t/bench")

    def cpu(self) -> float:
        """Seconds of both daemons."""
        return usage.cpu_seconds(*(pid for process in self.pair.processes for pid in process.family()))

    def stop(self) -> None:
        """End all of it."""
        self.pair.discard()
        self.service.stop()

    async def pace(self, rate: float) -> None:
        """See `Run.pace`."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self.service.port)
        writer.write(b"GET /pace?rate=%g&tick=0.001 HTTP/1.1\r\nHost: x\r\n\r\n" % rate)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()


@contextmanager
def _side(**options: Any) -> Iterator[_Side]:
    with short_dir() as folder:
        made = _Side(folder, **options)
        try:
            yield made
        finally:
            made.stop()


async def _drain(arguments: list[str]) -> None:
    """A reader of a stream without end, in a process of its own, until cancelled."""
    process = await asyncio.create_subprocess_exec("curl", "-sN", "-o", "/dev/null", *arguments)
    try:
        await process.wait()
        raise RuntimeError(f"{arguments[-1]} ended")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _watching(side: _Side) -> AsyncIterator[None]:
    """Each second a scrape of both daemons, both dashboards open, and a reader of the agent's events."""
    admin, reading = f"http://{LOOPBACK}:{side.pair.server.admin_port}", f"http://{LOOPBACK}:{side.metrics}"

    async def scrapes() -> None:
        while True:
            for address in (admin, reading):
                await _scraped([f"{address}/metrics"], _OPEN)
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(scrapes())]
        socket = ["--unix-socket", str(side.pair.agent.socket)]
        for arguments in (
            [f"{admin}/dashboard/feed"],
            [f"{reading}/dashboard/feed"],
            [*socket, "http://localhost/v1/events"],
        ):
            tasks.append(group.create_task(_drain(arguments)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _a_request(side: _Side, seconds: float) -> float:
    """CPU of both daemons a request, µs."""
    address = f"http://{LOOPBACK}:{side.where.port}{side.where.prefix}/small"
    begun = side.cpu()
    argv = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", address]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=True)
    count = int(done.stdout.split(" requests in")[0].split()[-1])
    return (side.cpu() - begun) / max(1, count) * 1e6


async def _an_event(side: _Side, seconds: float, *, rate: float, tally: Tally) -> float:
    """CPU of both daemons an event, µs; its streams are open already."""
    await side.pace(rate)
    await asyncio.sleep(0.3)
    begun, tally.events, tally.measuring = side.cpu(), 0, True
    await asyncio.sleep(seconds)
    used, tally.measuring = side.cpu() - begun, False
    await side.pace(0)
    tally.latencies_ns.clear()
    return used / max(1, tally.events) * 1e6


async def _paired(on: Callable[[], Awaitable[float]], off: Callable[[], Awaitable[float]], turns: int) -> Numbers:
    """The median of each, and what `on` costs over `off`: the median of the pairs, which share what the machine did."""
    pairs: list[tuple[float, float]] = []
    for turn in range(turns):
        first, second = (on, off) if turn % 2 else (off, on)
        values = [await first(), await second()]
        pairs.append((values[0], values[1]) if turn % 2 else (values[1], values[0]))
    return {
        "on_cpu_us": statistics.median(one for one, _ in pairs),
        "off_cpu_us": statistics.median(other for _, other in pairs),
        "percent": 100 * (statistics.median(one / other for one, other in pairs) - 1),
    }


async def observed(run: Run) -> Numbers:
    """Metrics scraped each second, dashboards watched, alerts' rules, inspection and a reader of events, or none."""
    turns, seconds = run.plan.turns, min(run.plan.seconds, 2.0)
    rate, streams = run.plan.streams * run.plan.each, run.plan.streams
    with ExitStack() as stack:
        on = stack.enter_context(_side(watched=True))
        off = stack.enter_context(_side(watched=False))
        async with AsyncExitStack() as beside:
            await beside.enter_async_context(_watching(on))
            await _a_request(on, 1), await _a_request(off, 1)
            a_request = await _paired(
                functools.partial(_a_request, on, seconds), functools.partial(_a_request, off, seconds), turns
            )
            ways = []
            for side in (on, off):
                tally = Tally()
                visitors = await open_streams(side.where, [f"/paced?id=o{n}" for n in range(streams)], tally)
                beside.push_async_callback(close_streams, visitors)
                ways.append(functools.partial(_an_event, side, seconds, rate=rate, tally=tally))
            an_event = await _paired(ways[0], ways[1], turns)
    return {
        **{f"request_{key}": value for key, value in a_request.items()},
        **{f"event_{key}": value for key, value in an_event.items()},
    }


async def observed_otlp(run: Run) -> Numbers:
    """Traces alone: every request recorded by both daemons and sent, or none."""
    seconds = min(run.plan.seconds, 2.0)
    collector = Collector()
    try:
        with ExitStack() as stack:
            on = stack.enter_context(_side(watched=False, collector=collector.url))
            off = stack.enter_context(_side(watched=False))
            await _a_request(on, 1), await _a_request(off, 1)
            found = await _paired(
                functools.partial(_a_request, on, seconds), functools.partial(_a_request, off, seconds), 5
            )
    finally:
        collector.stop()
    return {**{f"request_{key}": value for key, value in found.items()}, "spans": float(len(collector.spans))}
