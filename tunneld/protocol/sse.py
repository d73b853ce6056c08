"""Where one server-sent event ends and the next begins (PROTOCOL.md, "recovery and replay of SSE").

Two readers of the same bytes. `EventCounter` only watches: it counts events and knows the last id, as EventSource
would (HTML standard, "interpreting an event stream"), and keeps no more than the beginning of one line.
`EventSplitter` also holds a partial event back, so that what it has let through always ends between two events.
Neither changes a byte, but for a leading byte order mark and the address in an MCP ``endpoint`` event.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable

from tunneld.protocol.answers import for_visitor

__all__ = ["BLOCK", "LEAD", "MAX_ID", "REMEMBERED", "EventCounter", "EventSplitter", "own_id", "rewrite_endpoint"]

MAX_ID = 1024  # bytes of an id that is still usable
REMEMBERED = 64  # ids sent last whose hashes are kept (PROTOCOL.md, recovery)
_BOM = b"\xef\xbb\xbf"
_LINE = 1100  # bytes kept of a line that is not complete: "id: " and an id one over MAX_ID fit
_MAX_RETRY_DIGITS = 12

# One line end is CR, LF or CRLF; atomic, so that a CRLF is never taken for two of them.
_LINE_END = re.compile(rb"(?>\r\n?|\n)")
_BLANK = re.compile(rb"(?>\r\n?|\n)(?>\r\n?|\n)+")
#: What stands before a block's first field: comments and empty lines, which are never held.
LEAD = re.compile(rb"(?>(?::[^\r\n]*+)?(?>\r\n?|\n))++")
#: One block: lines, comments among them, up to and with an empty line.
BLOCK = re.compile(rb"(?>[^\r\n]++(?>\r\n?|\n))++(?>\r\n?|\n)")
_ID_LINE = re.compile(rb"(?:^|(?<=[\r\n]))id(?:: ?([^\r\n]*))?(?=[\r\n])")
_NAMED_ENDPOINT = re.compile(rb"(?:^|[\r\n])event(?:: ?([^\r\n]*))?(?=[\r\n])")
_DATA = re.compile(rb"(?:^|(?<=[\r\n]))data: ?([^\r\n]*)")


def own_id(block: bytes) -> bytes | None:
    """The id that a block's own lines set: empty for none that is usable; None when no line sets one."""
    if block.find(b"id") < 0:
        return None
    values = [value for value in _ID_LINE.findall(block) if 0 not in value]
    if not values:
        return None
    value: bytes = values[-1]
    return value if len(value) <= MAX_ID else b""


def rewrite_endpoint(data: bytes, prefix: str, authority: str = "") -> bytes:
    """Say the address that an MCP ``endpoint`` event names as the visitor reaches it.

    Args:
        data: the event's data: an address as the service sees it.
        prefix: ``/t/NAME``, without a slash at its end; empty when the tunnel has a host of its own.
        authority: host and port by which the visitor reached us; empty when not known.

    Returns:
        The address with the prefix when it is an absolute path that has none yet, or a whole URL that names our
        authority; the path with the prefix of a URL on loopback. Anything else as it came: a relative address is
        right already, and a URL of another host says where it wants to go.
    """
    return for_visitor(data.decode("latin-1"), prefix, authority).encode("latin-1")


class EventCounter:
    """Counts the events of one stream while its bytes pass, however they are cut.

    Attributes:
        events: events that EventSource would dispatch, those with data.
        retry: milliseconds of the last valid ``retry:`` line; None before the first.
    """

    __slots__ = (
        "_cr",
        "_data",
        "_fast",
        "_id",
        "_id_buffer",
        "_ids",
        "_most",
        "_nul",
        "_open",
        "_own",
        "_part",
        "_recover",
        "_start",
        "events",
        "retry",
    )

    def __init__(self) -> None:
        self.events = 0
        self.retry: int | None = None
        self._id = b""  # of the last complete block; empty: none, or none that is usable
        self._id_buffer = b""  # EventSource's "last event ID buffer"
        self._ids: array[int] | None = None  # hashes of the ids that came last; None: nobody wants to know
        self._most = 0  # of which so many are kept, up to twice as many for a while
        self._recover = False  # the last event with data had its own usable id
        self._data = False  # the block under way has a data line
        self._own = False  # the block under way has an id line
        self._open = False  # the block under way has a field
        self._part = b""  # the beginning of the line under way
        self._nul = False  # and whether what was not kept of it held a NUL
        self._cr = False  # the last byte was a CR: an LF that follows belongs to it
        self._start = True  # a byte order mark may still come
        self._fast = False  # at the beginning of a block, with nothing of the above pending

    @property
    def last_event_id(self) -> str | None:
        """EventSource's last event id; None when there is none, or none that is usable (over `MAX_ID` bytes)."""
        return self._id.decode("utf-8", "replace") if self._id else None

    @property
    def recoverable(self) -> bool:
        """Whether ``Last-Event-ID`` could continue here: the last event with data had its own usable id."""
        return self._recover and bool(self._id)

    @property
    def between_blocks(self) -> bool:
        """No event is under way: what comes next begins one."""
        return not (self._part or self._open)

    def feed(self, chunk: bytes) -> bytes:
        """Watch some bytes of the stream pass; returns the same object."""
        if self._fast and chunk.endswith(b"\n\n") and 13 not in chunk:
            if chunk.startswith(b"data:") and chunk.find(b"\n") == len(chunk) - 2:
                self.events += 1
                self._id = self._id_buffer
                self._recover = False
            else:
                self._blocks(chunk)
        else:
            self._watch(chunk)
        return chunk

    def _watch(self, chunk: bytes) -> None:
        """Count in bytes of any cut and any line ends."""
        if self._start:
            chunk = self._part + chunk
            self._part = b""
            if len(chunk) < 3 and _BOM.startswith(chunk):
                self._part = chunk
                return
            self._start = False
            chunk = chunk.removeprefix(_BOM)
        if self._cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._cr = False
        if not chunk:
            self._fast = not (self._cr or self._part or self._open)
            return
        if 13 in chunk:
            self._cr = chunk[-1] == 13
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._part or self._open:
            end = 1 if chunk[0] == 10 and not self._part else chunk.find(b"\n\n") + 2
            if end == 1 and chunk[0] != 10:
                end = len(chunk)
            self._lines(chunk[:end])
            chunk = chunk[end:]
        if chunk:
            whole = chunk.rfind(b"\n\n") + 2
            if whole > 1:
                self._blocks(chunk[:whole])
                chunk = chunk[whole:]
            self._lines(chunk)
        self._fast = not (self._cr or self._part or self._open)

    def _lines(self, text: bytes) -> None:
        """Count in lines that end in LF, the last of which may be partial."""
        *lines, rest = text.split(b"\n")
        for line in lines:
            if self._part:
                self._keep(line)
                line = self._part
                self._part = b""
            if line:
                self._field(line)
            else:
                self._dispatch()
            self._nul = False
        if rest:
            self._keep(rest)

    def _keep(self, piece: bytes) -> None:
        """Add to the line under way, of which only a bounded beginning is kept."""
        part = self._part
        if part.startswith((b"data:", b":")):
            return
        room = _LINE - len(part)
        if len(piece) > room:
            self._nul = self._nul or 0 in piece[room:]
            piece = piece[:room]
        self._part = part + piece

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name:
            self._open = True
        if name == b"data":
            self._data = True
        elif name == b"id":
            value = value.removeprefix(b" ")
            if 0 not in value and not self._nul:
                self._own = True
                self._id_buffer = value if len(value) <= MAX_ID else b""
                if self._ids is not None:
                    self._ids.append(hash(value))
                    if len(self._ids) > 2 * self._most:
                        del self._ids[: -self._most]
        elif name == b"retry":
            value = value.removeprefix(b" ")
            if value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self.retry = int(value)

    def _dispatch(self) -> None:
        self._id = self._id_buffer
        if self._data:
            self.events += 1
            self._recover = self._own and self._id != b""
            self._data = False
        self._own = self._open = False

    def _blocks(self, text: bytes) -> None:
        """Count in whole blocks whose lines end in LF: the way of nearly all events."""
        if text.startswith(b"data:") and text.find(b"\n") == len(text) - 2:
            self.events += 1
            self._id = self._id_buffer
            self._recover = False
            return
        ids = self._ids
        data = own = False
        for line in text.split(b"\n"):
            if not line:
                if data:
                    self.events += 1
                    self._recover = own and self._id_buffer != b""
                    data = False
                own = False
                continue
            first = line[0]
            if first == 100:  # "d"
                if line.startswith(b"data:") or line == b"data":
                    data = True
            elif first == 105:  # "i"
                if line[2:3] == b":" and line[1] == 100:
                    value = line[4:] if line[3:4] == b" " else line[3:]
                    if 0 not in value:
                        own = True
                        self._id_buffer = value if len(value) <= MAX_ID else b""
                        if ids is not None:
                            ids.append(hash(value))
                elif line == b"id":
                    own = True
                    self._id_buffer = b""
            elif first == 114:  # "r"
                self._field(line)
        self._id = self._id_buffer
        if ids is not None and len(ids) > 2 * self._most:
            del ids[: -self._most]


class EventSplitter(EventCounter):
    """Passes on whole events, and holds a partial one.

    A block is what stands up to and with an empty line; comment lines and empty lines before its first field are
    let through as they come. A block over `max_event` is let through in pieces.

    Args:
        max_event: bytes of a block that may be held.
        prefix: ``/t/NAME`` when the address in ``endpoint`` events is to get it.
        authority: by which the visitor reached us. With neither of them nothing is rewritten.
        remember: ids whose hashes are kept for `sent`; 0: none, and `has_ids` stays false.

    Attributes:
        mid_event: an oversize event is under way: what was let through ends inside it.
    """

    __slots__ = (
        "_authority",
        "_held",
        "_oversize",
        "_pass_lf",
        "_prefix",
        "_rewrites",
        "_scan",
        "_tail",
        "_until",
        "max_event",
        "mid_event",
    )

    def __init__(self, max_event: int, *, prefix: str = "", authority: str = "", remember: int = REMEMBERED) -> None:
        super().__init__()
        self._ids = array("q") if remember else None
        self._most = remember
        self.max_event = max_event
        self.mid_event = False
        self._prefix = prefix
        self._authority = authority
        self._rewrites = bool(prefix or authority)
        self._oversize = False  # there was an oversize event: not recoverable any more
        self._held = bytearray()
        self._scan = 0  # where in _held the search for its end goes on
        self._tail = b""  # of an oversize event: its last two bytes
        self._until = _BLANK  # and what ends it
        self._pass_lf = False  # what was let through ends in CR: an LF that follows belongs to it

    @property
    def between_events(self) -> bool:
        """Whether a comment may be put in after what was let through so far."""
        return not self.mid_event

    @property
    def held(self) -> int:
        """Bytes held back."""
        return len(self._held)

    @property
    def recoverable(self) -> bool:
        """As `EventCounter.recoverable`, and no event was oversize."""
        return not self._oversize and self._recover and bool(self._id)

    @property
    def last_id(self) -> bytes:
        """`last_event_id` in octets; empty for none."""
        return self._id

    @property
    def own_id(self) -> bytes:
        """`last_id` where the last event with data carried it itself; else empty."""
        return self._id if self._recover else b""

    @property
    def has_ids(self) -> bool:
        """An id was sent that could be asked for."""
        return bool(self._ids)

    def sent(self, event_id: bytes) -> bool:
        """Whether this id is one of those sent last (by its hash)."""
        return self._ids is not None and hash(event_id) in self._ids[-self._most :]

    def sent_so_far(self) -> Callable[[bytes], bool]:
        """`sent` as it answers now, whatever is sent from here on."""
        ids = frozenset(self._ids[-self._most :] if self._ids is not None else ())
        return lambda event_id: hash(event_id) in ids

    def begin_anew(self) -> None:
        """Another answer goes on with these events, from its first byte: what is held of the last one is dropped."""
        self._held = bytearray()
        self._scan = 0
        self._part = b""
        self._data = self._own = self._open = self._nul = self._cr = self._pass_lf = self._fast = False
        self._id_buffer = self._id
        self._start = True

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes of the service's answer; returns those that may be passed on now, maybe none."""
        size = len(chunk)
        if self._fast and size <= self.max_event and chunk.endswith(b"\n\n") and 13 not in chunk:
            if chunk.startswith(b"data:") and chunk.find(b"\n") == size - 2:  # one event of one line has no name
                self.events += 1
                self._id = self._id_buffer
                self._recover = False
                return chunk
            self._blocks(chunk)
            if self._rewrites and chunk.find(b"endpoint") >= 0:
                return self._rewritten(chunk)
            return chunk
        return self._split(chunk)

    def end(self) -> bytes:
        """The stream is over; returns the rest, as it came. A partial event is none: it is not counted."""
        rest = bytes(self._held)
        self._held = bytearray()
        self._scan = 0
        self._fast = False
        self.mid_event = self.mid_event or bool(rest)
        return rest

    def _split(self, chunk: bytes) -> bytes:
        """Take a chunk of any cut and any line ends."""
        if self._start:
            chunk = bytes(self._held) + chunk
            self._held.clear()
            if len(chunk) < 3 and _BOM.startswith(chunk):
                self._held += chunk
                return b""
            self._start = False
            chunk = chunk.removeprefix(_BOM)
        if not chunk:
            return b""
        done = b""  # what goes out before the block that begins or goes on here
        if self.mid_event:
            text = self._tail + chunk
            match = self._until.search(text)
            if match is None:
                self._tail = text[-2:]
                self._watch(chunk)
                return chunk
            end = match.end() - len(self._tail)
            done, chunk = chunk[:end], chunk[end:]
            self.mid_event = False
        elif self._pass_lf and chunk[0] == 10:
            done, chunk = chunk[:1], chunk[1:]
        self._pass_lf = False
        if done:
            self._pass_lf = done[-1] == 13
            self._watch(done)
        whole = self._whole(chunk) if chunk else b""
        if whole:
            self._pass_lf = whole[-1] == 13
            self._watch(whole)
            if len(whole) > self.max_event:
                self._oversize = self._oversize or self._any_oversize(whole)
            if self._rewrites and whole.find(b"endpoint") >= 0:
                whole = self._rewritten(whole)
        if self._held:
            self._pass_lf = False  # something stands between that CR and what comes
        out = done + whole
        if len(self._held) > self.max_event:
            piece = bytes(self._held)
            self._held = bytearray()
            self._scan = 0
            self._watch(piece)
            self._tail = piece[-2:]
            # A comment before a block, still without its line end, ends there; anything else at an empty line.
            self._until = _LINE_END if piece[0] == 58 else _BLANK
            self._oversize = self.mid_event = True
            self._pass_lf = False
            out += piece
        self._fast = not (self._held or self._pass_lf or self.mid_event)
        return out

    def _whole(self, chunk: bytes) -> bytes:
        """What is held and then `chunk`, up to the last place between two events; the rest is held."""
        held = self._held
        scan = self._scan
        held += chunk
        cut = 0
        if held.find(b"\r", scan) < 0:
            cut = held.rfind(b"\n\n", scan) + 2
            if cut == 1:
                cut = 0
        else:
            for match in _BLANK.finditer(held, scan):
                cut = match.end()
        # Only a line end in this very chunk can complete a comment: without it a long one is not read again.
        if cut < len(held) and (10 in chunk or 13 in chunk):
            lead = LEAD.match(held, cut)
            if lead is not None:
                cut = lead.end()
        whole = bytes(held[:cut])
        if cut:
            self._held = held = held[cut:]
        self._scan = max(0, len(held) - 2)
        return whole

    def _any_oversize(self, text: bytes) -> bool:
        """Whether whole blocks hold one that would have been passed on in pieces, had it come in pieces."""
        at = 0
        while True:
            lead = LEAD.match(text, at)
            if lead is not None:
                if any(len(line) > self.max_event for line in _LINE_END.split(lead.group())):
                    return True
                at = lead.end()
            match = _BLANK.search(text, at)
            if match is None:
                return False
            ends = match.group()
            first = 2 if ends.startswith(b"\r\n") else 1
            if match.start() + first - at > self.max_event:
                return True
            at = match.end()

    def _rewritten(self, text: bytes) -> bytes:
        """Whole blocks with the addresses of ``endpoint`` events as the visitor reaches them."""
        return BLOCK.sub(self._rewrite_block, text)

    def _rewrite_block(self, match: re.Match[bytes]) -> bytes:
        block = match.group()
        names = _NAMED_ENDPOINT.findall(block)
        data = _DATA.search(block)
        if not names or names[-1] != b"endpoint" or data is None:
            return block
        address = rewrite_endpoint(data.group(1), self._prefix, self._authority)
        return block[: data.start(1)] + address + block[data.end(1) :]
