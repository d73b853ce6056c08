"""A visitor's WebSocket from its first frame to its last: flow, ends of every kind, cuts, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Coroutine
from time import monotonic
from typing import Any

import pytest

from tests.support.loops import on_both_loops
from tests.support.running import book, descriptors, port_of, relay, running_agent, running_server, settled, url_of
from tests.support.socketed import World, closed, echo, through
from tests.support.ws_raw import (
    BINARY,
    CLOSE,
    CONT,
    FIN,
    PING,
    PONG,
    TEXT,
    RawSocket,
    close_payload,
    frame,
    raw_client,
    raw_service,
    told_closes,
)


class Held:
    """A service's end of one WebSocket, for the test to hold."""

    def __init__(self) -> None:
        self._come: asyncio.Queue[RawSocket] = asyncio.Queue()
        self._over = asyncio.Event()

    async def script(self, socket: RawSocket) -> None:
        self._come.put_nowait(socket)
        await self._over.wait()

    async def next(self) -> RawSocket:
        async with asyncio.timeout(10):
            return await self._come.get()

    def release(self) -> None:
        self._over.set()


@contextlib.asynccontextmanager
async def held(**settings: Any) -> Any:
    """(tunnel, service's ends) before a service that does what the test does."""
    ends = Held()
    async with raw_service(ends.script) as service, through(service, **settings) as world:
        try:
            yield world, ends
        finally:
            ends.release()


async def pair(world: World, ends: Held) -> tuple[RawSocket, RawSocket]:
    """A WebSocket: (the visitor's end, the service's)."""
    visitor = await raw_client(world.url)
    assert visitor.head.startswith("HTTP/1.1 101 ")
    return visitor, await ends.next()


async def ended(socket: RawSocket) -> list[int | None]:
    """The codes of the close frames that come until the connection is over."""
    closes = told_closes(await socket.until_end())
    socket.close()
    return closes


# -- what passes ---------------------------------------------------------------------------------------------


@on_both_loops
async def test_fragments_with_control_frames_between_pass_frame_by_frame_both_ways() -> None:
    sent = [
        (TEXT, b"a"),
        (FIN | PING, b"between"),
        (CONT, b""),
        (FIN | PONG, b""),
        (FIN | CONT, "ü".encode()[:1]),
        (FIN | BINARY, b"x" * 65_535),
        (FIN | CLOSE, close_payload(4321, "said")),
    ]
    async with held() as (world, ends):
        visitor, service = await pair(world, ends)
        for source, target in ((visitor, service), (service, visitor)):
            for first, payload in sent:
                source.send(first, payload)
            for expected in sent:
                assert await target.receive() == expected
        assert await ended(visitor) == [4321]
        assert await ended(service) == [4321]
        await world.quiet()
        assert world.tunnel.proxy.totals.ended == {"done": 1}


@on_both_loops
async def test_sixteen_mebibytes_both_ways_in_pieces_that_nobody_put_together() -> None:
    size = 16 << 20
    async with held(limits={"stream_window": "64KiB", "stream_window_max": "64KiB"}) as (world, ends):
        visitor, service = await pair(world, ends)
        block = bytes(range(256)) * (size // 256)
        for source, target in ((visitor, service), (service, visitor)):
            task = _task(_write(source, frame(FIN | BINARY, block, mask=source.client)))
            got = bytearray()
            largest, pieces, first = 0, 0, BINARY
            while not first & FIN:
                found = await target.receive()
                assert found is not None
                first, payload = found
                assert first & 0x0F == (CONT if pieces else BINARY)
                pieces += 1
                largest = max(largest, len(payload))
                got += payload
            await task
            assert bytes(got) == block
            assert largest <= 65_535
        await _close_both(visitor, service)


def _task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Work beside the test, which waits for it or cancels it."""
    return asyncio.get_running_loop().create_task(work)


async def _write(socket: RawSocket, data: bytes) -> None:
    socket.raw(data)
    await socket.writer.drain()


async def test_bytes_state_and_kind_are_told_and_logged() -> None:
    with book() as lines:
        async with held() as (world, ends):
            visitor, service = await pair(world, ends)
            visit, exchange = world.only()
            assert (visit.kind, visit.state, visit.status) == ("websocket", "streaming", 101)
            visitor.send(FIN | TEXT, b"four")
            visitor.send(FIN | PING, b"12")
            service.send(FIN | TEXT, b"x" * 1000)
            await service.until(PING)
            await visitor.until(TEXT)
            shown = exchange.fields(monotonic())
            assert (shown["kind"], shown["state"]) == ("websocket", "streaming")
            assert (shown["bytes_in"], shown["bytes_out"], visit.bytes_in, visit.bytes_out) == (6, 1000, 6, 1000)
            assert shown["idle_s"] < 5
            request_id = visit.request_id
            await _close_both(visitor, service)
            await world.quiet()
        found = lines.find(f"🧹 Cleaned up stream: {request_id}")
        assert {line.logger for line in found} == {"tunneld.ingress", "tunneld.agent"}
        for line in found:
            assert (line.fields["kind"], line.fields["reason"]) == ("websocket", "done")
            assert (line.fields["bytes_in"], line.fields["bytes_out"]) == (12, 1006)


async def _close_both(visitor: RawSocket, service: RawSocket, code: int = 1000) -> None:
    visitor.send(FIN | CLOSE, close_payload(code, "bye!"))
    assert (await service.until(CLOSE))[1] == close_payload(code, "bye!")
    service.send(FIN | CLOSE, close_payload(code, "bye!"))
    service.close()
    assert told_closes(await visitor.until_end()) == [code]
    visitor.close()


# -- ends ----------------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("leaving", ["visitor", "service"])
@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_connection_that_ends_without_a_close_frame_ends_the_other_so(leaving: str, how: str) -> None:
    """Within milliseconds, behind all that was said before; with the same reason at both ends."""
    async with held() as (world, ends):
        visitor, service = await pair(world, ends)
        leaver, other = (visitor, service) if leaving == "visitor" else (service, visitor)
        leaver.send(FIN | TEXT, b"last words")
        if how == "reset":
            await other.until(TEXT)
        started = monotonic()
        if how == "eof":
            leaver.close()
        else:
            leaver.abort()
        assert await ended(other) == []
        assert monotonic() - started < 1
        assert [payload for _, payload in other.got] == [b"last words"]
        await world.quiet()
        assert world.tunnel.proxy.totals.ended == {leaving: 1}


@on_both_loops
async def test_half_closed_the_other_direction_goes_on() -> None:
    """Both by its close frame and by the connection's own half."""
    async with held() as (world, ends):
        for half in (False, True):
            visitor, service = await pair(world, ends)
            visitor.send(FIN | CLOSE, close_payload(1000, "I am done"))
            if half:
                visitor.half_close()
            await service.until(CLOSE)
            for number in range(50):
                service.send(FIN | TEXT, b"%d" % number)
            service.send(FIN | CLOSE, close_payload(1000, "me too"))
            got = await visitor.until_end()
            assert [payload for _, payload in got] == [
                *(b"%d" % number for number in range(50)),
                close_payload(1000, "me too"),
            ]
            for end in (visitor, service):
                end.close()
            await world.quiet()
        assert world.tunnel.proxy.totals.ended == {"done": 2}


async def test_a_close_that_is_never_answered() -> None:
    """The one who closed ends its connection by its own time: the other hears of the close, then of the end."""
    async with held() as (world, ends):
        visitor, service = await pair(world, ends)
        service.send(FIN | CLOSE, close_payload(4000, "for good"))
        await visitor.until(CLOSE)
        service.close()
        assert await ended(visitor) == [4000]
        await world.quiet()
        visitor, service = await pair(world, ends)
        visitor.send(FIN | CLOSE, close_payload(4001, "gone"))
        visitor.abort()
        assert await ended(service) == [4001]
        await world.quiet()


@on_both_loops
@pytest.mark.parametrize(
    ("bad", "from_service"),
    [
        (frame(FIN | 0x40 | TEXT, b"x", mask=False), True),
        (frame(FIN | TEXT, b"x", mask=True), True),
        (frame(FIN | 3, b"", mask=False), True),
        (frame(PING, b"", mask=False), True),
        (frame(FIN | CONT, b"", mask=False), True),
        (frame(FIN | CLOSE, b"x" * 126, mask=False), True),
        (frame(FIN | TEXT, b"x", mask=False), False),
    ],
    ids=["reserved bit", "masked", "unknown", "fragmented ping", "stray", "long close", "unmasked"],  # a mask is random
)
async def test_a_peer_that_breaks_the_rules_is_told_1002_and_the_other_sees_its_end(
    bad: bytes, from_service: bool
) -> None:
    async with held() as (world, ends):
        visitor, service = await pair(world, ends)
        breaker, other = (service, visitor) if from_service else (visitor, service)
        breaker.send(FIN | TEXT, b"good")
        breaker.raw(bad)
        breaker.send(FIN | TEXT, b"not read any more")
        assert await ended(breaker) == [1002]
        assert await ended(other) == []
        assert [payload for _, payload in other.got] == [b"good"]
        await world.quiet()
        assert world.tunnel.proxy.totals.ended == {"service" if from_service else "visitor": 1}


@on_both_loops
@pytest.mark.parametrize("by", ["agent", "server"])
async def test_an_operators_cancel_closes_1001_at_both_ends(by: str) -> None:
    async with held() as (world, ends):
        visitor, service = await pair(world, ends)
        visit, exchange = world.only()
        visitor.send(TEXT, b"half a message")
        await service.until(TEXT)
        if by == "agent":
            assert world.agent.cancel(exchange.request_id)
        else:
            visit.cancel("operator")
        for end in (visitor, service):
            assert (await end.until(CLOSE))[1] == close_payload(1001, "cancelled by the operator")
            end.send(FIN | CLOSE, close_payload(1001))
            end.close()
        await world.quiet()
        assert world.tunnel.proxy.totals.ended == {"operator": 1}


async def test_peers_that_do_not_answer_a_cancel_are_cut_off_within_the_close_timeout() -> None:
    async with held() as (world, ends):
        visitor, service = await pair(world, ends)
        started = monotonic()
        assert world.agent.cancel(world.only()[1].request_id)
        assert not world.agent.exchanges()
        for end in (visitor, service):
            assert await ended(end) == [1001]
        assert 0.9 < monotonic() - started < 4


async def test_a_server_that_stops_tells_visitors_1012_and_the_service_1001() -> None:
    ends = Held()
    async with raw_service(ends.script) as service_url, through(service_url, server={"drain_timeout": 5}) as world:
        visitor, service = await pair(world, ends)

        async def answer(end: RawSocket) -> bytes:
            payload = (await end.until(CLOSE))[1]
            end.send(FIN | CLOSE, payload[:2])
            end.close()
            return payload

        started = monotonic()
        answers = asyncio.gather(answer(visitor), answer(service))
        await world.server.drain()  # nothing else is open: it does not wait for the drain's time
        assert await answers == [
            close_payload(1012, "the tunnel is restarting"),
            close_payload(1001, "the tunnel is closing"),
        ]
        assert monotonic() - started < 3
        ends.release()


async def test_an_agent_that_stops_tells_visitors_1012() -> None:
    ends = Held()
    async with (
        raw_service(ends.script) as service_url,
        running_server() as server,
        running_agent(url_of(server), service_url) as (agent, tunnel),
    ):
        await settled(lambda: tunnel.state == "online")
        world = World(server, agent, tunnel)
        visitor, service = await pair(world, ends)
        started = monotonic()
        await agent.drain()  # WebSockets hold nothing up
        assert monotonic() - started < 2
        closing = _task(agent.stop())
        assert (await visitor.until(CLOSE))[1][:2] == b"\x03\xf4"
        assert (await service.until(CLOSE))[1][:2] == b"\x03\xe9"
        for end in (visitor, service):
            end.send(FIN | CLOSE, close_payload(1000))
            end.close()
        await closing
        ends.release()


# -- flow ----------------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("stalled", ["visitor", "service"])
async def test_a_reader_that_stalls_holds_its_window_and_nobody_elses(stalled: str) -> None:
    async with held(limits={"stream_window": "64KiB", "stream_window_max": "64KiB"}) as (world, ends):
        visitor, service = await pair(world, ends)
        source = service if stalled == "visitor" else visitor
        for end in (visitor, service):
            end.writer.transport.set_write_buffer_limits(1)
        flood = _task(_flood(source))
        visit, exchange = world.only()
        near = exchange if stalled == "visitor" else visit  # the end at which the flood comes in
        passed = -1
        while passed != (passed := exchange.bytes_in + exchange.bytes_out):  # until TCP pushes back, too
            await asyncio.sleep(0.2)
        assert near.stream.stuck
        assert near.stream.pending < 256 * 1024 + 64 * 1024
        again = await raw_client(world.url)
        other = await ends.next()
        for number in range(100):
            again.send(FIN | TEXT, b"%d" % number)
            assert await other.receive() == (FIN | TEXT, b"%d" % number)
        await _close_both(again, other)
        assert exchange.bytes_in + exchange.bytes_out == passed
        started = monotonic()
        flood.cancel()
        source.abort()  # who leaves while nobody reads is noticed all the same
        reader = visitor if stalled == "visitor" else service
        await settled(lambda: not world.agent.exchanges() and not world.server.ingress.exchanges)
        assert monotonic() - started < 3
        await reader.until_end()
        reader.close()


async def _flood(source: RawSocket) -> None:
    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        while True:
            for size in (0, 1, 100, 5000, 70_000):
                source.send(FIN | BINARY, b"f" * size)
            await source.writer.drain()


@pytest.mark.parametrize("stalled", ["visitor", "service"])
async def test_a_reader_that_takes_nothing_for_the_stall_limit_is_cut_off(
    caplog: pytest.LogCaptureFixture, stalled: str
) -> None:
    limits = {"stall": "0.6s", "stream_window": "8MiB", "stream_window_max": "8MiB"}
    async with held(limits=limits, server={"limits": limits}) as (world, ends):
        visitor, service = await pair(world, ends)
        source, reader = (service, visitor) if stalled == "visitor" else (visitor, service)
        flood = _task(_flood(source))
        await settled(lambda: not world.agent.exchanges() and not world.server.ingress.exchanges)
        assert world.tunnel.proxy.totals.ended == {"limit": 1}
        assert any(f"is over limits.stall: its {stalled} takes nothing" in line for line in caplog.messages)
        flood.cancel()
        for end in (source, reader):
            await end.until_end()
            end.close()


async def test_small_frames_cost_credit_too_and_none_is_lost() -> None:
    """Ten thousand frames without a byte in them: bounded while nobody reads, all there when somebody does."""
    count = 10_000
    async with held(limits={"stream_window": "16KiB", "stream_window_max": "16KiB"}) as (world, ends):
        visitor, service = await pair(world, ends)
        writing = _task(_write(visitor, frame(FIN | TEXT, b"", mask=True) * count))
        visit, _ = world.only()
        most = 0
        for _ in range(count):
            assert await service.receive() == (FIN | TEXT, b"")
            most = max(most, visit.stream.pending)
        await writing
        assert most <= 64 * 1024 + 65
        await _close_both(visitor, service)


# -- cuts ----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_cut_between_agent_and_server_is_not_seen_by_either_peer() -> None:
    count = 300
    async with raw_service(echo) as service, _relayed(service) as (world, wire):
        visitor = await raw_client(world.url)
        sending = _task(_paced(visitor, count))
        for number in range(count):
            assert await visitor.receive() == (FIN | TEXT, b"%d" % number + b"." * 500)
            if number % 100 == 50:
                wire.cut()
        await sending
        assert told_closes(await closed(visitor)) == [1000]


async def _paced(socket: RawSocket, count: int) -> None:
    for number in range(count):
        socket.send(FIN | TEXT, b"%d" % number + b"." * 500)
        if number % 10 == 0:
            await socket.writer.drain()
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def _relayed(service: str) -> Any:
    base = {"heartbeat": {"interval": "1s", "timeout": "1s"}, "resume": {"grace": "20s"}}
    async with (
        running_server(resume={"grace": "20s"}) as server,
        relay(port_of(server)) as wire,
        running_agent(f"ws://127.0.0.1:{wire.port}", service, **base) as (agent, tunnel),
    ):
        await settled(lambda: tunnel.state == "online")
        world = World(server, agent, tunnel)
        yield world, wire
        await world.quiet()


async def test_what_was_said_and_closed_while_the_tunnel_was_down_arrives_behind_it() -> None:
    with book() as lines:
        ends = Held()
        async with raw_service(ends.script) as service_url, _relayed(service_url) as (world, wire):
            for how in ("close", "eof"):
                visitor, service = await pair(world, ends)
                mark = lines.mark()
                wire.blackhole()
                visitor.send(FIN | TEXT, b"said in the dark")
                if how == "close":
                    visitor.send(FIN | CLOSE, close_payload(4400, "and closed"))
                else:
                    visitor.close()
                await lines.wait("💔 Heartbeat failed for app", after=mark)
                wire.restore()
                if how == "close":
                    await service.until(CLOSE)
                    service.send(FIN | CLOSE, close_payload(4400))
                    assert await ended(visitor) == [4400]
                    service.close()
                assert await ended(service) == ([4400] if how == "close" else [])
                assert service.got[0] == (FIN | TEXT, b"said in the dark")
                await world.quiet()
            ends.release()


async def test_a_session_that_is_lost_ends_visibly_at_both_ends() -> None:
    async with held(server={"resume": {"grace": 0}}) as (world, ends):
        visitor, service = await pair(world, ends)
        world.tunnel.reconnect()
        assert await ended(visitor) == []
        assert await ended(service) == []


# -- nothing is left -----------------------------------------------------------------------------------------


async def test_hundreds_that_come_and_go_in_every_way_leave_nothing() -> None:
    async with raw_service(echo) as service, through(service) as world:
        await closed(await raw_client(world.url))
        await world.quiet()
        gc.collect()
        before = descriptors()

        async def one(number: int) -> None:
            socket = await raw_client(world.url)
            socket.send(FIN | TEXT, b"x" * (number * 37 % 3000))
            way = number % 5
            if way == 0:
                await closed(socket)
            elif way == 1:
                socket.abort()
            elif way == 2:
                await socket.receive()
                socket.close()
            elif way == 3:
                socket.raw(b"\xff\xff")
                await socket.until_end()
                socket.close()
            else:
                socket.half_close()
                await socket.until_end()
                socket.close()

        for start in range(0, 100, 25):
            await asyncio.gather(*(one(number) for number in range(start, start + 25)))
        await world.quiet()
        await settled(lambda: world.server.ingress.budget.held == 0)  # the last ACK comes a moment later
        await settled(lambda: descriptors() <= before + 2)
