"""Lookups of names: a resolver that hangs holds up no other lookup, and nothing that ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from tunneld import lifecycle
from tunneld.wire import lookups
from tunneld.wire.lookups import event_loop, lookup

_asked = socket.getaddrinfo


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A resolver that answers no name of example.org until the test is over; those that it was asked for."""
    over = threading.Event()
    asked: list[str] = []

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return _asked(host, *args[:4], socket.AI_NUMERICHOST)
        except socket.gaierror:
            if args[-1] & socket.AI_NUMERICHOST or not str(host).endswith("example.org"):
                return _asked(host, *args, **kwargs)
        asked.append(host)
        over.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    yield asked
    over.set()
    for thread in threading.enumerate():
        if thread.name == "lookup":
            thread.join(5)


async def test_addresses_and_names_are_found_and_what_is_none_is_told() -> None:
    for host in ("127.0.0.1", "localhost"):
        found = await lookup(host, 80, type=socket.SOCK_STREAM)
        assert ("127.0.0.1", 80) in [one[4] for one in found] or ("::1", 80, 0, 0) in [one[4] for one in found]
    with pytest.raises(OSError, match=r"."):
        await lookup("no such name", 80)


def test_a_resolver_that_hangs_holds_up_no_other_lookup_and_no_end(hanging: list[str]) -> None:
    """Eight: with the loops' own lookups the ninth waits for one of them, and the end for all."""

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        waiting = [asyncio.ensure_future(loop.getaddrinfo(f"{number}.example.org", 80)) for number in range(8)]
        async with asyncio.timeout(10):
            found = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        return found

    began = monotonic()
    assert lifecycle.run(main)
    assert monotonic() - began < 10


async def test_how_many_hang_is_bounded_and_said(hanging: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_room", threading.BoundedSemaphore(1))
    first = asyncio.ensure_future(lookup("a.example.org", 80))
    await asyncio.sleep(0)
    with pytest.raises(socket.gaierror, match="the resolver does not answer"):
        await lookup("b.example.org", 80)
    assert await lookup("127.0.0.1", 80), "an address needs no resolver"
    first.cancel()
    await asyncio.wait([first])


def test_the_loop_is_uvloops_where_that_is_installed() -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = event_loop()
    try:
        assert isinstance(loop, uvloop.Loop)
    finally:
        loop.close()
