"""What 100 ms of round trip cost: two namespaces and a TUN relay, agent and service on one side, visitors on the other.

Needs root, `ip` and `ss`. Ours alone is measured: no other tunnel goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.bench.measures import MIB, Numbers, Run
from tests.support.netns import ADDRESS, Network, missing
from tests.support.processes import Process, python_module
from tests.support.sockets import certificate, short_dir

__all__ = ["far_bulk", "far_ws", "far_wss"]

#: Seconds, there and back.
ROUND_TRIP = 0.1
_STAMP = re.compile(r"data: (\d{9,20}) ")
_RESUMED = "✓ Tunnel established: t"


class _Far:
    """Both daemons at their defaults but for what the distance needs, and a service."""

    def __init__(self, net: Network, ends: ExitStack, folder: Path, *, secure: bool) -> None:
        self.net = net
        self._ends = ends
        far = ADDRESS["b"]
        there: dict[str, Any] = {"host": far, "port": 8441, "serve": ["tunnels"]}
        dial: dict[str, Any] = {"url": f"ws://{far}:8441"}
        if secure:
            made = certificate(folder, far)
            there["tls"] = {"cert": str(made.cert), "key": str(made.key)}
            dial = {"url": f"wss://{far}:8441", "ca_file": str(made.cert)}
        listen = [{"host": "127.0.0.1", "port": 8440}, there]
        server = {"listen": listen, "auth": {"mode": "open"}, "admin": False, "store": "memory:", "drain_timeout": 0}
        agent = {
            "server": dial,
            "control": {"socket": str(folder / "c.sock")},
            "tunnels": [{"name": "t", "service": "http://127.0.0.1:9000"}],
            "drain_timeout": 0,
        }
        self._start("a", "tests.support.services", "--port", "9000", name="service", line="ready")
        file = self._write(folder / "s.yaml", server)
        self._start("b", "tunneld", "server", "--config", file, name="server", line=":8441")
        file = self._write(folder / "a.yaml", agent)
        self.agent = self._start("a", "tunneld", "agent", "--config", file, name="agent", line=_RESUMED)
        self.agent.wait_line("established", timeout=10)

    @staticmethod
    def _write(path: Path, document: dict[str, Any]) -> str:
        path.write_text(yaml.safe_dump(document))
        path.chmod(0o600)
        return str(path)

    def _start(self, side: str, *argv: str, name: str, line: str) -> Process:
        process = self.net.process(side, python_module(*argv), name=name)
        self._ends.callback(process.discard)
        process.wait_line(line, timeout=30)
        return process

    def curl(self, side: str, address: str, *options: str) -> Process:
        process = self.net.process(side, ["curl", "-sS", "-N", *options, address], name="curl")
        self._ends.callback(process.discard)
        return process

    def cut(self) -> None:
        """The agent's connection is reset by its own kernel, as a NAT or a changed route would."""
        done = self.net.process("a", ["ss", "-K", "-H", "-t", "dst", ADDRESS["b"]], name="ss")
        self._ends.callback(done.discard)
        if done.wait(5) != 0 or not done.matching("ESTAB"):
            raise RuntimeError("`ss -K` cannot end sockets in this kernel (CONFIG_INET_DIAG_DESTROY)")


@contextmanager
def _far(*, secure: bool) -> Iterator[_Far]:
    if (lacks := missing()) is not None:
        raise RuntimeError(f"left out: {lacks}")
    with short_dir() as folder, Network(delay=ROUND_TRIP / 2) as net, ExitStack() as ends:
        yield _Far(net, ends, folder, secure=secure)


def _gaps(cuts: int, *, secure: bool) -> Numbers:
    """From a cut to the next event at the visitor, an event every 5 ms.

    What was under way at the cut arrives for half a round trip more: the silence that follows and that half are it.
    """
    with _far(secure=secure) as it:
        curl = it.curl("b", "http://127.0.0.1:8440/t/t/paced?id=p", "-H", "Accept: text/event-stream")
        assert it.curl("a", "http://127.0.0.1:9000/pace?rate=200").wait(10) == 0
        curl.wait_line(lambda text: _STAMP.match(text) is not None, timeout=10)
        gaps = []
        for _ in range(cuts):
            time.sleep(1.2)  # two dials are never closer than `reconnect.initial`, and the last one has to stand
            mark = curl.mark()
            known = it.agent.mark()
            it.cut()
            it.agent.wait_line(_RESUMED, after=known, timeout=10)
            back = time.monotonic_ns()
            curl.wait_line(lambda text: _made(text) >= back, after=mark, timeout=10)  # noqa: B023 - asked here
            came = [line.at for line in curl.matching("data:", after=mark - 1)]
            silence = max(later - earlier for earlier, later in itertools.pairwise(came))
            gaps.append((silence + ROUND_TRIP / 2) * 1e3)
    return {"p50_ms": statistics.median(gaps), "max_ms": max(gaps)}


def _made(text: str) -> int:
    found = _STAMP.match(text)
    return int(found[1]) if found else 0


async def far_ws(run: Run) -> Numbers:
    """The gap over ws: TCP, upgrade, hello, and half a round trip for the data."""
    return await asyncio.to_thread(_gaps, run.plan.far_cuts, secure=False)


async def far_wss(run: Run) -> Numbers:
    """The gap over wss: one round trip more, for TLS."""
    return await asyncio.to_thread(_gaps, run.plan.far_cuts, secure=True)


async def far_bulk(run: Run) -> Numbers:
    """One download, from its first byte to its last: the windows grow while it runs."""
    return await asyncio.to_thread(_download, run.plan.far_bulk)


def _download(size: int) -> Numbers:
    with _far(secure=False) as it:
        time.sleep(0.5)  # the first pong tells the round trip: before it no window grows
        words = "%{size_download} %{time_total} %{time_starttransfer}\n"
        curl = it.curl("b", f"http://127.0.0.1:8440/t/t/bytes?n={size}", "-o", "/dev/null", "-w", words)
        if curl.wait(120) != 0:
            raise RuntimeError(f"curl failed: {curl.tail()}")
        got, seconds, first = curl.lines[-1].text.split()
        if int(got) != size:
            raise RuntimeError(f"{got} bytes came instead of {size}")
        return {"mib_s": size / MIB / (float(seconds) - float(first))}
