"""`python -m tests.bench`: ours and every peer found, side by side; a table, and JSON under .bench/.

python -m tests.bench                                   everything, under 12 minutes
python -m tests.bench --quick --peers none              ours alone, under 2 minutes
python -m tests.bench --only requests,events --peers chisel,ssh
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.far import far_bulk, far_ws, far_wss
from tests.bench.measures import MEASURES as MEASURES_OF_ALL
from tests.bench.measures import Numbers, Plan, Run
from tests.bench.resume import bounded, outage, resume_cost, resume_gap, stampede
from tests.bench.scraping import scrape
from tests.bench.table import GOALS, render
from tests.bench.targets import PEERS, Ours, Target
from tests.bench.watching import PARTS, observed, observed_otlp, observed_part
from tests.support import usage
from tests.support.processes import ROOT
from tests.support.programs import raise_limit, run
from tests.support.services import SampleService
from tests.support.sockets import short_dir

#: What only ours does.
_OURS = {
    "resume_gap": resume_gap,
    "far_ws": far_ws,
    "far_wss": far_wss,
    "far_bulk": far_bulk,
    "resume_cost": resume_cost,
    "outage": outage,
    "bounded": bounded,
    "stampede": stampede,
    "scrape": scrape,
    "observed": observed,
    "observed_otlp": observed_otlp,
}
#: What is measured only where it is named: of what watches each part by itself, which takes five minutes.
_ASKED = {f"observed_{part}": functools.partial(observed_part, part=part) for part in ("nothing", "unfollowed", *PARTS)}
MEASURES: dict[str, Callable[[Run], Awaitable[Numbers]]] = {**MEASURES_OF_ALL, **_OURS, **_ASKED}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="all", help=f"of {','.join(MEASURES)}")
    parser.add_argument("--peers", default="all", help=f"all, none, or of {','.join(PEERS)} (all leaves out direct)")
    parser.add_argument("--without-ours", action="store_true", help="measure the peers alone")
    parser.add_argument("--quick", action="store_true", help="shorter and smaller")
    parser.add_argument("--repeat", type=int, default=1, help="run each measurement so often and keep the median")
    parser.add_argument(
        "--json", type=Path, help="where to write the numbers (default .bench/TIME.json and latest.json)"
    )
    options = parser.parse_args()
    options.only = (
        [name for name in MEASURES if name not in _ASKED] if options.only == "all" else options.only.split(",")
    )
    if unknown := set(options.only) - set(MEASURES):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    named = {"all": [name for name in PEERS if name != "direct"], "none": []}
    options.peers = named.get(options.peers) if options.peers in named else options.peers.split(",")
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    if "requests" in options.only and not shutil.which("wrk"):
        print("requests is left out: wrk is missing (apt-get install wrk)", file=sys.stderr)
        options.only.remove("requests")
    return options


def _median(runs: list[Numbers]) -> Numbers:
    keys = {key: None for numbers in runs for key in numbers}
    return {key: sorted(numbers[key] for numbers in runs)[len(runs) // 2] for key in keys}


def _called(left: int) -> int:
    return left - 1


def python_ns() -> float:
    """Nanoseconds of CPU that this Python takes for a call, at its best: what other figures of a run go by.

    One that was built with a profile (Debian's, which the package runs on) takes a tenth less than one without, and a
    fifth less for a request.
    """
    best, turns = float("inf"), 20_000
    for _ in range(9):
        left, begun = turns, time.process_time()
        while left:
            left = _called(left)
        best = min(best, time.process_time() - begun)
    return best / turns * 1e9


def _own_cpu() -> float:
    """CPU of this process, all its living descendants, and those that it has waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.cpu_seconds(*usage.tree(os.getpid())) + ended.ru_utime + ended.ru_stime


async def _settled(target: Target) -> None:
    """Wait until the daemons have done what their start brings: an agent that was asked over its control socket loads
    what answers there for two seconds, which is no part of a request or of an event."""
    pids = [pid for process in target.daemons().values() for pid in process.family()]
    for _ in range(60):
        before = usage.cpu_seconds(*pids)
        await asyncio.sleep(0.3)
        if usage.cpu_seconds(*pids) - before < 0.003:
            return
    raise RuntimeError(f"{target.name} is still busy {60 * 0.3:.0f} s after its start")


async def _once(name: str, target: Target, plan: Plan) -> Numbers:
    """One measurement on freshly started daemons and a fresh service."""
    with short_dir() as folder:
        service = SampleService()
        try:
            target.start(folder, service.port)
            try:
                await _settled(target)
                begun, busy, own = time.monotonic(), usage.busy_seconds(), _own_cpu()
                numbers = await MEASURES[name](Run(target, service, plan))
                other = usage.busy_seconds() - busy - (_own_cpu() - own)
                cores = (time.monotonic() - begun) * (os.cpu_count() or 1)
                return {**numbers, "others_percent": max(0.0, 100 * other / cores)}
            finally:
                target.stop()
        finally:
            service.stop()


def _measure(kind: type[Target], options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in options.only:
        if (name in ("status", *_OURS, *_ASKED) and kind is not Ours) or (
            kind.name == "direct" and name in ("memory", "rest")
        ):
            continue
        begun = time.monotonic()
        try:
            results[name] = _median([run(_once(name, kind(), plan)) for _ in range(options.repeat)])
        except (RuntimeError, OSError, AssertionError, TimeoutError, ExceptionGroup) as fault:
            results[name] = {"error": f"{type(fault).__name__}: {fault}".split("\n", 1)[0]}
            print(str(fault)[-4000:], file=sys.stderr)  # with the daemons' last lines
        shown = results[name].get("error") or ", ".join(f"{key} {value:.2f}" for key, value in results[name].items())
        print(f"{kind.name:10} {name:9} {shown}   ({time.monotonic() - begun:.1f} s)", file=sys.stderr, flush=True)
    return results


def _noise(results: dict[str, dict[str, Any]]) -> list[float]:
    """The share of the cores that others used, of each measurement."""
    found = [numbers.get("others_percent", 0.0) for measures in results.values() for numbers in measures.values()]
    return [float(share) for share in found]


def main() -> int:
    """Measure, print the table, write the JSON. 1 when a measurement of ours failed."""
    options = _arguments()
    plan = Plan.quick() if options.quick else Plan()
    raise_limit()
    gc.disable()  # a collection here would be measured as latency
    kinds = ([] if options.without_ours else [Ours]) + [PEERS[name] for name in options.peers]
    results: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        if (missing := kind.missing()) is not None:
            print(f"{kind.name:10} left out: {missing}", file=sys.stderr)
            continue
        results[kind.name] = _measure(kind, options, plan)
        gc.collect()
    call = python_ns()
    print(render(results))
    print(f"Python {platform.python_version()} of {sys.base_prefix}: {call:.0f} ns a call")
    if (noise := max(_noise(results), default=0.0)) > 10:
        print(f"other programs took up to {noise:.0f} % of the cores: latencies and rates are worse than they would be")
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "call_ns": call,
            "kernel": platform.release(),
        },
        "load": os.getloadavg(),
        "quick": options.quick,
        "goals": GOALS,
        "results": results,
    }
    out = ROOT / ".bench"
    out.mkdir(exist_ok=True)
    stamped = options.json or out / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    for path in (stamped, out / "latest.json"):
        path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"numbers: {stamped}")
    return int(any("error" in numbers for numbers in results.get(Ours.name, {}).values()))


if __name__ == "__main__":
    sys.exit(main())
