"""Looking into the streams of a real agent's tunnel: tail, the last requests, replay; and only where it is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.looking import LookedInto, head, looking, stream_id
from tests.support.running import Book
from tunneld.agent.inspection import Tap, masked
from tunneld.protocol.messages import Open


async def told(answer: httpx.Response, count: int) -> list[Any]:
    found: list[Any] = []
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            found.append(json.loads(line[6:]))
            if len(found) == count:
                return found
    return found


async def test_a_streams_events_are_shown_as_they_pass(folder: Path, lines: Book) -> None:
    async with looking(folder) as (service, control, public, visitor):
        async with visitor.stream("GET", f"{public}/sse", headers={"Accept": "text/event-stream"}) as answer:
            await service.push(b"data: before\n\n")
            parts = answer.aiter_bytes()  # held: httpx closes the answer of one that is let go
            await anext(parts)
            wanted = await stream_id(control)
            async with control.stream("GET", f"/v1/streams/{wanted}/tail") as tail:
                assert tail.headers["content-type"] == "text/event-stream"
                await service.push("id: 7\nevent: note\ndata: grüß\r\ndata: dich\n\n".encode())
                await service.push(b": ping\n\ndata: half")
                await service.push(b" whole\n\n")
                first, comment, joined = await told(tail, 3)
        assert first == {"type": "event", "id": "7", "event": "note", "data": "grüß\ndich"}
        assert comment == {"type": "comment", "data": "ping"}
        assert joined["data"] == "half whole"


async def test_the_end_of_a_stream_ends_its_tail(folder: Path) -> None:
    async with (
        looking(folder) as (service, control, public, visitor),
        visitor.stream("GET", f"{public}/sse", headers={"Accept": "text/event-stream"}),
    ):
        await service.push(b"data: x\n\n")
        wanted = await stream_id(control)
        async with control.stream("GET", f"/v1/streams/{wanted}/tail") as tail:
            await control.delete(f"/v1/streams/{wanted}")
            (last,) = await told(tail, 9)
            assert last == {"type": "end", "reason": "operator"}


async def test_nothing_is_shown_of_a_tunnel_that_is_not_to_be_looked_into(folder: Path) -> None:
    async with (
        looking(folder, inspect=False) as (service, control, public, visitor),
        visitor.stream("GET", f"{public}/sse", headers={"Accept": "text/event-stream"}),
    ):
        await service.push(b"data: x\n\n")
        wanted = await stream_id(control)
        refused = await control.get(f"/v1/streams/{wanted}/tail")
        assert (refused.status_code, refused.json()["code"]) == (403, "not_inspected")
        assert (await control.get("/v1/requests")).json() == {"requests": []}
        gone = await control.post(f"/v1/requests/{wanted}/replay")
        assert (gone.status_code, gone.json()["code"]) == (404, "no_such_request")


async def test_the_last_requests_are_kept_masked_and_can_be_sent_again(folder: Path, lines: Book) -> None:
    async with looking(folder, inspection={"requests": 2, "body": 16}) as (service, control, public, visitor):
        secret = {"Authorization": "Bearer topsecret", "X-Plain": "seen"}
        for number in range(3):
            await visitor.post(f"{public}/echo?n={number}", content=f"body {number}", headers=secret)
        seen = (await control.get("/v1/requests")).json()["requests"]
        assert [one["path"] for one in seen] == ["/echo?n=2", "/echo?n=1"]
        assert (seen[0]["method"], seen[0]["status"], seen[0]["reason"]) == ("POST", 200, "done")
        assert (seen[0]["body_bytes"], seen[0]["body_whole"]) == (6, True)
        shown = json.dumps(seen)
        assert "topsecret" not in shown
        assert ["x-plain", "seen"] in [[name.lower(), value] for name, value in seen[0]["request_headers"]]
        again = (await control.post(f"/v1/requests/{seen[0]['request_id']}/replay")).json()
        assert json.loads(again["body"]) == ["POST", "/echo?n=2", "body 2", True]  # with its credential
        assert (again["status"], again["whole"], again["of"]) == (200, True, seen[0]["request_id"])
        assert "topsecret" not in json.dumps(again["headers"])
        assert service.bodies == [b"body 0", b"body 1", b"body 2", b"body 2"]
        await lines.wait("sent request")
        await visitor.post(f"{public}/echo", content="x" * 17)
        long = (await control.get("/v1/requests")).json()["requests"][0]
        refused = await control.post(f"/v1/requests/{long['request_id']}/replay")
        assert (refused.status_code, refused.json()["code"]) == (409, "not_replayable")


def test_a_tap_is_held_to_its_rate_and_says_what_it_left_out() -> None:
    given: list[dict[str, Any]] = []
    tap = Tap(2, given.append)
    for number in range(5):
        tap.give(1.0, {"type": "event", "data": str(number)})
    tap.give(2.0, {"type": "event", "data": "next"})
    assert [one.get("data", one.get("events")) for one in given] == ["0", "1", 3, "next"]
    for number in range(5):
        tap.give(3.0, {"type": "event", "data": str(number)})
    tap.end("done")  # nobody waits for ever because the second had its share
    assert given[-2:] == [{"type": "skipped", "events": 3}, {"type": "end", "reason": "done"}]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_how_the_bytes_are_cut_does_not_change_the_events(size: int) -> None:
    given: list[dict[str, Any]] = []
    seen = LookedInto().seen(Open("r", "GET", "/", []))
    seen.answered(200, head([]), sse=True)
    end = seen.tap(Tap(1000, given.append))
    data = "id: 1\r\ndata: ä\r\n\r\n: c\n\ndata: two\ndata: lines\n\nretry: 5\n\n".encode()
    for at in range(0, len(data), size):
        seen.passed(data[at : at + size])
    assert given == [
        {"type": "event", "id": "1", "data": "ä"},
        {"type": "comment", "data": "c"},
        {"type": "event", "data": "two\nlines"},
        {"type": "event", "retry": "5", "data": ""},
    ]
    end()
    seen.tap(Tap(1000, given.append), between=False)
    seen.passed(b" of it\n\ndata: whole\n\n")
    assert given[-1]["data"] == "whole"
    assert len(given) == 5


def test_headers_with_secrets_are_masked() -> None:
    shown = masked(
        [("Authorization", "a"), ("cookie", "b"), ("X-Api-Key", "c"), ("Accept", "d"), ("MCP-Session-Id", "e")]
    )
    assert [value for _, value in shown] == ["…", "…", "…", "d", "…"]
