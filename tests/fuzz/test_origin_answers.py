"""Any bytes of a service, cut anyhow: the same events, and only documented outcomes."""

from __future__ import annotations

import asyncio
import itertools
import random

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tunnelled import serving, tunnelled_to
from tunneld.protocol.messages import Headers
from tunneld.wire.http_client import AnswerReader, BadAnswer

LIMIT = 2048


class Told:
    """Everything that was told, in order; data joined."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.body = b""

    def answer_head(self, status: int, headers: Headers, length: int) -> None:
        self.events.append(("head", status, tuple(headers), length))

    def answer_data(self, data: bytes) -> None:
        assert data
        self.body += data

    def answer_end(self, trailers: Headers) -> None:
        self.events.append(("end", tuple(trailers)))


Outcome = tuple[list[tuple[object, ...]], bytes, bool, bool]


def run(parts: list[bytes], *, to_head: bool = False) -> Outcome:
    """(events, body, refused, ended cleanly), after which the service closes."""
    told = Told()
    reader = AnswerReader(told, to_head=to_head, limit=LIMIT)
    refused = clean = False
    try:
        for part in parts:
            reader.feed(part)
        clean = reader.eof()
    except BadAnswer as fault:
        refused = fault.code in ("bad_answer", "answer_too_large")
        if not refused:
            raise
    if clean:
        assert told.events[-1][0] == "end"
    return told.events, told.body, refused, clean


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at) if b > a]


_names = st.sampled_from(["Content-Length", "Transfer-Encoding", "Connection", "X-A", "content-length", "X A", ""])
_values = st.sampled_from(
    ["0", "5", "5, 5", "chunked", "close", "keep-alive", " a ", "x" * 300, "\t", "a\r\n b", "\0", "é"]
)
_fields = st.lists(st.tuples(_names, _values), max_size=5).map(
    lambda fields: "".join(f"{name}:{value}\r\n" for name, value in fields).encode("latin-1")
)
_start = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 204\r\n",
        b"HTTP/1.1 100 Continue\r\n",
        b"HTTP/1.1 304 \r\n",
        b"HTTP/1.1 200 OK\n",
        b"HTTP/9.9 200\r\n",
        b"\r\n",
        b"HTTP/1.1 2000 OK\r\n",
    ]
)
_end = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b""])
_chunk = st.sampled_from(
    [
        b"5\r\nhello\r\n",
        b"A\r\n0123456789\r\n",
        b"1;x=y\r\n.\r\n",
        b"0\r\n\r\n",
        b"0\r\nT: 1\r\n\r\n",
        b"5\r\nhell",
        b"g\r\n",
        b"1 \r\n.\r\n",
        b"1\r\n.\n",
        b"0\r\nbad\r\n\r\n",
        b"0\r\n" + b"T: " + b"y" * 3000 + b"\r\n\r\n",
        b"fffffffffffffff\r\nx",
    ]
)
_body = st.one_of(st.binary(max_size=40), st.lists(_chunk, max_size=6).map(b"".join))
_answer = st.tuples(
    st.lists(st.tuples(_start, _fields, _end).map(b"".join), min_size=1, max_size=3).map(b"".join), _body
).map(b"".join)
_bytes = st.one_of(
    _answer, st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail)
)


@settings(max_examples=600, deadline=None)
@given(_bytes, st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
def test_how_the_bytes_are_cut_changes_nothing(data: bytes, places: list[int], to_head: bool) -> None:
    whole = run([data] if data else [], to_head=to_head)
    assert run(cut(data, places), to_head=to_head) == whole
    assert run([data[i : i + 1] for i in range(len(data))], to_head=to_head) == whole


class _Reference:
    """The same answer as llhttp reads it."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False
        self.status = 0
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self.body += data

    def on_message_complete(self) -> None:
        self.complete = self.complete or self.status >= 200


@settings(max_examples=400, deadline=None)
@given(_answer)
def test_what_is_taken_for_a_whole_answer_another_parser_takes_for_the_same(data: bytes) -> None:
    events, body, refused, clean = run([data])
    if refused or not clean or any(event[0] == "head" and event[3] == -1 and not _chunked(event) for event in events):
        return  # what we refuse others may take; what only the close delimits has no end to compare
    reference = _Reference()
    try:
        reference.parser.feed_data(data)
    except httptools.HttpParserError:
        assert reference.complete  # it minds what follows the answer; we drop that with the connection
    assert reference.complete
    assert reference.body == body


def _chunked(event: tuple[object, ...]) -> bool:
    headers = event[2]
    assert isinstance(headers, tuple)
    return any(name.lower() == "transfer-encoding" for name, _ in headers)


def _garbled(rng: random.Random) -> bytes:
    answer = bytearray(
        rng.choice(
            [
                b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n01234567890123456789",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\nA: b\r\n\r\n",
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nto the end",
                b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
            ]
        )
    )
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        at = rng.randrange(len(answer))
        if rng.random() < 0.5:
            answer[at] = rng.randrange(256)
        else:
            answer.insert(at, rng.randrange(256))
    return bytes(answer[: rng.choice([len(answer), len(answer), rng.randrange(len(answer) + 1)])])


async def test_whatever_a_service_sends_the_visitor_has_one_documented_end() -> None:
    rng = random.Random(7)

    async def garbling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        data = _garbled(rng)
        while data:
            size = rng.choice([1, 3, 10, 1000])
            writer.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)

    async with serving(garbling) as address, tunnelled_to(address, limits={"response_timeout": 5.0}) as made:
        for _ in range(15):
            visitors = [made.open() for _ in range(20)]
            for visitor in visitors:
                await visitor.finished()
                if visitor.reason is not None:
                    assert visitor.reason == "service"
                elif visitor.status == 502:
                    assert visitor.headers["x-tunnel-error"] in ("bad_answer", "service_broke", "answer_too_large")
        assert set(made.ended) <= {"done", "service"}
        assert sum(made.ended.values()) == 300
