"""What is kept for visitors that come back, and who is one: the pure parts."""

from __future__ import annotations

import pytest

from tunneld.protocol.messages import Open
from tunneld.server.replay import COOKIE, EventLog, cookie_path, gap_event, may_replay, without_cookie


def event(number: int) -> bytes:
    return f"id: {number}\ndata: {number}\n\n".encode()


def log_of(*numbers: int, limit: int = 1000) -> EventLog:
    log = EventLog(limit)
    for number in numbers:
        log.add(event(number), str(number).encode())
    return log


def test_the_log_goes_on_after_an_id() -> None:
    log = log_of(1, 2, 3)
    assert log.after(b"1") == [event(2), event(3)]
    assert log.after(b"3") == []
    assert log.after(b"4") is None
    assert log.after(b"0") is None


def test_an_id_amid_a_chunk_is_found_and_the_last_of_its_kind_counts() -> None:
    log = log_of(1)
    log.add(event(2) + event(3) + b"data: 2\n\n" + event(4) + b"data: x\n\n", b"")
    assert log.after(b"2") == [event(3) + b"data: 2\n\n" + event(4) + b"data: x\n\n"]
    assert log.after(b"4") == [b"data: x\n\n"]
    log.add(event(2), b"2")
    assert log.after(b"2") == []


def test_a_full_log_loses_its_oldest_whole() -> None:
    size = len(event(1))
    log = log_of(1, 2, 3, 4, limit=2 * size + 1)
    assert log.size == 2 * size
    assert log.all() == [event(3), event(4)]
    assert log.after(b"2") == [event(3), event(4)]  # nothing is missing
    assert log.after(b"1") is None


def test_a_chunk_over_the_limit_is_not_kept() -> None:
    log = log_of(1, limit=30)
    assert log.add(event(2) * 10, b"2") == -len(event(1))
    assert (log.all(), log.size, log.after(b"2")) == ([], 0, [])


def test_what_was_passed_over_begins_the_log_anew() -> None:
    log = log_of(1, 2)
    assert log.skip(b"") == -2 * len(event(1))
    log.add(event(4), b"4")
    assert log.after(b"2") is None
    assert log.after(b"") is not None  # but an empty id is never asked for
    assert log.drop_oldest() == len(event(4))
    assert log.drop_oldest() == 0


@pytest.mark.parametrize(
    ("method", "version", "may"),
    [
        ("GET", None, True), ("POST", None, False), ("HEAD", None, False), ("GET", "2025-11-25", True),
        ("GET", "2026-07-28", False), ("GET", "2027-01-01", False), ("POST", "2025-06-18", False),
        ("GET", "next", True),
    ],
)  # fmt: skip
def test_where_closing_is_cancelling_nothing_is_kept(method: str, version: str | None, may: bool) -> None:
    headers = [("MCP-Protocol-Version", version)] if version else []
    assert may_replay(Open("r", method, "/", headers)) is may


def test_our_own_cookie_goes_to_no_service() -> None:
    headers = [("Cookie", f"a=1; {COOKIE}=x;b=2"), ("X", COOKIE), ("cookie", f"{COOKIE}=y")]
    assert without_cookie(headers) == ([("Cookie", "a=1; b=2"), ("X", COOKIE)], ["x", "y"])
    headers = [("Cookie", f"a={COOKIE}=1")]
    assert without_cookie(headers) == (headers, [])
    assert without_cookie(headers)[0] is headers


@pytest.mark.parametrize(
    ("target", "path"),
    [("/t/n/sse?x=/;", "/t/n/sse"), ("/", "/"), ("/a/b;c/d", "/a/"), ("/a;b", "/")],
)
def test_the_cookie_is_for_that_path(target: str, path: str) -> None:
    assert cookie_path(target) == path


def test_a_gap_is_told_without_an_id() -> None:
    assert gap_event('a"\n') == b'event: tunnel-gap\ndata: {"last_event_id": "a\\"\\n"}\n\n'
