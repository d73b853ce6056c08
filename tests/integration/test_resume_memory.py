"""An outage with many streams under way: what is held is bounded by `resume.buffer` and the streams' own marks."""

from __future__ import annotations

import asyncio
import os

from tests.integration.test_resume import CHUNK, Bench, bench, block, request, state
from tests.support.usage import resident_bytes
from tunneld.protocol.session import Session

#: Half of them downloads, half uploads. More by hand: `TUNNELD_STREAMS=1000 pytest …`.
STREAMS = int(os.environ.get("TUNNELD_STREAMS", "24"))
BLOCKS = 400 if STREAMS <= 100 else 40
BUFFER = 64 << 10
#: What one stream may hold that is not sent: its high-water mark, and the piece that went over it.
MARK = (64 << 10) + (256 << 10)


async def _download(it: Bench) -> None:
    head, reader, writer = await request(it, "GET", f"/down/{BLOCKS}")
    assert b" 200 " in head
    for number in range(BLOCKS):
        assert await reader.readexactly(CHUNK) == block(number)
    writer.close()


async def _upload(it: Bench, body: bytes) -> None:
    head, _, writer = await request(it, "POST", "/up", body)
    assert b" 200 " in head
    writer.close()


def _held(session: Session) -> tuple[int, int]:
    """(bytes that wait to be acknowledged, bytes that wait to be sent)."""
    assert session._replay is not None
    return session._replay.data_held, sum(stream.pending for stream in session.streams.values())


async def _settled(it: Bench) -> None:
    """Everybody has pushed back: nothing moves any more."""
    before = None
    while True:
        tunnel = it.server.registry.find("t")
        assert tunnel is not None
        assert tunnel.kept is not None
        assert it.agent.tunnels[0]._keeping.session is not None
        now = (*_held(tunnel.kept.session), *_held(it.agent.tunnels[0]._keeping.session))
        if now == before:
            return
        before = now
        await asyncio.sleep(0.3)


async def test_what_an_outage_makes_both_sides_hold_is_bounded() -> None:
    body = b"".join(map(block, range(BLOCKS)))
    async with bench(heartbeat={"interval": "30s", "timeout": "10s"}) as it:  # a busy loop is no dead peer
        it.relay.rate = 30_000_000
        loop = asyncio.get_running_loop()
        made = [_download(it) if number % 2 else _upload(it, body) for number in range(STREAMS)]
        visitors = [loop.create_task(visit) for visit in made]
        while len(it.server.ingress.exchanges) < STREAMS or it.agent.active_streams < STREAMS * 0.9:
            assert not any(visitor.done() for visitor in visitors), "over before the outage"
            await asyncio.sleep(0.01)
        it.relay.refuse = True
        it.relay.cut()
        await state(it, "resuming")
        await _settled(it)
        tunnel = it.server.registry.find("t")
        assert tunnel is not None
        assert tunnel.kept is not None
        agents = it.agent.tunnels[0]._keeping.session
        assert agents is not None
        streams = len(agents.streams)
        assert streams > STREAMS / 2, "they were over before the outage"
        resident = resident_bytes(os.getpid())
        for session in (tunnel.kept.session, agents):
            replay, pending = _held(session)
            assert replay <= BUFFER + (64 << 10)
            assert pending <= STREAMS * MARK
            print(f"\n{streams} streams: replay {replay >> 10} KiB, pending {pending >> 10} KiB", end="")
        await asyncio.sleep(1)  # a longer outage is not more
        grown = resident_bytes(os.getpid()) - resident
        print(f", resident {resident >> 20} MiB, {grown >> 10} KiB more after a second")
        assert grown < 8 << 20
        it.relay.refuse = False
        it.relay.rate = 0
        await state(it, "online")
        await asyncio.gather(*visitors)
