"""The older dialect's messages, headers and paths, against what PROTOCOL.md says of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunneld.errors import RemoteError
from tunneld.protocol import legacy
from tunneld.protocol.legacy import (
    ApiKey,
    Broken,
    LegacyPing,
    LegacyPong,
    Response,
    StreamChunk,
    StreamEnd,
    answer_headers,
    decode,
    encode_request,
    is_stream,
    wire_path,
)
from tunneld.protocol.messages import Open


def said(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


def asked(method: str = "GET", path: str = "/", headers: Any = (), body: str = "") -> dict[str, Any]:
    request = Open("r1", method, path, list(headers), "192.0.2.1")
    return json.loads(encode_request(request, "my-server", body))  # type: ignore[no-any-return]


# -- what a client says --------------------------------------------------------------------------------------


def test_each_message_of_the_dialect() -> None:
    got = decode(said("response", request_id="a", status_code=200, headers={"A": "b"}, body="x"))
    assert got == Response("a", 200, {"A": "b"}, "x")
    assert decode(said("response", request_id="a", status_code=204)) == Response("a", 204)
    assert decode(said("response", request_id="a", status_code=204, headers=None, body=None)) == Response("a", 204)
    assert decode(said("stream_chunk", request_id="a", body="data: 1\n\n")) == StreamChunk("a", "data: 1\n\n")
    assert decode(said("stream_end", request_id="a")) == StreamEnd("a")
    assert decode(said("ping", timestamp="t")) == LegacyPing("t")
    assert decode(said("ping")) == LegacyPing(None)
    assert decode(said("pong", timestamp=5)) == LegacyPong(5)
    assert decode(said("register_api_key", api_key="k")) == ApiKey("k")


def test_what_newer_clients_may_say_is_ignored() -> None:
    assert decode(said("hello", anything=[1])) is None
    assert decode(said("stream_end", request_id="a", reason="done")) == StreamEnd("a")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"ping"',
        b"{}",
        b'{"type":null}',
        b'{"type":["ping"]}',
        b'{"type":"stream_end"}',
        b'{"type":"stream_end","request_id":7}',
        b'{"type":"response","status_code":200}',
        b'{"type":"register_api_key"}',
        b'{"type":"register_api_key","api_key":""}',
        b'{"type":"register_api_key","api_key":"' + b"k" * 5000 + b'"}',
        b'{"type":"ping","timestamp":NaN}',
        b'{"type":"stream_chunk","request_id":"a","body":"\\ud83d"',
        b'{"type":"stream_chunk","request_id":"a","body":"\xff"}',
        b"[" * 100_000,
        b'{"type":"ping","timestamp":' + b"[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_an_error_with_a_code(payload: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        decode(payload)
    assert caught.value.code == "protocol_error"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("response", {}),
        ("response", {"status_code": "200"}),
        ("response", {"status_code": 200, "headers": []}),
        ("response", {"status_code": 200, "body": {"a": 1}}),
        ("stream_chunk", {"body": 7}),
    ],
)
def test_a_message_that_names_a_request_costs_that_request_alone(kind: str, fields: dict[str, Any]) -> None:
    got = decode(said(kind, request_id="a", **fields))
    assert isinstance(got, Broken)
    assert got.request_id == "a"


def test_what_is_said_of_a_fault_holds_nothing_of_the_message() -> None:
    for body in ('"secret"', '"\\ud83dsecret"'):
        got = decode(b'{"type":"response","request_id":"a","status_code":"s3cret","body":%b}' % body.encode())
        assert isinstance(got, Broken)
        assert "secret" not in got.why
        assert "s3cret" not in got.why
    with pytest.raises(RemoteError) as caught:
        decode(b'{"type":"register_api_key","api_key":["s3cret"]}')
    assert "s3cret" not in str(caught.value)


def test_half_a_character_becomes_a_replacement() -> None:
    assert decode(rb'{"type":"stream_chunk","request_id":"a","body":"x\ud83d"}') == StreamChunk("a", "x\ufffd")
    assert decode(rb'{"type":"stream_chunk","request_id":"a","body":"\ude00x"}') == StreamChunk("a", "\ufffdx")
    whole = rb'{"type":"stream_chunk","request_id":"a","body":"\ud83d\ude00\\ud83d\ud83d\ud83d\ude00"}'
    assert decode(whole) == StreamChunk("a", "😀\\ud83d\ufffd😀")
    got = decode(rb'{"type":"response","request_id":"a","status_code":"2","body":"\ud83d"}')
    assert isinstance(got, Broken)


# -- what the server says ------------------------------------------------------------------------------------


def test_what_the_server_says() -> None:
    assert json.loads(legacy.encode_connected("my-server", "http://h/t/my-server")) == {
        "type": "connected",
        "tunnel_id": "my-server",
        "public_url": "http://h/t/my-server",
    }
    assert json.loads(legacy.encode_ping("t")) == {"type": "ping", "timestamp": "t"}
    assert json.loads(legacy.encode_cancel("a")) == {"type": "stream_cancel", "request_id": "a"}
    assert json.loads(legacy.encode_error("no")) == {"type": "error", "message": "no"}


@pytest.mark.parametrize("stamp", ["2026-01-01T00:00:00.000Z", 1767225600000, 1.5, "", "x" * 128])
def test_a_ping_is_echoed(stamp: object) -> None:
    assert json.loads(legacy.encode_pong(stamp, "now")) == {"type": "pong", "timestamp": stamp}


@pytest.mark.parametrize("stamp", [None, "x" * 129, {"a": 1}, [1], 2**80, -(2**70)])
def test_what_cannot_be_echoed_is_answered_with_the_time(stamp: object) -> None:
    assert json.loads(legacy.encode_pong(stamp, "now")) == {"type": "pong", "timestamp": "now"}


def test_a_request_as_it_goes_out() -> None:
    headers = [("Accept", "a"), ("Host", "h"), ("Accept-Encoding", "gzip"), ("accept", "b"), ("X-A", "1")]
    assert asked(path="/p?a=1&b=2&a=3&c=&d=%C3%A9+x", headers=headers) == {
        "type": "request",
        "request_id": "r1",
        "method": "GET",
        "path": "/p?a=1&b=2&a=3&c=&d=%C3%A9+x",
        "headers": {"accept": "a, b", "x-a": "1"},
        "query_params": {"a": "3", "b": "2", "c": "", "d": "é x"},
        "tunnel_id": "my-server",
    }


def test_cookies_are_joined_as_cookies_are() -> None:
    assert asked(headers=[("Cookie", "a=1"), ("cookie", "b=2")])["headers"] == {"cookie": "a=1; b=2"}


def test_the_length_of_a_body_is_counted_again() -> None:
    got = asked("POST", headers=[("Content-Length", "99"), ("Transfer-Encoding", "chunked")], body="né")
    assert got["body"] == "né"
    assert got["headers"] == {"content-length": "3"}
    assert asked("POST", headers=[("Content-Length", "0")])["headers"] == {"content-length": "0"}
    assert "body" not in asked("POST", headers=[("Content-Length", "0")])
    assert asked("GET")["headers"] == {}


def test_octets_beyond_ascii() -> None:
    got = asked(path="/caf\xc3\xa9?q=\xe9", headers=[("X-Name", "caf\xc3\xa9")])
    assert got["path"] == "/caf%C3%A9?q=%E9"
    assert got["headers"]["x-name"].encode("latin-1") == "café".encode()
    assert wire_path("/a%2Fb?x=%ff") == "/a%2Fb?x=%ff"


@pytest.mark.parametrize(
    ("method", "path", "stream"),
    [
        ("GET", "/sse", True),
        ("GET", "/api/sse-feed?x", True),
        ("GET", "/a?next=/sse", True),
        ("GET", "/s%73e", False),
        ("GET", "/SSE", False),
        ("GET", "/asse", False),
        ("POST", "/sse", False),
        ("HEAD", "/sse", False),
        ("get", "/sse", False),
    ],
)
def test_what_is_a_stream(method: str, path: str, stream: bool) -> None:
    assert is_stream(method, path) is stream


# -- headers of an answer ------------------------------------------------------------------------------------


def test_headers_of_an_answer() -> None:
    given = {
        "Content-Type": "text/plain",
        "content-length": "5",
        "Transfer-Encoding": "chunked",
        "Content-Encoding": "gzip",
        "X-Number": 7,
        "X-Flag": True,
        "X-None": None,
        "X-List": ["a", 2, None, ["b"]],
        "Vary": "Accept, Origin",
    }
    assert answer_headers(given, has_body=True) == [
        ("Content-Type", "text/plain"),
        ("X-Number", "7"),
        ("X-Flag", "true"),
        ("X-List", "a"),
        ("X-List", "2"),
        ("Vary", "Accept, Origin"),
    ]
    assert answer_headers(None, has_body=True) == []


def test_the_length_of_an_answer_without_body_speaks_of_another() -> None:
    assert answer_headers({"Content-Length": "5"}, has_body=False) == [("Content-Length", "5")]


@pytest.mark.parametrize(
    ("joined", "apart"),
    [
        ("a=1", ["a=1"]),
        ("a=1, b=2", ["a=1", "b=2"]),
        (
            "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/, b=2; Expires=Thu, 22-Oct-2026 07:28:00 GMT",
            [
                "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/",
                "b=2; Expires=Thu, 22-Oct-2026 07:28:00 GMT",
            ],
        ),
        ("a=1,b=2,c=3; HttpOnly", ["a=1", "b=2", "c=3; HttpOnly"]),
        ("__Host-a=x; Secure, tok!en=y", ["__Host-a=x; Secure", "tok!en=y"]),
        ('a="1"; Max-Age=5, b=', ['a="1"; Max-Age=5', "b="]),
    ],
)
def test_joined_cookies_are_taken_apart(joined: str, apart: list[str]) -> None:
    assert answer_headers({"set-cookie": joined}, has_body=True) == [("set-cookie", one) for one in apart]
    assert answer_headers({"Set-Cookie": apart}, has_body=True) == [("Set-Cookie", one) for one in apart]


def test_text_beyond_latin_1_is_sent_as_utf_8() -> None:
    [(_, value)] = answer_headers({"X-Name": "€"}, has_body=True)
    assert value.encode("latin-1") == "€".encode()
    assert answer_headers({"X-Name": "é"}, has_body=True) == [("X-Name", "é")]


@pytest.mark.parametrize("value", [{"a": 1}, [{"a": 1}]])
def test_a_value_that_is_no_text(value: object) -> None:
    with pytest.raises(ValueError, match="neither text"):
        answer_headers({"X": value}, has_body=True)
