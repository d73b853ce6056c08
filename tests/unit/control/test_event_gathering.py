"""How long events of streams gather for their readers, and that what gathered is made a piece a turn of the loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from time import monotonic

import pytest

from tests.unit.control.test_events import Reader
from tests.unit.control.test_stream_events import Held, Taken, Telling, request, told
from tunneld.agent import telling
from tunneld.agent.record import Record
from tunneld.agent.telling import PIECES, Teller
from tunneld.control import events
from tunneld.control.event_bounds import EventBounds
from tunneld.control.events import Subscribers
from tunneld.protocol.messages import Open


@pytest.fixture
def teller() -> Teller:
    return Telling()


@pytest.fixture
async def subscribers(teller: Teller) -> Subscribers:
    return Subscribers(teller.subscribe)


async def load(teller: Teller, count: int) -> None:
    """A request a millisecond or two."""
    for number in range(count):
        request(teller, number)
        await asyncio.sleep(0.001)


def numbers(reader: Reader) -> list[str]:
    return [one["request_id"] for one in told(reader) if one["type"] == "stream_closed"]


@asynccontextmanager
async def reading(
    subscribers: Subscribers, monkeypatch: pytest.MonkeyPatch, *, longer: float, busy: float
) -> AsyncIterator[Reader]:
    """A reader that is written to each 20 ms, or each `longer` seconds from `busy` bytes a second on."""
    monkeypatch.setattr(events, "GATHER", 0.02)
    monkeypatch.setattr(events, "GATHER_BUSY", longer)
    monkeypatch.setattr(events, "BUSY", busy)
    reader = Reader()
    task = reader.start(subscribers)
    async with asyncio.timeout(20):
        await reader.until(": subscribed")
        yield reader
        subscribers.close()
        await task


async def test_where_much_happens_all_the_time_it_gathers_for_longer(
    teller: Teller, subscribers: Subscribers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(subscribers, monkeypatch, longer=60.0, busy=1000) as reader:
        await load(teller, 100)
        await asyncio.sleep(0.2)
        assert "r99" not in numbers(reader)
        # What is none of a stream is told of at once, behind what was before it.
        teller.tell("heartbeat", {"tunnel": "app"})
        await reader.until("event: heartbeat")
        assert told(reader)[-1]["type"] == "heartbeat"
        assert numbers(reader) == [f"r{number}" for number in range(100)]


async def test_where_little_does_it_does_not(
    teller: Teller, subscribers: Subscribers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(subscribers, monkeypatch, longer=60.0, busy=1e9) as reader:
        await load(teller, 100)
        await reader.until('"r99","kind":"http","method":"GET","path":"/small","client":"127.0.0.1:40000","reason"')
        assert numbers(reader) == [f"r{number}" for number in range(100)]


async def test_a_burst_after_a_quiet_time_is_no_busy_one(
    teller: Teller, subscribers: Subscribers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(subscribers, monkeypatch, longer=60.0, busy=100_000) as reader:
        await asyncio.sleep(0.5)
        for number in range(50):  # 30,000 bytes
            request(teller, number)
        await reader.until('"r49"')
        request(teller, 50)
        await reader.until('"r50"')


async def test_it_is_told_at_once_again_when_it_is_quiet_again(
    teller: Teller, subscribers: Subscribers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(subscribers, monkeypatch, longer=0.6, busy=1000) as reader:
        await load(teller, 100)
        await asyncio.sleep(1)
        for number in range(100, 103):
            before = len(reader.messages)
            request(teller, number)
            async with asyncio.timeout(0.5):
                await reader.until(f'"r{number}"')
            assert len(reader.messages) == before + 1
            await asyncio.sleep(1)


async def test_what_gathered_is_made_a_piece_a_turn_for_all_readers(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "PIECE", 2000)
    subscribers = Subscribers(teller.subscribe, EventBounds())
    turn, made, take = 0, [], Subscribers.take

    def taken(self: Subscribers, first: int, last: int, encoded: bytes, events: int) -> None:
        made.append((turn, events))
        take(self, first, last, encoded, events)

    monkeypatch.setattr(Subscribers, "take", taken)
    readers = [Reader(), Reader()]
    tasks = [reader.start(subscribers) for reader in readers]
    for reader in readers:
        await reader.until(": subscribed")
    for number in range(3 * PIECES - 1):  # a piece holds three of them
        request(teller, number)
    assert made == []
    last = f"r{3 * PIECES - 2}"
    async with asyncio.timeout(5):
        while any(last not in numbers(reader) for reader in readers):
            turn += 1
            await asyncio.sleep(0)
    assert len(made) >= PIECES - 1
    assert max(events for _, events in made) <= 8
    # Two readers may each have one made in a turn.
    assert all(sum(at == turn for at, _ in made) <= len(readers) for turn in {at for at, _ in made})
    assert numbers(readers[0]) == numbers(readers[1]) == [f"r{number}" for number in range(3 * PIECES - 1)]
    subscribers.close()
    await asyncio.gather(*tasks)


def test_so_many_pieces_wait_at_most_and_none_is_lost_or_told_out_of_turn(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "PIECE", 2000)
    streams = Taken()
    teller.subscribe([].append, streams)
    for number in range(200):
        request(teller, number)
        waiting = 2 * (number + 1) - len(streams.events)
        assert waiting <= 8 * (PIECES + 1)
    assert streams.events, "nothing was made though more waited than may"
    assert teller.fetch()
    while teller.fetch():
        pass
    assert not teller.fetch()
    assert [one["request_id"] for one in streams.events] == [f"r{number // 2}" for number in range(400)]
    assert len({one["id"] for one in streams.events}) == 400
    times = [one["time"] for one in streams.events]
    assert times == sorted(times)


def test_a_piece_that_waits_holds_no_stream(teller: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PIECE", 2000)
    streams = Taken()
    teller.subscribe([].append, streams)
    record = Held("app", Open("long", "GET", "/sse", [], "127.0.0.1:40000"))
    gone = weakref.ref(record)
    teller.opened(record)
    for number in range(4):
        request(teller, number)
    assert teller._pieces
    record.kind, record.reason = "sse", "visitor"
    teller.closed(record, monotonic())
    del record
    assert gone() is None, "held until somebody is written to"
    teller.flush()
    told_of = [(one["type"], one["kind"]) for one in streams.events if one["request_id"] == "long"]
    assert told_of == [("stream_opened", "http"), ("stream_closed", "sse")]
    assert streams.events[0]["request_id"] == streams.events[-1]["request_id"] == "long"


def test_what_nobody_wants_any_more_is_forgotten_with_its_pieces(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "PIECE", 2000)
    streams = Taken()
    leave = teller.subscribe([].append, streams)
    for number in range(3 * PIECES):
        request(teller, number)
    leave()
    assert not teller.fetch()
    assert streams.events == []


def test_a_crowd_that_begins_and_goes_on_is_made_in_pieces(teller: Teller) -> None:
    streams, sizes = Taken(), []
    teller.subscribe([].append, streams)
    for number in range(5000):
        before = len(streams.events)
        teller.opened(Record("app", Open(f"r{number}", "GET", "/sse", [], "127.0.0.1:40000")))
        sizes.append(len(streams.events) - before)
    assert 0 < max(sizes) < 1000
    more = True
    while more:
        before = len(streams.events)
        more = teller.fetch()
        assert len(streams.events) - before < 1000
    assert [one["request_id"] for one in streams.events] == [f"r{number}" for number in range(5000)]


@pytest.mark.parametrize("seed", range(8))
def test_each_is_told_to_begin_once_and_to_end_once_in_order(
    teller: Teller, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever begins, goes on and ends between pieces that are made at any time, of two tunnels."""
    random = Random(seed)
    monkeypatch.setattr(telling, "PIECE", 3000)
    other: dict[str, Record] = {}
    teller.follow(other.values())
    streams, live, closed, number = Taken(), [], [], 0
    before = [Record("app", Open(f"before{one}", "GET", "/", [], "")) for one in range(3)]
    for record in before:
        teller.opened(record)
    teller.subscribe([].append, streams)
    for _ in range(1500):
        what = random.random()
        if what < 0.45:
            record = Record(
                random.choice(["app", "other"]), Open(f"r{number}", "GET", "/" * random.choice([1, 900]), [], "")
            )
            number += 1
            if record.tunnel == "other":
                other[record.request_id] = record
                Teller.opened(teller, record)
            else:
                teller.opened(record)
            live.append(record)
        elif what < 0.85 and live:
            record = live.pop(random.randrange(len(live)))
            record.kind, record.reason = random.choice([("http", "done"), ("sse", "visitor")])
            closed.append(record.request_id)
            if record.tunnel == "other":
                del other[record.request_id]
                Teller.closed(teller, record, monotonic())
            else:
                teller.closed(record, monotonic())
        elif what < 0.95:
            teller.fetch()
        elif what < 0.97:
            teller.flush()
        elif before:
            teller.closed(before.pop(), monotonic())
    teller.flush()
    told = [one for one in streams.events if not one["request_id"].startswith("before")]
    assert sorted(one["request_id"] for one in told if one["type"] == "stream_opened") == sorted(
        f"r{one}" for one in range(number)
    )
    assert [one["request_id"] for one in told if one["type"] == "stream_closed"] == closed
    begun = {one["request_id"]: one["id"] for one in told if one["type"] == "stream_opened"}
    assert all(begun[one["request_id"]] < one["id"] for one in told if one["type"] == "stream_closed")
    assert {one["type"] for one in streams.events if one["request_id"].startswith("before")} == {"stream_closed"}
    ids, times = ([one[key] for one in streams.events] for key in ("id", "time"))
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert times == sorted(times)


def test_a_tunnel_that_goes_loses_no_begin_of_a_stream_that_ends_after_it(teller: Teller) -> None:
    streams, of_tunnel = Taken(), {}
    leave = teller.follow(of_tunnel.values())
    teller.subscribe([].append, streams)
    record = Record("gone", Open("r1", "GET", "/sse", [], ""))
    of_tunnel["r1"] = record
    Teller.opened(teller, record)
    leave()
    leave()
    teller.tell("tunnel", {"tunnel": "gone", "state": "closed"})
    del of_tunnel["r1"]
    Teller.closed(teller, record, monotonic())
    teller.flush()
    assert [one["type"] for one in streams.events] == ["stream_opened", "stream_closed"]
