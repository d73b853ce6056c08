"""What a reload has to do: the difference of two configurations, without doing it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tunneld.config.agent import AgentConfig
from tunneld.config.tunnel import TunnelConfig

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig

__all__ = ["LOG_FORMAT", "Changes", "diff", "until_restart"]

#: Stands among the sections: of `log` it alone waits for a restart.
LOG_FORMAT = "log.format"

_Config = TypeVar("_Config", "AgentConfig", "ServerConfig")


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference of two configurations.

    Attributes:
        sections: names of the top-level keys that differ, `tunnels` never among them; `log.format` is apart from `log`.
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
    if old.log.format != new.log.format:
        same = old.log == new.log.model_copy(update={"format": old.log.format})
        sections = (sections - {"log"} if same else sections) | {LOG_FORMAT}
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


def until_restart(old: _Config, new: _Config, sections: Collection[str]) -> _Config:
    """`new` with what waits for a restart as it was in `old`: `sections`, `log.format` perhaps among them."""
    kept = {name: getattr(old, name) for name in sections if name != LOG_FORMAT}
    if LOG_FORMAT in sections:
        kept["log"] = new.log.model_copy(update={"format": old.log.format})
    return new.model_copy(update=kept)
