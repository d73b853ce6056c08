"""A bounded queue for each target, emptied by a task of its own: a receiver that hangs holds nothing else up."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import uniform
from time import monotonic
from typing import Any

from tunneld.alerts.faults import Undelivered
from tunneld.alerts.messages import Message
from tunneld.alerts.sending import send, told
from tunneld.config.alerts import CommandTarget, EmailTarget, WebhookTarget

__all__ = ["Delivery", "Outcome", "Tally"]

log = logging.getLogger("tunneld.alerts")

_FIRST, _LONGEST = 1.0, 60.0
"""Seconds before the second attempt, and between two at most."""

Deliverable = WebhookTarget | CommandTarget | EmailTarget


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a delivery went: `fault` None is well."""

    receiver: str
    fault: str | None


@dataclass(slots=True)
class _Waiting:
    message: Message
    lasts: float
    since: float
    done: Callable[[Outcome], None] | None


@dataclass(slots=True)
class Tally:
    """Messages of all deliveries of a daemon, those that are no more among them.

    Attributes:
        sent: that arrived.
        failed: that were given up, dropped or left.
    """

    sent: int = 0
    failed: int = 0


class Delivery:
    """To one target. `start`, then `put`, then `stop` or `finish`.

    Args:
        target: who is told.
        tally: what is counted here is counted there too.

    Attributes:
        target: who is told.
        sent: messages that arrived.
        failed: messages that were given up or dropped.
        last_error: why the last attempt failed; None: it did not.
    """

    def __init__(self, target: Deliverable, tally: Tally | None = None) -> None:
        self.target = target
        self._tally = tally if tally is not None else Tally()
        self.name = told(target)
        self.sent = self.failed = 0
        self.last_error: str | None = None
        self._queue: deque[_Waiting] = deque()
        self._news = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._testing = asyncio.Lock()
        self._tests: set[asyncio.Task[Any]] = set()
        self._stopped = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Messages that wait, one that is being sent among them."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"alerts to {self.name}")

    async def finish(self, within: float) -> None:
        """Send what waits, for so many seconds at most, and then no more. Cancelled it stops at once."""
        try:
            async with asyncio.timeout(within):
                await self._empty.wait()
        except TimeoutError:
            pass
        finally:
            await self.stop("its rule is another now, and it did not take them in time")

    async def stop(self, why: str = "the daemon stops") -> None:
        """Send no more; what waits is lost, and said so, and a test is over with that."""
        self._stopped = why
        for test in self._tests:
            test.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._queue:
            self._count(failed=len(self._queue))
            log.warning("%d alert messages to %s were not sent: %s.", len(self._queue), self.name, why)

    def put(self, message: Message, lasts: float, done: Callable[[Outcome], None] | None = None) -> None:
        """Queue a message; `done` is called once with how it went."""
        if len(self._queue) >= self.target.queue:
            self._end(self._pop(), "newer messages took its place in the queue")
        self._queue.append(_Waiting(message, lasts, monotonic(), done))
        self._empty.clear()
        self._news.set()

    async def test(self, message: Message, *, within: float) -> Outcome:
        """Try this message once, beside those that wait: a receiver that fails them would fail it, and say why.

        Args:
            message: that says that it is a test.
            within: seconds that it has, the wait for a test before it among them.
        """
        fault: str | None
        task = asyncio.current_task()
        assert task is not None
        self._tests.add(task)
        try:
            async with asyncio.timeout(within), self._testing:
                fault, _ = await self._attempt(_Waiting(message, 60.0, monotonic(), None))
        except TimeoutError:
            fault = f"no answer within {within:g} s"
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            task.uncancel()
            fault = self._stopped
        finally:
            self._tests.discard(task)
        if fault is None:
            self._count(sent=1)
        else:
            self._count(failed=1)
        return Outcome(self.name, fault)

    def _count(self, *, sent: int = 0, failed: int = 0) -> None:
        self.sent += sent
        self.failed += failed
        self._tally.sent += sent
        self._tally.failed += failed

    def _pop(self) -> _Waiting:
        """Take the first of the queue out."""
        first = self._queue.popleft()
        if not self._queue:
            self._empty.set()
        return first

    async def _run(self) -> None:
        while True:
            while not self._queue:
                self._news.clear()
                await self._news.wait()
            await self._deliver(self._queue[0])

    async def _deliver(self, waiting: _Waiting) -> None:
        """Try until it arrives, or is given up."""
        pause = _FIRST
        while True:
            fault, final = await self._attempt(waiting)
            if not self._queue or self._queue[0] is not waiting:
                return  # its place was taken
            if fault is None:
                self._pop()
                self._count(sent=1)
                if waiting.done is not None:
                    waiting.done(Outcome(self.name, None))
                return
            left = waiting.since + self.target.retry_for - monotonic()
            if final or left <= 0:
                self._end(self._pop(), fault)
                return
            log.info("An alert to %s did not arrive: %s; tried again.", self.name, fault, extra={"receiver": self.name})
            await asyncio.sleep(min(uniform(0.5, 1.0) * pause, max(0.0, left)))  # noqa: S311 - spread, not secret
            pause = min(2 * pause, _LONGEST)

    async def _attempt(self, waiting: _Waiting) -> tuple[str | None, bool]:
        """(what went wrong or None, trying again has no use)."""
        try:
            await send(self.target, waiting.message, lasts=waiting.lasts)
        except Undelivered as error:
            self.last_error = str(error)
            return str(error), error.final
        except Exception as error:
            log.exception("An alert to %s met a fault of our own.", self.name)
            self.last_error = type(error).__name__
            return self.last_error, True
        self.last_error = None
        return None, False

    def _end(self, waiting: _Waiting, why: str) -> None:
        self._count(failed=1)
        log.error(
            "An alert to %s was given up: %s. It said: %s",
            self.name,
            why,
            waiting.message.title,
            extra={"receiver": self.name, "alert": waiting.message.alert},
        )
        if waiting.done is not None:
            waiting.done(Outcome(self.name, why))
