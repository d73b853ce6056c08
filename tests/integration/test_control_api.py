"""The control API as it is served: real sockets, a real client, a small agent in memory."""

import asyncio
import getpass
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.control_agent import MemoryAgent, stream_info, tunnel_status
from tests.support.running import Book
from tunneld.control.app import create_app
from tunneld.control.event_bounds import EventBounds
from tunneld.control.listener import ControlServer
from tunneld.errors import CODES, ConfigError
from tunneld.telemetry.trail import Trail


@pytest.fixture
def agent() -> MemoryAgent:
    agent = MemoryAgent()
    agent.add(
        stream_info("aa11", age_s=100, idle_s=50),
        stream_info("aa22", kind="http", path="/upload", method="POST"),
        stream_info("bb33", tunnel="other", age_s=5),
    )
    return agent


@pytest.fixture
async def path(agent: MemoryAgent, folder: Path) -> AsyncIterator[Path]:
    async with ControlServer(lambda: create_app(agent), folder / "c.sock", readonly_socket=folder / "r.sock"):
        yield folder / "c.sock"


@pytest.fixture
async def client(path: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(path), verify=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", verify=False) as client:
        yield client


def problem(answer: httpx.Response, code: str) -> dict[str, object]:
    assert answer.status_code == CODES[code].status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Tunnel-Error"] == code
    body = answer.json()
    assert (body["code"], body["status"], body["title"]) == (code, answer.status_code, CODES[code].title)
    return body  # type: ignore[no-any-return]


async def test_reads(agent: MemoryAgent, client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/status")).json() == agent.status()
    whole = (await client.get("/v1/status", params={"streams": "true"})).json()
    assert whole == {**agent.status(), "streams": list(agent.live.values())}
    assert whole == (await client.get("/v1/status?streams=1")).json()  # which is not answered the quick way
    assert (await client.get("/v1/health")).json() == agent.health()
    assert (await client.get("/v1/streams")).json() == {"streams": list(agent.live.values())}
    assert [one["request_id"] for one in (await client.get("/v1/streams?tunnel=demo&kind=sse")).json()["streams"]] == [
        "aa11"
    ]
    assert (await client.get("/v1/streams/aa22")).json() == agent.live["aa22"]
    problem(await client.get("/v1/streams/aa"), "no_such_stream")
    problem(await client.get("/v1/streams?kind=smtp"), "bad_argument")


@pytest.mark.parametrize("where", ["/v1/health", "/v1/status", "/v1/streams/aa22", "/v1/streams/nix", "/metrics"])
async def test_head_is_get_without_its_body(client: httpx.AsyncClient, where: str) -> None:
    expected = await client.get(where)
    for _ in range(2):  # the second on the same connection, where no byte of a body may stand between
        answer = await client.head(where)
        assert (answer.status_code, answer.content) == (expected.status_code, b"")
        assert answer.headers["content-type"] == expected.headers["content-type"]
        assert abs(int(answer.headers["content-length"]) - len(expected.content)) < 100  # figures change meanwhile


async def test_head_of_an_answer_that_goes_on_is_over_at_once(client: httpx.AsyncClient) -> None:
    for _ in range(2 * EventBounds().readers):  # none of them stays one
        answer = await client.head("/v1/events")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert (await client.head("/v1/reload")).status_code == 405


@pytest.mark.parametrize(("health", "status"), [("ok", 200), ("degraded", 200), ("down", 503)])
async def test_health_is_told_by_the_status(
    agent: MemoryAgent, client: httpx.AsyncClient, health: str, status: int
) -> None:
    agent.health_status = health
    answer = await client.get("/v1/health")
    assert (answer.status_code, answer.json()["status"]) == (status, health)
    assert answer.headers["Content-Type"] == "application/json"


async def test_cancel_one(agent: MemoryAgent, client: httpx.AsyncClient) -> None:
    assert (await client.delete("/v1/streams/aa11")).json() == {"cancelled": ["aa11"]}
    problem(await client.delete("/v1/streams/aa11"), "no_such_stream")
    assert set(agent.live) == {"aa22", "bb33"}


@pytest.mark.parametrize(
    ("wanted", "cancelled"),
    [
        ({"tunnel": "demo"}, ["aa11", "aa22"]),
        ({"kind": "http"}, ["aa22"]),
        ({"path": "/up*"}, ["aa22"]),
        ({"older_than_s": 10}, ["aa11", "aa22"]),
        ({"idle_s": 1}, ["aa11"]),
        ({"tunnel": "nix"}, []),
        ({"all": True}, ["aa11", "aa22", "bb33"]),
    ],
)
async def test_cancel_by_filter(
    agent: MemoryAgent, client: httpx.AsyncClient, wanted: object, cancelled: list[str]
) -> None:
    assert (await client.post("/v1/streams/cancel", json=wanted)).json() == {"cancelled": cancelled}
    assert not set(cancelled) & set(agent.live)


async def test_a_body_is_json_whatever_its_sender_calls_it(agent: MemoryAgent, client: httpx.AsyncClient) -> None:
    """As ``curl -d`` sends it."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.post("/v1/streams/cancel", content=b'{"all": true}', headers=headers)
    assert answer.json() == {"cancelled": ["aa11", "aa22", "bb33"]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"tunnels":"demo"}',
        b'{"all":false}',
        b'{"older_than_s":"5"}',
        b'{"older_than_s":-1}',
        b'{"older_than_s":NaN}',
        b'{"all":1}',
        b'{"all":1.0}',
        b'{"path":null}',
        b'{"kind":"smtp"}',
        b"[]",
        b"{",
        b"",
        b"\xff",
    ],
)
async def test_a_faulty_filter_cancels_nothing(agent: MemoryAgent, client: httpx.AsyncClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert problem(await client.post("/v1/streams/cancel", content=body, headers=headers), "bad_argument")["detail"]
    assert len(agent.live) == 3


async def test_empty_filter_and_large_bodies_are_refused(agent: MemoryAgent, client: httpx.AsyncClient) -> None:
    problem(await client.post("/v1/streams/cancel", json={}), "empty_filter")
    answer = await client.post("/v1/streams/cancel", json={"path": "x" * 100_000})
    problem(answer, "body_too_large")
    assert len(agent.live) == 3


async def test_changes(agent: MemoryAgent, client: httpx.AsyncClient) -> None:
    agent.changed = ["tunnel demo: heartbeat.interval 30 s is now 10 s"]
    assert (await client.post("/v1/reload")).json() == {"changed": agent.changed}
    agent.faults = ["a.yaml:3: heartbaet: unknown key", "a.yaml:9: tunnels: expected a list"]
    assert problem(await client.post("/v1/reload"), "bad_config")["faults"] == agent.faults
    assert (await client.post("/v1/tunnels/demo/reconnect")).json() == {"tunnel": "demo", "was": "online"}
    problem(await client.post("/v1/tunnels/nix/reconnect"), "no_such_tunnel")
    assert (await client.post("/v1/drain")).json() == {"draining": True, "streams": 3, "timeout_s": 30.0}
    assert (await client.put("/v1/log-level", json={"level": "debug"})).json() == {"level": "debug", "was": "info"}
    problem(await client.put("/v1/log-level", json={"level": "loud"}), "bad_argument")
    assert (agent.level, agent.draining) == ("debug", True)


async def test_tunnels_at_run_time(client: httpx.AsyncClient) -> None:
    problem(await client.get("/v1/tunnels/mine"), "no_such_tunnel")
    opened = await client.post("/v1/tunnels", json={"name": "mine", "service": "http://127.0.0.1:1", "for_s": 60})
    assert (opened.status_code, opened.json()["name"], opened.json()["expires_s"]) == (201, "mine", 60)
    problem(await client.post("/v1/tunnels", json={"name": "mine", "service": "http://127.0.0.1:1"}), "tunnel_exists")
    for bad in ({"name": "x"}, {"name": "x", "service": "http://h", "for_s": 0}, {"name": "x", "service": "s", "y": 1}):
        problem(await client.post("/v1/tunnels", json=bad), "bad_argument")
    assert (await client.get("/v1/tunnels/mine")).json()["configured"] is False
    assert (await client.delete("/v1/tunnels/mine")).json() == {"closed": "mine", "streams": 0}
    problem(await client.delete("/v1/tunnels/mine"), "no_such_tunnel")
    problem(await client.delete("/v1/tunnels/demo"), "tunnel_configured")


async def test_a_key_that_nobody_knows_is_refused_in_every_body(client: httpx.AsyncClient) -> None:
    bodies = {
        "/v1/streams/cancel": {"all": True},
        "/v1/tunnels": {"name": "x", "service": "http://127.0.0.1:1"},
        "/v1/tunnels/demo/links": {"path": "/", "for_s": 60.0},
        "/v1/tunnels/demo/permissions": {"emails": ["a@example.org"]},
        "/v1/alerts/test": {},
    }
    for path, body in bodies.items():
        assert "unknown" in str(problem(await client.post(path, json={**body, "unknown": 1}), "bad_argument"))
    problem(await client.put("/v1/log-level", json={"level": "info", "unknown": 1}), "bad_argument")


async def test_unknown_calls(client: httpx.AsyncClient) -> None:
    problem(await client.get("/v1/nothing"), "not_found")
    assert (await client.get("/v1/drain")).headers["Allow"] == "POST"
    problem(await client.get("/v1/drain"), "method_not_allowed")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "http://localhost"}, "web_page_refused"),
        ({"Origin": "null"}, "web_page_refused"),
        ({"Sec-Fetch-Site": "cross-site"}, "web_page_refused"),
        ({"Sec-Fetch-Site": "same-origin"}, "web_page_refused"),
        ({"Host": "evil.example"}, "misdirected"),
        ({"Host": "localhost.evil.example"}, "misdirected"),
        ({"Host": "localhost:80"}, "misdirected"),
        ({"Host": "127.0.0.1"}, "misdirected"),
        ({"Host": ""}, "misdirected"),
    ],
)
async def test_web_pages_and_other_hosts_are_refused(
    agent: MemoryAgent, client: httpx.AsyncClient, headers: dict[str, str], code: str
) -> None:
    quick = ("GET", "/v1/status?streams=true")  # answered before the routes, not before the guard
    for method, target in (("GET", "/v1/status"), quick, ("POST", "/v1/drain"), ("DELETE", "/v1/streams/aa11")):
        problem(await client.request(method, target, headers=headers), code)
    assert (len(agent.live), agent.draining) == (3, False)


async def test_the_oldest_streams_come_with_the_status(agent: MemoryAgent, client: httpx.AsyncClient) -> None:
    every = (await client.get("/v1/status?streams=true")).json()["streams"]
    assert len(every) == 3
    agent.add(*(stream_info(f"more{number}") for number in range(100)))
    for oldest in (1, 2, 25, 50, 100, 101):  # some of them answered before the routes
        found = (await client.get(f"/v1/status?streams=true&oldest={oldest}")).json()
        assert (len(found["streams"]), found["streams"][:3]) == (oldest, every[:oldest])
    for wrong in ("0", "-1", "x"):
        problem(await client.get(f"/v1/status?streams=true&oldest={wrong}"), "bad_argument")


async def test_read_only_socket(agent: MemoryAgent, path: Path) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(path.with_name("r.sock")), verify=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", verify=False) as client:
        assert (await client.get("/v1/status")).status_code == 200
        for method, target in (
            ("DELETE", "/v1/streams/aa11"),
            ("POST", "/v1/streams/cancel"),
            ("POST", "/v1/reload"),
            ("POST", "/v1/tunnels"),
            ("DELETE", "/v1/tunnels/mine"),
            ("POST", "/v1/drain"),
            ("PUT", "/v1/log-level"),
            ("PATCH", "/v1/anything"),
        ):
            problem(await client.request(method, target), "read_only")
    assert (len(agent.live), agent.draining) == (3, False)


async def test_what_is_refused_is_noted_once_in_a_short_line(
    path: Path, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunneld.control")
    long = "/v1/" + "x" * 10_000
    transport = httpx.AsyncHTTPTransport(uds=str(path.with_name("r.sock")), verify=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", verify=False) as reader:
        problem(await reader.put(long), "read_only")
    problem(await client.put(long, headers={"Origin": "http://page.example"}), "web_page_refused")
    lines = [record.getMessage() for record in caplog.records if record.name == "tunneld.control"]
    assert len(lines) == 2
    assert all(len(line) < 400 for line in lines)
    assert "…': read_only, by " in lines[0]
    assert "…' of a web page, by " in lines[1]


async def test_every_change_is_logged_with_who_made_it(
    agent: MemoryAgent, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunneld.control")
    await client.get("/v1/status")
    assert caplog.records == []
    agent.faults = ["a.yaml:3: bad"]
    await client.delete("/v1/streams/aa11")
    await client.post("/v1/streams/cancel", json={"tunnel": "demo"})
    await client.post("/v1/reload")
    await client.post("/v1/tunnels/demo/reconnect")
    await client.post("/v1/drain")
    await client.put("/v1/log-level", json={"level": "error"})
    await client.post("/v1/drain", headers={"Origin": "http://evil.example"})
    actions = [record.__dict__["action"] for record in caplog.records]
    assert actions == ["cancel", "cancel", "reload", "reconnect", "drain", "log-level", "refused"]
    for record in caplog.records:
        fields = record.__dict__
        assert (fields["peer_pid"], fields["peer_uid"], fields["peer_gid"]) == (os.getpid(), os.geteuid(), os.getegid())
        assert fields["peer_user"] == getpass.getuser()
        assert f"pid {os.getpid()}" in record.getMessage()
    assert caplog.records[2].levelname == "WARNING"
    assert "aa22" in caplog.records[1].getMessage()
    about = [record.__dict__.get("request_id") or record.__dict__.get("tunnel") for record in caplog.records]
    assert about == ["aa11", None, None, "demo", None, None, None]


async def test_what_is_said_of_a_tunnel_opened_and_closed_carries_its_name(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunneld.control")
    await client.post("/v1/tunnels", json={"name": "late", "service": "http://127.0.0.1:1"})
    await client.delete("/v1/tunnels/late")
    assert [(record.__dict__["action"], record.__dict__["tunnel"]) for record in caplog.records] == [
        ("open", "late"),
        ("close", "late"),
    ]


async def test_every_change_is_in_the_audit_trail(agent: MemoryAgent, folder: Path) -> None:
    trail, path = folder / "audit.log", folder / "audited.sock"
    async with ControlServer(lambda: create_app(agent, Trail(lambda: str(trail))), path):
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=15) as client:
            await client.get("/v1/status")
            await client.post("/v1/reload")
            await client.post("/v1/drain", headers={"Origin": "http://page.example"})
    done, refused = [json.loads(line) for line in trail.read_text().splitlines()]
    assert (done["action"], done["ok"], refused["action"], refused["ok"]) == ("reload", True, "refused", False)
    assert f"pid {os.getpid()}," in done["actor"]
    assert "web page" in refused["detail"]


async def test_events(agent: MemoryAgent, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunneld.control.events.RETAIN", 0.0)
    async with client.stream("GET", "/v1/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        lines = answer.aiter_lines()
        assert await anext(lines) == ": subscribed"
        agent.publish("tunnel", tunnel="demo", state="offline", was="online")
        assert [await anext(lines) for _ in range(3)][1:] == ["id: 1", "event: tunnel"]
        event = json.loads((await anext(lines)).removeprefix("data: "))
        assert event["state"] == "offline"
        assert event["time"].endswith("Z")
    agent.subscribed.clear()
    while agent.listeners:  # the close is noticed with no event to send
        await asyncio.sleep(0)


async def test_some_events(agent: MemoryAgent, client: httpx.AsyncClient) -> None:
    asked = [("type", "tunnel"), ("type", "alert"), ("tunnel", "demo"), ("unknown", "x")]
    async with client.stream("GET", "/v1/events", params=asked) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == ": subscribed"
        agent.publish("tunnel", tunnel="other", state="offline")
        agent.publish("heartbeat", tunnel="demo", ok=True)
        agent.publish("drain", streams=0)
        agent.publish("alert", subject="demo", message="x")
        agent.publish("tunnel", tunnel="demo", state="offline")
        told = []
        while len(told) < 2:
            if (line := await anext(lines)).startswith("data: "):
                told.append(json.loads(line[6:]))
    assert [(one["id"], one["type"]) for one in told] == [(4, "alert"), (5, "tunnel")]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            [("type", "tunnel"), ("type", "stream_close")],
            'no type of events (did you mean "stream_closed"?); there are',
        ),
        ([("type", "x")], "type: 'x' is no type of events; there are: tunnel, heartbeat, stream_opened"),
        ([("tunnel", "x")] * 101, "tunnel: List should have at most 100 items"),
    ],
)
async def test_events_that_there_are_none_of_are_refused(
    client: httpx.AsyncClient, asked: list[tuple[str, str]], said: str
) -> None:
    answer = await client.get("/v1/events", params=asked)
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert answer.json()["code"] == "bad_argument"
    assert said in answer.json()["detail"]


async def test_openapi_lists_every_call_and_every_answer(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    calls = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert calls == {
        ("GET", "/v1/health"),
        ("GET", "/v1/status"),
        ("GET", "/v1/streams"),
        ("GET", "/v1/streams/{request_id}"),
        ("DELETE", "/v1/streams/{request_id}"),
        ("POST", "/v1/streams/cancel"),
        ("POST", "/v1/reload"),
        ("POST", "/v1/tunnels"),
        ("GET", "/v1/tunnels/{name}"),
        ("DELETE", "/v1/tunnels/{name}"),
        ("GET", "/metrics"),
        ("GET", "/v1/alerts"),
        ("GET", "/v1/streams/{request_id}/tail"),
        ("GET", "/v1/requests"),
        ("POST", "/v1/requests/{request_id}/replay"),
        ("POST", "/v1/alerts/test"),
        ("POST", "/v1/tunnels/{name}/reconnect"),
        ("POST", "/v1/tunnels/{name}/links"),
        ("GET", "/v1/tunnels/{name}/permissions"),
        ("POST", "/v1/tunnels/{name}/permissions"),
        ("DELETE", "/v1/tunnels/{name}/permissions/{email}"),
        ("POST", "/v1/drain"),
        ("PUT", "/v1/log-level"),
        ("GET", "/v1/events"),
    }
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for item in document["paths"].values():
        for call in item.values():
            assert {"403", "421"} <= call["responses"].keys()
            assert {"200", "201"} & call["responses"].keys()
            assert call["description"]
    assert {"200", "503"} <= document["paths"]["/v1/health"]["get"]["responses"].keys()
    schemas = document["components"]["schemas"]
    assert schemas["StreamInfo"]["properties"].keys() == stream_info("x").keys()
    assert schemas["TunnelStatus"]["properties"].keys() == tunnel_status("x").keys()
    assert schemas["Filter"]["additionalProperties"] is False


async def test_stop_ends_event_streams_and_leaves_nothing(agent: MemoryAgent, folder: Path) -> None:
    server = ControlServer(lambda: create_app(agent), folder / "c.sock", mode=0o600)
    await server.start()
    assert stat.S_IMODE((folder / "c.sock").stat().st_mode) == 0o600
    reader, writer = await asyncio.open_unix_connection(folder / "c.sock")
    writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b": subscribed\n\n")
    idle = await asyncio.open_unix_connection(folder / "c.sock")
    await server.stop()
    await server.stop()
    assert (await reader.read()).endswith(b"0\r\n\r\n")  # the response ended, it did not break
    assert await idle[0].read() == b""
    for one in (writer, idle[1]):
        one.close()
        await one.wait_closed()
    assert list(folder.iterdir()) == []
    assert agent.listeners == set()


async def test_a_reader_that_reads_nothing_does_not_hold_the_stop_up(
    agent: MemoryAgent, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunneld.control.serving.GRACE", 0.05)
    async with ControlServer(lambda: create_app(agent), folder / "c.sock"):
        reader, writer = await asyncio.open_unix_connection(folder / "c.sock", limit=1024)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await agent.subscribed.wait()
        for _ in range(12):
            agent.publish("alert", message="x" * 100_000)
            await asyncio.sleep(0)
    assert agent.listeners == set()
    writer.close()
    del reader


async def test_a_call_that_the_stop_cuts_off_is_told_and_is_no_fault(
    agent: MemoryAgent, folder: Path, monkeypatch: pytest.MonkeyPatch, lines: Book
) -> None:
    monkeypatch.setattr("tunneld.control.serving.GRACE", 0.05)
    async with ControlServer(lambda: create_app(agent), folder / "c.sock"):
        reader, writer = await asyncio.open_unix_connection(folder / "c.sock")
        writer.write(b"POST /v1/streams/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        other = await asyncio.open_unix_connection(folder / "c.sock")
        other[1].write(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await other[0].readuntil(b"\r\n\r\n")  # what came before it is being served
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"x-tunnel-error: shutdown" in answer.lower()
    for one in (writer, other[1]):
        one.close()
    assert not lines.find("Exception in ASGI application")
    assert not lines.find("without")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x16\x03\x01" * 10 + b"\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"POST /v1/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_bad_requests_end_their_own_connection(path: Path, client: httpx.AsyncClient, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(sent)
    assert (await reader.read()).startswith(b"HTTP/1.1 4")
    writer.close()
    assert (await client.get("/v1/status")).status_code == 200


async def test_failing_to_start_leaves_nothing(agent: MemoryAgent, folder: Path) -> None:
    (folder / "r.sock").write_text("not a socket")
    server = ControlServer(lambda: create_app(agent), folder / "c.sock", readonly_socket=folder / "r.sock")
    with pytest.raises(ConfigError, match=r"control\.readonly_socket"):
        await server.start()
    assert [one.name for one in folder.iterdir()] == ["r.sock"]
    async with ControlServer(lambda: create_app(agent), folder / "c.sock"):
        with pytest.raises(ConfigError, match=f"already running as pid {os.getpid()}"):
            await ControlServer(lambda: create_app(agent), folder / "c.sock").start()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(folder / "c.sock"))
