"""What readers of ``GET /v1/events`` may take, and how close they are to it. No HTTP here: alerts ask without one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunneld.telemetry.usage import Usage, fullest

if TYPE_CHECKING:
    from tunneld.control.events import Subscribers

__all__ = ["EventBounds", "events_usage"]


@dataclass(frozen=True, slots=True)
class EventBounds:
    """What readers of events may take; the defaults are those of `control` in the configuration.

    Attributes:
        readers: at a time.
        queue: bytes that wait for one of them whose write does not end, before it is cut; of any other it is
            `control.event_queue.BURST` times that.
        history: bytes of the last events that are kept for readers that come back.
    """

    readers: int = 32
    queue: int = 1024 * 1024
    history: int = 1024 * 1024


def events_usage(doors: Iterable[Subscribers], bounds: EventBounds) -> Iterator[Usage]:
    """How close the readers of all doors are to their bounds."""
    doors = list(doors)
    yield fullest("event_readers", [(0, bounds.readers), *((len(one), bounds.readers) for one in doors)])
    # A burst that is being read fills it and no more: it is not what a reader is cut for.
    queues = [(0, bounds.queue), *((min(one.fullest, bounds.queue), bounds.queue) for one in doors)]
    yield fullest("event_queue", queues)
    history = [(0, bounds.history), *((one.kept, bounds.history) for one in doors)]
    yield fullest("event_history", history, gives_way=True)
