"""How much bulk a connection holds follows the rate at which the kernel sees it arrive."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from tunneld.wire import pacing
from tunneld.wire.pacing import MOST, WAIT, Pace, held
from tunneld.wire.sockets import LOWAT, tune
from tunneld.wire.tcp_info import TcpInfo, read_tcp_info

MBIT = 125_000  # bytes a second
_UNSENT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


@pytest.mark.parametrize(("mbit", "kib"), [(1, 16), (10, 16), (15, 16), (40, 32.55), (80, 64), (1000, 64)])
def test_what_is_held_is_so_many_milliseconds_within_its_bounds(mbit: float, kib: float) -> None:
    assert held(mbit * MBIT) / 1024 == pytest.approx(kib, rel=0.01)
    if 16 < kib < 64:
        assert 3 * held(mbit * MBIT) / (mbit * MBIT) == pytest.approx(WAIT, rel=0.01)


class Ends:
    """A connection over loopback whose kernel is said to see bytes arrive at `rate`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.rate = 0
        self.away = 0.02
        self.asked = 0

    def read(self, transport: asyncio.BaseTransport) -> TcpInfo | None:
        self.asked += 1
        found = read_tcp_info(transport)
        return None if found is None else found._replace(delivery_rate=self.rate, least_rtt=self.away)

    def unsent(self) -> int:
        return int(self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, _UNSENT))


@pytest.fixture
async def ends(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ends]:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    transport, _ = await asyncio.get_running_loop().create_connection(
        asyncio.Protocol, *server.sockets[0].getsockname()
    )
    made = Ends(transport)
    tune(transport.get_extra_info("socket"))
    monkeypatch.setattr(pacing, "read_tcp_info", made.read)
    yield made
    transport.abort()
    server.close()
    await server.wait_closed()


async def test_a_slow_network_gets_less_at_once_and_a_fast_one_all_of_it(ends: Ends) -> None:
    pace = Pace(ends.transport)
    assert not pace.look(1.0)  # the kernel does not know a rate yet
    assert (pace.held, ends.unsent()) == (MOST, LOWAT)
    ends.rate = 10 * MBIT
    assert not pace.look(2.0)  # it may be of a ping or two
    assert pace.look(2.2)
    assert (pace.held, ends.unsent()) == (16 * 1024, 32 * 1024)
    ends.rate = 10_000 * MBIT
    assert pace.look(3.0)
    assert (pace.held, ends.unsent()) == (MOST, LOWAT)
    assert not pace.look(4.0)


async def test_one_low_sample_of_a_fast_network_changes_nothing(ends: Ends) -> None:
    pace = Pace(ends.transport)
    ends.rate = 400 * MBIT
    assert not pace.look(1.0)
    ends.rate = 5 * MBIT
    looks = [pace.look(2.0 + number) for number in range(60)]
    assert not any(looks[:10])
    assert pace.held == 16 * 1024
    assert 2 <= sum(looks) <= 10  # by steps that are worth a system call
    ends.rate = 400 * MBIT
    assert pace.look(99.0)
    assert pace.held == MOST


async def test_a_slow_reader_beside_it_is_no_slow_network(ends: Ends) -> None:
    pace = Pace(ends.transport)
    ends.rate, ends.away = MBIT, 0.0001
    assert not any(pace.look(1.0 + number) for number in range(5))
    assert (pace.held, ends.unsent()) == (MOST, LOWAT)


async def test_it_asks_ten_times_a_second_at_most(ends: Ends) -> None:
    pace = Pace(ends.transport)
    for number in range(1000):
        pace.look(1.0 + number / 1000)
    assert ends.asked == 10


async def test_without_a_kernel_that_knows_nothing_changes() -> None:
    pace = Pace(asyncio.BaseTransport())
    assert not pace.look(1.0)
    assert pace.held == MOST


async def test_a_connection_that_is_gone_is_no_fault(ends: Ends) -> None:
    pace = Pace(ends.transport)
    ends.rate = MBIT
    ends.transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not pace.look(1.0)
