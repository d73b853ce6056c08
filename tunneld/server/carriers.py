"""What a tunnel asks of those who carry its requests, who connect it, and who wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tunneld.protocol.messages import Headers, Open
from tunneld.protocol.sinks import Sink
from tunneld.wire.tcp_info import TcpInfo

__all__ = ["Carried", "Carrier", "Connection", "Recovering", "Seen"]


class Carried(Protocol):
    """A visitor's request on its way through a tunnel of either dialect: what an exchange asks of a `Stream`."""

    sink: Sink | None

    def send(self, data: bytes) -> bool:
        """Bytes of the request's body; False asks to pause until `Sink.writable`."""

    def send_end(self, trailers: Headers | None = None) -> bool:
        """The request is whole; False: its trailers were left out."""

    def took(self, count: int) -> None:
        """The visitor has taken so many bytes of the answer."""

    def cancel(self, reason: str) -> None:
        """End both directions now; nothing is called afterwards."""


class Carrier(Protocol):
    """What carries the requests of one name: a `Session`, or a connection of the older dialect."""

    @property
    def max_streams(self) -> int:
        """Requests at one time."""

    def open(self, request: Open, sink: Sink, *, ended: bool) -> Carried:
        """Carry a request; raises VisitorError as `Session.open` does."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the agent at the other end.

    Attributes:
        peer: its address, for people.
        agent_version: as it said; None: it did not.
        connected_s: seconds that its connection stands.
        last_heard_s: seconds since the last byte came.
        last_pong_s: seconds since the last ping was answered; None before the first.
        round_trip_ms: of the last ping; None before the first.
        kernel: what the kernel knows of the connection; None: nothing.
    """

    peer: str
    agent_version: str | None
    connected_s: float
    last_heard_s: float
    last_pong_s: float | None
    round_trip_ms: float | None
    kernel: TcpInfo | None = None


class Connection(Protocol):
    """The connection that serves a name at present, or whose session is kept (tunnels.py, legacy/).

    Attributes:
        peer: the address at its other end, for people.
        round_trip: seconds of the last answered ping; None before.
    """

    peer: str
    round_trip: float | None

    def replaced(self, *, resumed: bool) -> None:
        """A newer connection took the name over: write nothing more and close; end the session unless `resumed`."""

    def seen(self, now: float) -> Seen:
        """What operators are shown of it."""

    def reconnect(self) -> None:
        """An operator asks: close as if the network had, so that the agent dials again; the session is kept."""


class Recovering(Protocol):
    """An event stream that waits for the tunnel to go on (server/recovery.py)."""

    def back(self) -> None:
        """The tunnel takes new streams again. Called once; wait again to be told again."""

    def forsaken(self) -> None:
        """The agent left and will not come back in time."""
