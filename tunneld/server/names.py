"""Who owns a tunnel's name: the first who opens it, for as long as its credential lives and a time of rest after.

The rest keeps a stranger from taking the public address of a service that others still visit. An operator who writes
the very name into a new token says whose it is, and needs not wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from tunneld.errors import VisitorError
from tunneld.server.principals import OPEN_OWNER, Principal
from tunneld.server.store.interface import NameStore
from tunneld.server.store.records import Name, Owner, Token

__all__ = ["NameRegistry", "StoredNames"]


class NameRegistry(Protocol):
    """What is asked of it; where names are kept, and for how many servers, it does not say."""

    def check(self, name: str, principal: Principal, now: float) -> None:
        """Raise VisitorError ``name_taken`` when the name is somebody else's, as far as is known here."""

    def known(self, name: str) -> bool:
        """Whether it belongs to somebody."""

    def owns(self, name: str, principal: Principal) -> bool:
        """Whether it is theirs already, so that nothing is to be claimed."""

    async def claim(self, name: str, principal: Principal, now: float) -> None:
        """Make it theirs; raises VisitorError ``name_taken``, ``too_many_names`` or ``store_failed``."""


class StoredNames:
    """A `NameRegistry` over the store, with all names in memory.

    Where nobody needs a credential nobody owns a name; those that an operator reserved are kept back all the same.

    Args:
        store: where they are kept.
        holder: the owner or the token of an id, None when there is none.
        rest: seconds that a name of a token that is gone stays unused.
        most: names that one token may own.
    """

    def __init__(
        self, store: NameStore, holder: Callable[[str], Token | Owner | None], *, rest: float, most: int
    ) -> None:
        self._store = store
        self._holder = holder
        self._names: dict[str, Name] = {}
        self.configure(rest=rest, most=most)

    def configure(self, *, rest: float, most: int) -> None:
        """Let other bounds hold from now on."""
        self._rest = rest
        self._most = most

    async def refresh(self) -> None:
        """Read them all again."""
        self._names = {name.name: name for name in await self._store.names()}

    def fullest(self, now: float) -> tuple[int, int]:
        """How many names that owner or token has that has most, and how many each may have.

        Those with a quota of their own, theirs to use up, do not count, nor those who are gone: they claim none.

        Args:
            now: seconds since the epoch.
        """
        counts = Counter(one.owner for one in self._names.values() if one.owner is not None)
        return max((count for owner, count in counts.items() if self._shares(owner, now)), default=0), self._most

    def _shares(self, owner: str, now: float) -> bool:
        """Whether the bound of all is that of this owner or token, who may still claim names."""
        holder = self._holder(owner)
        if holder is None or holder.gone_since(now) is not None:
            return False
        return not (isinstance(holder, Owner) and holder.tunnels)

    def all(self) -> list[Name]:
        """Every name that belongs to somebody."""
        return list(self._names.values())

    def check(self, name: str, principal: Principal, now: float) -> None:
        """As `NameRegistry`; so are all below."""
        held = self._names.get(name)
        if held is None or held.owner == principal.id:
            return
        if principal.id == OPEN_OWNER and not held.reserved:  # whoever owned it while tokens were asked for
            return
        if self._is_free(held, principal, now):
            return
        raise self._taken(held)

    def owner(self, name: str) -> str | None:
        """Whose it is; None: nobody's."""
        held = self._names.get(name)
        return held.owner if held is not None else None

    def known(self, name: str) -> bool:  # noqa: D102
        return name in self._names

    def owns(self, name: str, principal: Principal) -> bool:  # noqa: D102
        held = self._names.get(name)
        if principal.id == OPEN_OWNER:
            return held is None or not held.reserved
        return held is not None and held.owner == principal.id

    async def claim(self, name: str, principal: Principal, now: float) -> None:  # noqa: D102
        if self.owns(name, principal):
            return
        wanted, most = Name(name, principal.id, now), principal.max_names or self._most
        while True:
            self.check(name, principal, now)
            kept = await self._store.claim_name(wanted, instead_of=self._names.get(name), most=most)
            if kept is None:
                raise VisitorError("too_many_names", f"{principal.name} owns {most} names, the most it may.")
            self._names[name] = kept
            if kept.owner == principal.id:
                return
            # Somebody changed it meanwhile: judge again by what the store says.

    def served(self, name: str, now: float) -> bool:
        """Whether somebody whose credential is good owns it: their agent will come, or come back."""
        held = self._names.get(name)
        return held is not None and held.owner is not None and self._gone_since(held, now) is None

    async def reserve(self, name: Name) -> None:
        """Keep a name for somebody, or from everybody."""
        await self._store.reserve_name(name)
        self._names[name.name] = name

    async def release(self, name: str) -> bool:
        """Make it free; False when it was."""
        released = await self._store.release_name(name)
        self._names.pop(name, None)
        return released

    def free_from(self, held: Name, now: float) -> float | None:
        """When others may have it; None while its owner's credential lives, or while it is reserved."""
        gone = self._gone_since(held, now)
        return None if gone is None or held.reserved else gone + self._rest

    def _gone_since(self, held: Name, now: float) -> float | None:
        holder = self._holder(held.owner) if held.owner is not None else None
        return holder.gone_since(now) if holder is not None else held.since

    def _is_free(self, held: Name, principal: Principal, now: float) -> bool:
        """Whether somebody else may have it, though it is written down for one."""
        if held.reserved:
            return False
        gone = self._gone_since(held, now)
        return gone is not None and (principal.names(held.name) or gone + self._rest <= now)

    def _taken(self, held: Name) -> VisitorError:
        if held.owner is None:
            return VisitorError("name_taken", f"The name {held.name} is reserved on this server.")
        return VisitorError("name_taken", f"Another owner holds the name {held.name}.")
