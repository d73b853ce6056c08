"""What a service answers, read from bytes: heads, bodies, chunks, trailers (RFC 9112). No I/O, no clock.

Our own reader rather than a parser library: as strict (it refuses what could be read two ways: bare CR or
LF, folded lines, both a length and a coding, two lengths), every bound is ours (head, chunk extensions,
trailers), and a body that only the close delimits needs no parser at all while it flows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from tunneld.errors import ProtocolError
from tunneld.protocol.messages import Headers

__all__ = ["MAX_CHUNK_LINE", "MAX_FIELDS", "AnswerReader", "AnswerSink", "BadAnswer", "head_fields"]

#: Header fields that one head or trailer section may have.
MAX_FIELDS = 512
#: Bytes of a chunk's first line: its size and its extensions.
MAX_CHUNK_LINE = 1024

_TEXT = r"[\t\x20-\x7e\x80-\xff]*+"
_HEAD = re.compile(rf"HTTP/1\.([01]) ([1-9][0-9]{{2}})(?: {_TEXT})?\r\n")
_FIELD = re.compile(rf"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+({_TEXT})\r\n")
_FIELDS = re.compile(rf"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:{_TEXT}\r\n)*+\r\n")
_STRAY = re.compile(rb"(?<!\r)\n|\r(?![\n]|\Z)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:[ \t]*+;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
_LENGTH = re.compile(r"[0-9]{1,18}")
_FRAMING = frozenset(("connection", "content-length", "transfer-encoding"))
_START = b"HTTP/1."


class BadAnswer(ProtocolError):
    """The service's answer cannot be used; `code` is ``bad_answer`` or ``answer_too_large``."""


class AnswerSink(Protocol):
    """What an `AnswerReader` tells, in order. After `AnswerReader.abandon` nothing more is told."""

    def answer_head(self, status: int, headers: Headers, length: int) -> None:
        """One head, as it came; any number with 1xx before the final one.

        `length` is the size of the body in bytes, -1 when only its end will tell.
        """

    def answer_data(self, data: bytes) -> None:
        """Bytes of the body, never empty."""

    def answer_end(self, trailers: Headers) -> None:
        """The answer is complete."""


class _Mode(IntEnum):
    HEAD = 0
    LENGTH = 1
    CHUNK_LINE = 2
    CHUNK = 3
    CHUNK_END = 4
    TRAILERS = 5
    CLOSE = 6
    DONE = 7
    SWITCHED = 8


_HEAD_MODE, _LENGTH_MODE, _CLOSE_MODE, _DONE_MODE = _Mode.HEAD, _Mode.LENGTH, _Mode.CLOSE, _Mode.DONE
_LINE_MODE, _CHUNK_MODE, _CHUNK_END_MODE, _TRAILERS_MODE = (
    _Mode.CHUNK_LINE,
    _Mode.CHUNK,
    _Mode.CHUNK_END,
    _Mode.TRAILERS,
)


class AnswerReader:
    """Reads one request's answer, its 1xx heads included.

    Args:
        sink: is told what came.
        to_head: the request's method was HEAD, so no body follows.
        limit: bytes that one head, and the trailers, may have.

    Attributes:
        begun: at least one byte came.
        done: the answer is complete; what else comes is `surplus`.
        left: bytes of the body still to come; -1 when unknown, 0 when none.
        keep_alive: the connection may carry another request (meaningful once `done`).
        head: the text of the head that is being told, as it came (see `head_fields`); empty before and after.
        dropped_trailers: trailers came that were over `limit` or `MAX_FIELDS`; the answer ended without them.
    """

    __slots__ = (
        "_buffer",
        "_limit",
        "_mode",
        "_sink",
        "_surplus",
        "_to_head",
        "begun",
        "dropped_trailers",
        "head",
        "keep_alive",
        "left",
    )

    def __init__(self, sink: AnswerSink, *, to_head: bool, limit: int) -> None:
        self._sink = sink
        self._to_head = to_head
        self._limit = limit
        self._mode = _HEAD_MODE
        self._buffer: bytearray | None = None
        self._surplus: Callable[[bytes], None] | None = None
        self.begun = False
        self.head = ""
        self.left = -1
        self.keep_alive = False
        self.dropped_trailers = False

    @property
    def done(self) -> bool:
        """The answer is complete, or was abandoned."""
        return self._mode is _DONE_MODE

    def abandon(self) -> None:
        """Tell nothing more; what still comes is ignored."""
        self._mode = _DONE_MODE
        self._buffer = None
        self.keep_alive = False

    def switch(self, surplus: Callable[[bytes], None]) -> None:
        """The head just told was a 101 that is taken: it was the last, and what came behind it goes to `surplus`."""
        self._mode = _Mode.SWITCHED
        self._surplus = surplus
        self.keep_alive = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raises `BadAnswer`, after which the reader must not be fed."""
        mode = self._mode
        if mode is _LINE_MODE:
            self._chunked(data)
        elif mode is _CLOSE_MODE:
            self._sink.answer_data(data)
        elif mode is _LENGTH_MODE:
            self._body(data)
        elif mode is _HEAD_MODE:
            self.begun = True
            self._head(data)
        elif mode is _TRAILERS_MODE:
            self._trailers(data)
        elif mode is _Mode.SWITCHED:
            assert self._surplus is not None
            self._surplus(data)
        elif mode is not _DONE_MODE:
            self._chunked(data)
        else:
            self.keep_alive = False  # bytes that nobody asked for

    def eof(self) -> bool:
        """The service ended its side cleanly: whether that is a proper end of the answer (told to the sink)."""
        if self._mode is not _CLOSE_MODE:
            return self._mode is _DONE_MODE
        self._end([])
        return True

    # -- heads -----------------------------------------------------------------------------------------

    def _head(self, data: bytes) -> None:
        while True:
            block, rest = self._block(data, b"\r\n\r\n")
            if block is None:
                return
            self._read_head(block, surplus=bool(rest))
            if not rest or self._mode is not _HEAD_MODE:
                break
            data = rest
        if rest:
            self.feed(rest)

    def _block(self, data: bytes, mark: bytes) -> tuple[str | None, bytes]:
        """Gather bytes up to and with `mark`: (text, what follows), or (None, b"") until it has come."""
        buffer = self._buffer
        if buffer is None:
            at = data.find(mark)
            if at >= 0:
                at += len(mark)
                self._check_size(at)
                return data[:at].decode("latin-1"), data[at:]
            searched = 0
            buffer = self._buffer = bytearray(data)
        else:
            searched = max(0, len(buffer) - len(mark) + 1)
            buffer += data
            at = buffer.find(mark, searched)
            if at >= 0:
                at += len(mark)
                self._check_size(at)
                self._buffer = None
                return buffer[:at].decode("latin-1"), bytes(buffer[at:])
        if self._mode is _HEAD_MODE:
            if buffer[:7] != _START[: len(buffer)]:
                raise BadAnswer("bad_answer", "it begins with no status line of HTTP/1")
            if _STRAY.search(buffer, searched):
                raise BadAnswer("bad_answer", "its head has a line that does not end in CRLF")
        self._check_size(len(buffer))
        return None, b""

    def _check_size(self, size: int) -> None:
        if size > self._limit and self._mode is _HEAD_MODE:
            raise BadAnswer("answer_too_large", f"its head is over {self._limit} bytes")

    def _read_head(self, text: str, *, surplus: bool) -> None:
        start = _HEAD.match(text)
        if start is None:
            raise BadAnswer("bad_answer", "its status line is not valid")
        status = int(start[2])
        headers = _fields(text, start.end())
        minor = start[1]
        self.keep_alive = minor == "1"
        coded, lengths = False, list[str]()
        for name, value in headers:
            lower = name.lower()
            if lower not in _FRAMING:
                continue
            if lower == "content-length":
                lengths.append(value)
            elif lower == "connection":
                self._connection(value.lower())
            elif coded or value.lower() != "chunked":
                raise BadAnswer("bad_answer", "its Transfer-Encoding is not chunked alone")
            else:
                coded = True
        length = self._framing(status, coded, lengths)
        if (surplus and not length and status >= 200) or (coded and minor == "0"):
            self.keep_alive = False
        self.head = text
        self._sink.answer_head(status, headers, length)
        self.head = ""
        if not length and status >= 200 and self._mode is not _DONE_MODE:
            self._end([])

    def _connection(self, value: str) -> None:
        options = {option.strip(" \t") for option in value.split(",")}
        if "close" in options:
            self.keep_alive = False
        elif "keep-alive" in options:
            self.keep_alive = True

    def _framing(self, status: int, coded: bool, lengths: list[str]) -> int:
        """How the body is delimited (RFC 9112, 6.3); its length, -1 when unknown."""
        if lengths and (coded or len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0])):
            raise BadAnswer("bad_answer", "its length is told twice, or is not a number")
        if status < 200:
            return 0
        if self._to_head or status in (204, 304):
            self.left = 0
        elif coded:
            self.left, self._mode = -1, _LINE_MODE
        elif lengths:
            self.left, self._mode = int(lengths[0]), _LENGTH_MODE
        else:
            self.left, self._mode, self.keep_alive = -1, _CLOSE_MODE, False
        return self.left

    # -- bodies ----------------------------------------------------------------------------------------

    def _body(self, data: bytes) -> None:
        size = len(data)
        if size < self.left:
            self.left -= size
            self._sink.answer_data(data)
            return
        surplus = size > self.left
        if surplus:
            data = data[: self.left]
        self.left = 0
        self._sink.answer_data(data)
        if self._mode is not _DONE_MODE:
            self.keep_alive = self.keep_alive and not surplus
            self._end([])

    def _chunked(self, data: bytes) -> None:
        """Take chunks apart; what one call brings goes on in one piece."""
        if self._mode is _LINE_MODE and self._buffer is None:  # one whole chunk: the way of nearly all events
            line = _CHUNK.match(data, 0, MAX_CHUNK_LINE)
            if line is not None:
                at = line.end()
                end = at + int(line[1], 16)
                if at < end == len(data) - 2 and data.endswith(b"\r\n"):
                    self._sink.answer_data(data[at:end])
                    return
        if self._buffer is not None:
            data = bytes(self._buffer) + data
            self._buffer = None
        pieces: list[bytes] = []
        try:
            rest = self._chunks(data, pieces)
        finally:
            if pieces:
                self._sink.answer_data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if rest is not None and self._mode is _TRAILERS_MODE:
            self._trailers(rest)

    def _chunks(self, data: bytes, pieces: list[bytes]) -> bytes | None:
        """Gather bodies of chunks in `pieces`; returns what follows the last chunk's size, else None."""
        at, size, mode = 0, len(data), self._mode
        while at < size:
            if mode is _CHUNK_MODE:
                piece = data[at : at + self.left] if at or self.left < size else data
                at += len(piece)
                self.left -= len(piece)
                pieces.append(piece)
                if not self.left:
                    mode = _CHUNK_END_MODE
            elif mode is _CHUNK_END_MODE:
                if not b"\r\n".startswith(data[at : at + 2]):
                    raise BadAnswer("bad_answer", "a chunk is not followed by CRLF")
                if size - at < 2:
                    break
                at += 2
                mode = _LINE_MODE
            else:
                line = _CHUNK.match(data, at, at + MAX_CHUNK_LINE)
                if line is None:
                    _check_chunk_line(data[at : at + MAX_CHUNK_LINE])
                    break
                at = line.end()
                self.left = int(line[1], 16)
                if not self.left:
                    self._mode = _TRAILERS_MODE
                    self._buffer = bytearray(b"\r\n")  # so that no trailers end like some: by an empty line
                    return data[at:]
                mode = _CHUNK_MODE
        self._mode = mode
        if at < size:
            self._buffer = bytearray(data[at:])
        if mode is not _CHUNK_MODE:
            self.left = -1
        return None

    def _trailers(self, data: bytes) -> None:
        text, rest = self._block(data, b"\r\n\r\n")
        if text is None:
            if self._buffer is not None and len(self._buffer) > self._limit:
                self._drop_trailers()
            return
        if rest:
            self.keep_alive = False
        if len(text) > self._limit or text.count("\n") > MAX_FIELDS + 2:  # beside them the two empty lines around
            self._drop_trailers()
        else:
            self._end(_fields(text, 2))

    def _drop_trailers(self) -> None:
        """The body is whole; only what follows it is too much. Where it ends is not worth knowing."""
        self.dropped_trailers = True
        self.keep_alive = False
        self._end([])

    def _end(self, trailers: Headers) -> None:
        self._mode = _DONE_MODE
        self._buffer = None
        self.left = 0
        self._sink.answer_end(trailers)


def head_fields(head: str) -> Headers:
    """The header fields of a head that an `AnswerReader` has told; empty: none."""
    start = _HEAD.match(head)
    return [] if start is None else _fields(head, start.end())


def _fields(text: str, start: int) -> Headers:
    """The header fields of `text` from `start` up to its closing empty line; raises `BadAnswer`."""
    if _FIELDS.fullmatch(text, start) is None:
        line = 1
        while (found := _FIELD.match(text, start)) is not None:
            line, start = line + 1, found.end()
        raise BadAnswer("bad_answer", f"its header line {line} is not valid")
    fields: Headers = _FIELD.findall(text, start)
    if len(fields) > MAX_FIELDS:
        raise BadAnswer("answer_too_large", f"it has over {MAX_FIELDS} header fields")
    if " \r\n" in text or "\t\r\n" in text:
        return [(name, value.rstrip(" \t")) for name, value in fields]
    return fields


def _check_chunk_line(line: bytes) -> None:
    """Raise unless `line` may still become the first line of a chunk."""
    if len(line) >= MAX_CHUNK_LINE:
        raise BadAnswer("bad_answer", f"a chunk's size and extensions are over {MAX_CHUNK_LINE} bytes")
    whole = line + (b"\n" if line.endswith(b"\r") else b"\r\n")
    if not _CHUNK.fullmatch(whole) and not _CHUNK.fullmatch(line.rstrip(b" \t") + b"\r\n"):
        raise BadAnswer("bad_answer", "a chunk's size is not valid")
