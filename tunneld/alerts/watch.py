"""The daemon's alerts: looks at the facts once a second while there are rules, and tells of what changes."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic, time
from types import MappingProxyType
from typing import Literal

from tunneld.alerts.delivery import Delivery, Outcome, Tally
from tunneld.alerts.facts import Gather
from tunneld.alerts.messages import Message, Telling
from tunneld.alerts.rules import Alert, Engine, Notice
from tunneld.config.alerts import AlertRule, LogTarget, WebhookTarget

__all__ = ["AlertWatch", "Shown"]

log = logging.getLogger("tunneld.alerts")

_EVERY = 1.0
"""Seconds between two looks."""
_TURN = 0.002
"""Seconds that a look holds the loop at a time."""
_ONCE_LASTS = 86400.0
"""Seconds that a receiver may take a message for true that is never repeated."""

Tell = Callable[[str, str, str, str], None]


@dataclass(frozen=True, slots=True)
class Shown:
    """An alert for operators; seconds of the epoch. `when`: the condition of its rule."""

    alert: str
    subject: str
    state: str
    since: float
    message: str
    when: str


class AlertWatch:
    """Rules, what holds of them, and their deliveries. `start`, maybe `configure`, then `stop`.

    Args:
        rules: of the configuration.
        facts: gathered at each look.
        role: ``agent`` or ``server``, for the source that messages name.
        tell: called with (alert, state, subject, message) of each alert that is told: for the daemon's own events.

    Attributes:
        tally: messages since the start, whatever became of the rules.
    """

    def __init__(self, rules: tuple[AlertRule, ...], facts: Gather, *, role: str, tell: Tell) -> None:
        self._facts = facts
        self._tell = tell
        self._source = f"{socket.gethostname()} ({role})"
        self._engine = Engine(rules)
        self.tally = Tally()
        self._deliveries: dict[str, list[Delivery]] = {}
        self._retired: list[asyncio.Task[None]] = []
        self._timer: asyncio.Handle | None = None
        self._running = False

    @property
    def rules(self) -> tuple[AlertRule, ...]:
        """Those that hold now."""
        return self._engine.rules

    @property
    def deliveries(self) -> list[Delivery]:
        """To every target of every rule."""
        return [delivery for found in self._deliveries.values() for delivery in found]

    def start(self) -> None:
        """Look from now on, if there is something to look for."""
        self._running = True
        self._deliver_to(self._engine.rules)
        self._arm()

    async def stop(self) -> None:
        """Look and send no more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deliveries, self._deliveries = self.deliveries, {}
        for delivery in deliveries:
            await delivery.stop()
        for task in self._retired:
            task.cancel()
        if self._retired:
            await asyncio.wait(self._retired)

    def configure(self, rules: tuple[AlertRule, ...]) -> None:
        """Let other rules hold.

        What fires by a rule that keeps its name and its condition goes on, and is told to receivers that are new there
        alone. Of any other it is over, and so it is for receivers that are there no more: nobody would tell them later.
        """
        if rules == self._engine.rules:
            return
        before, self._engine = self._engine, Engine(rules)
        conditions = {rule.name: rule.when for rule in rules}
        kept = {rule.name for rule in before.rules if conditions.get(rule.name) == rule.when}
        self._engine.adopt(before, kept)
        told: dict[str, list[Alert]] = {rule.name: [] for rule in before.rules}
        for alert in before.active.values():
            if alert.told is not None:
                told[alert.rule.name].append(
                    replace(alert, message=f"{alert.message} Its rule was changed or taken away.")
                )
        if not self._running:
            return
        for rule in before.rules:
            if rule.name not in kept:
                self._end(rule, told[rule.name])
        self._deliver_to(rules, {rule.name: rule for rule in before.rules}, told)
        self._arm()

    def _end(self, rule: AlertRule, alerts: list[Alert]) -> None:
        """A rule holds no more: what was told of it is over."""
        if alerts and rule.resolved:
            self._told(Notice(rule, "resolved", tuple(alerts)))
        for delivery in self._deliveries.pop(rule.name, ()):
            self._retire(delivery)

    def _retire(self, delivery: Delivery) -> None:
        """Nobody gives it anything any more; what waits is sent, for the time of one attempt."""
        task = asyncio.get_running_loop().create_task(
            delivery.finish(delivery.target.timeout), name=f"alerts to {delivery.name} end"
        )
        self._retired = [*(one for one in self._retired if not one.done()), task]

    def _deliver_to(
        self,
        rules: tuple[AlertRule, ...],
        before: Mapping[str, AlertRule] = MappingProxyType({}),
        told: Mapping[str, list[Alert]] = MappingProxyType({}),
    ) -> None:
        """Have a delivery for each target; what is `told` of a rule that goes on, receivers that are new learn too."""
        for rule in rules:
            left = self._deliveries.get(rule.name, [])
            made: list[Delivery] = []
            for target in rule.to:
                if isinstance(target, LogTarget):
                    continue
                found = next((one for one in left if one.target == target), None)
                if found is None:
                    found = Delivery(target, self.tally)
                    found.start()
                    firing = [
                        alert for alert in self._engine.active.values() if alert.rule is rule and alert.told is not None
                    ]
                    self._put(found, rule, "firing", firing)
                else:
                    left.remove(found)
                made.append(found)
            for gone in left:
                was = before[rule.name]
                self._put(gone, was, "resolved", told[rule.name] if was.resolved else ())
                self._retire(gone)
            self._deliveries[rule.name] = made

    def _arm(self) -> None:
        if self._timer is None and self._engine.rules:
            self._timer = asyncio.get_running_loop().call_later(_EVERY, self._look)

    def _look(self) -> None:
        engine = self._engine
        try:
            steps = engine.look(monotonic(), self._facts(engine.asked))
        except BaseException:
            self._again()
            raise
        self._go_on(engine, steps)

    def _go_on(self, engine: Engine, steps: Iterator[Notice | None]) -> None:
        """Some of a look: beside thousands of tunnels it lets others run every `_TURN`."""
        until = monotonic() + _TURN
        try:
            for notice in steps if engine is self._engine else ():  # else other rules hold meanwhile
                if notice is not None:
                    self._told(notice)
                elif monotonic() >= until:
                    self._timer = asyncio.get_running_loop().call_soon(self._go_on, engine, steps)
                    return
        except BaseException:
            self._again()
            raise
        self._again()

    def _again(self) -> None:
        self._timer = None
        if self._running:
            self._arm()

    def _told(self, notice: Notice) -> None:
        rule = notice.rule
        for alert in notice.alerts[: rule.most]:
            fields = {"alert": rule.name, "subject": alert.subject, "state": notice.state}
            if notice.state == "firing":
                log.warning("Alert %s: %s", rule.name, alert.message, extra=fields)
            else:
                log.info("Alert %s is over: %s", rule.name, alert.message, extra=fields)
            self._tell(rule.name, notice.state, alert.subject, alert.message)
        if len(notice.alerts) > rule.most:
            log.warning("Alert %s: %d more are %s.", rule.name, len(notice.alerts) - rule.most, notice.state)
        for delivery in self._deliveries.get(rule.name, ()):
            self._put(delivery, rule, notice.state, notice.alerts)

    def _put(
        self, delivery: Delivery, rule: AlertRule, state: Literal["firing", "resolved"], alerts: Sequence[Alert]
    ) -> None:
        tellings = [_telling(alert) for alert in alerts]
        if tellings:
            for message in self._messages(rule, state, tellings, every=_takes_each(delivery)):
                delivery.put(message, _lasts(rule))

    def _messages(
        self, rule: AlertRule, state: Literal["firing", "resolved"], tellings: Sequence[Telling], *, every: bool
    ) -> Iterator[Message]:
        """One that names `rule.most` of them and counts the rest; with `every` as many as name all."""
        for first in range(0, len(tellings) if every else 1, rule.most):
            named = tuple(tellings[first : first + rule.most])
            more = 0 if every else len(tellings) - len(named)
            yield Message(rule.name, state, time(), self._source, named, more=more)

    # -- what operators ask ------------------------------------------------------------------------------

    def shown(self) -> list[Shown]:
        """Every alert that holds, whether it is told already or not."""
        offset = time() - monotonic()
        return [
            Shown(
                alert.rule.name,
                alert.subject,
                "firing" if alert.firing else "pending",
                alert.since + offset,
                alert.message,
                alert.rule.when,
            )
            for alert in self._engine.active.values()
        ]

    async def test(self, name: str | None, *, within: float) -> list[Outcome]:
        """Send a message to the targets of one rule, or of all, that says it is a test; how each went.

        Args:
            name: of the rule; None: all.
            within: seconds that they have.
        """
        tests: list[asyncio.Task[Outcome]] = []
        async with asyncio.TaskGroup() as group:
            for rule in self._engine.rules:
                if name not in (None, rule.name):
                    continue
                telling = Telling("test", f"Nothing is wrong: this is a test of the alert {rule.name}.", time())
                message = Message(rule.name, "firing", time(), self._source, (telling,), test=True)
                tests += [
                    group.create_task(delivery.test(message, within=within), name=f"test of alerts to {delivery.name}")
                    for delivery in self._deliveries.get(rule.name, ())
                ]
        return [test.result() for test in tests]


def _takes_each(delivery: Delivery) -> bool:
    """The receiver knows each alert by itself: one that it is not told of would never be over there."""
    return isinstance(delivery.target, WebhookTarget) and delivery.target.shape == "alertmanager"


def _telling(alert: Alert) -> Telling:
    return Telling(alert.subject, alert.message, time() - (monotonic() - alert.since))


def _lasts(rule: AlertRule) -> float:
    return 2 * rule.repeat if rule.repeat > 0 else _ONCE_LASTS
