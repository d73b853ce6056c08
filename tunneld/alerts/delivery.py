"""A bounded queue for each target, emptied by a task of its own: a receiver that hangs holds nothing else up."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import uniform
from time import monotonic

from tunneld.alerts.faults import Undelivered
from tunneld.alerts.messages import Message
from tunneld.alerts.sending import send, told
from tunneld.config.alerts import CommandTarget, EmailTarget, WebhookTarget

__all__ = ["Delivery", "Outcome"]

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


class Delivery:
    """To one target. `start`, then `put`, then `stop`.

    Attributes:
        target: who is told.
        sent: messages that arrived.
        failed: messages that were given up or dropped.
        last_error: why the last attempt failed; None: it did not.
    """

    def __init__(self, target: Deliverable) -> None:
        self.target = target
        self.name = told(target)
        self.sent = self.failed = 0
        self.last_error: str | None = None
        self._queue: deque[_Waiting] = deque()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Messages that wait, one that is being sent among them."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"alerts to {self.name}")

    async def stop(self) -> None:
        """Send no more; what waits is lost, and said so."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._queue:
            log.warning("%d alert messages to %s were not sent: the daemon stops.", len(self._queue), self.name)

    def put(self, message: Message, lasts: float, done: Callable[[Outcome], None] | None = None) -> None:
        """Queue a message; `done` is called once with how it went."""
        if len(self._queue) >= self.target.queue:
            self._end(self._queue.popleft(), "newer messages took its place in the queue")
        self._queue.append(_Waiting(message, lasts, monotonic(), done))
        self._news.set()

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
                self._queue.popleft()
                self.sent += 1
                if waiting.done is not None:
                    waiting.done(Outcome(self.name, None))
                return
            left = waiting.since + self.target.retry_for - monotonic()
            if final or left <= 0 or waiting.message.test:
                self._end(self._queue.popleft(), fault)
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
        self.failed += 1
        log.error(
            "An alert to %s was given up: %s. It said: %s",
            self.name,
            why,
            waiting.message.title,
            extra={"receiver": self.name, "alert": waiting.message.alert},
        )
        if waiting.done is not None:
            waiting.done(Outcome(self.name, why))
