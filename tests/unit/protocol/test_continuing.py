"""What of a second answer is new: at every cut, with every line end."""

from __future__ import annotations

import pytest

from tunneld.protocol.continuing import Continuation
from tunneld.protocol.sse import EventSplitter


def event(number: int | str, *, end: bytes = b"\n") -> bytes:
    return end.join([b"id: %b" % str(number).encode(), b"data: x", b"", b""])


def fed(data: bytes, size: int, *, sent: int = 5, max_event: int = 1000) -> tuple[bytes, Continuation]:
    """Feed in pieces, after ids 1 to `sent`: (what is passed on, the reader)."""
    before = EventSplitter(1000)
    for number in range(1, sent + 1):
        before.feed(event(number))
    reader = Continuation(str(sent).encode(), before.sent_so_far(), max_event)
    out = b""
    while data and not reader.settled:
        out += reader.feed(data[:size])
        data = data[size:]
    return (b"" if reader.began_anew else out + reader.rest() + data), reader


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_was_sent_is_left_out_and_the_rest_passed_on(end: bytes, size: int) -> None:
    repeated, new = event(5, end=end), event(6, end=end) + event(7, end=end)
    out, reader = fed(repeated + repeated + new, size)
    assert out == new
    assert (reader.dropped, reader.settled, reader.began_anew) == (2, True, False)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_service_that_began_anew_is_known_by_an_id_sent_before(size: int) -> None:
    out, reader = fed(event(1) + event(2), size)
    assert (out, reader.began_anew) == (b"", True)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_without_an_id_are_new_and_decide_nothing(size: int) -> None:
    welcome = b"\xef\xbb\xbf: hello\n\nevent: welcome\ndata: x\n\nid\ndata: y\n\n"
    out, reader = fed(welcome + event(5), size)
    assert out == welcome[3:]
    assert not reader.settled
    out, reader = fed(welcome + event(2), size)
    assert reader.began_anew


def test_ids_sent_long_ago_are_forgotten() -> None:
    assert fed(event(1), 100, sent=64)[1].began_anew
    out, reader = fed(event(1), 100, sent=65)
    assert (out, reader.began_anew, reader.settled) == (event(1), False, True)


def test_an_oversize_event_is_judged_by_what_came_of_it() -> None:
    large = b"data: " + b"x" * 200
    out, reader = fed(b"id: 6\n" + large + b"\n\n", 50, max_event=100)
    assert (out, reader.settled, reader.began_anew) == (b"id: 6\n" + large + b"\n\n", True, False)
    assert fed(b"id: 2\n" + large + b"\n\n", 50, max_event=100)[1].began_anew
    assert not fed(large + b"\nid: 2\n\n", 50, max_event=100)[1].began_anew


def test_what_was_held_is_dropped_when_another_answer_goes_on() -> None:
    splitter = EventSplitter(1000)
    assert splitter.feed(event(1) + b"id: 2\nda") == event(1)
    splitter.begin_anew()
    assert splitter.held == 0
    assert splitter.feed(b"\xef\xbb\xbf" + event(2)) == event(2)
    assert (splitter.events, splitter.last_event_id, splitter.recoverable) == (2, "2", True)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_comments_before_an_event_that_is_left_out_pass_however_they_come(size: int) -> None:
    assert fed(b": quiet\n\n: beat\n" + event(5) + event(6), size)[0] == b": quiet\n\n: beat\n" + event(6)
