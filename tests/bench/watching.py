"""What it costs to be watched: all that looks at a daemon on, against all of it off.

"All of it" is what an operator can have on one machine at a time, at the rates of everyday use or above them:

- `metrics`: `metrics.listen`, and a scrape of both daemons as OpenMetrics each 7.5 s (Prometheus by itself: each
  minute; in the example that it comes with, each 15 s).
- `alerts`: seven rules on each daemon with a webhook that answers, and `service_check` each 5 s (30 s by itself).
- `inspect`: `inspect: true` for the tunnel.
- `audit`: `log.audit` of both daemons, with a change (the log's level) as often as a scrape.
- `dashboard`: the page of both daemons open, which is their live feed.
- `events`: a reader of `GET /v1/events`, as `tunnelctl events` is.
- `top`: `tunnelctl top` on a terminal, which asks each second.

Off is a pair of daemons with none of it and without the server's admin listener. What cannot be turned off is in both:
heartbeats and their statistics, the counters behind the metrics, the log. Traces are an optional extra: by themselves.

Both pairs of daemons run all the while and take turns, so that what the machine does meets both; they are started anew
many times, since two pairs of one program differ for as long as they live, first and second in turns. Daemons have a
core to themselves, and what loads and watches them another: where the scheduler put them made two pairs differ by 4 %
of a request (standard deviation), and so by 2 %. What a request costs more is by all turns together, since in most of
them nobody scrapes, and a median would know nothing of it. But a shared machine has seconds in which all takes half as
much again: turns are short and many, and a pair is left out whole where one of its two is a fifth above what is usual
on its side, which is more than a scrape makes of it. Turns of events are twice as many: they need none of what comes
before a turn of requests, and are further apart (a fifth, where those of requests are a tenth). Beside it stand the
quartiles of the starts, how many pairs were left out, and what one scrape and change cost by themselves, for whoever
does it oftener.
What a reader is told of a request may be made a second later: requests come before each turn too, so that it holds
what was left of those, as what is left of its own falls behind it.
A request is one of 1,500 a second over 32 connections; an event one of 4,000 a second over 200 streams; a request of a
busy machine one of wrk's, as fast as it goes, where the readers (curl, top) need the same cores, with a scrape in the
first of three turns of a second. The goal of all three is the same.
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

from tests.bench.load import Tally, Where, ask_paced, close_streams, open_streams
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

_CORES = sorted(os.sched_getaffinity(0))  # the first is for daemons
_RATE = 1500.0  # requests a second
_TURN = 1.0  # seconds of them
_LEAD = 1.0  # seconds of them before each turn: as long as what happens may wait until it is told of
_ODD = 1.2  # so many times the usual: the machine did something else
_LOOK = 7.5  # seconds of turns between two scrapes
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
        for process in self.pair.processes:
            for pid in process.family():
                _keep_to(pid, _CORES[0])
        self.where = Where(self.pair.server.port, "/t/bench")
        self.admin = f"http://{LOOPBACK}:{self.pair.server.admin_port}"
        self.reading = f"http://{LOOPBACK}:{self.metrics}"
        self.unseen = 0.0  # seconds of turns since the last scrape

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

    async def watched(self, seconds: float) -> None:
        """What happens beside a turn of that length."""
        self.unseen += seconds
        if self.unseen >= _LOOK:
            self.unseen -= _LOOK
            await self.looked_at()

    def due(self) -> None:
        """Let there be a scrape in the next turn."""
        self.unseen = _LOOK

    async def looked_at(self) -> None:
        """One scrape of both, and a change."""
        if "metrics" in self.parts:
            for address in (self.admin, self.reading):
                await scraped([f"{address}/metrics"], OPEN)
        if "audit" in self.parts:
            way = ["curl", "-sSf", "-o", "/dev/null", "-X", "PUT", "-H", "Content-Type: application/json"]
            way += ["-d", json.dumps({"level": "info"}), "--unix-socket", str(self.pair.agent.socket)]
            way.append("http://localhost/v1/log-level")
            await asyncio.to_thread(subprocess.run, way, check=True)


def _keep_to(pid: int, core: int) -> None:
    """Let a process and its threads, and those that they begin, run on that core alone."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def _apart() -> Iterator[None]:
    """Leave the daemons their core."""
    if len(_CORES) > 1:
        os.sched_setaffinity(0, _CORES[1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, _CORES)


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
            await side.looked_at()
            await _settled(side)
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _settled(side: _Side) -> None:
    """Wait until what answers a first look is loaded, which takes most of a second of CPU and is no request's price."""
    for _ in range(60):
        before = side.cpu()
        await asyncio.sleep(0.3)
        if side.cpu() - before < 0.02:
            return
    raise RuntimeError("the daemons are still busy 18 s after their start")


async def _a_request(side: _Side, seconds: float) -> float:
    """CPU of both daemons a request, µs."""
    await ask_paced(side.where, "/small", rate=_RATE, seconds=_LEAD)
    begun = side.cpu()
    looking = asyncio.ensure_future(side.watched(seconds))
    count = await ask_paced(side.where, "/small", rate=_RATE, seconds=seconds)
    await looking
    return (side.cpu() - begun) / count * 1e6


async def _a_busy_request(side: _Side, seconds: float) -> float:
    """The same, as many as go."""
    await _ask_busily(side, _LEAD)
    begun = side.cpu()
    looking = asyncio.ensure_future(side.watched(seconds))
    count = await _ask_busily(side, seconds)
    await looking
    return (side.cpu() - begun) / max(1, count) * 1e6


async def _ask_busily(side: _Side, seconds: float) -> int:
    address = f"http://{LOOPBACK}:{side.where.port}{side.where.prefix}/small"
    argv = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", address]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=True)
    return int(done.stdout.split(" requests in")[0].split()[-1])


async def _an_event(side: _Side, seconds: float, *, rate: float, tally: Tally) -> float:
    """CPU of both daemons an event, µs; its streams are open already."""
    await side.pace(rate)
    await asyncio.sleep(0.3)
    begun, tally.events, tally.measuring = side.cpu(), 0, True
    looking = asyncio.ensure_future(side.watched(seconds))
    await asyncio.sleep(seconds)
    used, tally.measuring = side.cpu() - begun, False
    await looking
    await side.pace(0)
    tally.latencies_ns.clear()
    return used / max(1, tally.events) * 1e6


_Way = Callable[[], Awaitable[float]]
_Pairs = list[tuple[float, float]]


async def _paired(on: _Way, off: _Way, turns: int) -> _Pairs:
    """So many values of each, in turns; the two of a pair share what the machine did."""
    pairs: _Pairs = []
    for turn in range(turns):
        first, second = (on, off) if turn % 2 else (off, on)
        values = [await first(), await second()]
        pairs.append((values[0], values[1]) if turn % 2 else (values[1], values[0]))
    return pairs


def _usual(pairs: _Pairs) -> _Pairs:
    """Without those in which the machine did something else."""
    most = [_ODD * statistics.median(side) for side in zip(*pairs, strict=True)]
    return [pair for pair in pairs if all(value <= bound for value, bound in zip(pair, most, strict=True))]


def _judged(unit: str, starts: list[_Pairs]) -> Numbers:
    """What each costs and what `on` costs over `off`, by all usual turns, and the quartiles of the starts."""
    usual = [_usual(pairs) for pairs in starts]
    means = [[statistics.fmean(values) for values in zip(*pairs, strict=True)] for pairs in usual if pairs]
    low, _, high = statistics.quantiles([100 * (one / other - 1) for one, other in means], n=4)
    on, off = (statistics.fmean(values) for values in zip(*means, strict=True))
    return {
        f"{unit}_on_cpu_us": on,
        f"{unit}_off_cpu_us": off,
        f"{unit}_percent": 100 * (on / off - 1),
        f"{unit}_low_percent": low,
        f"{unit}_high_percent": high,
        f"{unit}_odd_percent": 100 * (1 - sum(map(len, usual)) / sum(map(len, starts))),
    }


async def _a_look(side: _Side) -> float:
    """CPU of one scrape of both daemons and one change, ms."""
    begun = side.cpu()
    await side.looked_at()
    await asyncio.sleep(0.02)
    return (side.cpu() - begun) * 1e3


async def _requests(on: _Side, off: _Side, seconds: float, turns: int, *, busy: bool = False) -> _Pairs:
    ask = _a_busy_request if busy else _a_request
    await ask(on, 1), await ask(off, 1)
    if busy:
        on.due()
    return await _paired(functools.partial(ask, on, seconds), functools.partial(ask, off, seconds), turns)


async def _events(on: _Side, off: _Side, run: Run, seconds: float, turns: int) -> _Pairs:
    rate, streams = run.plan.streams * run.plan.each, run.plan.streams
    ways: list[_Way] = []
    async with AsyncExitStack() as open_ones:
        for side in (on, off):
            tally = Tally()
            visitors = await open_streams(side.where, [f"/paced?id=o{n}" for n in range(streams)], tally)
            open_ones.push_async_callback(close_streams, visitors)
            ways.append(functools.partial(_an_event, side, seconds, rate=rate, tally=tally))
        return await _paired(ways[0], ways[1], turns)


async def _costs(run: Run, parts: Collection[str], rounds: int) -> Numbers:
    """What `parts` cost a request and an event, by daemons that are started so often."""
    turns = max(4, int(2 * min(run.plan.seconds, 2.0) / _TURN))
    requests: list[_Pairs] = []
    busy: list[_Pairs] = []
    events: list[_Pairs] = []
    looks: list[float] = []
    unseen = 0.0
    for start in range(rounds):
        with _apart(), ExitStack() as stack:
            async with listening() as hook:
                made: list[_Side] = []
                for watched in (start % 2 == 0, start % 2 == 1):
                    side = _side(parts=parts, hook=hook.port) if watched else _side(parts=())
                    made.append(stack.enter_context(side))
                on, off = made if start % 2 == 0 else reversed(made)
                async with _watching(on):
                    on.unseen = unseen
                    requests.append(await _requests(on, off, _TURN, turns))
                    events.append(await _events(on, off, run, _TURN, 2 * turns))
                    unseen = on.unseen
                    busy.append(await _requests(on, off, 1.0, 3, busy=True))
                    looks += [await _a_look(on) for _ in range(2)]
    judged = _judged("request", requests) | _judged("event", events) | _judged("busy", busy)
    return judged | {"look_cpu_ms": statistics.median(looks)}


async def observed(run: Run) -> Numbers:
    """All of it on against all of it off."""
    return await _costs(run, PARTS, run.plan.rounds)


async def observed_part(run: Run, *, part: str) -> Numbers:
    """One of `PARTS` on, against all of it off.

    Args:
        part: or ``nothing``: off against off, what such a figure is worth; or ``unfollowed``: all but a reader of
            events, who is told of each stream twice, and whose price is one of what it is told.
    """
    of_all = tuple(one for one in PARTS if one != "events")
    return await _costs(run, {"nothing": (), "unfollowed": of_all}.get(part, (part,)), 4)


async def observed_otlp(run: Run) -> Numbers:
    """Traces alone: every request recorded by both daemons and sent, or none."""
    starts: list[_Pairs] = []
    spans = 0
    for _ in range(run.plan.rounds):
        collector = Collector()
        try:
            with _apart(), ExitStack() as stack:
                on = stack.enter_context(_side(parts=(), collector=collector.url))
                off = stack.enter_context(_side(parts=()))
                starts.append(await _requests(on, off, _TURN, 4))
        finally:
            collector.stop()
        spans += len(collector.spans)
    return {**_judged("request", starts), "spans": float(spans)}
