"""`tunnelctl tail`, `requests`, `replay`, `alerts` as they are typed: words, JSON, 80 columns, exit statuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.commands import Ran, tunnelctl, tunnelctl_beside
from tests.support.looking import looking, stream_id
from tests.support.receivers import hooked, listening
from tests.support.running import settled
from tests.support.sockets import free_port
from tunnelctl.render import width_of
from tunneld.alerts import watch

SSE = {"Accept": "text/event-stream"}
EVENTS = "id: 7\nevent: note\ndata: grüß\ndata: \x1b[31mdich\n\n: ping\n\ndata: half".encode()


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, and alerts that are looked for at once."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(watch, "_EVERY", 0.02)


def beside(folder: Path) -> Callable[..., Awaitable[Ran]]:
    return lambda *line: tunnelctl_beside(*line, "--socket", str(folder / "c.sock"))


def fits(text: str) -> bool:
    return max(map(width_of, text.splitlines())) <= 80


@asynccontextmanager
async def tailed(folder: Path, *form: str) -> AsyncIterator[list[Ran]]:
    """What `tunnelctl tail` printed of a stream whose events passed, and which was cancelled then."""
    ctl, done = beside(folder), []
    async with (
        looking(folder) as (service, control, public, visitor),
        visitor.stream("GET", f"{public}/sse", headers=SSE) as answer,
    ):
        wanted = await stream_id(control)
        await service.push(b": hello\n\n")
        printing = asyncio.ensure_future(ctl("tail", wanted[:8], *form))  # a prefix is enough
        inspector = service.host.agent.tunnels[0].proxy.inspector
        assert inspector is not None
        await settled(lambda: inspector.readers == 1)  # the command reads
        await service.push(EVENTS)
        await service.push(b" whole\n\n")
        came = b""
        parts = answer.aiter_bytes()
        while b"whole" not in came:
            came += await anext(parts)
        assert (await control.delete(f"/v1/streams/{wanted}")).status_code == 200
        done.append(await printing)
        yield done


async def test_tail_prints_what_passes_until_the_stream_ends(folder: Path) -> None:
    async with tailed(folder) as (ran,):
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.splitlines() == [
            "id=7 event=note grüß\\n\\x1b[31mdich",  # a terminal obeys nothing of it
            ": ping",
            "half whole",
            "(ended: operator)",
        ]


async def test_tail_prints_the_apis_events_as_json(folder: Path) -> None:
    async with tailed(folder, "--json") as (ran,):
        events = [json.loads(line) for line in ran.stdout.splitlines()]
        assert events[0] == {"type": "event", "id": "7", "event": "note", "data": "grüß\n\x1b[31mdich"}
        assert [one["type"] for one in events] == ["event", "comment", "event", "end"]
        assert "\x1b" not in ran.stdout
        assert "grüß" in ran.stdout


async def test_what_cannot_be_looked_into_is_said_with_its_exit_status(folder: Path) -> None:
    ctl = beside(folder)
    async with (
        looking(folder, inspect=False) as (service, control, public, visitor),
        visitor.stream("GET", f"{public}/sse", headers=SSE),
    ):
        await service.push(b"data: x\n\n")
        wanted = await stream_id(control)
        closed = await ctl("tail", wanted)
        assert (closed.returncode, closed.stdout) == (1, "")
        assert closed.stderr == (
            "tunnelctl: The tunnel app has no `inspect: true`. Set `inspect: true` for that tunnel, "
            "then `tunnelctl reload`; streams that begin after it can be seen.\n"
        )
        gone = await ctl("tail", "no such stream?")
        assert (gone.returncode, gone.stdout) == (1, "")
        assert gone.stderr == (
            "tunnelctl: No stream no such stream? is under way. It has ended, or the id is mistyped; "
            "`tunnelctl streams` lists those under way.\n"
        )
        none = await ctl("replay", "no such request")
        assert (none.returncode, none.stdout) == (1, "")
        assert none.stderr == (
            "tunnelctl: The request no such request is not kept. The last ones of tunnels with `inspect: true` "
            "are listed by `tunnelctl requests`.\n"
        )
        nothing = await ctl("requests")
        assert (nothing.returncode, nothing.stdout) == (
            0,
            "no requests were seen; only tunnels with `inspect: true` are\n",
        )


@pytest.mark.parametrize("line", [["tail"], ["replay"], ["tail", "a", "b"], ["requests", "x"], ["alerts", "try"]])
def test_a_wrong_line_is_a_usage_error(line: list[str]) -> None:
    ran = tunnelctl(*line, "--socket", "/nonexistent/socket")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("line", [["tail", "a"], ["replay", "a"], ["requests"], ["alerts"], ["alerts", "test"]])
def test_without_an_agent_it_is_not_reachable(line: list[str]) -> None:
    ran = tunnelctl(*line, "--socket", "/nonexistent/socket")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "/nonexistent/socket" in ran.stderr


async def test_requests_fit_the_terminal_and_one_is_sent_again(folder: Path) -> None:
    ctl = beside(folder)
    async with looking(folder, inspection={"body": 16}) as (service, _control, public, visitor):
        await visitor.post(f"{public}/echo?{'long=' * 40}", content="hi", headers={"Authorization": "topsecret"})
        await visitor.get(f"{public}/other")
        ran = await ctl("requests")
        assert (ran.returncode, ran.stderr) == (0, "")
        head, newest, oldest = ran.stdout.splitlines()
        assert head.split()[:2] == ["ID", "TUNNEL"]
        assert "GET" in newest
        assert "POST" in oldest
        assert "…" in oldest
        assert fits(ran.stdout)
        told = json.loads((await ctl("requests", "--json")).stdout)["requests"]
        assert [one["method"] for one in told] == ["GET", "POST"]
        assert "topsecret" not in json.dumps(told)
        other = await ctl("requests", "--tunnel", "no such&tunnel=app", "--json")
        assert json.loads(other.stdout) == {"requests": []}
        again = await ctl("replay", told[1]["request_id"][:10])
        assert (again.returncode, again.stderr) == (0, "")
        first, *headers, blank, body = again.stdout.splitlines()
        assert first.startswith("200 in ")
        assert "Content-Length: " in "\n".join(headers)
        assert "topsecret" not in "\n".join(headers)
        assert blank == ""
        assert json.loads(body)[0] == "POST"
        shaped = json.loads((await ctl("replay", told[1]["request_id"], "--json")).stdout)
        assert {"status", "headers", "body", "whole", "seconds", "of"} <= set(shaped)
        assert service.bodies == [b"hi", b"", b"hi", b"hi"]
        await visitor.post(f"{public}/echo", content="x" * 17)
        long = json.loads((await ctl("requests", "--json")).stdout)["requests"][0]
        refused = await ctl("replay", long["request_id"])
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == "tunnelctl: Its body was longer than what is kept (inspection.body: 16 bytes).\n"


async def test_alerts_fit_the_terminal_and_a_test_says_who_was_reached(folder: Path) -> None:
    ctl = beside(folder)
    gone = f"http://127.0.0.1:{free_port()}/secret-path"
    async with listening() as hook:
        rules = [
            {"name": "service-of-it", "when": "service_failing", "for": 0, "group": 0, "to": [hooked(hook)]},
            {"name": "far", "when": "rtt", "to": [{"webhook": gone}]},
        ]
        async with looking(folder, alerts=rules) as (service, _control, _public, _visitor):
            well = await ctl("alerts")
            assert (well.returncode, well.stderr) == (0, "")
            assert well.stdout.splitlines()[0] == "Nothing holds of: service-of-it, far."
            service.host.agent.tunnels[0].health.fault = "connection refused by " + "the machine " * 9
            await hook.until(1)
            told = await ctl("alerts")
            assert told.stdout.splitlines()[0].split() == ["ALERT", "OF", "STATE", "SINCE", "WHY"]
            assert told.stdout.splitlines()[1].split()[:3] == ["service-of-it", "app", "firing"]
            assert fits("\n".join(told.stdout.splitlines()[:2]))
            shaped = json.loads((await ctl("alerts", "--json")).stdout)
            assert [one["alert"] for one in shaped["alerts"]] == ["service-of-it"]
            assert {one["name"] for one in shaped["rules"]} == {"service-of-it", "far"}
            tried = await ctl("alerts", "test")
            assert tried.returncode == 1
            assert tried.stdout.splitlines()[0] == f"✓ webhook 127.0.0.1:{hook.port}: arrived"
            assert tried.stdout.splitlines()[1].startswith("✗ webhook 127.0.0.1:")
            assert "secret-path" not in tried.stdout
            one = await ctl("alerts", "test", "service-of-it", "--json")
            assert one.returncode == 0
            assert json.loads(one.stdout)["told"][0]["fault"] is None
            unknown = await ctl("alerts", "test", "nobody")
            assert (unknown.returncode, unknown.stderr) == (1, "tunnelctl: No rule of `alerts` is named nobody.\n")


async def test_without_rules_that_is_said(folder: Path) -> None:
    ctl = beside(folder)
    async with looking(folder):
        assert (await ctl("alerts")).stdout == "There are no rules: see `alerts:` in the configuration.\n"
        tried = await ctl("alerts", "test")
        assert tried.stdout == "No rule has a receiver: alerts are told in the log alone.\n"
