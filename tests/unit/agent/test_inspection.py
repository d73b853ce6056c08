"""What is kept of the last requests, and what readers of a stream are given."""

from __future__ import annotations

from time import monotonic
from typing import Any

from tests.support.looking import begun, head
from tunneld.agent.inspection import Inspector, Seen, Tap
from tunneld.config.agent import InspectionConfig
from tunneld.protocol.messages import Open

HEADERS = [("Host", "app.internal"), ("Authorization", "Bearer x"), ("X-Name", "gr\xfc\xdf"), ("X-Name", "again")]


def inspector(requests: int = 3) -> Inspector:
    return Inspector(InspectionConfig(requests=requests))


def seen(of: Inspector, number: int | str, path: str = "/p") -> Seen:
    return begun(of, Open(f"request-{number}", "GET", path, list(HEADERS), "127.0.0.1:1"))


def test_the_last_requests_are_kept_newest_first() -> None:
    kept = inspector(3)
    for number in range(5):
        seen(kept, number)
    assert [one.request.request_id for one in kept.all()] == ["request-4", "request-3", "request-2"]
    assert kept.kept == (3, 3)
    assert kept.find("request-1") is None
    found = kept.find("request-3")
    assert found is not None
    assert found.request == Open("request-3", "GET", "/p", HEADERS, "127.0.0.1:1")
    kept.config = InspectionConfig(requests=1)
    seen(kept, 5)
    assert [one.request.request_id for one in kept.all()] == ["request-5"]


def test_a_request_is_found_by_its_whole_id_alone() -> None:
    kept = inspector()
    seen(kept, 1, path="/request-2")
    seen(kept, 11)
    found = kept.find("request-1")
    assert found is not None
    assert found.request.path == "/request-2"
    assert kept.find("request-2") is None
    assert kept.find("request-") is None
    assert kept.find("\udcff") is None


def test_a_request_whose_peer_escapes_its_id_is_found_too() -> None:
    kept = inspector()
    one = kept.begin(b'{"request_id":"request-\\u0031","method":"GET","path":"/","headers":[]}', monotonic())
    assert kept.find("request-1") is one


def test_what_is_kept_is_no_object_of_the_request() -> None:
    one = seen(inspector(), 1)
    one.answered(200, head([*HEADERS, ("Content-Encoding", "gzip")]), sse=True)
    one.upload(b"body")
    one.tap(Tap(50, lambda event: None))
    one.over("done")
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
    kept, told = inspector(1), list[dict[str, Any]]()
    one = seen(kept, 1)
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
    seen(kept, 2)  # it is forgotten, and goes on
    one.over("visitor")
    assert minds == [False, True, False]  # what passes is told to it while somebody reads
    assert told[2:] == [{"type": "event", "id": "7", "data": "seen"}, {"type": "end", "reason": "visitor"}]


def test_a_reader_of_another_answer_is_given_its_bytes() -> None:
    told: list[dict[str, Any]] = []
    one = seen(inspector(), 1)
    one.tap(Tap(50, told.append))
    one.answered(200, head([]), sse=False)
    assert one.minds
    one.passed(b"some")
    assert told == [{"type": "bytes", "bytes": 4, "text": "some"}]
