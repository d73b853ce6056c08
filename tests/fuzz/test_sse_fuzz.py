"""Any bytes, cut anywhere: nothing is lost, nothing escapes, nothing grows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.eventsource import BOM, read, usable
from tunneld.protocol.sse import EventCounter, EventSplitter

noise = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(list(b"\r\n:dataid retry0\0\xef\xbb\xbf")), max_size=200).map(bytes),
)


@settings(deadline=None)
@given(data=noise, size=st.integers(1, 50), max_event=st.integers(0, 64), prefix=st.sampled_from(["", "/t/n"]))
def test_any_bytes_come_out_as_they_went_in(data: bytes, size: int, max_event: int, prefix: str) -> None:
    outputs = []
    for step in (len(data) or 1, size, 1):
        splitter = EventSplitter(max_event, prefix=prefix)
        counter = EventCounter()
        out = b""
        for at in range(0, len(data), step):
            out += splitter.feed(data[at : at + step])
            counter.feed(data[at : at + step])
            assert splitter.held <= max(max_event, 2)
        events, last_id = splitter.events, splitter.last_event_id
        assert events <= counter.events
        out += splitter.end()
        assert len(data) < 3 or out == data.removeprefix(BOM)
        reading = read(data)
        assert (counter.events, counter.last_event_id) == (len(reading.events), usable(reading.last_id))
        outputs.append((out, events, last_id, splitter.recoverable, splitter.retry))
    assert outputs[0] == outputs[1] == outputs[2]
