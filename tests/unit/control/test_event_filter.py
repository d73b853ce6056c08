"""Readers that ask for some events: they get those alone, cost no more, and what they missed is told truly."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest

from tests.unit.control.test_events import Reader
from tests.unit.control.test_stream_events import Telling, request, told
from tunneld.agent.record import Record
from tunneld.agent.telling import Teller
from tunneld.control import event_queue, events
from tunneld.control.event_bounds import EventBounds
from tunneld.control.event_filter import EventFilter
from tunneld.control.event_queue import encode
from tunneld.control.events import Subscribers
from tunneld.protocol.messages import Open


@pytest.fixture
def teller() -> Teller:
    return Telling()


async def reading(subscribers: Subscribers, *, last_id: int | None = None, **asked: Any) -> Reader:
    reader = Reader()
    wanted = EventFilter(**asked) if asked else None
    reader.task = reader.start(subscribers, last_id="" if last_id is None else str(last_id), wanted=wanted)
    await reader.until(": subscribed")
    return reader


async def left(reader: Reader) -> None:
    reader.left.set()
    await reader.task


def state(teller: Teller, name: str, state: str = "online") -> None:
    teller.tell("tunnel", {"tunnel": name, "state": state})


def types(reader: Reader) -> list[str]:
    return [one["type"] for one in told(reader)]


async def test_who_wants_no_events_of_streams_costs_nothing_for_each(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETAIN", 0.0)
    doors = [Subscribers(teller.subscribe) for _ in range(2)]
    first, second = await reading(doors[0], types=["tunnel"]), await reading(doors[1], types=["alert", "drain"])
    before = teller._last
    request(teller, 1)
    assert not teller._listened
    assert teller._over == []
    assert teller._last == before
    every = await reading(doors[1])
    request(teller, 2)
    await every.until("stream_closed")
    await left(every)
    while teller._listened:
        await asyncio.sleep(0)
    request(teller, 3)
    assert teller._over == []
    state(teller, "app")
    await first.until('"online"')
    assert types(first) == ["tunnel"]
    for door in doors:
        door.close()
    await asyncio.gather(first.task, second.task)
    assert types(second) == []


async def test_each_gets_what_it_asks_for_among_what_all_share(teller: Teller) -> None:
    subscribers = Subscribers(teller.subscribe)
    every = await reading(subscribers)
    closed = await reading(subscribers, types=["stream_closed", "tunnel"])
    of_app = await reading(subscribers, tunnels=["app", "third"])
    both = await reading(subscribers, types=["stream_opened"], tunnels=["second"])
    request(teller, 1, '/?"tunnel":"second"')
    other = Record("second", Open("s1", "GET", '/,"time":"2026-01-01T00:00:00.000Z","tunnel":"app"', [], "127.0.0.1:1"))
    teller.opened(other)
    teller.upgraded(other)
    other.kind = "websocket"
    other.reason = "done"
    teller.closed(other, monotonic())
    state(teller, "app")
    state(teller, "apple")
    teller.tell("alert", {"alert": "tunnel_down", "state": "firing", "subject": "app", "message": "x"})
    teller.tell("drain", {"streams": 0})
    readers = [every, closed, of_app, both]
    subscribers.close()
    await asyncio.gather(*(reader.task for reader in readers))
    whole = told(every)
    assert len(whole) == 9
    assert told(closed) == [one for one in whole if one["type"] in ("stream_closed", "tunnel")]
    assert told(of_app) == [one for one in whole if "app" in (one.get("tunnel"), one.get("subject"))]
    assert told(both) == [one for one in whole if one["type"] == "stream_opened" and one["tunnel"] == "second"]
    assert [len(told(reader)) for reader in readers] == [9, 4, 4, 1]


@pytest.mark.parametrize("kind", ["lagged", "gap"])
def test_what_is_told_of_the_reader_itself_passes_every_filter(kind: str) -> None:
    event = {"id": 7, "type": kind, "time": "2026-01-01T00:00:00.000Z", "dropped": 1}
    for asked in (EventFilter(types=["tunnel"]), EventFilter(tunnels=["app"]), EventFilter(["alert"], ["app"])):
        assert asked.passes(event)
        assert asked.pick(encode(event)) == encode(event)


async def test_a_filtered_reader_that_comes_back_gets_what_it_missed_of_its_own(teller: Teller) -> None:
    subscribers = Subscribers(teller.subscribe)
    every = await reading(subscribers)
    state(teller, "app")
    await every.until('"online"')
    (had,) = told(every)
    request(teller, 1)
    state(teller, "app", "offline")
    request(teller, 2)
    state(teller, "second", "offline")
    back = await reading(subscribers, last_id=had["id"], types=["tunnel", "stream_closed"], tunnels=["app"])
    subscribers.close()
    await asyncio.gather(every.task, back.task)
    missed = [one for one in told(every) if one["id"] > had["id"] and one["tunnel"] == "app"]
    assert told(back) == [one for one in missed if one["type"] != "stream_opened"]
    assert types(back) == ["stream_closed", "tunnel", "stream_closed"]


async def test_a_filtered_reader_is_told_of_a_gap_where_not_all_is_kept(teller: Teller) -> None:
    subscribers = Subscribers(teller.subscribe, EventBounds(history=1500))
    every = await reading(subscribers)
    state(teller, "app")
    await every.until('"online"')
    (had,) = told(every)
    for number in range(20):
        request(teller, number)
        teller.flush()
    state(teller, "app", "offline")
    back = await reading(subscribers, last_id=had["id"], types=["tunnel"])
    subscribers.close()
    await asyncio.gather(every.task, back.task)
    gap, last = told(back)
    assert (gap["type"], gap["since"], gap["next"]) == ("gap", had["id"], last["id"])
    assert last["state"] == "offline"


@pytest.mark.parametrize("comes_back", ["before", "at", "behind"])
async def test_events_of_streams_that_were_never_made_are_told_as_a_gap(
    teller: Teller, monkeypatch: pytest.MonkeyPatch, comes_back: str
) -> None:
    monkeypatch.setattr(events, "RETAIN", 0.0)
    subscribers = Subscribers(teller.subscribe)
    every, some = await reading(subscribers), await reading(subscribers, types=["tunnel"])
    request(teller, 1)
    await every.until("stream_closed")
    had = told(every)[-1]["id"]
    await left(every)
    while teller._listened:
        await asyncio.sleep(0)
    request(teller, 2)  # nobody is told of it, ever
    state(teller, "app")
    await some.until('"online"')
    (at,) = [one["id"] for one in told(some)]
    assert at == had + 1, "ids alone do not show it"
    again = await reading(subscribers)
    request(teller, 3)
    await again.until("stream_closed")
    behind = told(again)[0]["id"]
    last_id = {"before": had, "at": at, "behind": behind}[comes_back]
    back, no_streams = (
        await reading(subscribers, last_id=last_id),
        await reading(subscribers, last_id=last_id, types=["tunnel"]),
    )
    subscribers.close()
    await asyncio.gather(*(reader.task for reader in (some, again, back, no_streams)))
    kept = [one for one in told(some) + told(again) if one["id"] > last_id]
    if comes_back == "behind":
        assert told(back) == kept
    else:
        gap, *rest = told(back)
        assert (gap["type"], gap["since"], gap["next"], gap["id"]) == ("gap", last_id, kept[0]["id"], kept[0]["id"] - 1)
        assert rest == kept
    assert told(no_streams) == [one for one in kept if one["type"] == "tunnel"], "none of its own is missing"


async def test_who_gets_nothing_is_shown_that_the_stream_lives_and_gathers_as_all_do(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEPALIVE", 0.05)
    monkeypatch.setattr(events, "GATHER", 0.02)
    subscribers = Subscribers(teller.subscribe)
    takes: list[int] = []
    take = Subscribers.take

    def counted(self: Subscribers, first: int, last: int, encoded: bytes, events: int) -> None:
        takes.append(events)
        take(self, first, last, encoded, events)

    monkeypatch.setattr(Subscribers, "take", counted)
    reader = await reading(subscribers, tunnels=["other"])
    number = 0
    async with asyncio.timeout(5):
        while reader.text.count(": keepalive") < 3:
            request(teller, number)
            number += 1
            await asyncio.sleep(0.001)
    assert types(reader) == []
    assert len(takes) < number / 3, "each alone"
    subscribers.close()
    await reader.task


async def test_one_that_is_cut_is_told_how_many_of_its_own_it_missed(
    teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "PATIENCE", 0)
    subscribers = Subscribers(teller.subscribe, EventBounds(queue=5_000))
    reader = await reading(subscribers, types=["stream_closed"])
    (one,) = subscribers._open
    await reader.turn_deaf(subscribers, lambda: request(teller, 0))
    number = 1
    while not one.ended:
        request(teller, number)
        teller.flush()
        number += 1
    reader.gate.set()
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            await reader.task
    first, lagged = told(reader)
    assert (first["type"], lagged["type"], lagged["dropped"]) == ("stream_closed", "lagged", number - 1)
    subscribers.close()
