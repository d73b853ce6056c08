"""Tells when this machine slept, or when its network changed: reasons to doubt a connection at once.

Nothing is polled. A timer of CLOCK_REALTIME that never ends is cancelled by the kernel when the clock jumps, as it
does when the machine wakes; that it slept, and was not just set right, is told by CLOCK_BOOTTIME, which goes on while
CLOCK_MONOTONIC stands still. Changes of links and addresses come over netlink. Where the platform has neither,
nothing is told and the heartbeat finds out by itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["NetworkState", "SleepWatch", "WakeWatch", "slept"]

log = logging.getLogger("tunneld.wake")

#: Seconds of sleep that are worth a doubt: a connection survives less.
LEAST_SLEEP = 1.0
#: Changes of the network come in bursts: what comes within so many seconds of the first is told once.
BURST = 0.25

_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 17, 20, 21
_UP_AND_RUNNING = 0x1 | 0x40
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_TENTATIVE = 0x40
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg
_ATTRIBUTE = struct.Struct("=HH")  # rtattr
_MAX_KNOWN = 4096
_READ = 64 * 1024

_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_FAR: Final = 2**31 - 1 if ctypes.sizeof(ctypes.c_long) == 4 else 2**40


def slept() -> float:
    """Seconds that this machine has slept since it was booted, in sum; 0.0 where that cannot be told."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.clock_gettime(clock) - time.clock_gettime(time.CLOCK_MONOTONIC)


class NetworkState:
    """What netlink said of links and addresses: told apart from what it says again and again. Pure."""

    __slots__ = ("_addresses", "_links")

    def __init__(self) -> None:
        self._links: dict[int, int] = {}
        self._addresses: set[tuple[int, int, bytes]] = set()

    def feed(self, datagram: bytes) -> bool:
        """Take what one read gave; True when a link went up or down, or an address came or went."""
        changed = False
        for kind, body in _messages(datagram):
            if kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(body) >= _LINK.size:
                changed |= self._link(kind, body)
            elif kind in (_RTM_NEWADDR, _RTM_DELADDR) and len(body) >= _ADDRESS.size:
                changed |= self._address(kind, body)
        if len(self._links) > _MAX_KNOWN or len(self._addresses) > _MAX_KNOWN:
            self._links.clear()
            self._addresses.clear()
        return changed

    def _link(self, kind: int, body: bytes) -> bool:
        _, _, index, flags, mask = _LINK.unpack_from(body)
        if kind == _RTM_DELLINK:
            return bool(self._links.pop(index, 0)) or bool(flags & _UP_AND_RUNNING)
        state = int(flags) & _UP_AND_RUNNING
        before = self._links.get(index)
        self._links[index] = state
        if before is None:  # not seen before: the kernel says which flags it changed
            return bool(mask & _UP_AND_RUNNING)
        return before != state

    def _address(self, kind: int, body: bytes) -> bool:
        family, _, flags, _, index = _ADDRESS.unpack_from(body)
        address = b""
        for name, value in _attributes(body[_ADDRESS.size :]):
            if name == _IFA_LOCAL or (name == _IFA_ADDRESS and not address):
                address = value
        key = (int(family), int(index), address)
        if kind == _RTM_DELADDR:
            self._addresses.discard(key)
            return True
        if flags & _IFA_F_TENTATIVE or key in self._addresses:  # not usable yet; or only its lifetime is new
            return False
        self._addresses.add(key)
        return True


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _MESSAGE.size <= len(datagram):
        length, kind, _, _, _ = _MESSAGE.unpack_from(datagram, at)
        if length < _MESSAGE.size or at + length > len(datagram):
            return
        yield kind, datagram[at + _MESSAGE.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


class SleepWatch:
    """Holds the sum of sleep against what it was. Pure but for the clock that is handed in.

    Args:
        clock: -> seconds slept in sum (`slept`).
    """

    __slots__ = ("_clock", "_known")

    def __init__(self, clock: Callable[[], float] = slept) -> None:
        self._clock = clock
        self._known = clock()

    def look(self) -> float:
        """Seconds slept since the last look; 0.0 for less than is worth a doubt."""
        now = self._clock()
        since = now - self._known
        if since < LEAST_SLEEP:
            return 0.0
        self._known = now
        return since


class WakeWatch:
    """Calls `woke` with a reason in words for each sleep that is over, and for each change of the network.

    Args:
        woke: called on the running loop.
        clock: of `SleepWatch`.

    Attributes:
        watches: what is looked at on this platform: ``sleep``, ``network``.
    """

    def __init__(self, woke: Callable[[str], None], *, clock: Callable[[], float] = slept) -> None:
        self.watches: list[str] = []
        self._woke = woke
        self._loop = asyncio.get_running_loop()
        self._sleep = SleepWatch(clock)
        self._network = NetworkState()
        self._burst: asyncio.TimerHandle | None = None
        self._timer = self._open_timer()
        self._netlink = self._open_netlink()

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
            self._timer = None
        self._drop_netlink()
        if self._burst is not None:
            self._burst.cancel()
            self._burst = None

    # -- sleep -------------------------------------------------------------------------------------------

    def _open_timer(self) -> int | None:
        timer = _open_timerfd()
        if timer is not None:
            self._loop.add_reader(timer, self._clock_jumped)
            self.watches.append("sleep")
        return timer

    def _clock_jumped(self) -> None:
        """The kernel cancelled the timer: the machine woke, or somebody set the clock."""
        assert self._timer is not None
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
        _arm(self._timer)
        self.look()

    def look(self) -> None:
        """Tell of a sleep, if there was one since the last look."""
        seconds = self._sleep.look()
        if seconds:
            self._woke(f"this machine slept for {seconds:.0f} s")

    # -- the network -------------------------------------------------------------------------------------

    def _open_netlink(self) -> socket.socket | None:
        family = getattr(socket, "AF_NETLINK", None)
        if family is None:
            return None
        try:
            netlink = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError:
            return None
        try:
            netlink.setblocking(False)
            netlink.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except OSError:  # a sandbox that forbids it
            netlink.close()
            return None
        self._loop.add_reader(netlink, self._news)
        self.watches.append("network")
        return netlink

    def _news(self) -> None:
        changed = False
        assert self._netlink is not None
        while True:
            try:
                datagram, (sender, _) = self._netlink.recvfrom(_READ)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    log.warning("The network is not watched any more: %s", error)
                    self._drop_netlink()
                    return
                changed = True  # more came than was kept for us: something did change
                continue
            if sender == 0:  # the kernel, nobody else
                changed |= self._network.feed(datagram)
        if changed and self._burst is None:
            self._burst = self._loop.call_later(BURST, self._burst_over)

    def _burst_over(self) -> None:
        self._burst = None
        self._woke("the network changed")

    def _drop_netlink(self) -> None:
        if self._netlink is not None:
            self._loop.remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None


class _Spec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns"))


def _open_timerfd() -> int | None:
    """A timer that is cancelled when the clock jumps; None where the platform has none. Python's own needs 3.13."""
    try:
        create = ctypes.CDLL(None, use_errno=True).timerfd_create
    except (OSError, AttributeError):
        return None
    timer: int = create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        return None
    if not _arm(timer):
        os.close(timer)
        return None
    return timer


def _arm(timer: int) -> bool:
    spec = _Spec(0, 0, _FAR, 0)
    settime = ctypes.CDLL(None, use_errno=True).timerfd_settime
    flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
    # ECANCELED: the clock jumped just now; the timer is armed all the same.
    return settime(timer, flags, ctypes.byref(spec), None) == 0 or ctypes.get_errno() == errno.ECANCELED
