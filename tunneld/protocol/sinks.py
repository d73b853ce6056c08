"""Who consumes a stream: what the session calls with what came from the peer."""

from __future__ import annotations

from typing import Protocol

from tunneld.protocol.fields import Headers

__all__ = ["NOBODY", "Sink"]


class Sink(Protocol):
    """What consumes a stream.

    The session calls while it reads a message or builds one; no call may raise, each may use the stream.
    After `cancelled`, or the consumer's own `Stream.cancel`, nothing more is called.
    """

    def head(self, status: int, headers: Headers) -> None:
        """The answer's head (where the stream was opened only); 1xx may come before the final one."""

    def data(self, data: bytes) -> None:
        """Bytes of the peer's direction, in order; `Stream.took` gives their credit back.

        After HEAD 101 one frame, its first byte the opcode; its credit is `COST` more than its bytes.
        """

    def end(self, trailers: Headers) -> None:
        """The peer's direction ended cleanly."""

    def stopped(self) -> None:
        """The peer takes no more of our direction; what waited was dropped and END goes out by itself."""

    def cancelled(self, reason: str) -> None:
        """Both directions are over, by the peer or because the session is gone."""

    def writable(self) -> None:
        """After `Stream.send` returned False: read your source again."""


class _Nobody:
    """Takes everything, and nothing becomes of it."""

    __slots__ = ()

    def head(self, status: int, headers: Headers) -> None:
        """See `Sink`."""

    def data(self, data: bytes) -> None:
        """See `Sink`."""

    def end(self, trailers: Headers) -> None:
        """See `Sink`."""

    def stopped(self) -> None:
        """See `Sink`."""

    def cancelled(self, reason: str) -> None:
        """See `Sink`."""

    def writable(self) -> None:
        """See `Sink`."""


#: The sink of a stream that nobody consumes (any more).
NOBODY: Sink = _Nobody()
