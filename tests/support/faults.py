"""A TCP relay between an agent and its server that does what networks do: cut, blackhole, delay, throttle, split."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["FaultyRelay"]

_RESET = struct.pack("ii", 1, 0)
#: Seconds after which a duplicated dial is played to the target, and between the two parts of a split.
REPLAY_AFTER = 0.05
SPLIT_PAUSE = 0.002


@dataclass(eq=False)
class _Pair:
    """One relayed connection: `near` is the agent's, `far` the target's."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    passed: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    gone: set[str] = field(default_factory=set)  # ends that are closed while the other one is kept
    dead: bool = False  # once in a hole, a connection is dead for good
    cut_at: tuple[str, int] | None = None
    split_at: tuple[str, int] | None = None
    first: bytearray | None = None  # what went up so far, to be played again

    def ends(self) -> list[tuple[str, asyncio.StreamWriter]]:
        return [("agent", self.near), ("server", self.far)]


class FaultyRelay:
    """Listens on a free loopback port and forwards to `target`.

    Args:
        target: port on loopback.
        seed: of its dice.

    Attributes:
        port: where it listens.
        refuse: new connections are closed at once.
        delay: seconds that each piece waits before it goes on.
        rate: bytes a second, each way; 0 is as fast as it comes.
        split: bytes of the largest piece that is written at once; 0 is as read.
        cut_next: (direction, bytes): each new connection is reset when so many bytes have passed; ``up`` is towards
            the target.
        split_next: (direction, offset): new connections' bytes are written in two parts, apart in time, there.
        duplicate: what a new connection says first is played to the target once more, on a connection of its own.
        dials: connections accepted so far.
        on_bytes: called with (direction, octets) for each piece that goes on.
        passed: bytes that went on, by direction, of the last connection.
    """

    def __init__(self, target: int, *, seed: int = 0) -> None:
        self.target = target
        self.port = 0
        self.refuse = False
        self.delay = 0.0
        self.rate = 0
        self.split = 0
        self.cut_next: tuple[str, int] | None = None
        self.split_next: tuple[str, int] | None = None
        self.duplicate = False
        self.dials = 0
        self.on_bytes: Callable[[str, bytes], None] | None = None
        self.passed: dict[str, int] = {}
        self._dice = random.Random(seed)
        self._holes = asyncio.Event()
        self._holes.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self.accepted = asyncio.Event()

    async def __aenter__(self) -> FaultyRelay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    @property
    def connections(self) -> int:
        """Connections under way."""
        return len(self._pairs)

    # -- what happens to those that are open

    def cut(self, *, reset: bool = True, ends: str = "both") -> None:
        """End every connection: by RST, or by FIN; towards ``agent``, ``server`` or ``both``, which follows on."""
        for pair in list(self._pairs):
            for name, writer in pair.ends():
                if ends in ("both", name):
                    _end(writer, reset=reset)

    def half_open(self, gone: str) -> None:
        """The connection towards ``agent`` or ``server`` is reset, the other kept, and silent for ever."""
        for pair in list(self._pairs):
            pair.gone.add(gone)
            for name, writer in pair.ends():
                if name == gone:
                    _end(writer, reset=True)

    def blackhole(self) -> None:
        """Bytes vanish from now on, new connections too; both sides' connections stay."""
        self._holes.clear()

    def heal(self) -> None:
        """Bytes pass again on connections made from now on; those of the hole stay dead."""
        self._holes.set()

    # -- inside

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.dials += 1
        self.accepted.set()
        cut_at, split_at = self.cut_next, self.split_next
        try:
            if self.refuse:
                writer.transport.abort()
                return
            try:
                far_reader, far = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                writer.transport.abort()
                return
            for one in (writer, far):
                one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(writer, far, cut_at=cut_at, split_at=split_at)
            pair.first = bytearray() if self.duplicate else None
            self.passed = pair.passed
            self._pairs.add(pair)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(pair, "up", reader, far))
                    group.create_task(self._pump(pair, "down", far_reader, writer))
                    if pair.first is not None:
                        group.create_task(self._again(pair.first))
            finally:
                self._pairs.discard(pair)
                for end in (writer, far):
                    end.transport.abort()
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)

    async def _again(self, first: bytearray) -> None:
        """Play what was said on another connection again; what is answered, nobody hears."""
        await asyncio.sleep(REPLAY_AFTER)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
            writer.write(bytes(first))
            while await reader.read(65536):
                pass
            writer.transport.abort()
        except OSError:
            pass

    async def _pump(
        self, pair: _Pair, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source, sink = ("agent", "server") if direction == "up" else ("server", "agent")
        try:
            while data := await reader.read(65536):
                if not self._holes.is_set():
                    pair.dead = True
                if pair.dead or sink in pair.gone:
                    continue
                if self.delay:
                    await asyncio.sleep(self.delay * self._dice.uniform(0.9, 1.1))
                if not await self._forward(pair, direction, data, writer):
                    return
        except OSError:
            if not pair.gone:
                writer.transport.abort()
            return
        if source in pair.gone:
            await self._kept(writer)
        elif not pair.dead and not pair.gone:
            writer.close()

    async def _forward(self, pair: _Pair, direction: str, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """Write a piece in the parts that it is to go in; False when the connection was cut by it."""
        if self.on_bytes is not None:
            self.on_bytes(direction, data)
        if direction == "up" and pair.first is not None and pair.passed["up"] < 2048:
            pair.first += data
        begun = pair.passed[direction]
        last = False
        if pair.cut_at is not None and pair.cut_at[0] == direction and begun + len(data) >= pair.cut_at[1]:
            data, last = data[: max(0, pair.cut_at[1] - begun)], True
        for start, piece in self._pieces(pair, direction, data):
            if start:
                await asyncio.sleep(SPLIT_PAUSE if pair.split_at else 0)
            writer.write(piece)
            await writer.drain()
            if self.rate:
                await asyncio.sleep(len(piece) / self.rate)
        pair.passed[direction] = begun + len(data)
        if last:
            await asyncio.sleep(SPLIT_PAUSE)  # so that what was let through arrives before the reset
            for _, end in pair.ends():
                _end(end, reset=True)
        return not last

    def _pieces(self, pair: _Pair, direction: str, data: bytes) -> list[tuple[int, bytes]]:
        if pair.split_at is not None and pair.split_at[0] == direction:
            at = pair.split_at[1] - pair.passed[direction]
            if 0 < at < len(data):
                return [(0, data[:at]), (at, data[at:])]
        step = self.split or len(data) or 1
        return [(start, data[start : start + step]) for start in range(0, len(data), step)]

    async def _kept(self, writer: asyncio.StreamWriter) -> None:
        """Half-open: this end stays until its owner ends it."""
        try:
            await writer.wait_closed()
        except OSError:
            pass


def _end(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if not reset:
        writer.close()
        return
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
