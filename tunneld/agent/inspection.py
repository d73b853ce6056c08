"""Looking into one stream of a tunnel with `inspect: true`: its heads, its events as they pass.

What is kept is bounded by `inspection`; secrets are masked when they are shown, and kept only so that a request can be
sent again. Which streams those are, and how many of the past, is for `agent.inspector`.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable
from time import monotonic
from typing import Any

import msgspec

from tunneld.protocol.headers import Headers, get_all, is_encoded, lower
from tunneld.protocol.messages import Open, decode_open
from tunneld.wire.http_client import head_fields

__all__ = ["Seen", "Tap", "masked", "unpacked", "unsecret"]

_SECRET = re.compile(
    r"authorization|cookie|token|secret|passw|passphrase|credential|signature|session|jwt|assertion|csrf|xsrf"
    r"|(?<![a-z])auth(?![a-z])|(?:api|access|app|auth|account|client|master|private|subscription|x)[-_]?key(?![a-z])"
    r"|^sec-websocket-protocol$",
    re.IGNORECASE,
)
_IN_ADDRESS = re.compile(
    r"(?i)([?&;](?:[^=&;\s]*(?:token|secret|key|passw|sig|session|auth|jwt|credential|cookie)[^=&;\s]*|code|pwd)=)[^&;#\s\"'<>]+"
    r"|(?<=://)[^/@\s]+(?=@)"
)
"""A secret in an address: the value of a parameter that is named like one, or user and password."""
_MOST_TEXT = 4096
"""Characters of one event's data that are shown."""
_MOST_EVENT = 256 * 1024
"""Bytes of an event that is not whole yet that are held for its readers."""
_ENDS = re.compile(r"\r\n\r\n|\n\n|\r\r|\r\n\n|\n\r\n")
_BOUNDARIES = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LINES = re.compile(r"\r\n|\n|\r")
_INFLATED = ("gzip", "x-gzip", "deflate")
_FRAMES = {0: "continuation", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}


def masked(headers: Headers) -> list[list[str]]:
    """Headers for people: the values of those that carry secrets are left out, and secrets in addresses."""
    return [[name, "…" if _SECRET.search(lower(name) or name) else unsecret(value)] for name, value in headers]


def unsecret(text: str) -> str:
    """A path with its query, or a header's value, without what addresses carry of secrets."""
    return _IN_ADDRESS.sub(r"\1…", text)


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


class Seen(msgspec.Struct, eq=False, gc=False):
    """One request that is looked into, or was; see `agent.inspector`.

    Heads are kept as they came, a text each, and none of it is known to the garbage collector: an object for each
    header of so many requests would be made for nobody, and let go of when none of it is in any cache any more.

    Attributes:
        began: monotonic seconds.
        at: the same, seconds of the epoch.
        most: bytes of a body that are kept.
        whole: all of its body is kept.
        status: of the answer; 0: there is none yet.
        reason: why it ended; empty: it has not.
        seconds: that it took.
        sse: the answer is an event stream.
        minds: it has to be told what passes of the answer.
    """

    _request: bytes
    began: float
    at: float
    most: int
    _answer: str = ""
    _body: bytearray | None = None
    whole: bool = True
    status: int = 0
    reason: str = ""
    seconds: float = 0.0
    sse: bool = False
    minds: bool = False
    _reading: _Reading | None = None
    _packing: _Packing | None = None  # of an event stream that the service packs
    _synced: bool = True

    @property
    def request(self) -> Open:
        """Its head, as it came."""
        return decode_open(self._request)

    @property
    def headers(self) -> Headers:
        """Of the answer."""
        return head_fields(self._answer)

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

    def answered(self, status: int, head: str, *, sse: bool) -> None:
        """The head of the answer, as the service sent it."""
        self.status, self._answer = status, head
        if sse:
            self.sse = True
            if is_encoded(headers := self.headers):
                self._packing, self.minds = _Packing(_encoding(headers)), True

    def passed(self, data: bytes) -> None:
        """Bytes of the answer's body; need not be called unless `minds`."""
        reading, events = self._reading, self.sse
        if self._packing is not None:
            data, events = self._packing.unpacked(data)
            if not data:
                return
        if reading is None or not reading.taps:  # it is packed, or it would not be told
            self._synced = not events or data.endswith(_BOUNDARIES)
        elif events:
            self._synced = reading.events(data, self._synced)
        elif encoding := _encoding(self.headers):
            reading.give(monotonic(), {"type": "bytes", "bytes": len(data), "text": "", "encoding": encoding})
        else:
            text = data[:_MOST_TEXT].decode(errors="replace")
            reading.give(monotonic(), {"type": "bytes", "bytes": len(data), "text": text})

    def frame(self, sender: str, first: int, payload: bytes | memoryview) -> None:
        """A frame of a WebSocket: who sent it, `visitor` or `service`, and its first byte (protocol/websockets.py)."""
        reading = self._reading
        if reading is None or not reading.taps:
            return
        kind, text = _FRAMES.get(first & 0x0F, "unknown"), ""
        data = bytes(payload[: 4 * _MOST_TEXT])
        if kind == "close" and len(data) >= 2:
            text = f"{int.from_bytes(data[:2], 'big')} {data[2:].decode(errors='replace')}".rstrip()
        elif kind in ("text", "continuation"):
            text = data.decode(errors="replace")[:_MOST_TEXT]
        told = {"kind": kind, "final": bool(first & 0x80), "bytes": len(payload), "text": text}
        reading.give(monotonic(), {"type": "frame", "from": sender, **told})

    def over(self, reason: str, now: float) -> None:
        """It is over, or nobody may look into it any more; `now` is monotonic seconds."""
        self.reason, self.seconds = reason, now - self.began
        reading, self._reading, self._packing = self._reading, None, None
        if reading is not None:
            for tap in reading.taps:
                tap.end(reason)

    # -- what operators ask ------------------------------------------------------------------------------

    def tap(self, tap: Tap, *, between: bool = True) -> Callable[[], None]:
        """Give it what passes from now on, from the next whole event on; the returned function ends that.

        Args:
            between: what passes next begins an event; of an answer that is packed it is known here.
        """
        reading = self._reading
        if reading is None or not reading.taps:
            reading = self._reading = _Reading()
            if self._packing is None:
                self._synced = between
        reading.taps[tap] = None
        self.minds = True

        def leave() -> None:
            reading.taps.pop(tap, None)
            if not reading.taps:
                self.minds = self._packing is not None

        return leave

    def shown(self, tunnel: str) -> dict[str, Any]:
        """For people."""
        request = self.request
        return {
            "request_id": request.request_id,
            "tunnel": tunnel,
            "at": self.at,
            "method": request.method,
            "path": unsecret(request.path),
            "client": request.client,
            "request_headers": masked(request.headers),
            "body_bytes": len(self.body),
            "body_whole": self.whole,
            "status": self.status or None,
            "answer_headers": masked(self.headers),
            "reason": self.reason or None,
            "seconds": round(self.seconds if self.reason else monotonic() - self.began, 4),
        }


class _Reading:
    """What passes of an answer while somebody reads it.

    Attributes:
        taps: who does.
    """

    __slots__ = ("_decoder", "_text", "taps")

    def __init__(self) -> None:
        self.taps: dict[Tap, None] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def events(self, data: bytes, synced: bool) -> bool:
        """Bytes of an event stream, of which an event begins here if `synced`; returns whether the next one does."""
        now = monotonic()
        self._text += self._decoder.decode(data)
        while found := _ENDS.search(self._text):
            block, self._text = self._text[: found.start()], self._text[found.end() :]
            if synced and block:
                self.give(now, _decoded(block))
            synced = True
        if len(self._text) > _MOST_EVENT:
            self._text, synced = "", False
        return synced

    def give(self, now: float, event: dict[str, Any]) -> None:
        """To every reader."""
        for tap in list(self.taps):
            tap.give(now, event)


class _Packing:
    """An event stream's Content-Encoding, undone from its first byte on: later it says nothing.

    Args:
        encoding: its name.
    """

    __slots__ = ("_inflate",)

    def __init__(self, encoding: str) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in _INFLATED else None

    def unpacked(self, data: bytes) -> tuple[bytes, bool]:
        """(text of events, True); where it cannot be undone, from then on: (as it came, False)."""
        inflate = self._inflate
        if inflate is not None:
            try:
                found = inflate.decompress(data, _MOST_EVENT)
            except zlib.error:
                pass
            else:
                if not inflate.unconsumed_tail and not inflate.unused_data:
                    return found, True
            self._inflate = None
        return data, False


def unpacked(data: bytes, headers: Headers, *, most: int) -> tuple[bytes, bool]:
    """The begin of a body for people, at most so many bytes of it, and whether that is all that the data holds.

    Args:
        data: as the service sent it.
        headers: of the answer, which say how it is packed; as it came where that is not known here.
    """
    if _encoding(headers) in _INFLATED:
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            return inflate.decompress(data, most), not inflate.unconsumed_tail
        except zlib.error:
            pass
    return data, True


def _encoding(headers: Headers) -> str:
    """What packs a body; empty: nothing does."""
    named = [one.strip().lower() for value in get_all(headers, "content-encoding") for one in value.split(",")]
    return ", ".join(one for one in named if one not in ("", "identity"))


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
