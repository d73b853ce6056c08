"""What may wait for a reader of events: a burst for one that reads, the queue for one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from time import monotonic, sleep

import pytest

from tests.unit.control.test_events import Reader
from tests.unit.control.test_stream_events import Telling, told
from tunneld.agent import telling
from tunneld.agent.record import Record
from tunneld.agent.telling import Teller
from tunneld.control import event_queue, events
from tunneld.control.event_bounds import EventBounds, events_usage
from tunneld.control.event_queue import BURST, WRITE, Subscription
from tunneld.control.events import Subscribers
from tunneld.protocol.messages import Open

QUEUE = 256 * 1024  # the smallest that the configuration takes


@pytest.fixture
def teller() -> Teller:
    return Telling()


def opened(teller: Teller, most: int) -> list[Record]:
    made = [Record("app", Open(f"{number:032}", "GET", "/sse", [], "127.0.0.1:40000")) for number in range(most)]
    for record in made:
        teller.opened(record)
    teller.flush()
    return made


def lose(teller: Teller, records: list[Record]) -> None:
    for record in records:
        record.reason = "tunnel_lost"
        teller.closed(record, monotonic())


def full_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection, the first of which takes no more before the other reads."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(4096))
    return ours, peer


def ids(reader: Reader) -> list[str]:
    return [one["request_id"] for one in told(reader) if one["type"] == "stream_closed"]


async def test_streams_that_end_in_one_turn_cut_nobody_who_reads(teller: Teller) -> None:
    """10,000, three times a queue of 1 MiB: as when a tunnel is lost."""
    bounds = EventBounds()
    subscribers, readers = Subscribers(teller.subscribe, bounds), [Reader() for _ in range(3)]
    streams = opened(teller, 10_000)  # before anybody listens
    tasks = [reader.start(subscribers) for reader in readers]
    for reader in readers:
        await reader.until(": subscribed")
    lose(teller, streams)
    teller.flush()
    one, *others = subscribers._open
    assert 3 * bounds.queue < one.held < BURST * bounds.queue
    for other in others:
        assert all(piece is its for (piece, *_), (its, *_) in zip(one._queue, other._queue, strict=True)), "copied"
    (figure,) = [found for found in events_usage([subscribers], bounds) if found.limit == "event_queue"]
    assert figure.used == figure.most == bounds.queue
    subscribers.close()
    await asyncio.gather(*tasks)
    for reader in readers:
        assert ids(reader) == [record.request_id for record in streams]
        assert "lagged" not in reader.text
        assert max(len(message.get("body", b"")) for message in reader.messages) <= WRITE + telling.PIECE
    assert one.held == 0


async def test_a_burst_while_it_is_being_written_to_cuts_nobody_either(teller: Teller) -> None:
    """Several tunnels are lost within a few turns, and a reader has the first one's in its socket yet."""
    subscribers, reader = Subscribers(teller.subscribe, EventBounds(queue=QUEUE)), Reader()
    streams = opened(teller, 3000)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    for begin in range(0, 3000, 1000):
        reader.gate.clear()  # its write waits for the next turns
        lose(teller, streams[begin : begin + 1000])
        for _ in range(3):
            await asyncio.sleep(0)
        reader.gate.set()
        await asyncio.sleep(0)
    subscribers.close()
    await task
    assert ids(reader) == [record.request_id for record in streams]
    assert "lagged" not in reader.text


async def test_a_reader_that_takes_nothing_of_a_burst_is_cut_in_time(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CUT_AFTER", 0.01)
    subscribers, reader = Subscribers(teller.subscribe, EventBounds(queue=QUEUE)), Reader()
    streams = opened(teller, 3000)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    reader.gate.clear()
    lose(teller, streams)
    teller.flush()
    (one,) = subscribers._open
    assert not one.ended
    began = monotonic()
    async with asyncio.timeout(5):
        await task  # cut, then aborted, without another event
    assert monotonic() - began >= event_queue.PATIENCE
    assert reader.aborted == 1
    subscribers.close()
    *first, lagged = told(reader)
    assert (lagged["type"], lagged["dropped"]) == ("lagged", 3000 - len(first))
    assert [one["request_id"] for one in first] == [record.request_id for record in streams[: len(first)]]


async def test_more_than_a_burst_is_cut_at_once(teller: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PIECE", 64 * 1024)  # in pieces of much less than that
    subscribers, reader = Subscribers(teller.subscribe, EventBounds(queue=10_000)), Reader()
    streams = opened(teller, 3000)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    (one,) = subscribers._open
    held = 0
    for record in streams:
        lose(teller, [record])
        held = max(held, one.held)
    teller.flush()
    assert one.ended
    assert 10_000 < held <= BURST * 10_000
    await task
    (lagged,) = told(reader)
    assert (lagged["type"], lagged["dropped"]) == ("lagged", one.dropped)
    subscribers.close()


async def test_a_loop_that_does_not_turn_makes_no_reader_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever read while it stood still is not taken for one that does not read."""
    monkeypatch.setattr(event_queue, "PATIENCE", 0.01)
    one, written = Subscription(100), asyncio.Event()
    ours, peer = full_pair()
    loop = asyncio.get_running_loop()
    loop.add_writer(ours, written.set)

    async def write() -> None:
        await written.wait()
        loop.remove_writer(ours)

    task = loop.create_task(one.writing(write()))
    await asyncio.sleep(0)
    assert not written.is_set()
    while not select.select([], [ours], [], 0)[1]:
        peer.recv(1 << 16)
    one.add(1, b"x" * 500, 1)
    sleep(0.05)
    await task
    for _ in range(3):
        await asyncio.sleep(0)
    assert one.reads
    assert not one.ended
    ours.close()
    peer.close()


async def test_a_reader_that_reads_again_has_all_the_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queue, "PATIENCE", 0)
    one, written = Subscription(100), asyncio.Event()

    async def write() -> None:
        await written.wait()

    task = asyncio.get_running_loop().create_task(one.writing(write()))
    async with asyncio.timeout(5):
        while one.reads:
            await asyncio.sleep(0.01)
    one.add(1, b"x" * 100, 1)
    assert not one.ended
    written.set()
    await task
    assert one.reads
    one.add(2, b"x" * 100, 1)
    assert not one.ended


async def test_what_is_noted_while_a_burst_is_written_is_told_behind_it(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "GATHER", 0.0)
    subscribers, reader = Subscribers(teller.subscribe, EventBounds(queue=QUEUE)), Reader()
    streams = opened(teller, 1001)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    lose(teller, streams[:1000])
    teller.flush()
    reader.gate.clear()
    async with asyncio.timeout(5):
        while not reader.refused:
            await asyncio.sleep(0.01)
    lose(teller, streams[1000:])  # it waits to be made: no reader is woken for it once more
    reader.gate.set()
    async with asyncio.timeout(5):
        await reader.until(f'"{1000:032}"')
    assert ids(reader) == [record.request_id for record in streams]
    subscribers.close()
    await task
