"""The keys that clients of the older dialect register for their visitors (``register_api_key``), as hashes.

They outlive the connection and the server, so that a tunnel whose client dials again never stands open for the moment
until its key comes. The first key of a connection replaces those of the one before: a key that its client no longer
registers is good no longer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tunneld.errors import VisitorError
from tunneld.protocol.messages import AccessKey, AccessSettings
from tunneld.server.store.interface import VisitorKeyStore
from tunneld.server.visitors.rules import Rules

__all__ = ["MAX_KEYS", "LegacyKeys", "legacy_rules"]

log = logging.getLogger("tunneld.access")

MAX_KEYS: Final = 16
"""Of one tunnel; the newest hold."""
USER: Final = "api-key"
"""What the service is told of who came with one: they have no names."""


def legacy_rules(name: str, keys: tuple[bytes, ...], *, permitted: bool, login: bool) -> Rules:
    """Who may visit a tunnel of the older dialect: everybody, until it has a key or anybody was given a permission.

    Args:
        login: visitors can sign in at this server; where they cannot, a permission lets nobody in.
    """
    if not keys and not permitted:
        return Rules(name, AccessSettings())
    mode = "login" if permitted and login else "key"
    return Rules(name, AccessSettings(mode, keys=[AccessKey(USER, key.hex()) for key in keys]))


class LegacyKeys:
    """All of them, in memory and in the store.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: VisitorKeyStore) -> None:
        self._store = store
        self._keys: dict[tuple[str, str], tuple[bytes, ...]] = {}
        self._unwritten: dict[tuple[str, str], tuple[bytes, ...]] = {}
        self._writer: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Read them all."""
        self._keys = await self._store.visitor_keys()

    def of(self, owner: str, tunnel: str) -> tuple[bytes, ...]:
        """Hashes of the keys that hold, the oldest first."""
        return self._keys.get((owner, tunnel), ())

    def hold(self, owner: str, tunnel: str, keys: tuple[bytes, ...]) -> None:
        """Let these hold from now on; they are written soon after."""
        if self.of(owner, tunnel) == keys:
            return
        self._keys[owner, tunnel] = self._unwritten[owner, tunnel] = keys
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="visitors' keys")

    async def close(self) -> None:
        """Write what is to be written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        try:
            while self._unwritten:
                (owner, tunnel), keys = self._unwritten.popitem()
                await self._store.keep_visitor_keys(owner, tunnel, keys)
        except VisitorError as error:
            log.error("Keys of visitors hold, but were not kept: %s", error)
        finally:
            self._writer = None
