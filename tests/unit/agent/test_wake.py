"""Sleep by an injected clock; changes of the network by a pair of links in a network namespace of its own."""

from __future__ import annotations

import asyncio
import shutil
import struct
import subprocess
import sys
import textwrap

import pytest

from tunneld.agent.wake import NetworkState, SleepWatch, WakeWatch, slept


def test_a_sleep_is_told_once_and_a_short_one_not() -> None:
    clock = [100.0]
    watch = SleepWatch(lambda: clock[0])
    assert watch.look() == 0
    clock[0] += 0.5
    assert watch.look() == 0
    clock[0] += 0.75  # and another: together they are worth it
    assert watch.look() == 1.25
    assert watch.look() == 0
    clock[0] += 3600
    assert watch.look() == 3600


def test_what_this_machine_slept_is_a_number() -> None:
    assert slept() >= -0.001
    assert abs(slept() - slept()) < 0.01


async def test_a_jump_of_the_clock_is_a_sleep_only_if_the_machine_slept() -> None:
    clock, told = [0.0], []
    watch = WakeWatch(told.append, clock=lambda: clock[0])
    try:
        if "sleep" not in watch.watches:
            pytest.skip("no timerfd on this platform")
        watch._clock_jumped()  # as when NTP sets the clock
        assert told == []
        clock[0] = 90.0
        watch._clock_jumped()
        assert told == ["this machine slept for 90 s"]
        watch._clock_jumped()
        assert len(told) == 1
        await asyncio.sleep(0)
    finally:
        watch.close()


def test_a_truncated_or_alien_datagram_is_no_change() -> None:
    state = NetworkState()
    for size in range(64):
        assert not state.feed(b"\0" * size)
        assert not state.feed(b"\xff" * size)
    assert not state.feed(struct.pack("=IHHII", 20, 16, 0, 0, 0) + b"\0" * 4)


def _link(index: int, flags: int, mask: int = 0xFFFFFFFF, kind: int = 16) -> bytes:
    body = struct.pack("=BxHiII", 0, 1, index, flags, mask)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def _address(index: int, address: bytes, *, kind: int = 20, flags: int = 0) -> bytes:
    body = struct.pack("=BBBBi", 2, 24, flags, 0, index) + struct.pack("=HH", 4 + len(address), 2) + address
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_links_and_addresses_are_told_when_they_change() -> None:
    state = NetworkState()
    assert state.feed(_link(2, 0x41))
    assert not state.feed(_link(2, 0x41 | 0x1000))  # said again, other flags
    assert state.feed(_link(2, 0x1))  # the cable is out
    assert state.feed(_link(2, 0x41) + _address(2, b"\x0a\0\0\1"))
    assert not state.feed(_address(2, b"\x0a\0\0\1"))  # a new lifetime
    assert not state.feed(_address(2, b"\x0a\0\0\2", flags=0x40))  # tentative
    assert state.feed(_address(2, b"\x0a\0\0\2"))
    assert state.feed(_address(2, b"\x0a\0\0\2", kind=21))
    assert state.feed(_link(2, 0x41, kind=17))
    assert not state.feed(_link(3, 0, 0, kind=17))


def test_what_is_known_is_bounded() -> None:
    state = NetworkState()
    for index in range(10_000):
        state.feed(_link(index, 0x41) + _address(index, index.to_bytes(4, "big")))
    assert len(state._links) <= 4097
    assert len(state._addresses) <= 4097


_WATCH = """
import asyncio, subprocess, sys
from tunneld.agent.wake import WakeWatch

async def main():
    told = asyncio.Queue()
    watch = WakeWatch(told.put_nowait)
    if "network" not in watch.watches:
        print("no netlink"); return
    for command in ("link add d0 type veth peer name d1", "link set d0 up", "link set d1 up",
                    "addr add 10.9.8.7/24 dev d0", "addr del 10.9.8.7/24 dev d0", "link del d0"):
        done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
        if done.returncode:
            print("cannot", command, done.stderr.strip()); return
        if command.startswith("link add"):
            continue  # a link that is down is no change
        async with asyncio.timeout(5):
            print(await told.get())
    watch.close()

asyncio.run(main())
"""


def test_a_link_that_comes_and_goes_in_a_namespace_is_told() -> None:
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("unshare -n is not allowed here: it takes CAP_SYS_ADMIN")
    command = ["unshare", "-n", sys.executable, "-c", textwrap.dedent(_WATCH)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    lines = done.stdout.split("\n")
    if lines[0].startswith(("no netlink", "cannot link add")):
        pytest.skip(lines[0])
    assert done.returncode == 0, done.stderr
    assert lines[:5] == ["the network changed"] * 5


async def test_closing_lets_go_of_everything() -> None:
    watch = WakeWatch(lambda why: None)
    watch.close()
    watch.close()
    assert watch._timer is None
    assert watch._netlink is None
