"""The older dialect's permissions: who may visit, by e-mail address, as its clients call for it."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.legacy_client import legacy, register
from tests.support.legacy_world import TOKENS, base_of, token_for
from tests.support.running import running_server

TLS = ssl.create_default_context()  # made once: it reads every root of the machine
KEYS = {
    "id",
    "server_id",
    "allowed_email",
    "user_id",
    "status",
    "access_level",
    "granted_at",
    "granted_by_ip",
    "activated_at",
    "revoked_at",
    "expires_at",
    "notes",
}


def later(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def call(base: str, method: str, path: str = "", token: str | None = None, **said: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    async with httpx.AsyncClient(trust_env=False, headers=headers, verify=TLS) as http:
        return await http.request(method, f"{base}/permissions{path}", json=said or None)


async def granted(base: str, *emails: str, **more: Any) -> list[dict[str, Any]]:
    answer = await call(base, "POST", server_key="key-1", emails=list(emails), **more)
    assert answer.status_code == 201, answer.text
    return list(answer.json()["permissions"])


async def test_the_four_calls_as_the_older_dialect_has_them() -> None:
    async with running_server() as server:
        base = base_of(server)
        number = (await register(base)).json()["id"]
        until = later(60)
        answer = await call(
            base,
            "POST",
            server_key="key-1",
            emails=["Ann@Example.org", "bob@example.org", "ann@example.org"],
            access_level="read_only",
            expires_at=until,
            notes="of the team",
        )
        assert answer.status_code == 201
        said = answer.json()
        assert set(said) == {"success", "message", "added", "permissions"}
        assert (said["success"], said["added"]) == (True, 2)
        ann, bob = said["permissions"]
        assert set(ann) == set(bob) == KEYS
        assert ann["allowed_email"] == "ann@example.org"
        assert ann["server_id"] == number
        assert (ann["status"], ann["access_level"], ann["notes"]) == ("pending", "read_only", "of the team")
        assert datetime.fromisoformat(ann["expires_at"]) - datetime.fromisoformat(until) < timedelta(seconds=0.01)
        assert ann["granted_by_ip"] == "127.0.0.1"
        assert ann["activated_at"] is ann["revoked_at"] is ann["user_id"] is None
        listed = await call(base, "GET", "/key-1")
        assert (listed.status_code, listed.json()) == (
            200,
            {"success": True, "server_key": "key-1", "permissions": [ann, bob]},
        )
        changed = await call(base, "PATCH", f"/{ann['id']}", access_level="admin", expires_at=None, notes="alone")
        assert (changed.status_code, set(changed.json())) == (200, {"success", "message", "permission"})
        assert changed.json()["permission"] == {**ann, "access_level": "admin", "expires_at": None, "notes": "alone"}
        gone = await call(base, "DELETE", f"/{ann['id']}")
        assert (gone.status_code, set(gone.json())) == (200, {"success", "message"})
        assert gone.json()["success"] is True
        first, second = (await call(base, "GET", "/key-1")).json()["permissions"]
        assert (first["id"], first["status"], second) == (ann["id"], "revoked", bob)
        assert datetime.fromisoformat(first["revoked_at"])
        again = await call(base, "POST", server_key="key-1", emails=["ann@example.org", "bob@example.org"])
        assert again.json()["added"] == 1, "the one that was revoked holds anew, the other stays as it is"
        assert [one["id"] for one in again.json()["permissions"]] == [ann["id"], bob["id"]]
        assert again.json()["permissions"][0]["status"] == "pending"
        assert again.json()["permissions"][1] == bob


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({}, 400),
        ({"server_key": "key-1"}, 400),
        ({"server_key": "key-1", "emails": "ann@example.org"}, 400),
        ({"server_key": "key-1", "emails": []}, 400),
        ({"server_key": "key-1", "emails": ["ann@example.org"] * 101}, 400),
        ({"server_key": "key-1", "emails": ["ann@example.org", "nobody"]}, 400),
        ({"server_key": "key-1", "emails": ["a b@example.org"]}, 400),
        ({"server_key": "key-1", "emails": ["a..b@example.org"]}, 400),
        ({"server_key": "key-1", "emails": ["ann@example.org\n"], "access_level": "root"}, 400),
        ({"server_key": "key-1", "emails": ["ann@" + "x" * 250 + ".org"]}, 400),
        ({"server_key": "key-1", "emails": ["ann@example.org"], "access_level": "root"}, 400),
        ({"server_key": "key-1", "emails": ["ann@example.org"], "expires_at": "tomorrow"}, 400),
        ({"server_key": "key-1", "emails": ["ann@example.org"], "expires_at": "2001-01-01"}, 400),
        ({"server_key": "key-1", "emails": ["ann@example.org"], "expires_at": 5}, 400),
        ({"server_key": "key-1", "emails": ["ann@example.org"], "notes": "x" * 1001}, 400),
        ({"server_key": "key-2", "emails": ["ann@example.org"]}, 404),
    ],
)
async def test_what_cannot_be_granted_changes_nothing(said: dict[str, Any], status: int) -> None:
    async with running_server() as server:
        base = base_of(server)
        await register(base)
        answer = await call(base, "POST", **said) if said else await call(base, "POST", x=1)
        assert answer.status_code == status
        refused = answer.json()
        assert (refused["success"], refused["error"]) == (False, answer.headers["x-tunnel-error"])
        assert refused["message"]
        assert (await call(base, "GET", "/key-1")).json()["permissions"] == []


async def test_other_methods_and_ids_that_are_none() -> None:
    async with running_server() as server:
        base = base_of(server)
        await register(base)
        (one,) = await granted(base, "ann@example.org")
        for method, path, status in (
            ("GET", "", 405),
            ("POST", "/key-1", 405),
            ("GET", "/key-9", 404),
            ("DELETE", "/abc", 404),
            ("DELETE", f"/{one['id'] + 1}", 404),
            ("PATCH", "/99999999999999999999999", 404),
        ):
            answer = await call(base, method, path, **({"notes": "x"} if method in ("PATCH", "POST") else {}))
            assert (answer.status_code, method, path) == (status, method, path)
            assert answer.json()["success"] is False
            assert answer.headers.get("allow") == (
                ("GET, PATCH, DELETE" if path else "POST") if status == 405 else None
            )
        bad = await call(base, "PATCH", f"/{one['id']}", status="gone")
        assert bad.status_code == 400


async def test_status_can_be_set_and_taken_back() -> None:
    async with running_server() as server:
        base = base_of(server)
        await register(base)
        (one,) = await granted(base, "ann@example.org")

        async def patched(**said: Any) -> Any:
            answer = await call(base, "PATCH", f"/{one['id']}", **said)
            return answer.json()["permission"]["status"] if answer.status_code == 200 else answer.status_code

        assert await patched(status="revoked") == "revoked"
        assert await patched(status="active") == "pending", "nobody has signed in by a word"
        assert await patched(status="expired") == "expired"
        assert await patched(status="active") == 400
        assert await patched(status="pending", expires_at=later(60)) == "pending"


async def test_only_its_owner_sees_or_changes_a_permission() -> None:
    async with running_server(**TOKENS) as server:
        mine = await token_for(server, "mine", tunnels=["*"])
        other = await token_for(server, "other", tunnels=["*"])
        await register(base_of(server, mine))
        said: dict[str, Any] = {"server_key": "key-1", "emails": ["ann@example.org"]}
        base = base_of(server)
        for answer in (await call(base, "POST", **said), await call(base, "POST", token="tnl_wrong", **said)):
            assert (answer.status_code, answer.json()["success"]) == (401, False)
            assert answer.headers["www-authenticate"] == "Bearer"
        made = await call(base, "POST", token=mine, **said)
        assert made.status_code == 201
        number = made.json()["permissions"][0]["id"]
        none = await call(base, "POST", token=other, server_key="no such", emails=["ann@example.org"])
        stranger = await call(base, "POST", token=other, **said)
        assert (stranger.status_code, stranger.json()["message"]) == (404, none.json()["message"])
        assert (await call(base, "GET", "/key-1", token=other)).status_code == 404
        calls: list[tuple[str, dict[str, Any]]] = [("PATCH", {"notes": "x"}), ("DELETE", {})]
        for method, more in calls:
            hidden = await call(base, method, f"/{number}", token=other, **more)
            missing = await call(base, method, f"/{number + 7}", token=other, **more)
            assert (hidden.status_code, missing.status_code) == (404, 404)
            words = [answer.json()["message"] for answer in (hidden, missing)]
            assert words[0].replace(str(number), "N") == words[1].replace(str(number + 7), "N")
        under = await call(base_of(server, mine), "GET", "/key-1")
        assert [one["status"] for one in under.json()["permissions"]] == ["pending"]


async def test_a_tunnel_has_at_most_so_many_and_ended_ones_make_room() -> None:
    async with running_server(limits={"permissions": 2}) as server:
        base = base_of(server)
        await register(base)
        ann, _bob = await granted(base, "ann@example.org", "bob@example.org")
        full = await call(base, "POST", server_key="key-1", emails=["eve@example.org"])
        assert (full.status_code, full.json()["error"]) == (409, "too_many_permissions")
        await call(base, "DELETE", f"/{ann['id']}")
        (eve,) = await granted(base, "eve@example.org")
        found = (await call(base, "GET", "/key-1")).json()["permissions"]
        assert [one["allowed_email"] for one in found] == ["bob@example.org", "eve@example.org"]
        assert eve["id"] > ann["id"] + 1


async def test_the_first_sign_in_makes_it_active_and_it_is_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/server.db"}
    async with running_server(**settings) as server:
        base = base_of(server)
        await register(base)
        await granted(base, "ann@example.org", access_level="admin")
        async with legacy(base):
            tunnel = server.registry.find("my-server")
            permissions = server.ingress.desk.permissions
            assert permissions is not None
            assert tunnel is not None
            assert permissions.permission_of(tunnel, "ANN@example.org") == "admin"
            assert permissions.permission_of(tunnel, "eve@example.org") is None
            permissions.activated(tunnel, "Ann@example.org", "192.0.2.1")
            permissions.activated(tunnel, "eve@example.org", "192.0.2.1")
        (one,) = (await call(base, "GET", "/key-1")).json()["permissions"]
        assert (one["status"], one["user_id"]) == ("active", "ann@example.org")
        await call(base, "PATCH", f"/{one['id']}", status="revoked")
        assert permissions.permission_of(tunnel, "ann@example.org") is None
        await call(base, "PATCH", f"/{one['id']}", status="active")
    async with running_server(**settings) as server:
        (kept,) = (await call(base_of(server), "GET", "/key-1")).json()["permissions"]
        assert {**one, "activated_at": None} == {**kept, "activated_at": None}
        assert kept["activated_at"] == one["activated_at"]
