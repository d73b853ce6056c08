"""The connections to one service: those that wait for work, and those that are being made."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque

from tunneld.agent.deadlines import Deadlines
from tunneld.agent.origin import Connection, Origin, User, why
from tunneld.protocol.windows import MemoryBudget
from tunneld.wire.short_reads import ShortReads

__all__ = ["IDLE", "IDLE_UNSAFE", "MAX_CONNECTING", "MAX_IDLE", "Pool"]

log = logging.getLogger("tunneld.agent")

#: Seconds that a connection without work is kept: less than any common service keeps it (uvicorn: 5).
IDLE = 4.0
#: Seconds of idleness after which no request that must not be repeated goes on it.
IDLE_UNSAFE = 1.0
#: Connections without work that are kept.
MAX_IDLE = 256
#: Connects under way at a time; a service's backlog is not endless.
MAX_CONNECTING = 128


class Pool:
    """Hands out connections. How many are in use is bounded by its users, `limits.max_streams` of them.

    Args:
        loop: runs it.
        origin: where to connect.
        budget: of the process's memory; None: there is none.

    Attributes:
        reads: how the connections are read.
    """

    __slots__ = ("_closed", "_idle", "_loop", "_open", "_origin", "_tasks", "_wanting", "reads")

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: Origin, budget: MemoryBudget | None = None) -> None:
        self.reads = ShortReads(budget or MemoryBudget())
        self._loop = loop
        self._origin = origin
        self._open: set[Connection] = set()
        self._idle: Deadlines[Connection] = Deadlines(loop, IDLE, Connection.close)
        self._tasks: dict[User, asyncio.Task[None]] = {}
        self._wanting: deque[User] = deque()
        self._closed = False

    @property
    def idle(self) -> int:
        """Connections without work."""
        return len(self._idle)

    @property
    def open(self) -> int:
        """Connections, those at work included."""
        return len(self._open)

    @property
    def connecting(self) -> int:
        """Users that wait for a connection, or for the turn to make one."""
        return len(self._tasks) + len(self._wanting)

    def take(self, *, repeatable: bool) -> Connection | None:
        """A connection without work; None when there is none that may be used.

        Args:
            repeatable: the request may be sent again should the service close at this very moment. One that
                may not gets a connection that was at work a moment ago and is seen to be alive.
        """
        while (newest := self._idle.newest()) is not None:
            connection, since = newest
            if not repeatable and time.monotonic() - since > IDLE_UNSAFE:
                return None
            self._idle.discard(connection)
            if repeatable or connection.fresh():
                return connection
            connection.close()
        return None

    def want(self, user: User) -> None:
        """Make a connection for `user`, who is told by `connected` or `unreachable`."""
        if len(self._tasks) >= MAX_CONNECTING:
            self._wanting.append(user)
        else:
            self._connect(user)

    def abandon(self, user: User) -> None:
        """The user wants none any more: stop making it, at once."""
        task = self._tasks.get(user)
        if task is not None:
            task.cancel()
        elif user in self._wanting:
            self._wanting.remove(user)

    def release(self, connection: Connection) -> None:
        """A connection has no more work."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            connection.close()
        elif self._wanting:
            self._wanting.popleft().connected(connection)
        else:
            self._idle.add(connection)

    def forget(self, connection: Connection) -> None:
        """A connection is over."""
        self._open.discard(connection)
        self._idle.discard(connection)
        self.reads.connections = len(self._open)

    def close(self) -> None:
        """Close what is idle, stop what is being made, keep nothing that is released later."""
        self._closed = True
        self._wanting.clear()
        for task in self._tasks.values():
            task.cancel()
        for connection in self._idle.clear():
            connection.close()

    async def wait_closed(self) -> None:
        """After `close`: wait until no connect is under way any more."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def _connect(self, user: User) -> None:
        task = self._loop.create_task(self._make(user), name="connect to a service")
        self._tasks[user] = task
        task.add_done_callback(functools.partial(self._made, user))

    async def _make(self, user: User) -> None:
        try:
            connection = await self._origin.connect(self._loop, self)
        except (OSError, UnicodeError) as fault:
            log.debug("connecting to %s failed: %s", self._origin.service, fault)
            del self._tasks[user]  # here, since what the user does next may be to abandon
            user.unreachable(why(fault))
        else:
            del self._tasks[user]
            self._open.add(connection)
            self.reads.connections = len(self._open)
            user.connected(connection)

    def _made(self, user: User, task: asyncio.Task[None]) -> None:
        """A connect is over; one that was cancelled before it began ran no line of its own."""
        if self._tasks.get(user) is task:
            del self._tasks[user]
        while self._wanting and len(self._tasks) < MAX_CONNECTING:
            self._connect(self._wanting.popleft())
