"""What both sides count of a session: received, acknowledged, held back; by agents made by hand."""

from __future__ import annotations

import asyncio
import json
from time import monotonic

import pytest

from tests.support.handmade import SMALL, HandAgent, dial, online, serving, visit, with_stream
from tunneld.protocol import frames

# -- counters ------------------------------------------------------------------------------------------


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
        await quiet(agent)
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


async def _ack_of(agent: HandAgent, count: int) -> float:
    """Seconds until the ACK of `count` came."""
    began = monotonic()
    await agent.until(lambda it: count in it.acks)
    return monotonic() - began


# -- acknowledging -------------------------------------------------------------------------------------


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


async def quiet(agent: HandAgent) -> None:
    """Nothing counted comes for a while."""
    before = -1
    while before != agent.received:
        before = agent.received
        await asyncio.sleep(0.3)
