"""Events of streams, of which there are thousands a second: encoded together, once, and only for readers."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime
from time import monotonic, sleep, time
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.unit.control.test_events import Reader
from tunneld.agent import stream_events, telling
from tunneld.agent.record import Record
from tunneld.agent.telling import Teller
from tunneld.control import events
from tunneld.control.event_bounds import EventBounds, events_usage
from tunneld.control.event_shapes import TypedEvent
from tunneld.control.events import Subscribers
from tunneld.protocol.messages import Open


class Encoded:
    """How many texts of streams were encoded, for how many events, in how many goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts = self.events = self.goes = 0
        self._encoder, take = stream_events._encoder, Subscribers.take

        def taken(subscribers: Subscribers, first: int, last: int, encoded: bytes, events: int) -> None:
            self.goes += 1
            self.events += events
            take(subscribers, first, last, encoded, events)

        monkeypatch.setattr(stream_events, "_encoder", self)
        monkeypatch.setattr(Subscribers, "take", taken)

    def encode(self, said: object) -> bytes:
        self.texts += 1
        return self._encoder.encode(said)

    def encode_lines(self, said: Sequence[object]) -> bytes:
        self.texts += len(said)
        return self._encoder.encode_lines(said)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    return Encoded(monkeypatch)


class Telling(Teller):
    """Knows what is under way by what it is told, as a proxy does."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, Record] = {}
        self.follow(self.live.values())

    def opened(self, record: Record) -> None:
        self.live[record.request_id] = record
        super().opened(record)

    def closed(self, record: Record, now: float) -> None:
        del self.live[record.request_id]
        super().closed(record, now)


@pytest.fixture
def teller() -> Teller:
    return Telling()


def request(teller: Teller, number: int, path: str = "/small") -> None:
    record = Record("app", Open(f"r{number}", "GET", path, [], "127.0.0.1:40000"))
    teller.opened(record)
    record.bytes_out = 100
    record.reason = "done"
    teller.closed(record, monotonic())


class Held(Record):
    """A record of which can be seen whether somebody holds it."""

    __slots__ = ("__weakref__",)


class Taken:
    """A listener to streams that asks for nothing."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.fetch: Callable[[], None] | None = None

    def waiting(self, fetch: Callable[[], None]) -> None:
        assert self.fetch is None, "told twice that something waits"
        self.fetch = fetch

    def take(self, first: int, last: int, encoded: bytes, events: int) -> None:
        blocks = encoded.decode("utf-8", "surrogatepass").removesuffix("\n\n").split("\n\n")
        shown = [json.loads(block.partition("\ndata: ")[2]) for block in blocks]
        assert ([one["id"] for one in shown], len(shown)) == (list(range(first, last + 1)), events)
        self.events += shown
        self.fetch = None


def bodies(reader: Reader) -> list[bytes]:
    """Of events."""
    return [message["body"] for message in reader.messages if message.get("body", b"").startswith(b"id: ")]


def told(reader: Reader) -> list[dict[str, Any]]:
    blocks = [block.split("\n") for block in reader.text.split("\n\n") if block.startswith("id:")]
    shown = [json.loads(data.removeprefix("data: ")) for _, _, data in blocks]
    assert [(first, second) for first, second, _ in blocks] == [
        (f"id: {one['id']}", f"event: {one['type']}") for one in shown
    ]
    return shown


async def test_nothing_is_made_or_encoded_where_nobody_listens(teller: Teller, encoded: Encoded) -> None:
    subscribers = Subscribers(teller.subscribe)
    before = teller._last
    for number in range(100):
        request(teller, number)
    teller.tell("heartbeat", {"tunnel": "app", "ok": True, "rtt_ms": 1.0})
    assert teller._last == before
    assert (encoded.texts, len(subscribers)) == (0, 0)


async def test_many_readers_cost_one_encoding_and_few_writes(teller: Teller, encoded: Encoded) -> None:
    subscribers, readers = Subscribers(teller.subscribe), [Reader() for _ in range(5)]
    tasks = [reader.start(subscribers) for reader in readers]
    for reader in readers:
        await reader.until(": subscribed")
    for number in range(50):
        request(teller, number)
    assert encoded.texts == 0  # not before a reader is written to
    for reader in readers:
        await reader.until('"r49"')
        await reader.until('"bytes_out":100')
    assert (encoded.texts, encoded.events, encoded.goes) == (50, 100, 4)
    assert [len(reader.messages) for reader in readers] == [6] * 5  # the head, the first comment, blocks of 32
    for reader in readers:
        assert all(one is its for one, its in zip(bodies(reader), bodies(readers[0]), strict=True)), "copied"
    subscribers.close()
    await asyncio.gather(*tasks)
    assert readers[0].text == readers[4].text
    closed = told(readers[0])[1]
    assert closed | {"id": 0, "time": "", "age_s": 0} == {
        "id": 0, "type": "stream_closed", "time": "", "tunnel": "app", "request_id": "r0", "kind": "http",
        "method": "GET", "path": "/small", "client": "127.0.0.1:40000", "reason": "done", "age_s": 0, "bytes_in": 0,
        "bytes_out": 100,
    }  # fmt: skip


async def test_order_ids_and_shapes_are_kept_among_other_events(teller: Teller) -> None:
    subscribers, reader = Subscribers(teller.subscribe), Reader()
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    for number in range(20):
        request(teller, number)
        teller.tell("heartbeat", {"tunnel": "app", "ok": True, "rtt_ms": float(number)})
    request(teller, 20, "/ü\n\udcff")  # half a surrogate, and a line's end that is escaped
    subscribers.close()
    await task
    shown = told(reader)
    assert [one["type"] for one in shown] == ["stream_opened", "stream_closed", "heartbeat"] * 20 + [
        "stream_opened", "stream_closed",
    ]  # fmt: skip
    assert [one["id"] for one in shown] == list(range(shown[0]["id"], shown[0]["id"] + 62))
    assert shown[-1]["path"] == "/ü\n\udcff"
    for one in shown[:-2]:
        TypeAdapter(TypedEvent).validate_python(one, strict=True)
    assert [one["time"] for one in shown] == sorted(one["time"] for one in shown)


@pytest.mark.parametrize("had", [0, 1, 6, 7, 8])
async def test_a_reader_that_comes_back_goes_on_behind_its_last_of_what_came_together(teller: Teller, had: int) -> None:
    subscribers, first, second = Subscribers(teller.subscribe), Reader(), Reader()
    task = first.start(subscribers)
    await first.until(": subscribed")
    for number in range(4):
        request(teller, number)
    await first.until('"r3","kind":"http","method":"GET","path":"/small","client":"127.0.0.1:40000","reason"')
    ids = [one["id"] for one in told(first)]
    first.left.set()
    await task
    request(teller, 4)  # while nobody reads
    last = ids[had - 1] if had else ids[0] - 1
    back = second.start(subscribers, last_id=str(last))
    await second.until('"r4"')
    request(teller, 5)
    await second.until('"r5","kind":"http","method":"GET","path":"/small","client":"127.0.0.1:40000","reason"')
    shown = told(second)
    assert [one["id"] for one in shown] == list(range(last + 1, ids[-1] + 5))
    assert "gap" not in second.text
    subscribers.close()
    await back


async def test_what_was_before_a_reader_came_is_not_told_to_it(teller: Teller) -> None:
    subscribers, first, second = Subscribers(teller.subscribe), Reader(), Reader()
    first.gate.clear()  # so that nothing is written yet
    tasks = [first.start(subscribers)]
    while not len(subscribers):
        await asyncio.sleep(0)
    request(teller, 1)
    tasks.append(second.start(subscribers))
    await second.until(": subscribed")
    request(teller, 2)
    first.gate.set()
    for reader in (first, second):
        await reader.until('"r2"')
    assert '"r1"' in first.text
    assert '"r1"' not in second.text
    subscribers.close()
    await asyncio.gather(*tasks)


async def test_a_reader_is_written_to_before_its_time_where_much_waits_or_it_is_over(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "GATHER", 60.0)
    monkeypatch.setattr(telling, "PIECE", 2000)
    subscribers, reader = Subscribers(teller.subscribe, EventBounds(queue=40_000)), Reader()
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    request(teller, 0)
    await reader.until('"r0"')  # after a quiet moment at once
    request(teller, 1)
    await asyncio.sleep(0.05)
    assert '"r1"' not in reader.text
    async with asyncio.timeout(5):
        for number in range(2, 60):  # over 5,000 bytes, and over what may wait to be made
            request(teller, number)
        await reader.until('"r45"')
        request(teller, 60)
        subscribers.close()
        await task
    assert [one["request_id"] for one in told(reader)[::2]] == [f"r{number}" for number in range(61)]


async def test_a_stream_that_goes_on_is_told_to_have_begun_and_is_not_held_longer(teller: Teller) -> None:
    streams = Taken()
    teller.subscribe([].append, streams)
    request(teller, 1)
    live = Record("app", Open("live", "GET", "/sse", [], "127.0.0.1:40000"))
    teller.opened(live)
    request(teller, 2)
    teller.flush()
    assert [(one["type"], one["request_id"]) for one in streams.events] == [
        ("stream_opened", "r1"), ("stream_closed", "r1"), ("stream_opened", "live"), ("stream_opened", "r2"),
        ("stream_closed", "r2"),
    ]  # fmt: skip
    over = Held("app", Open("over", "GET", "/small", [], "127.0.0.1:40000"))
    gone = weakref.ref(over)
    teller.opened(over)
    over.reason = "done"
    teller.closed(over, monotonic())
    del over
    assert gone() is None, "what is over is held until somebody is written to"
    live.kind, live.reason = "sse", "visitor"
    teller.closed(live, monotonic())
    teller.flush()
    assert [(one["type"], one["request_id"], one["kind"]) for one in streams.events[5:]] == [
        ("stream_opened", "over", "http"), ("stream_closed", "over", "http"), ("stream_closed", "live", "sse"),
    ]  # fmt: skip


def test_long_paths_of_streams_that_go_on_are_not_made_into_one_piece(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "PIECE", 64 * 1024)
    streams = Taken()
    teller.subscribe([].append, streams)
    pieces: list[int] = []
    take = streams.take

    def taken(first: int, last: int, encoded: bytes, events: int) -> None:
        pieces.append(len(encoded))
        take(first, last, encoded, events)

    monkeypatch.setattr(streams, "take", taken)
    for number in range(100):
        teller.opened(Record("app", Open(f"r{number}", "GET", "/" + "x" * 16_000, [], "127.0.0.1:40000")))
    teller.flush()
    assert len(streams.events) == 100
    assert max(pieces) < 2 * 64 * 1024


async def test_events_come_in_the_order_of_what_happened(teller: Teller) -> None:
    streams = Taken()
    teller.subscribe([].append, streams)
    records = [Record("app", Open(f"r{number}", "GET", "/", [], "127.0.0.1:40000")) for number in range(6)]
    happened: list[tuple[str, str]] = []

    def happen(number: int, *, over: bool) -> None:
        record = records[number]
        if over:
            record.reason = "done"
            teller.closed(record, monotonic())
        else:
            record.started = monotonic()
            teller.opened(record)
        happened.append(("stream_closed" if over else "stream_opened", record.request_id))
        sleep(0.002)

    for number, over in ((0, False), (1, False), (1, True), (2, False), (0, True)):
        happen(number, over=over)
    teller.flush()
    for number, over in ((3, False), (4, False), (2, True), (4, True), (5, False)):
        happen(number, over=over)
    teller.tell("heartbeat", {"tunnel": "app"})
    assert [(one["type"], one["request_id"]) for one in streams.events] == happened
    assert [one["id"] for one in streams.events] == list(range(streams.events[0]["id"], streams.events[0]["id"] + 10))
    times = [one["time"] for one in streams.events]
    assert times == sorted(times)


async def test_a_reader_that_does_not_read_is_bounded_and_told_what_it_missed(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "PIECE", 2000)
    bounds = EventBounds(queue=20_000)
    subscribers, slow, quick = Subscribers(teller.subscribe, bounds), Reader(), Reader()
    tasks = [slow.start(subscribers)]
    await slow.until(": subscribed")
    await slow.turn_deaf(subscribers, lambda: request(teller, 0))
    (one,) = subscribers._open
    held: list[int] = []
    sent = 1
    while not one.ended:
        request(teller, sent)
        sent += 1
        held.append(one.held)
        (figure,) = [found for found in events_usage([subscribers], bounds) if found.limit == "event_queue"]
        assert (figure.used, figure.most) == (one.held, 20_000)
        assert len(teller._over) < 10
        assert len(teller._pieces) <= telling.PIECES
    assert max(held) <= 20_000
    tasks.append(quick.start(subscribers))  # another is not disturbed
    await quick.until(": subscribed")
    request(teller, 9999)
    await quick.until('"r9999"')
    slow.gate.set()
    await tasks[0]
    *first, lagged = told(slow)
    assert [one["request_id"] for one in first] == ["r0", "r0"]  # it was being written
    assert (lagged["type"], lagged["dropped"]) == ("lagged", one.dropped)
    # It is told of those that were encoded; the few that came behind wait for the next go.
    assert 0 <= 2 * (sent - 1) - lagged["dropped"] < 10 * (telling.PIECES + 1)
    subscribers.close()
    await asyncio.gather(*tasks)


async def test_what_is_kept_is_bounded(teller: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PIECE", 2000)
    subscribers, first, second = Subscribers(teller.subscribe, EventBounds(history=30_000)), Reader(), Reader()
    task = first.start(subscribers)
    await first.until(": subscribed")
    first.left.set()
    await task
    for number in range(1000):
        request(teller, number, "/" + "x" * (number % 100))
        assert subscribers.kept == sum(len(encoded) for *_, encoded in subscribers._kept) <= 30_000
    back = second.start(subscribers, last_id="1")
    await second.until('"r999"')
    subscribers.close()
    await back
    gap, *rest = told(second)
    assert (gap["type"], gap["since"], gap["next"]) == ("gap", 1, rest[0]["id"])
    assert [one["id"] for one in rest] == list(range(rest[0]["id"], rest[-1]["id"] + 1))


def test_who_takes_whole_events_gets_those_of_streams_so(teller: Teller) -> None:
    whole: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    streams = Taken()
    leave, part = teller.subscribe(whole.append), teller.subscribe(others.append, streams)
    request(teller, 1)
    teller.tell("drain", {"streams": 0})
    assert [one["type"] for one in whole] == ["stream_opened", "stream_closed", "drain"]
    assert [one["type"] for one in others] == ["drain"]
    assert [(one["type"], one["id"]) for one in streams.events] == [(one["type"], one["id"]) for one in whole[:2]]
    assert list(whole[0]) == ["id", "type", "time", "tunnel", "request_id", "kind", "method", "path", "client"]
    for gone in (leave, part, leave, part):
        gone()
    request(teller, 2)
    assert (len(whole), len(others), len(streams.events)) == (3, 1, 2)


def test_what_an_event_says_is_what_was_so_when_it_happened(teller: Teller) -> None:
    """They are made later, when a stream may be another kind and further on."""
    streams = Taken()
    teller.subscribe([].append, streams)
    record = Record("app", Open("r1", "GET", "/sse", [], "127.0.0.1:40000"))
    began = time()
    teller.opened(record)
    record.kind = "sse"
    record.bytes_out, record.reason = 7, "visitor"
    teller.closed(record, record.started + 1.5)
    assert not streams.events
    assert streams.fetch is not None
    streams.fetch()
    opened, closed = streams.events
    assert (opened["kind"], closed["kind"]) == ("http", "sse")
    assert (closed["reason"], closed["age_s"], closed["bytes_out"]) == ("visitor", 1.5, 7)
    at = [datetime.fromisoformat(one["time"]).timestamp() for one in (opened, closed)]
    assert abs(at[0] - began) < 0.5
    assert at[1] - at[0] == pytest.approx(1.5, abs=0.002)


def test_two_that_listen_are_told_the_same_once(teller: Teller) -> None:
    """Of events that waited when the second came it hears nothing, and who left hears no more."""
    first, second = Taken(), Taken()
    leave = teller.subscribe([].append, first)
    request(teller, 1)
    teller.subscribe([].append, second)
    assert (len(first.events), len(second.events)) == (2, 0)
    request(teller, 2)
    assert second.fetch is not None
    second.fetch()
    assert first.events[2:] == second.events
    assert len({one["id"] for one in first.events}) == 4
    leave()
    request(teller, 3)
    teller.flush()
    assert (len(first.events), len(second.events)) == (4, 4)
