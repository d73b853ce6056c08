"""Looking into the streams of a tunnel with `inspect: true`: the last requests' heads, events as they pass, replay.

Nothing of it is there for a tunnel without it. What is kept is bounded by `inspection`; secrets are masked when they
are shown, and kept only so that a request can be sent again.
"""

from __future__ import annotations

import codecs
import re
from collections import OrderedDict, deque
from collections.abc import Callable
from time import monotonic, time
from typing import Any

from tunneld.config.agent import InspectionConfig
from tunneld.protocol.headers import Headers, lower
from tunneld.protocol.messages import Open

__all__ = ["Inspector", "Seen", "Tap", "masked"]

_SECRET = re.compile(r"authorization|cookie|token|secret|api-?key|password|signature|session", re.IGNORECASE)
_MOST_TEXT = 4096
"""Characters of one event's data that are shown."""
_MOST_EVENT = 256 * 1024
"""Bytes of an event that is not whole yet that are held for its readers."""
_ENDS = re.compile(r"\r\n\r\n|\n\n|\r\r|\r\n\n|\n\r\n")
_BOUNDARIES = (b"\n\n", b"\r\n\r\n", b"\r\r")
_NONE: Headers = []
_LINES = re.compile(r"\r\n|\n|\r")


def masked(headers: Headers) -> list[list[str]]:
    """Headers for people: the values of those that carry secrets are left out."""
    return [[name, "…" if _SECRET.search(lower(name) or name) else value] for name, value in headers]


class Tap:
    """One reader of a stream's events.

    Args:
        per_second: events that it is given at most; the others are counted.
        tell: called with each.
    """

    __slots__ = ("_left", "_per_second", "_second", "_tell", "dropped")

    def __init__(self, per_second: int, tell: Callable[[dict[str, Any]], None]) -> None:
        self._per_second = per_second
        self._tell = tell
        self._second = 0
        self._left = per_second
        self.dropped = 0

    def give(self, now: float, event: dict[str, Any]) -> None:
        """One event, unless the second has had its share."""
        if int(now) != self._second:
            self._second, self._left = int(now), self._per_second
        if self._left <= 0:
            self.dropped += 1
            return
        self._left -= 1
        self._pass(event)

    def end(self, reason: str) -> None:
        """The stream is over: told whatever the second has had, or its reader would wait for ever."""
        self._pass({"type": "end", "reason": reason})

    def _pass(self, event: dict[str, Any]) -> None:
        if self.dropped:
            self._tell({"type": "skipped", "events": self.dropped})
            self.dropped = 0
        self._tell(event)


class Seen:
    """One request that is looked into.

    Attributes:
        request: its head, as it came.
        at: seconds of the epoch.
        most: bytes of a body that are kept.
        whole: all of it is.
        status: of the answer; 0: there is none yet.
        headers: of the answer.
        reason: why it ended; empty: it has not.
        seconds: that it took.
    """

    __slots__ = (
        "_body", "_decoder", "_synced", "_taps", "_text", "at", "began", "headers", "most", "reason", "request",
        "seconds", "sse", "status", "whole",
    )  # fmt: skip

    def __init__(self, request: Open, *, most: int) -> None:
        self.request = request
        self.at, self.began = time(), monotonic()
        self._body: bytearray | None = None
        self.whole = True
        self.status = 0
        self.headers: Headers = _NONE
        self.reason = ""
        self.seconds = 0.0
        self.sse = False
        self.most = most
        self._taps: dict[Tap, None] | None = None
        self._decoder: codecs.IncrementalDecoder | None = None
        self._synced = True
        self._text = ""

    @property
    def body(self) -> bytes | bytearray:
        """Of the request, as far as it is kept."""
        return b"" if self._body is None else self._body

    # -- what the exchange tells -------------------------------------------------------------------------

    def upload(self, data: bytes) -> None:
        """Bytes of the request's body."""
        if self._body is None:
            self._body = bytearray()
        if self.whole and len(self._body) + len(data) <= self.most:
            self._body += data
        else:
            self.whole = False

    def answered(self, status: int, headers: Headers, *, sse: bool) -> None:
        """The head of the answer."""
        self.status, self.headers, self.sse = status, headers, sse

    def passed(self, data: bytes) -> None:
        """Bytes of the answer's body."""
        if not self._taps:
            if self.sse:
                self._synced = data.endswith(_BOUNDARIES)
            return
        now = monotonic()
        if not self.sse:
            self._give(now, {"type": "bytes", "bytes": len(data), "text": data[:_MOST_TEXT].decode(errors="replace")})
            return
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text += self._decoder.decode(data)
        while found := _ENDS.search(self._text):
            block, self._text = self._text[: found.start()], self._text[found.end() :]
            if self._synced and block:
                self._give(now, _decoded(block))
            self._synced = True
        if len(self._text) > _MOST_EVENT:
            self._text, self._synced = "", False

    def over(self, reason: str) -> None:
        """It is over."""
        self.reason, self.seconds = reason, monotonic() - self.began
        taps, self._taps = self._taps, None
        for tap in taps or ():
            tap.end(reason)

    def _give(self, now: float, event: dict[str, Any]) -> None:
        for tap in list(self._taps or ()):
            tap.give(now, event)

    # -- what operators ask ------------------------------------------------------------------------------

    def tap(self, tap: Tap) -> Callable[[], None]:
        """Give it what passes from now on, from the next whole event on; the returned function ends that."""
        if self._taps is None:
            self._taps = {}
        if not self._taps:
            self._decoder, self._text = None, ""
        self._taps[tap] = None
        return lambda: self._taps.pop(tap, None) if self._taps is not None else None

    def shown(self, tunnel: str) -> dict[str, Any]:
        """For people."""
        return {
            "request_id": self.request.request_id,
            "tunnel": tunnel,
            "at": self.at,
            "method": self.request.method,
            "path": self.request.path,
            "client": self.request.client,
            "request_headers": masked(self.request.headers),
            "body_bytes": len(self.body),
            "body_whole": self.whole,
            "status": self.status or None,
            "answer_headers": masked(self.headers),
            "reason": self.reason or None,
            "seconds": round(self.seconds if self.reason else monotonic() - self.began, 4),
        }


def _decoded(block: str) -> dict[str, Any]:
    """An event, or a comment, by its fields (HTML, 9.2.6)."""
    event: dict[str, Any] = {"type": "event"}
    data: list[str] = []
    comments: list[str] = []
    for line in _LINES.split(block):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            comments.append(value)
        elif name == "data":
            data.append(value)
        elif name in ("id", "event", "retry"):
            event[name] = value[:_MOST_TEXT]
    if not data and len(event) == 1:
        return {"type": "comment", "data": "\n".join(comments)[:_MOST_TEXT]}
    text = "\n".join(data)
    event["data"] = text[:_MOST_TEXT]
    if len(text) > _MOST_TEXT:
        event["cut"] = len(text) - _MOST_TEXT
    return event


class Inspector:
    """Of one tunnel: the last requests, those under way among them.

    Args:
        config: how much is kept.
    """

    def __init__(self, config: InspectionConfig) -> None:
        self.config = config
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    @property
    def kept(self) -> tuple[int, int]:
        """How many requests are kept, and how many may be."""
        return len(self._seen), self.config.requests

    def begin(self, request: Open) -> Seen:
        """A request comes; the oldest is forgotten for it when there are as many as may be."""
        seen = self._seen[request.request_id] = Seen(request, most=self.config.body)
        while len(self._seen) > self.config.requests:
            self._seen.popitem(last=False)
        return seen

    def find(self, request_id: str) -> Seen | None:
        """That request; None: it is not kept, or never was here."""
        return self._seen.get(request_id)

    def all(self) -> deque[Seen]:
        """Newest first."""
        return deque(reversed(self._seen.values()))
