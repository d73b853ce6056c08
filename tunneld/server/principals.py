"""On whose behalf a tunnel is opened or a call is made. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tunneld.server.store.records import AGENT, READ, WRITE, Limits

__all__ = ["AGENT", "OPEN", "OPEN_OWNER", "READ", "WRITE", "Limits", "Principal"]

#: Whom every name belongs to where nobody needs a credential.
OPEN_OWNER = "open"
_NONE = Limits()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who came, once their credential was found good.

    Attributes:
        id: what owns names and sessions: the owner, or the token where it has none; it stays when the secret changes.
        name: for people.
        tunnels: globs of the names that it opens.
        limits: its own, over all its tunnels.
        scopes: what it is good for.
        token: id of the token that they came with; empty: none.
        owner_name: of that owner; None: a token that is its own.
        quota: the owner's limits, over all their tunnels.
        max_names: that the owner may own; 0: as the server's configuration says.
        expires: seconds of the epoch until which the credential is good; None: for ever.
        limited: `limits` or `quota` bound anything.
        credential: which secret or certificate it came with; it ends with that one.
    """

    id: str
    name: str
    tunnels: tuple[str, ...] = ("*",)
    limits: Limits = field(default_factory=Limits)
    scopes: frozenset[str] = frozenset({AGENT})
    token: str = ""
    owner_name: str | None = None
    quota: Limits = field(default_factory=Limits)
    max_names: int = 0
    credential: bytes = field(default=b"", repr=False)
    expires: float | None = None
    limited: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limited", self.limits != _NONE or self.quota != _NONE)

    @property
    def owned(self) -> bool:
        """They are an owner: what belongs to others is not theirs to see."""
        return self.owner_name is not None

    @property
    def actor(self) -> str:
        """Who they are in the audit."""
        return f"token {self.token} ({self.name})" if self.token else self.name

    def opens(self, name: str) -> bool:
        """Whether it may have a tunnel of that name."""
        return any(fnmatchcase(name, glob) for glob in self.tunnels)

    def most_streams(self, most: int) -> int:
        """What one of their tunnels may carry at a time, where the server allows `most`."""
        return min(own for own in (most, self.limits.streams, self.quota.streams) if own)

    def names(self, name: str) -> bool:
        """Whether an operator wrote that very name for it, not merely a glob that takes it in."""
        return name in self.tunnels


OPEN = Principal(OPEN_OWNER, "anybody")
"""Everybody, where nobody needs a credential."""
