"""Many agents in one process, each an `AgentTunnel` of our own that answers its streams itself with events.

`python -m tests.load.agents --port P --tunnels N --dials R`: R tunnels are started each second. Every stream gets an
event at once, and with `--events E` E more each second: `data: NANOSECONDS pad`; `/bulk` is answered with bytes without
end, `/small` with two. JSON lines on stdout: `{"online": N, …}` when all are, and on SIGUSR1 what was sent; SIGUSR2
stops the events.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import signal
import time
from collections import deque

from tests.support.herds import Well, herded
from tests.support.programs import raise_limit, run, say, until_terminated
from tunneld.agent.state import State
from tunneld.agent.tunnel import AgentTunnel
from tunneld.config.tunnel import TunnelConfig
from tunneld.protocol.messages import Headers, Open
from tunneld.protocol.sinks import Sink
from tunneld.protocol.streams import Stream

__all__ = ["EVENT_BYTES"]

EVENT_BYTES = 120
_TICK = 0.002
_HEAD: Headers = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")]


def _event() -> bytes:
    head = b"data: %d " % time.monotonic_ns()
    return head + b"." * (EVENT_BYTES - 2 - len(head)) + b"\n\n"


class Herd:
    """All agents, and the ring of their streams."""

    def __init__(self, *, port: int, tunnels: int, dials: float, events: float, prefix: str = "a") -> None:
        self.ring: deque[Answer] = deque()
        self.sent = 0
        self.live = 0
        self.poured = 0  # bytes of the answers without end
        self._port = port
        self._count, self._dials, self._events = tunnels, dials, events
        self._prefix = prefix
        self._begun: dict[str, float] = {}
        self._took: list[float] = []
        self._failures = 0
        self.tunnels: list[AgentTunnel] = []

    async def run(self) -> None:
        """Until cancelled."""
        begun = self._first = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pace())
            for number in range(self._count):
                wait = begun + number / self._dials - time.monotonic()
                if wait > 0.001:
                    await asyncio.sleep(wait)
                tunnel = self._make(f"{self._prefix}{number}")
                self.tunnels.append(tunnel)
                group.create_task(tunnel.run())

    def _make(self, name: str) -> AgentTunnel:
        proxy, dials = functools.partial(Answering, self), functools.partial(self._dialled, name)
        return herded(name, self._port, proxy=proxy, dials=dials, changed=self._changed)

    def _dialled(self, name: str) -> None:
        self._begun.setdefault(name, time.monotonic())

    def _changed(self, tunnel: AgentTunnel, before: State) -> None:
        if tunnel.state == "online":
            now = time.monotonic()
            self._took.append(now - self._begun[tunnel.name])
            if len(self._took) == self._count:
                took = sorted(self._took)
                say(
                    online=self._count,
                    seconds=now - self._first,
                    p50_ms=took[len(took) // 2] * 1e3,
                    p99_ms=took[int(len(took) * 0.99)] * 1e3,
                    failures=self._failures,
                )
        elif tunnel.state in ("offline", "failed", "resuming"):
            self._failures += 1

    async def _pace(self) -> None:
        """Send each stream its events, all streams spread over the second."""
        due, last = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            ring = self.ring
            rate = self._events * self.live
            due = min(due + (now - last) * rate, rate / 5)
            last = now
            while due >= 1 and ring:
                answer = ring.popleft()
                if not answer.over:  # one that ended drops out when its turn comes
                    due -= 1
                    ring.append(answer)
                    self.sent += 1
                    answer.stream.send(_event())

    def stop_events(self) -> None:
        """No more of them."""
        self._events = 0.0
        self.tell()

    def tell(self) -> None:
        """What was sent so far, the first of each stream not counted."""
        say(sent=self.sent, live=self.live, poured=self.poured, failures=self._failures)


class Answer:
    """A stream that is answered with events until its visitor leaves."""

    __slots__ = ("_herd", "over", "stream")

    def __init__(self, herd: Herd, stream: Stream) -> None:
        self._herd = herd
        self.stream = stream
        self.over = False
        herd.live += 1
        herd.ring.append(self)
        stream.send_head(200, list(_HEAD))
        stream.send(_event())

    def cancelled(self, reason: str) -> None:
        if not self.over:
            self.over = True
            self._herd.live -= 1

    def head(self, status: int, headers: Headers) -> None:
        raise AssertionError("a head to an agent")

    def data(self, data: bytes) -> None:
        self.stream.took(len(data))

    def end(self, trailers: Headers) -> None:
        pass

    def stopped(self) -> None:
        self.cancelled("visitor")

    def writable(self) -> None:
        pass


class Bulk:
    """A stream that is answered with bytes without end, as fast as they are taken."""

    __slots__ = ("_herd", "stream")

    _PIECE = b"x" * 65536

    def __init__(self, herd: Herd, stream: Stream) -> None:
        self._herd = herd
        self.stream = stream
        stream.send_head(200, [("Content-Type", "application/octet-stream")])

    def writable(self) -> None:
        more = True
        while more and not self.stream.closed:
            more = self.stream.send(self._PIECE)
            self._herd.poured += len(self._PIECE)

    def cancelled(self, reason: str) -> None:
        pass

    def head(self, status: int, headers: Headers) -> None:
        raise AssertionError("a head to an agent")

    def data(self, data: bytes) -> None:
        self.stream.took(len(data))

    def end(self, trailers: Headers) -> None:
        pass

    def stopped(self) -> None:
        pass


class Small(Bulk):
    """A stream that is answered with two bytes."""

    __slots__ = ()

    def __init__(self, herd: Herd, stream: Stream) -> None:
        self._herd = herd
        self.stream = stream
        stream.send_head(200, [("Content-Length", "2")])
        stream.send(b"ok")
        stream.send_end()

    def writable(self) -> None:
        pass


class Answering(Well):
    """It answers streams itself."""

    def __init__(self, herd: Herd, config: TunnelConfig) -> None:
        super().__init__(config)
        self.herd = herd

    def accept(self, stream: Stream, request: Open, ended: bool) -> Sink:
        if request.path.startswith("/bulk"):
            bulk = Bulk(self.herd, stream)
            asyncio.get_running_loop().call_soon(bulk.writable)
            return bulk
        if request.path.startswith("/small"):
            return Small(self.herd, stream)
        return Answer(self.herd, stream)


async def _main(options: argparse.Namespace) -> None:
    herd = Herd(**vars(options))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, herd.tell)
    loop.add_signal_handler(signal.SIGUSR2, herd.stop_events)
    await until_terminated(herd.run())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tunnels", type=int, default=1000)
    parser.add_argument("--dials", type=float, default=200.0)
    parser.add_argument("--events", type=float, default=0.0)
    parser.add_argument("--prefix", default="a")
    chosen = parser.parse_args()
    raise_limit()
    run(_main(chosen))
