"""``tunnelctl doctor --sse URL``: does something on the way buffer an event stream, or cut it when it is quiet?

Through our own tunnel the agent knows how many events left; elsewhere only what arrives can be judged: events that come
in heaps after pauses were held back by somebody.
"""

from __future__ import annotations

import http.client
import re
import socket
import string
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from tunnelctl.doctor.bounds import at_most, connected
from tunnelctl.doctor.findings import Finding, fail, ok, skip, warn
from tunneld.errors import UsageError

__all__ = ["Measured", "judge", "measure"]

_PATIENCE = 15.0
"""Seconds for the connection and the head."""
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_HEADERS = {"Accept": "text/event-stream", "Cache-Control": "no-cache", "Accept-Encoding": "gzip"}
"""As a browser asks: what packs event streams for one is to pack this too."""
_UNPACKED = 1 << 20
"""Bytes of a packed stream that are unpacked of one read; the rest is unpacked with the next."""
_HEAP = 4
"""Events in one read from which on it looks like a heap, when the pause before it was long."""
_PAUSE = 1.0
_LATE = 3


@dataclass(slots=True)
class Measured:
    """What one stream did.

    Attributes:
        status: of the answer.
        headers: of it, lower case.
        head_s: seconds until its head.
        reads: (seconds since the head, bytes, events in it, comments in it) of each read.
        ended: how it ended: ``time`` (we left), ``end`` (cleanly), ``cut``.
        quiet_s: seconds without a byte before it ended.
        sent: events that the agent had sent at the end; None: unknown.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    head_s: float = 0.0
    reads: list[tuple[float, int, int, int]] = field(default_factory=list)
    ended: str = "time"
    quiet_s: float = 0.0
    sent: int | None = None

    @property
    def events(self) -> int:
        """That arrived."""
        return sum(events for _, _, events, _ in self.reads)


def measure(url: str, seconds: float, ask: Callable[[str], dict[str, Any] | None]) -> Measured:
    """Read a stream for so long.

    Args:
        url: of it.
        seconds: at most.
        ask: the stream of a request id, as the agent knows it; None: it does not.

    Raises:
        UsageError: the address cannot be one.
        OSError, http.client.HTTPException: there is no answer.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise UsageError(f"--sse: {url[:200]!r} is no address such as https://tunnel.example.org/t/NAME/sse")
    found = Measured()
    began = time.monotonic()
    connection = connected(parts.scheme, host, port, _PATIENCE)
    try:
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)
        sock = connection.sock  # an answer that ends with its connection takes it away from there
        with at_most(_PATIENCE, sock):
            connection.request("GET", target, headers=_HEADERS)
            answer = connection.getresponse()
        found.head_s = time.monotonic() - began
        found.status = answer.status
        found.headers = {name.lower(): value for name, value in answer.getheaders()}
        if found.status == 200 and answer.headers.get_content_type() == "text/event-stream":
            with suppress(TimeoutError), at_most(seconds + _PATIENCE, sock):  # a chunk whose length never ends
                _read(sock, answer, seconds, found)
            request_id = found.headers.get("x-tunnel-request-id")
            known = ask(request_id) if request_id and found.ended == "time" else None
            if known is not None and isinstance(known.get("events"), int):
                found.sent = known["events"]
    finally:
        connection.close()
    return found


def _read(sock: socket.socket, answer: http.client.HTTPResponse, seconds: float, found: Measured) -> None:
    began = last = time.monotonic()
    unpack = zlib.decompressobj(wbits=31) if found.headers.get("content-encoding") == "gzip" else None
    tail = b""
    while (left := began + seconds - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data = answer.read1(65536)
        except TimeoutError:
            break
        except (OSError, http.client.HTTPException):
            found.ended = "cut"
            break
        now = time.monotonic()
        if not data:
            found.ended = "end" if answer.length in (None, 0) else "cut"
            break
        last, size = now, len(data)
        if unpack is not None:
            try:
                data = unpack.decompress(unpack.unconsumed_tail + data, _UNPACKED)
            except zlib.error:
                found.ended = "cut"
                break
        blocks = _END.split(tail + data)
        tail = blocks.pop()
        comments = sum(1 for block in blocks if block.strip() and not _fields(block))
        events = sum(1 for block in blocks if _fields(block))
        found.reads.append((now - began, size, events, comments))
    found.quiet_s = time.monotonic() - last


def _fields(block: bytes) -> bool:
    """An event, not comments alone."""
    return any(line and not line.startswith(b":") for line in block.splitlines())


def judge(found: Measured) -> list[Finding]:
    """What the measure says, and what to do."""
    if found.status != 200:
        code = found.headers.get("x-tunnel-error", "")
        advice = f"`tunneld explain {code}` says what that means." if code else "Give the address of an event stream."
        return [fail("sse", f"It is answered {found.status} {code}".rstrip() + ".", advice)]
    kind = found.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        return [
            fail("sse", f"It is {kind or 'of no type'}, not text/event-stream.", "Give the address of an event stream.")
        ]
    findings = [_encoding(found), _buffering(found), _cut(found)]
    via = [f"{name}: {found.headers[name]}" for name in ("via", "server", "x-cache", "cf-ray") if name in found.headers]
    findings.append(
        ok("sse-way", "Between: " + ", ".join(via) + ".") if via else skip("sse-way", "Nothing between names itself.")
    )
    return findings


def _encoding(found: Measured) -> Finding:
    encoding = found.headers.get("content-encoding", "identity")
    if encoding != "identity":
        return warn(
            "sse-encoding",
            f"It is encoded by {encoding}: whoever does that gathers events.",
            "Turn compression off for text/event-stream (nginx: gzip_types without it).",
        )
    return ok("sse-encoding", "It is not compressed.")


def _buffering(found: Measured) -> Finding:
    name = "sse-buffering"
    off = "Turn buffering off there (nginx: proxy_buffering off; or X-Accel-Buffering: no passes through)."
    if found.sent is not None and found.sent - found.events > _LATE:
        return fail(
            name, f"The agent has sent {found.sent} events, {found.events} arrived: something between buffers.", off
        )
    if not found.events:
        if found.sent == 0:
            return skip(name, "The service sent no event in this time.")
        return warn(name, f"No event arrived in {found.quiet_s:.0f} s.", "Is it a quiet stream? Else: " + off)
    heaps = [
        (at, events)
        for (before, _, _, _), (at, _, events, _) in zip(found.reads, found.reads[1:], strict=False)
        if events >= _HEAP and at - before >= _PAUSE
    ]
    if found.sent is None and len(heaps) >= 2:
        at, events = heaps[-1]
        return fail(
            name,
            f"Events come in heaps ({events} at once after a pause, at {at:.1f} s): something between buffers.",
            off,
        )
    known = f" of {found.sent} that the agent sent" if found.sent is not None else ""
    return ok(
        name, f"{found.events} events{known} arrived as they were made, the head after {found.head_s * 1000:.0f} ms."
    )


def _cut(found: Measured) -> Finding:
    name = "sse-idle"
    comments = sum(comments for _, _, _, comments in found.reads)
    if found.ended == "time":
        quiet = max(
            (after - before for (before, *_), (after, *_) in zip(found.reads, found.reads[1:], strict=False)),
            default=0.0,
        )
        quiet = max(quiet, found.quiet_s)
        return ok(name, f"It stayed open; the longest quiet was {quiet:.1f} s, {comments} keepalive comments came.")
    if found.quiet_s < 2:
        said = "It ended" if found.ended == "end" else "It was cut"
        return warn(
            name, f"{said} in the middle of its events.", "See the log of the service, and of the tunnel's both ends."
        )
    keepalive = max(1, int(found.quiet_s / 2))
    return fail(
        name,
        f"It was {'ended' if found.ended == 'end' else 'cut'} after {found.quiet_s:.1f} s of quiet: something between "
        "has an idle timeout.",
        f"`sse: {{keepalive: {keepalive}s}}` for this tunnel would save it, or raise that timeout.",
    )
