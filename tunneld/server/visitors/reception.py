"""What the desk and its parts ask of the ingress, and visitors who wait while something is looked up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers
from tunneld.server.principals import Principal
from tunneld.server.visitors.rules import Grant, Rules

if TYPE_CHECKING:
    from tunneld.wire.http1 import RequestHead
    from tunneld.wire.http_server import ServerConnection

__all__ = ["Reception", "Refused", "Visit", "Visited", "Waiting", "Work"]

log = logging.getLogger("tunneld.access")

_T = TypeVar("_T")


class Visited(Protocol):
    """What is asked of a `server.registry.Tunnel`."""

    name: str
    public_url: str
    host_url: str | None
    access: Rules
    principal: Principal


class Visit(Protocol):
    """A request under way.

    Attributes:
        grant: what let it in; None: everybody may come.
    """

    client: str
    grant: Grant | None

    @property
    def tunnel(self) -> Visited:
        """Where it goes."""

    def shut_out(self) -> None:
        """Its visitor may come no more."""


class Reception(Protocol):
    """What is asked of an `Ingress`."""

    loop: asyncio.AbstractEventLoop

    @property
    def exchanges(self) -> Mapping[str, Visit]:
        """Request id -> the request under way."""

    def new_id(self) -> str:
        """A request id."""

    def tunnel(self, name: str) -> Visited | None:
        """The tunnel of that name."""

    def request(self, connection: ServerConnection, head: RequestHead) -> None:
        """Route a request, again."""

    def fault(self, connection: ServerConnection, head: RequestHead | None, error: VisitorError) -> None:
        """Answer a request with a problem."""

    def answer_whole(self, connection: ServerConnection, status: int, headers: Headers, body: bytes) -> None:
        """Answer a request."""


class Refused(VisitorError):
    """A visitor is not let in.

    Args:
        why: code and words.
        extra: headers of the answer.
    """

    def __init__(self, why: VisitorError, extra: Headers) -> None:
        super().__init__(why.code, why.detail, retry_after=why.retry_after, limit=why.limit)
        self.extra = extra


class Waiting:
    """A request that waits to be judged; `Consumer` of its connection, which holds the body back."""

    __slots__ = ("connection",)

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

    def begin(self) -> None:
        """Wait from now on."""
        self.connection.begin(self)
        self.connection.hold_body()

    def over(self) -> bool:
        """Wait no longer; False when the visitor has left meanwhile."""
        if self.connection.consumer is not self:
            return False
        self.connection.consumer = None
        return True

    def body(self, data: bytes) -> bool:
        """None comes."""
        return False

    def body_end(self, trailers: Headers) -> None:
        """None comes."""

    def body_fault(self, error: VisitorError) -> None:
        """None comes."""

    def drained(self) -> None:
        """Nothing was written."""

    def stalled(self) -> None:
        """Nothing was written."""

    def gone(self) -> None:
        """The visitor has left: what is found is of no use to it."""


class Work:
    """Tasks that visitors wait for.

    Args:
        most: at a time.
    """

    def __init__(self, ingress: Reception, *, most: int) -> None:
        self._ingress = ingress
        self._most = most
        self._tasks: dict[asyncio.Task[None], tuple[Waiting, RequestHead] | None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(
        self,
        connection: ServerConnection,
        head: RequestHead,
        work: Callable[[], Awaitable[_T]],
        done: Callable[[_T], None],
        refused: Callable[[VisitorError], None] = lambda error: None,
    ) -> None:
        """Let a visitor wait for `work`, then call `done`; a VisitorError of either is the answer.

        Raises:
            VisitorError: ``too_many_checks``.
        """
        if len(self._tasks) >= self._most:
            raise VisitorError("too_many_checks", retry_after=1)
        waiting = Waiting(connection)
        task = self._ingress.loop.create_task(self._run(waiting, head, work, done, refused), name="sign-in")
        self._tasks[task] = waiting, head
        task.add_done_callback(self._over)
        waiting.begin()

    def alone(self, work: Callable[[], Awaitable[object]]) -> None:
        """Work that no visitor waits for; what it raises to visitors is of no interest."""

        async def run() -> None:
            try:
                await work()
            except VisitorError:
                pass

        task = self._ingress.loop.create_task(run(), name="sign-in")
        self._tasks[task] = None
        task.add_done_callback(self._over)

    async def close(self) -> None:
        """Answer whoever waits, and end the tasks."""
        tasks = list(self._tasks)
        for task, waits in list(self._tasks.items()):
            if waits is not None and waits[0].over():
                self._answer(*waits, VisitorError("shutdown", retry_after=1))
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(
        self,
        waiting: Waiting,
        head: RequestHead,
        work: Callable[[], Awaitable[_T]],
        done: Callable[[_T], None],
        refused: Callable[[VisitorError], None],
    ) -> None:
        try:
            found = await work()
        except VisitorError as error:
            refused(error)
            if waiting.over():
                self._answer(waiting, head, error)
            return
        if waiting.over():
            done(found)

    def _answer(self, waiting: Waiting, head: RequestHead, error: VisitorError) -> None:
        waiting.connection.discard_body()
        self._ingress.fault(waiting.connection, head, error)

    def _over(self, task: asyncio.Task[None]) -> None:
        waits = self._tasks.pop(task)
        if task.cancelled() or (fault := task.exception()) is None:
            return
        log.error("A visitor cannot be judged", exc_info=fault)
        if waits is not None and waits[0].over():
            waits[0].connection.reset()
