"""Looking into the streams of a tunnel with `inspect: true`: the last requests' heads, events as they pass, replay.

Nothing of it is there for a tunnel without it. What is kept is bounded by `inspection`; secrets are masked when they
are shown, and kept only so that a request can be sent again.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import msgspec

from tunneld.config.agent import InspectionConfig
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers, get_all, is_encoded, lower
from tunneld.protocol.messages import Open, decode_open
from tunneld.wire.http_client import head_fields

if TYPE_CHECKING:
    from tunneld.agent.record import Record

__all__ = ["Inspector", "Seen", "Tap", "masked", "unpacked", "unsecret"]

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
    """One request that is looked into, or was; see `Inspector.of`.

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

    def is_of(self, request_id: str) -> bool:
        """It is the request of that id."""
        kept = self._request  # read only where the id may stand in it at all
        return (
            b"\\" in kept or request_id.encode(errors="surrogatepass") in kept
        ) and self.request.request_id == request_id

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


class Inspector:
    """Of one tunnel: the last requests, and those under way.

    A request costs little as long as nobody looks: its record keeps what opened it and its answer's head, and what is
    kept of it for people is made when it is over, or needed before.

    Args:
        config: how much is kept.
        live: request id to record, of those under way; it changes as they come and go.

    Attributes:
        readers: that look into a stream now.
    """

    def __init__(self, config: InspectionConfig, live: Mapping[str, Record]) -> None:
        self.config = config
        self.readers = 0
        self._live = live
        self._over: deque[Seen] = deque()

    @property
    def kept(self) -> tuple[int, int]:
        """How many requests are kept, and how many may be."""
        return min(len(self._over) + len(self._live), self.config.requests), self.config.requests

    def of(self, record: Record) -> Seen | None:
        """What is kept of a request that is under way; None: nobody may look into it."""
        seen = record.seen
        if seen is None and record.opening:
            age = monotonic() - record.started
            seen = record.seen = Seen(record.opening, record.started, time() - age, self.config.body)
            if record.answer:
                seen.answered(record.status, record.answer, sse=record.kind == "sse")
        return seen

    def over(self, record: Record, now: float) -> None:
        """It is over; the oldest are forgotten for it when there are more than may be.

        The record keeps nothing of it: who else holds that would hold a head and a body with it.

        Args:
            now: monotonic seconds.
        """
        seen, config = record.seen, self.config
        if seen is None:  # the way of nearly all
            age = now - record.started
            seen = Seen(
                record.opening, record.started, time() - age, config.body, record.answer, None, True, record.status,
                record.reason, age,
            )  # fmt: skip
        else:
            seen.over(record.reason, now)
        record.opening, record.answer, record.seen = b"", "", None
        kept = self._over
        kept.append(seen)
        while len(kept) > config.requests:
            kept.popleft()

    def watch(self, seen: Seen, tell: Callable[[dict[str, Any]], None], *, between: bool) -> Callable[[], None]:
        """Tell of what passes on a stream (see `Seen.tap`); the returned function ends that, once.

        Raises:
            VisitorError: ``too_many_subscribers``.
        """
        if self.readers >= self.config.readers:
            raise VisitorError(
                "too_many_subscribers",
                f"{self.readers} readers look into streams of this tunnel: as many as may (inspection.readers).",
            )
        self.readers += 1
        leave = seen.tap(Tap(self.config.events, tell), between=between)

        def left() -> None:
            leave()
            self.readers -= 1

        return left

    def find(self, request_id: str) -> Seen | None:
        """That request; None: it is not kept, or never was here."""
        record = self._live.get(request_id)
        if record is not None and (seen := self.of(record)) is not None:
            return seen
        return next((seen for seen in reversed(self._over) if seen.is_of(request_id)), None)

    def all(self) -> list[Seen]:
        """The last that began, newest first."""
        most = self.config.requests
        under_way = [record for record in self._live.values() if record.opening][-most:]
        found = [*self._over, *(seen for record in under_way if (seen := self.of(record)) is not None)]
        return sorted(found, key=lambda seen: seen.began, reverse=True)[:most]
