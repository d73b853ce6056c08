"""Texts and JSON heads: what passes, what does not, and that nothing but RemoteError escapes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.errors import RemoteError
from tunneld.protocol.messages import (
    Connected,
    ErrorMessage,
    GoAway,
    Head,
    HeartbeatSettings,
    Hello,
    Open,
    Ping,
    Pong,
    ResumeSettings,
    Settings,
    SseChange,
    SseSettings,
    StreamCancel,
    Wishes,
    decode_head,
    decode_open,
    decode_text,
    decode_trailers,
    encode,
)

_BEAT, _SSE = HeartbeatSettings(30.0, 10.0), SseSettings(15.0, 1024, False)
_HELLO = (
    '{"type":"hello","instance":"i","dial":2,"agent_version":"1","wishes":{"heartbeat":{"interval":30.0,"timeout":10.0},'
    '"max_streams":5},"session_id":"s","resume_token":"t","received":7}'
)
_DEEP = b"[" * 60_000 + b"]" * 60_000


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (Hello("i", 1), '{"type":"hello","instance":"i","dial":1}'),
        (
            Hello("i", 2, "1", Wishes(_BEAT, max_streams=5), "s", "t", 7),
            _HELLO,
        ),
        (Settings(heartbeat=_BEAT), '{"type":"settings","heartbeat":{"interval":30.0,"timeout":10.0}}'),
        (Settings(sse=SseChange(identity=False)), '{"type":"settings","sse":{"identity":false}}'),
        (Ping("2026-01-01T00:00:00.000Z", 3), '{"type":"ping","timestamp":"2026-01-01T00:00:00.000Z","seq":3}'),
        (Ping("x", 3, (443, 5)), '{"type":"ping","timestamp":"x","seq":3,"ports":[443,5]}'),
        (Pong("x", 3), '{"type":"pong","timestamp":"x","seq":3}'),
        (
            Pong("x", 3, 0, 7, mending=True),
            '{"type":"pong","timestamp":"x","seq":3,"resent":0,"arrived":7,"mending":true}',
        ),
        (StreamCancel("r", "visitor"), '{"type":"stream_cancel","request_id":"r","reason":"visitor"}'),
        (GoAway("drain", 1.5), '{"type":"goaway","reason":"drain","retry_after":1.5}'),
        (ErrorMessage("bad_hello", "why"), '{"type":"error","code":"bad_hello","message":"why","retry_after":null}'),
    ],
)
def test_golden_texts(message: object, golden: str) -> None:
    assert encode(message).decode() == golden
    assert decode_text(golden.encode()) == message


def test_connected_says_everything_also_what_is_as_usual() -> None:
    connected = Connected("n", "u", "s", "t", _BEAT, SseSettings(), ResumeSettings(), 10, 20, 30)
    assert json.loads(encode(connected)) == {
        "type": "connected",
        "tunnel_id": "n",
        "public_url": "u",
        "host_url": None,
        "session_id": "s",
        "resume_token": "t",
        "resumed": False,
        "resume_refused": None,
        "received": 0,
        "heartbeat": {"interval": 30.0, "timeout": 10.0},
        "sse": {
            "keepalive": 30.0,
            "max_event": 262144,
            "identity": True,
            "recover": False,
            "replay": 0.0,
            "replay_buffer": 1048576,
        },
        "resume": {"grace": 0.0, "buffer": 4194304},
        "access": None,
        "token_expires_s": None,
        "max_streams": 10,
        "stream_window": 20,
        "max_header": 30,
        "server_version": "",
        "probe": None,
    }
    assert decode_text(encode(connected)) == connected


def test_newer_peers_may_say_more() -> None:
    assert decode_text(b'{"type":"ping","timestamp":"x","seq":1,"more":[1]}') == Ping("x", 1)
    assert decode_text(b'{"type":"weather","x":{"y":1}}') is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b'"ping"',
        b'{"type":1}',
        b'{"type":"ping"}',
        b'{"type":"ping","timestamp":1,"seq":1}',
        b'{"type":"ping","timestamp":"x","seq":1.5}',
        b'{"type":"ping","timestamp":"x","seq":-1}',
        b'{"type":"ping","timestamp":"x","seq":9223372036854775808}',
        b'{"type":"ping","timestamp":"x","seq":' + b"9" * 5000 + b"}",
        b'{"type":"ping","timestamp":"' + b"x" * 65 + b'","seq":1}',
        b'{"type":"ping","timestamp":"\\ud800","seq":1}',
        b'{"type":"ping","timestamp":"\xff","seq":1}',
        b'{"type":"ping","timestamp":"x","seq":1}}',
        b'{"type":"goaway","reason":"x","retry_after":1e999}',
        b'{"type":"goaway","reason":"x","retry_after":-1}',
        b'{"type":"goaway","reason":"x","retry_after":NaN}',
        b'{"type":"goaway","reason":"' + b"x" * 3000 + b'"}',
        b'{"type":"hello","instance":"i","dial":1,"agent_version":"' + b"x" * 65 + b'"}',
        _DEEP,
        b'{"type":"ping","timestamp":"x","seq":1,"x":' + _DEEP + b"}",
        b'{"type":"weather","x":' + _DEEP + b"}",
    ],
)
def test_texts_that_cannot_be(text: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        decode_text(text)
    assert caught.value.code == "protocol_error"
    assert len(str(caught.value)) < 300


def test_heads_carry_octets_as_latin1_text() -> None:
    every = "".join(map(chr, range(32, 256)))
    request = Open("r", "GET", "/" + every, [("X", every)], "::1")
    assert decode_open(encode(request)) == request
    assert "\u00ff".encode() in encode(request)  # written as UTF-8, not escaped
    assert decode_head(encode(Head(200, [("X", every)]))) == Head(200, [("X", every)])
    assert decode_trailers(encode([("X", every)])) == [("X", every)]
    assert decode_trailers(b"") == []
    assert decode_head(b'{"status":200,"headers":[["X","\\u00e9\\u0041"]]}').headers == [("X", "éA")]


def _open(**changes: object) -> bytes:
    whole = {"request_id": "r", "method": "GET", "path": "/", "headers": [["A", "b"]], "client": ""}
    return json.dumps({**whole, **changes}).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        _open(request_id=""),
        _open(request_id="x" * 129),
        _open(request_id="a b"),
        _open(request_id="a\nb"),
        _open(request_id="é"),
        _open(client="a\nb"),
        _open(client="x" * 257),
        _open(headers=[["A"]]),
        _open(headers=[["A", "b", "c"]]),
        _open(headers=[["A", 1]]),
        _open(headers=[["A", "€"]]),
        _open(headers=[["Ā", "b"]]),
        _open(path="/€"),
        _open(method="€"),
        _open(headers=_DEEP.decode()),
        b'{"request_id":"r","method":"GET","path":"/","headers":' + _DEEP + b"}",
        '{"request_id":"r","method":"GET","path":"/","headers":[["A","€"]]}'.encode(),
        b'{"request_id":"r","method":"GET","path":"/","headers":[["A","\\ud83d\\ude00"]]}',
        b'{"request_id":"r","method":"GET","path":"/","headers":[["A","\\udc00"]]}',
    ],
)
def test_opens_that_cannot_be(payload: bytes) -> None:
    with pytest.raises(RemoteError, match="protocol_error"):
        decode_open(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b'{"status":99,"headers":[]}',
        b'{"status":1000,"headers":[]}',
        b'{"status":2e2,"headers":[["A",1]]}',
        b'{"status":true,"headers":[]}',
        b'{"status":' + b"9" * 500 + b',"headers":[]}',
        b'{"status":200,"headers":{"A":"b"}}',
        b'{"status":200,"headers":[["A","\\u20ac"]]}',
    ],
)
def test_heads_that_cannot_be(payload: bytes) -> None:
    with pytest.raises(RemoteError, match="protocol_error"):
        decode_head(payload)


@pytest.mark.parametrize("payload", [b" ", b"{}", b"null", b'[["A"]]', b'[["A","\\u0100"]]', b"[[[]]]"])
def test_trailers_that_cannot_be(payload: bytes) -> None:
    with pytest.raises(RemoteError, match="protocol_error"):
        decode_trailers(payload)


@pytest.mark.parametrize("decode", [decode_text, decode_open, decode_head, decode_trailers])
@given(st.one_of(st.binary(), st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps)))
def test_any_bytes_are_read_or_a_protocol_error(decode, given_bytes: bytes | str) -> None:
    payload = given_bytes.encode("utf-8", "surrogatepass") if isinstance(given_bytes, str) else given_bytes
    code = "protocol_error"
    try:
        decode(payload)
    except RemoteError as error:
        code = error.code
    assert code == "protocol_error"
