"""The reader of services' answers."""

from __future__ import annotations

import pytest

from tunneld.protocol.messages import Headers
from tunneld.wire.http_client import MAX_CHUNK_LINE, MAX_FIELDS, AnswerReader, BadAnswer

LIMIT = 4096


class Told:
    def __init__(self) -> None:
        self.heads: list[tuple[int, Headers, int]] = []
        self.body = b""
        self.pieces = 0
        self.trailers: Headers | None = None

    def answer_head(self, status: int, headers: Headers, length: int) -> None:
        assert self.trailers is None
        self.heads.append((status, headers, length))

    def answer_data(self, data: bytes) -> None:
        assert data
        assert self.trailers is None
        self.body += data
        self.pieces += 1

    def answer_end(self, trailers: Headers) -> None:
        assert self.trailers is None
        self.trailers = trailers


def read(*parts: bytes, to_head: bool = False, limit: int = LIMIT, eof: bool = False) -> tuple[Told, AnswerReader]:
    told = Told()
    reader = AnswerReader(told, to_head=to_head, limit=limit)
    for part in parts:
        reader.feed(part)
    if eof:
        reader.eof()
    return told, reader


def both_ways(data: bytes, *, to_head: bool = False, eof: bool = False) -> tuple[Told, AnswerReader]:
    """Whole and byte by byte tell the same."""
    whole, reader = read(data, to_head=to_head, eof=eof)
    single, _ = read(*(data[i : i + 1] for i in range(len(data))), to_head=to_head, eof=eof)
    assert (whole.heads, whole.body, whole.trailers) == (single.heads, single.body, single.trailers)
    return whole, reader


def test_a_length_delimits_the_body() -> None:
    told, reader = both_ways(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  b \r\n\r\nhello")
    assert told.heads == [(200, [("Content-Length", "5"), ("X-A", "b")], 5)]
    assert told.body == b"hello"
    assert told.trailers == []
    assert reader.keep_alive


def test_chunks_delimit_the_body_and_trailers_follow() -> None:
    told, reader = both_ways(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'5;a="b;c"\r\nhello\r\n00006 ; x\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n'
    )
    assert told.body == b"hello world"
    assert told.pieces == 1
    assert told.trailers == [("X-Sum", "1")]
    assert reader.keep_alive


def test_the_close_delimits_the_body() -> None:
    told, reader = both_ways(b"HTTP/1.1 200\r\n\r\nhello", eof=True)
    assert told.heads[0][2] == -1
    assert told.body == b"hello"
    assert told.trailers == []
    assert not reader.keep_alive


@pytest.mark.parametrize(
    ("head", "to_head"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", False),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", False),
    ],
)
def test_some_answers_have_no_body(head: bytes, to_head: bool) -> None:
    told, reader = both_ways(head, to_head=to_head)
    assert told.trailers == []
    assert told.heads[0][2] == 0
    assert reader.keep_alive


def test_informational_heads_come_before_the_final_one() -> None:
    told, _ = both_ways(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    )
    assert [status for status, _, _ in told.heads] == [100, 103, 200]
    assert told.body == b"x"


@pytest.mark.parametrize(
    ("fields", "keep"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nx", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", False),
    ],
)
def test_whether_the_connection_may_be_used_again(fields: bytes, keep: bool) -> None:
    _, reader = read(fields, eof=True)
    assert reader.done
    assert reader.keep_alive is keep


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nB: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    for parts in ([answer], [answer[i : i + 1] for i in range(len(answer))]):
        with pytest.raises(BadAnswer) as caught:
            read(*parts)
        assert caught.value.code == "bad_answer"


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-1\r\n",
        b" 5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloX",
        b"5\r\nhello\r5",
        b"5\r\nhello\n",
        b"1_0\r\n",
        b"\r\n",
        b"5;\x00\r\nhello\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"f" * 16 + b"\r\n",
        b"5;" + b"a" * MAX_CHUNK_LINE,
        b"0\r\nno colon\r\n\r\n",
    ],
)
def test_what_is_no_chunk_is_refused(chunks: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for parts in ([head + chunks], [head, *(chunks[i : i + 1] for i in range(len(chunks)))]):
        with pytest.raises(BadAnswer):
            read(*parts)


def test_bytes_before_a_bad_chunk_are_told() -> None:
    told = Told()
    reader = AnswerReader(told, to_head=False, limit=LIMIT)
    with pytest.raises(BadAnswer):
        reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
    assert told.body == b"hello"


@pytest.mark.parametrize("dribble", [False, True])
def test_a_head_over_the_limit_is_refused(dribble: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nA: " + b"x" * LIMIT
    parts = [head[i : i + 100] for i in range(0, len(head), 100)] if dribble else [head + b"\r\n\r\n"]
    with pytest.raises(BadAnswer) as caught:
        read(*parts)
    assert caught.value.code == "answer_too_large"


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(BadAnswer) as caught:
        read(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n")
    assert caught.value.code == "answer_too_large"


@pytest.mark.parametrize("dribble", [False, True])
def test_trailers_over_the_limit_are_dropped_and_the_body_stands(dribble: bool) -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    trailers = b"A: " + b"y" * LIMIT + b"\r\n\r\n"
    parts = [trailers[i : i + 1] for i in range(len(trailers))] if dribble else [trailers]
    told, reader = read(start, *parts)
    assert told.body == b"x"
    assert told.trailers == []
    assert reader.dropped_trailers
    assert not reader.keep_alive


@pytest.mark.parametrize(("fields", "dropped"), [(MAX_FIELDS, False), (MAX_FIELDS + 1, True)])
def test_trailers_of_too_many_fields_are_dropped_and_the_body_stands(fields: int, *, dropped: bool) -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    told, reader = read(start + b"A:\r\n" * fields + b"\r\n")
    assert told.body == b"x"
    assert (reader.done, reader.dropped_trailers) == (True, dropped)
    assert told.trailers == ([] if dropped else [("A", "")] * fields)


@pytest.mark.parametrize(
    ("begin", "clean"),
    [
        (b"", False),
        (b"HTTP/1.1 20", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", True),
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
    ],
)
def test_an_end_is_clean_only_where_the_answer_is_whole(begin: bytes, clean: bool) -> None:
    told, reader = read(begin) if begin else read()
    assert reader.eof() is clean
    assert (told.trailers is not None) is clean


def test_nothing_is_told_after_abandon() -> None:
    told, reader = read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
    reader.abandon()
    reader.feed(b"llo")
    assert told.body == b"he"
    assert told.trailers is None
    assert reader.done
    assert not reader.keep_alive


def test_what_is_left_is_known() -> None:
    _, reader = read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
    assert reader.left == 3
    _, reader = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe")
    assert reader.left == 3
    _, reader = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello")
    assert reader.left == -1
