"""What operators see of an exchange: the fields of the control API's streams."""

from __future__ import annotations

import time
from typing import Any

from tunneld.agent.inspection import Seen
from tunneld.protocol.messages import Open
from tunneld.protocol.sse import EventCounter

__all__ = ["STALL_CHECKS", "Record"]

#: How often within `limits.stall` it is looked whether a service has taken anything.
STALL_CHECKS = 4


class Record:
    """One visitor's request, from its first byte to its last.

    Attributes:
        request_id: the stream's, as in both logs.
        tunnel: the name of its tunnel.
        kind: ``sse`` once the answer's Content-Type is ``text/event-stream``, ``websocket`` once an upgrade was
            taken, ``http`` until then.
        method: of the request.
        path: as the service sees it, with its query.
        client: the visitor's address.
        state: ``connecting``, ``waiting`` (for the answer's head), ``streaming``, ``uploading`` (the answer
            is over and the upload is not), ``sending`` (the service has no more to do with it, its last bytes wait
            for the visitor), ``closed``.
        started: monotonic seconds.
        active: monotonic seconds of the last byte in either direction.
        bytes_in: of the body, visitor to service.
        bytes_out: of the body, service to visitor.
        counter: of an SSE answer whose events can be told apart; None: it is none.
        status: of the service's answer, once its head has come; 0 before.
        reason: why it ended; empty while it has not. ``done``, or one of the protocol's REASONS.
        code: of the problem document that was the answer; empty when the service's own answer was.
        opening: what opened it, while people may look into it; empty: they may not (no `inspect: true`).
        answer: beside that, the head of the service's answer, as it came; empty: there is none yet.
        seen: what is kept of it for people, where more than that is: see `Inspector.of`.
    """

    __slots__ = (
        "active",
        "answer",
        "bytes_in",
        "bytes_out",
        "client",
        "code",
        "counter",
        "kind",
        "method",
        "opening",
        "path",
        "reason",
        "request_id",
        "seen",
        "started",
        "state",
        "status",
        "tunnel",
    )

    def __init__(self, tunnel: str, request: Open) -> None:
        self.request_id = request.request_id
        self.tunnel = tunnel
        self.kind = "http"
        self.method = request.method
        self.path = request.path
        self.client = request.client
        self.state = "connecting"
        self.started = self.active = time.monotonic()
        self.bytes_in = 0
        self.bytes_out = 0
        self.counter: EventCounter | None = None
        self.status = 0
        self.reason = ""
        self.code = ""
        self.opening = b""
        self.answer = ""
        self.seen: Seen | None = None

    @property
    def events(self) -> int:
        """Events of an SSE answer so far."""
        return 0 if self.counter is None else self.counter.events

    @property
    def last_event_id(self) -> str | None:
        """As EventSource would know it; None when there is none."""
        return None if self.counter is None else self.counter.last_event_id

    @property
    def stuck(self) -> bool:
        """Bytes of the answer wait, and their reader takes none at present."""
        return False

    def fields(self, now: float) -> dict[str, Any]:
        """What the control API shows of a stream; `now` is monotonic seconds.

        Hundreds are shown once a second to each who looks: `round` alone would be a third of what that costs.
        """
        counter, idle = self.counter, now - self.active
        return {
            "request_id": self.request_id,
            "tunnel": self.tunnel,
            "kind": self.kind,
            "method": self.method,
            "path": self.path,
            "client": self.client,
            "state": self.state,
            "age_s": int((now - self.started) * 1000 + 0.5) / 1000,
            "idle_s": int(idle * 1000 + 0.5) / 1000 if idle > 0 else 0.0,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "events": 0 if counter is None else counter.events,
            "last_event_id": None if counter is None else counter.last_event_id,
            "stalled": self.stuck,
        }
