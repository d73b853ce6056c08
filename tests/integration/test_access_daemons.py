"""Access of visitors from the agent's file to the service, on real daemons; and servers that do not know it."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest

from tests.support.daemons import Pair
from tests.support.running import agent_settings, book, port_of, running_agent, running_server, url_of, written
from tests.support.services import SampleService
from tests.support.sockets import short_dir
from tunneld.config.access import AccessConfig, resolve
from tunneld.config.load import load_agent
from tunneld.errors import ConfigError, VisitorError
from tunneld.protocol.links import secret_of, sign
from tunneld.protocol.messages import Connected
from tunneld.server import welcome

KEY = "k-0123456789abcdef"


def key(secret: str, name: str = "bob", **more: Any) -> dict[str, Any]:
    return {"name": name, "hash": f"sha256:{sha256(secret.encode()).hexdigest()}", **more}


def tunnel(service: SampleService, access: dict[str, Any]) -> dict[str, Any]:
    return {"tunnels": [{"name": "app", "service": f"http://127.0.0.1:{service.port}", "access": access}]}


async def test_keys_of_the_file_hold_and_a_reload_takes_one_back_with_its_streams(tmp_path: Path) -> None:
    service = SampleService()
    file = tmp_path / "agent.yaml"
    own = tmp_path / "key"
    own.write_text(f"{KEY}\n")
    own.chmod(0o600)
    access = {"mode": "key", "keys": [key("another-key-0000"), {"name": "filed", "key_file": str(own)}]}
    try:
        with book() as lines:
            async with (
                running_server() as server,
                running_agent(url_of(server), path=file, **tunnel(service, access)) as (agent, app),
            ):
                await lines.wait("✓ Tunnel established", by="tunneld.tunnels")
                base = f"http://127.0.0.1:{port_of(server)}/t/app"
                async with httpx.AsyncClient(headers={"X-API-Key": KEY}) as client:
                    assert (await client.get(f"{base}/echo", headers={"X-API-Key": "wrong"})).status_code == 401
                    url = app.share("/echo", 4_000_000_000)
                    plain = (await client.get(f"{base}/echo")).status_code
                    async with httpx.AsyncClient() as guest:
                        assert (await guest.get(url)).status_code == plain == 200
                    async with client.stream("GET", f"{base}/events?n=0&gap=0.05&id=x") as stream:
                        assert stream.status_code == 200
                        events = stream.aiter_bytes()
                        await anext(events)
                        settings = tunnel(service, {"mode": "key", "keys": [key("another-key-0000")]})

                        written(file, agent_settings(url_of(server), "", settings))
                        await agent.reload()
                        async with asyncio.timeout(1):
                            async for _ in events:
                                pass
                    assert (await client.get(f"{base}/echo")).status_code == 401
                hello = [one.text + str(one.fields) for one in lines.entries]
                assert not any(KEY in text or "another-key-0000" in text for text in hello)
    finally:
        service.stop()


async def test_without_a_token_addresses_are_signed_with_what_no_message_but_the_wish_holds() -> None:
    service = SampleService()
    try:
        with book() as lines:
            settings = tunnel(service, {"mode": "key", "keys": [key(KEY)]})
            async with running_server() as server, running_agent(url_of(server), **settings) as (_, app):
                await lines.wait("✓ Tunnel established", by="tunneld.tunnels")
                (connection,) = server.connections
                hello = connection.hello  # type: ignore[union-attr]
                assert hello is not None
                assert hello.wishes.access is not None
                until = 4_000_000_000
                guessed = [hello.instance.encode(), connection.name.encode(), b""]
                assert connection.tunnel is not None
                async with httpx.AsyncClient() as guest:
                    for secret in guessed:
                        path = sign(secret_of(secret, "app"), "app", "/echo", until)
                        answer = await guest.get(connection.tunnel.public_url + path)
                        assert (answer.status_code, answer.headers["x-tunnel-error"]) == (401, "login_failed")
                    assert (await guest.get(app.share("/echo", until))).status_code == 200
                secret = hello.wishes.access.links
                assert not any(secret in one.text + str(one.fields) for one in lines.entries)
            async with running_server() as server, running_agent(url_of(server), **tunnel(service, {})) as (_, app):
                await lines.until(lambda: app.state in ("online", "degraded"))
                (connection,) = server.connections
                wishes = connection.hello.wishes  # type: ignore[union-attr]
                assert wishes.access is None or not wishes.access.links, "who has nothing to share tells no secret"
    finally:
        service.stop()


async def test_a_server_that_enforces_nothing_gets_no_protected_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(**said: Any) -> Connected:
        return Connected(**(said | {"access": None}))

    monkeypatch.setattr(welcome, "Connected", old)
    service = SampleService()
    settings = tunnel(service, {"mode": "key", "keys": [key(KEY)]})
    try:
        with book() as lines:
            async with running_server() as server, running_agent(url_of(server), **settings) as (_, app):
                await lines.until(lambda: app.state == "failed")
                assert "access_unsupported" in (app.last_error or "")
                assert app.active_streams == 0
                with pytest.raises(VisitorError):
                    app.share("/x", 4_000_000_000)
            async with running_server() as server, running_agent(url_of(server), **tunnel(service, {})) as (_, app):
                await lines.until(lambda: app.state in ("online", "degraded"))
    finally:
        service.stop()


async def test_login_is_refused_rather_than_left_open() -> None:
    service = SampleService()
    try:
        with book() as lines:
            async with (
                running_server() as server,
                running_agent(url_of(server), **tunnel(service, {"mode": "login"})) as (_, app),
            ):
                await lines.until(lambda: app.state == "failed")
                assert "access.mode 'login'" in (app.last_error or "")
                async with httpx.AsyncClient() as guest:
                    answer = await guest.get(f"http://127.0.0.1:{port_of(server)}/t/app/")
                assert answer.status_code == 404
    finally:
        service.stop()


@pytest.mark.parametrize(
    ("access", "words"),
    [
        ({"mode": "key", "keys": [{"name": "x"}]}, "one of them"),
        ({"mode": "key", "keys": [key(KEY), key(KEY)]}, "another key has that name"),
        ({"mode": "key", "keys": [key(KEY, expires="soon")]}, "expected a date"),
        ({"allow": ["10.0.0.0/33"]}, "expected an address or a range"),
        ({"mode": "basic", "users_file": "/nonexistent"}, "no such file"),
        ({"users_file": "/nonexistent"}, "users are for `mode: basic`"),
    ],
)
async def test_faults_of_the_section_are_told_with_their_line(
    tmp_path: Path, access: dict[str, Any], words: str
) -> None:

    section = {"tunnels": [{"name": "app", "service": "http://127.0.0.1:9", "access": access}]}
    with pytest.raises(ConfigError) as caught:
        load_agent(written(tmp_path / "a.yaml", agent_settings("ws://h", "", section)))
    assert words in str(caught.value)
    assert "agent.access" not in str(caught.value)


def test_users_files_are_read_with_every_fault_by_line(tmp_path: Path) -> None:

    good = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()
    file = tmp_path / "users"
    file.write_text(f"# of the tunnel\nann:{good}\nbob:$apr1$zzz\ncat:{good.replace('$04$', '$17$')}\n")
    loaded, faults = resolve(AccessConfig(mode="basic", users_file=str(file)))
    assert [text.partition(" ")[0] for _, text in faults] == [f"{file}:3:", f"{file}:4:"]
    file.write_text(f"ann:{good}\n")
    loaded, faults = resolve(AccessConfig(mode="basic", users_file=str(file)))
    assert (loaded.users, faults) == ({"ann": good}, [])


def test_share_and_open_with_a_key_from_the_command_line() -> None:
    service = SampleService()
    with short_dir() as folder:
        made = Pair(folder, {"demo": f"http://127.0.0.1:{service.port}"})
        try:
            opened = made.agent.tunnelctl("open", "mine", str(service.port), "--access", "key")
            assert opened.returncode == 0, opened.stderr
            secret = opened.stdout.splitlines()[0].rpartition(" ")[2]
            assert httpx.get(made.url("mine", "/echo")).status_code == 401
            plain = httpx.get(made.url("demo", "/echo")).status_code
            assert httpx.get(made.url("mine", "/echo"), headers={"X-API-Key": secret}).status_code == plain
            shared = made.agent.tunnelctl("share", "mine", "/echo?x=1", "--for", "1h").stdout.strip()
            assert shared.startswith(made.url("mine", "/echo?x=1&tunnel_link="))
            assert httpx.get(shared).status_code == plain
            refused = made.agent.tunnelctl("share", "demo", "/x")
            assert (refused.returncode, "is open" in refused.stderr) == (1, True)
            made.close()
        finally:
            made.discard()
            service.stop()


def test_basic_from_a_file_that_htpasswd_could_have_made() -> None:
    service = SampleService()
    with short_dir() as folder:
        users = folder / "users"
        hashed = bcrypt.hashpw(b"pass word", bcrypt.gensalt(5)).decode().replace("$2b$", "$2y$")
        users.write_text(f"ann:{hashed}\n")
        section = {"service": f"http://127.0.0.1:{service.port}", "access": {"mode": "basic", "users_file": str(users)}}
        made = Pair(folder, {"demo": section})
        try:
            good = b64encode(b"ann:pass word").decode()
            assert httpx.get(made.url("demo", "/echo")).headers["www-authenticate"].startswith("Basic realm=")
            answer = httpx.get(made.url("demo", "/echo"), headers={"Authorization": f"Basic {good}"})
            assert answer.status_code == 200
            assert ["X-Tunnel-User", "ann"] in answer.json()["headers"]
            made.close()
        finally:
            made.discard()
            service.stop()
