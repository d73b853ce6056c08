"""`tunnelctl events` of a whole agent: each event is as it is documented, filters, and what a restart says."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, get_type_hints

import httpx
import pytest
from pydantic import TypeAdapter
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from tests.support.commands import tunnelctl
from tests.support.daemons import Pair
from tests.support.processes import Process, eventually, python_module
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, short_dir
from tunneld.control.event_queue import PATIENCE
from tunneld.control.event_shapes import BY_TYPE, TypedEvent
from tunneld.control.models.events import EVENT_TYPES

READ: TypeAdapter[Any] = TypeAdapter(TypedEvent)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


class Reader:
    """`tunnelctl events --json ARGS`, and what it has printed."""

    def __init__(self, ends: ExitStack, pair: Pair, *args: str) -> None:
        line = python_module("tunnelctl", "--socket", str(pair.agent.socket), "events", "--json", *args)
        self.process = Process(line, name=f"events {' '.join(args)}")
        ends.callback(self.process.discard)

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line.text) for line in list(self.process.lines) if line.text.startswith("{")]

    def wait(self, **wanted: object) -> dict[str, Any]:
        """The first event with these."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.told if all(one.get(key) == value for key, value in wanted.items())]

        self.process.wait_until(lambda: bool(found()), timeout=20, what=f"told of {wanted}")
        return found()[0]


def echo(peer: ServerConnection) -> None:
    for message in peer:
        peer.send(message)


def made(stack: ExitStack) -> Pair:
    folder = stack.enter_context(short_dir())
    service = SampleService()
    stack.callback(service.stop)
    sockets = stack.enter_context(serve(echo, LOOPBACK, 0))
    thread = threading.Thread(target=sockets.serve_forever)
    thread.start()
    stack.callback(thread.join, 10)
    stack.callback(sockets.shutdown)
    pair = Pair(
        folder,
        {"app": service.url, "chat": f"http://{LOOPBACK}:{sockets.socket.getsockname()[1]}"},
        agent={
            "heartbeat": {"interval": "1s", "timeout": "1s"},
            "alerts": [{"when": "service_failing", "for": 0, "to": [{"log": True}]}],
        },
        server={"heartbeat": {"min": "1s"}},
    )
    stack.callback(pair.discard)
    return pair


def act(pair: Pair) -> None:
    """Everything that changes something, by its real cause."""
    own = ["--socket", str(pair.agent.socket)]
    assert httpx.get(pair.url("app", '/small?"tunnel":"chat"')).status_code == 200
    with connect(pair.url("chat", "/").replace("http", "ws", 1)) as chat:
        chat.send("hello")
        assert chat.recv() == "hello"
    with httpx.stream("GET", pair.url("app", "/events?id=1"), headers={"Accept": "text/event-stream"}) as answer:
        assert tunnelctl("cancel", answer.headers["X-Tunnel-Request-Id"], *own).returncode == 0
    assert tunnelctl("reconnect", "app", *own).returncode == 0
    assert tunnelctl("open", "late", f"http://{LOOPBACK}:9", *own).returncode == 0
    pair.agent.rewrite({"sse": {"keepalive": "7s"}})
    assert tunnelctl("reload", *own).returncode == 0


@pytest.mark.timeout(120)
def test_each_event_is_as_it_is_documented_and_a_restart_is_told_as_a_gap(stack: ExitStack) -> None:
    pair = made(stack)
    every, of_app, alerts = (Reader(stack, pair, *args) for args in ((), ("--tunnel", "app"), ("--type", "alert")))
    three = 'tunneld_limit_used_ratio{limit="event_readers"}'
    pair.agent.process.wait_until(lambda: _metric(pair, three) >= 3 / 32, what="read by three")
    act(pair)
    every.wait(type="tunnel", tunnel="app", state="resuming", was="online")
    every.wait(type="alert", alert="service_failing", state="firing", subject="late")
    assert tunnelctl("close", "late", "--socket", str(pair.agent.socket)).returncode == 0
    every.wait(type="tunnel", tunnel="late", state="closed")
    every.wait(type="reload")
    every.wait(type="heartbeat", ok=True)
    assert every.wait(type="stream_closed", reason="operator")["kind"] == "sse"
    assert every.wait(type="stream_closed", kind="websocket")["tunnel"] == "chat"
    alerts.wait(type="alert", subject="late")
    assert of_app.wait(type="tunnel", state="online", was="resuming")["resumed"] is True
    last = every.told[-1]["id"]
    assert tunnelctl("drain", "--socket", str(pair.agent.socket)).returncode == 0
    every.wait(type="drain")
    assert {one["type"] for one in every.told} == set(EVENT_TYPES) - {"lagged", "gap"}
    assert {one["type"] for one in alerts.told} == {"alert"}
    assert {one.get("tunnel") for one in of_app.told} == {"app"}
    assert [one["request_id"] for one in of_app.told if "request_id" in one] == [
        one["request_id"] for one in every.told if one.get("tunnel") == "app" and "request_id" in one
    ]

    pair.agent.process.wait()
    pair.agent.restart()
    back = Reader(stack, pair, "--since", str(last))
    gap = back.wait(type="gap")
    assert (gap["since"], gap["next"]) == (last, None), "it knows nothing of what came before it, and says so"
    assert httpx.get(pair.url("app", "/small")).status_code == 200
    new = back.wait(type="stream_opened")["id"]
    assert new > last, "ids rise over a restart"
    back.wait(type="stream_closed")
    again = Reader(stack, pair, "--since", str(new))
    again.wait(type="stream_closed")
    assert "gap" not in {one["type"] for one in again.told}, "of what this one has seen nothing is missing"

    told = every.told + back.told + again.told
    for event in told:
        shape = BY_TYPE[event["type"]]
        TypeAdapter(shape).validate_python(event, strict=True, extra="forbid")
        READ.validate_python(event, strict=True, extra="forbid")
        assert set(event) <= set(get_type_hints(shape)), "no key that is not documented"
    for one in (every, back):
        ids = [event["id"] for event in one.told]
        assert ids == sorted(ids)
    for process in pair.processes:
        assert not process.tracebacks()


def _metric(pair: Pair, series: str) -> float:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(pair.agent.socket))) as client:
        text = client.get("http://localhost/metrics").text
    return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series))


@pytest.mark.timeout(60)
def test_what_is_asked_for_wrongly_is_said(stack: ExitStack) -> None:
    folder = stack.enter_context(short_dir())
    pair = Pair(folder, {"app": f"http://{LOOPBACK}:9"})
    stack.callback(pair.discard)
    for args, said in (
        (("--since", "yesterday"), "--since: 'yesterday' is no id of an event"),
        (("--type", "streams"), "--type: 'streams' is none of tunnel, heartbeat"),
    ):
        done = pair.agent.tunnelctl("events", *args)
        assert done.returncode == 2
        assert said in done.stderr


@pytest.mark.timeout(60)
def test_a_reader_that_reads_nothing_is_cut_told_so_and_can_come_back(stack: ExitStack) -> None:
    folder = stack.enter_context(short_dir())
    service = SampleService()
    stack.callback(service.stop)
    pair = Pair(folder, {"app": service.url}, agent={"control": {"event_queue": "256KiB", "event_history": "64KiB"}})
    stack.callback(pair.discard)
    deaf = stack.enter_context(socket.socket(socket.AF_UNIX))
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(str(pair.agent.socket))
    deaf.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200 OK" in deaf.recv(300)
    long = "x" * 4000
    ratio = 'tunneld_limit_used_ratio{limit="event_queue"}'
    with httpx.Client() as visitor:
        began, fullest = time.monotonic(), 0.0
        while fullest < 0.5 and time.monotonic() < began + 30:
            for _ in range(20):
                assert visitor.get(pair.url("app", f"/small?{long}")).status_code == 200
            fullest = _metric(pair, ratio)
        assert fullest >= 0.5, "how close it is to its bound is told"
        more, known = 60, time.monotonic() + 2 * PATIENCE  # that it does not read, as one that is slow once does not
        while more > 0 or time.monotonic() < known:
            assert visitor.get(pair.url("app", f"/small?{long}")).status_code == 200
            more -= 1
    seen = b""
    deaf.settimeout(20)
    while not seen.endswith(b"\r\n0\r\n\r\n") and (data := deaf.recv(1 << 20)):
        seen += data
    last = [json.loads(line[6:]) for line in seen.split(b"\n") if line.startswith(b"data: ") and line.endswith(b"}")][
        -1
    ]
    assert last["type"] == "lagged"
    assert last["dropped"] > 0
    back = Reader(stack, pair, "--since", str(last["id"] - last["dropped"]))
    assert back.wait(type="gap")["since"] == last["id"] - last["dropped"]
    eventually(lambda: httpx.get(pair.url("app", "/small")).status_code == 200, what="going on")


@pytest.mark.timeout(90)
def test_streams_that_a_lost_server_ends_all_at_once_are_all_told(stack: ExitStack) -> None:
    """More than twice the queue within a few turns of the agent: a reader that reads is told of each, and not cut."""
    each, long = 300, "x" * 2000
    folder = stack.enter_context(short_dir())
    service = SampleService()
    stack.callback(service.stop)
    pair = Pair(
        folder,
        {"app": service.url, "second": service.url},
        server={"resume": {"grace": 0}, "log": {"level": "info"}},
        agent={"control": {"event_queue": "256KiB", "event_history": "64KiB"}, "log": {"level": "info"}},
    )
    stack.callback(pair.discard)
    for number in range(2 * each):
        visitor = stack.enter_context(socket.create_connection((LOOPBACK, pair.server.port), timeout=20))
        path = f"/t/{('app', 'second')[number % 2]}/quiet?id={number}&{long}"
        visitor.sendall(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\n\r\n".encode())
        assert visitor.recv(12) == b"HTTP/1.1 200"
    wanted = {one["request_id"] for one in pair.agent.ask("streams")["streams"]}
    assert len(wanted) == 2 * each
    reader = Reader(stack, pair)
    pair.agent.process.wait_until(
        lambda: _metric(pair, 'tunneld_limit_used_ratio{limit="event_readers"}') > 0, what="read"
    )
    pair.server.process.kill()

    def ended() -> list[str]:
        return [one["request_id"] for one in reader.told if one["type"] == "stream_closed"]

    reader.process.wait_until(lambda: len(ended()) >= 2 * each, timeout=20, what="told of all")
    assert sorted(ended()) == sorted(wanted)
    assert not {one["type"] for one in reader.told} & {"lagged", "gap"}
    ids = [one["id"] for one in reader.told]
    assert ids == list(range(ids[0], ids[0] + len(ids))), "none is missing"
    assert not pair.agent.process.tracebacks()
