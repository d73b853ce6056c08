"""The measurements: each takes a started target and the service behind it and returns named numbers.

CPU is that of both daemons together, visitors and service not counted. Times are in the unit of the key's end.
"""

from __future__ import annotations

import asyncio
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.bench.load import Tally, close_streams, download, get, open_streams, percentile
from tests.bench.targets import Ours, Target
from tests.support import usage
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK

__all__ = ["MEASURES", "Numbers", "Plan", "Run"]

Numbers = dict[str, float]
MIB = 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """How long and how much: the full run, or the quick one."""

    seconds: float = 5.0
    streams: int = 200
    each: float = 20.0
    many: int = 5000
    total_rate: float = 4000.0
    quiet: int = 1000
    bulk: int = 128 * MIB
    cancels: int = 200
    commands: int = 7
    outage: float = 30.0
    far_cuts: int = 12
    far_bulk: int = 384 * MIB
    agents: int = 5000
    turns: int = 11
    rounds: int = 10

    @staticmethod
    def quick() -> Plan:
        """A plan of seconds, for a look while working."""
        return Plan(
            seconds=2.0,
            many=2000,
            bulk=64 * MIB,
            cancels=60,
            quiet=500,
            commands=3,
            outage=5.0,
            far_cuts=4,
            far_bulk=128 * MIB,
            agents=1000,
            turns=7,
            rounds=3,
        )


@dataclass
class Run:
    """One target under measurement."""

    target: Target
    service: SampleService
    plan: Plan

    async def pace(self, rate: float, tick: float = 0.001) -> None:
        """Set the service's rate of events, all streams together; asked directly, not through the tunnel."""
        connection = await asyncio.open_connection(LOOPBACK, self.service.port)
        reader, writer = connection
        writer.write(b"GET /pace?rate=%g&tick=%g HTTP/1.1\r\nHost: x\r\n\r\n" % (rate, tick))
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()


class _Cpu:
    """CPU of the two daemons from here on."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._before = target.cpu_each()

    def per(self, count: float, key: str, factor: float) -> Numbers:
        """What both used for each of `count` units, and each of them; `factor` makes seconds the key's unit."""
        used = {name: now - self._before[name] for name, now in self._target.cpu_each().items()}
        each = {f"{name}_{key}": seconds / max(1, count) * factor for name, seconds in used.items()}
        return {key: sum(each.values()), **each}


async def requests(run: Run) -> Numbers:
    """wrk: 32 connections, keep-alive, answers of 100 bytes."""
    where = run.target.where

    async def wrk(seconds: float) -> str:
        address = f"http://127.0.0.1:{where.port}{where.prefix}/small"
        argv = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", "--latency", "-H", f"Host: {where.host}", address]
        if where.host == "127.0.0.1":
            del argv[5:7]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=True, timeout=60)
        return str(done.stdout)

    await wrk(1)
    cpu = _Cpu(run.target)
    text = await wrk(run.plan.seconds)
    used = cpu.per(int(_found(r"(\d+) requests in", text)), "cpu_us", 1e6)
    wrong = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", text))
    if wrong:
        raise RuntimeError(f"wrk saw {wrong} errors:\n{text}")
    return {
        **used,
        "per_s": float(_found(r"Requests/sec: +([\d.]+)", text)),
        "p50_ms": _wrk_time(_found(r"50% +(\S+)", text)),
        "p99_ms": _wrk_time(_found(r"99% +(\S+)", text)),
    }


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk said:\n{text}")
    return found[1]


def _wrk_time(text: str) -> float:
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)):
        if text.endswith(unit):
            return float(text[: -len(unit)]) * factor
    raise ValueError(text)


async def _events(run: Run, streams: int, rate: float, tick: float = 0.001) -> Numbers:
    """`streams` SSE streams that get `rate` events a second together."""
    tally = Tally()
    visitors = await open_streams(run.target.where, [f"/paced?id=e{n}" for n in range(streams)], tally)
    try:
        await run.pace(rate, tick)
        await asyncio.sleep(1)  # the measured part is a steady state
        cpu, begun = _Cpu(run.target), time.monotonic()
        tally.measuring = True
        await asyncio.sleep(run.plan.seconds)
        tally.measuring = False
        used, lasted = cpu.per(tally.events, "cpu_us", 1e6), time.monotonic() - begun
        await run.pace(0)
    finally:
        await close_streams(visitors)
    latencies = [ns / 1e6 for ns in tally.latencies_ns]
    return {
        **used,
        "per_s": tally.events / lasted,
        "p50_ms": percentile(latencies, 0.50),
        "p99_ms": percentile(latencies, 0.99),
    }


async def events(run: Run) -> Numbers:
    """200 SSE streams of 20 events a second of 120 bytes."""
    return await _events(run, run.plan.streams, run.plan.streams * run.plan.each)


async def bursts(run: Run) -> Numbers:
    """The same events, those of 5 ms at once: what a service on a coarse timer makes."""
    return await _events(run, run.plan.streams, run.plan.streams * run.plan.each, 0.005)


async def scale(run: Run) -> Numbers:
    """An event's price with 5,000 streams over that with 100, at one total rate."""
    few = await _events(run, 100, run.plan.total_rate)
    many = await _events(run, run.plan.many, run.plan.total_rate)
    return {
        "few_cpu_us": few["cpu_us"],
        "many_cpu_us": many["cpu_us"],
        "ratio": many["cpu_us"] / few["cpu_us"],
        "many_p99_ms": many["p99_ms"],
        "many_per_s": many["per_s"],
    }


async def bulk(run: Run) -> Numbers:
    """One download of 128 MiB after a small one."""
    await download(run.target.where, f"/bytes?n={8 * MIB}")
    cpu = _Cpu(run.target)
    got, lasted = await download(run.target.where, f"/bytes?n={run.plan.bulk}")
    used = cpu.per(got / MIB, "cpu_ms_mib", 1e3)
    if got != run.plan.bulk:
        raise RuntimeError(f"{got} bytes came instead of {run.plan.bulk}")
    return {"mib_s": got / MIB / lasted, **used}


async def upload(run: Run) -> Numbers:
    """One upload of 128 MiB by curl, and its time."""
    where, size = run.target.where, run.plan.bulk
    address = f"http://127.0.0.1:{where.port}{where.prefix}/upload"
    fill = ["head", "-c", str(size), "/dev/zero"]
    send = ["curl", "-sS", "-f", "-T", "-", "-H", f"Host: {where.host}", "-H", "Expect:", address]

    def through() -> bytes:
        with subprocess.Popen(fill, stdout=subprocess.PIPE) as source:
            return subprocess.run(send, stdin=source.stdout, capture_output=True, check=True, timeout=120).stdout

    cpu, begun = _Cpu(run.target), time.monotonic()
    told = await asyncio.to_thread(through)
    used, lasted = cpu.per(size / MIB, "cpu_ms_mib", 1e3), time.monotonic() - begun
    if f'"bytes": {size}'.encode() not in told:
        raise RuntimeError(f"the service got something else: {told!r}")
    return {"mib_s": size / MIB / lasted, **used}


async def memory(run: Run) -> Numbers:
    """Resident growth of both daemons by 1,000 quiet SSE streams, each after its first event."""
    await get(run.target.where, "/small")
    await asyncio.sleep(0.5)
    agent, server = (process.family() for process in run.target.daemons().values())
    before = (usage.resident_bytes(*agent), usage.resident_bytes(*server))
    paths = [f"/quiet?id=m{n}" for n in range(run.plan.quiet)]
    visitors = await open_streams(run.target.where, paths, Tally(), at_once=20)
    try:
        await asyncio.sleep(1)
        agent, server = (process.family() for process in run.target.daemons().values())
        after = (usage.resident_bytes(*agent), usage.resident_bytes(*server))
    finally:
        await close_streams(visitors)
    per = [(late - early) / 1024 / run.plan.quiet for early, late in zip(before, after, strict=True)]
    return {"kib": sum(per), "agent_kib": per[0], "server_kib": per[1]}


async def cancel(run: Run) -> Numbers:
    """From a visitor's close to the service's connection closed, while 1,000 other streams get events."""
    tally = Tally()
    others = await open_streams(run.target.where, [f"/paced?id=o{n}" for n in range(run.plan.quiet)], tally)
    taken: list[float] = []
    try:
        await run.pace(float(run.plan.quiet))  # an event a second each
        for n in range(run.plan.cancels):
            name = f"c{n}-{time.monotonic_ns()}"
            (visitor,) = await open_streams(run.target.where, [f"/quiet?id={name}"], tally)
            mark = time.monotonic_ns()
            visitor.transport.close()
            closed = await asyncio.to_thread(run.service.wait_closed, name)
            taken.append((closed - mark) / 1e6)
        await run.pace(0)
    finally:
        await close_streams(others)
    return {"p50_ms": statistics.median(taken), "p99_ms": percentile(taken, 0.99), "max_ms": max(taken)}


async def rest(run: Run) -> Numbers:
    """Resident memory of each daemon, started and idle."""
    await asyncio.sleep(1)
    sizes = {name: usage.resident_bytes(*process.family()) / MIB for name, process in run.target.daemons().items()}
    return {f"{name}_mib": size for name, size in sizes.items()}


async def status(run: Run) -> Numbers:
    """`tunnelctl status`, the whole process; ours alone has it."""
    if not isinstance(run.target, Ours):
        return {}
    agent = run.target.pair.agent
    taken, used = [], []
    for _ in range(run.plan.commands + 1):
        begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = await asyncio.to_thread(agent.tunnelctl, "status")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append((time.monotonic() - begun) * 1e3)
        used.append((after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e3)
        if done.returncode != 0:
            raise RuntimeError(f"tunnelctl status: {done.returncode} {done.stderr}")
    # the first one may have to write byte code
    return {"ms": statistics.median(taken[1:]), "cpu_ms": statistics.median(used[1:])}


MEASURES: dict[str, Callable[[Run], Awaitable[Numbers]]] = {
    "rest": rest,
    "memory": memory,
    "requests": requests,
    "events": events,
    "bursts": bursts,
    "bulk": bulk,
    "upload": upload,
    "cancel": cancel,
    "scale": scale,
    "status": status,
}
"""In the order they run: memory first, on daemons that have done nothing yet."""
