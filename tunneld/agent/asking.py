"""Questions to the server over the tunnel that it answers once: who may visit (`Permit`)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from tunneld.errors import CODES, VisitorError
from tunneld.protocol.messages import Permit, Permitted

__all__ = ["Asking"]

PATIENCE = 10.0
"""Seconds that a server has for an answer; one that knows of no permissions gives none."""


class Asking:
    """What one tunnel has asked and was not answered yet."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Permitted]] = {}

    async def ask(self, tell: Callable[[Permit], None], do: str, **fields: Any) -> Permitted:
        """What the server answers.

        Args:
            tell: says it to the server.

        Raises:
            VisitorError: the server's own, or ``tunnel_offline``: no answer came.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Permitted] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            tell(Permit(number, do, **fields))
            async with asyncio.timeout(PATIENCE):
                said = await answer
        except TimeoutError:
            words = f"No answer came within {PATIENCE:.0f} s; a server older than this agent keeps no permissions."
            raise VisitorError("tunnel_offline", words, retry_after=5) from None
        finally:
            del self._waiting[number]
        if said.code:
            raise VisitorError(said.code if said.code in CODES else "tunnel_offline", said.message)
        return said

    def answered(self, said: Permitted) -> None:
        """The server answers; to a question that nobody asks any more it is late."""
        answer = self._waiting.get(said.seq)
        if answer is not None and not answer.done():
            answer.set_result(said)

    def lost(self) -> None:
        """The connection is gone, and with it the answers."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(VisitorError("tunnel_offline", "The connection was lost.", retry_after=5))
