"""How close an agent is to its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunneld.telemetry.metrics import descriptors, spans
from tunneld.telemetry.usage import Pair, Usage, fullest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneld.agent.daemon import AgentDaemon
    from tunneld.agent.tunnel import AgentTunnel

__all__ = ["agent_usage"]


def agent_usage(daemon: AgentDaemon) -> Iterator[Usage]:
    """Each bound of the configuration that something is counted for."""
    tunnels, budget = daemon.tunnels, daemon.holders.budget
    yield Usage("memory", budget.held, budget.limit)
    yield fullest("tunnel_streams", _streams(tunnels))
    yield fullest("resume_buffer", (one.unacknowledged for one in tunnels), gives_way=True)
    inspectors = [one.proxy.inspector for one in tunnels if one.proxy.inspector is not None]
    yield fullest("inspected", (one.kept for one in inspectors), gives_way=True)
    yield fullest("inspection_readers", ((one.readers, one.config.readers) for one in inspectors))
    yield Usage(*descriptors())
    yield Usage(*spans(daemon.tracer))
    for more in daemon.usage:
        yield from more()


def _streams(tunnels: Sequence[AgentTunnel]) -> Iterator[Pair]:
    """Of the busy ones; of one that is not where none is."""
    busy = [one for one in tunnels if one.proxy.exchanges]
    for one in busy or tunnels[:1]:
        yield len(one.proxy.exchanges), one.config.limits.max_streams
