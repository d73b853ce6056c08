"""Rules that change while they fire, and tests of receivers that fail, with real receivers of webhooks."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.support.receivers import MESSAGE, Hook, delivering, hooked, listening
from tests.support.running import Book
from tunneld import lifecycle
from tunneld.alerts import watch as module
from tunneld.alerts.facts import Facts, TunnelFacts
from tunneld.alerts.watch import AlertWatch
from tunneld.config.alerts import AlertRule, CommandTarget, WebhookTarget

DOWN = Facts((TunnelFacts("a", up=False, state="offline"),))


def rule(*targets: dict[str, Any], **keys: Any) -> AlertRule:
    return AlertRule(**{"when": "tunnel_down", "for": 0, "group": 0, "to": list(targets), **keys})


@asynccontextmanager
async def watching(
    *rules: AlertRule, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[AlertWatch, list[tuple[str, str]]]]:
    """A watch over one tunnel that is down, and the events that it tells."""
    monkeypatch.setattr(module, "_EVERY", 0.02)
    told: list[tuple[str, str]] = []

    def tell(alert: str, state: str, subject: str, message: str) -> None:
        told.append((alert, state))

    made = AlertWatch(rules, lambda asked: DOWN, role="agent", tell=tell)
    made.start()
    try:
        yield made, told
    finally:
        await made.stop()


def states(hook: Hook) -> list[str]:
    return [body["state"] for body in hook.bodies]


@pytest.mark.parametrize("after", [(), (rule(when="rtt", name="tunnel_down"),)])
async def test_what_fires_by_a_rule_that_goes_is_over_for_whom_it_was_told(
    after: tuple[AlertRule, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as hook, watching(rule(hooked(hook)), monkeypatch=monkeypatch) as (watch, told):
        await hook.until(1)
        watch.configure(after)
        await hook.until(2)
        assert states(hook) == ["firing", "resolved"]
        assert hook.bodies[1]["alerts"][0]["message"].endswith("Its rule was changed or taken away.")
        assert told == [("tunnel_down", "firing"), ("tunnel_down", "resolved")]
        assert watch.shown() == []
        await asyncio.wait(watch._retired)
        assert (watch.tally.sent, watch.tally.failed) == (2, 0), "what was counted stays, though its receiver is gone"


async def test_a_receiver_that_is_new_is_told_what_fires_and_one_that_goes_that_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with listening() as stays, listening() as goes, listening() as comes:
        first = rule(hooked(stays), hooked(goes))
        async with watching(first, monkeypatch=monkeypatch) as (watch, told):
            await stays.until(1)
            await goes.until(1)
            (before,) = watch.shown()
            watch.configure((rule(hooked(stays), hooked(comes), repeat="1h"),))
            await goes.until(2)
            await comes.until(1)
            (after,) = watch.shown()
            assert abs(after.since - before.since) < 1, "it goes on"
            assert (states(stays), states(goes), states(comes)) == (["firing"], ["firing", "resolved"], ["firing"])
            assert told == [("tunnel_down", "firing")], "nothing new happened"
            watch.configure(())
            await stays.until(2)
            await comes.until(2)
            assert (states(stays), states(comes)) == (["firing", "resolved"], ["firing", "resolved"])


async def test_a_rule_that_tells_no_end_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as hook:
        quiet = rule(hooked(hook), resolved=False)
        async with watching(quiet, monkeypatch=monkeypatch) as (watch, told):
            await hook.until(1)
            watch.configure(())
            await asyncio.wait(watch._retired)
            assert (states(hook), told) == (["firing"], [("tunnel_down", "firing")])


async def test_what_waits_for_a_receiver_that_goes_is_sent_and_what_it_does_not_take_is_said(
    lines: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as hook:
        hook.answers = ["hang"]
        slow = rule(hooked(hook, timeout="0.2s"))
        async with watching(slow, monkeypatch=monkeypatch) as (watch, _):
            await hook.until(1)
            watch.configure(())
            said = await lines.wait("2 alert messages to webhook")
            assert (watch.tally.sent, watch.tally.failed) == (0, 2)
            assert said.text.endswith("were not sent: its rule is another now, and it did not take them in time.")


async def test_the_end_of_the_daemon_waits_for_no_receiver_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as hook:
        hook.answers = ["hang"]
        async with watching(rule(hooked(hook, timeout="10m")), monkeypatch=monkeypatch) as (watch, _):
            await hook.until(1)
            watch.configure(())
            async with asyncio.timeout(5):
                await watch.stop()


async def test_a_test_does_not_wait_behind_what_fails_and_says_why() -> None:
    async with listening() as hook:
        hook.answers = ["500 Broken"]
        async with delivering(WebhookTarget(**hooked(hook))) as (made, _):
            for _ in range(3):
                made.put(MESSAGE, 60.0)
            await hook.until(1)
            tested = await made.test(MESSAGE, within=15)
            assert (tested.fault, made.queued) == ("answered 500", 3)


async def test_a_test_of_a_receiver_that_hangs_ends_in_time_and_the_next_is_tried() -> None:
    async with listening() as hook:
        hook.answers = ["hang"]
        async with delivering(WebhookTarget(**hooked(hook, timeout="10m"))) as (made, _):
            assert (await made.test(MESSAGE, within=0.1)).fault == "no answer within 0.1 s"
            hook.answers = ["200 OK"]
            assert (await made.test(MESSAGE, within=15)).fault is None
            assert (made.sent, made.failed) == (1, 1)


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("yes no >&2 & sleep 0.3; kill $!; echo last words >&2; exit 3", "it ended with 3: last words"),
        ("sleep 9 & exit 0", None),  # what it leaves behind holds its stderr
        ("sleep 9 & echo why >&2; exit 1", "it ended with 1: why"),
        ("exec 0<&-; exit 0", None),  # it reads nothing
        ("kill -TERM $$", "it ended with -15"),
    ],
)
async def test_whatever_a_program_does_it_is_judged_by_how_it_ends(program: str, fault: str | None) -> None:
    target = CommandTarget(command=["/bin/sh", "-c", program], timeout="8s", retry_for=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with delivering(target) as (_, put):
        told = await put(replace(MESSAGE, alerts=MESSAGE.alerts * 5000))  # more than a pipe holds
        assert told.fault == fault
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024, "KiB"


def test_a_program_is_run_so_on_the_daemons_own_loop_and_nothing_of_it_is_left() -> None:
    async def main() -> list[str | None]:
        faults = []
        for program, timeout in (("exec 0<&-; exit 0", 8), ("yes >&2", 1), ("echo why >&2; exit 1", 8)):
            target = CommandTarget(command=["/bin/sh", "-c", program], timeout=timeout, retry_for=0)
            async with delivering(target) as (_, put):
                faults.append((await put(replace(MESSAGE, alerts=MESSAGE.alerts * 5000))).fault)
        return faults

    assert lifecycle.run(main) == [None, "not done within 1 s", "it ended with 1: why"]
