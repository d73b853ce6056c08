"""What breaks for real: killed and stopped daemons, services that die, visitors that come and go, readers that stop."""

import asyncio
import functools
import os
import random
import re
import signal
import time

import httpx
import pytest

from tests.bench.load import Tally, Where, close_streams, open_streams, percentile
from tests.e2e.conftest import MakePair, need
from tests.support import usage
from tests.support.daemons import Pair
from tests.support.processes import Process, eventually
from tests.support.services import SampleService
from tests.support.visitors import Curl, RawVisitor, request_id

# curl's exit statuses for a body that was cut: 18 (bytes or the last chunk missing), 56 (reset)
ABORTED = {18, 56}
FAST = {"heartbeat": {"interval": "1s", "timeout": "1s"}}
# What a loss ends at once: with resume (tests/chaos) most of it goes on.
AT_ONCE = {"resume": {"grace": 0}}
BOUND = 2.0
SLACK = 1.0  # a shared machine's scheduling


def listen(pair: Pair, name: str) -> Curl:
    """A curl that receives events of the stream `name`."""
    curl = Curl(pair.url("app", f"/events?id={name}&gap=0.05"), "-H", "Accept: text/event-stream")
    curl.wait_line("data: event 2")
    return curl


# -- daemons


def test_a_killed_agent_aborts_bodies_and_comes_back(make_pair: MakePair, own: SampleService) -> None:
    pair: Pair = make_pair({"app": own.url}, server={**AT_ONCE, "limits": {"hold": "200ms"}})
    agent, server = pair.processes
    curl = listen(pair, "lives")
    slow = Curl(pair.url("app", "/bytes?n=900000000"), "--limit-rate", "1M", "-o", "/dev/null")
    one = request_id(curl.head())
    eventually(lambda: len(pair.agent.streams()) == 2, what="carrying both")
    agent.kill()
    assert curl.wait() in ABORTED
    assert slow.wait() in ABORTED
    own.wait_closed("lives")
    server.wait_line("✗ Tunnel disconnected: app")
    assert "peer_lost" in server.wait_line(f"🧹 Cleaned up stream: {one}").text
    answer = httpx.get(pair.url("app", "/small"), timeout=10)
    assert answer.status_code == 503
    assert answer.headers["x-tunnel-error"] == "tunnel_offline"
    assert int(answer.headers["retry-after"]) >= 1
    pair.agent.restart()
    server.wait_line("✓ Tunnel established: app", count=2)
    assert httpx.get(pair.url("app", "/small"), timeout=10).status_code == 200


def test_a_visitor_is_held_while_the_agent_comes_back(make_pair: MakePair, own: SampleService) -> None:
    pair: Pair = make_pair({"app": own.url}, server={"limits": {"hold": "20s"}})
    pair.agent.process.kill()
    pair.server.process.wait_line("✗ Tunnel disconnected: app")
    curl = Curl(pair.url("app", "/small"))
    pair.agent.restart()
    assert curl.wait() == 0
    assert curl.lines[0].text.startswith("HTTP/1.1 200")


def test_a_killed_server_is_found_again(make_pair: MakePair, own: SampleService) -> None:
    pair: Pair = make_pair({"app": own.url}, server=AT_ONCE)
    curl = listen(pair, "cut")
    pair.server.process.kill()
    assert curl.wait() in ABORTED
    own.wait_closed("cut")
    mark = pair.agent.process.mark()
    pair.agent.process.wait_line("✗ Tunnel disconnected: app")
    (tunnel,) = pair.agent.ask("status")["tunnels"]
    assert tunnel["state"] in ("connecting", "offline")
    assert tunnel["active_streams"] == 0
    pair.server.restart()
    pair.agent.process.wait_line("✓ Tunnel established: app", after=mark)
    pair.agent.process.wait_line("The tunnel app is online", after=mark)
    (tunnel,) = pair.agent.ask("status")["tunnels"]
    assert (tunnel["state"], tunnel["reconnects"]) == ("online", 1)
    assert httpx.get(pair.url("app", "/small"), timeout=10).status_code == 200


def noticed(process: Process, since: float, mark: int, tunnel: str = "app") -> None:
    """💔 and ✗ came within the bound, counted from the moment the peer fell silent."""
    for line in (f"💔 Heartbeat failed for {tunnel}", f"✗ Tunnel disconnected: {tunnel}"):
        took = process.wait_line(line, after=mark, timeout=BOUND + 5).at - since
        print(f"{process.name}: {line!r} after {took:.2f} s")
        assert took <= BOUND + SLACK


def test_a_stopped_agent_is_noticed_by_the_server(make_pair: MakePair, own: SampleService) -> None:
    pair: Pair = make_pair({"app": own.url}, server={**FAST, **AT_ONCE, "limits": {"hold": "200ms"}}, agent=FAST)
    agent, server = pair.processes
    agent.wait_line("💓 Heartbeat acknowledged for app")
    server.wait_line("💓 Heartbeat acknowledged for app")
    curl = listen(pair, "stopped")
    marks = agent.mark(), server.mark()
    since = time.monotonic()
    agent.pause()
    noticed(server, since, marks[1])
    assert curl.wait() in ABORTED
    assert httpx.get(pair.url("app", "/small"), timeout=10).status_code == 503
    agent.resume()
    agent.wait_line("✓ Tunnel established: app", after=marks[0])
    own.wait_closed("stopped")
    assert httpx.get(pair.url("app", "/small"), timeout=10).status_code == 200


def test_a_stopped_server_is_noticed_by_the_agent(make_pair: MakePair, own: SampleService) -> None:
    pair: Pair = make_pair({"app": own.url}, server={**FAST, **AT_ONCE}, agent=FAST)
    agent, server = pair.processes
    agent.wait_line("💓 Heartbeat acknowledged for app")
    curl = listen(pair, "silent")
    mark = agent.mark()
    since = time.monotonic()
    server.pause()
    noticed(agent, since, mark)
    assert own.wait_closed("silent") / 1e9 - since <= BOUND + SLACK
    (tunnel,) = pair.agent.ask("status")["tunnels"]
    assert tunnel["state"] in ("connecting", "offline")
    server.resume()
    agent.wait_line("✓ Tunnel established: app", after=mark)
    assert curl.wait() in ABORTED
    assert httpx.get(pair.url("app", "/small"), timeout=10).status_code == 200


def test_sigterm_ends_streams_visibly_within_the_drain_timeout(make_pair: MakePair, own: SampleService) -> None:
    pair: Pair = make_pair({"app": own.url}, agent={"drain_timeout": "1s"}, server={"drain_timeout": "1s"})
    agent, server = pair.processes
    for process in (agent, server):
        curl = listen(pair, f"drained-{process.name}")
        begun = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - begun < 1 + SLACK + 1
        assert curl.wait() in ABORTED
        own.wait_closed(f"drained-{process.name}")
        if process is agent:
            pair.agent.restart()


# -- services


def test_a_service_that_dies_aborts_its_streams(make_pair: MakePair, own: SampleService) -> None:
    pair: Pair = make_pair({"app": own.url})
    curl = listen(pair, "dies")
    one = request_id(curl.head())
    own.process.kill()
    assert curl.wait() in ABORTED
    for process in pair.processes:
        assert "service" in process.wait_line(f"🧹 Cleaned up stream: {one}").text
    refused = httpx.get(pair.url("app", "/small"), timeout=10)
    assert refused.status_code == 502
    assert refused.headers["content-type"].startswith("application/problem+json")
    assert refused.json()["code"] == refused.headers["x-tunnel-error"]


@pytest.mark.parametrize("how", ["length", "chunked", "sse"])
def test_a_broken_body_is_aborted_never_ended(pair: Pair, how: str) -> None:
    need("curl", "apt-get install curl")
    curl = Curl(pair.url("app", f"/break?n=3000&how={how}"), "-o", "/dev/null")
    assert curl.wait() in ABORTED


def test_a_break_before_the_head_is_502(pair: Pair) -> None:
    assert httpx.get(pair.url("app", "/break?how=head"), timeout=10).status_code == 502


# -- visitors


LEAVE = ("quiet", "events", "half-download", "half-upload", "slow", "half-head", "pipelined", "whole")


def come_and_go(pair: Pair, dice: random.Random, number: int) -> None:
    """One visitor who does one thing of LEAVE and leaves by FIN or RST."""
    what = dice.choice(LEAVE)
    visitor = RawVisitor(pair.server.port)
    sse = "Accept: text/event-stream"
    if what == "half-head":
        visitor.send(b"GET /t/app/small HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
    elif what == "half-upload":
        visitor.send(
            b"POST /t/app/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + b"u" * dice.randrange(200_000)
        )
    elif what == "half-download":
        visitor.get("/t/app/bytes?n=3000000")
        visitor.read_until(b"\r\n\r\n")
    elif what == "slow":
        visitor.get(f"/t/app/slow?s=30&id=s{number}")
    elif what == "pipelined":
        visitor.get(f"/t/app/quiet?id=p{number}", sse)
        visitor.read_until(b"data: hello")
        visitor.get("/t/app/small")
    elif what == "whole":
        visitor.get("/t/app/small")
        visitor.read_until(b"x" * 99)
    else:
        visitor.get(f"/t/app/{what}?id=q{number}&gap=0.01", sse)
        visitor.read_until(b"data: ")
    if dice.random() < 0.5:
        visitor.leave()
    else:
        visitor.reset()


def assert_storm_leaves_nothing(pair: Pair, service: SampleService, count: int) -> None:
    dice = random.Random(20250101)
    for number in range(200):  # what is made once, is made now: pools, caches, buffers
        come_and_go(pair, dice, number)
    settle(pair, service)
    before = [(usage.descriptors(process.pid), usage.resident_bytes(process.pid)) for process in pair.processes]
    for number in range(count):
        come_and_go(pair, dice, 1000 + number)
    settle(pair, service)
    for process, (descriptors, resident) in zip(pair.processes, before, strict=True):
        eventually(functools.partial(at_most, process, descriptors + 2), what=f"back to {descriptors} descriptors")
        grown = (usage.resident_bytes(process.pid) - resident) / 1024
        print(f"{process.name}: {grown:.0f} KiB grown by {count} streams")
        assert grown < 12 * 1024, f"{process.name} grew by {grown:.0f} KiB"
    # each stream that a side opened, it also cleaned up, once
    for process in pair.processes:
        cleaned = [re.search(r"🧹 Cleaned up stream: ([\w-]+)", line.text) for line in process.matching("🧹")]
        ids = [found[1] for found in cleaned if found]
        assert len(ids) == len(set(ids))


def at_most(process: Process, descriptors: int) -> bool:
    return usage.descriptors(process.pid) <= descriptors


def settle(pair: Pair, service: SampleService) -> None:
    """Wait until neither the agent nor the service has a stream, and no idle connection is kept."""

    def calm() -> bool:
        stats = httpx.get(f"{service.url}/stats", timeout=5).json()
        return pair.agent.streams() == [] and stats["streams"] == 0 and stats["connections"] == 0

    eventually(calm, timeout=20, what=f"calm: {pair.agent.streams()}")


def test_a_thousand_random_visits_leave_nothing(make_pair: MakePair, own: SampleService) -> None:
    assert_storm_leaves_nothing(make_pair({"app": own.url}), own, 1000)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_random_visits_leave_nothing(make_pair: MakePair, own: SampleService) -> None:
    quiet = {"log": {"level": "info"}}
    assert_storm_leaves_nothing(make_pair({"app": own.url}, server=quiet, agent=quiet), own, 10_000)


def test_a_reader_that_stops_holds_its_window_and_the_others_keep_their_rate(
    make_pair: MakePair, own: SampleService
) -> None:
    pair: Pair = make_pair({"app": own.url})
    asyncio.run(_stopped_reader(pair, own))


async def _stopped_reader(pair: Pair, own: SampleService) -> None:
    tally = Tally()
    others = await open_streams(Where(pair.server.port, "/t/app"), [f"/paced?id=r{n}" for n in range(20)], tally)
    httpx.get(f"{own.url}/pace?rate=200", timeout=5)
    assert len(await asyncio.to_thread(pair.agent.streams)) == 20  # what answers there is loaded at the first call
    before = sum(usage.resident_bytes(process.pid) for process in pair.processes)
    stalled = RawVisitor(pair.server.port, receive_buffer=65536)
    stalled.get("/t/app/bytes?n=1000000000")
    stalled.read_until(b"\r\n\r\n")
    (stream,) = [one for one in await asyncio.to_thread(pair.agent.streams) if one["path"].startswith("/bytes")]
    tally.measuring = True
    await asyncio.sleep(3)  # the span over which the others' rate is counted
    tally.measuring = False
    (later,) = [one for one in await asyncio.to_thread(pair.agent.streams) if one["path"].startswith("/bytes")]
    grown = (sum(usage.resident_bytes(process.pid) for process in pair.processes) - before) / 1024 / 1024
    taken = later["bytes_out"] / 1024 / 1024
    print(f"taken from the service {taken:.1f} MiB, grown {grown:.1f} MiB, others {tally.events} events")
    assert later["request_id"] == stream["request_id"]
    # windows of up to 4 MiB on the way, the kernel's own buffers (up to 4 MiB each way) come on top
    assert taken < 24
    assert grown < 16
    assert tally.events > 0.9 * 600
    assert percentile([ns / 1e6 for ns in tally.latencies_ns], 0.99) < 250
    stalled.reset()
    await close_streams(others)
    await asyncio.to_thread(settle, pair, own)


# -- the daemons' own files


def test_a_stale_socket_is_replaced_and_a_live_one_is_an_error(make_pair: MakePair, own: SampleService) -> None:
    pair: Pair = make_pair({"app": own.url})
    second = Process(pair.agent.process.argv, name="second agent")
    try:
        assert second.wait() not in (0, None)
        assert not second.tracebacks(), second.tail()
        assert httpx.get(pair.url("app", "/small"), timeout=10).status_code == 200
    finally:
        second.discard()
    pair.agent.process.kill()
    assert pair.agent.socket.exists()
    pair.agent.restart()
    assert pair.agent.ask("health")["status"] in ("ok", "degraded")


def test_an_open_stream_survives_a_reload_and_sees_the_new_keepalive(make_pair: MakePair, own: SampleService) -> None:
    low = {"sse": {"min": "100ms"}}
    pair: Pair = make_pair({"app": own.url}, server=low, agent={"sse": {"keepalive": "60s"}})
    curl = Curl(pair.url("app", "/quiet?id=still"), "-H", "Accept: text/event-stream")
    curl.wait_line("data: hello")
    pair.agent.rewrite({"sse": {"keepalive": "200ms"}})
    mark = curl.mark()
    os.kill(pair.agent.process.pid, signal.SIGHUP)
    curl.wait_line(lambda text: text.startswith(":"), after=mark, count=3)
    pair.agent.file.write_text("tunnels: [{nam: x}]\n")
    bad = pair.agent.tunnelctl("reload")
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr
    mark = curl.mark()
    curl.wait_line(lambda text: text.startswith(":"), after=mark)
    curl.stop()
    own.wait_closed("still")
