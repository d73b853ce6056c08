"""What the server asks of its store. Nothing here says where or how it is kept: several nodes may share one.

Every call may wait; none blocks the loop. A call that returned is kept, whatever happens to the process then.
Each raises VisitorError ``store_failed`` when it cannot be done now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tunneld.server.store.records import AuditEntry, Name, Owner, Permission, Registration, Token

__all__ = [
    "AuditStore",
    "LabelStore",
    "NameStore",
    "OwnerStore",
    "PermissionStore",
    "RegistrationStore",
    "Store",
    "TokenStore",
    "VisitorKeyStore",
]


class TokenStore(Protocol):
    """Credentials."""

    async def tokens(self) -> list[Token]:
        """All of them, the oldest first, those that are gone too."""

    async def add_token(self, token: Token) -> None:
        """Keep a new one."""

    async def revoke_token(self, token_id: str, now: float) -> bool:
        """End one; False when there is none of that id that is not revoked already."""

    async def rotate_token(self, token_id: str, digest: bytes, *, old_until: float) -> bool:
        """Give one another secret, the old one good until then; False as `revoke_token`."""


class OwnerStore(Protocol):
    """Those to whom several tokens, and all that is opened with them, belong together."""

    async def owners(self) -> list[Owner]:
        """All of them, the oldest first, those that were removed too."""

    async def add_owner(self, owner: Owner) -> bool:
        """Keep a new one; False when somebody has that name, or had it."""

    async def remove_owner(self, owner_id: str, now: float) -> bool:
        """End one and their tokens; False when there is none of that id that is not removed already."""


class NameStore(Protocol):
    """Who owns which tunnel's name."""

    async def names(self) -> list[Name]:
        """All that belong to somebody."""

    async def claim_name(self, wanted: Name, *, instead_of: Name | None, most: int) -> Name | None:
        """Give `wanted` to its owner if the name is nobody's, or still exactly `instead_of`.

        Returns:
            The name as it is held now, by whomever; None when its owner has `most` names already.
        """

    async def reserve_name(self, name: Name) -> None:
        """Give a name to somebody, or to nobody, for good."""

    async def release_name(self, name: str) -> bool:
        """Make it free; False when it was."""


class RegistrationStore(Protocol):
    """Clients of the older dialect."""

    async def register(self, wanted: Registration, *, most: int) -> tuple[Registration, bool] | None:
        """Keep what a client says of itself, the key being what it is known by.

        Args:
            wanted: its `id` and `created` are chosen here for a new one.
            most: registrations in all; beyond it the one that is longest unchanged is forgotten.

        Returns:
            It as it is kept, and whether it was known before; None when the key belongs to another owner.
        """

    async def registration(self, registration_id: int) -> Registration | None:
        """One of them."""

    async def registration_of(self, key_digest: bytes) -> Registration | None:
        """The one of a `server_key`, by its hash."""


class PermissionStore(Protocol):
    """Who may visit which tunnel."""

    async def permissions(self) -> list[Permission]:
        """All of them, the oldest first."""

    async def keep_permissions(self, wanted: Sequence[Permission], *, dropped: Sequence[int] = ()) -> list[Permission]:
        """Keep new ones (of id 0) and changed ones, forget those of the ids `dropped`, all or nothing.

        Returns:
            `wanted`, with the ids that the new ones were given.
        """


class VisitorKeyStore(Protocol):
    """Keys that let visitors in to tunnels of the older dialect, as hashes."""

    async def visitor_keys(self) -> dict[tuple[str, str], tuple[bytes, ...]]:
        """(owner, tunnel) -> the tunnel's, the oldest first."""

    async def keep_visitor_keys(self, owner: str, tunnel: str, digests: Sequence[bytes]) -> None:
        """Let these be all of a tunnel's."""


class LabelStore(Protocol):
    """Which label the tunnel of each name of the older dialect has."""

    async def labels(self) -> dict[str, str]:
        """Label -> name, the oldest first."""

    async def keep_label(self, label: str, name: str, now: float, *, most: int) -> str:
        """Give the label to the name, if it is no other's; returns whose it is now.

        Args:
            most: labels in all; beyond it the oldest is forgotten.
        """


class AuditStore(Protocol):
    """Who changed what."""

    async def add_audit(self, entry: AuditEntry, *, most: int) -> None:
        """Keep an entry, and at most `most`: the oldest are forgotten."""

    async def audit(self, *, limit: int, before: int | None = None) -> list[AuditEntry]:
        """The newest first; `before` an id, for the next page."""


class Store(
    TokenStore,
    OwnerStore,
    NameStore,
    RegistrationStore,
    PermissionStore,
    VisitorKeyStore,
    LabelStore,
    AuditStore,
    Protocol,
):
    """Everything."""

    async def open(self) -> None:
        """Make it ready; raises ConfigError with what is wrong and what to do."""

    async def close(self) -> None:
        """Let go of it. Idempotent."""

    def waiting(self) -> tuple[int, int]:
        """Calls that are under way or wait, and how many may."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` on the loop, soon after somebody else than this process changed something."""

    async def backup(self, path: str) -> None:
        """Write a copy of everything, as it is at one moment; raises ConfigError when it cannot."""
