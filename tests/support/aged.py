"""`python -m tests.support.aged server --config FILE`: a daemon that has run for a day, as far as its dashboard knows.

The program is the product's own; before its sampler begins, its history is given a sample every 10 s for each tunnel of
`DAYS`, by its own call, up to this moment. What a day held stands there, for tests to compare.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass

from tunneld.__main__ import main
from tunneld.dashboard.history import PERIOD
from tunneld.dashboard.sampler import Sampler
from tunneld.telemetry.outages import Outages

__all__ = ["DAYS", "Cut", "Day"]

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Cut:
    """A time without a connection.

    Attributes:
        ago: seconds before now at which it began.
        seconds: that it took.
        resumed: the session went on.
    """

    ago: float
    seconds: float
    resumed: bool


@dataclass(frozen=True, slots=True)
class Day:
    """A tunnel's day.

    Attributes:
        known: seconds before now since when it is known.
        cuts: of its connection.
        degraded: (seconds ago, seconds) for which its service failed; None: it did not.
        spike: seconds ago at which one round trip took 900 ms, and 12 % were lost; None: never.
    """

    known: float
    cuts: tuple[Cut, ...] = ()
    degraded: tuple[float, float] | None = None
    spike: float | None = None


DAYS = {
    "app": Day(
        30 * HOUR,
        (
            Cut(20 * HOUR, 40.0, True),
            Cut(9 * HOUR, 2400.0, False),
            Cut(3 * HOUR, 12.0, True),
            Cut(0.5 * HOUR, 8.0, True),
        ),
        degraded=(14 * HOUR, 1800.0),
        spike=5 * HOUR,
    ),
    "notes": Day(4 * HOUR),
    "dead": Day(30 * HOUR, (Cut(29 * HOUR, 60 * HOUR, False),)),
}


def _live(sampler: Sampler, name: str, day: Day) -> None:
    dice = random.Random(name)
    outages, received, sent = Outages(), 0, 0
    last = int(sampler.now() // PERIOD) * PERIOD
    at = last - int(day.known // PERIOD) * PERIOD
    cuts = list(day.cuts)
    while at < last:
        ago = last - at
        cut = next((one for one in cuts if one.ago >= ago > one.ago - one.seconds), None)
        if cut is not None:
            outages.begin(at, at)
        elif outages.since is not None:
            over = next(one for one in reversed(cuts) if one.ago >= ago)
            _ = outages.resumed(at, 4096) if over.resumed else outages.lost(at, 3)
        wave = 1 + math.sin((at % 86400) / 86400 * 2 * math.pi)  # busy once a day
        rtt, loss = 0.03 + 0.02 * wave + dice.random() * 0.01, 0.002 * dice.random()
        if day.spike is not None and 0 <= day.spike - ago < PERIOD:
            rtt, loss = 0.9, 0.12
        if cut is None:
            received += int(2_000 * wave * PERIOD)
            sent += int(200_000 * wave * PERIOD)
        failing = day.degraded is not None and day.degraded[0] >= ago > day.degraded[0] - day.degraded[1]
        state = "online" if cut is None else "resuming" if cut.resumed else "offline"
        sampler.history.sample(
            name,
            at,
            state="degraded" if failing and cut is None else state,
            rtt=None if cut else rtt,
            loss=None if cut else loss,
            bytes_in=received,
            bytes_out=sent,
            outages=outages,
        )
        at += PERIOD


def _aged() -> None:
    begin = Sampler.start

    def start(self: Sampler) -> None:
        for name, day in DAYS.items():
            _live(self, name, day)
        begin(self)

    Sampler.start = start  # type: ignore[method-assign]


if __name__ == "__main__":
    _aged()
    sys.exit(main())
