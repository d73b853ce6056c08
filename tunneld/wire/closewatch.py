"""A peer's close, noticed while reading from it is paused.

A transport whose reading is paused is not in its loop's poll set for input, so the loop reports neither FIN
nor RST until reading goes on, which may be never. A second epoll, nested in the loop as one readable
descriptor, watches paused sockets for ``EPOLLRDHUP`` alone (edge-triggered: waiting input does not wake it).

What it cannot see: a FIN that stands behind unread input that fills the receive window has not arrived at
all. For that there is ``limits.stall``.
"""

from __future__ import annotations

import select
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["CloseWatch"]

Callback = Callable[[int], None]

_MOST = 256  # events taken in one turn of the loop; the rest wake it again


class CloseWatch:
    """One watch for all paused sockets of an event loop; made by `of`.

    Where the platform has no ``select.epoll`` every method does nothing: a close is then noticed when
    reading goes on, or by ``limits.stall``.
    """

    __slots__ = ("__weakref__", "_callbacks", "_epoll")

    _watches: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, CloseWatch]] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self._callbacks: dict[int, Callback] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> CloseWatch:
        """The watch of this loop, made and attached at the first call; the loop keeps it."""
        watch = cls._watches.get(loop)
        if watch is None:
            watch = cls()
            if watch._epoll is not None:
                loop.add_reader(watch._epoll.fileno(), watch._ready)
            cls._watches[loop] = watch
        return watch

    def __len__(self) -> int:
        """How many sockets are watched."""
        return len(self._callbacks)

    def watch(self, fd: int, callback: Callback) -> None:
        """Call `callback` once, with the epoll events, when the peer of the socket `fd` closes or resets.

        A close that has come already is told in the loop's next turn. A socket watched twice has its last
        callback. The socket must be unwatched before it is closed: descriptors are used again.
        """
        if self._epoll is None or fd < 0:
            return
        mask = select.EPOLLRDHUP | select.EPOLLET
        try:
            self._epoll.register(fd, mask)
        except FileExistsError:
            self._epoll.modify(fd, mask)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget the socket; nothing happens when it is not watched."""
        if self._callbacks.pop(fd, None) is None or self._epoll is None:
            return
        try:
            self._epoll.unregister(fd)
        except OSError:  # closed before: the kernel has forgotten it already
            pass

    def _ready(self) -> None:
        assert self._epoll is not None
        for fd, events in self._epoll.poll(0, _MOST):
            callback = self._callbacks.get(fd)
            if callback is not None:
                self.unwatch(fd)
                callback(events)
