"""Session resume, rule by rule: a real server, and agents made by hand that say what no agent of ours would."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import pytest

from tests.support.handmade import SMALL, HandAgent, dial, online, serving, still_serves, visit, with_stream
from tunneld.errors import VisitorError
from tunneld.protocol import frames
from tunneld.protocol.session import Session
from tunneld.server.daemon import ServerDaemon
from tunneld.server.tunnels import TunnelConnection

EVENTS = ("Content-Type", "text/event-stream")


async def test_bytes_go_on_in_the_same_response() -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        first.cut()
        second = await dial(server)
        again = await second.resume(2, said, first.received)
        assert again["resumed"] is True
        assert again["resume_refused"] is None
        assert again["session_id"] == said["session_id"]
        assert again["resume_token"] != said["resume_token"]
        assert again["received"] == 1
        second.send(frames.frame(frames.DATA | frames.FIN, stream, b"two"))
        assert (await visitor.reader.read(1 << 16)).replace(b"\r\n", b"") != b""
        visitor.leave()


async def test_what_was_not_received_is_sent_again_as_it_was_and_new_frames_follow() -> None:
    async with serving(**SMALL) as server:
        first, said = await online(server)
        visitors = [await visit(server, "/a"), await visit(server, "/b")]
        await first.opened(2)
        first.cut()
        second = await dial(server)
        again = await second.resume(2, said, 0)
        assert again["resumed"] is True
        await second.opened(2)
        assert second.counted == first.counted
        visitors.append(await visit(server, "/c"))
        assert await second.opened(3) == 3
        for visitor in visitors:
            visitor.leave()


async def test_a_visitor_that_left_meanwhile_is_a_counted_cancel() -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, _ = await with_stream(server)
        first.cut()
        await lost(server)
        visitor.leave()
        while server.ingress.exchanges:
            await asyncio.sleep(0)
        second = await dial(server)
        await second.resume(2, said, first.received)
        assert (await second.text("stream_cancel"))["reason"] == "visitor"
        assert second.received == 1


# -- takeover ------------------------------------------------------------------------------------------


async def test_a_resume_while_the_old_connection_looks_alive_fences_it_off() -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        second = await dial(server)
        again = await second.resume(2, said, first.received)
        assert again["resumed"] is True
        first.send(frames.frame(frames.DATA, stream, b"doubled "))  # before it has heard that it was replaced
        assert await first.ended() == (4001, "replaced")
        assert [text["code"] for text in first.texts if text["type"] == "error"] == ["replaced"]
        second.send(frames.frame(frames.DATA | frames.FIN, stream, b"two"))
        async with asyncio.timeout(5):
            body = await visitor.reader.readuntil(b"0\r\n\r\n")
        assert b"doubled" not in body
        assert b"two" in body
        visitor.leave()


async def test_a_fresh_hello_while_the_old_connection_looks_alive_wins_at_once() -> None:
    async with serving(**SMALL) as server:
        first, _, visitor, _ = await with_stream(server)
        second = await dial(server)
        said = await second.hello(1, instance="another process")
        assert said["resumed"] is False
        await visitor.broken()
        assert await first.ended() == (4001, "replaced")
        again = await visit(server)
        await second.opened()
        again.leave()


async def test_two_that_replace_each_other_are_in_conflict(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(**SMALL) as server:
        agents = [await dial(server) for _ in range(4)]
        for number, agent in enumerate(agents):
            await agent.hello(number, instance="ab"[number % 2])
        late = await dial(server)
        late.say(type="hello", instance="a", dial=9)
        assert await late.refused() == ("conflict", 4009)
        told = late.texts[-1]
        assert told["retry_after"] == 600
        assert told["message"].count("127.0.0.1") >= 2
        assert agents[3].over is None
        line = next(record for record in caplog.records if "conflict" in record.getMessage())
        assert line.__dict__["peer"] == line.__dict__["serving"] == "127.0.0.1"
        visitor = await visit(server)
        await agents[3].opened()
        visitor.leave()


# -- what ends a session and what keeps it -------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code", "close"),
    [
        (b"", "protocol_error", 1002),
        (b"\0" * 8, "protocol_error", 1002),
        (struct.pack("!BII", 2, 1, 9), "protocol_error", 1002),
        (struct.pack("!BII", 3, 1, 0), "protocol_error", 1002),
        (struct.pack("!BII", 1, 9, 0), "protocol_error", 1002),
        (struct.pack("!BII", 4, 99, 0), "unknown_stream", 1002),
        (struct.pack("!BIII", 6, 1, 4, 2**32 - 1), "flow_control", 1002),
    ],
)
async def test_an_error_of_the_agents_ends_its_session_for_good(message: bytes, code: str, close: int) -> None:
    async with serving(**SMALL) as server:
        upload = {"method": "POST", "headers": "Content-Length: 1000000\r\n"}
        agent, said = await online(server)
        visitor = await visit(server, **upload)
        stream = await agent.opened()
        assert stream == 1
        agent.send(agent.head(stream))
        agent.send(message)
        assert await agent.refused() == (code, close)
        last = await dial(server)
        assert (await last.resume(2, said, agent.received))["resume_refused"] == "unknown"
        visitor.leave()


async def test_more_than_the_window_ends_the_session() -> None:
    async with serving(**SMALL, limits={"stream_window": "16KiB", "stream_window_max": "16KiB"}) as server:
        agent, _, visitor, stream = await with_stream(server)
        agent.send(frames.frame(frames.DATA, stream, b"x" * 16385))
        assert await agent.refused() == ("flow_control", 1002)
        await visitor.broken()


async def test_a_message_that_is_too_large_ends_the_session() -> None:
    async with serving(**SMALL) as server:
        agent, said, visitor, _ = await with_stream(server)
        agent.send(b"\x40" + bytes(300_000))
        assert await agent.refused() == ("too_large", 1009)
        await visitor.broken()
        last = await dial(server)
        assert (await last.resume(2, said, agent.received))["resume_refused"] == "unknown"


@pytest.mark.parametrize(("code", "kept"), [(1000, True), (1001, True), (1011, True), (1002, False), (1009, False)])
async def test_a_close_of_the_agents(code: int, *, kept: bool) -> None:
    async with serving(**SMALL) as server:
        agent, said, visitor, _ = await with_stream(server)
        agent.pipe.close(code, "")
        await agent.ended()
        if not kept:
            await visitor.broken()
        last = await dial(server)
        again = await last.resume(2, said, agent.received)
        assert again.get("resume_refused") == (None if kept else "unknown")
        visitor.leave()


async def test_a_message_that_cannot_be_taken_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, the agent would send it again, and the server would have no more memory for it than before."""

    def full(*_: Any) -> None:
        raise MemoryError

    async with serving(**SMALL) as server:
        agent, said, visitor, stream = await with_stream(server)
        monkeypatch.setattr(Session, "receive", full)
        agent.send(frames.frame(frames.DATA, stream, b"two"))
        await visitor.broken()
        monkeypatch.undo()
        last = await dial(server)
        assert (await last.resume(2, said, agent.received))["resume_refused"] == "unknown"


@pytest.mark.parametrize(("code", "again"), [(1000, "unknown"), (1001, "unknown"), (1011, None)])
async def test_a_session_whose_agent_leaves_before_it_knows_of_it_is_not_kept(code: int, again: str | None) -> None:
    async with serving(**SMALL) as server:
        agent = await dial(server, mute=True)
        said = await agent.hello(1)
        agent.pipe.close(code, "")
        await agent.ended()
        last = await dial(server)
        assert (await last.resume(2, said, agent.received)).get("resume_refused") == again


@pytest.mark.parametrize("code", [1000, 1001])
async def test_goaway_and_a_close_in_order_end_the_wait_at_once(code: int) -> None:
    async with serving(**SMALL) as server:
        agent, said, visitor, _ = await with_stream(server)
        agent.say(type="goaway", reason="drain")
        agent.pipe.close(code, "")
        await visitor.broken()
        last = await dial(server)
        assert (await last.resume(2, said, agent.received))["resume_refused"] == "unknown"


async def test_goaway_and_a_cut_keep_the_session() -> None:
    async with serving(**SMALL) as server:
        agent, said, visitor, stream = await with_stream(server)
        agent.say(type="goaway", reason="drain")
        agent.cut()
        await lost(server)
        last = await dial(server)
        assert (await last.resume(2, said, agent.received))["resumed"] is True
        await still_serves(last, visitor, stream)
        visitor.leave()


async def test_an_open_that_crosses_goaway_waits_for_the_next_connection() -> None:
    async with serving(**SMALL) as server:
        agent, said = await online(server)
        visitor = await visit(server)
        await agent.opened()
        opened = next(frame for message in agent.counted for frame in frames.split(message))
        request_id = json.loads(bytes(opened[2]))["request_id"]
        agent.say(type="goaway", reason="drain")
        agent.say(type="stream_cancel", request_id=request_id, reason="refused")
        agent.pipe.close(1000, "")
        await agent.ended()
        fresh = await dial(server)
        assert (await fresh.hello(1, instance="next"))["session_id"] != said["session_id"]
        stream = await fresh.opened()
        fresh.send(fresh.head(stream, ("Content-Length", "2")), frames.frame(frames.DATA | frames.FIN, stream, b"ok"))
        assert b" 200 " in await visitor.head()
        visitor.leave()


async def test_a_second_hello_ends_the_session() -> None:
    async with serving(**SMALL) as server:
        agent, _, visitor, _ = await with_stream(server)
        agent.say(type="hello", instance="hand", dial=2)
        assert await agent.refused() == ("protocol_error", 1002)
        await visitor.broken()


async def test_a_session_that_waited_in_vain_is_expired() -> None:
    async with serving(resume={"grace": "100ms"}) as server:
        agent, said, visitor, _ = await with_stream(server)
        agent.cut()
        await visitor.broken()
        last = await dial(server)
        assert (await last.resume(2, said, agent.received))["resume_refused"] == "expired"


async def test_without_grace_nothing_is_counted_kept_or_resumed() -> None:
    async with serving(resume={"grace": 0}) as server:
        agent, said, visitor, stream = await with_stream(server)
        assert said["resume"]["grace"] == 0
        agent.send(frames.frame(frames.DATA, stream, b"x" * 20000))
        second = await dial(server)
        again = await second.resume(2, said, 0)  # while the first still looks alive
        assert (again["resumed"], again["resume_refused"]) == (False, "unknown")
        await visitor.broken()
        assert agent.acks == []


async def test_credit_is_one_window_after_a_hole() -> None:
    async with serving(**SMALL, limits={"stream_window": "64KiB", "stream_window_max": "64KiB"}) as server:
        agent, said, visitor, stream = await with_stream(server)
        agent.send(frames.frame(frames.DATA, stream, b"x" * 40000))  # its WINDOW may go out before the cut or not
        await visitor.reader.readexactly(40000)
        agent.cut()
        await lost(server)
        second = await dial(server)
        again = await second.resume(2, said, agent.received)
        second.send(frames.frame(frames.DATA, stream, b"y" * 25000))
        await second.until(lambda it: credit_of(agent, stream) + credit_of(second, stream) >= 40004)
        sent = 4 + 40000 + 25000
        assert credit_of(agent, stream) + credit_of(second, stream) <= sent
        assert again["resumed"] is True
        visitor.leave()


# -- outages are told ----------------------------------------------------------------------------------


async def test_the_server_counts_its_outages() -> None:
    async with serving(**SMALL) as server:
        agent, said, visitor, _ = await with_stream(server)
        agent.cut()
        await lost(server)
        second = await dial(server)
        await second.resume(2, said, 0)
        tunnel = server.registry.find("t")
        assert tunnel is not None
        outages = tunnel.outages
        assert (outages.count, outages.since, outages.streams_lost) == (1, None, 0)
        assert outages.last is not None
        assert outages.last.resumed
        assert outages.last.replayed_bytes == outages.replayed_bytes > 0
        second.say(type="nonsense that is ignored")
        second.send(b"")
        await visitor.broken()
        assert outages.streams_lost == 1
        assert outages.count == 1


async def test_a_stream_that_is_lost_twice_before_it_went_on_is_one() -> None:
    async with serving(**SMALL) as server:
        first, _ = await online(server)
        visitor = await visit(server, headers="Accept: text/event-stream\r\n")
        stream = await first.opened()
        first.send(first.head(stream, EVENTS), frames.frame(frames.DATA, stream, b"id: 1\ndata: 1\n\n"))
        await visitor.head()
        await visitor.reader.readuntil(b"data: 1")
        second = await dial(server)
        await second.hello(2)
        await second.opened()
        tunnel = server.registry.find("t")
        assert tunnel is not None
        assert tunnel.outages.streams_lost == 0
        assert isinstance(tunnel.connection, TunnelConnection)
        tunnel.connection.revoke()
        await visitor.broken()
        assert tunnel.outages.streams_lost == 1


def credit_of(agent: HandAgent, stream: int) -> int:
    found = [frame for message in agent.counted for frame in frames.split(message)]
    return sum(frames.parse_window(bytes(data)) for kind, one, data in found if one == stream and kind == frames.WINDOW)


async def lost(server: ServerDaemon) -> None:
    """The server knows that the connection is gone."""
    tunnel = server.registry.find("t")
    assert tunnel is not None
    async with asyncio.timeout(5):
        while tunnel.online:
            await asyncio.sleep(0)


# -- helpers -------------------------------------------------------------------------------------------


def test_the_errors_are_those_of_the_visitors_table() -> None:
    assert VisitorError("name_taken").status == 409
