"""Writes the history while the daemon runs, whether somebody looks or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic, time

from tunneld.config.common import DashboardConfig
from tunneld.dashboard.history import PERIOD, History
from tunneld.dashboard.source import Brief, Source
from tunneld.telemetry.usage import Usage

__all__ = ["Sampler", "clock", "dashboard_usage", "remember"]

_AT_ONCE = 25  # tunnels that are looked at before the loop turns


def clock() -> Callable[[], float]:
    """Seconds since the epoch that never go back, whatever is done to the machine's clock."""
    offset = time() - monotonic()
    return lambda: monotonic() + offset


def remember(source: Source, config: DashboardConfig) -> Sampler:
    """What writes a daemon's past, within the bounds of its configuration."""
    return Sampler(source, History(config), now=clock())


def dashboard_usage(sampler: Sampler, config: DashboardConfig) -> Iterator[Usage]:
    """How close a dashboard is to its bounds."""
    yield Usage("dashboard_viewers", sampler.viewers, config.viewers)
    yield Usage("dashboard_tunnels", len(sampler.history), config.tunnels, gives_way=True)
    yield Usage("dashboard_events", len(sampler.history.events), config.events, gives_way=True)


class Sampler:
    """Samples every tunnel of one daemon each `PERIOD`.

    Args:
        source: the daemon.
        history: to write.
        now: seconds since the epoch, never going back.
        period: seconds.
    """

    def __init__(self, source: Source, history: History, *, now: Callable[[], float], period: float = PERIOD) -> None:
        self.history = history
        self.now = now
        self.source = source
        self._period = period
        #: Pages that are open.
        self.viewers = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; on the loop that the daemon lives on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="dashboard: history")

    async def stop(self) -> None:
        """End. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def sample(self, brief: Brief) -> None:
        """Note one tunnel."""
        rtt, loss = self.source.measured(brief.name)
        self.history.sample(
            brief.name,
            self.now(),
            state=brief.state,
            rtt=rtt,
            loss=loss,
            bytes_in=brief.bytes_in,
            bytes_out=brief.bytes_out,
            outages=self.source.outages(brief.name),
        )

    async def _run(self) -> None:
        while True:
            due = (self.now() // self._period + 1) * self._period
            for index, brief in enumerate(self.source.briefs(), 1):
                self.sample(brief)
                if index % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            # To the next whole period: each point of the finest ring gets one sample, and none is passed over. A timer
            # may fire a moment early: the first tunnels would be noted in the point that is over, twice, and the
            # others in the next.
            while (left := due - self.now()) > 0:  # noqa: ASYNC110 - it is for the time alone that is waited
                await asyncio.sleep(left)
