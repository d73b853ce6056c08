"""Passwords against their bcrypt hashes: off the loop, few at a time, and those that were good remembered."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from hashlib import blake2b

from tunneld.errors import VisitorError
from tunneld.server.visitors.rules import Claim
from tunneld.wire.threads import Threads

__all__ = ["Passwords"]

_AT_A_TIME = 2
#: Bytes that bcrypt looks at; more are refused by newer libraries and were ignored by all before.
_MOST = 72


class Passwords:
    """All passwords of one server.

    Args:
        remembered: that were found good, as keyed hashes; the one unused for longest is forgotten.
        waiting: checks that may wait for their turn.
    """

    def __init__(self, *, remembered: int, waiting: int) -> None:
        self._remembered = remembered
        self._most = waiting
        self._secret = os.urandom(32)
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._pending = 0
        self._pool: Threads | None = None

    def configure(self, *, remembered: int, waiting: int) -> None:
        """Let other bounds hold from now on."""
        self._remembered, self._most = remembered, waiting
        while len(self._good) > remembered:
            self._good.popitem(last=False)

    def __len__(self) -> int:
        return len(self._good)

    def checks(self) -> tuple[int, int]:
        """How many are under way or wait, and how many may."""
        return self._pending, self._most

    def kept(self) -> tuple[int, int]:
        """How many are remembered, and how many may be."""
        return len(self._good), self._remembered

    def known(self, claim: Claim) -> bool:
        """Whether this very password was found good against this very hash."""
        key = self._key(claim)
        if key not in self._good:
            return False
        self._good.move_to_end(key)
        return True

    def check(self, claim: Claim, done: Callable[[bool], None]) -> None:
        """Compare, and call `done` from another thread.

        Raises:
            VisitorError: ``too_many_checks``.
        """
        if self._pending >= self._most:
            raise VisitorError("too_many_checks", retry_after=1)
        if self._pool is None:
            self._pool = Threads(_AT_A_TIME, "passwords")
        self._pending += 1

        def over(future: Future[bool]) -> None:
            if not future.cancelled():
                done(future.result())

        self._pool.submit(_fits, claim).add_done_callback(over)

    def settled(self, claim: Claim, *, good: bool) -> None:
        """A check is over (on the loop): remember what was good."""
        self._pending -= 1
        if good:
            self._good[self._key(claim)] = None
            if len(self._good) > self._remembered:
                self._good.popitem(last=False)

    def close(self) -> None:
        """Let go of the threads; what waits is not answered."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _key(self, claim: Claim) -> bytes:
        said = b"\0".join((claim.user.encode(), claim.hash.encode(), claim.password))
        return blake2b(said, key=self._secret, digest_size=32).digest()


def _fits(claim: Claim) -> bool:
    import bcrypt  # a server without passwords goes without it

    try:
        same = bcrypt.checkpw(claim.password[:_MOST], claim.hash.encode())
    except ValueError:  # a NUL in it
        return False
    return same and claim.known
