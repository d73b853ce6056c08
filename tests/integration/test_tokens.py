"""Tokens, names and the store, with real processes and real peers: who comes in, who does not, and who is put out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import yaml
from websockets.exceptions import InvalidStatus

from tests.support.daemons import Agent, Server
from tests.support.operators import Operator
from tests.support.peers import Peer, peer
from tests.support.processes import ROOT, Process, clean_environment, eventually, python_module
from tests.support.running import Book, port_of, running_agent, running_server, settled, url_of
from tests.support.sockets import LOOPBACK, free_port
from tests.support.tunnelled import reply, serving
from tunneld.config.server import ServerConfig
from tunneld.protocol import frames
from tunneld.server.daemon import ServerDaemon
from tunneld.server.tokens import digest, mint


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path / "server.yaml")


@pytest.fixture
async def server(operator: Operator) -> AsyncIterator[ServerDaemon]:
    async with running_server(**operator.settings) as made:
        yield made


def bearer(secret: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {secret}"}}


async def refused(server: ServerDaemon, name: str, secret: str | None) -> tuple[int, str]:
    options = bearer(secret) if secret is not None else {}
    with pytest.raises(InvalidStatus) as caught:
        async with peer(url_of(server), name, **options):
            pass
    response = caught.value.response
    body = json.loads(response.body)
    assert secret is None or secret not in response.body.decode()
    assert response.headers["X-Tunnel-Error"] == body["code"]
    return response.status_code, body["code"]


async def asked(server: ServerDaemon, name: str) -> tuple[int, str | None]:
    """What a visitor of that tunnel is answered: status, code."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port_of(server))
    writer.write(f"GET /t/{name}/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    code = re.search("X-Tunnel-Error: (.*)\r", answer)
    return int(answer.split(" ")[1]), code and code[1]


# -- the command line


def test_create_list_and_revoke_as_the_contract_says(operator: Operator) -> None:
    status, out, err = operator.run("token create laptop")
    assert status == 0
    assert re.fullmatch(r"tnl_[0-9A-Za-z]{49}\n", out)
    assert "laptop" in err
    assert out.strip() not in err
    operator.do("token create ci --tunnels ci-* web --expires 90d --streams 5 --bytes 1MiB --requests 10")
    rows = operator.do("token list").splitlines()
    assert [row.split()[1] for row in rows] == ["laptop", "ci"]
    assert "ci-*,web" in rows[1]
    assert "5 streams, 1.04858e+06 B/s, 10 req/s" in rows[1]
    shown = json.loads(operator.do("token list --json"))["tokens"]
    assert [one["id"] for one in shown] == [row.split()[0] for row in rows]
    assert shown[1]["limits"] == {"streams": 5, "bytes_per_s": 1048576, "requests_per_s": 10.0}
    assert out.strip() not in operator.do("token list --json --all")
    operator.do(f"token revoke {rows[0].split()[0]}")
    assert [row.split()[1] for row in operator.do("token list").splitlines()] == ["ci"]
    assert "revoked" in operator.do("token list --all").splitlines()[0]


def test_an_option_given_twice_adds_to_what_was_given(operator: Operator) -> None:
    operator.do("token create one --tunnels a-* b-* --tunnels c --scope read --scope agent")
    operator.do("--tunnels d-* token create two")
    first, second = json.loads(operator.do("token list --json"))["tokens"]
    assert (first["tunnels"], first["scopes"]) == (["a-*", "b-*", "c"], ["agent", "read"])
    assert (second["name"], second["tunnels"]) == ("two", ["d-*"])


def test_no_secret_is_in_the_store(operator: Operator) -> None:
    _, secret = operator.create("app")
    with contextlib.closing(sqlite3.connect(operator.store)) as raw:
        dump = "\n".join(raw.iterdump())
    assert secret not in dump
    assert secret[4:20] not in dump


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("token create My.Server", 2, "no tunnel's name"),
        ("token create a --tunnels A_B", 2, "fits no tunnel's name"),
        ("token create a --scope root", 2, "scopes are agent, read, write"),
        ("token create a --bytes lots", 2, "expected a size"),
        ("token create a --requests -3", 2, ""),
        ("token create a --certificate /no/such.pem", 2, "no such file"),
        ("token revoke nobody", 1, "token list"),
        ("token rotate nobody", 1, "token list"),
        ("names reserve A.B", 2, "no tunnel's name"),
        ("names reserve a --for nobody", 1, "token list"),
        ("names release a", 1, "belongs to nobody"),
        ("backup /no/such/dir/x.db", 2, "cannot be written"),
    ],
)
def test_what_is_refused_is_one_line(operator: Operator, line: str, status: int, words: str) -> None:
    operator.create("first")
    found, out, err = operator.run(line)
    assert (found, out) == (status, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_memory_store_has_no_tokens_to_make(tmp_path: Path) -> None:
    status, _, err = Operator(tmp_path / "server.yaml", store="memory:").run("token create a")
    assert status == 2
    assert "store: memory:" in err


def test_a_backup_before_there_is_anything(operator: Operator) -> None:
    status, _, err = operator.run(f"backup {operator.file}.copy")
    assert status == 2
    assert "nothing to back up" in err
    assert not operator.store.exists()


# -- who comes in


async def test_the_right_token_opens_its_tunnel_and_every_other_is_refused(
    operator: Operator, server: ServerDaemon, lines: Book
) -> None:
    _, app = operator.create("app")
    _, globs = operator.create("ci --tunnels ci-*")
    _, short = operator.create("short --expires 1s --tunnels *")
    revoked_id, revoked = operator.create("gone --tunnels *")
    operator.do(f"token revoke {revoked_id}")
    _, reader = operator.create("ops --scope read")
    await settled(lambda: len(server.access.credentials) == 5)
    async with peer(url_of(server), "app", **bearer(app)) as agent:
        await agent.hello()
    async with peer(url_of(server), "ci-1", **bearer(globs)) as agent:
        await agent.hello()
    end = monotonic() + 1
    await settled(lambda: monotonic() > end)
    for name, secret, status, code in (
        ("app", None, 401, "unauthorized"),
        ("app", mint(), 401, "unauthorized"),
        ("app", app[:-1], 401, "unauthorized"),
        ("app", "x" * 8000, 401, "unauthorized"),
        ("app", short, 401, "unauthorized"),
        ("app", revoked, 401, "unauthorized"),
        ("app", reader, 401, "unauthorized"),
        ("other", app, 403, "name_not_allowed"),
        ("app", globs, 403, "name_not_allowed"),
        ("cix", globs, 403, "name_not_allowed"),
        ("Bad_Name", app, 400, "bad_name"),
    ):
        assert await refused(server, name, secret) == (status, code), (name, secret)
    logged = "\n".join(f"{entry.text} {entry.fields}" for entry in lines.entries)
    for secret in (app, globs, short, revoked, reader):
        assert secret not in logged


async def test_another_owner_gets_409_online_and_offline(operator: Operator, server: ServerDaemon) -> None:
    first_id, first = operator.create("app")
    _, second = operator.create("rival --tunnels app")
    await settled(lambda: len(server.access.credentials) == 2)
    async with peer(url_of(server), "app", **bearer(first)) as agent:
        await agent.hello(instance="one")
        assert await refused(server, "app", second) == (409, "name_taken")
        async with peer(url_of(server), "app", **bearer(first)) as again:  # the same owner replaces itself
            await again.hello(instance="two")
            assert await agent.over() == ("replaced", 4001, "replaced")
    await settled(lambda: not server.connections)
    assert await refused(server, "app", second) == (409, "name_taken")
    assert f"app  {first_id}  app  owned" in operator.do("names")
    operator.do(f"token revoke {first_id}")
    await settled(lambda: server.access.credentials.get(first_id).revoked)  # type: ignore[union-attr]
    async with peer(url_of(server), "app", **bearer(second)) as agent:  # written down for it, so it needs not wait
        await agent.hello(instance="three")


async def test_a_connection_without_hello_owns_no_name(operator: Operator, server: ServerDaemon) -> None:
    _, first = operator.create("a --tunnels *")
    _, second = operator.create("b --tunnels *")
    await settled(lambda: len(server.access.credentials) == 2)
    async with peer(url_of(server), "app", **bearer(first)), peer(url_of(server), "app", **bearer(second)) as agent:
        await agent.hello()
        assert server.registry.find("app").principal.name == "b"  # type: ignore[union-attr]


async def test_two_owners_whose_hellos_cross(operator: Operator, server: ServerDaemon) -> None:
    _, first = operator.create("a --tunnels *")
    _, second = operator.create("b --tunnels *")
    await settled(lambda: len(server.access.credentials) == 2)
    async with (
        peer(url_of(server), "app", **bearer(first)) as one,
        peer(url_of(server), "app", **bearer(second)) as two,
    ):
        await one.say({"type": "hello", "instance": "x", "dial": 1})
        await two.say({"type": "hello", "instance": "y", "dial": 1})
        answers = [(await one.next()), (await two.next())]
        assert sorted(answer["type"] for answer in answers) == ["connected", "error"]
        assert [answer["code"] for answer in answers if answer["type"] == "error"] == ["overloaded"]


async def test_a_server_that_was_started_anew_knows_the_tunnels_it_served(operator: Operator) -> None:
    operator.settings["limits"] = {"hold": 0.5}
    token_id, token = operator.create("app")
    async with running_server(**operator.settings) as server:
        assert await asked(server, "app") == (404, "no_such_tunnel")  # nobody ever served it
        async with peer(url_of(server), **bearer(token)) as agent:
            await agent.hello()
    async with running_server(**operator.settings) as server:
        assert await asked(server, "other") == (404, "no_such_tunnel")
        async with asyncio.TaskGroup() as tasks, peer(url_of(server), **bearer(token)) as agent:
            waits = tasks.create_task(asked(server, "app"))
            await settled(lambda: server.ingress.exchanges)
            await agent.hello()
            while not isinstance(message := await agent.next(), bytes):
                pass  # a ping
            [(kind, stream, _)] = frames.split(message)
            assert kind == frames.OPEN | frames.FIN
            await agent.say(frames.frame(frames.HEAD | frames.FIN, stream, b'{"status":204,"headers":[]}'))
            assert await waits == (204, None)
    async with running_server(**operator.settings) as server:
        assert await asked(server, "app") == (503, "tunnel_offline")
        before = monotonic()
        assert await asked(server, "app") == (503, "tunnel_offline")
        assert monotonic() - before < 0.4  # it did not wait again
    operator.do(f"token revoke {token_id}")
    async with running_server(**operator.settings) as server:
        assert await asked(server, "app") == (404, "no_such_tunnel")


async def test_reserved_names_are_for_one_token_or_for_none(operator: Operator, server: ServerDaemon) -> None:
    mine, first = operator.create("a --tunnels *")
    _, second = operator.create("b --tunnels *")
    operator.do("names reserve admin")
    operator.do(f"names reserve www --for {mine}")
    await settled(lambda: len(server.access.names.all()) == 2)
    assert await refused(server, "admin", first) == (409, "name_taken")
    assert await refused(server, "www", second) == (409, "name_taken")
    async with peer(url_of(server), "www", **bearer(first)) as agent:
        await agent.hello()
    operator.do("names release admin")
    await settled(lambda: len(server.access.names.all()) == 1)
    async with peer(url_of(server), "admin", **bearer(second)) as agent:
        await agent.hello()


async def test_a_sessions_streams_are_bounded_by_its_token(operator: Operator, server: ServerDaemon) -> None:
    _, secret = operator.create("app --streams 3")
    await settled(lambda: len(server.access.credentials) == 1)
    async with peer(url_of(server), "app", **bearer(secret)) as agent:
        assert (await agent.hello(wishes={"max_streams": 500}))["max_streams"] == 3


# -- who is put out


async def put_out(agent: Peer, began: float) -> None:
    assert await agent.over() == ("revoked", 4003, "revoked")
    assert monotonic() - began < 1


async def test_a_revoked_token_closes_its_tunnels_within_a_second(
    operator: Operator, server: ServerDaemon, lines: Book
) -> None:
    token, secret = operator.create("app --tunnels *")
    _, other = operator.create("other")
    await settled(lambda: len(server.access.credentials) == 2)
    async with (
        peer(url_of(server), "other", **bearer(other)) as bystander,
        peer(url_of(server), "one", **bearer(secret)) as one,
        peer(url_of(server), "two", **bearer(secret)) as two,
        peer(url_of(server), "silent", **bearer(secret)) as silent,
    ):
        for agent in (bystander, one, two):
            await agent.hello()
        began = monotonic()
        operator.do(f"token revoke {token}")
        for agent in (one, two, silent):
            await put_out(agent, began)
        await bystander.say({"type": "ping", "timestamp": "t", "seq": 1})
        await bystander.want("pong")
        assert len(lines.find("✗ Tunnel disconnected")) == 2
    assert await refused(server, "one", secret) == (401, "unauthorized")


async def test_a_kept_session_of_a_revoked_token_ends(operator: Operator) -> None:
    async with running_server(**operator.settings, resume={"grace": 60}) as server:
        token, secret = operator.create("app")
        await settled(lambda: len(server.access.credentials) == 1)
        async with peer(url_of(server), "app", **bearer(secret)) as agent:
            await agent.hello(wishes={"resume": {"grace": 60, "buffer": 65536}})
            agent.socket.transport.abort()
        tunnel = server.registry.find("app")
        assert tunnel is not None
        await settled(lambda: not tunnel.online)
        assert tunnel.kept is not None
        operator.do(f"token revoke {token}")
        await settled(lambda: tunnel.kept is None and not server.connections)


async def test_a_token_that_expires_or_is_rotated_closes_its_tunnels(operator: Operator, server: ServerDaemon) -> None:
    _, short = operator.create("short --expires 4s")
    token, secret = operator.create("app")
    await settled(lambda: len(server.access.credentials) == 2)
    async with (
        peer(url_of(server), "short", **bearer(short)) as expiring,
        peer(url_of(server), "app", **bearer(secret)) as agent,
    ):
        await expiring.hello()
        await agent.hello()
        began = monotonic()
        new = operator.do(f"token rotate {token}")
        await put_out(agent, began)
        assert await refused(server, "app", secret) == (401, "unauthorized")
        async with peer(url_of(server), "app", **bearer(new)) as again:
            await again.hello()
        newer = operator.do(f"token rotate {token} --overlap 1h")
        await settled(lambda: server.access.credentials.get(token).digest == digest(newer))  # type: ignore[union-attr]
        for good in (new, newer):
            async with peer(url_of(server), "app", **bearer(good)) as again:
                await again.hello()
        assert await expiring.over() == ("revoked", 4003, "revoked")
    assert await refused(server, "short", short) == (401, "unauthorized")


async def test_an_agent_whose_token_is_revoked_fails_and_its_visitors_are_told(
    operator: Operator, server: ServerDaemon, lines: Book, tmp_path: Path
) -> None:
    async def answer(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"hello"))

    token, secret = operator.create("app")
    file = tmp_path / "token"
    file.write_text(secret)
    file.chmod(0o600)
    await settled(lambda: len(server.access.credentials) == 1)
    async with (
        serving(answer) as address,
        running_agent(url_of(server), address, server={"token_file": str(file)}) as (_, tunnel),
    ):
        await lines.wait("✓ Tunnel established: app", by="tunneld.tunnel")
        operator.do(f"token revoke {token}")
        await lines.until(lambda: tunnel.state == "failed")
        assert "revoked" in (tunnel.last_error or "")


async def test_wrong_tokens_are_limited_by_address_and_right_ones_are_not(operator: Operator, lines: Book) -> None:
    settings = {**operator.settings, "auth": {"mode": "token", "max_failures": 4, "failure_window": 3600}}
    async with running_server(**settings) as server:
        _, secret = operator.create("app")
        await settled(lambda: len(server.access.credentials) == 1)
        answers = [await refused(server, "app", mint()) for _ in range(6)]
        assert answers == [(401, "unauthorized")] * 4 + [(429, "rate_limited")] * 2
        with pytest.raises(InvalidStatus) as caught:
            async with peer(url_of(server), "app"):
                pass
        assert int(caught.value.response.headers["Retry-After"]) > 0
        assert len(lines.find("Refused a credential from 127.0.0.1: unknown")) == 4
        async with peer(url_of(server), "app", **bearer(secret)) as agent:
            await agent.hello()


async def test_a_reload_from_open_to_token_puts_out_who_has_none(tmp_path: Path) -> None:
    operator = Operator(tmp_path / "tokens.yaml")
    path = tmp_path / "live.yaml"
    settings = {**operator.settings, "listen": {"host": LOOPBACK, "port": 0}, "admin": False}
    async with (
        running_server(path=path, **{**settings, "auth": {"mode": "open"}}) as server,
        peer(url_of(server)) as agent,
    ):
        await agent.hello()
        path.write_text(yaml.safe_dump(settings))
        await server.reload()
        assert await agent.over() == ("revoked", 4003, "revoked")


# -- processes


def cli(operator: Operator, *line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_module("tunneld", "server", *line, "--config", str(operator.file)),
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        env=clean_environment(),
        check=False,
    )


def test_a_running_server_notices_what_the_command_line_does(folder: Path) -> None:
    store = f"sqlite:///{folder}/store/server.db"
    server = Server(folder, settings={"store": store, "auth": {"mode": "token"}})
    try:
        operator = Operator(folder / "cli.yaml", store=store)
        _, secret = operator.create("app")
        token = folder / "token"
        token.write_text(secret)
        token.chmod(0o600)
        settings = {"server": {"token_file": str(token)}}
        agent = Agent(folder, server, {"app": "http://127.0.0.1:9"}, settings=settings)
        try:
            token_id = operator.do("token list").split()[0]
            operator.do(f"backup {folder}/copy.db")
            mark = server.process.mark()
            revoked = cli(operator, "token", "revoke", token_id)
            done = monotonic()
            assert revoked.returncode == 0, revoked.stderr
            server.process.wait_line("✗ Tunnel disconnected: app", after=mark)
            assert monotonic() - done < 1
            eventually(lambda: agent.ask("status")["tunnels"][0]["state"] == "failed", what="failed")
        finally:
            agent.process.stop()
            agent.process.assert_clean()
            agent.process.discard()
        output = "\n".join(line.text for line in [*server.process.lines, *agent.process.lines])
        assert secret not in output
    finally:
        server.process.stop()
        server.process.assert_clean()
        server.process.discard()


_WRITER = """
import asyncio, sys, time
from tunneld.server.keys import new_token
from tunneld.server.store.service import SqlStore
async def main():
    store = SqlStore(sys.argv[1])
    await store.open()
    for number in range(100000):
        token, _ = new_token("app", now=time.time())
        await store.add_token(token)
        print(token.id, flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("lines_before", [1, 60])
def test_kill_9_in_a_write_loses_nothing_that_was_acknowledged(operator: Operator, lines_before: int) -> None:
    process = Process([sys.executable, "-u", "-c", _WRITER, operator.settings["store"]], name="writer")
    try:
        process.wait_line(lambda text: True, count=lines_before)
        process.kill()
        acknowledged = [line.text for line in process.lines]
    finally:
        process.discard()
    kept = {row.split()[0] for row in operator.do("token list").splitlines()}
    assert len(acknowledged) >= lines_before
    assert set(acknowledged) <= kept
    assert len(kept) <= len(acknowledged) + 1
    with contextlib.closing(sqlite3.connect(operator.store)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"listen": {"host": "0.0.0.0", "port": 1}, "auth": {"mode": "open"}}, "auth.mode: open"),
        ({"store": "sqlite:////proc/nowhere/server.db"}, "store: /proc/nowhere/server.db: cannot be made"),
        ({"store": "{folder}/garbage.db"}, "is damaged"),
    ],
)
def test_a_server_that_cannot_be_safe_does_not_start(folder: Path, settings: dict[str, Any], words: str) -> None:
    garbage = folder / "garbage.db"
    garbage.write_bytes(b"x" * 9000)
    garbage.chmod(0o600)
    if "{folder}" in settings.get("store", ""):
        settings = {"store": f"sqlite:///{garbage}"}
    operator = Operator(
        folder / "server.yaml", **{"listen": {"host": LOOPBACK, "port": free_port()}, "admin": False, **settings}
    )
    done = cli(operator)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr


async def test_token_is_the_default_and_goes_with_public_addresses(operator: Operator) -> None:
    assert ServerConfig().auth.mode == "token"
    async with running_server(
        listen={"host": "0.0.0.0", "port": 0}, store=operator.settings["store"], auth={"mode": "token"}
    ) as server:
        with pytest.raises(InvalidStatus) as caught:
            async with peer(f"ws://{LOOPBACK}:{port_of(server)}", "app"):
                pass
        assert caught.value.response.status_code == 401
        assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"
