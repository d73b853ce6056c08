"""Visitors that come back: their stream to the service stays open, and what they missed is kept (PROTOCOL.md, replay).

A `Recording` belongs to one event stream. A return needs the stream's cookie, which no page can read, the same path
and query, Authorization, other cookies and Origin, and an id that this stream sent; more than one such stream counts
as none. One browser's streams of one path share the cookie, since it can hold only one: a return whose id several
streams sent (two tabs of a broadcast) begins anew, and does not take the other tab's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from hashlib import blake2b
from secrets import token_urlsafe
from typing import TYPE_CHECKING, NamedTuple

from tunneld.protocol.headers import Headers, get, get_all, lower
from tunneld.protocol.messages import Open
from tunneld.protocol.sse import BLOCK, own_id
from tunneld.protocol.windows import MemoryBudget
from tunneld.server.events import EventBody

if TYPE_CHECKING:
    from tunneld.server.event_visit import EventVisit
    from tunneld.server.registry import Tunnel
    from tunneld.wire.http_server import ServerConnection

__all__ = [
    "COOKIE",
    "EventLog",
    "Missed",
    "Recording",
    "Replays",
    "cookie_path",
    "gap_event",
    "may_replay",
    "without_cookie",
]

#: The name of the cookie that a returning visitor is known by.
COOKIE = "tunneld-replay"
#: Ids of a recorded stream that are known after their events are no longer kept.
_REMEMBER = 4096
#: The share of a tunnel's `max_streams` that streams without a visitor may take: the oldest goes first.
_MOST_KEPT = 4
_WHO = frozenset({"authorization", "cookie", "x-tunnel-user"})
_MCP_CANCELS = "2026-07-28"  # from this version on, closing an MCP stream is cancelling its call
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}").fullmatch
# Of the answer's head, what spoke for its moment and is not said again.
_SAID_ONCE = frozenset({"date", "set-cookie", "age", "expires", "connection", "transfer-encoding"})


def may_replay(request: Open) -> bool:
    """Whether a request's stream may outlive its visitor: a GET whose closing is not its cancelling."""
    if request.method != "GET":
        return False
    version = get(request.headers, "mcp-protocol-version")
    return version is None or not _DATE(version) or version < _MCP_CANCELS


def without_cookie(headers: Headers) -> tuple[Headers, list[str]]:
    """A visitor's headers without our own cookie, and the values that it had of it."""
    values: list[str] = []
    out: Headers = []
    for pair in headers:
        if lower(pair[0]) != "cookie" or COOKIE not in pair[1]:
            out.append(pair)
            continue
        kept = []
        for cookie in pair[1].split(";"):
            name, _, value = cookie.strip(" \t").partition("=")
            if name == COOKIE:
                values.append(value)
            else:
                kept.append(cookie.strip(" \t"))
        if kept:
            out.append((pair[0], "; ".join(kept)))
    return (out, values) if values else (headers, values)


def cookie_path(target: str) -> str:
    """The Path by which a cookie comes back to this target: its path, as long as the attribute can hold it."""
    path, _, _ = target.partition("?")
    at = path.find(";")
    return path if at < 0 else path[: path.rfind("/", 0, at) + 1]


def _digest(*parts: str) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        raw = part.encode("latin-1", "replace")
        digest.update(len(raw).to_bytes(4, "big"))
        digest.update(raw)
    return digest.digest()


def _owner(tunnel: str, path: str, headers: Headers) -> bytes:
    """Who asks for what, our own cookie aside; nothing can be read back."""
    said = ("\0".join(get_all(headers, name)) for name in ("authorization", "cookie", "origin", "x-tunnel-user"))
    return _digest(tunnel, path, *said)


class Missed(NamedTuple):
    """What a returning visitor has not got.

    Attributes:
        chunks: whole events.
        gap: some before them are no longer kept.
    """

    chunks: list[bytes]
    gap: bool


class EventLog:
    """The last events of one stream, whole ones, at most `limit` bytes. Pure.

    Attributes:
        size: bytes.
    """

    __slots__ = ("_base", "_chunks", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._chunks: deque[tuple[bytes, bytes]] = deque()  # (whole events, the id of the last one with data, if own)
        self._base = b""  # the id after which the log begins, if one stands exactly there

    def add(self, chunk: bytes, own: bytes) -> int:
        """Keep one or more whole events, `own` being the id of the last; returns by how many bytes the log grew."""
        before = self.size
        self._chunks.append((chunk, own))
        self.size += len(chunk)
        while self.size > self.limit:
            self.drop_oldest()
        return self.size - before

    def skip(self, own: bytes) -> int:
        """Something was sent that is not kept: the log begins anew behind it. Returns the growth, 0 or less."""
        before, self.size = self.size, 0
        self._chunks.clear()
        self._base = own
        return -before

    def drop_oldest(self) -> int:
        """Let the oldest go; returns its bytes, 0 when the log is empty."""
        if not self._chunks:
            return 0
        chunk, self._base = self._chunks.popleft()
        self.size -= len(chunk)
        return len(chunk)

    def after(self, event_id: bytes) -> list[bytes] | None:
        """What was sent after the last event with this id; None when that event is not kept any more."""
        missed: list[bytes] = []
        for chunk, own in reversed(self._chunks):
            if own == event_id:
                return missed[::-1]
            if event_id in chunk:
                end = 0
                for match in BLOCK.finditer(chunk):
                    if own_id(match.group()) == event_id:
                        end = match.end()
                if end:
                    missed.append(chunk[end:])
                    return missed[::-1]
            missed.append(chunk)
        return missed[::-1] if event_id == self._base else None

    def all(self) -> list[bytes]:
        """Everything that is kept."""
        return [chunk for chunk, _ in self._chunks]


class RecordedBody(EventBody):
    """An event body whose events are kept for a while, sent or not."""

    __slots__ = ("_oversize", "recording")

    def __init__(self, recording: Recording, connection: ServerConnection, prefix: str, authority: str) -> None:
        loop, tunnel = asyncio.get_running_loop(), recording.exchange.tunnel
        super().__init__(loop, connection, tunnel, prefix, authority, remember=_REMEMBER)
        self.recording = recording
        self._oversize = False

    def feed(self, data: bytes, now: float) -> None:
        """As `EventBody.feed`."""
        data = self.splitter.feed(data)
        if data:
            splitter = self.splitter
            if splitter.mid_event or self._oversize:  # not whole, or its rest: nobody can be given it again
                self._oversize = splitter.mid_event
                self.recording.skip(splitter.own_id)
            else:
                self.recording.add(data, splitter.own_id)
            self._connection.send(data)
            self._quiet_since = now


class Recording:
    """One event stream that may outlive its visitor's connection. Made by `Replays.record`."""

    __slots__ = (
        "_replays",
        "_timer",
        "asked",
        "body",
        "cookie",
        "exchange",
        "headers",
        "log",
        "owner",
        "path",
        "whole",
    )

    def __init__(self, replays: Replays, exchange: EventVisit, cookie: str, owner: bytes, path: str) -> None:
        self._replays = replays
        self.exchange = exchange
        self._timer: asyncio.TimerHandle | None = None
        self.body: RecordedBody
        self.cookie = cookie
        self.owner = owner
        self.path = path  # with its query, as the visitor sees it
        self.headers: Headers = []  # of the answer, for those that come back
        self.asked: Headers = []  # by which the stop list knows who asked
        self.log = EventLog(min(exchange.tunnel.sse.replay_buffer, replays.total))
        self.whole = False  # the answer ended cleanly while nobody was there

    def begin(self, connection: ServerConnection, prefix: str, authority: str) -> EventBody:
        """The answer's head was sent by this connection: its body."""
        self.body = RecordedBody(self, connection, prefix, authority)
        return self.body

    def add(self, chunk: bytes, own: bytes) -> None:
        """Whole events were sent, or would have been."""
        self._replays.grown(self.log.add(chunk, own))

    def skip(self, own: bytes) -> None:
        """What was sent cannot be kept."""
        self._replays.grown(self.log.skip(own))

    def missed(self, event_id: bytes) -> Missed | None:
        """What was sent after this id; None when this stream did not send it, or stands inside an event."""
        splitter = self.body.splitter
        if splitter.mid_event:
            return None
        chunks = self.log.after(event_id)
        if chunks is not None:
            return Missed(chunks, gap=False)
        return Missed(self.log.all(), gap=True) if splitter.sent(event_id) else None

    def keep(self) -> float:
        """The visitor has left; returns the seconds for which its stream is kept, 0 when it is not."""
        seconds = self.exchange.tunnel.sse.replay
        if seconds <= 0 or not self.body.splitter.has_ids or not self._replays.keep(self):
            return 0
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expired)
        return seconds

    def returned(self) -> None:
        """The visitor is back."""
        self._replays.release(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """The stream is over."""
        self.returned()
        self._replays.forget(self)

    def _expired(self) -> None:
        self._timer = None
        self.exchange.leave()


class Replays:
    """All recordings of one server.

    Args:
        budget: of the process's memory; recordings count.
        total: bytes of events kept, in all (`sse.replay_total`). Over it every recording loses its oldest in turn.
    """

    def __init__(self, budget: MemoryBudget, total: int) -> None:
        self.total = total
        self.held = 0
        self._budget = budget
        self._cookies: dict[str, dict[Recording, None]] = {}
        self._kept: dict[Tunnel, dict[Recording, None]] = {}  # those without a visitor, the oldest first
        self._turns: deque[Recording] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._turns)

    def record(
        self, exchange: EventVisit, request: Open, headers: Headers, *, prefix: str, cookies: list[str]
    ) -> Recording | None:
        """Begin to record a stream; None when it may not outlive its visitor.

        Args:
            exchange: whose answer is an event stream that can be told apart.
            request: without our own cookie.
            headers: of the answer as the visitor gets it: the cookie is added.
            prefix: ``/t/NAME`` or empty.
            cookies: values of our cookie that came with the request.
        """
        if self._closed or not may_replay(request):
            return None
        path = prefix + request.path
        bare = cookie_path(path)
        owner = _owner(exchange.tunnel.name, bare, request.headers)
        known = (cookie for cookie in cookies if any(one.owner == owner for one in self._cookies.get(cookie, ())))
        recording = Recording(self, exchange, next(known, None) or token_urlsafe(16), owner, path)
        secure = "; Secure" if get(request.headers, "x-forwarded-proto") == "https" else ""
        said = ("Set-Cookie", f"{COOKIE}={recording.cookie}; Path={bare}; HttpOnly; SameSite=Lax{secure}")
        recording.asked = [pair for pair in request.headers if lower(pair[0]) in _WHO]
        recording.headers = [*(pair for pair in headers if lower(pair[0]) not in _SAID_ONCE), said]
        headers.append(said)
        self._cookies.setdefault(recording.cookie, {})[recording] = None
        self._turns.append(recording)
        return recording

    def find(self, tunnel: str, path: str, headers: Headers, cookies: list[str]) -> tuple[Recording, Missed] | None:
        """The one stream that this visitor comes back to, and what it missed; None when there is none.

        Args:
            path: with its query, as the visitor sees it.
            headers: without our own cookie.
            cookies: values of our cookie that came with the request.
        """
        last_id = (get(headers, "last-event-id") or "").encode("latin-1", "replace")
        if not last_id or self._closed:
            return None
        owner = _owner(tunnel, cookie_path(path), headers)
        found: list[tuple[Recording, Missed]] = []
        for cookie in dict.fromkeys(cookies):
            for recording in self._cookies.get(cookie, ()):
                if recording.owner == owner and recording.path == path:
                    missed = recording.missed(last_id)
                    if missed is not None:
                        found.append((recording, missed))
        return found[0] if len(found) == 1 else None

    def grown(self, count: int) -> None:
        """Recordings hold so many bytes more, or fewer."""
        self.held += count
        self._budget.add(count)
        while self.held > self.total:
            self._turns.rotate(-1)
            dropped = self._turns[-1].log.drop_oldest()
            self.held -= dropped
            self._budget.sub(dropped)

    def keep(self, recording: Recording) -> bool:
        """A recording's visitor has left; False when it cannot be kept."""
        if self._closed:
            return False
        tunnel = recording.exchange.tunnel
        kept = self._kept.setdefault(tunnel, {})
        kept[recording] = None
        if len(kept) > max(1, tunnel.max_streams // _MOST_KEPT):
            next(iter(kept)).exchange.leave()
        return True

    def release(self, recording: Recording) -> None:
        """A recording has a visitor again, or is over."""
        kept = self._kept.get(recording.exchange.tunnel)
        if kept is not None:
            kept.pop(recording, None)
            if not kept:
                del self._kept[recording.exchange.tunnel]

    def forget(self, recording: Recording) -> None:
        """A recording is over."""
        self.grown(recording.log.skip(b""))
        streams = self._cookies.get(recording.cookie)
        if streams is not None:
            streams.pop(recording, None)
            if not streams:
                del self._cookies[recording.cookie]
            self._turns.remove(recording)

    def close(self) -> None:
        """Nobody can come back any more: end what is kept for those that left."""
        self._closed = True
        for kept in list(self._kept.values()):
            for recording in list(kept):
                recording.exchange.leave()


def gap_event(event_id: str) -> bytes:
    """What a visitor is told before events of which some are missing.

    Args:
        event_id: the last that it has, as its header says.
    """
    return b"event: tunnel-gap\ndata: %b\n\n" % json.dumps({"last_event_id": event_id}).encode()
