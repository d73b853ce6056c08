"""The store with what of it is held in memory: credentials, names, and the gate that judges by them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import time

from tunneld.config.server import ServerConfig
from tunneld.errors import ConfigError, VisitorError
from tunneld.server.auth import Gate
from tunneld.server.credentials import Credentials
from tunneld.server.names import StoredNames
from tunneld.server.permissions import Permissions
from tunneld.server.store.interface import Store
from tunneld.server.store.service import SqlStore

__all__ = ["Access"]

log = logging.getLogger("tunneld.auth")

#: Seconds at most until the clock is looked at again for what has expired: the wall clock may be set.
_LOOK = 3600.0
#: Seconds until a store that could not be read is asked again.
_AGAIN = 2.0


class Access:
    """Who may do what on one server.

    Args:
        config: the server's; `configure` changes it, but not the store.
        changed: called after credentials changed or ended: look who is still welcome.
        permitted: called with the name of a tunnel for whose visitors other permissions hold.
        store: None: the one that the configuration names.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        changed: Callable[[], None],
        permitted: Callable[[str], None] = lambda tunnel: None,
        store: Store | None = None,
    ) -> None:
        self.store: Store = store or SqlStore(config.store, waiting=config.limits.store_waiting)
        self.credentials = Credentials()
        self.gate = Gate(config, self.credentials)
        auth = config.auth
        self.names = StoredNames(self.store, self.credentials.holder, rest=auth.name_rest, most=auth.max_names)
        self.permissions = Permissions(self.store, most=config.limits.permissions, changed=permitted)
        #: Why the store could not be read the last time, a sentence; None: it could.
        self.fault: str | None = None
        self._changed = changed
        self._refreshing: asyncio.Task[None] | None = None
        self._stale = False
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Open the store and read it; raises ConfigError."""
        await self.store.open()
        self.store.watch(self._written)
        try:
            await self._read()
        except VisitorError as error:
            await self.store.close()
            raise ConfigError([str(error)]) from None
        self._arm()

    async def stop(self) -> None:
        """Let go of everything. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        await self.permissions.close()
        await self.store.close()

    def configure(self, config: ServerConfig) -> None:
        """Let another configuration hold from now on, and look who is still welcome."""
        self.gate.configure(config)
        self.names.configure(rest=config.auth.name_rest, most=config.auth.max_names)
        self.permissions.configure(most=config.limits.permissions)
        self._changed()

    async def refresh(self) -> None:
        """Hold what the store says now: after a change of our own. Raises VisitorError ``store_failed``."""
        await self._read()
        self._arm()
        self._changed()

    # -- inside ------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        self.credentials.replace(await self.store.tokens(), await self.store.owners())
        await self.names.refresh()
        await self.permissions.refresh()
        self.fault = None

    def _written(self) -> None:
        """Another process changed the store."""
        self._stale = True
        if self._refreshing is None:
            loop = asyncio.get_running_loop()
            self._refreshing = loop.create_task(self._catch_up(), name="credentials")

    async def _catch_up(self) -> None:
        try:
            while self._stale:
                self._stale = False
                await self.refresh()
        except VisitorError as error:
            self.fault = str(error)
            log.error("The credentials that hold now cannot be read; the ones from before stay: %s", error)
            self._stale = True
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(_AGAIN, self._written)
        finally:
            self._refreshing = None

    def _arm(self) -> None:
        """Look again when the next credential ends by itself."""
        if self._timer is not None:
            self._timer.cancel()
        now = time()
        end = self.credentials.next_end(now)
        self._timer = None
        if end is not None:
            self._timer = asyncio.get_running_loop().call_later(min(end - now, _LOOK), self._ended)

    def _ended(self) -> None:
        self._arm()
        self._changed()
