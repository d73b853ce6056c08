"""What is fuzzed by coverage (`make fuzz`): the ingress's parser path, messages of v2 and of v3; functions of bytes.

Each feeds the real thing, whole and in pieces, and raises AssertionError where the two differ, where something is left
behind, or where an end has no name; any other exception is a finding too.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from typing import Any

from tests.fuzz.test_session_fuzz import _run as run_session
from tunneld.config.common import QualityConfig
from tunneld.config.server import ServerLimits
from tunneld.errors import CODES, VisitorError
from tunneld.protocol.headers import BadHeader, Headers, encode_head, to_visitor
from tunneld.protocol.messages import AccessSettings, HeartbeatSettings, Open, SseSettings
from tunneld.protocol.streams import REASONS
from tunneld.protocol.windows import MemoryBudget
from tunneld.server.legacy.connection import LegacyConnection, LegacyPolicy
from tunneld.server.legacy.stream import LegacyStream
from tunneld.server.principals import OPEN
from tunneld.server.registry import Registry
from tunneld.server.visitors.rules import Rules
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_server import ServerConnection
from tunneld.wire.short_reads import ShortReads
from tunneld.wire.ws_protocol import WebSocket

__all__ = ["SEEDS", "TARGETS", "ingress", "v2", "v3"]

_LIMITS = ServerLimits(max_header=2048, max_body=4096)
_V2_MESSAGE = 64 << 10
_loop: asyncio.AbstractEventLoop | None = None


def _on_the_loop(work: Any) -> Any:
    """Run a coroutine on a loop of this process's own, which stays."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
    return _loop.run_until_complete(work)


class Wire(asyncio.Transport):
    """A transport of no socket: what is written is kept, a close is told in the loop's next turn."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.protocol: Any = None
        self.over = False

    def write(self, data: Any) -> None:
        if not self.over:
            self.written += data

    def writelines(self, data: Any) -> None:
        self.write(b"".join(data))

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.over

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        if not self.over:
            self.over = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


def _pieces(data: bytes, step: int) -> list[bytes]:
    return [data[at : at + step] for at in range(0, len(data), step)]


# -- the ingress's parser path -------------------------------------------------------------------------------


class _Visited:
    """A service of a connection that answers each request with what it got."""

    draining = False
    limits = _LIMITS
    reads = ShortReads(MemoryBudget())

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.seen: list[Any] = []
        self.open = 0

    def opened(self, connection: ServerConnection) -> None:
        self.open += 1

    def closed(self, connection: ServerConnection) -> None:
        self.open -= 1

    def fault(self, connection: ServerConnection, head: RequestHead | None, error: VisitorError) -> None:
        assert CODES[error.code].status >= 400
        # Whether a head is too large, or wrong behind that, is told by what came of it first.
        self.seen.append("bad_request" if error.code == "head_too_large" else error.code)
        connection.send_head(400, [("Content-Length", "0")], length=0)
        connection.finish([])

    def request(self, connection: ServerConnection, head: RequestHead) -> None:
        said = [head.method, head.target, head.version, head.host, tuple(head.headers), head.length]
        self.seen.append(tuple(said))
        assert head.target.startswith("/")
        assert "\r" not in "".join(map(str, said))
        assert "\n" not in "".join(map(str, said))
        connection.begin(_Reader(self, connection))
        if not head.length:
            connection.consumer.body_end([])  # type: ignore[union-attr]


class _Reader:
    """Takes a body and answers at its end."""

    def __init__(self, service: _Visited, connection: ServerConnection) -> None:
        self.service = service
        self.connection = connection
        self.size = bytearray()

    def body(self, data: bytes) -> bool:
        self.size += data
        assert len(self.size) <= _LIMITS.max_body
        return True

    def body_end(self, trailers: Headers) -> None:
        self.service.seen.append((bytes(self.size), tuple(trailers)))
        self._answer(200)

    def body_fault(self, error: VisitorError) -> None:
        self.service.seen.append(error.code)
        self._answer(error.status)

    def _answer(self, status: int) -> None:
        self.connection.consumer = None
        self.connection.send_head(status, [("Content-Length", "2")], length=2)
        self.connection.send(b"ok")
        self.connection.finish([])

    def drained(self) -> None:
        raise AssertionError("nothing was ever congested")

    def stalled(self) -> None:
        raise AssertionError("nothing was ever congested")

    def gone(self) -> None:
        self.service.seen.append("gone")


async def _visit(pieces: list[bytes]) -> tuple[list[Any], bytes]:
    service, wire = _Visited(), Wire()
    connection = ServerConnection(service, None)
    wire.protocol = connection
    connection.connection_made(wire)
    for piece in pieces:
        if not wire.over:
            connection.data_received(piece)
    if not wire.over:
        connection.eof_received()
        wire.close()
    await asyncio.sleep(0)
    assert service.open == 0
    assert connection.consumer is None
    return service.seen, bytes(wire.written)


def ingress(data: bytes) -> None:
    """A visitor's bytes: the same requests, faults and answers however they are cut. The first byte says how."""
    step, data = (data[0] % 64) + 1 if data else 1, data[1:]
    whole = _on_the_loop(_visit([data] if data else []))
    assert _on_the_loop(_visit(_pieces(data, step))) == whole


# -- messages of the older dialect ---------------------------------------------------------------------------


class _Sink:
    """What an exchange is to a stream; holds it to the order of calls."""

    def __init__(self) -> None:
        self.stream: LegacyStream
        self.calls: list[Any] = []
        self.over = False

    def head(self, status: int, headers: Headers) -> None:
        assert not self.calls
        assert 200 <= status <= 599
        self.calls.append((status, tuple(headers)))
        try:
            head = encode_head(f"HTTP/1.1 {status} ", to_visitor(headers, prefix="/t/n"))
        except BadHeader:
            self.over = True
            self.stream.cancel("service")
            return
        assert head.count(b"\r\n\r\n") == 1
        assert not any(name.lower() in ("transfer-encoding", "content-encoding") for name, _ in headers)

    def data(self, data: bytes) -> None:
        assert self.calls
        assert not self.over
        assert data
        self.calls.append(data)
        if len(self.calls) % 3:
            self.stream.took(len(data))

    def end(self, trailers: Headers) -> None:
        assert self.calls
        assert not self.over
        self.over = True
        self.calls.append("end")

    def stopped(self) -> None:
        raise AssertionError("no request here has a body")

    def cancelled(self, reason: str) -> None:
        assert not self.over
        assert reason in REASONS
        self.over = True
        self.calls.append(reason)

    def writable(self) -> None:
        raise AssertionError("no request here has a body")


def _frames(data: bytes) -> bytes:
    """Messages between 0x1e as a client's text frames; one that begins with 0x00 goes as it is, no frame at all."""
    out = bytearray()
    for message in data.split(b"\x1e")[:64]:
        if message[:1] == b"\0":
            out += message[1:]
            continue
        size = len(message)
        out += struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x81, 0xFE, size & 0xFFFF)
        out += bytes(4) + message[:65535]
    return bytes(out)


async def _talk(octets: bytes, step: int) -> list[Any]:
    registry = Registry(
        max_tunnels=4, max_waiting=4, urls=lambda name: (f"http://h/t/{name}", None), quality=QualityConfig()
    )
    budget, gone = MemoryBudget(1 << 20), []
    policy = LegacyPolicy(HeartbeatSettings(60, 10), SseSettings(), 8, _V2_MESSAGE, 4096, 30.0)
    wire = Wire()
    pipe = WebSocket(asyncio.get_running_loop(), wire, b"", client=False, max_message=_V2_MESSAGE, subprotocol=None)
    connection = LegacyConnection(
        pipe, "n", title="N", peer="p", principal=OPEN, policy=lambda: policy, registry=registry, budget=budget,
        rules=lambda _: Rules("n", AccessSettings()), forget=gone.append,
    )  # fmt: skip
    connection.start()
    sinks = []
    for number in range(1, 6):
        sink = _Sink()
        method, path = ("HEAD", "/h") if number == 5 else ("GET", "/sse" if number % 2 else "/a")
        sink.stream = connection.open(Open(f"r{number}", method, path, [], ""), sink, ended=True)
        sinks.append(sink)
    pipe.handler = connection
    for piece in _pieces(octets, step):
        room = pipe.get_buffer(len(piece))
        assert len(room) >= 1
        while piece and not wire.over:
            size = min(len(piece), len(room))
            room[:size] = piece[:size]
            pipe.buffer_updated(size)
            piece, room = piece[size:], pipe.get_buffer(-1)
        if wire.over:
            break
        assert len(connection.streams) <= 5
        assert connection.streams.keys() == {one.stream.request_id for one in sinks if not one.over}
    if not wire.over:
        wire.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert gone == [connection]
    assert not connection.streams
    assert budget.held == 0
    assert all(one.over for one in sinks)
    assert not registry.all()[0].online
    return [(_joined(one.calls)) for one in sinks]


def _joined(calls: list[Any]) -> list[Any]:
    """How often bytes came in is not what is compared."""
    return [call for call in calls if not isinstance(call, bytes)] + [
        b"".join(call for call in calls if isinstance(call, bytes))
    ]


def v2(data: bytes) -> None:
    """A client's messages: the same for each request however the octets are cut. The first byte says how."""
    step, octets = (data[0] % 64) + 1 if data else 1, _frames(data[1:])
    whole = _on_the_loop(_talk(octets, max(1, len(octets))))
    assert _on_the_loop(_talk(octets, step)) == whole


# -- messages of the current dialect -------------------------------------------------------------------------


def v3(data: bytes) -> None:
    """A peer's messages: three bytes for role, grace and dice, then length, opcode and payload of each."""
    if len(data) < 3:
        return
    messages, at = [], 3
    while at + 3 <= len(data) and len(messages) < 64:
        (size,) = struct.unpack_from("!H", data, at)
        messages.append((1 if data[at + 2] & 1 else 2, data[at + 3 : at + 3 + size]))
        at += 3 + size
    code = run_session("agent" if data[0] & 1 else "server", 60.0 if data[1] & 1 else 0.0, messages, data[2])
    assert code is None or CODES[code].status == 0


TARGETS: dict[str, Callable[[bytes], None]] = {"ingress": ingress, "v2": v2, "v3": v3}


# -- where to begin ------------------------------------------------------------------------------------------


def _v3_seeds() -> list[bytes]:
    import random

    from tests.fuzz.test_session_fuzz import _valid

    seeds = []
    for number in range(8):
        role = "agent" if number & 1 else "server"
        said = b"".join(
            struct.pack("!HB", len(payload), opcode & 1) + payload
            for opcode, payload in _valid(role, random.Random(number))
            if len(payload) < 4096
        )
        seeds.append(bytes([number & 1, number >> 1 & 1, number]) + said)
    return seeds


def _v2_seeds() -> list[bytes]:
    def said(kind: str, **fields: Any) -> bytes:
        return json.dumps({"type": kind, **fields}).encode()

    cookie = "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT, b=2"
    whole = said("response", request_id="r2", status_code=200, headers={"set-cookie": cookie, "x": ["1", 2]}, body="é")
    return [
        b"\x05" + b"\x1e".join(messages)
        for messages in (
            [said("ping", timestamp="t"), said("pong", timestamp=1), said("register_api_key", api_key="k")],
            [whole, whole, said("response", request_id="r4", status_code=204)],
            [said("stream_chunk", request_id="r1", body="data: 1\n\n"), said("stream_end", request_id="r1")],
            [said("response", request_id="r1", status_code=502, body="no"), said("stream_end", request_id="r2")],
            [said("stream_chunk", request_id="r3", body="x" * 5000)] * 3,
            [rb'{"type":"stream_chunk","request_id":"r1","body":"\ud83d\\\ud83d\ude00"}'],
            [
                said("response", request_id="r5", status_code=304, headers={"content-length": 7}),
                b"{",
                b"\0\x88\x80\0\0\0\0",
            ],
        )
    ]


def _ingress_seeds() -> list[bytes]:
    heads = [
        b"GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /x HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: x\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
        b"\r\nOPTIONS /%2e HTTP/1.1\r\nHost: [::1]:80\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    return [bytes([number * 7]) + head for number, head in enumerate(heads)]


SEEDS: dict[str, Callable[[], list[bytes]]] = {"ingress": _ingress_seeds, "v2": _v2_seeds, "v3": _v3_seeds}
