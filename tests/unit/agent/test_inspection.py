"""What is kept of the last requests, and what readers of a stream are given."""

from __future__ import annotations

from time import time
from typing import Any

import pytest

from tests.support.looking import LookedInto, head
from tunneld.agent.inspection import Tap
from tunneld.config.agent import InspectionConfig
from tunneld.protocol.messages import Open

HEADERS = [("Host", "app.internal"), ("Authorization", "Bearer x"), ("X-Name", "gr\xfc\xdf"), ("X-Name", "again")]


def request(number: int | str, path: str = "/p") -> Open:
    return Open(f"request-{number}", "GET", path, list(HEADERS), "127.0.0.1:1")


def ids(of: LookedInto) -> list[str]:
    return [one.request.request_id for one in of.inspector.all()]


@pytest.mark.parametrize("over", [False, True])
def test_the_last_requests_are_kept_newest_first(over: bool) -> None:
    made = LookedInto(requests=3)
    for number in range(5):
        made.begin(request(number))
        if over:
            made.end(f"request-{number}")
    assert ids(made) == ["request-4", "request-3", "request-2"]
    assert made.inspector.kept == (3, 3)
    found = made.inspector.find("request-3")
    assert found is not None
    assert found.request == request(3)
    assert (made.inspector.find("request-1") is None) == over  # what is under way is found however old it is
    made.inspector.config = InspectionConfig(requests=1)
    made.begin(request(5))
    assert ids(made) == ["request-5"]


def test_one_that_takes_long_is_kept_from_its_end_on() -> None:
    made = LookedInto(requests=2)
    made.begin(request("long"))
    for number in range(5):
        made.begin(request(number))
        made.end(f"request-{number}")
    assert ids(made) == ["request-4", "request-3"]
    long = made.inspector.find("request-long")
    assert long is not None
    assert long.reason == ""
    made.end("request-long", "visitor")
    assert ids(made) == ["request-4", "request-long"]
    assert made.inspector.find("request-long") is long
    assert long.reason == "visitor"


def test_the_moment_of_a_request_stays_what_it_was_when_a_clock_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    made = LookedInto(requests=2)
    before = time()
    made.begin(request(1))
    made.end("request-1")
    (seen,) = made.inspector.all()
    assert before - 1 < seen.shown("app")["at"] < before + 5
    was = seen.shown("app")["at"]
    # A suspended machine: the monotonic clock stood still, the other did not.
    monkeypatch.setattr("tunneld.agent.inspector.time", lambda: before + 8 * 3600)
    (again,) = made.inspector.all()
    assert again.shown("app")["at"] == seen.shown("app")["at"] == was


def test_all_that_is_told_of_one_that_is_over_is_as_it_was() -> None:
    made = LookedInto()
    record = made.begin(request("plain", "/gr\xfc\xdf?token=x"))
    record.status, record.answer = 503, head([*HEADERS, ("Set-Cookie", "a=b")], 503)
    made.end("request-plain", "visitor")
    shown = [one.shown("app") for one in (*made.inspector.all(), *made.inspector.all())]
    assert shown[0] == shown[1]
    (plain,) = made.inspector.all()
    assert (plain.request, plain.headers) == (
        request("plain", "/gr\xfc\xdf?token=x"),
        [*HEADERS, ("Set-Cookie", "a=b")],
    )
    assert (shown[0]["status"], shown[0]["reason"], shown[0]["path"]) == (503, "visitor", "/gr\xfc\xdf?token=…")
    assert (shown[0]["body_bytes"], shown[0]["body_whole"]) == (0, True)
    assert 0 <= shown[0]["seconds"] < 5
    with_body = made.begin(request("body"))
    seen = made.inspector.of(with_body)
    assert seen is not None
    seen.upload(b"12345")
    made.end("request-body")
    assert made.inspector.find("request-body") is seen
    unanswered = made.begin(request("unanswered"))
    made.end("request-unanswered", "service")
    assert unanswered.opening == b""
    found = made.inspector.find("request-unanswered")
    assert found is not None
    assert (found.shown("app")["status"], found.headers, found.body, found.whole) == (None, [], b"", True)


def test_a_request_is_found_by_its_whole_id_alone() -> None:
    made = LookedInto()
    for number, path in ((1, "/request-2"), (11, "/p")):
        made.begin(request(number, path))
        made.end(f"request-{number}")
    found = made.inspector.find("request-1")
    assert found is not None
    assert found.request.path == "/request-2"
    assert made.inspector.find("request-2") is None
    assert made.inspector.find("request-") is None
    assert made.inspector.find("\udcff") is None


def test_a_request_whose_peer_escapes_its_id_is_found_too() -> None:
    made = LookedInto()
    made.begin(request(1), b'{"request_id":"request-\\u0031","method":"GET","path":"/","headers":[]}')
    made.end("request-1")
    assert made.inspector.find("request-1") is not None


def test_nothing_is_made_of_a_request_before_it_is_over_or_asked_for() -> None:
    made = LookedInto()
    record = made.begin(request(1))
    record.status, record.answer = 200, head([("X-Of", "it")])
    assert record.seen is None
    asked = made.inspector.of(record)
    assert asked is not None
    assert (asked.status, asked.headers) == (200, [("X-Of", "it")])
    assert made.inspector.of(record) is asked
    unasked = made.begin(request(2))
    unasked.status, unasked.answer = 204, head([("X-Of", "another")], 204)
    made.end("request-2")
    found = made.inspector.find("request-2")
    assert found is not None
    assert (found.status, found.headers, found.reason) == (204, [("X-Of", "another")], "done")
    assert (unasked.opening, unasked.answer, unasked.seen) == (b"", "", None)  # whoever holds it holds no more
    record.seen, record.opening = None, b""  # nobody may any more
    assert made.inspector.of(record) is None
    assert ids(made) == ["request-2"]


def test_what_is_kept_is_no_object_of_the_request() -> None:
    one = LookedInto().seen(request(1))
    one.answered(200, head([*HEADERS, ("Content-Encoding", "gzip")]), sse=True)
    one.upload(b"body")
    one.tap(Tap(50, lambda event: None))
    one.over("done", one.began + 1)
    assert {type(getattr(one, name)) for name in one.__struct_fields__} <= {
        type(None),
        bool,
        bytes,
        bytearray,
        float,
        int,
        str,
    }
    shown = one.shown("demo")
    assert (shown["status"], shown["reason"], shown["body_bytes"], shown["body_whole"]) == (200, "done", 4, True)
    masked = [["Host", "app.internal"], ["Authorization", "…"], ["X-Name", "gr\xfc\xdf"], ["X-Name", "again"]]
    assert shown["request_headers"] == masked
    assert shown["answer_headers"] == [*masked, ["Content-Encoding", "gzip"]]


def test_a_reader_begins_with_the_next_whole_event_and_is_told_the_end() -> None:
    made, told = LookedInto(requests=1), list[dict[str, Any]]()
    one = made.seen(request(1))
    one.answered(200, head([]), sse=True)
    minds = [one.minds]
    leave = one.tap(Tap(50, told.append), between=False)
    minds.append(one.minds)
    one.passed(b" of it\n\ndata: gr\xc3")
    one.passed(b"\xbc\xdf\n\n: note\n\n")
    assert told == [{"type": "event", "data": "grü\ufffd"}, {"type": "comment", "data": "note"}]
    leave()
    leave()
    minds.append(one.minds)
    one.tap(Tap(50, told.append))
    one.passed(b"id: 7\ndata: seen\n\n")
    made.end("request-1", "visitor")
    assert minds == [False, True, False]  # what passes is told to it while somebody reads
    assert told[2:] == [{"type": "event", "id": "7", "data": "seen"}, {"type": "end", "reason": "visitor"}]


def test_a_reader_of_another_answer_is_given_its_bytes() -> None:
    told: list[dict[str, Any]] = []
    one = LookedInto().seen(request(1))
    one.tap(Tap(50, told.append))
    one.answered(200, head([]), sse=False)
    assert one.minds
    one.passed(b"some")
    assert told == [{"type": "bytes", "bytes": 4, "text": "some"}]
