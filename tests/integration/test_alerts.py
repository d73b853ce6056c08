"""Alerts of a real agent, told to real receivers: webhooks, a program, an SMTP server, Alertmanager."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest

from tests.support.processes import Process
from tests.support.receivers import MESSAGE, Hook, delivering, hooked
from tests.support.running import Book, agent_settings, settled
from tests.support.sockets import LOOPBACK, accepts, free_port, free_ports
from tunneld.alerts.delivery import Outcome
from tunneld.alerts.messages import Message
from tunneld.config.agent import AgentConfig
from tunneld.config.alerts import CommandTarget, WebhookTarget
from tunneld.control.host import AgentHost

pytestmark = pytest.mark.usefixtures("quick_alerts")

SECRET = "hook-secret"


@asynccontextmanager
async def hosted(folder: Path, alerts: list[Any], **more: Any) -> AsyncIterator[tuple[AgentHost, httpx.AsyncClient]]:
    """An agent whose server is not there."""
    over = {"control": {"socket": str(folder / "c.sock")}, "alerts": alerts, **more}
    settings = agent_settings(f"ws://{LOOPBACK}:{free_port()}", f"http://{LOOPBACK}:9", over)
    host = AgentHost(AgentConfig(**settings), None)
    await host.start()
    try:
        transport = httpx.AsyncHTTPTransport(uds=str(folder / "c.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
            yield host, client
    finally:
        await host.stop()


async def test_a_tunnel_that_is_down_is_told_shown_and_over(folder: Path, hook: Hook, lines: Book) -> None:
    secret = folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    rule = {"when": "tunnel_down", "for": 0, "group": 0, "to": [hooked(hook, secret_file=str(secret))]}
    async with hosted(folder, [rule]) as (host, client):
        events: list[Any] = []
        host.agent.subscribe(events.append)
        await hook.until(1)
        body = hook.bodies[0]
        assert (body["alert"], body["state"], body["test"]) == ("tunnel_down", "firing", False)
        assert body["alerts"][0]["subject"] == "app"
        assert body["alerts"][0]["message"].startswith("The tunnel app is ")
        head = dict(line.split(": ", 1) for line in hook.heads[0].split("\r\n")[1:] if line)
        stamp, made = (part.partition("=")[2] for part in head["X-Tunneld-Signature"].split(","))
        assert made == hmac.new(SECRET.encode(), stamp.encode() + b"." + hook.raw[0], hashlib.sha256).hexdigest()
        assert abs(int(stamp) - time()) < 60
        shown = (await client.get("/v1/alerts")).json()
        assert [(one["alert"], one["subject"], one["state"]) for one in shown["alerts"]] == [
            ("tunnel_down", "app", "firing")
        ]
        assert shown["receivers"][0]["name"] == f"webhook {LOOPBACK}:{hook.port}"
        assert 'tunneld_alerts_firing{alert="tunnel_down"} 1\n' in (await client.get("/metrics")).text
        running = host.agent._running["app"]
        running.task.cancel()  # its next dial would be told as another state
        await asyncio.wait([running.task])
        running.tunnel._state.now = "online"
        await hook.until(2)
        assert hook.bodies[1]["state"] == "resolved"
        told = [one for one in events if one["type"] == "alert"]
        assert {one["state"] for one in told} >= {"resolved"}
        await lines.wait("Alert tunnel_down is over")
        assert not lines.find("secret-path")
        assert not lines.find(SECRET)


async def test_a_test_says_who_was_reached(folder: Path, hook: Hook) -> None:
    gone = {"webhook": f"http://{LOOPBACK}:{free_port()}/"}
    rules = [
        {"name": "one", "when": "loss", "to": [hooked(hook)]},
        {"name": "two", "when": "rtt", "to": [gone, {"command": ["/bin/false"]}]},
    ]
    async with hosted(folder, rules) as (_, client):
        told = (await client.post("/v1/alerts/test")).json()["told"]
        assert [one["receiver"].split()[0] for one in told] == ["webhook", "webhook", "command"]
        assert [one["fault"] is None for one in told] == [True, False, False]
        assert told[2]["fault"] == "it ended with 1"
        assert hook.bodies[0]["test"] is True
        only = (await client.post("/v1/alerts/test", json={"alert": "one"})).json()["told"]
        assert len(only) == 1
        refused = await client.post("/v1/alerts/test", json={"alert": "three"})
        assert (refused.status_code, refused.json()["code"]) == (404, "no_such_alert")


async def test_a_test_is_over_when_the_daemon_stops(hook: Hook) -> None:
    hook.answers = ["hang"]
    async with delivering(WebhookTarget(**hooked(hook))) as (made, _):
        tests = [asyncio.ensure_future(made.test(MESSAGE, within=60)) for _ in range(2)]  # one waits for the other
        await hook.until(1)
    assert [(await test).fault for test in tests] == ["the daemon stops"] * 2
    assert (made.sent, made.failed) == (0, 2)


async def test_a_reload_brings_other_rules_and_keeps_what_fires(folder: Path, hook: Hook, lines: Book) -> None:
    rule = {"when": "tunnel_down", "for": 0, "group": 0, "repeat": 0, "to": [hooked(hook)]}
    async with hosted(folder, [rule]) as (host, client):
        await hook.until(1)
        config = host.agent.config
        more = AgentConfig(**agent_settings("ws://x", "http://x", {"alerts": [rule, {"when": "loss"}]})).alerts
        host._alerts.configure(more)
        await lines.wait("Alert tunnel_down")
        shown = (await client.get("/v1/alerts")).json()
        assert [one["name"] for one in shown["rules"]] == ["tunnel_down", "loss"]
        assert len(hook.bodies) == 1
        host._alerts.configure(())
        assert (await client.get("/v1/alerts")).json() == {"alerts": [], "rules": [], "receivers": []}
        assert host.agent.config is config


# -- receivers -----------------------------------------------------------------------------------------------


async def test_a_webhook_that_answers_500_is_tried_again(hook: Hook) -> None:
    hook.answers = ["500 Broken", "429 Slower", "204 Done"]
    async with delivering(WebhookTarget(**hooked(hook))) as (made, put):
        assert (await put(MESSAGE)).fault is None
        assert (len(hook.bodies), made.sent, made.failed, made.queued) == (3, 1, 0, 0)


@pytest.mark.parametrize(("answer", "said"), [("302 There", "a redirect is not followed"), ("404 No", "answered 404")])
async def test_what_trying_again_does_not_mend_is_given_up(hook: Hook, lines: Book, answer: str, said: str) -> None:
    hook.answers = [answer]
    async with delivering(WebhookTarget(**hooked(hook))) as (made, put):
        fault = (await put(MESSAGE)).fault
        assert fault is not None
        assert said in fault
        assert (len(hook.bodies), made.failed) == (1, 1)
        await lines.wait("was given up")


async def test_a_webhook_that_hangs_holds_nothing_up_and_its_queue_is_bounded(hook: Hook, lines: Book) -> None:
    hook.answers = ["hang"]
    target = WebhookTarget(**hooked(hook, timeout=5, queue=3))
    async with delivering(target) as (made, _):
        outcomes: list[Outcome] = []
        for _each in range(10):
            made.put(MESSAGE, 60.0, outcomes.append)
        await hook.until(1)
        assert made.queued == 3
        assert len(outcomes) == 7
        assert outcomes[0].fault == "newer messages took its place in the queue"


async def test_a_message_is_given_up_in_time(lines: Book) -> None:
    target = WebhookTarget(webhook=f"http://{LOOPBACK}:{free_port()}/", retry_for=0.1)
    async with delivering(target) as (made, put):
        assert (await put(MESSAGE)).fault is not None
        assert (made.sent, made.failed) == (0, 1)


async def test_slacks_shape(hook: Hook) -> None:
    async with delivering(WebhookTarget(**hooked(hook, shape="slack"))) as (_, put):
        await put(MESSAGE)
    assert hook.bodies[0]["text"].splitlines()[1] == "• The tunnel a is offline &lt;why&gt;."


async def test_a_program_gets_the_message_on_its_stdin_and_no_shell(folder: Path) -> None:
    out = folder / "out.json"
    script = folder / "take.py"
    script.write_text(
        "import json, os, sys\n"
        f"json.dump([json.load(sys.stdin), sys.argv[1:], os.environ['TUNNELD_ALERT']], open({str(out)!r}, 'w'))\n"
    )
    target = CommandTarget(command=[sys.executable, str(script), "$HOME; `x`"])
    async with delivering(target) as (_, put):
        assert (await put(MESSAGE)).fault is None
    body, argv, name = json.loads(out.read_text())
    assert (body["alerts"][0]["subject"], argv, name) == ("a", ["$HOME; `x`"], "tunnel_down")


async def test_a_program_that_hangs_is_ended_with_what_it_started(folder: Path, lines: Book) -> None:
    mark = folder / "alive"
    script = f"sleep 30 & echo $! > {mark}; wait"
    target = CommandTarget(command=["/bin/sh", "-c", script], timeout=0.5, retry_for=0)
    async with delivering(target) as (_, put):
        assert (await put(MESSAGE)).fault == "not done within 0.5 s"
    child = Path(f"/proc/{mark.read_text().strip()}/stat")
    await settled(lambda: not child.exists() or ") Z " in child.read_text())


@pytest.mark.timeout(60)
@pytest.mark.skipif(
    not shutil.which("prometheus-alertmanager"), reason="missing: apt-get install prometheus-alertmanager"
)
async def test_a_real_alertmanager_takes_it_and_lets_it_go(folder: Path) -> None:
    port, cluster = free_ports(2)
    config = folder / "am.yml"
    config.write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    process = Process(
        [
            "prometheus-alertmanager",
            f"--config.file={config}",
            f"--storage.path={folder / 'am'}",
            f"--web.listen-address={LOOPBACK}:{port}",
            "--cluster.listen-address=",
        ],
        name="alertmanager",
    )
    assert cluster
    try:
        await asyncio.to_thread(process.wait_until, lambda: accepts(port), timeout=20, what="listening")
        target = WebhookTarget(webhook=f"http://{LOOPBACK}:{port}/api/v2/alerts", shape="alertmanager")
        async with delivering(target) as (_, put), httpx.AsyncClient() as client:
            now = replace(MESSAGE, at=time())  # that one is as old as this module: it would be over by now
            assert (await put(now)).fault is None
            await _held(client, port, [("tunnel_down", "a", "active")])
            over = Message("tunnel_down", "resolved", time(), MESSAGE.source, MESSAGE.alerts)
            assert (await put(over)).fault is None
            await _held(client, port, [])
    finally:
        process.discard()


async def _held(client: httpx.AsyncClient, port: int, wanted: list[tuple[str, str, str]]) -> None:
    """Wait until Alertmanager shows these active alerts: it takes a message before it has put it in its place."""
    held: list[tuple[str, str, str]] = []
    for _ in range(200):
        said = (await client.get(f"http://{LOOPBACK}:{port}/api/v2/alerts?active=true")).json()
        held = [(one["labels"]["alertname"], one["labels"]["subject"], one["status"]["state"]) for one in said]
        if held == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(held)
