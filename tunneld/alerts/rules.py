"""From facts to alerts: which rule holds of what, for how long, and when that is to be told. No clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from tunneld.alerts.facts import OF_PROCESS, Facts, TunnelFacts
from tunneld.config.alerts import AlertRule

__all__ = ["Alert", "Engine", "Notice"]

_STEPS = 60
"""Steps of its window in which a count is remembered at most."""


@dataclass(slots=True)
class Alert:
    """One rule that holds of one subject.

    Attributes:
        rule: which.
        subject: a tunnel's name, a limit, or what expires.
        since: monotonic seconds from which on it holds.
        message: a sentence, as it is now.
        firing: it has held for long enough.
        told: monotonic seconds at which it was told last; None: it was not.
    """

    rule: AlertRule
    subject: str
    since: float
    message: str
    firing: bool = False
    told: float | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told now: alerts of one rule, all firing or all over."""

    rule: AlertRule
    state: Literal["firing", "resolved"]
    alerts: tuple[Alert, ...]


@dataclass(slots=True)
class _Counted:
    """How a number that only rises rose within a time."""

    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def rise(self, now: float, value: int, within: float) -> int:
        seen = self.seen
        if seen and value < seen[-1][1]:  # the tunnel was opened anew
            seen.clear()
        if not seen:
            seen.append((now, value))
        elif seen[-1][1] != value:
            # What follows soon is taken together, so that a count that rises all day is some steps, not one a second.
            if len(seen) > 1 and now - seen[-1][0] < within / _STEPS:
                seen[-1] = (seen[-1][0], value)
            else:
                seen.append((now, value))
        # The last value from before the window stays: it is what the rise counts from.
        while len(seen) > 1 and seen[1][0] <= now - within:
            seen.popleft()
        return value - seen[0][1]


class _Known:
    """A tunnel as it was found last.

    Args:
        rules: that look at it.
        counted: by the names of rules that count.

    Attributes:
        calm: what was known of it when no rule held, nor did any count with what goes out of its window: while the same
            is known of it, none does. None: it was not so.
    """

    __slots__ = ("calm", "counted", "rules")

    def __init__(self, rules: list[AlertRule], counted: dict[str, _Counted] | None = None) -> None:
        self.rules = rules
        self.counted = counted if counted is not None else {}
        self.calm: TunnelFacts | None = None

    @property
    def counting(self) -> bool:
        """Some number rose within its window."""
        return any(len(one.seen) > 1 for one in self.counted.values())


class Engine:
    """The rules of one process, and what holds of them.

    Args:
        rules: of the configuration, each with a name of its own.
    """

    def __init__(self, rules: tuple[AlertRule, ...]) -> None:
        self.rules = rules
        self.asked = frozenset(rule.when for rule in rules)
        self.active: dict[tuple[str, str], Alert] = {}
        self._of_tunnels = [rule for rule in rules if rule.when not in OF_PROCESS]
        self._of_process = [rule for rule in rules if rule.when in OF_PROCESS]
        self._known: dict[str, _Known] = {}
        self._first: dict[str, float] = {}  # rule -> since when a first message waits for others

    def adopt(self, before: Engine, kept: Container[str]) -> None:
        """Go on with what another engine knows by the rules of these names, which both have, with one condition."""
        rules = {rule.name: rule for rule in self.rules}
        self.active = {
            key: replace(alert, rule=rules[key[0]]) for key, alert in before.active.items() if key[0] in kept
        }
        for name, known in before._known.items():
            counted = {rule: found for rule, found in known.counted.items() if rule in kept}
            self._known[name] = _Known(self._rules_of(name), counted)

    def _rules_of(self, name: str) -> list[AlertRule]:
        """Those that look at a tunnel of that name."""
        return [rule for rule in self._of_tunnels if any(fnmatchcase(name, glob) for glob in rule.tunnels)]

    def feed(self, now: float, facts: Facts) -> list[Notice]:
        """Look at the facts; what is to be told now.

        Args:
            now: monotonic seconds.
            facts: as they are then.
        """
        return [notice for notice in self.look(now, facts) if notice is not None]

    def look(self, now: float, facts: Facts) -> Iterator[Notice | None]:
        """As `feed`, in steps: None after each tunnel, so that who has thousands can let others run meanwhile."""
        holds: dict[str, dict[str, str]] = {}
        for rule in self._of_process:
            for subject, message in _of_process(rule, facts):
                holds.setdefault(rule.name, {})[subject] = message
        known: dict[str, _Known] = {}  # a tunnel that is there no longer is forgotten
        for tunnel in facts.tunnels if self._of_tunnels else ():
            name = tunnel.name
            one = known[name] = self._known.get(name) or _Known(self._rules_of(name))
            if tunnel != one.calm:
                messages = {rule.name: message for rule in one.rules if (message := _of_tunnel(rule, now, tunnel, one))}
                for of, message in messages.items():
                    holds.setdefault(of, {})[name] = message
                one.calm = None if messages or one.counting else tunnel
            yield None
        self._known = known
        for rule in self.rules if holds or self.active else ():
            over = self._settle(rule, now, holds.get(rule.name, {}))
            if over and rule.resolved:
                yield Notice(rule, "resolved", tuple(over))
            if due := self._due(rule, now):
                yield Notice(rule, "firing", tuple(due))

    def _settle(self, rule: AlertRule, now: float, holds: dict[str, str]) -> list[Alert]:
        """Bring the rule's alerts up to date; those that were told and are over."""
        over = []
        for key in [key for key in self.active if key[0] == rule.name and key[1] not in holds]:
            gone = self.active.pop(key)
            if gone.told is not None:
                over.append(gone)
        for subject, message in holds.items():
            alert = self.active.get((rule.name, subject))
            if alert is None:
                alert = self.active[rule.name, subject] = Alert(rule, subject, now, message)
            alert.message = message
            alert.firing = alert.firing or now - alert.since >= (rule.held or 0.0)
        return over

    def _due(self, rule: AlertRule, now: float) -> list[Alert]:
        """Alerts to be told now: new ones once the group is complete, and old ones again."""
        firing = [alert for (name, _), alert in self.active.items() if name == rule.name and alert.firing]
        new = [alert for alert in firing if alert.told is None]
        again = [alert for alert in firing if alert.told is not None and 0 < rule.repeat <= now - alert.told]
        if not new:
            self._first.pop(rule.name, None)
        elif now - self._first.setdefault(rule.name, now) < rule.group:
            new = []
        else:
            del self._first[rule.name]
        for alert in (due := new + again):
            alert.told = now
        return due


def _of_tunnel(rule: AlertRule, now: float, tunnel: TunnelFacts, known: _Known) -> str:
    """Why the rule holds of a tunnel; empty: it does not."""
    name, over = tunnel.name, rule.over or 0.0
    if rule.when == "tunnel_down":
        why = f": {tunnel.why.rstrip('.')}" if tunnel.why else ""
        return "" if tunnel.up else f"The tunnel {name} is {tunnel.state}{why}."
    if rule.when == "service_failing":
        fault = tunnel.service_fault
        return f"The service of {name} fails: {fault.rstrip('.')}." if fault is not None else ""
    if rule.when == "rtt":
        rtt = tunnel.rtt
        return (
            ""
            if rtt is None or rtt <= over
            else f"Round trips of {name}: p95 {rtt * 1000:.0f} ms > {over * 1000:.0f} ms."
        )
    if rule.when == "loss":
        loss = tunnel.loss
        return "" if loss is None or loss <= over else f"Loss on the connection of {name}: {loss:.1%} > {over:.1%}."
    value = tunnel.reconnects if rule.when == "reconnects" else tunnel.streams_lost
    rise = known.counted.setdefault(rule.name, _Counted()).rise(now, value, rule.within)
    if rise <= over:
        return ""
    what = f"reconnected {rise} times" if rule.when == "reconnects" else f"lost {rise} streams with their sessions"
    return f"The tunnel {name} {what} within {_span(rule.within)}."


def _of_process(rule: AlertRule, facts: Facts) -> Iterator[tuple[str, str]]:
    """(subject, message) of all that a rule holds of which is no tunnel."""
    over = rule.over or 0.0
    if rule.when == "limit_near":
        for limit, used in facts.limits.items():
            if used > over:
                yield limit, f"The limit {limit} is used to {used:.0%} (over {over:.0%})."
    else:
        for what, left in facts.expiries.items():
            if left < over:
                ends = f"ends in {_days(left)}" if left > 0 else f"has ended {_days(-left)} ago"
                yield what, f"{what[:1].upper()}{what[1:]} {ends}."


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else f"{seconds / 3600:.0f} hours"


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:g} s"
