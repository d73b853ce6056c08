"""The store for the event loop: each call runs on one thread, in its turn, so that no disk ever stalls the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from tunneld.errors import VisitorError
from tunneld.server.store.records import AuditEntry, Name, Owner, Permission, Registration, Token
from tunneld.server.store.watching import Watch

if TYPE_CHECKING:
    from tunneld.server.store.database import Database

__all__ = ["SqlStore"]

log = logging.getLogger("tunneld.store")
_T = TypeVar("_T")


class SqlStore:
    """A `Store` in a SQLite file, or in memory.

    One that is in memory costs nothing until something is kept in it: SQLAlchemy is loaded then.

    Args:
        url: ``sqlite:///PATH`` or ``memory:``.
        waiting: calls that may wait for the thread.
    """

    def __init__(self, url: str, *, waiting: int = 1000) -> None:
        self._url = url
        self._most = waiting
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tunneld store")
        self._database: Database | None = None
        self._watch: Watch | None = None
        self._changed: Callable[[], None] | None = None
        self._version = 0
        self._looking = False

    async def open(self) -> None:
        """As `Store`; so are all below."""
        if self._url != "memory:":
            # Here rather than on the thread, whose own heap it would fill: that costs 2 MiB more.
            import tunneld.server.store.database  # noqa: F401

            await self._run(lambda database: None)

    async def close(self) -> None:  # noqa: D102
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._close)
        except RuntimeError:  # closed before
            return
        self._thread.shutdown(wait=False)

    def watch(self, changed: Callable[[], None]) -> None:  # noqa: D102
        self._changed = changed
        if self._database is not None and self._database.path is not None:
            self._watch = Watch(self._database.path, self._written)

    async def backup(self, path: str) -> None:  # noqa: D102
        await self._run(lambda database: database.backup(path))

    # -- tokens ------------------------------------------------------------------------------------------

    async def tokens(self) -> list[Token]:  # noqa: D102
        return [] if self._untouched else await self._run(lambda database: database.tokens())

    async def add_token(self, token: Token) -> None:  # noqa: D102
        await self._run(lambda database: database.add_token(token))

    async def revoke_token(self, token_id: str, now: float) -> bool:  # noqa: D102
        return await self._run(lambda database: database.revoke_token(token_id, now))

    async def rotate_token(self, token_id: str, digest: bytes, *, old_until: float) -> bool:  # noqa: D102
        return await self._run(lambda database: database.rotate_token(token_id, digest, old_until))

    # -- owners ------------------------------------------------------------------------------------------

    async def owners(self) -> list[Owner]:  # noqa: D102
        return [] if self._untouched else await self._run(lambda database: database.owners())

    async def add_owner(self, owner: Owner) -> bool:  # noqa: D102
        return await self._run(lambda database: database.add_owner(owner))

    async def remove_owner(self, owner_id: str, now: float) -> bool:  # noqa: D102
        return await self._run(lambda database: database.remove_owner(owner_id, now))

    # -- names -------------------------------------------------------------------------------------------

    async def names(self) -> list[Name]:  # noqa: D102
        return [] if self._untouched else await self._run(lambda database: database.names())

    async def claim_name(self, wanted: Name, *, instead_of: Name | None, most: int) -> Name | None:  # noqa: D102
        return await self._run(lambda database: database.claim_name(wanted, instead_of, most))

    async def reserve_name(self, name: Name) -> None:  # noqa: D102
        await self._run(lambda database: database.reserve_name(name))

    async def release_name(self, name: str) -> bool:  # noqa: D102
        return await self._run(lambda database: database.release_name(name))

    # -- registrations, labels and audit -----------------------------------------------------------------

    async def register(self, wanted: Registration, *, most: int) -> tuple[Registration, bool] | None:  # noqa: D102
        return await self._run(lambda database: database.register(wanted, most))

    async def registration(self, registration_id: int) -> Registration | None:  # noqa: D102
        return await self._run(lambda database: database.registration(registration_id))

    async def registration_of(self, key_digest: bytes) -> Registration | None:  # noqa: D102
        return None if self._untouched else await self._run(lambda database: database.registration_of(key_digest))

    async def permissions(self) -> list[Permission]:  # noqa: D102
        return [] if self._untouched else await self._run(lambda database: database.permissions())

    async def keep_permissions(  # noqa: D102
        self, wanted: Sequence[Permission], *, dropped: Sequence[int] = ()
    ) -> list[Permission]:
        return await self._run(lambda database: database.keep_permissions(wanted, dropped))

    async def visitor_keys(self) -> dict[tuple[str, str], tuple[bytes, ...]]:  # noqa: D102
        return {} if self._untouched else await self._run(lambda database: database.visitor_keys())

    async def keep_visitor_keys(self, owner: str, tunnel: str, digests: Sequence[bytes]) -> None:  # noqa: D102
        await self._run(lambda database: database.keep_visitor_keys(owner, tunnel, digests))

    async def labels(self) -> dict[str, str]:  # noqa: D102
        return {} if self._untouched else await self._run(lambda database: database.labels())

    async def keep_label(self, label: str, name: str, now: float, *, most: int) -> str:  # noqa: D102
        return await self._run(lambda database: database.keep_label(label, name, now, most))

    async def add_audit(self, entry: AuditEntry, *, most: int) -> None:  # noqa: D102
        await self._run(lambda database: database.add_audit(entry, most))

    async def audit(self, *, limit: int, before: int | None = None) -> list[AuditEntry]:  # noqa: D102
        return await self._run(lambda database: database.audit(limit, before))

    def waiting(self) -> tuple[int, int]:  # noqa: D102
        return self._waiting, self._most

    # -- inside ------------------------------------------------------------------------------------------

    @property
    def _untouched(self) -> bool:
        return self._database is None and self._url == "memory:"

    async def _run(self, call: Callable[[Database], _T]) -> _T:
        if self._waiting >= self._most:
            raise VisitorError("store_failed", f"{self._waiting} calls wait for the store already.", retry_after=5)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, call)
        finally:
            self._waiting -= 1

    def _call(self, call: Callable[[Database], _T]) -> _T:
        """On the thread."""
        if self._database is None:
            from tunneld.server.store.database import Database

            self._database = Database(self._url)
            self._version = self._database.version()
        return call(self._database)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _written(self) -> None:
        """Somebody wrote: whether it was another process is asked on the thread."""
        if not self._looking:
            self._looking = True
            look = asyncio.get_running_loop().run_in_executor(self._thread, self._call, self._is_newer)
            look.add_done_callback(self._looked)

    def _is_newer(self, database: Database) -> bool:
        before, self._version = self._version, database.version()
        return self._version != before

    def _looked(self, done: asyncio.Future[Any]) -> None:
        self._looking = False
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            log.error("The store cannot be looked at: %s", error)
        elif done.result() and self._changed is not None:
            self._changed()
