"""Visitors by permission: from the owner's call to the stream that ends, on real daemons, with tokens of an issuer."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, time

import httpx
import pytest

from tests.support.issuer import CLIENT, issuer
from tests.support.legacy_client import legacy, register
from tests.support.legacy_world import base_of
from tests.support.running import book, port_of, running_agent, running_server, url_of
from tests.support.services import SampleService
from tunneld.errors import ConfigError
from tunneld.server.permissions import Change
from tunneld.server.visitors.cookies import CookieFault, Session


async def test_permissions_of_the_servers_store_and_a_session_that_outlives_a_restart(tmp_path: Path) -> None:
    service = SampleService()
    access = {"mode": "login"}
    tunnels = {"tunnels": [{"name": "app", "service": service.url, "access": access}]}
    try:
        async with issuer() as op:
            login = {"issuer": op.url, "client_id": CLIENT}
            settings = {"login": login, "domain": "localhost", "store": f"sqlite:///{tmp_path}/s.db"}
            with book() as lines:
                async with running_server(**settings) as server, running_agent(url_of(server), **tunnels):
                    await lines.wait("✓ Tunnel established", by="tunneld.tunnels")
                    tunnel = server.registry.find("app")
                    assert tunnel is not None
                    headers = {"Host": f"app.localhost:{port_of(server)}"}
                    address = f"http://127.0.0.1:{port_of(server)}"
                    bearer = {"Authorization": f"Bearer {op.token(tunnel.host_url or '')}"}
                    async with httpx.AsyncClient(headers=headers | bearer, base_url=address) as client:
                        answer = await client.get("/echo")
                        assert answer.headers["x-tunnel-error"] == "login_denied"
                        permissions = server.access.permissions
                        owner = tunnel.principal.id
                        ((given,), _) = await permissions.grant(
                            owner, "app", ["ann@example.org"], Change(level="read_only")
                        )
                        assert (await client.get("/echo")).status_code == 200
                        assert (await client.post("/echo")).headers["x-tunnel-error"] == "read_only"
                        assert permissions.get(owner, given.id).activated is not None
                        async with client.stream("GET", "/events?n=0&gap=0.05&id=x") as stream:
                            assert stream.status_code == 200
                            events = stream.aiter_bytes()
                            await anext(events)
                            revoked = monotonic()
                            await permissions.change(owner, given.id, Change(status="revoked"))
                            async for _ in events:
                                pass
                            assert monotonic() - revoked < 1
                        assert (await client.get("/echo")).headers["x-tunnel-error"] == "login_denied"
                    desk = server.ingress.desk.login
                    assert desk is not None
                    cookie = desk._seal.sign(Session("ann@example.org", "app", "id", time() + 60))
                key = tmp_path / "s.db.login-key"
                assert key.stat().st_mode & 0o777 == 0o600
                async with running_server(**settings) as server:
                    desk = server.ingress.desk.login
                    assert desk is not None
                    assert desk._seal.session(cookie, "app", time()).email == "ann@example.org"
                key.write_bytes(b"short")
                with pytest.raises(ConfigError, match="32 random bytes"):
                    async with running_server(**settings):
                        pass
                key.unlink()
                async with running_server(**settings) as server:
                    desk = server.ingress.desk.login
                    assert desk is not None
                    with pytest.raises(CookieFault):
                        desk._seal.session(cookie, "app", time())
    finally:
        service.stop()


async def test_the_older_dialects_permissions_let_people_in_to_its_tunnels() -> None:
    async with (
        issuer() as op,
        running_server(login={"issuer": op.url, "client_id": CLIENT}) as server,
        legacy(base_of(server)) as client,
    ):
        await register(base_of(server))
        bearer = {"Authorization": f"Bearer {op.token(f'{base_of(server)}/t/my-server')}"}
        async with httpx.AsyncClient(base_url=base_of(server), trust_env=False) as http:
            said = {"server_key": "key-1", "emails": ["ann@example.org", "bob@example.org"]}
            ann, bob = (await http.post("/permissions", json=said)).json()["permissions"]
            assert (await http.get("/t/my-server/a")).headers["x-tunnel-error"] == "login_required"
            async with http.stream("GET", "/t/my-server/sse", headers=bearer) as stream:
                request = await client.request()
                told = {name.lower(): value for name, value in request["headers"].items()}
                assert (told["x-tunnel-user"], told["x-tunnel-access"]) == ("ann@example.org", "read_write")
                assert "authorization" not in told
                await client.chunk(request, "data: 1\n\n")
                events = stream.aiter_text()
                assert await anext(events) == "data: 1\n\n"
                listed = (await http.get("/permissions/key-1")).json()["permissions"]
                assert [one["status"] for one in listed] == ["active", "pending"]
                revoked = monotonic()
                assert (await http.delete(f"/permissions/{ann['id']}")).status_code == 200
                async for _ in events:
                    pass
                assert monotonic() - revoked < 1
            assert (await client.want("stream_cancel"))["request_id"] == request["request_id"]
            refused = await http.get("/t/my-server/a", headers=bearer)
            assert (refused.status_code, refused.headers["x-tunnel-error"]) == (403, "login_denied")
            assert (await http.delete(f"/permissions/{bob['id']}")).status_code == 200
            assert (await http.get("/t/my-server/a")).status_code == 401, "not open again with the last one"
