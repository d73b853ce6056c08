"""Thousands of agents in one process, each an `AgentTunnel` of our own: `python -m tests.bench.herd --port P`.

On stdout, JSON a line: `{"online": N}` whenever all are online, and on SIGUSR1 what they did since the last time:
dials a second at the peak, the most of any one agent, states, when the last one was back.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import signal
import time
from collections import Counter

from tests.support.herds import Well, herded
from tests.support.programs import raise_limit, run, say, until_terminated
from tunneld.agent.state import State
from tunneld.agent.tunnel import AgentTunnel


class Herd:
    """All agents and what they were seen to do."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._count = count
        self._online: set[str] = set()
        self.dials: list[tuple[float, int]] = []
        self.last_back = 0.0
        self.tunnels: list[AgentTunnel] = []

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                tunnel = self._make(number)
                self.tunnels.append(tunnel)
                group.create_task(tunnel.run())
                if number % 50 == 49:  # the first time they come one by one: the storm is for later
                    await asyncio.sleep(0.05)

    def _make(self, number: int) -> AgentTunnel:
        dials = functools.partial(self._dialled, number)
        return herded(f"a{number}", self._port, proxy=Well, dials=dials, changed=self._changed)

    def _dialled(self, number: int) -> None:
        self.dials.append((time.monotonic(), number))

    def _changed(self, tunnel: AgentTunnel, before: State) -> None:
        if tunnel.state == "online":
            self._online.add(tunnel.name)
            self.last_back = time.monotonic()
            if len(self._online) == self._count:
                say(online=self._count, at=self.last_back)
        else:
            self._online.discard(tunnel.name)

    def tell(self) -> None:
        """What happened since the last call."""
        dials, self.dials = self.dials, []
        seconds = Counter(int(at) for at, _ in dials)
        tenths = Counter(int(at * 10) for at, _ in dials)
        closest: dict[int, float] = {}
        gaps: list[float] = []
        for at, number in dials:
            if number in closest:
                gaps.append(at - closest[number])
            closest[number] = at
        say(
            dials=len(dials),
            peak_per_s=max(seconds.values(), default=0),
            peak_per_100ms=max(tenths.values(), default=0),
            closest_s=min(gaps, default=None),
            states=Counter(tunnel.state for tunnel in self.tunnels),
            last_back=self.last_back,
            resumed=sum(tunnel.reconnects for tunnel in self.tunnels),
        )


async def _main(port: int, count: int) -> None:
    herd = Herd(port, count)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, herd.tell)
    await until_terminated(herd.run())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--agents", type=int, default=5000)
    options = parser.parse_args()
    raise_limit()
    run(_main(options.port, options.agents))
