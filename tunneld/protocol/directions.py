"""Where one direction of a stream stands, and what may happen to it next: a table (PROTOCOL.md, "Streams")."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["TABLE", "Direction", "Event", "step"]


class Direction(IntEnum):
    """Where one direction of a stream stands."""

    HEAD_DUE = 0
    BODY = 1
    #: The receiver said STOP; what comes is dropped until END.
    HEAD_DUE_STOPPED = 2
    BODY_STOPPED = 3
    ENDED = 4


class Event(IntEnum):
    """What can happen to a direction."""

    INFORMATIONAL = 0
    HEAD = 1
    DATA = 2
    END = 3
    STOP = 4


_D, _E = Direction, Event
#: (state, event) -> state. A missing key is an error: of the peer when it sent the event, else our own.
TABLE: dict[tuple[Direction, Event], Direction] = {
    (_D.HEAD_DUE, _E.INFORMATIONAL): _D.HEAD_DUE,
    (_D.HEAD_DUE, _E.HEAD): _D.BODY,
    (_D.HEAD_DUE, _E.STOP): _D.HEAD_DUE_STOPPED,
    (_D.BODY, _E.DATA): _D.BODY,
    (_D.BODY, _E.END): _D.ENDED,
    (_D.BODY, _E.STOP): _D.BODY_STOPPED,
    (_D.HEAD_DUE_STOPPED, _E.INFORMATIONAL): _D.HEAD_DUE_STOPPED,
    (_D.HEAD_DUE_STOPPED, _E.HEAD): _D.BODY_STOPPED,
    (_D.HEAD_DUE_STOPPED, _E.END): _D.ENDED,
    (_D.HEAD_DUE_STOPPED, _E.STOP): _D.HEAD_DUE_STOPPED,
    (_D.BODY_STOPPED, _E.DATA): _D.BODY_STOPPED,
    (_D.BODY_STOPPED, _E.END): _D.ENDED,
    (_D.BODY_STOPPED, _E.STOP): _D.BODY_STOPPED,
    (_D.ENDED, _E.STOP): _D.ENDED,
}


def step(state: Direction, event: Event) -> Direction | None:
    """The state after `event`; None where the event may not happen."""
    return TABLE.get((state, event))
