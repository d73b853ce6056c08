"""Session resume, rule by rule: a real server, and agents made by hand that say what no agent of ours would."""

from __future__ import annotations

import asyncio
import json
import struct
from time import monotonic
from typing import Any

import pytest

from tests.support.handmade import HandAgent, Visitor, dial, serving, visit
from tunneld.errors import VisitorError
from tunneld.protocol import frames
from tunneld.protocol.session import Session
from tunneld.server import auth
from tunneld.server.daemon import ServerDaemon
from tunneld.server.principals import Principal

SMALL = {"resume": {"grace": "30s", "buffer": "64KiB"}}
EVENTS = ("Content-Type", "text/event-stream")


async def online(server: ServerDaemon, number: int = 1) -> tuple[HandAgent, dict[str, Any]]:
    agent = await dial(server)
    return agent, await agent.hello(number)


async def with_stream(server: ServerDaemon) -> tuple[HandAgent, dict[str, Any], Visitor, int]:
    """An agent with one stream whose answer has begun."""
    agent, said = await online(server)
    visitor = await visit(server)
    stream = await agent.opened()
    agent.send(agent.head(stream, ("Content-Type", "text/plain")), frames.frame(frames.DATA, stream, b"one "))
    await visitor.head()
    return agent, said, visitor, stream


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
        await _lost(server)
        visitor.leave()
        while server.ingress.exchanges:
            await asyncio.sleep(0)
        second = await dial(server)
        await second.resume(2, said, first.received)
        assert (await second.text("stream_cancel"))["reason"] == "visitor"
        assert second.received == 1


# -- hellos that cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"received": -1},
        {"received": True},
        {"received": "1"},
        {"received": 1.5},
        {"received": None},
        {"resume_token": None},
        {"session_id": None},
        {"session_id": 7},
        {"dial": -1},
        {"dial": 2**63},
        {"dial": 1.5},
        {"instance": ""},
        {"instance": "x" * 129},
        {"wishes": {"resume": {"grace": -1, "buffer": 1}}},
        {"wishes": {"resume": {"grace": 1e300, "buffer": 1}}},
    ],
)
async def test_a_hello_that_cannot_be_harms_only_its_own_connection(more: dict[str, Any]) -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        bad = await dial(server)
        hello = {
            "type": "hello",
            "instance": "hand",
            "dial": 2,
            "session_id": said["session_id"],
            "resume_token": said["resume_token"],
            "received": 1,
        }
        bad.say(**{**hello, **more})
        assert await bad.refused() == ("bad_hello", 1008)
        await _still_serves(first, visitor, stream)
        last = await dial(server)
        assert (await last.resume(2, said, first.received))["resumed"] is True
        visitor.leave()


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b'{"type":"hello"}', b'{"type":"ping","timestamp":"","seq":1}', b"1" * 9000],
)
async def test_what_is_no_hello_harms_only_its_own_connection(payload: bytes) -> None:
    async with serving(**SMALL) as server:
        first, _, visitor, stream = await with_stream(server)
        bad = await dial(server)
        bad.pipe.send(1, [payload])
        assert await bad.refused() == ("bad_hello", 1008)
        await _still_serves(first, visitor, stream)
        visitor.leave()


async def test_a_frame_before_hello_harms_only_its_own_connection() -> None:
    async with serving(**SMALL) as server:
        first, _, visitor, stream = await with_stream(server)
        bad = await dial(server)
        bad.send(frames.frame(frames.DATA, stream, b"forged"))
        assert await bad.refused() == ("bad_hello", 1008)
        await _still_serves(first, visitor, stream)
        visitor.leave()


async def test_no_hello_in_time() -> None:
    async with serving(**SMALL, limits={"hello_timeout": "100ms"}) as server:
        mute = await dial(server)
        assert await mute.refused() == ("hello_timeout", 1008)


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_dial_that_is_not_the_newest_is_stale_across_resumes(number: int) -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        first.cut()
        second = await dial(server)
        again = await second.resume(2, said, first.received)
        late = await dial(server)  # what a relay held back, with the token that is the newest even
        late.say(
            type="hello",
            instance="hand",
            dial=number,
            session_id=again["session_id"],
            resume_token=again["resume_token"],
            received=0,
        )
        assert await late.refused() == ("stale_hello", 1008)
        await _still_serves(second, visitor, stream)
        visitor.leave()


# -- tokens ----------------------------------------------------------------------------------------------


async def test_an_honest_retry_after_two_lost_answers_succeeds() -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        lost = first
        for number in (2, 3, 4):
            lost.cut()
            lost = await dial(server, mute=True)  # its `connected` counts as lost: the next hello has the old token
            again = await lost.resume(number, said, first.received)
            assert again["resumed"] is True
        await _still_serves(lost, visitor, stream)
        visitor.leave()


async def test_what_was_never_presented_and_is_not_the_newest_is_worth_nothing() -> None:
    async with serving(**SMALL) as server:
        first, said = await online(server)
        second = await dial(server, mute=True)
        skipped = await second.resume(2, said, 0)
        third = await dial(server, mute=True)
        assert (await third.resume(3, said, 0))["resumed"] is True
        fourth = await dial(server)
        again = await fourth.resume(4, skipped, 0)
        assert (again["resumed"], again["resume_refused"]) == (False, "token")
        assert await first.ended() == (4001, "replaced")


async def test_the_agents_first_message_leaves_only_the_newest_token() -> None:
    async with serving(**SMALL) as server:
        _, said = await online(server)
        second = await dial(server)
        newest = await second.resume(2, said, 0)
        second.say(type="ping", timestamp="2026-01-01T00:00:00Z", seq=1)
        await second.text("pong")
        third = await dial(server)
        assert (await third.resume(3, newest, 0))["resumed"] is True
        third.say(type="ping", timestamp="2026-01-01T00:00:00Z", seq=1)
        await third.text("pong")
        fourth = await dial(server)
        again = await fourth.resume(4, newest, 0)
        assert (again["resumed"], again["resume_refused"]) == (False, "token")


@pytest.mark.parametrize("token", ["", "x", "é" * 20, "\ud800", "0" * 43])
async def test_a_forged_token_opens_nothing(token: str) -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, _ = await with_stream(server)
        thief = await dial(server)
        if token == "\ud800":
            thief.pipe.send(
                1, [json.dumps({"type": "hello", "instance": "i", "dial": 1, "resume_token": token}).encode()]
            )
            assert await thief.refused() == ("bad_hello", 1008)
        else:
            again = await thief.resume(1, said, 1, instance="thief", resume_token=token)
            assert (again["resumed"], again["resume_refused"]) == (False, "token")
            assert again["session_id"] != said["session_id"]
            assert again["received"] == 0
            await visitor.broken()  # the newest connection with the right credential wins: a fresh session
            assert await first.ended() == (4001, "replaced")
        visitor.leave()


async def test_a_stolen_token_is_worth_nothing_to_another_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(**SMALL) as server:
        monkeypatch.setattr(auth, "OPEN", Principal("mallory", "mallory"))
        thief = await dial(server)  # the name was free when it dialled
        monkeypatch.setattr(auth, "OPEN", Principal("alice", "alice"))
        first, said, visitor, stream = await with_stream(server)
        thief.say(
            type="hello",
            instance="hand",
            dial=2**62,
            session_id=said["session_id"],
            resume_token=said["resume_token"],
            received=1,
        )
        assert await thief.refused() == ("overloaded", 1013)
        await _still_serves(first, visitor, stream)
        monkeypatch.setattr(auth, "OPEN", Principal("mallory", "mallory"))
        with pytest.raises(Exception, match=r"409") as refused:
            await dial(server)
        assert getattr(refused.value, "code", None) == "name_taken"
        monkeypatch.setattr(auth, "OPEN", Principal("alice", "alice"))
        last = await dial(server)
        assert (await last.resume(2, said, first.received))["resumed"] is True
        visitor.leave()


async def test_a_swapped_name_is_refused() -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, stream = await with_stream(server)
        other = await dial(server, name="u")
        again = await other.resume(2, said, first.received)
        assert (again["resumed"], again["resume_refused"]) == (False, "unknown")
        await _still_serves(first, visitor, stream)
        visitor.leave()


# -- counters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("received", "refused"), [(0, "counters"), (2, "counters"), (2**64, "counters"), (1, None)])
async def test_received_lies_between_what_was_acknowledged_and_what_was_sent(
    received: int, refused: str | None
) -> None:
    async with serving(**SMALL) as server:
        first, said, visitor, _ = await with_stream(server)
        first.send(frames.ack(1))
        first.say(type="ping", timestamp="2026-01-01T00:00:00Z", seq=1)
        await first.text("pong")
        second = await dial(server)
        again = await second.resume(2, said, received)
        assert again.get("resume_refused") == refused
        visitor.leave()


@pytest.mark.parametrize("count", [2, 2**64 - 1])
async def test_an_ack_of_what_was_never_sent_ends_the_session(count: int) -> None:
    async with serving(**SMALL) as server:
        agent, said, visitor, _ = await with_stream(server)
        agent.send(frames.ack(count))
        assert await agent.refused() == ("protocol_error", 1002)
        await visitor.broken()
        last = await dial(server)
        assert (await last.resume(2, said, agent.received))["resume_refused"] == "unknown"


async def test_an_ack_that_goes_backward_ends_the_session() -> None:
    async with serving(**SMALL) as server:
        agent, _, visitor, _ = await with_stream(server)
        agent.send(frames.ack(1))
        agent.send(frames.ack(0))
        assert await agent.refused() == ("protocol_error", 1002)
        await visitor.broken()


async def test_an_ack_must_be_alone_in_its_message() -> None:
    async with serving(**SMALL) as server:
        agent, _, visitor, stream = await with_stream(server)
        agent.send(frames.ack(1), frames.frame(frames.DATA, stream, b"x"))
        assert await agent.refused() == ("protocol_error", 1002)
        await visitor.broken()


async def test_a_peer_that_never_acknowledges_holds_back_data_and_nothing_grows() -> None:
    async with serving(**SMALL, limits={"stream_window": "1MiB", "stream_window_max": "1MiB"}) as server:
        agent, said = await online(server)
        size = 8 << 20
        visitor = await visit(server, method="POST", headers=f"Content-Length: {size}\r\n")
        stream = await agent.opened()

        async def pour() -> None:
            for _ in range(size // 65536):
                visitor.writer.write(b"u" * 65536)
                await visitor.writer.drain()

        pouring = asyncio.get_running_loop().create_task(pour())
        await agent.until(lambda it: len(it.bytes_of(stream)) >= 64 << 10)
        await _quiet(agent)
        most = (64 << 10) + (64 << 10)  # the buffer, and the message that filled it
        assert len(agent.bytes_of(stream)) <= most
        assert not pouring.done()  # pushed back all the way
        quick = await visit(server, "/quick")  # control never waits behind it
        await agent.opened(2)
        quick.leave()
        assert (await agent.text("stream_cancel"))["reason"] == "visitor"
        before = len(agent.bytes_of(stream))
        agent.send(frames.ack(agent.received))
        await agent.until(lambda it: len(it.bytes_of(stream)) > before)
        agent.cut()  # what is held back is what a resume sends again
        second = await dial(server)
        assert (await second.resume(2, said, agent.received))["resumed"] is True
        pouring.cancel()
        await asyncio.wait([pouring])
        visitor.leave()


# -- acknowledging ---------------------------------------------------------------------------------------


async def _ack_of(agent: HandAgent, count: int) -> float:
    """Seconds until the ACK of `count` came."""
    began = monotonic()
    await agent.until(lambda it: count in it.acks)
    return monotonic() - began


async def test_an_ack_comes_within_250_ms_of_the_oldest_message() -> None:
    async with serving(resume={"grace": "30s", "buffer": "4MiB"}) as server:
        agent, _, visitor, stream = await with_stream(server)
        assert 0.0 < await _ack_of(agent, 1) < 0.4
        agent.send(frames.frame(frames.DATA, stream, b"x"))
        assert 0.15 < await _ack_of(agent, 2) < 0.4
        visitor.leave()


async def test_an_ack_comes_at_once_after_a_quarter_of_the_buffer_and_then_in_time_again() -> None:
    async with serving(**SMALL) as server:  # a quarter of 64 KiB
        agent, _, visitor, stream = await with_stream(server)
        await _ack_of(agent, 1)
        await asyncio.sleep(0)
        agent.send(frames.frame(frames.DATA, stream, b"x" * 1000))
        await asyncio.sleep(0.1)  # a part of the delay: the timer of this one runs
        agent.send(frames.frame(frames.DATA, stream, b"x" * 17000))
        assert await _ack_of(agent, 3) < 0.1
        agent.send(frames.frame(frames.DATA, stream, b"x"))  # the old timer must not swallow this one's
        assert await _ack_of(agent, 4) < 0.4
        visitor.leave()


async def test_a_cancel_is_acknowledged_in_time_too() -> None:
    async with serving(**SMALL) as server:
        agent, _, visitor, _ = await with_stream(server)
        await _ack_of(agent, 1)
        opened = next(frame for message in agent.counted for frame in frames.split(message))
        request_id = json.loads(bytes(opened[2]))["request_id"]
        agent.say(type="stream_cancel", request_id=request_id, reason="service")
        assert await _ack_of(agent, 2) < 0.4
        await visitor.broken()


# -- takeover --------------------------------------------------------------------------------------------


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


# -- what ends a session and what keeps it ---------------------------------------------------------------


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
        assert await agent.ended() == (1009, "too_large")
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
        await _lost(server)
        last = await dial(server)
        assert (await last.resume(2, said, agent.received))["resumed"] is True
        await _still_serves(last, visitor, stream)
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
        await _lost(server)
        second = await dial(server)
        again = await second.resume(2, said, agent.received)
        second.send(frames.frame(frames.DATA, stream, b"y" * 25000))
        await second.until(lambda it: _credit(agent, stream) + _credit(second, stream) >= 40004)
        sent = 4 + 40000 + 25000
        assert _credit(agent, stream) + _credit(second, stream) <= sent
        assert again["resumed"] is True
        visitor.leave()


# -- outages are told ------------------------------------------------------------------------------------


async def test_the_server_counts_its_outages() -> None:
    async with serving(**SMALL) as server:
        agent, said, visitor, _ = await with_stream(server)
        agent.cut()
        await _lost(server)
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


# -- helpers ---------------------------------------------------------------------------------------------


def _credit(agent: HandAgent, stream: int) -> int:
    found = [frame for message in agent.counted for frame in frames.split(message)]
    return sum(frames.parse_window(bytes(data)) for kind, one, data in found if one == stream and kind == frames.WINDOW)


async def _lost(server: ServerDaemon) -> None:
    """The server knows that the connection is gone."""
    tunnel = server.registry.find("t")
    assert tunnel is not None
    async with asyncio.timeout(5):
        while tunnel.online:
            await asyncio.sleep(0)


async def _quiet(agent: HandAgent) -> None:
    """Nothing counted comes for a while."""
    before = -1
    while before != agent.received:
        before = agent.received
        await asyncio.sleep(0.3)


async def _still_serves(agent: HandAgent, visitor: Visitor, stream: int) -> None:
    """The stream goes on, over this connection."""
    agent.send(frames.frame(frames.DATA, stream, b"still here"))
    async with asyncio.timeout(5):
        await visitor.reader.readuntil(b"still here")


def test_the_errors_are_those_of_the_visitors_table() -> None:
    assert VisitorError("name_taken").status == 409
