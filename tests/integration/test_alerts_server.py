"""Alerts of a real server over its tunnels, its limits, its certificates and its tokens; and of an agent's token."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic, time
from typing import Any

import httpx
import pytest
import yaml

from tests.support.commands import Ran, tunnelctl_beside
from tests.support.operators import Operator
from tests.support.receivers import Hook, hooked
from tests.support.running import Book, agent_settings, port_of, running_agent, settled, written
from tests.support.sockets import LOOPBACK, Certificate, certificate, free_port
from tests.support.tunnelled import read_head, reply, serving
from tunneld.alerts.watch import AlertWatch
from tunneld.config.load import load_agent, load_server
from tunneld.control.admin.host import ServerHost
from tunneld.control.host import AgentHost

pytestmark = pytest.mark.usefixtures("quick_alerts")

AT_ONCE: dict[str, Any] = {"for": 0, "group": 0}


@asynccontextmanager
async def hosted(folder: Path, alerts: list[Any], **more: Any) -> AsyncIterator[tuple[ServerHost, httpx.AsyncClient]]:
    """A server with its file, and a client of its admin API."""
    base: dict[str, Any] = {
        "listen": {"host": LOOPBACK, "port": 0},
        "admin": {"listen": {"host": LOOPBACK, "port": 0}},
        "auth": {"mode": "open"},
        "store": "memory:",
        "drain_timeout": 1,
        "heartbeat": {"min": 0.05},
        "alerts": alerts,
    }
    path = written(folder / "server.yaml", {**base, **more})
    host = ServerHost(load_server(path), path)
    await host.start()
    try:
        address = host.admin_addresses[0][1]
        async with httpx.AsyncClient(
            base_url=f"http://{address}/api/v1", timeout=15, headers={"X-Tunneld-Request": "test"}
        ) as client:
            yield host, client
    finally:
        await host.stop()


def ws(host: ServerHost) -> str:
    return f"ws://{LOOPBACK}:{port_of(host.server)}"


async def told(hook: Hook, alert: str, state: str = "firing") -> dict[str, Any]:
    """The first message of that kind."""

    def found() -> list[dict[str, Any]]:
        return [one for one in hook.bodies if (one["alert"], one["state"]) == (alert, state)]

    while not found():
        hook.came.clear()
        await hook.came.wait()
    return found()[0]


def tunnelctl(host: ServerHost, *args: str) -> Any:
    return tunnelctl_beside(*args, "--server", f"http://{host.admin_addresses[0][1]}")


async def test_a_tunnel_that_is_down_is_told_shown_and_over(tmp_path: Path, hook: Hook, lines: Book) -> None:
    rule = {"when": "tunnel_down", "tunnels": "app", "to": [hooked(hook)], **AT_ONCE}
    async with hosted(tmp_path, [rule]) as (host, client), running_agent(ws(host)) as (agent, _):
        await settled(lambda: host.server.registry.find("app") is not None)
        assert (await client.get("/alerts")).json()["alerts"] == []
        await agent.stop()
        body = await told(hook, "tunnel_down")
        assert (body["alerts"][0]["subject"], body["more"]) == ("app", 0)
        assert body["source"].endswith("(server)")
        shown = (await client.get("/alerts")).json()
        assert [(one["alert"], one["subject"], one["state"]) for one in shown["alerts"]] == [
            ("tunnel_down", "app", "firing")
        ]
        assert [one["name"] for one in shown["rules"]] == ["tunnel_down"]
        ran: Ran = await tunnelctl(host, "alerts")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.splitlines()[0].split() == ["ALERT", "OF", "STATE", "SINCE", "WHY"]
        assert "The tunnel app is offline." in ran.stdout
        assert json.loads((await tunnelctl(host, "alerts", "--json")).stdout) == (await client.get("/alerts")).json()
        metrics = await client.get(f"http://{host.admin_addresses[0][1]}/metrics")
        assert 'tunneld_alerts_firing{alert="tunnel_down"} 1\n' in metrics.text
        async with running_agent(ws(host)):
            assert (await told(hook, "tunnel_down", "resolved"))["alerts"][0]["subject"] == "app"
        await lines.wait("Alert tunnel_down is over")


async def test_reconnects_and_a_failing_service_are_told(tmp_path: Path, hook: Hook) -> None:
    async def service(reader: Any, writer: Any) -> None:
        await read_head(reader)
        writer.write(reply(b"no", status="500 No"))

    rules = [
        {"when": "reconnects", "over": 2, "to": [hooked(hook)], **AT_ONCE},
        {"when": "service_failing", "to": [hooked(hook)], **AT_ONCE},
    ]
    check = {"path": "/healthz", "interval": 0.05}
    async with serving(service) as url, hosted(tmp_path, rules, resume={"grace": 0.05}) as (host, client):
        one = {"name": "app", "service": url, "service_check": check}
        async with running_agent(ws(host), tunnels=[one]):
            failing = await told(hook, "service_failing")
            assert failing["alerts"][0]["message"].startswith("The service of app fails: ")
            tunnel = host.server.registry.find("app")
            assert tunnel is not None
            for dials in (1, 2, 3):
                await settled(lambda dials=dials: tunnel.connects == dials and tunnel.online)
                assert (await client.post("/tunnels/app/reconnect")).status_code == 200
            assert "reconnected 3 times within 10 min" in (await told(hook, "reconnects"))["alerts"][0]["message"]


async def test_streams_that_are_lost_with_their_session_are_told(tmp_path: Path, hook: Hook) -> None:
    async def service(reader: Any, writer: Any) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await reader.read()

    rule = {"when": "data_lost", "to": [hooked(hook)], **AT_ONCE}
    grace = {"grace": 0.05}
    async with (
        serving(service) as url,
        hosted(tmp_path, [rule], resume=grace) as (host, _),
        running_agent(ws(host), url, resume=grace, reconnect={"initial": 5}) as (_agent, tunnel),
    ):
        await settled(lambda: tunnel.state == "online")
        public = f"http://{LOOPBACK}:{port_of(host.server)}/t/app/"
        async with httpx.AsyncClient() as visitor, visitor.stream("GET", public) as answer:
            assert answer.status_code == 200
            assert tunnel._connections.link is not None
            tunnel._connections.link.abort()
            body = await told(hook, "data_lost")
    assert body["alerts"][0]["message"] == "The tunnel app lost 1 streams with their sessions within 10 min."


async def test_round_trips_loss_and_limits_are_told(tmp_path: Path, hook: Hook) -> None:
    rules = [
        {"when": "rtt", "over": "0s", "to": [hooked(hook)], **AT_ONCE},
        {"when": "loss", "over": "1%", "to": [hooked(hook)], **AT_ONCE},
        {"when": "limit_near", "over": "40%", "to": [hooked(hook)], **AT_ONCE},
    ]
    async with (
        hosted(tmp_path, rules, limits={"max_tunnels": 2}) as (host, _),
        running_agent(ws(host), heartbeat={"interval": 0.05}),
    ):
        assert (await told(hook, "rtt"))["alerts"][0]["message"].startswith("Round trips of app: p95 ")
        tunnel = host.server.registry.find("app")
        assert tunnel is not None
        tunnel.quality.lost(monotonic())
        assert (await told(hook, "loss"))["alerts"][0]["message"].startswith("Loss on the connection of app: ")
        near = await told(hook, "limit_near")  # whose first look was before there was a tunnel: the next is 5 s later
        assert near["alerts"][0]["message"] == "The limit tunnels is used to 50% (over 40%)."


def over(hook: Hook) -> set[str]:
    """What was told to be over."""
    return {one["subject"] for body in hook.bodies if body["state"] == "resolved" for one in body["alerts"]}


def short_lived(folder: Path, days: int) -> Certificate:
    """A certificate that ends in so many days."""
    made = certificate(folder)
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-key",
            str(made.key),
            "-days",
            str(days),
            "-subj",
            "/CN=x",
            "-out",
            str(made.cert),
        ],
        check=True,
        capture_output=True,
    )
    return made


async def test_certificates_and_tokens_that_end_are_told_and_over_once_they_are_renewed(
    tmp_path: Path, hook: Hook
) -> None:
    pair = short_lived(tmp_path, 3)
    store = {"store": f"sqlite:///{tmp_path / 'server.db'}", "auth": {"mode": "token"}}
    operator = Operator(tmp_path / "cli.yaml", store=store["store"])
    operator.do("token create lasting --expires 90d")
    operator.do("token create forever")
    operator.do("token create ends --expires 5d")
    tls = {"cert": str(pair.cert), "key": str(pair.key)}
    listen = [{"host": LOOPBACK, "port": 0}, {"host": LOOPBACK, "port": 0, "tls": tls}]
    rule = {"when": "expiring", "to": [hooked(hook)], **AT_ONCE}
    async with hosted(tmp_path, [rule], listen=listen, **store) as (_host, client):
        body = await told(hook, "expiring")
        said = sorted(one["message"] for one in body["alerts"])
        assert said[0] == f"The certificate {pair.cert} (listen[1].tls) ends in 3 days."
        assert said[1].startswith("The token ends (")
        assert said[1].endswith(") ends in 5 days.")
        assert len(said) == 2
        short_lived(tmp_path, 300)
        ending = [one["id"] for one in (await client.get("/tokens")).json()["tokens"] if one["name"] == "ends"]
        assert (await client.delete(f"/tokens/{ending[0]}")).status_code == 200
        assert (await client.post("/reload")).status_code == 200
        await settled(lambda: over(hook) == {one["subject"] for one in body["alerts"]})


async def test_an_agent_tells_of_its_own_token_and_follows_another(tmp_path: Path, hook: Hook) -> None:
    store = {"store": f"sqlite:///{tmp_path / 'server.db'}", "auth": {"mode": "token"}}
    operator = Operator(tmp_path / "cli.yaml", store=store["store"])
    token = tmp_path / "token"
    token.write_text(operator.do("token create app --expires 30h"))
    token.chmod(0o600)
    rule = {"when": "expiring", "over": "2d", "to": [hooked(hook)], **AT_ONCE}
    async with hosted(tmp_path, [], **store) as (host, client):
        over = {"control": {"socket": str(tmp_path / "c.sock")}, "alerts": [rule]}
        settings = agent_settings(ws(host), "http://127.0.0.1:9", over)
        path = written(tmp_path / "agent.yaml", settings | {"server": {"url": ws(host), "token_file": str(token)}})
        agent = AgentHost(load_agent(path), path)
        await agent.start()
        try:
            body = await told(hook, "expiring")
            assert [one["message"] for one in body["alerts"]] == ["The agent's token ends in 30 hours."]
            end = agent.agent.tunnels[0].token_end
            assert end is not None
            assert abs(end - time() - 30 * 3600) < 60
            (made,) = (await client.get("/tokens")).json()["tokens"]
            # Another secret: the old one is good for an hour more, and that is what counts for who comes with it.
            answer = await client.post(f"/tokens/{made['id']}/rotate", json={"overlap_s": 3600})
            agent.agent.tunnels[0].reconnect()
            await settled(lambda: (agent.agent.tunnels[0].token_end or end) < end - 80_000)
            assert answer.status_code == 200
            token.write_text(answer.json()["secret"])
            await agent.reload()
            agent.agent.tunnels[0].reconnect()
            await settled(lambda: (agent.agent.tunnels[0].token_end or 0) > end - 100)
        finally:
            await agent.stop()


async def test_a_reload_brings_rules_and_takes_them_away(tmp_path: Path, hook: Hook) -> None:
    async with hosted(tmp_path, []) as (host, client), running_agent(ws(host)) as (agent, _):
        assert (await client.get("/alerts")).json() == {"alerts": [], "rules": [], "receivers": []}
        assert host._alerts._watch is None
        path = tmp_path / "server.yaml"
        before = yaml.safe_load(path.read_text())
        written(path, before | {"alerts": [{"when": "tunnel_down", "to": [hooked(hook)], **AT_ONCE}]})
        assert "alerts" in (await client.post("/reload")).json()["changed"]
        await agent.stop()
        await told(hook, "tunnel_down")
        written(path, before | {"alerts": [{"when": "rtt", "ovr": 1}]})
        refused = await client.post("/reload")
        assert refused.json()["code"] == "bad_config"
        assert 'alerts[0].ovr: unknown key (did you mean "over"?)' in refused.json()["faults"][0]
        assert [one["name"] for one in (await client.get("/alerts")).json()["rules"]] == ["tunnel_down"]
        written(path, before)
        await client.post("/reload")
        assert (await client.get("/alerts")).json() == {"alerts": [], "rules": [], "receivers": []}


async def test_a_test_is_sent_noted_and_says_who_was_reached(tmp_path: Path, hook: Hook) -> None:
    gone = {"webhook": f"http://{LOOPBACK}:{free_port()}/"}
    rules = [{"name": "one", "when": "loss", "to": [hooked(hook)]}, {"name": "two", "when": "rtt", "to": [gone]}]
    async with hosted(tmp_path, rules) as (host, client):
        whole: Ran = await tunnelctl(host, "alerts", "test")
        assert whole.returncode == 1
        assert whole.stdout.splitlines()[0] == f"✓ webhook {LOOPBACK}:{hook.port}: arrived"
        assert whole.stdout.splitlines()[1].startswith("✗ webhook ")
        assert hook.bodies[0]["test"] is True
        only: Ran = await tunnelctl(host, "alerts", "test", "one", "--json")
        assert only.returncode == 0
        assert json.loads(only.stdout) == {"told": [{"receiver": f"webhook {LOOPBACK}:{hook.port}", "fault": None}]}
        wrong: Ran = await tunnelctl(host, "alerts", "test", "three")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "No rule of `alerts` is named three." in wrong.stderr
        noted = (await client.get("/audit")).json()["entries"]
        assert [(one["action"], one["detail"]) for one in noted] == [
            ("alerts.test", "tested the alert one"),
            ("alerts.test", "tested the alerts"),
        ]


async def test_thousands_of_tunnels_are_looked_at_without_holding_the_loop(
    tmp_path: Path, hook: Hook, lines: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 tunnels, all down at once: one message that names a hundred, and a look in many turns of the loop."""
    rule = {"when": "tunnel_down", "to": [hooked(hook)], **AT_ONCE}
    rules = [rule, {"when": "reconnects"}, {"when": "rtt"}, {"when": "loss"}]
    async with hosted(tmp_path, rules) as (host, _):
        for number in range(5000):
            host.server.registry.claim(f"t{number}", 0.0)
        steps: list[int] = []
        go_on = AlertWatch._go_on
        monkeypatch.setattr(AlertWatch, "_go_on", lambda *its: (steps.append(1), go_on(*its))[1])
        body = await told(hook, "tunnel_down")
        assert (len(body["alerts"]), body["more"]) == (100, 4900)
        assert len(lines.find("Alert tunnel_down: The tunnel t")) == 100
        assert lines.find("Alert tunnel_down: 4900 more are firing.")
        assert host._alerts.firing()["tunnel_down"] == 5000
        assert len(steps) > 3
