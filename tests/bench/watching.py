"""What it costs to be watched: all that looks at a daemon on, against all of it off.

"All of it" is what an operator can have on one machine at a time, at the rates of everyday use or above them:

- `metrics`: `metrics.listen`, and a scrape of both daemons as OpenMetrics in each turn of 2 s (Prometheus: each 15 s).
- `alerts`: seven rules on each daemon with a webhook that answers, and `service_check` each 5 s (30 s by itself).
- `inspect`: `inspect: true` for the tunnel.
- `audit`: `log.audit` of both daemons, with a change (the log's level) in each turn.
- `dashboard`: the page of both daemons open, which is their live feed.
- `events`: a reader of `GET /v1/events`, as `tunnelctl events` is.
- `top`: `tunnelctl top` on a terminal, which asks each second.

Off is a pair of daemons with none of it and without the server's admin listener. What cannot be turned off is in both:
heartbeats and their statistics, the counters behind the metrics, the log. Traces are an optional extra: by themselves.

Both pairs of daemons run all the while and take turns, so that what the machine does meets both; each figure is the
median over the pairs of turns. A request is one of wrk's over 32 connections, as many as the two cores give. An
event is one of 4,000 a second over 200 streams.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pty
import statistics
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.bench.load import Tally, Where, close_streams, open_streams
from tests.bench.measures import Numbers, Run
from tests.bench.scraping import OPEN, QUIET, scraped
from tests.support import usage
from tests.support.daemons import Pair, merged
from tests.support.otlp import Collector
from tests.support.processes import clean_environment, python_module
from tests.support.receivers import listening
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, certificate, free_port, short_dir

__all__ = ["PARTS", "observed", "observed_otlp", "observed_part"]

PARTS = ("metrics", "alerts", "inspect", "audit", "dashboard", "events", "top")

_RULES = ("tunnel_down", "service_failing", "reconnects", "rtt", "loss", "data_lost", "limit_near")


class _Side:
    """A pair of daemons of its own, with a service of its own.

    Args:
        parts: of `PARTS`, what watches it.
        hook: port of the alerts' receiver.
        collector: of traces.
    """

    def __init__(self, folder: Path, *, parts: Collection[str], hook: int = 0, collector: str | None = None) -> None:
        self.parts = parts
        self.service = SampleService()
        self.metrics = free_port()
        agent, server = dict(QUIET), dict(QUIET)
        tunnel: dict[str, Any] = {"service": f"http://{LOOPBACK}:{self.service.port}", "inspect": "inspect" in parts}
        if {"metrics", "dashboard"} & set(parts):
            agent["metrics"] = {"listen": f"{LOOPBACK}:{self.metrics}"}
        else:
            server["admin"] = False
        if "alerts" in parts:
            rules = [{"when": when, "to": [{"webhook": f"http://{LOOPBACK}:{hook}/"}]} for when in _RULES]
            agent["alerts"] = server["alerts"] = rules
            tunnel["service_check"] = {"path": "/small", "interval": "5s"}
        if "audit" in parts:
            agent["log"] = merged(QUIET["log"], {"audit": str(folder / "agent.audit")})
            server["log"] = merged(QUIET["log"], {"audit": str(folder / "server.audit")})
        if collector is not None:
            agent["telemetry"] = server["telemetry"] = {"otlp": collector}
        try:
            self.pair = Pair(folder, {"bench": tunnel}, tls=certificate(folder), server=server, agent=agent)
        except BaseException:
            self.service.stop()
            raise
        self.where = Where(self.pair.server.port, "/t/bench")
        self.admin = f"http://{LOOPBACK}:{self.pair.server.admin_port}"
        self.reading = f"http://{LOOPBACK}:{self.metrics}"

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

    async def looked_at(self) -> None:
        """What happens once in each turn."""
        if "metrics" in self.parts:
            for address in (self.admin, self.reading):
                await scraped([f"{address}/metrics"], OPEN)
        if "audit" in self.parts:
            way = ["curl", "-sSf", "-o", "/dev/null", "-X", "PUT", "-H", "Content-Type: application/json"]
            way += ["-d", json.dumps({"level": "info"}), "--unix-socket", str(self.pair.agent.socket)]
            way.append("http://localhost/v1/log-level")
            await asyncio.to_thread(subprocess.run, way, check=True)


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
async def _top(side: _Side) -> AsyncIterator[None]:
    """`tunnelctl top`, seen to show the tunnel."""
    shown, seen, loop = bytearray(), asyncio.Event(), asyncio.get_running_loop()
    ours, theirs = pty.openpty()

    def read() -> None:
        shown[:] = (shown + os.read(ours, 65536))[-65536:]
        if b"bench" in shown:
            seen.set()

    argv = python_module("tunnelctl", "--socket", str(side.pair.agent.socket), "top")
    environment = clean_environment({"TERM": "xterm", "COLUMNS": "80", "LINES": "24"})
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    loop.add_reader(ours, read)
    try:
        async with asyncio.timeout(20):
            await seen.wait()
        yield
    finally:
        loop.remove_reader(ours)
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


@asynccontextmanager
async def _watching(side: _Side) -> AsyncIterator[None]:
    """Both dashboards open, a reader of the agent's events, and `tunnelctl top`: those of its parts."""
    readers: list[list[str]] = []
    if "dashboard" in side.parts:
        readers += [[f"{side.admin}/dashboard/feed"], [f"{side.reading}/dashboard/feed"]]
    if "events" in side.parts:
        readers.append(["--unix-socket", str(side.pair.agent.socket), "http://localhost/v1/events"])
    async with AsyncExitStack() as stack:
        if "top" in side.parts:
            await stack.enter_async_context(_top(side))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(_drain(arguments)) for arguments in readers]
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
    looking = asyncio.ensure_future(side.looked_at())
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=True)
    await looking
    count = int(done.stdout.split(" requests in")[0].split()[-1])
    return (side.cpu() - begun) / max(1, count) * 1e6


async def _an_event(side: _Side, seconds: float, *, rate: float, tally: Tally) -> float:
    """CPU of both daemons an event, µs; its streams are open already."""
    await side.pace(rate)
    await asyncio.sleep(0.3)
    begun, tally.events, tally.measuring = side.cpu(), 0, True
    looking = asyncio.ensure_future(side.looked_at())
    await asyncio.sleep(seconds)
    used, tally.measuring = side.cpu() - begun, False
    await looking
    await side.pace(0)
    tally.latencies_ns.clear()
    return used / max(1, tally.events) * 1e6


async def _paired(on: Callable[[], Awaitable[float]], off: Callable[[], Awaitable[float]], turns: int) -> Numbers:
    """The median of each, and what `on` costs over `off`: the median of the pairs, which share what the machine did.

    Beside it the quartiles of the pairs: how far the figure can be believed.
    """
    pairs: list[tuple[float, float]] = []
    for turn in range(turns):
        first, second = (on, off) if turn % 2 else (off, on)
        values = [await first(), await second()]
        pairs.append((values[0], values[1]) if turn % 2 else (values[1], values[0]))
    low, median, high = statistics.quantiles([100 * (one / other - 1) for one, other in pairs], n=4)
    return {
        "on_cpu_us": statistics.median(one for one, _ in pairs),
        "off_cpu_us": statistics.median(other for _, other in pairs),
        "percent": median,
        "low_percent": low,
        "high_percent": high,
    }


async def _costs(run: Run, parts: Collection[str], turns: int) -> Numbers:
    """What `parts` cost a request and an event, by `_paired`."""
    seconds = min(run.plan.seconds, 2.0)
    rate, streams = run.plan.streams * run.plan.each, run.plan.streams
    async with AsyncExitStack() as beside:
        hook = await beside.enter_async_context(listening())
        with ExitStack() as stack:
            on = stack.enter_context(_side(parts=parts, hook=hook.port))
            off = stack.enter_context(_side(parts=()))
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
            await beside.aclose()
    return {
        **{f"request_{key}": value for key, value in a_request.items()},
        **{f"event_{key}": value for key, value in an_event.items()},
    }


async def observed(run: Run) -> Numbers:
    """All of it on against all of it off."""
    return await _costs(run, PARTS, run.plan.turns)


async def observed_part(run: Run, *, part: str) -> Numbers:
    """One of `PARTS` on, against all of it off; ``nothing``: off against off, what such a figure is worth."""
    return await _costs(run, (part,) if part in PARTS else (), 7)


async def observed_otlp(run: Run) -> Numbers:
    """Traces alone: every request recorded by both daemons and sent, or none."""
    seconds = min(run.plan.seconds, 2.0)
    collector = Collector()
    try:
        with ExitStack() as stack:
            on = stack.enter_context(_side(parts=(), collector=collector.url))
            off = stack.enter_context(_side(parts=()))
            await _a_request(on, 1), await _a_request(off, 1)
            found = await _paired(
                functools.partial(_a_request, on, seconds), functools.partial(_a_request, off, seconds), 7
            )
    finally:
        collector.stop()
    return {**{f"request_{key}": value for key, value in found.items()}, "spans": float(len(collector.spans))}
