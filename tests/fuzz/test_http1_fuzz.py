"""Any bytes as a request: only documented errors, and nothing that another parser would read otherwise."""

from __future__ import annotations

import re

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from tunneld.errors import CODES, VisitorError
from tunneld.wire.http1 import CHUNKED, ChunkedBody, RequestHead, early_fault, parse_request

_TARGETS = st.sampled_from(["/", "/a?b", "/a/../b", "/%2e", "http://h/", "*", "/a\xe9", "/#"]) | st.text(
    st.characters(max_codepoint=255), max_size=8
).map(lambda text: "/" + text)
_NAMES = st.sampled_from(
    ["Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "Upgrade", "A", "a b", "", " x", "A:"]
)
_VALUES = st.sampled_from(
    [
        "h",
        "5",
        "0",
        "5, 5",
        "+5",
        "chunked",
        "gzip, chunked",
        "identity",
        "close",
        "keep-alive",
        "100-continue",
        "",
        "a\0",
    ]
) | st.text(st.characters(max_codepoint=255), max_size=8)
_ENDS = st.sampled_from(["\r\n"] * 20 + ["\n", "\r", "\r\r\n", "\n\r\n", "\r\n "])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads, most of them nearly right."""
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "G T", "", "get"]))
    version = draw(st.sampled_from(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/2.0", "HTTP/1.10", ""]))
    text = f"{method} {draw(_TARGETS)} {version}"
    if draw(st.booleans()):
        text += "\r\nHost: h"
    for name, value in draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=4)):
        text += f"{draw(_ENDS)}{name}: {value}"
    return text.encode("latin-1")


class Other:
    """What llhttp makes of the same bytes."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.trailers: list[tuple[str, str]] = []
        self.at_body = False
        self.complete = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp keeps white space at the end of a value
        pair = (name.decode("latin-1"), value.decode("latin-1").rstrip(" \t"))
        (self.trailers if self.at_body else self.headers).append(pair)

    def on_headers_complete(self) -> None:
        self.at_body = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def parsed(raw: bytes) -> RequestHead | None:
    try:
        return parse_request(raw)
    except VisitorError as error:
        return None if CODES[error.code].status >= 400 else RequestHead("", "", "", [])


@given(heads() | st.binary(max_size=60))
@settings(max_examples=600, deadline=None)
def test_what_is_accepted_means_the_same_to_llhttp(raw):
    head = parsed(raw)
    if head is None or head.upgrade:
        return
    if not re.fullmatch("GET|POST|HEAD|OPTIONS", head.method) or not head.target.isascii():
        return  # llhttp knows a list of methods only, and no raw octets above 127 in a target
    other = Other()
    parser = httptools.HttpRequestParser(other)
    parser.feed_data(raw + b"\r\n\r\n")
    assert other.at_body
    assert other.target == head.target.encode("latin-1")
    assert other.headers == head.headers
    assert (other.complete == 1) == (head.length == 0)


@given(heads() | st.binary(max_size=60), st.data())
@settings(max_examples=300, deadline=None)
def test_no_beginning_of_what_is_accepted_is_an_early_fault(raw, data):
    if parsed(raw) is not None:
        assert early_fault(raw[: data.draw(st.integers(0, len(raw)))]) is None


_CHUNKS = st.lists(
    st.tuples(st.binary(max_size=12), st.sampled_from([b""] * 6 + [b";a", b";a=b", b";\xff", b"; ", b" ;a", b";\0"])),
    max_size=4,
)
_TRAILERS = st.sampled_from([b"", b"", b"A: b\r\n", b"A: b\r\nC: d\r\n", b"A\r\n", b" A: b\r\n", b"A: b\n"])


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    """Bodies in chunks, most of them right."""
    raw = b""
    for data, extension in draw(_CHUNKS):
        if data:
            end = draw(st.sampled_from([b"\r\n"] * 12 + [b"\n", b"", b"\r"]))
            raw += b"%x%b\r\n%b%b" % (len(data), extension, data, end)
    return raw + b"0\r\n" + draw(_TRAILERS) + b"\r\n"


def read(raw: bytes, cuts: list[int]) -> tuple[bytes, list[tuple[str, str]], bytes] | str:
    body = ChunkedBody(1000)
    got = b""
    at = 0
    for cut in [*cuts, len(raw)]:
        if body.done:
            break
        try:
            got += body.feed(raw[at : at + cut])
        except VisitorError as error:
            return error.code
        at += cut
    return (got, body.trailers, body.rest + raw[at:]) if body.done else "unfinished"


@given(chunked() | st.binary(max_size=40), st.lists(st.integers(1, 9), max_size=30))
@settings(max_examples=600, deadline=None)
def test_cuts_do_not_change_a_body_in_chunks(raw, cuts):
    whole = read(raw, [])
    assert read(raw, cuts) == whole
    assert read(raw, [1] * len(raw)) == whole


@given(chunked())
@settings(max_examples=400, deadline=None)
def test_a_body_that_is_accepted_means_the_same_to_llhttp(raw):
    got = read(raw, [])
    if isinstance(got, str) or got[2]:
        return
    other = Other()
    parser = httptools.HttpRequestParser(other)
    parser.feed_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        parser.feed_data(raw)
    except httptools.HttpParserError:
        assert b";" in raw  # it knows fewer characters in extensions, which are not passed on
        return
    assert (other.body, other.trailers, other.complete) == (got[0], got[1], 1)
    assert CHUNKED < 0
