"""Events of streams as readers get them: many at a time, in the order of what happened."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from tunneld.agent import stream_events
from tunneld.agent.record import Record
from tunneld.agent.stream_events import Happened, Over, begins, ends
from tunneld.protocol.messages import Open

NOON = datetime.fromisoformat("2026-11-27T12:00:00Z").timestamp()


def record(request_id: str, started: float, path: str = "/") -> Record:
    made = Record("app", Open(request_id, "GET", path, [], "127.0.0.1:40000"))
    made.started = started
    return made


def over(request_id: str, begun: float, ended: float, path: str = "/", kind: str = "http") -> Over:
    return ("app", request_id, kind, "GET", path, "127.0.0.1:40000", "done", begun, ended, 1, 2)


def blocks(happened: list[Happened], first: int, offset: float) -> bytes:
    """All of them."""
    return b"".join(encoded for encoded, _ in stream_events.blocks(happened, first, offset))


def events(encoded: bytes) -> list[dict[str, Any]]:
    shown = []
    for block in encoded.decode().removesuffix("\n\n").split("\n\n"):
        first, second, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert (first, second) == (f"id: {event['id']}", f"event: {event['type']}")
        shown.append(event)
    return shown


def test_they_stand_in_the_order_of_what_happened() -> None:
    ended = ends([over("b", 2.0, 3.0), over("a", 1.0, 4.0), over("c", 0.5, 5.0)], 0.5)
    told = events(blocks([*begins([record("d", 3.5)]), *ended], 1007, NOON))
    assert [(one["id"], one["type"].removeprefix("stream_"), one["request_id"]) for one in told] == [
        (1007, "opened", "a"),
        (1008, "opened", "b"),
        (1009, "closed", "b"),
        (1010, "opened", "d"),
        (1011, "closed", "a"),
        (1012, "closed", "c"),
    ]
    assert [one["age_s"] for one in told if "age_s" in one] == [1.0, 3.0, 4.5]


def test_what_begins_and_ends_in_one_moment_begins_first() -> None:
    told = events(blocks(ends([over("a", 1.0, 1.0), over("b", 1.0, 1.0)], 0.0), 1000, NOON))
    assert [one["type"] for one in told] == ["stream_opened"] * 2 + ["stream_closed"] * 2


@pytest.mark.parametrize(
    ("at", "stamp"),
    [
        (0.0, "12:00:00.000"),
        (0.0004, "12:00:00.000"),
        (0.9996, "12:00:00.999"),
        (1.0, "12:00:01.000"),
        (59.9999, "12:00:59.999"),
        (60.001, "12:01:00.001"),
        (86400.25, "12:00:00.250"),
    ],
)
def test_each_has_its_own_second(at: float, stamp: str) -> None:
    """Whatever second the first of them was in."""
    told = events(blocks(ends([over("a", -0.4999, 0.25), over("b", -0.5, at + 1e-6)], -0.5), 1000, NOON))
    assert told[0]["time"] == "2026-11-27T11:59:59.500Z"
    assert told[1]["time"] == "2026-11-27T12:00:00.250Z" or at < 0.25
    last = next(one for one in told if one["request_id"] == "b")
    day = 28 if at > 80000 else 27
    assert last["time"] == f"2026-11-{day}T{stamp}Z"


@pytest.mark.parametrize(("age", "shown"), [(0.0004, 0.0), (0.0005, 0.001), (1.2344, 1.234), (86400.5, 86400.5)])
def test_an_age_is_in_milliseconds(age: float, shown: float) -> None:
    encoded = blocks(ends([over("a", 0.0, age + 1e-9)], 1.0), 1000, NOON)
    assert b'"age_s":%s,' % repr(shown).encode() in encoded


@pytest.mark.parametrize(
    "path",
    ['/a,"reason":"b', "/\\", '/",', "/}\n{", "/ü", "/\udc80", "/\x01", "/" + "x" * 5000],
    ids=["a key", "backslash", "quote", "line", "umlaut", "half a surrogate", "control", "long"],
)
@pytest.mark.parametrize("kind", ["http", "sse"])
def test_whatever_its_path_is_a_stream_is_told_of_as_it_is(path: str, kind: str) -> None:
    ended = ends([over("a", 1.0, 2.0, path, kind), over("b", 1.5, 3.0)], 0.0)
    begin, other, end, _, going = events(blocks([*ended, *begins([record("c", 9.0, path)])], 1000, NOON))
    assert (begin["path"], begin["kind"], end["path"], end["kind"]) == (path, "http", path, kind)
    assert (begin["request_id"], end["request_id"], other["path"], going["path"]) == ("a", "a", "/", path)
    assert list(end) == [
        "id", "type", "time", "tunnel", "request_id", "kind", "method", "path", "client",
        "reason", "age_s", "bytes_in", "bytes_out",
    ]  # fmt: skip
    assert list(begin) == list(end)[:9]


@pytest.mark.parametrize("first", [1000, 1990, 1_795_750_000_000_970, 999_999])
def test_many_come_some_at_a_time_with_ids_and_seconds_that_go_on(first: int) -> None:
    """Over the ends of blocks, of thousands of ids, and of seconds."""
    number = 1000
    ended = ends([over(f"r{one}", one * 0.01, one * 0.01 + 0.003) for one in range(number)], -1.0)
    found = list(stream_events.blocks(ended, first, NOON))
    assert [count for _, count in found[:-1]] == [stream_events._TOGETHER] * (len(found) - 1)
    told = []
    for encoded, count in found:
        told += events(encoded)
        assert len(events(encoded)) == count
    assert [one["id"] for one in told] == list(range(first, first + 2 * number))
    times = [datetime.fromisoformat(one["time"]).timestamp() - NOON for one in told]
    expected = [value for one in range(number) for value in (one * 0.01, one * 0.01 + 0.003)]
    assert all(abs(time - value) < 0.0011 for time, value in zip(times, expected, strict=True))
