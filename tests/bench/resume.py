"""What resume costs and how quickly it is done; daemons of their own, behind a relay that cuts. Ours alone has it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench.load import Tally, Visitor, Where, close_streams, open_streams
from tests.bench.measures import MIB, Numbers, Run
from tests.support import usage
from tests.support.daemons import Agent, Pair, Server
from tests.support.faults import FaultyRelay
from tests.support.flooding import KINDS, FloodingService, flooded
from tests.support.processes import Process, python_module
from tests.support.services import SampleService, ToldService
from tests.support.sockets import short_dir

__all__ = ["bounded", "outage", "resume_cost", "resume_gap", "stampede"]

_STAMP = re.compile(rb"data: (\d{9,20}) ")
_LIMITS: dict[str, Any] = {"limits": {"max_streams": 2000}, "log": {"level": "info"}}
_RECONNECT: dict[str, Any] = {"reconnect": {"initial": "500ms", "max": "60s"}}  # as they are by default


class _Behind:
    """A pair of daemons whose tunnel goes through a relay."""

    def __init__(
        self,
        folder: Path,
        service: ToldService,
        relay: FaultyRelay,
        *,
        server: dict[str, Any] | None = None,
        **agent: Any,
    ) -> None:
        self.server = Server(folder, settings={**_LIMITS, **(server or {})})
        relay.target = self.server.port
        url = {"server": {"url": f"ws://127.0.0.1:{relay.port}"}}
        try:
            self.agent = Agent(
                folder, self.server, {"bench": service.url}, settings={**_LIMITS, **_RECONNECT, **url, **agent}
            )
        except BaseException:
            self.server.process.discard()
            raise
        self.where = Where(self.server.port, "/t/bench")

    def memory(self) -> float:
        return sum(usage.resident_bytes(process.pid) for process in (self.agent.process, self.server.process)) / MIB

    def memories(self) -> tuple[int, int]:
        """Resident bytes of the agent and of the server."""
        return usage.resident_bytes(self.agent.process.pid), usage.resident_bytes(self.server.process.pid)

    def discard(self) -> None:
        self.agent.process.discard()
        self.server.process.discard()


class _Stamped(Visitor):
    """A visitor that knows when its newest event was made, and when it came (nanoseconds)."""

    __slots__ = ("came", "made", "rest", "wanted", "when")

    def __init__(self, request: bytes, tally: Tally) -> None:
        super().__init__(request, tally)
        self.made = self.came = 0
        self.rest = b""
        self.wanted: int | None = None
        self.when: asyncio.Future[int] | None = None

    def data_received(self, data: bytes) -> None:
        if not self.first.done():
            super().data_received(data)
            return
        data = self.rest + data
        end = 0
        for found in _STAMP.finditer(data):
            self.made, end = int(found[1]), found.end()
            if self.wanted is not None and self.made >= self.wanted and self.when is not None:
                self.wanted = None
                self.when.set_result(time.monotonic_ns())
        self.rest = data[max(end, len(data) - 32) :]

    def after(self, moment: int) -> asyncio.Future[int]:
        """When the first event came that was made after `moment`."""
        self.wanted = moment
        self.when = asyncio.get_running_loop().create_future()
        return self.when


async def _open(where: Where, count: int) -> list[_Stamped]:
    loop, opened = asyncio.get_running_loop(), []
    for start in range(0, count, 50):
        batch: list[_Stamped] = []
        for number in range(start, min(count, start + 50)):
            request = where.request(f"/paced?id=r{number}")
            _, visitor = await loop.create_connection(lambda r=request: _Stamped(r, Tally()), "127.0.0.1", where.port)
            batch.append(visitor)
        await asyncio.gather(*(visitor.first for visitor in batch))
        opened += batch
    return opened


async def resume_gap(run: Run) -> Numbers:
    """From a cut to the first event at the visitor that was made after it, on loopback, an event every millisecond."""
    with short_dir() as folder:
        async with FaultyRelay(0) as relay:
            it = await asyncio.to_thread(_Behind, folder, run.service, relay)
            try:
                (visitor,) = await _open(it.where, 1)
                await run.pace(1000)
                await asyncio.sleep(0.5)
                gaps = []
                for _ in range(run.plan.commands * 3):
                    await asyncio.sleep(0.6)  # two dials are never closer than `reconnect.initial`
                    cut = time.monotonic_ns()
                    relay.cut()
                    gaps.append((await asyncio.wait_for(visitor.after(cut), 10) - cut) / 1e6)
                await run.pace(0)
                await close_streams([visitor])
            finally:
                it.discard()
    return {"p50_ms": statistics.median(gaps), "max_ms": max(gaps)}


async def resume_cost(run: Run) -> Numbers:
    """CPU an event with and without resume: two pairs of daemons, measured in turns."""
    with ExitStack() as ends:
        lanes = [await _Lane.start(ends, run, grace) for grace in ("60s", "0")]
        used: dict[_Lane, list[float]] = {lane: [] for lane in lanes}
        for turn in range(run.plan.turns):
            for lane in lanes if turn % 2 else lanes[::-1]:
                used[lane].append(await lane.measured(run.plan.seconds / 2))
        for lane in lanes:
            await close_streams(lane.visitors)
    # what else runs on the machine only adds: the best turns of each are nearest to the truth
    on, off = (statistics.mean(sorted(used[lane])[:3]) for lane in lanes)
    return {"on_cpu_us": on, "off_cpu_us": off, "percent": 100 * (on / off - 1)}


class _Lane:
    """One pair of daemons with its own service and its visitors."""

    visitors: list[Visitor]

    def __init__(self, run: Run, service: SampleService, pair: Pair) -> None:
        self._pace = Run(run.target, service, run.plan).pace
        self._rate = run.plan.streams * run.plan.each
        self._pids = [process.pid for process in pair.processes]
        self.tally = Tally()

    @classmethod
    async def start(cls, ends: ExitStack, run: Run, grace: str) -> _Lane:
        settings = {**_LIMITS, "resume": {"grace": grace}}
        folder = ends.enter_context(short_dir())
        service = await asyncio.to_thread(SampleService)
        ends.callback(service.stop)
        pair = await asyncio.to_thread(Pair, folder, {"bench": service.url}, server=settings, agent=settings)
        ends.callback(pair.discard)
        lane = cls(run, service, pair)
        paths = [f"/paced?id=e{n}" for n in range(run.plan.streams)]
        lane.visitors = await open_streams(Where(pair.server.port, "/t/bench"), paths, lane.tally)
        return lane

    async def measured(self, seconds: float) -> float:
        """CPU microseconds an event."""
        await self._pace(self._rate)
        await asyncio.sleep(0.3)  # into a steady state
        events, before = self.tally.events, usage.cpu_seconds(*self._pids)
        self.tally.measuring = True
        await asyncio.sleep(seconds)
        self.tally.measuring = False
        cpu, events = usage.cpu_seconds(*self._pids) - before, self.tally.events - events
        self.tally.latencies_ns.clear()
        await self._pace(0)
        return cpu / max(1, events) * 1e6


async def outage(run: Run) -> Numbers:
    """1,000 streams with an event a second each, no connection for a while, and the time until the last one goes on."""
    streams = 1000
    with short_dir() as folder:
        async with FaultyRelay(0) as relay:
            reconnect = {"reconnect": {"initial": "500ms", "max": "1s"}}
            it = await asyncio.to_thread(_Behind, folder, run.service, relay, **reconnect)
            try:
                visitors = await _open(it.where, streams)
                await run.pace(float(streams))
                await asyncio.sleep(1)
                before = it.memory()
                relay.refuse = True
                relay.cut()
                most = before
                until = time.monotonic() + run.plan.outage
                while time.monotonic() < until:
                    await asyncio.sleep(0.25)
                    most = max(most, it.memory())
                relay.refuse = False
                relay.accepted.clear()
                await asyncio.wait_for(relay.accepted.wait(), 10)
                back = time.monotonic_ns()
                # what was made before the way was back is the proof that the stream goes on: there is some for each
                all_on = [visitor.after(int(back - (run.plan.outage - 1.5) * 1e9)) for visitor in visitors]
                last = max(await asyncio.wait_for(asyncio.gather(*all_on), 30))
                most = max(most, it.memory())
                ended = sum(visitor.lost.done() for visitor in visitors)
                await run.pace(0)
                await close_streams(visitors)
            finally:
                it.discard()
    if ended:
        raise RuntimeError(f"{ended} streams ended")
    return {"all_ms": (last - back) / 1e6, "grown_mib": most - before, "lasted_s": run.plan.outage}


async def bounded(run: Run) -> Numbers:
    """Floods of all kinds that nobody reads, as many as a tunnel has streams by default, and an outage amid them.

    What both hold is bounded by `limits.memory` (64 MiB here), whatever the windows and buffers would allow together:
    some 400 MiB. Resident memory is read, with all that a stream costs besides and what the allocator keeps.
    """
    streams, memory = 1000, {"limits": {"memory": "64MiB", "stall": 0, "max_streams": 2000}, "log": {"level": "info"}}
    service = await asyncio.to_thread(FloodingService)
    try:
        with short_dir() as folder:
            async with FaultyRelay(0) as relay:
                it = await asyncio.to_thread(_Behind, folder, service, relay, server=memory, **memory)
                try:
                    most, before, left = await _bounded(it, relay, streams, run.plan.outage)
                finally:
                    it.discard()
    finally:
        service.stop()
    return {
        "streams": float(streams),
        "left": float(left),
        "agent_mib": (most[0] - before[0]) / MIB,
        "server_mib": (most[1] - before[1]) / MIB,
    }


async def _bounded(
    it: _Behind, relay: FaultyRelay, streams: int, outage: float
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(the most resident bytes of agent and server, those before, streams that are open at the end)."""
    where = it.where
    async with flooded(where.port, where.prefix, len(KINDS)):  # the first of each kind loads what it needs
        await asyncio.to_thread(_seen, it, len(KINDS))
    before = it.memories()
    async with flooded(where.port, where.prefix, streams):
        most = await _watch(it, 20.0, before)
        relay.refuse = True
        relay.cut()
        most = await _watch(it, outage, most)
        relay.refuse = False
        await asyncio.to_thread(it.agent.process.wait_line, '"resumed":true', timeout=120)
        most = await _watch(it, 5.0, most)
        left = len(await asyncio.to_thread(it.agent.streams))
    return await _watch(it, 3.0, most), before, left


def _seen(it: _Behind, count: int) -> None:
    """Wait until the agent has that many streams."""
    it.agent.process.wait_until(lambda: len(it.agent.streams()) >= count, timeout=60, what=f"{count} streams")


async def _watch(it: _Behind, seconds: float, most: tuple[int, int]) -> tuple[int, int]:
    """The largest that agent and server were meanwhile."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(0.1)
        now = it.memories()
        most = max(most[0], now[0]), max(most[1], now[1])
    return most


async def stampede(run: Run) -> Numbers:
    """Agents in one process lose their server to SIGKILL and get it back three seconds later."""
    agents = run.plan.agents
    with short_dir() as folder:
        settings = {"limits": {"max_tunnels": agents + 100}, "log": {"level": "warning"}}
        server = await asyncio.to_thread(Server, folder, settings=settings)
        argv = python_module("tests.bench.herd", "--port", str(server.port), "--agents", str(agents))
        herd = Process(argv, name="herd", keep=True)
        try:
            return await asyncio.to_thread(_stampede, server, herd, agents)
        finally:
            herd.discard()
            server.process.discard()


def _stampede(server: Server, herd: Process, agents: int) -> Numbers:
    herd.wait_line('"online"', timeout=120)
    time.sleep(1)  # what the first arrival left to do is done
    _asked(herd)
    mark = herd.mark()
    herd_cpu = usage.cpu_seconds(herd.pid)
    lost = time.monotonic()
    server.process.kill()
    time.sleep(3)  # the server is away
    server.restart()
    back = time.monotonic()
    herd.wait_line('"online"', after=mark, timeout=180)
    told = _asked(herd)
    if told["states"] != {"online": agents}:
        raise RuntimeError(f"not all are back: {told['states']}")
    return {
        "agents": float(agents),
        "back": float(told["states"].get("online", 0)),
        "peak_dials_s": float(told["peak_per_s"]),
        "closest_s": told["closest_s"] if told["closest_s"] is not None else float("nan"),
        "last_back_s": told["last_back"] - back,
        "since_loss_s": told["last_back"] - lost,
        "server_cpu_s": usage.cpu_seconds(server.process.pid),
        "herd_cpu_s": usage.cpu_seconds(herd.pid) - herd_cpu,
        "server_mib": usage.resident_bytes(server.process.pid) / MIB,
    }


def _asked(herd: Process) -> dict[str, Any]:
    mark = herd.mark()
    herd.signal(signal.SIGUSR1)
    return dict(json.loads(herd.wait_line('"peak_per_s"', after=mark, timeout=20).text))
