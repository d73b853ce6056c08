"""How clients of the older dialect come in: registration, the base address with a token, and where that never shows."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from time import time
from urllib.parse import quote

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.support.front import Client
from tests.support.legacy_client import legacy, register
from tests.support.legacy_world import TOKENS, base_of, token_for
from tests.support.peers import peer
from tests.support.running import Book, port_of, running_server, settled
from tests.support.sockets import LOOPBACK
from tunneld.server.daemon import ServerDaemon


async def raw(server: ServerDaemon, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """What is answered to a request that no library would send."""
    client = Client(*await asyncio.open_connection(LOOPBACK, port_of(server)))
    client.send(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    answer = await client.answer()
    await client.leave()
    return answer.status, answer.headers, answer.body


async def refused(url: str) -> tuple[int, str, str]:
    """A connect that is refused before its upgrade: status, code, the whole document."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url.replace("http", "ws", 1) + "/tunnel/connect?name=My%20Server", proxy=None):
            pass
    answer = caught.value.response
    return answer.status_code, answer.headers["X-Tunnel-Error"], answer.body.decode() if answer.body else ""


# -- registration --------------------------------------------------------------------------------------------


async def test_registration_new_and_again() -> None:
    async with running_server() as server:
        answer = await register(base_of(server))
        assert answer.status_code == 201
        said = answer.json()
        assert said.pop("id") >= 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", said.pop("created_at"))
        assert said.pop("message")
        assert said == {"success": True, "name": "My Server", "server_key": "key-1", "owner_id": "open"}
        again = await register(base_of(server), name="Renamed", description=...)
        assert again.status_code == 200
        assert again.json() == {
            **answer.json(),
            "name": "Renamed",
            "message": again.json()["message"],
            "is_reregistration": True,
        }
        other = await register(base_of(server), server_key="key-2")
        assert other.status_code == 201
        assert other.json()["id"] != answer.json()["id"]


async def test_a_key_of_somebody_else() -> None:
    async with running_server(**TOKENS) as server:
        one, two = await token_for(server, "one", tunnels=["*"]), await token_for(server, "two", tunnels=["*"])
        first = await register(base_of(server, one))
        assert first.status_code == 201
        owner = first.json()["owner_id"]
        answer = await register(base_of(server, two))
        assert answer.status_code == 409
        said = answer.json()
        assert said["success"] is False
        assert said["error"] == answer.headers["x-tunnel-error"] == "key_taken"
        assert said["message"]
        again = await register(base_of(server, one))
        assert (again.status_code, again.json()["owner_id"]) == (200, owner)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_request"),
        (b"{", 400, "bad_request"),
        (b"[]", 400, "bad_request"),
        (b"{}", 400, "bad_request"),
        (b"\xff", 400, "bad_request"),
        (b"[" * 50_000, 400, "bad_request"),
        (b'{"name":"a"}', 400, "bad_request"),
        (b'{"name":"a","server_key":""}', 400, "bad_request"),
        (b'{"name":"a","server_key":7}', 400, "bad_request"),
        (b'{"name":"a","server_key":"k","description":[]}', 400, "bad_request"),
        (b'{"name":"","server_key":"k"}', 400, "bad_name"),
        (b'{"name":"a\\u0000b","server_key":"k"}', 400, "bad_name"),
        (b'{"name":"a","server_key":"' + b"k" * 2000 + b'"}', 400, "bad_request"),
        (b'{"name":"' + b"x" * 70_000 + b'","server_key":"k"}', 413, "body_too_large"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_registrations_that_are_none(body: bytes, status: int, code: str, chunked: bool) -> None:
    async with running_server() as server:
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked and body else b"0\r\n\r\n" if chunked else body
        got = await raw(server, f"POST /register HTTP/1.1\nHost: h\n{framing}", sent)
        assert (got[0], got[1]["x-tunnel-error"]) == (status, code)
        said = json.loads(got[2])
        assert (said["success"], said["error"], said["status"]) == (False, code, status)
        assert said["message"]


async def test_methods_of_register() -> None:
    async with running_server() as server:
        status, headers, _ = await raw(server, "GET /register HTTP/1.1\nHost: h")
        assert (status, headers["allow"]) == (405, "POST")
        status, headers, _ = await raw(server, "POST /register/x HTTP/1.1\nHost: h\nContent-Length: 0")
        assert status == 404


async def test_a_registration_that_does_not_come() -> None:
    async with running_server(limits={"header_timeout": "200ms"}) as server:
        status, headers, body = await raw(server, "POST /register HTTP/1.1\nHost: h\nContent-Length: 10", b"{")
        assert (status, headers["x-tunnel-error"]) == (408, "request_timeout")
        assert json.loads(body)["success"] is False


async def test_a_client_that_waits_for_continue() -> None:
    async with running_server() as server:
        client = Client(*await asyncio.open_connection(LOOPBACK, port_of(server)))
        body = b'{"name":"a","server_key":"k"}'
        client.get("/register", f"Content-Length: {len(body)}", "Expect: 100-continue", method="POST")
        assert (await client.head())[0] == 100
        client.send(body)
        assert (await client.answer()).status == 201
        client.get("/healthz")  # the connection goes on
        assert (await client.answer()).status == 200
        await client.leave()


async def test_a_client_that_leaves_in_the_middle_of_its_registration() -> None:
    async with running_server() as server:
        client = Client(*await asyncio.open_connection(LOOPBACK, port_of(server)))
        client.get("/register", "Content-Length: 1000", method="POST")
        client.send(b"{")
        await settled(lambda: any(one.consumer for one in server.ingress.connections))
        client.crash()
        await settled(lambda: not server.ingress.connections)


async def test_only_so_many_are_remembered() -> None:
    async with running_server(limits={"v2_clients": 2}) as server:
        for number in range(3):
            assert (await register(base_of(server), server_key=f"k{number}")).status_code == 201
        assert (await register(base_of(server), server_key="k2")).status_code == 200
        assert (await register(base_of(server), server_key="k0")).status_code == 201  # forgotten meanwhile


# -- tokens --------------------------------------------------------------------------------------------------


async def test_every_address_stands_under_the_base() -> None:
    async with running_server(**TOKENS) as server:
        base = base_of(server, await token_for(server))
        async with legacy(base) as client, httpx.AsyncClient(trust_env=False) as http:
            assert client.tunnel_id == "my-server"
            assert "/v2/" not in client.connected["public_url"]
            assert (await http.get(f"{base}/healthz")).text == "ok\n"
            for url in (f"{base}/t/my-server/a?b", f"{base_of(server)}/t/my-server/a?b"):
                asked = asyncio.get_running_loop().create_task(http.get(url, headers={"Referer": url}))
                request = await client.request()
                assert request["path"] == "/a?b"
                assert request["headers"]["x-forwarded-prefix"] == "/t/my-server"
                await client.respond(request, 302, location="/there")
                answer = await asked
                assert (answer.status_code, answer.headers["location"]) == (302, "/t/my-server/there")


@pytest.mark.parametrize("quoted", [False, True])
async def test_a_token_may_come_percent_encoded(quoted: bool) -> None:
    async with running_server(**TOKENS) as server:
        secret = await token_for(server)
        if quoted:
            secret = "".join(f"%{ord(letter):02x}" for letter in secret)
        async with legacy(base_of(server, secret)) as client:
            assert client.tunnel_id == "my-server"


async def test_without_a_token_nothing_opens() -> None:
    async with running_server(**TOKENS) as server:
        assert (await refused(base_of(server)))[:2] == (401, "unauthorized")
        answer = await register(base_of(server))
        assert answer.status_code == 401
        assert answer.json()["success"] is False
        assert not server.connections


async def test_an_agent_whose_subprotocol_was_lost_is_told_of_that() -> None:
    async with running_server(**TOKENS) as server:
        secret = await token_for(server)
        with pytest.raises(InvalidStatus) as caught:
            async with connect(
                f"ws://{LOOPBACK}:{port_of(server)}/tunnel/connect?name=my-server",
                additional_headers={"Authorization": f"Bearer {secret}"},
                proxy=None,
            ):
                pass
        assert caught.value.response.status_code == 426


async def test_a_token_for_other_names() -> None:
    async with running_server(**TOKENS) as server:
        status, code, _ = await refused(base_of(server, await token_for(server, "other")))
        assert (status, code) == (403, "name_not_allowed")
        async with legacy(base_of(server, await token_for(server, "right", tunnels=["my-*"]))) as client:
            assert client.tunnel_id == "my-server"


async def test_a_name_of_another_owner(lines: Book) -> None:
    async with running_server(**TOKENS) as server:
        one, two = await token_for(server, "one", tunnels=["*"]), await token_for(server, "two", tunnels=["*"])
        async with legacy(base_of(server, one)) as first:
            async with legacy(base_of(server, two), wait=False) as second:
                assert "my-server" in (await second.want("error"))["message"]
                assert await second.over() == (1008, "name_taken")
            async with legacy(base_of(server, one)) as again:  # the same owner replaces
                assert again.tunnel_id == first.tunnel_id
                assert (await first.over())[0] == 4001
        async with legacy(base_of(server, two), wait=False) as second:  # it stays its owner's when nobody is there
            await second.want("error")
            assert await second.over() == (1008, "name_taken")
        bearer = {"Authorization": f"Bearer {two}"}
        with pytest.raises(InvalidStatus) as caught:
            async with peer(base_of(server).replace("http", "ws"), name="my-server", additional_headers=bearer):
                pass
        assert caught.value.response.status_code == 409


async def test_a_revoked_token_closes_its_tunnel(lines: Book) -> None:
    async with running_server(**TOKENS) as server:
        base = base_of(server, await token_for(server))
        async with legacy(base) as client:
            [token] = await server.access.store.tokens()
            assert await server.access.store.revoke_token(token.id, time())
            await server.access.refresh()
            assert "revoked" in (await client.want("error"))["message"]
            assert await client.over() == (4003, "revoked")
        assert (await refused(base))[:2] == (401, "unauthorized")


@pytest.mark.parametrize(("before", "after"), [("open", "refuse"), ("open", "token")])
async def test_a_reload_holds_for_who_is_there(before: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    async with (
        running_server(path=path, auth={"mode": "open", "v2": before}) as server,
        legacy(base_of(server)) as client,
    ):
        path.write_text(path.read_text().replace(f"v2: {before}", f"v2: {after}"))
        assert await server.reload() == ["auth"]
        assert await client.over() == (4003, "revoked")


# -- where the token never shows -----------------------------------------------------------------------------


async def test_a_token_shows_nowhere(lines: Book, caplog: pytest.LogCaptureFixture) -> None:
    """Good and wrong, plain and percent-encoded: in no log line, no answer, no status, and not in the store."""
    caplog.set_level(logging.DEBUG)
    async with running_server(**TOKENS, log={"level": "debug", "queries": True}) as server:
        good = await token_for(server)
        wrong = good[:-8] + ("A" * 8 if not good.endswith("A" * 8) else "B" * 8)
        answers: list[str] = []
        for secret in (good, wrong, "hunter2-hunter2"):
            for spelled in (
                secret,
                quote(secret, safe="").replace("_", "%5F"),
                f"{secret[:5]}%{ord(secret[5]):02x}{secret[6:]}",
            ):
                base = base_of(server, spelled)
                url = f"{base}/tunnel/connect?name=My%20Server"
                registered = await register(base, connection_url=url, description=f"at {url}")
                answers += [str(registered.headers), registered.text]
                for path in ("/t/my-server/x", "/nowhere", "/healthz", "/t/none/", "/../x", "/tunnel/connect", ""):
                    head = f"GET /v2/{spelled}{path} HTTP/1.1\nHost: h\nX-Deny: 1"
                    if path != "/t/my-server/x" or secret != good:
                        got = await raw(server, head)
                        answers += [str(got[1]), got[2].decode()]
                if secret != good:
                    answers.append(str(await refused(base)))
                    continue
                async with legacy(base) as client:
                    asked = asyncio.get_running_loop().create_task(
                        raw(server, f"GET /v2/{spelled}/t/my-server/x HTTP/1.1\nHost: h")
                    )
                    request = await client.request()
                    answers.append(json.dumps(request))
                    [exchange] = server.ingress.exchanges.values()
                    answers.append(f"{exchange.path} {exchange._fields()}")
                    await client.socket.send("{")  # an error of the client's own
                    await client.over()
                    answers.append(str(await asked))
                    answers.append(str(client.messages))
        kept = [await server.access.store.registration(number) for number in range(1, 10)]
        answers.append(str(kept))
        assert any(one is not None and "…" in one.connection_url for one in kept)
        written = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
        written += [f"{entry.text} {entry.fields}" for entry in lines.entries]
        assert len(written) > 50
        assert len(answers) > 50
        for secret in (good, wrong, "hunter2-hunter2"):
            for part in (secret, secret[:-1], secret[6:]):
                for text in written + answers:
                    assert part not in text
        assert "key-1" not in "".join(written)
