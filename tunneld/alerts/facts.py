"""What rules look at: plain values, gathered by whoever knows them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["OF_PROCESS", "Facts", "Gather", "TunnelFacts"]

OF_PROCESS = ("limit_near", "expiring")
"""Conditions that no tunnel is needed for."""


class TunnelFacts(NamedTuple):
    """One tunnel now.

    Attributes:
        name: of it.
        up: it is connected.
        state: the word for it.
        why: the last error; empty without one.
        service_fault: why its service does not answer; None: it does, or nobody knows.
        reconnects: connections after the first, since the start.
        streams_lost: with their sessions, since the start.
        rtt: seconds, the 95th percentile; None until measured.
        loss: share; None until measured.
    """

    name: str
    up: bool
    state: str
    why: str = ""
    service_fault: str | None = None
    reconnects: int = 0
    streams_lost: int = 0
    rtt: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """The process now.

    Attributes:
        tunnels: each; gone through once, and gathered as that is done where there may be many.
        limits: limit -> share that is used.
        expiries: what ends -> seconds until then, below 0 when it has.
    """

    tunnels: Iterable[TunnelFacts] = ()
    limits: dict[str, float] = field(default_factory=dict)
    expiries: dict[str, float] = field(default_factory=dict)


Gather = Callable[[Collection[str]], Facts]
"""What gathers them, given the conditions that are asked for: no more need be known."""
