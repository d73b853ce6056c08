"""Whom a request counts for, what is refused and how it is told; nothing is counted for ever."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest

from tests.support.loops import on_both_loops
from tunneld.config.common import QualityConfig
from tunneld.config.server import ServerLimits
from tunneld.errors import VisitorError
from tunneld.protocol.messages import Headers
from tunneld.server import limits as module
from tunneld.server.limits import Guard, address_key
from tunneld.server.principals import Limits, Principal
from tunneld.server.registry import Tunnel

ONE, OTHER = "192.0.2.1", "192.0.2.2"


def tunnel(name: str = "a", **own: Any) -> Tunnel:
    made = Tunnel(name, now=0, public_url="", host_url=None, max_waiting=1, thresholds=QualityConfig())
    if own:
        made.principal = Principal("t1", "token one", limits=Limits(**own))
    return made


def guard(**keys: Any) -> tuple[Guard, list[float]]:
    clock = [1000.0]
    return Guard(ServerLimits(**keys), clock=lambda: clock[0]), clock


def refused(call: Any, *arguments: Any) -> VisitorError:
    with pytest.raises(VisitorError) as caught:
        call(*arguments)
    return caught.value


def test_nothing_is_kept_where_nothing_is_bounded() -> None:
    it, _ = guard()
    for number in range(1000):
        it.request(tunnel(), ONE)
        it.enter(str(number), tunnel(), ONE)
    assert it.pace(tunnel(), ONE, None) is None  # type: ignore[arg-type]
    assert not it._entered
    assert len(it._requests) == 0


@pytest.mark.parametrize(
    ("keys", "own", "limit", "words"),
    [
        ({"tunnel_requests": 2}, {}, "tunnel_requests", "The tunnel a may make 2 requests a second."),
        ({"address_requests": 2}, {}, "address_requests", "One address may make 2 requests a second."),
        ({}, {"requests_per_s": 2.0}, "token_requests", "The token of this tunnel may make 2 requests a second."),
    ],
)
def test_requests_a_second(keys: dict[str, Any], own: dict[str, Any], limit: str, words: str) -> None:
    it, clock = guard(**keys)
    for _ in range(2):
        it.request(tunnel(**own), ONE)
    error = refused(it.request, tunnel(**own), ONE)
    assert (error.code, error.status, error.retry_after, error.limit, error.detail) == (
        "rate_limited",
        429,
        1,
        limit,
        words,
    )
    it.hits.refused(error)
    assert it.hits.all() == {limit: 1}
    it.request(tunnel("b"), OTHER)  # nobody else's business
    clock[0] += 0.5
    it.request(tunnel(**own), ONE)
    refused(it.request, tunnel(**own), ONE)


def test_what_an_owner_may_use_over_all_their_tokens() -> None:
    it, _ = guard()

    def owned(token: str) -> Tunnel:
        made = tunnel(token)
        quota = Limits(streams=2, requests_per_s=2.0)
        made.principal = Principal("o1", token, token=token, owner_name="ann", quota=quota)
        return made

    it.enter("1", owned("t1"), ONE)
    it.enter("2", owned("t2"), ONE)
    error = refused(it.enter, "3", owned("t3"), OTHER)
    assert (error.code, error.limit) == ("too_many_streams", "owner_streams")
    assert "of this owner" in error.detail
    it.leave("1")
    it.enter("3", owned("t3"), OTHER)
    it.request(owned("t1"), ONE)
    it.request(owned("t2"), ONE)
    assert refused(it.request, owned("t3"), ONE).limit == "owner_requests"
    assert owned("t1").principal.most_streams(1000) == 2


def test_a_slow_rate_says_how_long_to_wait() -> None:
    it, clock = guard(tunnel_requests="0.1")
    it.request(tunnel(), ONE)
    assert refused(it.request, tunnel(), ONE).retry_after == 10
    clock[0] += 4
    assert refused(it.request, tunnel(), ONE).retry_after == 6
    it.configure(ServerLimits(tunnel_requests=1))
    refused(it.request, tunnel(), ONE)  # from its next use on
    clock[0] += 1
    it.request(tunnel(), ONE)


def test_streams_of_an_address_and_of_a_token_over_all_its_tunnels() -> None:
    it, _ = guard(address_streams=2)
    it.enter("1", tunnel(), ONE)
    it.enter("2", tunnel("b"), ONE)
    error = refused(it.enter, "3", tunnel(), ONE)
    assert (error.code, error.status, error.limit) == ("too_many_from_address", 429, "address_streams")
    assert error.retry_after is not None
    it.enter("4", tunnel(), OTHER)
    it.leave("1")
    it.enter("3", tunnel(), ONE)
    for number in "234":
        it.leave(number)
    it.leave("unknown")
    own = {"streams": 1}
    it.enter("5", tunnel(**own), ONE)
    error = refused(it.enter, "6", tunnel("b", **own), OTHER)
    assert (error.code, error.status, error.limit) == ("too_many_streams", 503, "token_streams")
    it.leave("5")
    assert not it._streams
    assert not it._entered


def test_connections_of_an_address() -> None:
    it, _ = guard(address_connections=2)
    assert [it.connected(ONE) for _ in range(3)] == [True, True, False]
    assert it.connected(OTHER)
    it.disconnected(ONE)
    it.disconnected(ONE)
    assert it.connected(ONE)
    for address in (ONE, ONE, OTHER):
        it.disconnected(address)
    assert not it.connections
    assert it.surplus().status == 429


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("_hidden:1", "_hidden:1"),
    ],
)
def test_what_counts_as_one_address(address: str, key: str) -> None:
    assert address_key(address) == key


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    it, _ = guard(address_requests=1, address_bytes=100_000)
    for number in range(10):
        it.request(tunnel(), f"192.0.2.{number}")
        it._meter(f"a 192.0.2.{number}", 100_000)
    assert len(it._requests) == len(it._meters) == 3
    refused(it.request, tunnel(), "192.0.2.9")


class Carried:
    """What a paced stream stands for, and its exchange at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.takes = True
        self.more = 7

    def took(self, count: int) -> None:
        self.calls.append(("took", count))

    def send(self, data: bytes) -> bool:
        self.calls.append(("send", len(data)))
        return self.takes

    def send_end(self, trailers: Headers | None = None) -> bool:
        self.calls.append(("send_end", trailers))
        return True

    def cancel(self, reason: str) -> None:
        self.calls.append(("cancel", reason))

    def writable(self) -> None:
        self.calls.append(("writable", monotonic()))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, arguments))

    def waited(self) -> list[tuple[str, Any]]:
        calls, self.calls = self.calls, []
        return calls


async def until(it: Carried, name: str) -> float:
    import asyncio

    begun = monotonic()
    async with asyncio.timeout(5):
        while not any(call[0] == name for call in it.calls):
            await asyncio.sleep(0.005)
    return monotonic() - begun


def paced(rate: int) -> tuple[Guard, Any, Carried]:
    it = Guard(ServerLimits(tunnel_bytes=rate))
    carried = Carried()
    made = it.pace(tunnel(), ONE, carried)
    assert made is not None
    made.carried = carried
    return it, made, carried


@on_both_loops
async def test_credit_comes_back_at_the_rate() -> None:
    _, stream, carried = paced(1_000_000)
    stream.took(1_000_000)  # the burst
    stream.took(100_000)
    stream.took(100_000)
    assert carried.waited() == [("took", 1_000_000)]
    assert 0.05 < await until(carried, "took") < 2
    first = carried.waited()
    if sum(count for _, count in first) < 200_000:
        await until(carried, "took")
        assert carried.waited() == [("took", 100_000)]
    stream.took(100_000)
    stream.cancel("limit")
    assert carried.waited()[-1] == ("cancel", "limit")
    assert stream._credit_timer is None


@on_both_loops
async def test_an_upload_is_read_on_at_the_rate() -> None:
    _, stream, carried = paced(1_000_000)
    assert stream.send(b"x" * 1_000_000)
    assert not stream.send(b"x" * 100_000)
    stream.writable()  # the carrier would take more already
    assert [call[0] for call in carried.waited()] == ["send", "send"]
    assert 0.05 < await until(carried, "writable") < 2
    carried.waited()
    carried.takes = False
    assert not stream.send(b"x" * 100_000)
    assert not stream.send(b"x")  # it goes by what is owed, whoever asks
    stream.send_end()
    assert stream._upload_timer is None
    assert carried.more == stream.more == 7  # the rest passes through


@on_both_loops
async def test_ends_leave_no_timer() -> None:
    for end in (lambda one: one.cancelled("visitor"), lambda one: (one.end([]), one.stopped())):
        _, stream, carried = paced(100_000)
        stream.took(200_000)
        stream.send(b"x" * 1000)
        assert stream._credit_timer is not None
        assert stream._upload_timer is not None
        end(stream)
        assert stream._credit_timer is stream._upload_timer is None
        stream.sink = None
        stream.head(200, [])
        assert carried.waited()[-1][0] != "head"
