"""What is a request, and what is none."""

from __future__ import annotations

import pytest

from tunneld.errors import VisitorError
from tunneld.wire.http1 import CHUNKED, ChunkedBody, early_fault, parse_request


def head(*lines: str, first: str = "GET /a HTTP/1.1", host: str | None = "h") -> bytes:
    all_lines = [first, *([f"Host: {host}"] if host is not None else []), *lines]
    return "\r\n".join(all_lines).encode("latin-1")


def code_of(raw: bytes) -> str:
    with pytest.raises(VisitorError) as caught:
        parse_request(raw)
    return caught.value.code


def test_a_head_is_passed_on_as_it_came():
    got = parse_request(
        head("Accept:  */*\t", "x-MiXed: a b\xe9", "Empty:", first="PURGE /a%2F%20b\xe9?x=%zz&? HTTP/1.1")
    )
    assert (got.method, got.target, got.version) == ("PURGE", "/a%2F%20b\xe9?x=%zz&?", "1.1")
    assert got.headers == [("Host", "h"), ("Accept", "*/*"), ("x-MiXed", "a b\xe9"), ("Empty", "")]
    assert (got.length, got.keep_alive, got.expect, got.upgrade) == (0, True, False, "")


@pytest.mark.parametrize(
    "target", ["/q?", "/", "/a//b", "/a%2fb", "/...", "/.a/..b", "/a?x=/../", "/%252e%252e/", "/~;,:@"]
)
def test_targets_that_pass(target):
    assert parse_request(head(first=f"GET {target} HTTP/1.1")).target == target


@pytest.mark.parametrize(
    "target",
    [
        "/.", "/..", "/a/../b", "/a/./b", "/a/..", "/%2e/", "/%2E%2e/x", "/.%2e", "/a/%2e%2E?q", "/a%2f..%2fb",
        "/..%2F", "/..%5cx", "/a\\..\\b", "/..;a=b/c", "http://h/a", "*", "a", "h:80", "?x", "/a#b",
    ],
)  # fmt: skip
def test_targets_that_are_bad_paths(target):
    assert code_of(head(first=f"GET {target} HTTP/1.1")) == "bad_path"


@pytest.mark.parametrize(
    "raw",
    [
        head(first="GET /a"),
        head(first="GET /a "),
        head(first="GET  /a HTTP/1.1"),
        head(first="GET\t/a HTTP/1.1"),
        head(first="GET /a  HTTP/1.1"),
        head(first="GET /a HTTP/1.1 "),
        head(first=" GET /a HTTP/1.1"),
        head(first="GET /a b HTTP/1.1"),
        head(first="GET /a HTTP/11"),
        head(first="GET /a HTTPS/1.1"),
        head(first="GET /a http/1.1"),
        head(first="G(T /a HTTP/1.1"),
        head(first="CONNECT h:80 HTTP/1.1"),
        head(first="CONNECT /a HTTP/1.1"),
        head("Name : x"),
        head("Na me: x"),
        head("Name\t: x"),
        head(": x"),
        head("no colon"),
        head(" folded: x"),
        head("A: b", "\tc"),
        head("A: b", " c: d"),
        head("A: b\nB: c"),
        head("A: b\rB: c"),
        head("A: b\0"),
        head("A: \x1b[2J"),
        head("A: b\x7f"),
        head("A\xe9: b"),
        head("A: b\r"),
        head("Content-Length: 5", "Transfer-Encoding: chunked"),
        head("Transfer-Encoding: chunked", "content-length: 0"),
        head("Content-Length: 5", "Content-Length: 5"),
        head("Content-Length: 5, 5"),
        head("Content-Length: +5"),
        head("Content-Length: -5"),
        head("Content-Length: 5 5"),
        head("Content-Length: 0x5"),
        head("Content-Length:"),
        head("Content-Length: 1" + "0" * 30),
        head("Content-Length: \xb2"),
        head("Transfer-Encoding: chunked, chunked"),
        head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        head("Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Transfer-Encoding: chunked"),
        head("Transfer-Encoding:"),
        head("Transfer-Encoding: \"chunked\""),
        head("Transfer-Encoding: chunked;q=1"),
        head("Transfer-Encoding: chunked", first="GET /a HTTP/1.0"),
    ],
)  # fmt: skip
def test_what_is_no_request(raw):
    assert code_of(raw) == "bad_request"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (head(host=None), "bad_host"),
        (head("Host: h"), "bad_host"),
        (head("Host: other"), "bad_host"),
        (head(host=""), "bad_host"),
        (head(host="a b"), "bad_host"),
        (head(host="a/b"), "bad_host"),
        (head(host="a@b"), "bad_host"),
        (head(host="a,b"), "bad_host"),
        (head(host="h:99999"), "bad_host"),
        (head(host="[::1"), "bad_host"),
        (head(host="h", first="GET /a HTTP/1.0") + b"\r\nHost: h", "bad_host"),
        (head("Transfer-Encoding: gzip, chunked"), "unsupported_coding"),
        (head("Transfer-Encoding: gzip"), "unsupported_coding"),
        (head("Transfer-Encoding: identity"), "unsupported_coding"),
        (head("Expect: 200-ok"), "expectation_failed"),
        (head(first="GET /a HTTP/2.0"), "version_not_supported"),
        (head(first="GET /a HTTP/1.2"), "version_not_supported"),
        (b"PRI * HTTP/2.0", "version_not_supported"),
    ],
)
def test_faults_with_a_code_of_their_own(raw, code):
    assert code_of(raw) == code


@pytest.mark.parametrize("host", ["h", "h:80", "h:", "127.0.0.1:8440", "[::1]:80", "a_b.example.ORG", "x."])
def test_hosts_that_pass(host):
    assert parse_request(head(host=host)).host == host


def test_what_frames_a_request():
    assert parse_request(head("content-LENGTH: 007")).length == 7
    assert parse_request(head("Transfer-Encoding: CHUNKED")).length == CHUNKED
    assert parse_request(head("Connection: Foo, Close")).keep_alive is False
    assert parse_request(head(host=None, first="GET / HTTP/1.0")).keep_alive is False
    assert parse_request(head("Connection: Keep-Alive", first="GET / HTTP/1.0")).keep_alive is True
    assert (
        parse_request(head("Connection: keep-alive", "Connection: close", first="GET / HTTP/1.0")).keep_alive is False
    )
    assert parse_request(head("Expect: 100-Continue", "Content-Length: 1")).expect is True
    assert parse_request(head("Expect: 100-continue")).expect is False
    assert parse_request(head("Connection: upgrade", "Upgrade: WebSocket")).upgrade == "websocket"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n",
        b"\0",
        b"\xff\xfe\xfd",
        b"GET /\r\n",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nA: \x01",
        b"GET / HTTP/1.1\r\nA: b\rc",
        b"SSH-2.0-x\r\n",
        b"{\"a\":",
        b" GET",
    ],
)  # fmt: skip
def test_what_can_be_told_before_the_head_is_whole(data):
    assert early_fault(data) is not None


@pytest.mark.parametrize("data", [b"G", b"GET ", b"GET /a", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nA: b\r\n\r"])
def test_what_may_still_become_a_head(data):
    assert early_fault(data) is None


def read(raw: bytes, cut: int, max_trailers: int = 100) -> tuple[bytes, ChunkedBody]:
    body = ChunkedBody(max_trailers)
    got = b""
    for at in range(0, len(raw), cut):
        got += body.feed(raw[at : at + cut])
        if body.done:
            body.rest += raw[at + cut :]
            break
    return got, body


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000])
def test_a_body_in_chunks(cut):
    raw = b'4\r\nabcd\r\n00A;x="y"\r\n0123456789\r\n0;last\r\nA: b\r\nC:d\r\n\r\nGET /next'
    got, body = read(raw, cut)
    assert got == b"abcd0123456789"
    assert body.done
    assert body.trailers == [("A", "b"), ("C", "d")]
    assert body.rest == b"GET /next"


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize(
    "raw",
    [
        b"\r\nabc",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"1\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\na\r0\r\n\r\n",
        b"1;\0\r\na\r\n",
        b"1;a\rb\r\na\r\n",
        b"ffffffffffffffff\r\n",
        b"1000000000000000\r\n",
        b"1;" + b"x" * 1100 + b"\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n A: b\r\n\r\n",
        b"0\r\nA\r\n\r\n",
        b"0\r\nA: b\nC: d\r\n\r\n",
        b"0\r\nA: b\x00\r\n\r\n",
        b"".join(b"1;" + b"x" * 900 + b"\r\na\r\n" for _ in range(20)),
    ],
)
def test_what_is_no_body_in_chunks(raw, cut):
    with pytest.raises(VisitorError) as caught:
        read(raw, cut)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("cut", [1, 1000])
def test_trailers_have_a_bound(cut):
    with pytest.raises(VisitorError) as caught:
        read(b"0\r\n" + b"A: b\r\n" * 30 + b"\r\n", cut)
    assert caught.value.code == "head_too_large"
