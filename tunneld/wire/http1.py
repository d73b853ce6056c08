"""Requests of HTTP/1.x as visitors send them: strict, sans I/O (RFC 9112).

A head is taken whole and taken apart here, not by httptools: what is validated is then exactly what is
passed on (llhttp ends a head at the next message of a pipeline only by parsing that one too, takes
HTTP/0.9, absolute targets, a missing or doubled Host and chunk extensions of any size, and costs the same).
A fuzz test holds the two against each other: what is accepted here means the same there.
"""

from __future__ import annotations

import re

from tunneld.errors import VisitorError
from tunneld.protocol.fields import OUT, Names, lower
from tunneld.protocol.headers import Headers, path_has_dot_segment, valid_host

__all__ = ["CHUNKED", "ChunkedBody", "RequestHead", "early_fault", "parse_fields", "parse_request"]

#: The value of `RequestHead.length` for a body in chunks.
CHUNKED = -1

_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NO_CONTROLS = bytes(octet for octet in range(256) if octet >= 32 and octet != 127) + b"\t"
_REQUEST_LINE = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_ANY_VERSION = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e\x80-\xff]+ HTTP/[0-9]\.[0-9]")
_CODINGS = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\t\x20-\x7e\x80-\xff]*)?")
_TLS = b"\x16\x03"
_HTTP2 = b"PRI * HTTP/2.0\r\n"
_SPECIAL = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade"})


def _field_kind(name: str) -> str:
    """What a field's name is: empty, any; `OUT`, none that may be; else one of `_SPECIAL`."""
    low = lower(name)
    return low if low in _SPECIAL else "" if low else OUT


_FIELDS = Names(_field_kind)
_MAX_LENGTH_DIGITS = 18
_MAX_CHUNK_LINE = 1024
_MAX_EXTENSIONS = 16 * 1024  # bytes in all chunks of a body together: each byte of a body may bring a hundred


class RequestHead:
    """A request without its body.

    Attributes:
        method: as it was sent.
        target: origin-form, exactly as it was sent; begins with "/".
        version: "1.0" or "1.1".
        headers: (name, value) in order, names in their own case, values without the white space around them.
        host: the Host header's value; empty where HTTP/1.0 sent none.
        length: bytes of the body; `CHUNKED` when chunks say where it ends.
        keep_alive: the visitor's side of it: another request may follow on this connection.
        expect: the visitor waits for 100 (Continue) before it sends the body.
        upgrade: the Upgrade header in lower case; empty when there is none.
    """

    __slots__ = ("expect", "headers", "host", "keep_alive", "length", "method", "target", "upgrade", "version")

    def __init__(self, method: str, target: str, version: str, headers: Headers) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.host = ""
        self.length = 0
        self.keep_alive = version == "1.1"
        self.expect = False
        self.upgrade = ""


def parse_request(raw: bytes) -> RequestHead:
    """Take a request's head apart.

    Args:
        raw: from the method's first byte to the last field's last byte: the CRLF CRLF left out.

    Raises:
        VisitorError: whose code says what is wrong: ``bad_request``, ``bad_host``, ``bad_path``,
            ``unsupported_coding``, ``version_not_supported``, ``expectation_failed``.
    """
    text = raw.decode("latin-1")
    lines = text.split("\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:  # first, as `early_fault` does: the answer must not depend on how the head was cut
        raise _bad_request_line(lines[0])
    if raw.translate(None, _NO_CONTROLS) != b"\r\n" * (len(lines) - 1):
        raise VisitorError("bad_request", "The head has a control character, or a bare CR or LF.")
    method, target, minor = match.groups()
    special: dict[str, str] = {}
    headers = parse_fields(lines[1:], special)
    head = RequestHead(method, target, "1." + minor, headers)
    _check_target(method, target)
    _apply(head, special)
    return head


def parse_fields(lines: list[str], special: dict[str, str] | None = None) -> Headers:
    """Take header or trailer lines apart; no line may hold a control character.

    Args:
        special: gets the fields that frame a message, by lower-case name; several values joined by ",".

    Raises:
        VisitorError: ``bad_request``.
    """
    headers: Headers = []
    kinds = _FIELDS
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        kind = kinds[name]
        if kind or not colon:
            if not (name and colon):
                raise VisitorError("bad_request", "A header line has no name, or no colon.")
            if kind == OUT:
                raise VisitorError("bad_request", "A header's name has a character that no name may have.")
            if special is not None:
                special[kind] = f"{special[kind]},{value}" if kind in special else value
        headers.append((name, value))
    return headers


def _bad_request_line(line: str) -> VisitorError:
    if line == "PRI * HTTP/2.0" or _ANY_VERSION.fullmatch(line):
        return VisitorError("version_not_supported", "This server speaks HTTP/1.1 and HTTP/1.0.")
    return VisitorError("bad_request", "The request line is not METHOD SP TARGET SP HTTP-VERSION.")


def _check_target(method: str, target: str) -> None:
    if method == "CONNECT":
        raise VisitorError("bad_request", "This server is no forward proxy: CONNECT is not served.")
    if target[0] != "/":
        raise VisitorError("bad_path", "The target is not in origin form: it must begin with '/'.")
    if "#" in target:
        raise VisitorError("bad_path", "The target has a fragment; '#' must be sent as %23.")
    if path_has_dot_segment(target):
        raise VisitorError("bad_path", "The path has a dot segment.")


def _apply(head: RequestHead, special: dict[str, str]) -> None:
    """Read the fields that frame the message."""
    old = head.version == "1.0"
    host = special.get("host")
    if host is None:
        if not old:
            raise VisitorError("bad_host", "The request has no Host header.")
    elif not valid_host(host):
        raise VisitorError("bad_host", "The request has more than one Host, or one that is no host name.")
    else:
        head.host = host
    if len(special) == 1 and host is not None:
        return
    connection = special.get("connection")
    if connection is not None:
        tokens = [token.strip(" \t") for token in connection.lower().split(",")]
        head.keep_alive = "close" not in tokens and (not old or "keep-alive" in tokens)
    length = special.get("content-length")
    coding = special.get("transfer-encoding")
    if coding is not None:
        _check_coding(coding, length, old)
        head.length = CHUNKED
    elif length is not None:
        if not (length.isascii() and length.isdigit()) or len(length) > _MAX_LENGTH_DIGITS:
            raise VisitorError("bad_request", "Content-Length is not one decimal number.")
        head.length = int(length)
    expect = special.get("expect")
    if expect is not None and not old:
        if expect.lower() != "100-continue":
            raise VisitorError("expectation_failed", "Expect may only say 100-continue.")
        head.expect = head.length != 0
    head.upgrade = special.get("upgrade", "").lower()


def _check_coding(coding: str, length: str | None, old: bool) -> None:
    if length is not None:
        raise VisitorError("bad_request", "The request has both Content-Length and Transfer-Encoding.")
    if old:
        raise VisitorError("bad_request", "HTTP/1.0 has no Transfer-Encoding.")
    lower = coding.lower()
    if lower == "chunked":
        return
    if _CODINGS.fullmatch(lower) and lower.count("chunked") <= 1:
        raise VisitorError("unsupported_coding", "Transfer-Encoding may only be chunked.")
    raise VisitorError("bad_request", "Transfer-Encoding is not exactly one chunked.")


def early_fault(data: bytes) -> VisitorError | None:
    """What can be said of a head before it is whole; None when it may still become one.

    Random bytes, a TLS hello and an HTTP/2 preface are told at once, not after the time a head may take.

    Args:
        data: the head so far, from its first byte.
    """
    if data.startswith(_TLS):
        return VisitorError("bad_request", "This is TLS, and the port speaks plain HTTP.")
    if data.startswith(_HTTP2):
        return _bad_request_line(_HTTP2[:-2].decode())
    if data == b"\r":  # half of an empty line, which may stand before a request line (RFC 9112, 2.2)
        return None
    line, end, _ = data.partition(b"\r\n")
    if end and not _REQUEST_LINE.fullmatch(text := line.decode("latin-1")):
        return _bad_request_line(text)
    rest = data.replace(b"\r\n", b"")
    if rest.endswith(b"\r"):
        rest = rest[:-1]
    if rest.translate(None, _NO_CONTROLS):
        return VisitorError("bad_request", "The head has a control character, or a bare CR or LF.")
    method = line.partition(b" ")[0]
    if not end and ((not method and line) or method.translate(None, _TOKEN)):
        return _bad_request_line("")
    return None


class ChunkedBody:
    """Takes a chunked body apart (RFC 9112, 7.1); chunk extensions are checked and dropped.

    Args:
        max_trailers: bytes of the trailer section.

    Attributes:
        done: the last chunk and the trailers have come.
        rest: bytes that came after the body, once it is done.
        trailers: as they came, once it is done.
    """

    __slots__ = ("_extensions", "_left", "_line", "_max_trailers", "_state", "done", "rest", "trailers")

    _SIZE, _DATA, _DATA_END, _TRAILERS = range(4)

    def __init__(self, max_trailers: int) -> None:
        self.done = False
        self.rest = b""
        self.trailers: Headers = []
        self._state = self._SIZE
        self._left = 0
        self._line = b""
        self._extensions = 0
        self._max_trailers = max_trailers

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the connection; returns those of the body among them.

        Raises:
            VisitorError: ``bad_request``: not chunked as the specification says it; ``head_too_large``: too
                many bytes of trailers. Nothing may be fed after it.
        """
        pieces: list[bytes] = []
        at = 0
        if self._line:
            data = self._line + data
            self._line = b""
        while at < len(data) and not self.done:
            if self._state == self._DATA:
                piece = data[at : at + self._left] if at or self._left < len(data) else data
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = self._DATA_END
            elif self._state == self._DATA_END:
                if not b"\r\n".startswith(data[at : at + 2]):
                    raise VisitorError("bad_request", "A chunk is longer than its size said.")
                if len(data) - at < 2:
                    self._line = data[at:]
                    break
                at += 2
                self._state = self._SIZE
            elif self._state == self._SIZE:
                end = self._chunk_line(data, at)
                if end < 0:
                    break
                at = end
            else:
                at = self._trailer_section(data, at)
        if self.done:
            self.rest = data[at:]
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    def _chunk_line(self, data: bytes, at: int) -> int:
        """Read a chunk's size; returns where its data begins, -1 when the line is not whole."""
        end = data.find(b"\n", at, at + _MAX_CHUNK_LINE)
        if end < 0:
            if len(data) - at >= _MAX_CHUNK_LINE:
                raise VisitorError("bad_request", "A chunk's extensions are too long.")
            self._line = data[at:]
            if not _CHUNK.fullmatch(self._line.removesuffix(b"\r")):
                raise VisitorError("bad_request", "A chunk's size is not valid.")
            return -1
        match = _CHUNK.fullmatch(data, at, end - 1)
        if match is None or data[end - 1] != 13:
            raise VisitorError("bad_request", "A chunk's size is not valid.")
        if match.end(2) > 0:
            self._extensions += match.end(2) - match.start(2)
            if self._extensions > _MAX_EXTENSIONS:
                raise VisitorError("bad_request", "The chunks' extensions are too long.")
        self._left = int(match.group(1), 16)
        self._state = self._DATA if self._left else self._TRAILERS
        return end + 1

    def _trailer_section(self, data: bytes, at: int) -> int:
        """Read what follows the last chunk; returns where the body ends, or the end of data."""
        if data.startswith(b"\r\n", at):
            self.done = True
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        if (end if end >= 0 else len(data)) - at > self._max_trailers:
            raise VisitorError("head_too_large", "The trailers are over the limit.")
        if end < 0:
            self._line = data[at:]
            return len(data)
        raw = data[at:end]
        lines = raw.decode("latin-1").split("\r\n")
        if raw.translate(None, _NO_CONTROLS) != b"\r\n" * (len(lines) - 1):
            raise VisitorError("bad_request", "A trailer has a control character, or a bare CR or LF.")
        self.trailers = parse_fields(lines)
        self.done = True
        return end + 4
