"""`python -m tests.soak`: streams of all kinds through real daemons, a fault every few seconds, every byte counted.

python -m tests.soak                              10 minutes, 300 streams
python -m tests.soak --minutes 2 --seed 7         shorter, and as it was

None of its faults may end a stream: each is held to be whole, in order, once. Exit status 1 when a byte was lost or
doubled, a stream failed, or memory, descriptors or tasks did not return to where they were.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.chaos.test_faults import FAULTS
from tests.chaos.world import SILENCE, World
from tests.support import usage
from tests.support.processes import Process
from tests.support.witness import Seen, Witness, Wrong

MIB = 1024 * 1024
SHARES = {"sse": 0.5, "download": 0.15, "upload": 0.15, "poll": 0.2}
#: The most that may be left when all streams are over: growth by processes, descriptors, tasks.
MEMORY, DESCRIPTORS, TASKS = 24 * MIB, 6, 2


@dataclass
class Ledger:
    """What the ends sent and received."""

    streams: Counter[str] = field(default_factory=Counter)
    events: int = 0
    down: int = 0
    up: int = 0
    left: int = 0
    lost: int = 0
    doubled: int = 0
    failed: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    def enter(self, kind: str, seen: Seen, *, left: bool) -> None:
        """A stream is over; `left`: its visitor went away on purpose."""
        self.events += seen.events
        self.down += seen.got
        self.up += seen.sent
        self.left += left
        if left:
            return
        self.streams[kind] += 1
        if seen.outcome != "whole":
            self.failed.append(f"{kind}: {seen}")

    def line(self) -> str:
        """In one line."""
        each = ", ".join(f"{count} {kind}" for kind, count in sorted(self.streams.items()))
        return (
            f"events {self.events:,}, down {self.down / MIB:,.1f} MiB, up {self.up / MIB:,.1f} MiB; streams: {each}, "
            f"left early {self.left}; lost {self.lost}, doubled {self.doubled}, failed {len(self.failed)}"
        )


class Soak:
    """One run."""

    def __init__(self, world: World, streams: int, seed: int) -> None:
        self.world = world
        self.ledger = Ledger()
        self._streams = streams
        self._dice = random.Random(seed)
        self._names = 0

    async def run(self, seconds: float) -> None:
        """Streams and faults for so long; then until the last stream is over."""
        until = time.monotonic() + seconds
        kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * self._streams))]
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                group.create_task(self._visitor(kind, until))
            group.create_task(self._break_things(until))

    async def _visitor(self, kind: str, until: float) -> None:
        dice = random.Random(self._dice.random())
        await asyncio.sleep(dice.uniform(0, 3))  # they come one by one
        while time.monotonic() < until:
            one = self.world.witness()
            self._names += 1
            work = self._work(one, kind, dice, f"{kind}{self._names}")
            leaver = asyncio.get_running_loop().call_later(dice.uniform(0.2, 5), one.leave) if kind == "sse" else None
            leaves = leaver is not None and dice.random() < 0.1
            if leaver is not None and not leaves:
                leaver.cancel()
            try:
                seen = await asyncio.wait_for(work(), 90)
                self.ledger.enter(kind, seen, left=leaves and seen.outcome != "whole")
            except Wrong as wrong:
                self.ledger.lost += wrong.lost
                self.ledger.doubled += wrong.doubled
                self.ledger.failed.append(str(wrong))
            except TimeoutError:
                self.ledger.failed.append(f"{kind}: not over after 90 s: {one.seen}")
            if leaver is not None:
                leaver.cancel()
            await asyncio.sleep(dice.uniform(0.1, 1))  # a visitor's pause

    def _work(self, one: Witness, kind: str, dice: random.Random, name: str) -> Callable[[], Awaitable[Seen]]:
        if kind == "sse":
            return functools.partial(one.sse, dice.randrange(20, 200), name=name, gap=dice.uniform(0.05, 0.2))
        if kind == "download":
            size = dice.randrange(1, 2 * MIB)
            return functools.partial(one.download, size, chunked=dice.random() < 0.5)
        if kind == "upload":
            size = dice.randrange(1, 2 * MIB)
            return functools.partial(one.upload, size, seed=size, pause=dice.choice((0, 0.01)))
        return functools.partial(one.poll, dice.uniform(0.1, 8), name=name)

    async def _break_things(self, until: float) -> None:
        faults = {**FAULTS, "agent_naps": self._nap("agent"), "server_naps": self._nap("server")}
        while time.monotonic() < until:
            await asyncio.sleep(self._dice.uniform(1, 4))  # between two faults
            name = self._dice.choice(sorted(faults))
            self.ledger.faults[name] += 1
            try:
                await self.world.up()
                await faults[name](self.world)
            except AssertionError as fault:
                self.ledger.failed.append(f"{name}: {str(fault).splitlines()[0]}")
            print(f"{time.strftime('%H:%M:%S')} {name:12} {self.ledger.line()}", flush=True)

    def _nap(self, who: str) -> Callable[[World], Awaitable[None]]:
        async def nap(world: World) -> None:
            process = getattr(world, who).process
            process.pause()
            try:
                await asyncio.sleep(self._dice.choice((SILENCE / 2, 2 * SILENCE)))
            finally:
                process.resume()

        return nap


@dataclass(frozen=True)
class Use:
    """What one daemon holds while nothing is under way."""

    memory: int
    descriptors: int
    tasks: int


async def use(process: Process) -> Use:
    """Ask the kernel, and the daemon itself for its tasks."""
    mark = process.mark()
    process.signal(signal.SIGUSR2)
    told = await asyncio.to_thread(process.wait_line, '"tasks"', after=mark)
    return Use(usage.resident_bytes(process.pid), usage.descriptors(process.pid), json.loads(told.text)["tasks"])


async def calm(world: World) -> None:
    """Until no stream and no idle connection to the service is left."""

    async def wait() -> None:
        while await asyncio.to_thread(world.agent.streams) or world.service.opened.keys() - world.service.closed.keys():
            await asyncio.sleep(0.2)

    await asyncio.wait_for(wait(), 60)
    await asyncio.sleep(2)  # what closes after its last use, closes


def drift(before: dict[str, Use], after: dict[str, Use]) -> list[str]:
    """Prints what grew; what grew too much."""
    faults = []
    for name, then in before.items():
        now = after[name]
        grown = (now.memory - then.memory, now.descriptors - then.descriptors, now.tasks - then.tasks)
        print(
            f"{name:6} memory {then.memory / MIB:.1f} -> {now.memory / MIB:.1f} MiB, descriptors {then.descriptors} -> "
            f"{now.descriptors}, tasks {then.tasks} -> {now.tasks}"
        )
        if any(more > bound for more, bound in zip(grown, (MEMORY, DESCRIPTORS, TASKS), strict=True)):
            faults.append(f"{name} does not return to where it was")
    return faults


async def soak(minutes: float, streams: int, seed: int) -> int:
    """The whole run; the exit status."""
    # A dial that fell into a hole is given up after 10 s: visitors who come meanwhile are held for longer than that.
    more = {"server": {"limits": {"hold": "30s"}}, "resume": {"grace": "45s", "buffer": "1MiB"}}
    async with World(seed, module="tests.support.counted", **more) as world:
        run = Soak(world, streams, seed)
        warm = min(30.0, minutes * 12)
        print(f"seed {seed}: {streams} streams, {minutes:g} minutes, the first {warm:.0f} s of them to warm up")
        processes = {"agent": world.agent.process, "server": world.server.process}
        await run.run(warm)
        await calm(world)
        before = {name: await use(process) for name, process in processes.items()}
        await run.run(minutes * 60 - warm)
        await calm(world)
        after = {name: await use(process) for name, process in processes.items()}
        outages = [json.loads(line.text) for line in world.agent.process.matching('"resumed":true')]
    ledger = run.ledger
    faults = drift(before, after)
    longest = max((one["outage_s"] for one in outages), default=0.0)
    replayed = sum(one["replayed_bytes"] for one in outages)
    print(f"faults: {', '.join(f'{count} {name}' for name, count in sorted(ledger.faults.items()))}")
    print(f"outages {len(outages)}, the longest {longest:.2f} s, replayed {replayed / MIB:.1f} MiB by the agent")
    print(ledger.line())
    for one in [*ledger.failed[:20], *faults]:
        print(f"FAILED {one}")
    bad = bool(ledger.failed or faults or ledger.lost or ledger.doubled)
    print(f"{'FAILED' if bad else 'passed'}: replay it with --seed {seed}")
    return int(bad)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 24))
    options = parser.parse_args()
    return asyncio.run(soak(options.minutes, options.streams, options.seed))


if __name__ == "__main__":
    sys.exit(main())
