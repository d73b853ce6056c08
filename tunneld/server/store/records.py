"""What the store keeps, as frozen records. Times are seconds since the epoch (UTC); None: never, or not known."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "AGENT",
    "LEVELS",
    "READ",
    "WRITE",
    "AuditEntry",
    "Limits",
    "Name",
    "Owner",
    "Permission",
    "Registration",
    "Token",
]

AGENT, READ, WRITE = "agent", "read", "write"
"""What a token is good for: opening tunnels; the admin API's calls that show; those that change, and show."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A credential's own bounds, over all its tunnels; 0: none beside the server's.

    Attributes:
        streams: under way at a time.
        bytes_per_s: of bodies, both directions together.
        requests_per_s: of visitors.
    """

    streams: int = 0
    bytes_per_s: int = 0
    requests_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Owner:
    """Somebody whose tunnels, names and tokens are theirs together.

    Attributes:
        id: for scripts, and what their names belong to.
        name: for people, and unlike any other's.
        limits: over all their tunnels.
        tunnels: names that they may own; 0: as many as `auth.max_names` lets a token.
        removed: when they were; their tokens are good no longer.
    """

    id: str
    name: str
    created: float
    limits: Limits = Limits()
    tunnels: int = 0
    removed: float | None = None

    def gone_since(self, now: float) -> float | None:
        """When they were removed; None: they were not."""
        return self.removed if self.removed is not None and self.removed <= now else None


@dataclass(frozen=True, slots=True)
class Token:
    """One credential.

    Attributes:
        id: for people and scripts; it stays when the secret is changed.
        name: what its owner calls it.
        tunnels: globs of the names that it opens.
        scopes: of `AGENT`, `READ`, `WRITE`.
        digest: of the secret; None where only a certificate opens it.
        certificate: ``sha256:HEX`` of a client certificate, or ``subject:CN``; None: none.
        old_digest: of the secret before a rotation, good until `old_until`.
        revoked: when it was.
        owner: id of whose it is; None: its own.
    """

    id: str
    name: str
    tunnels: tuple[str, ...]
    created: float
    scopes: tuple[str, ...] = (AGENT,)
    digest: bytes | None = field(default=None, repr=False)
    certificate: str | None = None
    expires: float | None = None
    revoked: float | None = None
    limits: Limits = Limits()
    old_digest: bytes | None = field(default=None, repr=False)
    old_until: float | None = None
    owner: str | None = None

    def gone_since(self, now: float) -> float | None:
        """When it ended; None while it is good."""
        ends = [end for end in (self.revoked, self.expires) if end is not None and end <= now]
        return min(ends, default=None)

    def state(self, now: float) -> str:
        """``live``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "live" if self.expires is None or self.expires > now else "expired"


@dataclass(frozen=True, slots=True)
class Name:
    """A tunnel's name that belongs to somebody.

    Attributes:
        owner: id of the owner, or of a token that is its own; None: nobody may have it.
        reserved: by an operator, so that it never becomes free by itself.
    """

    name: str
    owner: str | None
    since: float
    reserved: bool = False


@dataclass(frozen=True, slots=True)
class Registration:
    """What a client of the older dialect said of itself before it connected.

    Attributes:
        id: a number that the client is told; it stays at a registration again.
        owner: of the credential, or who it is where none is needed.
        key_digest: of the `server_key`, SHA-256.
    """

    id: int
    owner: str
    name: str
    key_digest: bytes = field(repr=False)
    description: str = ""
    connection_url: str = ""
    created: float = 0.0
    updated: float = 0.0


LEVELS = ("read_only", "read_write", "admin")
"""What a permission allows, the least first."""


@dataclass(frozen=True, slots=True)
class Permission:
    """That somebody, known by an e-mail address, may visit one tunnel.

    Attributes:
        id: a number that is never used again; 0 until it is kept.
        tunnel: the tunnel's id.
        owner: of the tunnel, who gave it; it holds while the tunnel is this one's.
        server_id: the registration of the older dialect that it was given for; None: there was none.
        email: in lower case.
        level: one of `LEVELS`.
        address: from which it was given.
        activated: when that address first signed in.
        user: who that was, as the sign-in calls them; None before.
    """

    id: int
    tunnel: str
    owner: str
    server_id: int | None
    email: str
    level: str
    granted: float
    address: str = ""
    activated: float | None = None
    user: str | None = None
    revoked: float | None = None
    expires: float | None = None
    notes: str = ""

    def status(self, now: float) -> str:
        """``pending``, ``active``, ``revoked`` or ``expired``."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "pending" if self.activated is None else "active"

    def holds(self, now: float) -> bool:
        """It lets somebody in."""
        return self.revoked is None and (self.expires is None or self.expires > now)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change that somebody made, or was refused.

    Attributes:
        id: rising; 0 until it is kept.
        actor: who, for people.
        action: a stable word.
        detail: what, a phrase.
        ok: it was done.
    """

    at: float
    actor: str
    action: str
    detail: str
    ok: bool = True
    id: int = 0
