"""What a reload has to do: the difference of two configurations, without doing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunneld.config.agent import AgentConfig
from tunneld.config.tunnel import TunnelConfig

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig

__all__ = ["Changes", "diff"]


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference of two configurations.

    Attributes:
        sections: names of the top-level keys that differ, `tunnels` never among them.
        added: tunnels to open.
        removed: names of tunnels to close.
        repointed: tunnels, as they are now, whose `service` differs: to close and open.
        retuned: tunnels, as they are now, whose other keys differ, those that they take from the defaults too.
    """

    sections: frozenset[str] = frozenset()
    added: tuple[TunnelConfig, ...] = ()
    removed: tuple[str, ...] = ()
    repointed: tuple[TunnelConfig, ...] = ()
    retuned: tuple[TunnelConfig, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sections or self.added or self.removed or self.repointed or self.retuned)


def diff(old: AgentConfig | ServerConfig, new: AgentConfig | ServerConfig) -> Changes:
    """What changed from `old` to `new`, both of one role. Values count, not how or whether the file writes them."""
    sections = frozenset(
        key for key in type(new).model_fields if key != "tunnels" and getattr(old, key) != getattr(new, key)
    )
    if not isinstance(old, AgentConfig) or not isinstance(new, AgentConfig):
        return Changes(sections)
    before = {tunnel.name: tunnel for tunnel in old.tunnels}
    after = {tunnel.name for tunnel in new.tunnels}
    kept = [(before[tunnel.name], tunnel) for tunnel in new.tunnels if tunnel.name in before]
    return Changes(
        sections,
        added=tuple(tunnel for tunnel in new.tunnels if tunnel.name not in before),
        removed=tuple(name for name in before if name not in after),
        repointed=tuple(now for was, now in kept if was.service != now.service),
        retuned=tuple(now for was, now in kept if was.service == now.service and was != now),
    )
