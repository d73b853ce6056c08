"""The server's admin API: who is answered, what is shown, what is changed; a real server, real peers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.commands import Ran, tunnelctl
from tests.support.daemons import Server
from tests.support.legacy_client import legacy
from tests.support.operators import Operator
from tests.support.peers import peer
from tests.support.running import Book, port_of, running_agent, settled
from tests.support.sockets import LOOPBACK, certificate, free_ports, short_dir
from tests.support.tunnelled import read_head, serving
from tunneld.config.server import ServerConfig
from tunneld.control.admin.app import create_admin_app
from tunneld.control.admin.host import ServerHost
from tunneld.control.admin.keeper import Keeper
from tunneld.errors import CODES, ConfigError, VisitorError
from tunneld.server.credentials import Credentials
from tunneld.server.tokens import mint

ADMIN_TOKEN = "the-operators-own-secret"
CHANGE = {"X-Tunneld-Request": "test"}


def token_file(folder: Path) -> Path:
    path = folder / "admin-token"
    path.write_text(ADMIN_TOKEN)
    path.chmod(0o600)
    return path


@asynccontextmanager
async def hosted(**settings: Any) -> AsyncIterator[tuple[ServerHost, httpx.AsyncClient]]:
    """A server with its admin listener, and a client of that."""
    base: dict[str, Any] = {
        "listen": {"host": LOOPBACK, "port": 0},
        "admin": {"listen": {"host": LOOPBACK, "port": 0}},
        "auth": {"mode": "open"},
        "store": "memory:",
        "drain_timeout": 1,
    }
    host = ServerHost(ServerConfig(**{**base, **settings}), None)
    await host.start()
    try:
        address = host.admin_addresses[0][1]
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=15) as client:
            yield host, client
    finally:
        await host.stop()


def problem(answer: httpx.Response, code: str) -> dict[str, Any]:
    assert answer.headers["X-Tunnel-Error"] == code, answer.text
    assert answer.status_code == CODES[code].status
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.json()  # type: ignore[no-any-return]


# -- the table: each call, each credential


def calls() -> list[tuple[str, str]]:
    """Every call that the API describes, and its description."""
    app = create_admin_app(None, Keeper(Credentials(), None, most=300, window=60))  # type: ignore[arg-type]
    schema = app.openapi()
    found = [
        (method.upper(), re.sub(r"\{\w+\}", "nobody", path))
        for path, item in schema["paths"].items()
        for method in item
    ]
    return [*found, ("GET", "/openapi.json"), ("GET", "/api/v1/no-such-call"), ("POST", "/")]


@dataclass(frozen=True)
class World:
    """A running server with `admin.token_file`, and what may be shown to it."""

    client: httpx.Client
    secrets: dict[str, str | None]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with short_dir() as folder:
        operator = Operator(folder / "cli.yaml")
        secrets: dict[str, str | None] = {"none": None, "wrong": mint(), "right": ADMIN_TOKEN}
        for kind, line in (
            ("foreign", "app"),
            ("revoked", "gone --scope read write"),
            ("expired", "old --scope read write --expires 1s"),
            ("read-only", "reader --scope read"),
            ("write", "writer --scope read write"),
        ):
            made, secrets[kind] = operator.create(line)
            if kind == "revoked":
                operator.do(f"token revoke {made}")
            if kind == "expired":
                ends = time.monotonic() + 1.1
        settings = {
            "store": operator.settings["store"],
            "auth": {"mode": "token"},
            "admin": {"token_file": str(token_file(folder))},
        }
        server = Server(folder, settings=settings)
        try:
            server.process.wait_line("for the admin API")
            with httpx.Client(base_url=f"http://{LOOPBACK}:{server.admin_port}", timeout=15) as client:
                client.get("/api/v1/health")  # what serves it is loaded at the first call
                while time.monotonic() < ends:
                    client.get("/api/v1/health", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
                yield World(client, secrets)
            server.process.stop()
            server.process.assert_clean()
            output = "\n".join(line.text for line in server.process.lines)
            assert not [kind for kind, secret in secrets.items() if secret and secret in output]
        finally:
            server.process.discard()


def expected(kind: str, method: str) -> tuple[str, ...]:
    """The codes that one credential is answered with; none: anything but a refusal."""
    if kind in ("none", "wrong", "revoked", "expired"):
        return ("unauthorized",)
    if kind == "foreign" or (kind == "read-only" and method != "GET"):
        return ("not_permitted",)
    return ()


@pytest.mark.parametrize("kind", ["none", "wrong", "foreign", "revoked", "expired", "read-only", "write", "right"])
@pytest.mark.parametrize(("method", "path"), calls())
def test_the_authorisation_table(world: World, method: str, path: str, kind: str) -> None:
    secret = world.secrets[kind]
    headers = {**CHANGE, **({"Authorization": f"Bearer {secret}"} if secret is not None else {})}
    answer = world.client.request(method, path, headers=headers, json={} if method in ("POST", "PUT") else None)
    wanted = expected(kind, method)
    if wanted:
        assert answer.headers["X-Tunnel-Error"] in wanted
        assert ("WWW-Authenticate" in answer.headers) == (answer.status_code == 401)
    else:
        assert answer.status_code not in (401, 403)
        assert answer.status_code < 500
    assert secret is None or secret not in answer.text


# -- without a token file: this machine, straight


HEADERS: list[tuple[dict[str, str], str | None]] = [
    ({}, None),
    ({"Host": "localhost"}, None),
    ({"Host": "localhost:8441"}, None),
    ({"Host": "127.0.0.1:1"}, None),
    ({"Host": "[::1]:8441"}, None),
    ({"Sec-Fetch-Site": "none"}, None),
    ({"Sec-Fetch-Site": "same-origin"}, None),
    ({"Host": "evil.example"}, "misdirected"),
    ({"Host": "evil.example:8441"}, "misdirected"),
    ({"Host": "localhost.evil.example"}, "misdirected"),
    ({"Host": "[::1].evil.example"}, "misdirected"),
    ({"Host": "192.0.2.1"}, "misdirected"),
    ({"Sec-Fetch-Site": "cross-site"}, "web_page_refused"),
    ({"Sec-Fetch-Site": "same-site"}, "web_page_refused"),
    ({"Forwarded": "for=192.0.2.1"}, "local_only"),
    ({"X-Forwarded-For": "127.0.0.1"}, "local_only"),
    ({"X-Forwarded-Host": "localhost"}, "local_only"),
    ({"Authorization": "Bearer wrong"}, "unauthorized"),
    ({"Authorization": "Basic eA=="}, "unauthorized"),
]


async def test_only_this_machine_is_answered_and_only_straight() -> None:
    async with hosted() as (_, client):
        for headers, code in HEADERS:
            for target in ("/api/v1/status", "/openapi.json", "/nowhere"):
                answer = await client.get(target, headers=headers)
                if code is None:
                    assert answer.status_code == (404 if target == "/nowhere" else 200), headers
                else:
                    problem(answer, code)


@pytest.mark.parametrize("address", ["192.0.2.1", "::ffff:192.0.2.1", "10.0.0.1", "fe80::1%eth0", "nonsense"])
def test_a_peer_that_is_not_this_machine(address: str) -> None:
    keeper = Keeper(Credentials(), None, most=300, window=60)
    scope: dict[str, Any] = {"type": "http", "client": (address, 1), "headers": [(b"host", b"localhost")]}
    with pytest.raises(Exception, match="only this machine") as caught:
        keeper.judge(scope)
    assert caught.value.code == "local_only"  # type: ignore[attr-defined]
    for local in ("127.0.0.1", "127.3.4.5", "::1", "::ffff:127.0.0.1"):
        assert keeper.judge({**scope, "client": (local, 1)}).scopes == {"read", "write"}
    assert keeper.judge({**scope, "client": None}).scopes == {"read", "write"}  # a Unix socket


async def test_a_change_carries_a_header_that_no_form_can_set() -> None:
    async with hosted() as (_, client):
        for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
            for call in (
                client.post("/api/v1/tokens", content=b'{"name":"a"}', headers=headers),
                client.post("/api/v1/reload", headers=headers),
                client.delete("/api/v1/names/a", headers=headers),
                client.put("/api/v1/names/a", headers=headers),
            ):
                problem(await call, "web_page_refused")
        assert (await client.get("/api/v1/tokens")).json() == {"tokens": []}
        assert (await client.put("/api/v1/names/a", headers=CHANGE)).status_code == 200
        assert (await client.post("/api/v1/tokens", json={"name": "a"})).status_code == 201


async def test_a_right_token_in_a_forged_place_is_none(tmp_path: Path) -> None:
    async with hosted(admin={"listen": {"host": LOOPBACK, "port": 0}, "token_file": str(token_file(tmp_path))}) as (
        _,
        client,
    ):
        for where in (
            {"params": {"token": ADMIN_TOKEN}},
            {"headers": {"Cookie": f"token={ADMIN_TOKEN}"}},
            {"headers": {"Authorization": ADMIN_TOKEN}},
            {"headers": {"Authorization": f"Basic {ADMIN_TOKEN}"}},
            {"headers": [("Authorization", f"Bearer {ADMIN_TOKEN}"), ("Authorization", "Bearer x")]},
        ):
            problem(await client.get("/api/v1/status", **where), "unauthorized")  # type: ignore[arg-type]
        # With a token the way does not matter: a proxy before it, a Host of its own.
        right = {"Authorization": f"Bearer {ADMIN_TOKEN}", "X-Forwarded-For": "192.0.2.1", "Host": "admin.example.org"}
        assert (await client.get("/api/v1/status", headers=right)).status_code == 200


def test_wrong_credentials_are_limited_and_right_ones_are_not() -> None:
    told: list[tuple[str, str]] = []
    waits: list[int | None] = []
    keeper = Keeper(Credentials(), ADMIN_TOKEN, refused=lambda *what: told.append(what), most=3, window=3600)

    def come(secret: str) -> str:
        headers = [(b"authorization", f"Bearer {secret}".encode())]
        try:
            return keeper.judge({"type": "http", "client": ("192.0.2.1", 1), "headers": headers}).id
        except VisitorError as error:
            waits.append(error.retry_after)
            return error.code

    assert [come(mint()) for _ in range(5)] == ["unauthorized"] * 3 + ["rate_limited"] * 2
    assert come(ADMIN_TOKEN) == "admin"
    assert told == [("192.0.2.1", "unknown")] * 3
    assert waits[:3] == [None] * 3
    assert all(0 < (wait or 0) <= 1200 for wait in waits[3:])


# -- what is shown and changed


@asynccontextmanager
async def busy() -> AsyncIterator[tuple[ServerHost, httpx.AsyncClient, Callable[[], Any]]]:
    """A server with one tunnel, and a way to open an event stream through it."""

    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nid: 7\ndata: x\n\n")
            await reader.read()

    async with serving(events) as address, hosted() as (host, client):
        url = f"ws://{LOOPBACK}:{port_of(host.server)}"
        async with running_agent(url, address) as (_, tunnel), httpx.AsyncClient(timeout=15) as visitor:
            await settled(lambda: tunnel.state == "online")

            def watch() -> Any:
                return visitor.stream("GET", f"http://{LOOPBACK}:{port_of(host.server)}/t/app/sse?q=1")

            yield host, client, watch


async def test_state_and_streams() -> None:
    async with busy() as (host, client, watch), watch() as visitor:
        pieces = visitor.aiter_bytes()
        assert b"data: x" in await anext(pieces)
        status = (await client.get("/api/v1/status")).json()
        for path in ("/api/v1/status", "/metrics", "/dashboard"):
            assert ((await client.head(path)).status_code, (await client.head(path)).content) == (200, b"")
        assert status["totals"]["active_streams"] == 1
        assert status["totals"]["online"] == 1
        assert status["listening"] == [host.server.listening[0][1]]
        (tunnel,) = (await client.get("/api/v1/tunnels")).json()["tunnels"]
        assert tunnel == {**(await client.get("/api/v1/tunnels/app")).json(), "connected_s": tunnel["connected_s"]} | {
            "heartbeat": tunnel["heartbeat"]
        }
        assert (tunnel["name"], tunnel["state"], tunnel["active_streams"]) == ("app", "online", 1)
        assert tunnel["peer"] == "127.0.0.1"
        assert tunnel["public_url"].endswith("/t/app")
        (stream,) = (await client.get("/api/v1/streams")).json()["streams"]
        (beside,) = (await client.get("/api/v1/status", params={"streams": "true"})).json()["streams"]
        assert beside["request_id"] == stream["request_id"]
        assert (stream["tunnel"], stream["kind"], stream["path"]) == ("app", "sse", "/sse?q=1")
        assert (stream["events"], stream["last_event_id"], stream["state"]) == (1, "7", "streaming")
        one = await client.get(f"/api/v1/streams/{stream['request_id']}")
        assert one.json()["request_id"] == stream["request_id"]
        assert (await client.get("/api/v1/streams?kind=http")).json() == {"streams": []}
        assert (await client.get("/api/v1/streams?tunnel=other")).json() == {"streams": []}
        problem(await client.get("/api/v1/streams/nix"), "no_such_stream")
        problem(await client.get("/api/v1/tunnels/nix"), "no_such_tunnel")
        problem(await client.get("/api/v1/streams?kind=smtp"), "bad_argument")
        limits = (await client.get("/api/v1/limits")).json()
        assert limits["now"]["streams"] == 1
        assert limits["limits"]["max_streams"] == 1000
        assert (await client.get("/api/v1/health")).json()["status"] == "ok"


async def test_a_cancelled_stream_ends_and_the_audit_says_who(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunneld.admin")
    async with busy() as (_, client, watch):
        async with watch() as visitor:
            pieces = visitor.aiter_bytes()
            await anext(pieces)
            (stream,) = (await client.get("/api/v1/streams")).json()["streams"]
            request_id = stream["request_id"]
            answer = await client.delete(f"/api/v1/streams/{request_id}", headers=CHANGE)
            assert answer.json() == {"cancelled": [request_id]}
            assert [piece async for piece in pieces] == []  # a clean end
        async with watch() as again:
            assert again.status_code == 204
        problem(await client.delete(f"/api/v1/streams/{request_id}", headers=CHANGE), "no_such_stream")
        assert (await client.get("/api/v1/streams")).json() == {"streams": []}
        assert (await client.get("/api/v1/status")).json()["totals"]["streams"] == 1
        (entry,) = (await client.get("/api/v1/audit")).json()["entries"]
        assert (entry["action"], entry["actor"], entry["ok"]) == ("stream.cancel", "this machine (127.0.0.1)", True)
        assert request_id in entry["detail"]
        (line,) = [record for record in caplog.records if record.__dict__.get("action") == "stream.cancel"]
        assert line.__dict__["request_id"] == request_id


async def test_cancelling_by_filter() -> None:
    async with busy() as (_, client, watch), watch() as visitor:
        pieces = visitor.aiter_bytes()
        await anext(pieces)
        problem(await client.post("/api/v1/streams/cancel", json={}), "empty_filter")
        problem(await client.post("/api/v1/streams/cancel", json={"idle_s": -1}), "bad_argument")
        problem(await client.post("/api/v1/streams/cancel", json={"all": 1}), "bad_argument")
        problem(await client.post("/api/v1/streams/cancel", json={"path": "x" * 99_999}), "body_too_large")
        none = await client.post("/api/v1/streams/cancel", json={"path": "/other*"})
        assert none.json() == {"cancelled": []}
        done = await client.post("/api/v1/streams/cancel", json={"tunnel": "app", "kind": "sse", "path": "/sse"})
        assert len(done.json()["cancelled"]) == 1
        assert [piece async for piece in pieces] == []


async def test_tokens_from_their_making_to_their_end(lines: Book) -> None:
    async with hosted(auth={"mode": "token"}) as (host, client):
        url = f"ws://{LOOPBACK}:{port_of(host.server)}"
        body = {"name": "ci", "tunnels": ["ci-*"], "expires_s": 3600, "limits": {"streams": 5}}
        made = await client.post("/api/v1/tokens", json=body)
        assert made.status_code == 201
        secret, token = made.json()["secret"], made.json()["token"]
        assert (token["name"], token["state"], token["limits"]["streams"]) == ("ci", "live", 5)
        assert (await client.get(f"/api/v1/tokens/{token['id']}")).json() == token
        assert (await client.get("/api/v1/tokens")).json() == {"tokens": [token]}
        bearer = {"additional_headers": {"Authorization": f"Bearer {secret}"}}
        async with peer(url, "ci-1", **bearer) as agent:
            await agent.hello()
            (name,) = (await client.get("/api/v1/names")).json()["names"]
            assert (name["name"], name["owner"], name["state"]) == ("ci-1", token["id"], "owned")
            (tunnel,) = (await client.get("/api/v1/tunnels")).json()["tunnels"]
            assert (tunnel["owner"], tunnel["token"]) == (token["id"], "ci")
            rotated = await client.post(f"/api/v1/tokens/{token['id']}/rotate", json={"overlap_s": 60})
            assert rotated.json()["secret"] not in (None, secret)
            await agent.say({"type": "ping", "timestamp": "t", "seq": 1})
            await agent.want("pong")
            gone = await client.delete(f"/api/v1/tokens/{token['id']}", headers=CHANGE)
            assert gone.json() == {"revoked": token["id"]}
            assert await agent.over() == ("revoked", 4003, "revoked")
        (name,) = (await client.get("/api/v1/names")).json()["names"]
        assert name["state"] == "resting"
        assert (await client.get("/api/v1/tokens")).json() == {"tokens": []}
        (shown,) = (await client.get("/api/v1/tokens?all=true")).json()["tokens"]
        assert shown["state"] == "revoked"
        problem(await client.delete(f"/api/v1/tokens/{token['id']}", headers=CHANGE), "no_such_token")
        problem(await client.post(f"/api/v1/tokens/{token['id']}/rotate", headers=CHANGE), "no_such_token")
        problem(await client.get("/api/v1/tokens/nobody"), "no_such_token")
        actions = [entry["action"] for entry in (await client.get("/api/v1/audit")).json()["entries"]]
        assert actions == ["token.revoke", "token.rotate", "token.create"]
        logged = "\n".join(f"{entry.text} {entry.fields}" for entry in lines.entries)
        assert secret not in logged
        assert rotated.json()["secret"] not in logged


FAULTY: list[Any] = [
    {},
    {"name": ""},
    {"name": "A.B"},
    {"name": "a", "tunnels": ["A"]},
    {"name": "a", "scopes": ["root"]},
    {"name": "a", "expires_s": -1},
    {"name": "a", "expires_s": 1e300},
    {"name": "a", "limits": {"streams": -1}},
    {"name": "a", "limits": {"streams": 2**70}},
    {"name": "a", "limits": {"speed": 1}},
    {"name": "a", "secret": "mine"},
    {"name": "a", "certificate": "x"},
    [],
]


async def test_a_faulty_token_is_not_made() -> None:
    async with hosted() as (_, client):
        for body in FAULTY:
            assert problem(await client.post("/api/v1/tokens", json=body), "bad_argument")["detail"]
        assert (await client.get("/api/v1/tokens")).json() == {"tokens": []}


async def test_names_are_reserved_and_released() -> None:
    async with hosted() as (_, client):
        token = (await client.post("/api/v1/tokens", json={"name": "a"})).json()["token"]["id"]
        kept = await client.put("/api/v1/names/www", json={"owner": token})
        assert (kept.json()["owner"], kept.json()["token"], kept.json()["state"]) == (token, "a", "reserved")
        assert (await client.put("/api/v1/names/admin", headers=CHANGE)).json()["owner"] is None
        problem(await client.put("/api/v1/names/x", json={"owner": "nobody"}), "no_such_token")
        problem(await client.put("/api/v1/names/A_B", headers=CHANGE), "bad_argument")
        names = (await client.get("/api/v1/names")).json()["names"]
        assert [name["name"] for name in names] == ["admin", "www"]
        assert (await client.delete("/api/v1/names/www", headers=CHANGE)).json() == {"released": "www"}
        problem(await client.delete("/api/v1/names/www", headers=CHANGE), "no_such_name")


async def test_an_operator_sees_and_ends_what_a_client_of_the_older_dialect_has_open(lines: Book) -> None:
    async with hosted(auth={"mode": "token"}) as (host, client):
        made = (await client.post("/api/v1/tokens", json={"name": "field", "tunnels": ["old"]})).json()
        base = f"http://{LOOPBACK}:{port_of(host.server)}/v2/{made['secret']}"
        async with legacy(base, name="old") as agent, httpx.AsyncClient(timeout=15) as visitor:
            shown = (await client.get("/api/v1/tunnels/old")).json()
            assert (shown["name"], shown["state"], shown["owner"]) == ("old", "online", made["token"]["id"])
            url = f"http://{LOOPBACK}:{port_of(host.server)}/t/old/sse"
            async with visitor.stream("GET", url, headers={"Accept": "text/event-stream"}) as answer:
                request = await agent.request()
                await agent.say("stream_start", request_id=request["request_id"])
                await agent.chunk(request, "data: 1\n\n")
                pieces = answer.aiter_bytes()
                assert await anext(pieces) == b"data: 1\n\n"
                (stream,) = (await client.get("/api/v1/streams?tunnel=old")).json()["streams"]
                assert (stream["kind"], stream["path"]) == ("sse", "/sse")
                done = await client.delete(f"/api/v1/streams/{stream['request_id']}", headers=CHANGE)
                assert done.json() == {"cancelled": [stream["request_id"]]}
                assert (await agent.want("stream_cancel"))["request_id"] == request["request_id"]
            begun = time.monotonic()
            await client.delete(f"/api/v1/tokens/{made['token']['id']}", headers=CHANGE)
            await agent.over()
            assert time.monotonic() - begun < 1
            assert (await client.get("/api/v1/tunnels/old")).json()["state"] != "online"
        everything = repr([entry.text for entry in lines.entries]) + (await client.get("/api/v1/audit")).text
        assert made["secret"] not in everything


async def test_every_change_is_in_the_file_of_the_audit_trail_too(tmp_path: Path) -> None:
    trail = tmp_path / "audit.log"
    operator = Operator(tmp_path / "server.yaml", log={"audit": str(trail)})
    operator.create("first")
    async with hosted(store=operator.settings["store"], log={"audit": str(trail)}) as (_, client):
        made = (await client.post("/api/v1/tokens", json={"name": "second"})).json()
        await client.delete(f"/api/v1/tokens/{made['token']['id']}", headers=CHANGE)
        await client.get("/api/v1/tokens")
    lines = [json.loads(line) for line in trail.read_text().splitlines()]
    assert [line["action"] for line in lines] == ["token.create", "token.create", "token.revoke"]
    assert [line["actor"].partition(" (")[0] for line in lines] == ["command line", "this machine", "this machine"]
    assert made["secret"] not in trail.read_text()
    with pytest.raises(ConfigError, match=r"log\.audit: .* cannot be written"):
        async with hosted(log={"audit": str(tmp_path / "none" / "a.log")}):
            pass


async def test_the_file_is_named_as_others_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with hosted() as (host, client):
        assert (await client.get("/api/v1/status")).json()["config_file"] is None
        host.server.path = "server.yaml"  # as `tunneld server --config server.yaml` has it
        assert (await client.get("/api/v1/status")).json()["config_file"] == str(tmp_path / "server.yaml")


async def test_a_reload_reads_the_admin_token_anew(tmp_path: Path) -> None:
    file, secret = tmp_path / "server.yaml", token_file(tmp_path)
    settings = {
        "listen": {"host": LOOPBACK, "port": 0},
        "admin": {"listen": {"host": LOOPBACK, "port": 0}, "token_file": str(secret)},
        "store": "memory:",
    }
    file.write_text(yaml.safe_dump(settings))
    file.chmod(0o600)
    host = ServerHost(ServerConfig(**settings), str(file))
    await host.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{host.admin_addresses[0][1]}", timeout=15) as client:
            old, new = ({"Authorization": f"Bearer {word}"} for word in (ADMIN_TOKEN, "another-secret"))
            secret.write_text("another-secret")
            answer = await client.post("/api/v1/reload", headers=old)
            assert answer.json() == {"changed": [], "restart": []}
            problem(await client.get("/api/v1/health", headers=old), "unauthorized")
            assert (await client.get("/api/v1/health", headers=new)).status_code == 200
            secret.write_text("")
            faults = problem(await client.post("/api/v1/reload", headers=new), "bad_config")["faults"]
            assert "admin.token_file" in faults[0]
            assert (await client.get("/api/v1/health", headers=new)).status_code == 200
    finally:
        await host.stop()


async def test_the_api_is_loaded_at_the_first_call_and_many_may_wait_for_it() -> None:
    async with hosted() as (host, client):
        answers = await asyncio.gather(*(client.get("/api/v1/health") for _ in range(20)))
        assert [answer.status_code for answer in answers] == [200] * 20
        # One that leaves at once, one that says nothing: the server's end does not wait for them.
        address, port = host.admin_addresses[0][1].split(":")
        _, writer = await asyncio.open_connection(address, int(port))
        writer.close()
        _, quiet = await asyncio.open_connection(address, int(port))
    quiet.close()


async def test_on_a_unix_socket_and_over_tls(folder: Path) -> None:
    async with hosted(admin={"listen": {"unix": str(folder / "admin.sock")}}):
        transport = httpx.AsyncHTTPTransport(uds=str(folder / "admin.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=15) as client:
            assert (await client.get("/api/v1/health")).status_code == 200
            problem(await client.get("/api/v1/health", headers={"Host": "evil.example"}), "misdirected")
    pair = certificate(folder)
    tls = {"cert": str(pair.cert), "key": str(pair.key)}
    async with hosted(admin={"listen": {"host": LOOPBACK, "port": 0, "tls": tls}}) as (host, _):
        import ssl

        context = ssl.create_default_context(cafile=str(pair.cert))
        async with httpx.AsyncClient(verify=context, timeout=15) as client:
            answer = await client.get(f"https://{host.admin_addresses[0][1]}/api/v1/health")
            assert answer.status_code == 200


# -- tunnelctl


async def test_tunnelctl_speaks_to_a_server(tmp_path: Path) -> None:
    async with busy() as (host, _client, watch), watch() as visitor:
        pieces = visitor.aiter_bytes()
        await anext(pieces)
        url = f"http://{host.admin_addresses[0][1]}"

        async def ctl(*line: str) -> Ran:
            return await asyncio.to_thread(tunnelctl, "--server", url, *line)

        status = await ctl("status")
        assert status.returncode == 0, status.stderr
        assert "app" in status.stdout
        assert "online" in status.stdout
        assert json.loads((await ctl("status", "--json")).stdout)["totals"]["active_streams"] == 1
        assert (await ctl("health")).returncode == 0
        (stream,) = json.loads((await ctl("streams", "--json")).stdout)["streams"]
        done = await ctl("cancel", stream["request_id"][:8])
        assert done.returncode == 0, done.stderr
        assert [piece async for piece in pieces] == []
        wrong = tmp_path / "wrong"
        wrong.write_text(mint())
        wrong.chmod(0o600)
        refused = await ctl("status", "--token-file", str(wrong))
        assert refused.returncode == 1
        assert "bearer token" in refused.stderr
        wrong.chmod(0o644)
        for line, status_, words in (
            (["status", "--token-file", str(wrong)], 2, "chmod 600"),
            (["status", "--token-file", "/no/such"], 2, "no such file"),
            (["drain"], 2, "drain is an agent's"),
            (["status", "--socket", "/x"], 2, "not both"),
        ):
            found = await ctl(*line)
            assert found.returncode == status_, found.stderr
            assert words in found.stderr
            assert found.stderr.count("\n") == 1


def test_tunnelctl_without_a_server_there() -> None:
    (port,) = free_ports(1)
    gone = tunnelctl("status", "--server", f"http://{LOOPBACK}:{port}")
    assert gone.returncode == 3
    assert "nothing listens" in gone.stderr
    for url in ("ftp://x", "http://", "http://x:99999", "http://u:p@x"):
        bad = tunnelctl("status", "--server", url)
        assert bad.returncode == 2, bad.stderr
        assert "--server" in bad.stderr
    alone = tunnelctl("status", "--token-file", "/x")
    assert alone.returncode == 2
