"""Bytes a second: a stream whose credit comes back no faster than its meters allow, in both directions.

Nothing is held for it: an answer's bytes have gone to the visitor when they are counted, and the credit that would let
the service send more waits; an upload is read on when what was read is made good.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from tunneld.protocol.messages import Headers
from tunneld.protocol.rates import Bucket
from tunneld.protocol.sinks import NOBODY, Sink

__all__ = ["Meter", "Paced"]

_LEAST = 0.002  # seconds: a shorter wait is made up for by the next


class Meter:
    """Bytes a second of one tunnel, token or address.

    Args:
        bucket: of bytes.
    """

    __slots__ = ("bucket",)

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket


class Paced:
    """A carried request between its exchange and its carrier: to the one a `Carried`, to the other a `Sink`.

    Args:
        meters: all of them hold.
        sink: the exchange.
        loop: for its timers.

    Attributes:
        carried: what it stands for; set once it is open.
    """

    __slots__ = ("_credit", "_credit_timer", "_drained", "_loop", "_meters", "_sink", "_upload_timer", "carried")

    def __init__(self, meters: Sequence[Meter], sink: Sink, loop: asyncio.AbstractEventLoop) -> None:
        self.carried: Any = None
        self._meters = meters
        self._sink: Sink = sink
        self._loop = loop
        self._credit: deque[tuple[float, int]] = deque()  # (when it may go back, bytes)
        self._credit_timer: asyncio.TimerHandle | None = None
        self._upload_timer: asyncio.TimerHandle | None = None
        self._drained = False  # the carrier would take more, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self.carried, name)  # what needs no pace

    @property
    def sink(self) -> Sink | None:
        """The exchange."""
        return self._sink

    @sink.setter
    def sink(self, sink: Sink | None) -> None:
        self._sink = sink or NOBODY

    @property
    def when_sent(self) -> Callable[[], None] | None:
        """See `Stream`."""
        told: Callable[[], None] | None = self.carried.when_sent
        return told

    @when_sent.setter
    def when_sent(self, told: Callable[[], None] | None) -> None:
        self.carried.when_sent = told

    def _owe(self, count: int) -> float:
        now = monotonic()
        delay = max((meter.bucket.owe(count, now) for meter in self._meters), default=0.0)
        return delay if delay >= _LEAST else 0.0

    # -- Carried -----------------------------------------------------------------------------------------

    def took(self, count: int) -> None:
        """The visitor has taken so many bytes: their credit goes back when the meters allow."""
        delay = self._owe(count)
        if not delay and not self._credit:
            self.carried.took(count)
            return
        self._credit.append((monotonic() + delay, count))
        if self._credit_timer is None:
            self._credit_timer = self._loop.call_later(delay, self._give_back)

    def _give_back(self) -> None:
        self._credit_timer = None
        now = monotonic() + 0.001
        due = 0
        while self._credit and self._credit[0][0] <= now:
            due += self._credit.popleft()[1]
        if self._credit:
            self._credit_timer = self._loop.call_later(self._credit[0][0] - now, self._give_back)
        if due:
            self.carried.took(due)

    def send(self, data: bytes) -> bool:
        """Bytes of the request's body."""
        return self._sent(len(data), self.carried.send(data))

    def send_frame(self, first: int, payload: bytes) -> bool:
        """A frame of a visitor's WebSocket."""
        return self._sent(len(payload), self.carried.send_frame(first, payload))

    def _sent(self, size: int, more: bool) -> bool:
        delay = self._owe(size)
        if not delay:
            return more and self._upload_timer is None
        self._drained = self._drained or more
        if self._upload_timer is not None:
            self._upload_timer.cancel()
        self._upload_timer = self._loop.call_later(delay, self._read_on)
        return False

    def _read_on(self) -> None:
        self._upload_timer = None
        drained, self._drained = self._drained, False
        if drained:
            self._sink.writable()

    def send_end(self, trailers: Headers | None = None) -> bool:
        """The request is whole."""
        self._no_upload()
        return bool(self.carried.send_end(trailers))

    def cancel(self, reason: str) -> None:
        """End both directions."""
        self._no_upload()
        self._no_credit()
        self.carried.cancel(reason)

    # -- Sink --------------------------------------------------------------------------------------------

    def head(self, status: int, headers: Headers) -> None:
        """See `Sink`."""
        self._sink.head(status, headers)

    def data(self, data: bytes) -> None:
        """See `Sink`."""
        self._sink.data(data)

    def end(self, trailers: Headers) -> None:
        """See `Sink`."""
        self._no_credit()  # no more comes for it
        self._sink.end(trailers)

    def stopped(self) -> None:
        """See `Sink`."""
        self._no_upload()
        self._sink.stopped()

    def cancelled(self, reason: str) -> None:
        """See `Sink`."""
        self._no_upload()
        self._no_credit()
        self._sink.cancelled(reason)

    def writable(self) -> None:
        """See `Sink`: kept to itself while the upload has to wait."""
        if self._upload_timer is not None:
            self._drained = True
        else:
            self._sink.writable()

    def _no_upload(self) -> None:
        if self._upload_timer is not None:
            self._upload_timer.cancel()
            self._upload_timer = None

    def _no_credit(self) -> None:
        self._credit.clear()
        if self._credit_timer is not None:
            self._credit_timer.cancel()
            self._credit_timer = None
