"""Counted messages: what was sent and not acknowledged, what was received and not told.

The unit is the WebSocket message, numbered from 1 when it is handed to the socket. See PROTOCOL.md, "v3:
counting and resume".
"""

from __future__ import annotations

from collections import deque
from math import inf

from tunneld.errors import RemoteError
from tunneld.protocol.windows import MemoryBudget

__all__ = ["ACK_DELAY", "MIN_BUFFER", "ReplayBuffer"]

#: An ACK goes out at the latest this many seconds after the oldest unacknowledged message.
ACK_DELAY = 0.25
#: The smallest `resume.buffer` (bytes).
MIN_BUFFER = 64 * 1024
_ACK_BYTES = 64 * 1024
#: What a kept message costs beside its payload, in bytes: the bound must hold for many small ones too.
_COST = 128


class ReplayBuffer:
    """The counters of one session's side, and one reference to each unacknowledged message.

    Args:
        limit: bytes of messages with DATA that may wait for acknowledgement; more is held back, control never is.
        peer_limit: the peer's `resume.buffer`, which sets how early an ACK must go.
        budget: of the process; what is kept here counts. None: there is none.
    """

    __slots__ = (
        "_ack_at",
        "_budget",
        "_messages",
        "_threshold",
        "_unacked_in",
        "acked",
        "control_held",
        "data_held",
        "limit",
        "received",
        "sent",
        "told",
    )

    def __init__(self, limit: int, peer_limit: int, budget: MemoryBudget | None = None) -> None:
        self.limit = limit
        self._budget = budget or MemoryBudget()
        self.sent = 0
        self.acked = 0
        self.received = 0
        self.told = 0
        #: Bytes kept of messages with DATA, and of those without.
        self.data_held = 0
        self.control_held = 0
        self._threshold = min(_ACK_BYTES, max(1, peer_limit // 4))
        self._unacked_in = 0
        self._ack_at: float | None = None
        self._messages: deque[tuple[int, bytes, bool]] = deque()

    @property
    def full(self) -> bool:
        """DATA must wait for an acknowledgement. While memory is short one message with DATA is under way at a time."""
        return self.data_held >= self.limit or (self.data_held > 0 and self._budget.near)

    def keep(self, opcode: int, payload: bytes, data_bytes: int) -> int:
        """Number a message that is handed to the socket, and keep it; returns its number."""
        self.sent += 1
        size = len(payload) + _COST
        self._budget.held += size
        if data_bytes:
            self.data_held += size
        else:
            self.control_held += size
        self._messages.append((opcode, payload, data_bytes > 0))
        return self.sent

    def acknowledged(self, count: int) -> None:
        """The peer has received `count` messages in all.

        Raises:
            RemoteError: ``protocol_error``: fewer than it said before, or more than were sent.
        """
        if not self.acked <= count <= self.sent:
            raise RemoteError("protocol_error", f"an ACK of {count}; acknowledged were {self.acked}, sent {self.sent}")
        before = self.data_held + self.control_held
        for _ in range(count - self.acked):
            _, payload, has_data = self._messages.popleft()
            if has_data:
                self.data_held -= len(payload) + _COST
            else:
                self.control_held -= len(payload) + _COST
        self.acked = count
        self._budget.sub(before - self.data_held - self.control_held)

    def take_up(self, sent: int, received: int) -> None:
        """Count on from where another process stood, with nothing under way."""
        self.sent = self.acked = sent
        self.received = self.told = received

    def unacknowledged(self) -> list[tuple[int, bytes]]:
        """(opcode, payload) of each message that the peer has not acknowledged, oldest first."""
        return [(opcode, payload) for opcode, payload, _ in self._messages]

    def clear(self) -> None:
        """Keep nothing: the session is over."""
        self._messages.clear()
        held, self.data_held, self.control_held = self.data_held + self.control_held, 0, 0
        self._budget.sub(held)

    def count(self, size: int, now: float) -> None:
        """A counted message of `size` bytes came."""
        self.received += 1
        self._unacked_in += size + _COST
        if self._ack_at is None:
            self._ack_at = now + ACK_DELAY

    def ack_due(self, now: float) -> bool:
        """An ACK should go out now."""
        return self._ack_at is not None and (self._unacked_in >= self._threshold or now >= self._ack_at)

    @property
    def ack_at(self) -> float | None:
        """When the next ACK is due at the latest, monotonic seconds; None when nothing is to be told."""
        return self._ack_at

    def ack_now(self) -> None:
        """Whatever the clock says, an ACK of what was counted is due: it is urgent, or its time has come."""
        if self._ack_at is not None:
            self._ack_at = -inf

    def tell(self) -> int:
        """The count to put into an ACK, or into `hello` and `connected`, that goes out now."""
        self.told = self.received
        self._unacked_in = 0
        self._ack_at = None
        return self.received
