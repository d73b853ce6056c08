"""One server, many owners: whose tokens, names and tunnels are together, and that nobody sees another's."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_admin_api import ADMIN_TOKEN, CHANGE, calls, token_file
from tests.support.daemons import Agent, Server
from tests.support.operators import Operator
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, short_dir
from tunneld.errors import CODES

_numbers = itertools.count()


@dataclass
class World:
    """A running server with two owners, one of whom, ann, has a tunnel."""

    operator: Operator
    server: Server
    client: httpx.Client
    visitor: httpx.Client
    secrets: dict[str, str | None]
    ann: str
    bob: str

    def call(self, kind: str, method: str, path: str, body: Any = None) -> httpx.Response:
        secret = self.secrets[kind]
        headers = {**CHANGE, **({"Authorization": f"Bearer {secret}"} if secret is not None else {})}
        return self.client.request(method, path, headers=headers, json=body)

    def ask(self, kind: str, path: str) -> Any:
        answer = self.call(kind, "GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextlib.contextmanager
    def stream(self) -> Iterator[str]:
        """An event stream of a visitor of ann's tunnel: its request id."""
        # Another address each time: a client whose stream was cancelled is told not to come back to that one.
        with self.visitor.stream("GET", self.server.url("ann-app", f"/quiet?id={next(_numbers)}")) as answer:
            pieces = answer.iter_bytes()  # kept: its end is the stream's
            next(pieces)
            yield self.ask("admin", "/api/v1/streams")["streams"][-1]["request_id"]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with short_dir() as folder, contextlib.ExitStack() as stack:
        operator = Operator(folder / "cli.yaml")
        ann, bob = operator.do("owner create ann --streams 50"), operator.do("owner create bob")
        _, agent_secret = operator.create(f"ann-app --owner {ann}")
        secrets: dict[str, str | None] = {"admin": ADMIN_TOKEN, "nobody": None}
        for name in ("ann", "bob"):
            _, secrets[name] = operator.create(f"{name}-operator --scope read write --owner {name}")
        settings = {
            "store": operator.settings["store"],
            "auth": {"mode": "token"},
            "admin": {"token_file": str(token_file(folder)), "owner_metrics": 1},
        }
        service = SampleService()
        stack.callback(service.process.discard)
        server = Server(folder, settings=settings)
        stack.callback(server.process.discard)
        server.process.wait_line("for the admin API")
        token = folder / "token"
        token.write_text(agent_secret)
        token.chmod(0o600)
        agent = Agent(folder, server, {"ann-app": service.url}, settings={"server": {"token_file": str(token)}})
        stack.callback(agent.process.discard)
        address = f"http://{LOOPBACK}:{server.admin_port}"
        with httpx.Client(base_url=address, timeout=15) as client, httpx.Client(timeout=15) as visitor:
            yield World(operator, server, client, visitor, secrets, ann, bob)


@dataclass(frozen=True)
class Target:
    """What a call names, all of it ann's; made anew for each test, since some calls end it."""

    stream: str
    token: str
    name: str
    owner: str


@pytest.fixture
def target(world: World) -> Iterator[Target]:
    made = world.call("admin", "POST", "/api/v1/tokens", {"name": "spare", "owner": world.ann}).json()
    assert world.call("admin", "PUT", "/api/v1/names/ann-spare", {"owner": world.ann}).status_code == 200
    owner = world.call("admin", "POST", "/api/v1/owners", {"name": f"spare-{made['token']['id']}"}).json()
    grant = {"emails": ["guest@example.org"]}
    assert world.call("admin", "POST", "/api/v1/tunnels/ann-app/permissions", grant).status_code == 201
    with world.stream() as stream:
        yield Target(stream, made["token"]["id"], "ann-spare", owner["id"])


#: What a call may carry: (method, last word of its path) -> body.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "tokens"): {"name": "made-by-test"},
    ("POST", "owners"): {"name": "made-by-test"},
    ("POST", "permissions"): {"emails": ["new@example.org"]},
    ("POST", "cancel"): {"all": True},
}
#: Calls that an owner may not make even of their own: they are the operator's.
OPERATORS = {
    ("GET", "/metrics"),
    ("GET", "/api/v1/audit"),
    ("GET", "/api/v1/alerts"),
    ("POST", "/api/v1/alerts/test"),
    ("POST", "/api/v1/reload"),
    ("POST", "/api/v1/tokens"),
    ("POST", "/api/v1/owners"),
    ("PUT", "/api/v1/names/nobody"),
    ("DELETE", "/api/v1/owners/nobody"),
}
TABLE = [call for call in calls() if re.match(r"/(api/v1|metrics)", call[1]) and "no-such" not in call[1]]


def path_of(path: str, target: Target) -> str:
    """The call's path with ann's own in the place of the description's names."""
    for words, one in (
        ("/streams/", target.stream),
        ("/tokens/", target.token),
        ("/names/", target.name),
        ("/owners/", target.owner),
        ("/tunnels/", "ann-app"),
    ):
        path = path.replace(f"{words}nobody", f"{words}{one}")
    return path.replace("/permissions/nobody", "/permissions/guest@example.org")


@pytest.mark.parametrize(("method", "path"), TABLE)
def test_every_call_by_whom(world: World, target: Target, method: str, path: str) -> None:
    body = BODIES.get((method, path.rsplit("/", 1)[-1]), {} if method in ("POST", "PUT") else None)
    real = path_of(path, target)
    named = real != path
    nobody = world.call("nobody", method, real, body)
    assert (nobody.status_code, nobody.headers["X-Tunnel-Error"]) == (401, "unauthorized")
    other = world.call("bob", method, real, body)
    mine = world.call("ann", method, real, body)
    if (method, path) in OPERATORS:
        for answer in (other, mine):
            assert (answer.status_code, answer.headers["X-Tunnel-Error"]) == (403, "not_permitted")
        if path != "/api/v1/reload":  # this server's own file has nothing to do with the test
            assert world.call("admin", method, real, body).status_code in (200, 201)
        return
    for secret in ("ann-app", target.stream, target.token, target.name, world.ann):
        if not named:
            assert secret not in other.text, "another owner's is shown"
    assert mine.status_code in (200, 201), mine.text
    if named:
        missing = world.call("bob", method, path.replace("nobody", "no-such"), body)
        assert (other.status_code, missing.status_code) == (404, 404)
        assert other.headers["X-Tunnel-Error"] == missing.headers["X-Tunnel-Error"]
        assert set(other.json()) == set(missing.json())
    if method == "GET":
        assert world.call("admin", method, real).status_code == 200


def test_an_owner_cancels_their_own_streams_alone(world: World) -> None:
    with world.stream() as stream:
        assert world.call("bob", "POST", "/api/v1/streams/cancel", {"all": True}).json() == {"cancelled": []}
        assert world.call("bob", "DELETE", f"/api/v1/streams/{stream}").status_code == 404
        assert world.ask("ann", f"/api/v1/streams/{stream}")["request_id"] == stream
        assert stream in world.call("ann", "POST", "/api/v1/streams/cancel", {"all": True}).json()["cancelled"]


def test_what_each_is_shown(world: World) -> None:
    with world.stream():
        for kind in ("admin", "ann"):
            (tunnel,) = world.ask(kind, "/api/v1/tunnels")["tunnels"]
            assert (tunnel["owner"], tunnel["owner_name"], tunnel["token"]) == (world.ann, "ann", "ann-app")
            assert world.ask(kind, "/api/v1/status")["totals"]["active_streams"] >= 1
        status = world.ask("bob", "/api/v1/status")
        assert (status["tunnels"], set(status["totals"].values())) == ([], {0})
        assert (status["config_file"], status["listening"]) == (None, [])
        (own,) = world.ask("ann", "/api/v1/owners")["owners"]
        assert (own["id"], own["name"], own["tunnels"], own["limits"]["streams"]) == (world.ann, "ann", 1, 50)
        assert own["streams"] >= 1
        assert {"ann", "bob"} <= {one["name"] for one in world.ask("admin", "/api/v1/owners")["owners"]}
        assert {one["owner"] for one in world.ask("ann", "/api/v1/tokens")["tokens"]} == {world.ann}
        assert {one["owner"] for one in world.ask("admin", "/api/v1/tokens")["tokens"]} >= {world.ann, world.bob}


def test_the_metrics_have_a_label_by_owner_where_asked_for(world: World) -> None:
    with world.stream():
        text = world.call("admin", "GET", "/metrics").text
    assert re.search(r'^tunneld_owner_tunnels\{owner="ann"\} 1(\.0)?$', text, re.M)
    assert re.search(r'tunneld_owner_streams\{owner="ann"\} [1-9]', text)
    assert re.search(r'^tunneld_owner_streams\{owner="other"\} 0(\.0)?$', text, re.M), "bob is one too many"
    assert 'owner="bob"' not in text


def test_the_dashboard_shows_an_owner_their_own(world: World) -> None:
    def page(kind: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {world.secrets[kind]}"}
        with world.client.stream("GET", "/dashboard/feed", headers=headers) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    return dict(json.loads(line[6:]))
        raise AssertionError("no message came")

    with world.stream() as stream:
        for kind, shown in (("admin", True), ("ann", True), ("bob", False)):
            told = page(kind)
            assert [tunnel["name"] for tunnel in told["tunnels"]] == (["ann-app"] if shown else [])
            assert (stream in [one["request_id"] for one in told["streams"]]) == shown
            assert shown or "ann-app" not in json.dumps(told)
            assert shown or "ann-app" not in world.ask(kind, "/dashboard/sparks")  # with the first sample, if at all
            assert world.ask(kind, "/dashboard/history?tunnel=ann-app")["tunnel"] == ("ann-app" if shown else "")


@pytest.mark.parametrize("kind", ["token", "file"])
def test_an_open_dashboard_ends_with_the_credential_that_opened_it(world: World, kind: str) -> None:
    made = world.call("admin", "POST", "/api/v1/tokens", {"name": f"look-{kind}", "scopes": ["read"]}).json()
    secret = made["secret"] if kind == "token" else world.secrets["admin"]
    with world.client.stream("GET", "/dashboard/feed", headers={"Authorization": f"Bearer {secret}"}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: all"
        if kind == "token":
            assert world.call("admin", "DELETE", f"/api/v1/tokens/{made['token']['id']}").status_code == 200
            for _ in lines:
                pass  # until it ends: a test that it does not end times out
        else:
            assert any(line.startswith(("event: tick", ":")) for line in lines), "what is good stays"


def test_permissions_by_the_admin_api(world: World) -> None:
    path = "/api/v1/tunnels/ann-app/permissions"
    body = {"emails": ["Carl@Example.org"], "access_level": "read_only", "expires_s": 60.0, "notes": "for a minute"}
    made = world.call("ann", "POST", path, body)
    assert made.status_code == 201, made.text
    (one,) = made.json()["permissions"]
    assert (one["allowed_email"], one["status"], one["server_id"]) == ("carl@example.org", "pending", "ann-app")
    assert one in world.ask("admin", path)["permissions"]
    gone = world.call("ann", "DELETE", f"{path}/CARL@example.org")
    assert gone.json()["permissions"][0]["status"] == "revoked"
    for wrong in (
        {},
        {"emails": []},
        {"emails": ["x"]},
        {"emails": ["a@b.org"], "expires_s": -1.0},
        {"emails": ["a@b.org"], "expires_s": 1e300},
        {"emails": ["a@b.org"], "unknown": 1},
    ):
        answer = world.call("ann", "POST", path, wrong)
        assert answer.headers["X-Tunnel-Error"] == "bad_argument"
        assert answer.status_code == CODES["bad_argument"].status


def test_owners_by_the_command_line(tmp_path: Path) -> None:
    operator = Operator(tmp_path / "cli.yaml")
    ann = operator.do("owner create ann --names 3 --streams 5 --bytes 1MiB --requests 10")
    assert re.fullmatch(r"[0-9a-f]{8}", ann)
    for line, status, words in (
        ("owner create ann", 1, "already"),
        ("owner remove nobody", 1, "owner list"),
        ("token create x --owner nobody", 1, "owner list"),
    ):
        got = operator.run(line)
        assert (got[0], words in got[2]) == (status, True), got
    token, _ = operator.create("app --owner ann")
    assert f"owner {ann}" in operator.do("token list")
    assert operator.do("owner list") == f"{ann}  ann  1 tokens, 3 names, 5 streams, 1.04858e+06 B/s, 10 req/s"
    assert '"tokens": 1' in operator.do("owner list --json")
    operator.do("names reserve www --for ann")
    assert re.search(rf"www +{ann} +ann +reserved", operator.do("names"))
    operator.do("owner remove ann")
    assert operator.do("owner list") == ""
    assert "removed" in operator.do("owner list --all")
    assert token in operator.do("token list --all")
    assert "revoked" in operator.do("token list --all")
