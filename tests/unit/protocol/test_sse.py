"""Event boundaries and ids, against a slow reading of the HTML standard, at every cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.eventsource import BOM, lines_of, read, usable
from tunneld.protocol.sse import MAX_ID, EventCounter, EventSplitter, rewrite_endpoint

PIECES = [
    b"data", b"data:", b"data: x", b"id", b"id:", b"id: 7", b"id: 8", b"event: a", b"retry: 10", b"retry: x",
    b"dat", b"a: x", b":", b": c", b" ", b"x", b"\0", b"\n", b"\n", b"\n\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n",
    b"\r\r", b"idx: 1", b"data: y\n\n", b"id: 9\ndata: z\n\n", BOM, BOM[:1], b"\xc3\xa9",
    b"id: " + b"i" * MAX_ID, b"id: " + b"j" * (MAX_ID + 1), b"id: " + b"k" * 1500 + b"\0\n",
]  # fmt: skip
streams = st.lists(st.sampled_from(PIECES), max_size=24).map(b"".join)
cuts = st.lists(st.integers(0, 400), max_size=12)


def chunks(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted({min(n, len(data)) for n in at}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def state(reader: EventCounter) -> tuple[int, str | None, bool, int | None]:
    return reader.events, reader.last_event_id, reader.recoverable, reader.retry


def expected(data: bytes) -> tuple[int, str | None, bool, int | None]:
    reading = read(data)
    return len(reading.events), usable(reading.last_id), reading.recoverable, reading.retry


@settings(deadline=None)  # the slow reading on a busy machine; the run has its own limit
@given(data=streams, at=cuts)
@example(data=b"data: x\r\n\r\n", at=[8, 9, 10])
@example(data=b"id: 1\ndata: x\r\r\ndata: y\n\n", at=[15])
@example(data=BOM + b"data: x\n\n", at=[1, 2, 3])
def test_a_counter_agrees_with_the_standard_at_every_cut(data: bytes, at: list[int]) -> None:
    for parts in ([data], chunks(data, at), [data[n : n + 1] for n in range(len(data))]):
        counter = EventCounter()
        for part in parts:
            assert counter.feed(part) is part
        assert state(counter) == expected(data)


@settings(deadline=None)  # the slow reading on a busy machine; the run has its own limit
@given(data=streams, at=cuts)
@example(data=b"data: x\r\r\ndata: y\r\n\r\n", at=[9, 18])
@example(data=BOM + BOM + b"data: y\n\n", at=[])
def test_a_splitter_passes_on_all_that_is_complete_and_nothing_else(data: bytes, at: list[int]) -> None:
    text = data.removeprefix(BOM)
    boundaries = read(data).boundaries
    for parts in ([data], chunks(data, at), [data[n : n + 1] for n in range(len(data))]):
        splitter = EventSplitter(1 << 20)
        fed, out = 0, b""
        for part in parts:
            passed = splitter.feed(part)
            out += passed
            fed += len(part)
            skipped = 3 if data[:fed].startswith(BOM) else fed if BOM.startswith(data[:fed]) else 0
            assert len(out) == max(b for b in boundaries if b <= fed - skipped or b == 0)
            assert splitter.held == (fed if skipped == fed and skipped < 3 else fed - skipped - len(out))
            assert splitter.between_events
            assert not splitter.mid_event
            if passed:  # the slow reading once an event, not once a byte; of two marks the second is text
                assert state(splitter) == expected(BOM + out)
        assert out + splitter.end() == (text if len(data) > 2 or not BOM.startswith(data) else data)
        assert splitter.held == 0


@settings(deadline=None)  # the slow reading on a busy machine; the run has its own limit
@given(data=streams, at=cuts, max_event=st.integers(1, 40))
def test_an_oversize_event_passes_in_pieces_and_ends_recoverability(data: bytes, at: list[int], max_event: int) -> None:
    data = b"data: 0\n\n" + data
    first: tuple[int, str | None, bool, int | None] | None = None
    for parts in ([data], chunks(data, at), [data[n : n + 1] for n in range(len(data))]):
        splitter = EventSplitter(max_event)
        out = b""
        for part in parts:
            out += splitter.feed(part)
            assert splitter.held <= max_event
            if splitter.mid_event:
                assert not splitter.recoverable
                assert not splitter.between_events
        reading = read(out)
        assert splitter.events == len(reading.events)
        assert splitter.last_event_id == usable(reading.last_id)
        assert splitter.mid_event == (len(out) not in reading.boundaries)
        if read(data).longest > max_event:
            assert not splitter.recoverable
        first = first or state(splitter)
        assert state(splitter) == first
        assert out + splitter.end() == data


def slow_rewrite(data: bytes, prefix: str) -> bytes:
    """Line by line: the first data line of a block whose last event line says endpoint."""
    out = b""
    block: list[list[bytes]] = []
    begin = 0
    for line, end, after, _ in lines_of(data):
        block.append([line, data[end:after]])
        if line == b"":
            kinds = [text[6:].removeprefix(b" ") for text, _ in block if text.startswith(b"event:")]
            if kinds and kinds[-1] == b"endpoint":
                for row in block:
                    if row[0].startswith(b"data:"):
                        head = b"data: " if row[0].startswith(b"data: ") else b"data:"
                        row[0] = head + rewrite_endpoint(row[0][len(head) :], prefix)
                        break
            out += b"".join(text + end_mark for text, end_mark in block)
            block = []
            begin = after
    return out + data[begin:]


ROWS = [
    b"event: endpoint", b"event:endpoint", b"event: message", b"data: /m?s=1", b"data:/m", b"data: m", b"data: //h/m",
    b"data: http://h/m", b"data: /t/n/m", b"id: 1", b": c", b"", b"", b"myevent: endpoint", b"xdata: /m",
]  # fmt: skip


@settings(deadline=None)  # the slow reading on a busy machine; the run has its own limit
@given(
    rows=st.lists(st.sampled_from(ROWS), max_size=14),
    ends=st.lists(st.sampled_from([b"\n", b"\r", b"\r\n"]), min_size=1, max_size=5),
    at=cuts,
)
def test_endpoint_events_get_the_prefix_at_every_cut(rows: list[bytes], ends: list[bytes], at: list[int]) -> None:
    data = b"".join(row + ends[n % len(ends)] for n, row in enumerate(rows))
    wanted = slow_rewrite(data, "/t/n")
    for parts in ([data], chunks(data, at), [data[n : n + 1] for n in range(len(data))]):
        splitter = EventSplitter(1 << 20, prefix="/t/n")
        assert b"".join(map(splitter.feed, parts)) + splitter.end() == wanted
        assert state(splitter) == expected(data[: max(read(data).boundaries)])


def test_the_usual_chunk_is_passed_on_as_the_same_object() -> None:
    splitter = EventSplitter(1024)
    splitter.feed(b"data: a\n\n")
    for chunk in (b"data: b\n\n", b"id: 5\ndata: c\n\nid: 6\ndata: d\n\n"):
        assert splitter.feed(chunk) is chunk
    assert state(splitter) == (4, "6", True, None)


def test_a_partial_event_waits() -> None:
    splitter = EventSplitter(1024)
    assert splitter.feed(b"data: a\n\nda") == b"data: a\n\n"
    assert splitter.held == 2
    assert splitter.between_events
    assert splitter.feed(b"ta: b\n") == b""
    assert splitter.feed(b"\n") == b"data: b\n\n"
    assert splitter.feed(b"data: end") == b""
    assert splitter.end() == b"data: end"
    assert splitter.events == 2
    assert not splitter.between_events


def test_an_event_that_ends_in_cr_goes_out_at_once_and_its_lf_follows() -> None:
    splitter = EventSplitter(1024)
    assert splitter.feed(b"data: a\r\n\r") == b"data: a\r\n\r"
    assert splitter.feed(b"\n") == b"\n"
    assert splitter.feed(b"data: b\n\n") == b"data: b\n\n"
    assert splitter.events == 2


def test_comment_lines_are_no_reason_to_wait() -> None:
    splitter = EventSplitter(8)
    for _ in range(100):
        assert splitter.feed(b":\n") == b":\n"
    assert splitter.feed(b": long comment\ndata: a\n\n") == b": long comment\ndata: a\n\n"
    assert splitter.events == 1


def test_ids_are_those_of_eventsource() -> None:
    counter = EventCounter()
    seen = []
    for block in (
        b"data: a\n\n", b"id: 1\ndata: a\n\n", b"data: a\n\n", b"id: 2\n\n", b"id: 3\0\ndata: a\n\n",
        b"id\ndata: a\n\n", b"id: " + b"x" * MAX_ID + b"\ndata: a\n\n",
        b"id: " + b"x" * (MAX_ID + 1) + b"\ndata: a\n\n",
        b"id: \xc3\xa9\ndata\n\n",
    ):  # fmt: skip
        counter.feed(block)
        seen.append((counter.events, counter.last_event_id, counter.recoverable))
    long = "x" * MAX_ID
    assert seen == [
        (1, None, False), (2, "1", True), (3, "1", False), (3, "2", False), (4, "2", False), (5, None, False),
        (6, long, True), (7, None, False), (8, "é", True),
    ]  # fmt: skip


def test_an_id_alone_after_an_event_with_its_own_moves_the_place_on() -> None:
    counter = EventCounter()
    counter.feed(b"id: 1\ndata: a\n\nid: 2\n\n")
    assert (counter.last_event_id, counter.recoverable) == ("2", True)
    counter.feed(b"id:\n\n")
    assert (counter.last_event_id, counter.recoverable) == (None, False)


def test_a_second_byte_order_mark_belongs_to_a_field() -> None:
    splitter = EventSplitter(1024)
    assert splitter.feed(BOM + BOM + b"data: a\n\ndata: b\n\n") == BOM + b"data: a\n\ndata: b\n\n"
    assert splitter.events == 1


def test_a_stream_that_is_only_the_beginning_of_a_mark_comes_out_as_it_came() -> None:
    splitter = EventSplitter(1024)
    assert splitter.feed(BOM[:2]) == b""
    assert splitter.end() == BOM[:2]


def test_an_oversize_event_tracks_its_id_and_its_end() -> None:
    splitter = EventSplitter(16)
    assert splitter.feed(b"id: 1\ndata: a\n\n") == b"id: 1\ndata: a\n\n"
    assert splitter.recoverable
    assert splitter.feed(b"id: 2\ndata: ") == b""
    assert splitter.feed(b"x" * 100) == b"id: 2\ndata: " + b"x" * 100
    assert splitter.mid_event
    assert splitter.feed(b"y\n") == b"y\n"
    assert splitter.feed(b"\nid: 3\ndata: b\n\nda") == b"\nid: 3\ndata: b\n\n"
    assert splitter.between_events
    assert state(splitter) == (3, "3", False, None)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"/messages/?session_id=1", b"/t/demo/messages/?session_id=1"),
        (b"/", b"/t/demo/"),
        (b"/t/demo/messages", b"/t/demo/messages"),
        (b"/t/demo?x", b"/t/demo?x"),
        (b"/t/demolition", b"/t/demo/t/demolition"),
        (b"messages?x", b"messages?x"),
        (b"//other/messages", b"//other/messages"),
        (b"https://other/messages", b"https://other/messages"),
        (b"", b""),
    ],
)
def test_rewrite_endpoint(data: bytes, wanted: bytes) -> None:
    assert rewrite_endpoint(data, "/t/demo") == wanted


@pytest.mark.parametrize(
    ("data", "wanted", "by_host"),
    [
        # by our own address, as a service that minds X-Forwarded-Host says it
        (b"https://pub.example/m?s=1", b"https://pub.example/t/demo/m?s=1", None),
        (b"https://PUB.example:443/t/demo/m", b"https://PUB.example:443/t/demo/m", None),
        (b"//pub.example/m", b"//pub.example/t/demo/m", None),
        # on loopback, as a service is told by hand where it is
        (b"http://localhost:8080/message?sessionId=1", b"/t/demo/message?sessionId=1", b"/message?sessionId=1"),
        (b"http://127.0.0.1:8080/m", b"/t/demo/m", b"/m"),
        (b"HTTP://[::1]:8080", b"/t/demo/", b"/"),
        (b"http://localhost?s=1", b"/t/demo/?s=1", b"/?s=1"),
        (b"http://localhost:8080//x/m", b"http://localhost:8080//x/m", None),
        (b"http://localhost.example/m", b"http://localhost.example/m", None),
        (b"http://u@localhost/m", b"http://u@localhost/m", None),
        (b"/m\xe9", b"/t/demo/m\xe9", b"/m\xe9"),
        (b"/m", b"/t/demo/m", b"/m"),
    ],
)
def test_rewrite_endpoint_of_a_whole_address(data: bytes, wanted: bytes, by_host: bytes | None) -> None:
    assert rewrite_endpoint(data, "/t/demo", "pub.example") == wanted
    if by_host is None:
        by_host = data
    assert rewrite_endpoint(data, "", "pub.example") == by_host


def test_rewrite_endpoint_for_a_visitor_on_loopback() -> None:
    assert (
        rewrite_endpoint(b"http://127.0.0.1:8440/m", "/t/demo", "127.0.0.1:8440") == b"http://127.0.0.1:8440/t/demo/m"
    )
    assert rewrite_endpoint(b"http://127.0.0.1:9000/m", "/t/demo", "127.0.0.1:8440") == b"/t/demo/m"


@pytest.mark.parametrize("end", [b"\r", b"\r\r"])
def test_a_line_end_is_not_passed_on_before_what_is_held(end: bytes) -> None:
    splitter = EventSplitter(1000)
    first = b"data: x\n\n" + end
    assert splitter.feed(first + b"data") == first
    assert splitter.feed(b"\n\n") == b"data\n\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_whether_an_event_is_under_way_is_known_at_each_byte(ends: str) -> None:
    """A reader that comes now begins with the next whole one."""
    blocks = ["data: a", "event: x\nid: 1\ndata: b", "id: 2", ": comment", "data", "retry: 5\ndata: c\ndata: d"]
    text = "".join(block.replace("\n", ends) + 2 * ends for block in blocks).encode()
    counter, whole = EventCounter(), 0
    for at in range(len(text)):
        counter.feed(text[at : at + 1])
        before = text[: at + 1].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        last = before.rpartition(b"\n\n")[2].lstrip(b"\n")
        # The first LF of an empty line ends nothing, and a comment alone is no field.
        began = last and not (last.startswith(b":") and last.endswith(b"\n"))
        assert counter.between_blocks == (not began), text[: at + 1]
        whole += counter.between_blocks
    assert whole >= len(blocks)
