"""Who may visit which tunnel by e-mail address: the permissions that its owner gave, in memory and in the store.

A permission is its tunnel's owner's: should the name go to somebody else, it lets nobody in there. `changed` is called
with a tunnel's name whenever what holds for it changed, by a call, by time or by another process.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import time
from typing import Any, Final, Protocol

from tunneld.errors import VisitorError
from tunneld.server.principals import Principal
from tunneld.server.store.interface import PermissionStore
from tunneld.server.store.records import LEVELS, Permission

__all__ = ["MAX_EMAILS", "Change", "Permissions", "clean_email", "permission_shape"]

log = logging.getLogger("tunneld.access")

MAX_EMAILS: Final = 100
"""Addresses in one call."""
_MAX_NOTES = 1000
_LOOK = 60.0  # seconds at most until the clock is looked at again: it may be set
_LOCAL = re.compile(r"[^\s@\"(),:;<>\[\]\\\x00-\x1f\x7f]{1,64}")
_DOMAIN = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")
_STATES = ("pending", "active", "revoked", "expired")


class Permitted(Protocol):
    """What is asked of a `server.registry.Tunnel`."""

    name: str
    principal: Principal


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be different; None: as it is.

    Attributes:
        expires: seconds since the epoch; 0: never.
        status: ``revoked``; ``active`` or ``pending`` to take that back; ``expired``: from now on.
    """

    level: str | None = None
    expires: float | None = None
    notes: str | None = None
    status: str | None = None


def clean_email(text: str) -> str:
    """The address in the form in which it is kept and compared; raises VisitorError ``bad_argument``."""
    email = text.strip().lower()
    local, _, domain = email.partition("@")
    dots = local[:1] == "." or local[-1:] == "." or ".." in local
    if len(email) > 254 or dots or not _LOCAL.fullmatch(local) or not _DOMAIN.fullmatch(domain):
        raise VisitorError("bad_argument", f"{text[:80]!r} is no e-mail address such as ann@example.org.")
    return email


class Permissions:
    """All permissions of one server.

    Args:
        store: where they are kept.
        most: of one tunnel; ended ones make room for new ones.
        changed: told the name of each tunnel for which another set holds.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: PermissionStore,
        *,
        most: int,
        changed: Callable[[str], None],
        clock: Callable[[], float] = time,
    ) -> None:
        self._store = store
        self._most = most
        self._changed = changed
        self._clock = clock
        #: (owner, tunnel) -> e-mail -> the one
        self._of: dict[tuple[str, str], dict[str, Permission]] = {}
        self._ids: dict[int, Permission] = {}
        self._writing = asyncio.Lock()
        self._unwritten: dict[int, Permission] = {}  # activated, not yet in the store
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0  # until when what ended by itself was told

    def configure(self, *, most: int) -> None:
        """Let another bound hold from now on."""
        self._most = most

    def fullest(self) -> tuple[int, int]:
        """How many hold of the tunnel of which most do, and how many may: those that ended make room."""
        now, best = self._clock(), 0
        for held in self._of.values():
            if len(held) > best:
                best = max(best, sum(one.holds(now) for one in held.values()))
        return best, self._most

    async def refresh(self) -> None:
        """Read them all again."""
        async with self._writing:
            before, self._ids, self._of = self._ids, {}, {}
            for one in await self._store.permissions():
                if (active := self._unwritten.get(one.id)) is not None and one.activated is None:
                    one = replace(one, activated=active.activated, user=active.user)
                self._hold(one)
        both = [before.get(number) for number in before | self._ids if before.get(number) != self._ids.get(number)]
        both += [self._ids.get(number) for number in self._ids if before.get(number) != self._ids[number]]
        self._arm()
        self._tell(one.tunnel for one in both if one is not None)

    async def close(self) -> None:
        """Let go of timer and writer, once what was activated is written. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writer is not None:
            await asyncio.wait([self._writer])

    # -- who may visit -----------------------------------------------------------------------------------

    def standing(self, tunnel: Permitted, email: str) -> Permission | None:
        """What its owner said of that address, whether it holds or not; None: nothing."""
        return self._of.get((tunnel.principal.id, tunnel.name), {}).get(email.lower())

    def permission_of(self, tunnel: Permitted, email: str) -> str | None:
        """The level, one of `LEVELS`, that this address has now; None: it may not visit by a permission."""
        found = self.standing(tunnel, email)
        return found.level if found is not None and found.holds(self._clock()) else None

    def given(self, tunnel: Permitted) -> bool:
        """Whether any was ever given, and kept: then the tunnel is for those alone, also once the last was revoked."""
        return (tunnel.principal.id, tunnel.name) in self._of

    def activated(self, tunnel: Permitted, email: str, address: str, *, user: str | None = None) -> None:
        """That address signed in to the tunnel: a pending permission becomes active. It is written soon after.

        Args:
            address: of the visitor.
            user: who that is, as the sign-in calls them; None: the e-mail address.
        """
        found = self.standing(tunnel, email)
        if found is None or found.activated is not None or not found.holds(self._clock()):
            return
        active = replace(found, activated=self._clock(), user=user or found.email)
        self._hold(active)
        self._unwritten[active.id] = active
        fields = {"tunnel": tunnel.name, "permission": active.id, "client": address}
        log.info("The permission %s of %s is active now", active.id, tunnel.name, extra=fields)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="permissions")

    # -- what owners do ----------------------------------------------------------------------------------

    def all_of(self, owner: str, tunnel: str) -> list[Permission]:
        """Those of one tunnel, the oldest first."""
        return sorted(self._of.get((owner, tunnel), {}).values(), key=lambda one: one.id)

    def get(self, owner: str, number: int) -> Permission:
        """One of an owner's; raises VisitorError ``no_such_permission`` for another's as for none."""
        found = self._ids.get(number)
        if found is None or found.owner != owner:
            raise VisitorError("no_such_permission", f"There is no permission {number}.")
        return found

    async def grant(
        self,
        owner: str,
        tunnel: str,
        emails: Sequence[str],
        change: Change,
        *,
        server_id: int | None = None,
        address: str = "",
    ) -> tuple[list[Permission], int]:
        """Give each address a permission; one that has it already keeps it, with what `change` says otherwise.

        Returns:
            Those of `emails`, and how many of them are new, or hold anew.

        Raises:
            VisitorError: ``bad_argument``, ``too_many_permissions`` or ``store_failed``; nothing has changed then.
        """
        if not 0 < len(emails) <= MAX_EMAILS:
            raise VisitorError("bad_argument", f"Give 1 to {MAX_EMAILS} e-mail addresses.")
        cleaned = list(dict.fromkeys(clean_email(email) for email in emails))
        async with self._writing:
            now = self._clock()
            self._check(change, now)
            present = self._of.get((owner, tunnel), {})
            wanted, added = [], 0
            for email in cleaned:
                known = present.get(email)
                if known is None or not known.holds(now):
                    number = known.id if known else 0
                    known = Permission(number, tunnel, owner, server_id, email, "read_write", now, address)
                    added += 1
                wanted.append(_changed(known, change, now))
            new = sum(1 for one in wanted if not one.id)
            dropped = self._room(present, {one.email for one in wanted}, new, now)
            kept = await self._store.keep_permissions(wanted, dropped=dropped)
            for number in dropped:
                self._forget(number)
            for one in kept:
                self._hold(one)
        self._arm()
        self._tell([tunnel])
        return kept, added

    async def change(self, owner: str, number: int, change: Change) -> Permission:
        """Change one; raises VisitorError ``no_such_permission``, ``bad_argument`` or ``store_failed``."""
        async with self._writing:
            now = self._clock()
            self._check(change, now)
            later = _changed(self.get(owner, number), change, now)
            if change.status in ("active", "pending") and not later.holds(now):
                raise VisitorError("bad_argument", f"Its time is over: {change.status} needs another expires_at.")
            await self._store.keep_permissions([later])
            self._unwritten.pop(number, None)
            self._hold(later)
        self._arm()
        self._tell([later.tunnel])
        return later

    async def revoke(self, owner: str, tunnel: str, email: str) -> Permission:
        """Let that address visit no longer; raises VisitorError ``no_such_permission`` or ``store_failed``."""
        known = self._of.get((owner, tunnel), {}).get(email.strip().lower())
        if known is None:
            raise VisitorError("no_such_permission", f"{email[:80]} has no permission for {tunnel}.")
        return await self.change(owner, known.id, Change(status="revoked"))

    # -- inside ------------------------------------------------------------------------------------------

    def _check(self, change: Change, now: float) -> None:
        if change.level is not None and change.level not in LEVELS:
            raise VisitorError("bad_argument", f"access_level is {', '.join(LEVELS[:-1])} or {LEVELS[-1]}.")
        if change.expires and change.expires <= now:
            raise VisitorError("bad_argument", "expires_at is over already.")
        if change.notes is not None and len(change.notes) > _MAX_NOTES:
            raise VisitorError("bad_argument", f"notes have at most {_MAX_NOTES} characters.")
        if change.status is not None and change.status not in _STATES:
            raise VisitorError("bad_argument", f"status is {', '.join(_STATES[:-1])} or {_STATES[-1]}.")

    def _room(self, present: dict[str, Permission], but: set[str], new: int, now: float) -> list[int]:
        """The ids of ended permissions that make room for new ones, those that ended first."""
        excess = len(present) + new - self._most
        if excess <= 0:
            return []
        over = [one for one in present.values() if not one.holds(now) and one.email not in but]
        over.sort(key=lambda one: one.revoked or one.expires or 0.0)
        if len(over) < excess:
            raise VisitorError("too_many_permissions", f"This tunnel has {len(present)} permissions, the most it may.")
        return [one.id for one in over[:excess]]

    def _hold(self, one: Permission) -> None:
        self._ids[one.id] = one
        self._of.setdefault((one.owner, one.tunnel), {})[one.email] = one

    def _forget(self, number: int) -> None:
        one = self._ids.pop(number)
        self._of[one.owner, one.tunnel].pop(one.email, None)

    async def _write(self) -> None:
        """Keep what was activated; what cannot be kept now is tried again at the next sign-in."""
        try:
            async with self._writing:
                while self._unwritten:
                    some = dict(self._unwritten)
                    await self._store.keep_permissions(list(some.values()))
                    for number, one in some.items():
                        if self._unwritten.get(number) == one:
                            del self._unwritten[number]
        except VisitorError as error:
            log.error("That permissions are active now was not kept yet: %s", error)
        finally:
            self._writer = None

    def _arm(self) -> None:
        """Look again when the next one ends by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        self._looked = now
        ends = (one.expires for one in self._ids.values() if one.revoked is None and one.expires is not None)
        end = min((end for end in ends if end > now), default=None)
        if end is not None:
            self._timer = asyncio.get_running_loop().call_later(min(end - now, _LOOK), self._ended)

    def _ended(self) -> None:
        before = self._looked
        self._arm()
        ends = [one for one in self._ids.values() if one.expires is not None and before < one.expires <= self._looked]
        self._tell(one.tunnel for one in ends)

    def _tell(self, tunnels: Iterable[str]) -> None:
        for tunnel in dict.fromkeys(tunnels):
            self._changed(tunnel)


def permission_shape(one: Permission, now: float) -> dict[str, Any]:
    """A permission as it is told: the dialect's own keys."""
    return {
        "id": one.id,
        "server_id": one.tunnel if one.server_id is None else one.server_id,
        "allowed_email": one.email,
        "user_id": one.user,
        "status": one.status(now),
        "access_level": one.level,
        "granted_at": _iso(one.granted),
        "granted_by_ip": one.address or None,
        "activated_at": _iso(one.activated),
        "revoked_at": _iso(one.revoked),
        "expires_at": _iso(one.expires),
        "notes": one.notes or None,
    }


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _changed(one: Permission, change: Change, now: float) -> Permission:
    later = replace(
        one,
        level=one.level if change.level is None else change.level,
        expires=one.expires if change.expires is None else change.expires or None,
        notes=one.notes if change.notes is None else change.notes,
    )
    if change.status == "revoked":
        return replace(later, revoked=later.revoked or now)
    if change.status == "expired":
        return replace(later, expires=now)
    if change.status == "pending":
        return replace(later, revoked=None, activated=None, user=None)
    if change.status == "active":  # nobody signs in by a word: it is active again if it was, else pending
        return replace(later, revoked=None)
    return later
