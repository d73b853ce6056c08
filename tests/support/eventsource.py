"""A slow reading of an event stream, step by step as the HTML standard has it: what the fast one must equal."""

from __future__ import annotations

from dataclasses import dataclass, field

BOM = b"\xef\xbb\xbf"


@dataclass
class Reading:
    """What EventSource has after some bytes, and where it stood between two events (offsets without the BOM)."""

    events: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)  # (type, data, last event id)
    last_id: bytes = b""
    recoverable: bool = False
    retry: int | None = None
    boundaries: list[int] = field(default_factory=lambda: [0])
    longest: int = 0  # bytes of the longest block, or comment before one, up to its end


def lines_of(data: bytes) -> list[tuple[bytes, int, int, bool]]:
    """(line, offset of its end mark, offset behind it, ended by CRLF) of each complete line."""
    lines = []
    start = at = 0
    while at < len(data):
        if data[at] in b"\r\n":
            after = at + 2 if data[at : at + 2] == b"\r\n" else at + 1
            lines.append((data[start:at], at, after, after == at + 2))
            start = at = after
        else:
            at += 1
    return lines


def read(data: bytes, *, max_id: int = 1024) -> Reading:
    """Read a stream from its first byte."""
    data = data.removeprefix(BOM)
    reading = Reading()
    id_buffer = b""
    kind = b""
    texts: list[bytes] = []
    own = False
    begun = False  # the block has a line that is no comment
    start = 0
    for line, end, after, crlf in lines_of(data):
        if line == b"":
            reading.last_id = id_buffer
            if texts:
                reading.events.append((kind or b"message", b"\n".join(texts), id_buffer))
                reading.recoverable = own and 0 < len(id_buffer) <= max_id
            if begun:
                reading.longest = max(reading.longest, end - start)
            kind, texts, own, begun = b"", [], False, False
        elif line.startswith(b":"):
            if not begun:
                reading.longest = max(reading.longest, end - start)
        else:
            begun = True
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"event":
                kind = value
            elif name == b"data":
                texts.append(value)
            elif name == b"id" and b"\0" not in value:
                id_buffer, own = value, True
            elif name == b"retry" and value.isdigit() and len(value) <= 12:
                reading.retry = int(value)
        if not begun:
            if crlf:
                reading.boundaries.append(after - 1)
            reading.boundaries.append(after)
            start = after
    reading.recoverable = reading.recoverable and 0 < len(reading.last_id) <= max_id
    return reading


def usable(last_id: bytes, *, max_id: int = 1024) -> str | None:
    """The id as it may be said again."""
    return last_id.decode("utf-8", "replace") if 0 < len(last_id) <= max_id else None
