"""Events of streams as their readers get them, made many at a time: each step for all of them, where it can be in C.

There are two for each request. To make them as they happen cost three times as much: code that runs once a request is
in no cache when it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from tunneld.agent.record import Record

__all__ = ["Happened", "Over", "Said", "begins", "blocks", "ends", "second"]


class Said(msgspec.Struct, gc=False):
    """What all events of a stream say, in the order of what readers get."""

    tunnel: str
    request_id: str
    kind: str
    method: str
    path: str
    client: str


class Closed(Said, gc=False):
    """What the end of one says.

    Attributes:
        reason: why it ended.
        age_s: seconds that it was under way.
    """

    reason: str
    age_s: float
    bytes_in: int
    bytes_out: int


def _form(kind: bytes) -> tuple[bytes, bytes]:
    """What stands around the second id of an event, and so between the first and its time."""
    return b'\nevent: %b\ndata: {"id":' % kind, b',"type":"%b","time":"' % kind


_OPENED: Final = _form(b"stream_opened")
_CLOSED: Final = _form(b"stream_closed")
_REASON: Final = b',"reason":"'  # the key alone: a quote inside a value has a backslash before it
_LAST: Final = b"}\n\nid: "
_THOUSAND: Final = [b"%03d" % number for number in range(1000)]
_MILLISECONDS: Final = [b'%bZ",' % digits for digits in _THOUSAND]
_TOGETHER: Final = 32
"""Events of one go, 10 KiB. For each part of what it joins CPython writes 80 bytes beside, more than most parts have:
where all of a piece were joined at once, that was in no cache any more when they were read.
"""
_encoder: Final = msgspec.json.Encoder()
_moment: Final = itemgetter(0)

Over = tuple[str, str, str, str, str, str, str, float, float, int, int]
"""A stream that is over: what its events say in the order of `Closed`, but in place of its age when it began and ended,
monotonic seconds. A tuple, since one is made for each request: no other code is needed for that.
"""

Happened = tuple[float, tuple[bytes, bytes], bytes]
"""An event: monotonic seconds, which it is, and what it says beside its id, type and time: JSON without its braces."""


def begins(records: Iterable[Record]) -> list[Happened]:
    """Of streams that are under way."""
    return [(record.started, _OPENED, _said(_begin(record))) for record in records]


def ends(over: Sequence[Over], told: float) -> list[Happened]:
    """Of streams that are over, and the begins of those of which they were not told.

    Args:
        over: one at least.
        told: monotonic seconds: of what began by then they were.
    """
    tunnels, ids, kinds, methods, paths, clients, reasons, started, ended, received, sent = zip(*over, strict=True)
    ages = [int((end - begin) * 1000 + 0.5) / 1000 for begin, end in zip(started, ended, strict=True)]
    closed = list(map(Closed, tunnels, ids, kinds, methods, paths, clients, reasons, ages, received, sent))
    try:
        lines = _encoder.encode_lines(closed)[1:-2].split(b"}\n{")
    except UnicodeEncodeError:  # half a surrogate in a path
        lines = [_said(one) for one in closed]
    found: list[Happened] = []
    for one, kind, line, begin in zip(closed, kinds, lines, started, strict=True):
        if begin > told:
            # What the begin says is what the end says, up to its reason; but for the kind, which it did not know.
            said = line[: line.rindex(_REASON)] if kind == "http" else _said(_begin(one))
            found.append((begin, _OPENED, said))
    found += zip(ended, repeat(_CLOSED), lines)
    return found


def blocks(happened: list[Happened], first: int, offset: float) -> Iterator[tuple[bytes, int]]:
    """Blocks of an event stream (HTML, 9.2.6), in the order of what happened; of the same moment as they are given.

    They come some at a time, with how many they are.

    Args:
        happened: one at least; they are sorted here.
        first: id of the first, 1,000 at least (`Teller`'s are those of a clock); the others follow it.
        offset: from monotonic seconds to those of the epoch.
    """
    happened.sort(key=_moment)
    this = int(offset + happened[0][0])
    since, day = this - offset, second(this)
    thousands, rest = divmod(first, 1000)
    lead = b"%d" % thousands  # ids of a piece have all but their last three digits in common
    for begin in range(0, len(happened), _TOGETHER):
        some = happened[begin : begin + _TOGETHER]
        parts = [b"id: "]
        for at, (before, after), said in some:
            milliseconds = int((at - since) * 1000)
            if milliseconds > 999:
                this = int(offset + at)
                since, day = this - offset, second(this)
                milliseconds = min(999, int((at - since) * 1000))
            if rest == 1000:
                thousands, rest = thousands + 1, 0
                lead = b"%d" % thousands
            number = lead + _THOUSAND[rest]
            rest += 1
            parts += (number, before, number, after, day, _MILLISECONDS[milliseconds], said, _LAST)
        parts[-1] = b"}\n\n"
        yield b"".join(parts), len(some)


@lru_cache(maxsize=4)
def second(of_the_epoch: int) -> bytes:
    """A second in ISO 8601, up to its point and with it."""
    return datetime.fromtimestamp(of_the_epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S.").encode()


def _begin(of: Record | Said) -> Said:
    """What the begin of a stream says: that it is an event stream is known later."""
    return Said(of.tunnel, of.request_id, "http", of.method, of.path, of.client)


def _said(of: Said) -> bytes:
    """JSON without its braces; it holds no line end, so one data field carries it."""
    try:
        return _encoder.encode(of)[1:-1]
    except UnicodeEncodeError:
        return json.dumps(msgspec.structs.asdict(of), separators=(",", ":"))[1:-1].encode()
