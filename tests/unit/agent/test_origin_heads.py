"""The heads that go to services, and what becomes of theirs; why a connect failed."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from tunneld.agent.heads import CHUNKED, Heads
from tunneld.agent.origin import why
from tunneld.config.service import parse_service
from tunneld.protocol.headers import BadHeader, Headers
from tunneld.protocol.messages import Open

SERVICE = parse_service("http://127.0.0.1:9000")


def ask(
    method: str = "GET", path: str = "/", headers: Headers | None = None, *, ended: bool = True, **configured: str
) -> tuple[str, int]:
    heads = Heads(SERVICE, {name.replace("_", "-"): value for name, value in configured.items()})
    head, length = heads.request(Open("id", method, path, headers or [], "192.0.2.1"), ended=ended)
    return head.decode("latin-1"), length


def test_a_plain_request() -> None:
    head, length = ask("GET", "/a?b=%20", [("Accept", "*/*")])
    assert head == "GET /a?b=%20 HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nAccept: */*\r\nX-Tunnel-Request-Id: id\r\n\r\n"
    assert length == 0


@pytest.mark.parametrize(
    ("headers", "ended", "length", "says"),
    [
        ([], False, CHUNKED, "Transfer-Encoding: chunked"),
        ([("Content-Length", "7")], False, 7, "Content-Length: 7"),
        ([("Content-Length", "0")], True, 0, "Content-Length: 0"),
        ([], True, 0, "Content-Length: 0"),
    ],
)
def test_how_a_body_is_framed(headers: Headers, ended: bool, length: int, says: str) -> None:
    head, framed = ask("POST", "/", headers, ended=ended)
    assert framed == length
    assert head.count(says) == 1
    assert ("Content-Length" in head) != ("Transfer-Encoding" in head)


def test_a_visitors_coding_and_hop_are_dropped() -> None:
    sent = [("Transfer-Encoding", "gzip"), ("Upgrade", "websocket"), ("Connection", "Upgrade, X-A"), ("X-A", "1")]
    head, _ = ask("GET", "/", sent)
    assert head == "GET / HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nX-Tunnel-Request-Id: id\r\n\r\n"


def test_configured_headers_replace_whatever_their_case() -> None:
    head, _ = ask("GET", "/", [("x-key", "theirs"), ("HOST", "evil")], X_Key="ours", host="app")
    assert head == "GET / HTTP/1.1\r\nHost: app\r\nX-Key: ours\r\nX-Tunnel-Request-Id: id\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/ HTTP/1.1\r\nX: y", []),
        ("GET\r\n", "/", []),
        ("GET", "/", [("Content-Length", "1"), ("content-length", "1")]),
        ("GET", "/", [("A", "b\nc")]),
        ("GET", "/", [("A", "\u0100")]),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(method: str, path: str, headers: Headers) -> None:
    with pytest.raises(BadHeader):
        ask(method, path, headers)


def test_a_last_chunk_carries_what_may_be_a_trailer() -> None:
    heads = Heads(SERVICE, {})
    assert heads.last_chunk([]) == b"0\r\n\r\n"
    trailers = [("X-Sum", "1"), ("Content-Length", "5"), ("Connection", "x"), ("X-Tunnel-Error", "x")]
    assert heads.last_chunk(trailers) == b"0\r\nX-Sum: 1\r\n\r\n"
    assert heads.last_chunk([("X", "a\r\nb")]) == b"0\r\n\r\n"


def test_an_answer_loses_what_names_the_service() -> None:
    heads = Heads(SERVICE, {"Host": "app.internal"})
    answer = heads.answer(
        [("Location", "http://app.internal/x"), ("X-Tunnel-Error", "forged"), ("Connection", "close"), ("A", "b")]
    )
    assert answer == [("Location", "/x"), ("A", "b")]


def _refused(code: int) -> ssl.SSLCertVerificationError:
    """As OpenSSL refuses a certificate, with its number."""
    fault = ssl.SSLCertVerificationError(1, "certificate verify failed")
    fault.verify_code = code
    return fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 9000)"), "connection refused"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 111] other"), "connection refused"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "its socket does not exist"),
        (PermissionError(errno.EACCES, "no"), "permission denied"),
        (socket.gaierror(-2, "Name or service not known"), "its name does not resolve"),
        (UnicodeError("label too long"), "its name does not resolve"),
        (
            ssl.SSLCertVerificationError(1, "self-signed"),
            "its certificate is not valid for its address, or not trusted",
        ),
        (_refused(10), "its certificate has expired"),
        (_refused(9), "its certificate is not valid yet"),
        (_refused(18), "its certificate is not valid for its address, or not trusted"),
        (ssl.SSLError(1, "wrong version number"), "TLS failed"),
        (OSError("something with 127.0.0.1"), "connection failed"),
    ],
)
def test_why_a_connect_failed_names_no_address(fault: Exception, words: str) -> None:
    assert why(fault) == words


def test_a_redirect_to_where_the_service_is_reached_stays_in_the_tunnel_whatever_host_it_is_given() -> None:
    heads = Heads(SERVICE, {"Host": "app.internal"})
    for said in ("http://app.internal/login", "http://127.0.0.1:9000/login"):
        assert heads.answer([("Location", said)]) == [("Location", "/login")]
