"""Looking into what is no plain event stream: packed ones, WebSockets; and where looking ends, or is not allowed."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.support.looking import LookedInto, head, looking, stream_id
from tests.support.running import settled
from tunneld.agent.inspection import Tap, masked, unpacked, unsecret
from tunneld.control.tailing import Tailing
from tunneld.protocol.messages import Open

EVENTS = {"Accept": "text/event-stream"}


async def told(answer: httpx.Response, count: int) -> list[Any]:
    found: list[Any] = []
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            found.append(json.loads(line[6:]))
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize(("named", "bits"), [("gzip", 31), ("deflate", zlib.MAX_WBITS)])
async def test_an_event_stream_that_is_packed_is_unpacked_from_wherever_the_reader_comes(
    folder: Path, named: str, bits: int
) -> None:
    pack = zlib.compressobj(wbits=bits)

    def packed(text: str) -> bytes:
        return pack.compress(text.encode()) + pack.flush(zlib.Z_SYNC_FLUSH)

    async with looking(folder) as (service, control, public, visitor):
        service.packed = named
        async with visitor.stream("GET", f"{public}/sse", headers=EVENTS) as answer:
            await service.push(packed("data: before\n\n"))
            parts = answer.aiter_raw()
            await anext(parts)
            wanted = await stream_id(control)
            async with control.stream("GET", f"/v1/streams/{wanted}/tail") as tail:
                whole = packed("id: 7\ndata: grüß\n\n")
                await service.push(whole[:5])
                await service.push(whole[5:])
                assert await told(tail, 1) == [{"type": "event", "id": "7", "data": "grüß"}]


async def test_what_cannot_be_unpacked_is_said_by_its_coding(folder: Path) -> None:
    async with looking(folder) as (service, control, public, visitor):
        service.packed = "br"
        async with visitor.stream("GET", f"{public}/sse", headers=EVENTS):
            await service.push(b"\x00\xff")
            wanted = await stream_id(control)
            async with control.stream("GET", f"/v1/streams/{wanted}/tail") as tail:
                await service.push(b"\x00\xff\x00")
                assert await told(tail, 1) == [{"type": "bytes", "bytes": 3, "text": "", "encoding": "br"}]


def test_what_only_says_that_it_is_packed_or_is_a_bomb_is_shown_as_bytes() -> None:
    bomb = zlib.compress(bytes(10 << 20))
    for data in (b"data: plain\n\n", bomb):
        given: list[dict[str, Any]] = []
        seen = LookedInto().seen(Open("r", "GET", "/", []))
        seen.answered(200, head([("Content-Encoding", "deflate")]), sse=True)
        seen.tap(Tap(10, given.append))
        seen.passed(data)
        seen.passed(b"more")
        assert given == [{"type": "bytes", "bytes": size, "text": "", "encoding": "deflate"} for size in (len(data), 4)]


async def test_the_frames_of_a_websocket_are_shown_both_ways(folder: Path) -> None:
    async with looking(folder) as (service, control, public, _):
        async with connect(f"{public.replace('http', 'ws')}/ws", compression=None, ping_interval=None) as socket:
            wanted = await stream_id(control)
            async with control.stream("GET", f"/v1/streams/{wanted}/tail") as tail:
                await socket.send("grüß")
                (ours,) = await told(tail, 1)
                assert ours == {
                    "type": "frame", "from": "visitor", "kind": "text", "final": True, "bytes": 6, "text": "grüß",
                }  # fmt: skip
            async with control.stream("GET", f"/v1/streams/{wanted}/tail") as tail:
                await service.push(b"\x82\x02\x00\xff")
                await service.push(b"\x88\x05\x03\xe9bye")
                binary, close = await told(tail, 2)
        assert (binary["from"], binary["kind"], binary["bytes"], binary["text"]) == ("service", "binary", 2, "")
        assert (close["from"], close["kind"], close["text"]) == ("service", "close", "1001 bye")


async def test_a_stream_that_newer_requests_pushed_out_of_the_list_is_still_looked_into(folder: Path) -> None:
    async with (
        looking(folder, inspection={"requests": 1}) as (service, control, public, visitor),
        visitor.stream("GET", f"{public}/sse", headers=EVENTS),
    ):
        await service.push(b"data: x\n\n")
        wanted = await stream_id(control)
        async with control.stream("GET", f"/v1/streams/{wanted}/tail") as before:
            await visitor.get(f"{public}/other")
            (kept,) = (await control.get("/v1/requests")).json()["requests"]
            assert kept["path"] == "/other"
            async with control.stream("GET", f"/v1/streams/{wanted}/tail") as after:
                assert after.status_code == 200
                await control.delete(f"/v1/streams/{wanted}")
                for tail in (before, after):
                    assert (await told(tail, 9))[-1] == {"type": "end", "reason": "operator"}


async def test_looking_ends_with_the_leave_to_look(folder: Path) -> None:
    async with looking(folder) as (service, control, public, visitor):
        proxy = service.host.agent.tunnels[0].proxy
        assert proxy.inspector is not None
        async with visitor.stream("GET", f"{public}/sse", headers=EVENTS):
            await service.push(b"data: x\n\n")
            wanted = await stream_id(control)
            async with control.stream("GET", f"/v1/streams/{wanted}/tail") as tail:
                config = proxy.inspector.config
                proxy.inspect(None)  # what a reload with `inspect: false` does
                assert await told(tail, 9) == [{"type": "end", "reason": "not_inspected"}]
            proxy.inspect(config)
            late = (await control.get(f"/v1/streams/{wanted}/tail")).json()
            assert (late["code"], "began before" in late["detail"]) == ("not_inspected", True)


async def test_readers_are_bounded_and_one_that_leaves_makes_room(folder: Path) -> None:
    async with (
        looking(folder, inspection={"readers": 1}) as (service, control, public, visitor),
        visitor.stream("GET", f"{public}/sse", headers=EVENTS),
    ):
        await service.push(b"data: x\n\n")
        wanted = await stream_id(control)
        async with control.stream("GET", f"/v1/streams/{wanted}/tail"):
            refused = await control.get(f"/v1/streams/{wanted}/tail")
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_subscribers")
            assert "inspection.readers" in refused.json()["detail"]
        inspector = service.host.agent.tunnels[0].proxy.inspector
        assert inspector is not None
        await settled(lambda: inspector.readers == 0)
        async with control.stream("GET", f"/v1/streams/{wanted}/tail") as again:
            assert again.status_code == 200


async def test_a_reader_that_does_not_read_is_told_how_much_it_missed() -> None:
    tells: list[Any] = []

    def subscribe(tell: Any) -> Any:
        tells.append(tell)
        return (lambda: None), 2

    tailing = Tailing(subscribe)
    for number in range(4):
        tells[0]({"type": "event", "data": str(number)})
    tells[0]({"type": "skipped", "events": 5})
    tells[0]({"type": "end", "reason": "done"})
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await tailing({"type": "http"}, receive, send)
    found = [json.loads(part.split(b"data: ")[1]) for part in sent if b"data: " in part]
    assert found == [
        {"type": "skipped", "events": 4}, {"type": "skipped", "events": 5}, {"type": "end", "reason": "done"},
    ]  # fmt: skip


async def test_the_answer_of_a_replay_is_unpacked(folder: Path) -> None:
    async with looking(folder) as (service, control, public, visitor):
        service.packed = "gzip"
        await visitor.post(f"{public}/echo", content="x")
        (seen,) = (await control.get("/v1/requests")).json()["requests"]
        again = (await control.post(f"/v1/requests/{seen['request_id']}/replay")).json()
        assert (json.loads(again["body"]), again["whole"]) == (["POST", "/echo", "x", False], True)


def test_a_packed_body_is_unpacked_up_to_a_bound() -> None:
    data = zlib.compress(bytes(10 << 20))
    deflate = [("content-encoding", "deflate")]
    assert unpacked(data, deflate, most=100) == (bytes(100), False)
    assert unpacked(b"no such", deflate, most=100) == (b"no such", True)
    assert unpacked(data, [], most=100) == (data, True)


def test_secrets_in_addresses_are_masked_and_the_rest_of_them_stands() -> None:
    assert unsecret("/a?x=1&access_token=abc.def&api_key=k#f") == "/a?x=1&access_token=…&api_key=…#f"
    assert unsecret("/cb?code=abc&state=7") == "/cb?code=…&state=7"
    assert unsecret("https://ann:pw@example.org/a") == "https://…@example.org/a"
    assert unsecret("/plain?n=2&lines=10") == "/plain?n=2&lines=10"
    secret = [
        ("X-Api-Key", "k"), ("X-Auth", "k"), ("X-Auth-Key", "k"), ("Cf-Access-Jwt-Assertion", "k"),
        ("Sec-WebSocket-Protocol", "bearer, abc"), ("Ocp-Apim-Subscription-Key", "k"), ("Set-Cookie", "sid=k"),
        ("Referer", "https://example.org/?token=k"), ("Location", "/in?session=k"), ("Proxy-Authorization", "k"),
    ]  # fmt: skip
    for name, value in masked(secret):
        assert "…" in value, name
        assert not value.endswith(("k", "abc")), name
    plain = [("Content-Type", "a/b"), ("Authority", "x"), ("Author", "x"), ("Idempotency-Key", "7"), ("Host", "a:1")]
    assert masked(plain) == [list(pair) for pair in plain]
