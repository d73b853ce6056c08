"""Two network namespaces joined by a relay of TUN devices: it delays, drops, reorders and translates by a seed.

netem is not in every kernel, and TUN nearly always is: `Network` makes two namespaces, gives each a TUN device, and
holds the other ends in a process of its own (`python -m tests.support.netns`), which is told by lines on its stdin.
Side ``a`` is 10.77.0.1, side ``b`` is 127.77.1.1, which a server without credentials takes for loopback and the kernel
routes between the two when it is told to; with `nat` side ``b`` sees ``a`` under a public address that `rebind`
changes, as a home router does that forgot what it had translated.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import Process, python_module
from tests.support.sockets import LOOPBACK

__all__ = ["ADDRESS", "Network", "Packet", "missing", "packets"]

ADDRESS = {"a": "10.77.0.1", "b": "127.77.1.1"}
_PUBLIC = "10.77.2."
_TUNSETIFF = 0x400454CA
_TUN, _NO_PI = 0x0001, 0x1000
_IP = shutil.which("ip", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or "ip"


def missing() -> str | None:
    """What this machine lacks for it; None when nothing."""
    if os.geteuid() != 0:
        return "not root: network namespaces and TUN devices want it"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    if shutil.which(_IP) is None:
        return "no `ip`: apt-get install iproute2"
    probe = f"tdp{os.getpid()}"
    made = subprocess.run([_IP, "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"`ip netns add` fails: {made.stderr.strip()}"
    subprocess.run([_IP, "netns", "del", probe], capture_output=True, check=False)
    try:
        os.close(_tun(f"{probe}t"))
    except OSError as error:
        return f"no TUN device can be made: {error}"
    return None


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet with data that the relay saw.

    Attributes:
        side: that it came from.
        came: monotonic seconds.
        gone: when it was passed on; None: it was dropped.
        size: octets of data.
    """

    side: str
    came: float
    gone: float | None
    size: int


def packets(log: Path) -> list[Packet]:
    """What stands in a log, in the order in which they came."""
    rows = [line.split() for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    found = [Packet(side, float(came), float(gone) or None, int(size)) for side, came, gone, size in rows]
    return sorted(found, key=lambda packet: packet.came)


def _tun(name: str) -> int:
    """A new TUN device; its descriptor, which stays its other end when the device moves to a namespace."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_PI))
    except OSError:
        os.close(fd)
        raise
    return fd


def _ip(*words: str) -> None:
    done = subprocess.run([_IP, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """Namespaces ``a`` and ``b`` and what lies between them; a context manager.

    Args:
        seed: of what is dropped and reordered.
        delay: seconds, each way.
        jitter: seconds, the most that is added to it, each packet by itself; packets may overtake.
        log: file that every packet with data is written to, as `Packet`; None: none is.
        drop: share of packets, 0 to 1.
        reorder: share of packets that are held back for a quarter of `delay` more.
        rate: bytes a second that each way carries; 0: any.
        queue: bytes that may wait for their turn then; what comes beside them is dropped.
        nat: side ``a`` is behind a translation of addresses.
        mtu: bytes.
        largest: bytes of a packet that gets through; a larger one vanishes, and nobody is told; 0: any.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        delay: float = 0.05,
        jitter: float = 0.0,
        drop: float = 0.0,
        reorder: float = 0.0,
        rate: float = 0.0,
        queue: int = 64 << 10,
        nat: bool = False,
        mtu: int = 1500,
        largest: int = 0,
        log: Path | None = None,
    ) -> None:
        self._log = log
        self._set = {
            "delay": delay, "jitter": jitter, "drop": drop, "reorder": reorder, "rate": rate, "queue": queue,
            "nat": nat, "largest": largest,
        }  # fmt: skip
        self._seed = seed
        self._mtu = mtu
        self._mark = f"td{os.getpid()}"
        self._public = 1
        self._relay: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Network:
        fds: list[int] = []
        try:
            for side, other in (("a", "b"), ("b", "a")):
                name = f"{self._mark}{side}"
                _ip("netns", "add", name)
                fds.append(_tun(name))
                _ip("link", "set", name, "netns", name)
                _ip("-n", name, "addr", "add", f"{ADDRESS[side]}/32", "dev", name)
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", name, "mtu", str(self._mtu), "txqueuelen", "20000", "up")
                let = Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet")
                _ip("netns", "exec", name, "sh", "-c", f"echo 1 >{let}")
                self._route(name, ADDRESS[other])
                if side == "b":
                    _ip("-n", name, "route", "add", f"{_PUBLIC}0/24", "dev", name)
            self._relay = subprocess.Popen(
                [sys.executable, "-m", "tests.support.netns", *map(str, fds), str(self._seed), str(self._log or "")],
                stdin=subprocess.PIPE,
                pass_fds=fds,
            )
        except BaseException:
            self._clean()
            raise
        finally:
            for fd in fds:
                os.close(fd)
        self.change()
        return self

    def __exit__(self, *_: object) -> None:
        if self._relay is not None:
            assert self._relay.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._relay.stdin.close()
            try:
                self._relay.wait(5)
            except subprocess.TimeoutExpired:
                self._relay.kill()
                self._relay.wait()
        self._clean()

    def _clean(self) -> None:
        for side in "ab":
            with contextlib.suppress(RuntimeError):
                _ip("netns", "del", f"{self._mark}{side}")

    @staticmethod
    def _route(namespace: str, address: str) -> None:
        """In the table that is asked first: the rest of 127.0.0.0/8 stays the namespace's own loopback."""
        _ip("-n", namespace, "route", "replace", "unicast", f"{address}/32", "dev", namespace, "table", "local")

    def inside(self, side: str, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` in the namespace of that side."""
        return [_IP, "netns", "exec", f"{self._mark}{side}", *argv]

    def process(self, side: str, argv: Sequence[str], *, name: str, pass_fds: Sequence[int] = ()) -> Process:
        """Start a program in the namespace of that side."""
        return Process(self.inside(side, argv), name=name, pass_fds=pass_fds)

    @contextlib.contextmanager
    def door(self, side: str, port: int) -> Iterator[int]:
        """A port of this machine's loopback that leads to that port of the side's own loopback."""
        with socket.create_server((LOOPBACK, 0)) as listening:
            fd = listening.fileno()
            argv = python_module("tests.support.door", str(fd), str(port))
            process = self.process(side, argv, name=f"door to {side}", pass_fds=[fd])
            try:
                yield listening.getsockname()[1]
            finally:
                process.discard()

    # -- what happens between them

    def change(self, **values: Any) -> None:
        """Change what was given (not `seed`, `mtu` or `log`), or `hole` (True: every packet vanishes), from now on."""
        assert self._relay is not None
        assert self._relay.stdin is not None
        self._set |= values
        self._relay.stdin.write(json.dumps(self._set | {"public": self._public}).encode() + b"\n")
        self._relay.stdin.flush()

    def rebind(self) -> None:
        """The translation forgets side ``a``: what it sends comes from another public address from now on."""
        self._public = self._public % 250 + 1
        self.change()

    def link(self, *, up: bool, side: str = "a") -> None:
        """Take the side's device down, or up again with its route."""
        name = f"{self._mark}{side}"
        _ip("-n", name, "link", "set", name, "up" if up else "down")
        if up:
            self._route(name, ADDRESS["b" if side == "a" else "a"])

    def move(self, address: str) -> None:
        """Side ``a`` gets another address and loses its own: what was bound to that is dead."""
        name = f"{self._mark}a"
        _ip("-n", name, "addr", "flush", "dev", name)
        _ip("-n", name, "addr", "add", f"{address}/32", "dev", name)
        self._route(name, ADDRESS["b"])
        with contextlib.suppress(RuntimeError):
            _ip("-n", f"{self._mark}b", "route", "add", f"{address}/32", "dev", f"{self._mark}b")


# -- the relay's process -----------------------------------------------------------------------------------------------


def _translated(packet: bytes, at: int, old: bytes, new: bytes) -> bytes:
    """The IPv4 packet with the address at `at` changed, its sums corrected (RFC 1624)."""
    if packet[at : at + 4] != old or packet[0] >> 4 != 4:
        return packet
    head = (packet[0] & 15) * 4
    changed = bytearray(packet)
    changed[at : at + 4] = new
    sums = [10]
    if packet[9] == 6 and len(packet) >= head + 18:
        sums.append(head + 16)
    for place in sums:
        total = ~struct.unpack_from("!H", changed, place)[0] & 0xFFFF
        for before, after in zip(struct.unpack("!HH", old), struct.unpack("!HH", new), strict=True):
            total += (~before & 0xFFFF) + after
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into("!H", changed, place, ~total & 0xFFFF)
    return bytes(changed)


def _data(packet: bytes) -> int:
    """Octets that a TCP segment over IPv4 carries; 0 for any other packet."""
    if packet[0] >> 4 != 4 or packet[9] != 6:
        return 0
    head = (packet[0] & 15) * 4
    return len(packet) - head - (packet[head + 12] >> 4) * 4


class _Between:
    """Takes packets from one TUN device, and writes them to the other when their time has come."""

    def __init__(self, a: int, b: int, seed: int, log: str) -> None:
        self._log = open(log, "w", buffering=1) if log else None  # noqa: SIM115 - as long as the process
        self._other = {a: b, b: a}
        self._a = a
        self._dice = random.Random(seed)
        self._waiting: list[tuple[float, int, int, bytes, float]] = []
        self._free = dict.fromkeys(self._other, 0.0)  # when each way has carried all that came
        self._count = 0
        self._settings: dict[str, Any] = {
            "delay": 0.0,
            "drop": 0.0,
            "reorder": 0.0,
            "jitter": 0.0,
            "rate": 0.0,
            "queue": 0,
            "nat": False,
            "largest": 0,
            "public": 1,
        }
        self._own = bytes(map(int, ADDRESS["a"].split(".")))

    def run(self) -> None:
        """Until stdin ends."""
        poller = select.epoll()
        for fd in (*self._other, 0):
            poller.register(fd, select.EPOLLIN)
        while True:
            rest = self._waiting[0][0] - time.monotonic() if self._waiting else -1.0
            for fd, _ in poller.poll(max(0.0, rest) if self._waiting else None):
                if fd:
                    self._take(fd)
                elif not (line := os.read(0, 65536)):
                    return
                else:
                    self._settings |= json.loads(line.splitlines()[-1])
            self._give()

    def _packets(self, fd: int) -> Iterator[bytes]:
        for _ in range(64):
            try:
                yield os.read(fd, 65600)
            except OSError:  # none is left, or the device is down
                return

    def _take(self, fd: int) -> None:
        now, settings, dice = time.monotonic(), self._settings, self._dice
        for packet in self._packets(fd):
            dropped = settings.get("hole") or (settings["drop"] and dice.random() < settings["drop"])
            dropped = dropped or 0 < settings["largest"] < len(packet)
            turn = None if dropped else self._turn(fd, now, len(packet))
            if turn is None:
                self._note(self._other[fd], now, 0.0, packet)
                continue
            due = turn + settings["delay"] + (settings["jitter"] * dice.random() if settings["jitter"] else 0.0)
            if settings["reorder"] and dice.random() < settings["reorder"]:
                due += settings["delay"] / 4
            if settings["nat"]:
                packet = self._through_nat(fd, packet)
            self._count += 1
            heapq.heappush(self._waiting, (due, self._count, self._other[fd], packet, now))

    def _turn(self, fd: int, now: float, size: int) -> float | None:
        """When the way from there has carried a packet of `size` bytes; None: too much waits for it already."""
        rate = self._settings["rate"]
        if not rate:
            return now
        begins = max(now, self._free[fd])
        if (begins - now) * rate + size > self._settings["queue"]:
            return None
        self._free[fd] = begins + size / rate
        return self._free[fd]

    def _through_nat(self, fd: int, packet: bytes) -> bytes:
        public = bytes(map(int, f"{_PUBLIC}{self._settings['public']}".split(".")))
        if fd == self._a:
            return _translated(packet, 12, self._own, public)
        return _translated(packet, 16, public, self._own)

    def _give(self) -> None:
        now, waiting = time.monotonic(), self._waiting
        while waiting and waiting[0][0] <= now:
            _, _, fd, packet, came = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # the device is down: the packet is lost
                os.write(fd, packet)
            self._note(fd, came, time.monotonic(), packet)

    def _note(self, fd: int, came: float, gone: float, packet: bytes) -> None:
        """Write to the log what became of a packet to that device."""
        if self._log is not None and (size := _data(packet)):
            self._log.write(f"{'b' if fd == self._a else 'a'} {came:.6f} {gone:.6f} {size}\n")


def main() -> None:
    """The relay's process; ends with its stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("a", type=int)
    parser.add_argument("b", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("log")
    options = parser.parse_args()
    with contextlib.suppress(PermissionError):  # what else this machine does is no part of the network
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    _Between(options.a, options.b, options.seed, options.log).run()


if __name__ == "__main__":
    main()
