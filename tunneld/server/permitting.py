"""What an agent asks of the permissions of its tunnel, over the tunnel itself (`Permit`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import time

from tunneld.errors import VisitorError
from tunneld.protocol.messages import Permit, Permitted
from tunneld.server.permissions import Change, Permissions, permission_shape
from tunneld.server.principals import Principal
from tunneld.server.store.records import Permission

__all__ = ["Permitting"]

log = logging.getLogger("tunneld.access")

_PAGE = 15  # permissions in one message: with notes as long as they may be, less than the smallest largest one


class Permitting:
    """Answers one agent, one question at a time. What it began it ends, also when the connection is over meanwhile.

    Args:
        name: of its tunnel.
        principal: whose that is.
        peer: the agent's address.
        permissions: of the server.
        tell: says the answer.
    """

    def __init__(
        self,
        name: str,
        principal: Principal,
        *,
        peer: str,
        permissions: Permissions,
        tell: Callable[[Permitted], None],
    ) -> None:
        self._name = name
        self._principal = principal
        self._peer = peer
        self._permissions = permissions
        self._tell = tell
        self._task: asyncio.Task[None] | None = None

    def asked(self, said: Permit) -> None:
        """The agent asks."""
        if self._task is not None:
            words = "One question about permissions is being answered already."
            self._tell(Permitted(said.seq, code="rate_limited", message=words))
            return
        self._task = asyncio.get_running_loop().create_task(self._answer(said), name=f"permissions {self._name}")
        self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None

    async def _answer(self, said: Permit) -> None:
        try:
            found, more = await self._do(said)
        except VisitorError as error:
            self._tell(Permitted(said.seq, code=error.code, message=error.detail or str(error)))
            return
        now = time()
        self._tell(Permitted(said.seq, [permission_shape(one, now) for one in found], more))

    async def _do(self, said: Permit) -> tuple[list[Permission], bool]:
        owner, permissions = self._principal.id, self._permissions
        if said.do == "list":
            later = [one for one in permissions.all_of(owner, self._name) if one.id > said.after]
            return later[:_PAGE], len(later) > _PAGE
        if said.do == "grant":
            until = time() + said.expires_s if said.expires_s is not None else None
            change = Change(said.level, until, said.notes)
            kept, _ = await permissions.grant(owner, self._name, said.emails, change, address=self._peer)
        elif said.do == "revoke":
            kept = [await permissions.revoke(owner, self._name, email) for email in said.emails[:_PAGE]]
        else:
            raise VisitorError("bad_argument", f"do: list, grant or revoke, not {said.do[:40]!r}.")
        emails = ", ".join(one.email for one in kept)
        actor = f"token {self._principal.token or self._principal.id} ({self._principal.name})"
        log.info("permission.%s: %s: %s, by %s over its tunnel", said.do, self._name, emails, actor)
        return kept[:_PAGE], False
