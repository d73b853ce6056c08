"""`make load`: one server under the load of many: what it costs, what it refuses, and how that grows.

Each scenario runs at a tenth of its size and whole, on a fresh server: tunnels that dial, their streams with an event
a second, and idle streams. CPU and memory are the server's; latency is from an agent to a visitor. Exit 1 when a
goal is missed.

python -m tests.load                        everything, about two minutes
python -m tests.load --only idle --scale 0.2
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.load import Tally, Visitor, Where, percentile
from tests.support import programs, usage
from tests.support.daemons import Agent, Server
from tests.support.processes import Process, python_module
from tests.support.services import SampleService
from tests.support.sockets import short_dir

Numbers = dict[str, float]
KIB, MIB = 1024, 1024 * 1024
_ELSEWHERE = ["nice", "-n", "19"]
_ROUNDS = 5


@dataclass(frozen=True)
class Goal:
    """A number that must not be above a bound."""

    name: str
    most: float
    words: str


GOALS = [
    Goal("events.refused", 0, "visitors refused at 10,000 streams"),
    Goal("events.lost", 0, "events lost"),
    Goal("dials.failures", 0, "dials that failed at 200 a second"),
    Goal("growth.events.cpu_us", 1.15, "CPU an event, whole over a tenth"),
    Goal("growth.events.kib", 1.15, "memory a stream, whole over a tenth"),
    Goal("growth.idle.kib", 1.15, "memory an idle stream, whole over a tenth"),
    Goal("idle.mib", 150, "MiB resident at 15,000 idle streams"),
    Goal("flood.events_less", 20, "per cent that a tunnel's events are fewer beside one that floods"),
    Goal("flood.requests_less", 20, "per cent that its requests are, a hundred a second"),
    Goal("flood.in_turn_less", 20, "per cent that they are, one behind the other as fast as they are answered"),
    Goal("hundred.from_exec_s", 1.0, "seconds from its start until a hundred tunnels of one agent are up"),
    Goal("hundred.agent_kib", 60, "KiB a quiet tunnel in the agent"),
    Goal("hundred.server_kib", 60, "KiB a quiet tunnel in the server"),
]


class Crowd:
    """Visitors of event streams; those that are refused are counted, not raised."""

    def __init__(self, port: int) -> None:
        self.tally = Tally(measuring=False)
        self.visitors: list[Visitor] = []
        self.refused = 0
        self._port = port

    async def come(self, tunnels: int, each: int, *, at_once: int = 50) -> None:
        """Open `each` streams on each tunnel, every one seen to get its first event."""
        wanted = iter([(n, m) for m in range(each) for n in range(tunnels)])
        loop = asyncio.get_running_loop()

        async def some() -> None:
            for tunnel, number in wanted:
                request = Where(self._port, f"/t/a{tunnel}").request(f"/events?n={number}")
                _, visitor = await loop.create_connection(
                    lambda r=request: Visitor(r, self.tally), "127.0.0.1", self._port
                )
                try:
                    await asyncio.wait_for(visitor.first, 30)
                except (RuntimeError, OSError, TimeoutError):
                    self.refused += 1
                else:
                    self.visitors.append(visitor)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(some())

    @property
    def broken(self) -> int:
        """Streams that ended by themselves."""
        return sum(visitor.lost.done() for visitor in self.visitors)

    async def leave(self) -> None:
        """Close them all."""
        for visitor in self.visitors:
            visitor.transport.abort()
        for visitor in self.visitors:
            await visitor.lost


class Stage:
    """A fresh server and its herd of agents."""

    def __init__(self, folder: Any, tunnels: int, *, dials: float, events: float) -> None:
        limits = {"max_tunnels": 5000, "max_streams": 2000}
        self.server = Server(folder, settings={"limits": limits, "log": {"level": "info", "format": "json"}})
        time.sleep(1)  # the measured part begins with a server at rest
        self.at_rest = self.memory
        self._cpu = self._total_cpu()
        argv = ["--port", self.server.port, "--tunnels", tunnels, "--dials", dials, "--events", events]
        self.herd = Process(python_module("tests.load.agents", *map(str, argv)), name="herd")

    @property
    def memory(self) -> int:
        """Resident bytes of the server."""
        return usage.resident_bytes(self.server.process.pid)

    def _total_cpu(self) -> float:
        return usage.cpu_seconds(self.server.process.pid)

    def cpu(self) -> float:
        """Seconds of the server since this was asked last."""
        before, self._cpu = self._cpu, self._total_cpu()
        return self._cpu - before

    async def said(self, key: str, *, after: int = 0) -> Numbers:
        """The herd's line that has this key."""
        line = await asyncio.to_thread(self.herd.wait_line, f'{{"{key}"', timeout=60, after=after)
        return dict(json.loads(line.text))

    async def told(self, number: int) -> Numbers:
        """Send the herd a signal; what it says."""
        mark = self.herd.mark()
        self.herd.signal(number)
        return await self.said("sent", after=mark)

    def close(self) -> None:
        """End both."""
        self.herd.discard()
        self.server.process.stop(60)
        self.server.process.assert_clean()


async def busy(scale: float, seconds: float) -> tuple[Numbers, Numbers]:
    """Tunnels that dial 200 a second, and then ten streams on each with an event a second."""
    tunnels = max(10, int(1000 * scale))
    with short_dir() as folder:
        stage = Stage(folder, tunnels, dials=200 * scale if scale < 1 else 200, events=1.0)
        try:
            up = await stage.said("online")
            await asyncio.sleep(1)
            spent = stage.cpu()
            quiet = stage.memory
            dials = {
                "count": float(tunnels),
                "p50_ms": up["p50_ms"],
                "p99_ms": up["p99_ms"],
                "failures": up["failures"],
                "cpu_ms": spent / tunnels * 1e3,
                "kib": (quiet - stage.at_rest) / KIB / tunnels,
            }
            crowd = Crowd(stage.server.port)
            await crowd.come(tunnels, 10)
            await asyncio.sleep(2)
            held = stage.memory
            crowd.tally.measuring = True
            stage.cpu()
            before, begun = await stage.told(signal.SIGUSR1), time.monotonic()
            await asyncio.sleep(seconds)
            spent, lasted = stage.cpu(), time.monotonic() - begun
            after = await stage.told(signal.SIGUSR1)
            sent = after["sent"] - before["sent"]
            done = await stage.told(signal.SIGUSR2)
            whole = crowd.tally
            for _ in range(100):  # what is under way arrives
                if whole.events >= done["sent"] - before["sent"]:
                    break
                await asyncio.sleep(0.02)
            streams = len(crowd.visitors)
            latencies = [ns / 1e6 for ns in whole.latencies_ns]
            events = {
                "streams": float(streams),
                "per_s": sent / lasted,
                "cpu_us": spent / max(1, sent) * 1e6,
                "cpu_share": spent / lasted * 100,
                "p50_ms": percentile(latencies, 0.5),
                "p99_ms": percentile(latencies, 0.99),
                "refused": float(crowd.refused),
                "broken": float(crowd.broken),
                "lost": max(0.0, done["sent"] - before["sent"] - whole.events),
                "kib": (held - quiet) / KIB / max(1, streams),
                "mib": held / MIB,
            }
            await crowd.leave()
        finally:
            stage.close()
    return dials, events


async def idle(scale: float) -> Numbers:
    """15,000 streams that are open and quiet, on fifteen tunnels."""
    each = int(1000 * scale)
    with short_dir() as folder:
        stage = Stage(folder, 15, dials=200, events=0.0)
        try:
            await stage.said("online")
            before = stage.memory
            stage.cpu()
            crowd = Crowd(stage.server.port)
            await crowd.come(15, each)
            opening = stage.cpu()
            await asyncio.sleep(2)
            held, streams = stage.memory, len(crowd.visitors)
            stage.cpu()
            await asyncio.sleep(3)
            resting = stage.cpu()
            broken = crowd.broken
            await crowd.leave()
        finally:
            stage.close()
    return {
        "streams": float(streams),
        "refused": float(crowd.refused),
        "broken": float(broken),
        "open_cpu_us": opening / max(1, streams) * 1e6,
        "cpu_share": resting / 3 * 100,
        "kib": (held - before) / KIB / max(1, streams),
        "mib": held / MIB,
    }


async def _small(port: int, until: float, rate: float) -> tuple[float, list[float]]:
    """Small requests on one connection: (answers a second, the milliseconds of each).

    Args:
        port: of the server.
        until: monotonic seconds.
        rate: requests a second, each timed from when it was due; 0: one behind the other, as fast as they are answered.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took: list[float] = []
    begun = due = time.monotonic()
    while due < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.write(b"GET /t/a0/small HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        now = time.monotonic()
        took.append((now - due) * 1e3)
        due = due + 1 / rate if rate else now
    writer.close()
    await writer.wait_closed()
    return len(took) / (time.monotonic() - begun), took


async def _round(stage: Stage, crowd: Crowd, flooding: Process, seconds: float) -> Numbers:
    tally = crowd.tally
    before = await _poured(flooding)
    tally.events, tally.latencies_ns, tally.measuring = 0, [], True
    stage.cpu()
    begun = time.monotonic()
    rate, took = await _small(stage.server.port, begun + seconds / 2, 100.0)
    tally.measuring = False
    lasted = time.monotonic() - begun
    events = tally.events / lasted
    in_turn, _ = await _small(stage.server.port, time.monotonic() + seconds / 2, 0)
    lasted = time.monotonic() - begun
    latencies = [ns / 1e6 for ns in tally.latencies_ns]
    return {
        "events_per_s": events,
        "event_p50_ms": percentile(latencies, 0.5),
        "event_p99_ms": percentile(latencies, 0.99),
        "requests_per_s": rate,
        "request_p50_ms": percentile(took, 0.5),
        "request_p99_ms": percentile(took, 0.99),
        "in_turn_per_s": in_turn,
        "cpu_share": stage.cpu() / lasted * 100,
        "flood_mib_s": (await _poured(flooding) - before) / MIB / lasted,
    }


async def _poured(flooding: Process) -> float:
    mark = flooding.mark()
    flooding.signal(signal.SIGUSR1)
    line = await asyncio.to_thread(flooding.wait_line, '{"sent"', timeout=60, after=mark)
    return float(json.loads(line.text)["poured"])


async def flood(seconds: float) -> tuple[Numbers, Numbers]:
    """Two tunnels at their work, alone and while a third takes all it can: four downloads without end.

    The work is paced, 2,000 events and 100 requests a second, and then requests one behind the other. Who floods, agent
    and visitors, runs at the lowest priority: it stands for other machines, and what is judged is the server, whose
    loop all of them share.
    """
    with short_dir() as folder:
        stage = Stage(folder, 2, dials=200, events=10.0)
        argv = ["--port", str(stage.server.port), "--tunnels", "1", "--prefix", "f"]
        flooding = Process([*_ELSEWHERE, *python_module("tests.load.agents", *argv)], name="flooding")
        curls: list[Process] = []
        try:
            await stage.said("online")
            await asyncio.to_thread(flooding.wait_line, '{"online"', timeout=30)
            crowd = Crowd(stage.server.port)
            await crowd.come(2, 100)
            await asyncio.sleep(1)
            url = f"http://127.0.0.1:{stage.server.port}/t/f0/bulk"
            fetch = [*_ELSEWHERE, "curl", "-sS", "-o", "/dev/null", url]
            curls = [Process(fetch, name="curl") for _ in range(4)]
            rounds: list[list[Numbers]] = [[], []]
            for number in range(2 * _ROUNDS):  # by turns: what else this machine does then stands in both
                for curl in curls:
                    curl.signal(signal.SIGCONT if number % 2 else signal.SIGSTOP)
                await asyncio.sleep(0.5)
                rounds[number % 2].append(await _round(stage, crowd, flooding, seconds / _ROUNDS))
            alone, beside = ({key: median(one[key] for one in side) for key in side[0]} for side in rounds)
            await crowd.leave()
        finally:
            for process in (*curls, flooding):
                process.discard()
            stage.close()
    less = {
        f"{what}_less": max(0.0, 1 - beside[f"{what}_per_s"] / alone[f"{what}_per_s"]) * 100
        for what in ("events", "requests", "in_turn")
    }
    return alone, {**beside, **less}


async def hundred() -> Numbers:
    """One agent with a hundred tunnels: how long until all are up, and what each costs at rest, beside one."""
    with short_dir() as folder:
        service = SampleService()
        server = Server(folder, settings={"log": {"level": "info", "format": "json"}})
        sizes: list[tuple[int, int]] = []
        took = whole = 0.0
        try:
            for count in (1, 101):
                names = {f"h{count}-{n}": service.url for n in range(count)}
                agent = Agent(folder, server, names, name=f"agent{count}", settings={"log": {"level": "info"}})
                lines = [line for line in agent.process.lines if "✓ Tunnel established" in line.text]
                up = max(line.at for line in lines)
                whole = up - agent.process.started
                took = up - agent.process.lines[0].at  # its first line: modules are loaded, dialling begins
                await asyncio.sleep(3)
                sizes.append((usage.resident_bytes(agent.process.pid), usage.resident_bytes(server.process.pid)))
                agent.process.stop()
        finally:
            server.process.discard()
            service.stop()
    (agent_one, server_one), (agent_all, server_all) = sizes
    return {
        "up_s": took,
        "from_exec_s": whole,
        "agent_kib": (agent_all - agent_one) / KIB / 100,
        "server_kib": (server_all - server_one) / KIB / 100,
    }


def growth(small: Numbers, whole: Numbers) -> Numbers:
    """Each cost of the whole over that of a tenth."""
    return {key: whole[key] / small[key] for key in ("cpu_us", "cpu_ms", "kib", "p99_ms") if small.get(key, 0) > 0}


async def run(options: argparse.Namespace) -> dict[str, Numbers]:
    found: dict[str, Numbers] = {}

    def keep(name: str, numbers: Numbers) -> None:
        found[name] = numbers
        shown = "  ".join(f"{key} {value:,.2f}".rstrip("0").rstrip(".") for key, value in numbers.items())
        print(f"{name:<14} {shown}", flush=True)

    if "hundred" in options.only:
        keep("hundred", await hundred())
    if "flood" in options.only:
        alone, beside = await flood(options.seconds)
        keep("flood.alone", alone)
        keep("flood", beside)
    if "events" in options.only:
        small = await busy(options.scale / 10, options.seconds)
        keep("dials/10", small[0])
        keep("events/10", small[1])
        whole = await busy(options.scale, options.seconds)
        keep("dials", whole[0])
        keep("events", whole[1])
        keep("growth.dials", growth(small[0], whole[0]))
        keep("growth.events", growth(small[1], whole[1]))
    if "idle" in options.only:
        tenth = await idle(options.scale / 10)
        keep("idle/10", tenth)
        keep("idle", all_of := await idle(options.scale))
        keep("growth.idle", growth(tenth, all_of))
    return found


def judged(found: dict[str, Numbers], say: Callable[[str], object] = print) -> bool:
    """Whether every goal that was measured is met."""
    good = True
    for goal in GOALS:
        name, _, key = goal.name.rpartition(".")
        value = found.get(name, {}).get(key)
        if value is not None:
            met = value <= goal.most
            good = good and met
            say(f"{'ok  ' if met else 'MISS'} {goal.words}: {value:,.2f} (at most {goal.most:g})")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="hundred,flood,events,idle", help="of hundred, flood, events, idle")
    parser.add_argument("--scale", type=float, default=1.0, help="of 1,000 tunnels and 15,000 idle streams")
    parser.add_argument("--seconds", type=float, default=10.0, help="that events are counted for")
    options = parser.parse_args()
    options.only = options.only.split(",")
    programs.raise_limit()
    gc.disable()  # thousands of visitors: a full collection would stand in the latencies
    found = programs.run(run(options))
    return 0 if judged(found) else 1


if __name__ == "__main__":
    sys.exit(main())
