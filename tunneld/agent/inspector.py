"""Which requests of a tunnel with `inspect: true` are kept for people: those under way, and the last that are over.

Nothing of it is there for a tunnel without it. How much is kept is bounded by `inspection`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from tunneld.agent.inspection import Seen, Tap
from tunneld.config.agent import InspectionConfig
from tunneld.errors import VisitorError

if TYPE_CHECKING:
    from tunneld.agent.record import Record

__all__ = ["Inspector"]


_Heads = tuple[bytes, str, int, str, float, float, float]
"""A request that is over and of which nothing but the heads is kept.

What opened it, the answer's head and status, the reason of its end, when it began and ended by the monotonic clock, and
when it ended in seconds of the epoch. A tuple, because one is made for each request and nearly none is ever looked at.
"""


class Inspector:
    """Of one tunnel: the last requests, and those under way.

    A request costs little as long as nobody looks: what opened it and its answer's head are kept as they came, and what
    people see of it is made when they ask.

    Args:
        config: how much is kept.
        live: request id to record, of those under way; it changes as they come and go.

    Attributes:
        readers: that look into a stream now.
    """

    __slots__ = ("_config", "_live", "_over", "readers")

    def __init__(self, config: InspectionConfig, live: Mapping[str, Record]) -> None:
        self._config = config
        self._live = live
        self.readers = 0
        self._over: deque[_Heads | Seen] = deque(maxlen=config.requests)

    @property
    def config(self) -> InspectionConfig:
        """How much is kept; may be set."""
        return self._config

    @config.setter
    def config(self, config: InspectionConfig) -> None:
        self._config = config
        self._over = deque(self._over, maxlen=config.requests)

    @property
    def kept(self) -> tuple[int, int]:
        """How many requests are kept, and how many may be."""
        return min(len(self._over) + len(self._live), self._config.requests), self._config.requests

    def of(self, record: Record) -> Seen | None:
        """What is kept of a request that is under way; None: nobody may look into it."""
        seen = record.seen
        if seen is None and record.opening:
            age = monotonic() - record.started
            seen = record.seen = Seen(record.opening, record.started, time() - age, self._config.body)
            if record.answer:
                seen.answered(record.status, record.answer, sse=record.kind == "sse")
        return seen

    def over(self, record: Record, now: float) -> None:
        """It is over; the oldest is forgotten for it where as many are kept as may be.

        The record keeps nothing of it: who else holds that would hold a head and a body with it.

        Args:
            now: monotonic seconds.
        """
        if (seen := record.seen) is None:  # the way of nearly all
            self._over.append(
                (record.opening, record.answer, record.status, record.reason, record.started, now, time())
            )
        else:
            seen.over(record.reason, now)
            self._over.append(seen)
        record.opening, record.answer, record.seen = b"", "", None

    def watch(self, seen: Seen, tell: Callable[[dict[str, Any]], None], *, between: bool) -> Callable[[], None]:
        """Tell of what passes on a stream (see `Seen.tap`); the returned function ends that, once.

        Raises:
            VisitorError: ``too_many_subscribers``.
        """
        if self.readers >= self._config.readers:
            raise VisitorError(
                "too_many_subscribers",
                f"{self.readers} readers look into streams of this tunnel: as many as may (inspection.readers).",
            )
        self.readers += 1
        leave = seen.tap(Tap(self._config.events, tell), between=between)

        def left() -> None:
            leave()
            self.readers -= 1

        return left

    def find(self, request_id: str) -> Seen | None:
        """That request; None: it is not kept, or never was here."""
        record = self._live.get(request_id)
        if record is not None and (seen := self.of(record)) is not None:
            return seen
        marks = (b"\\", request_id.encode(errors="surrogatepass"))  # decoded only where that id may be told at all
        for kept in reversed(self._over):
            if isinstance(kept, Seen) or any(mark in kept[0] for mark in marks):
                seen = _seen(kept)
                if seen.request.request_id == request_id:
                    return seen
        return None

    def all(self) -> list[Seen]:
        """The last that began, newest first."""
        most = self._config.requests
        under_way = [record for record in self._live.values() if record.opening][-most:]
        found = [_seen(kept) for kept in self._over]
        found += [seen for record in under_way if (seen := self.of(record)) is not None]
        return sorted(found, key=lambda seen: seen.began, reverse=True)[:most]


def _seen(kept: _Heads | Seen) -> Seen:
    """For people."""
    if isinstance(kept, Seen):
        return kept
    opening, answer, status, reason, began, ended, wall = kept
    seconds = ended - began
    return Seen(opening, began, wall - seconds, 0, answer, status=status, reason=reason, seconds=seconds)
