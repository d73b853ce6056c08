"""Any second answer, cut anywhere: the same is left out, the same decided."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.eventsource import BOM
from tunneld.protocol.continuing import Continuation
from tunneld.protocol.sse import EventSplitter

lines = st.sampled_from([b"id: 1", b"id: 2", b"id: 3", b"id: 4", b"id", b"id: \0", b"data: x", b"data", b": c", b""])
ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
answers = st.lists(st.tuples(lines, ends).map(b"".join), max_size=30).map(b"".join)


@settings(deadline=None)
@given(data=st.one_of(answers, answers.map(lambda data: BOM + data), st.binary(max_size=60)), size=st.integers(1, 20))
@example(data=b": c\nid: 3\n\n", size=1)  # a comment before what is left out
@example(data=b"id: 4\nid\n\nid: 4\n\n", size=1)  # an id that only this answer sent
def test_cuts_change_nothing(data: bytes, size: int) -> None:
    outcomes = []
    for step in (len(data) or 1, size, 1):
        before = EventSplitter(1000)
        before.feed(b"id: 1\ndata\n\nid: 2\ndata\n\nid: 3\ndata\n\n")
        reader = Continuation(b"3", before.sent_so_far(), 1000)
        before.begin_anew()
        out, left = b"", data
        while left and not reader.settled:
            out += before.feed(reader.feed(left[:step]))
            left = left[step:]
        if not reader.began_anew:
            out += before.feed(reader.rest()) + before.feed(left) + before.end()
            outcomes.append((out, reader.dropped, before.events, before.last_event_id))
        else:
            outcomes.append((b"", reader.dropped, -1, None))
    assert outcomes[0] == outcomes[1] == outcomes[2]
