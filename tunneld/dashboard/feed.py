"""What a page that is open is told: all that there is once, then each second what has changed. Pure: no clock, no I/O.

A second's message holds about `BUDGET` bytes at most: ends and changes of state always, then new streams, then events
of the timeline and numbers in turns, so that a page of thousands of streams costs no more than one of ten. New streams
may exceed it for a while (`BURST`): a page that shows a crowd late would be wrong, one whose counters lag is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from tunneld.dashboard.part import Past
from tunneld.dashboard.source import Brief, Counted, Source
from tunneld.dashboard.told import ToldAlerts

__all__ = ["BUDGET", "BURST", "Feed"]

BUDGET = 3584
"""Bytes of an ordinary second."""
BURST = 512 * 1024
"""Bytes that streams which begin may take beyond that, and `REFILL` of them come back each second."""
REFILL = 2048
_DETAILS = 25  # tunnels that are looked at closely each second, at most
_CLOSELY = 3  # seconds between two such looks at one, however few there are: its figures are of minutes
_COUNTERS = 500  # streams whose numbers are looked at each second
_ROWS = 4  # of numbers that are weighed together, 200 bytes
_EVENTS = 400  # of the past that a page is given at its begin
_WHOLE = 3  # tunnels whose state changed in the same second that are looked at closely at once
_TOLD = 12  # of the past that it is told each second
_FIRST = 1000  # streams that the first message holds; others follow, as those that begin
_LEFT_OUT = frozenset(
    {"tunnel_id", "connected_s", "heartbeat", "active_streams", "state", "bytes_in", "bytes_out", "throughput"}
)


class Feed:
    """What one page knows.

    Args:
        source: the daemon.
        history: its past.
        encode: of the messages, to count what they cost.
    """

    def __init__(self, source: Source, history: Past, encode: Callable[[object], bytes]) -> None:
        self._source = source
        self._history = history
        self._encode = encode
        self._tunnels: dict[str, dict[str, Any]] = {}
        self._briefs: dict[str, Brief] = {}
        self._told: dict[str, tuple[int, int, int]] = {}  # streams and rates that the page knows
        self._streams: dict[str, tuple[int, Counted]] = {}  # id -> its number here, its counters
        self._numbers = 0
        self._turn = self._stream_turn = self._rate_turn = 0
        self._due = 0.0  # tunnels to be looked at closely
        self._burst = BURST
        self._alerts = ToldAlerts()
        self._draining = False
        self._event = 0
        self._at = 0.0

    def snapshot(self, now: float) -> dict[str, Any]:
        """All that there is, at the begin.

        Args:
            now: seconds since the epoch.
        """
        self._at = now
        briefs = self._source.briefs()
        tunnels = []
        for brief in briefs:
            self._briefs[brief.name] = brief
            self._told[brief.name] = (brief.streams, 0, 0)
            if (shown := self._detail(brief)) is not None:
                self._tunnels[brief.name] = shown
                tunnels.append(shown | {"streams": brief.streams})
        past = self._history.day(now, _EVENTS)
        self._event = self._history.newest
        self._draining = self._source.draining()
        return {
            **self._source.head(),
            "draining": self._draining,
            "alerts": self._alerts.all(self._source.alerts()),
            "role": self._source.role,
            "now": round(now, 3),
            "tunnels": tunnels,
            "streams": [shown for each in list(self._source.stream_ids())[:_FIRST] if (shown := self._open(each))],
            "events": [event.shown() for event in past],
        }

    def tick(self, now: float) -> dict[str, Any]:
        """What has changed since the last call; empty when nothing has."""
        elapsed = max(0.05, now - self._at)
        self._at = now
        self._burst = min(BURST, self._burst + int(REFILL * elapsed))
        changes: dict[str, Any] = {}
        if self._source.draining() != self._draining:
            changes["draining"] = self._draining = not self._draining
        self._alerts.tick(self._source.alerts(), changes)
        live = self._source.stream_ids()
        left = BUDGET - self._ends(changes, live) - len(self._encode(changes.get("alerts", ())))
        briefs = self._source.briefs()
        left -= self._states(changes, briefs)
        left -= self._events(changes, now)
        spent = self._begins(changes, live)
        left = max(BUDGET // 4, left - spent)
        left -= self._rates(changes, briefs, elapsed, left)
        left -= self._details(changes, briefs, left)
        self._counters(changes, left)
        return changes

    # -- tunnels -----------------------------------------------------------------------------------------

    def _detail(self, brief: Brief) -> dict[str, Any] | None:
        found = self._source.details(brief.name)
        if found is None:
            return None
        shown = {key: value for key, value in found.items() if key not in _LEFT_OUT}
        beat = found["heartbeat"]
        shown["state"] = brief.state
        shown["interval_s"] = beat["interval_s"]
        # Times as moments, which stand still, rather than as ages, which never do.
        for key, age in (("since", found["connected_s"]), ("heard", beat["last_byte_s"])):
            shown[key] = None if age is None else int(self._at - age)
        return shown

    def _states(self, changes: dict[str, Any], briefs: list[Brief]) -> int:
        """Tunnels that came, went, or changed their state: told whatever it costs.

        Of a crowd that changes at once the states alone; the rest of each follows in its turn.
        """
        names = {brief.name for brief in briefs}
        gone = [name for name in self._tunnels if name not in names]
        for name in gone:
            del self._tunnels[name]
            self._briefs.pop(name, None)
            self._told.pop(name, None)
        if gone:
            changes["gone"] = gone
        changed: dict[str, Any] = {}
        for brief in briefs:
            before = self._tunnels.get(brief.name)
            if before is None or (before["state"] != brief.state and len(changed) < _WHOLE):
                self._compare(changed, brief, before)
            elif before["state"] != brief.state:
                changed[brief.name] = {"state": brief.state}
                self._tunnels[brief.name] = {**before, "state": brief.state}
        if changed:
            changes["tunnels"] = changed
        return len(self._encode([gone, changed])) if gone or changed else 0

    def _compare(self, changed: dict[str, Any], brief: Brief, before: dict[str, Any] | None) -> None:
        shown = self._detail(brief)
        if shown is None:
            return
        if before is None:
            changed[brief.name] = shown
        else:
            if _near(shown["heard"], before["heard"], shown["interval_s"]):
                shown["heard"] = before["heard"]
            if _near(shown["since"], before["since"], 4):
                shown["since"] = before["since"]
            fresh = {key: value for key, value in shown.items() if before.get(key) != value}
            if not fresh:
                return
            changed[brief.name] = fresh
        self._tunnels[brief.name] = shown

    def _rates(self, changes: dict[str, Any], briefs: list[Brief], elapsed: float, left: int) -> int:
        """Streams and throughput of each tunnel, for the page as ``name: [streams, in, out]``."""
        found: dict[str, tuple[int, int, int]] = {}
        spent = 0
        for step in range(len(briefs)):
            brief = briefs[(self._rate_turn + step) % len(briefs)]
            before = self._briefs.get(brief.name)
            told = self._told.get(brief.name)
            if before is None:
                fresh = (brief.streams, 0, 0)
            else:
                fresh = (
                    brief.streams,
                    _rounded((brief.bytes_in - before.bytes_in) / elapsed),
                    _rounded((brief.bytes_out - before.bytes_out) / elapsed),
                )
            if fresh == told:
                continue
            spent += len(brief.name) + 12 + sum(len(str(each)) for each in fresh)
            if spent > left * 2 // 3:
                self._rate_turn = (self._rate_turn + step) % len(briefs)
                break
            found[brief.name] = self._told[brief.name] = fresh
        for brief in briefs:
            self._briefs[brief.name] = brief
        if found:
            changes["rates"] = found
        return spent

    def _details(self, changes: dict[str, Any], briefs: list[Brief], left: int) -> int:
        """Quality and all the rest, some tunnels each second."""
        spent = 0
        looked: dict[str, Any] = {}
        self._due = min(_DETAILS, len(briefs), self._due + len(briefs) / _CLOSELY)
        while self._due >= 1 and spent < left:
            self._due -= 1
            self._turn = (self._turn + 1) % len(briefs)
            brief = briefs[self._turn]
            before = self._tunnels.get(brief.name)
            if before is None or brief.name in changes.get("tunnels", ()):
                continue
            self._compare(looked, brief, before)
            if brief.name in looked:
                spent += len(self._encode(looked[brief.name])) + len(brief.name) + 4
        if looked:
            changes["tunnels"] = changes.get("tunnels", {}) | looked
        return spent

    def _events(self, changes: dict[str, Any], now: float) -> int:
        """What stands on the timeline, some each second: where all tunnels are cut at once it follows their states."""
        fresh = self._history.since(self._event, now)[-_EVENTS:][:_TOLD]
        if not fresh:
            self._event = self._history.newest
            return 0
        self._event = fresh[-1].number
        changes["events"] = [event.shown() for event in fresh]
        return len(self._encode(changes["events"]))

    # -- streams -----------------------------------------------------------------------------------------

    def _open(self, request_id: str) -> dict[str, Any] | None:
        found, counted = self._source.stream(request_id), self._source.counted(request_id)
        if found is None or counted is None:
            return None
        self._numbers += 1
        self._streams[request_id] = self._numbers, counted[0]
        return {"i": self._numbers, **found}

    def _ends(self, changes: dict[str, Any], live: Collection[str]) -> int:
        over = self._streams.keys() - live
        if not over:
            return 0
        changes["end"] = [self._streams.pop(request_id)[0] for request_id in over]
        return 8 * len(over)

    def _begins(self, changes: dict[str, Any], live: Collection[str]) -> int:
        spent, begun = 0, []
        for request_id in list(live) if len(live) > len(self._streams) else ():  # those that ended are out of these
            if request_id in self._streams:
                continue
            if spent > BUDGET // 4 and spent > self._burst:
                break
            shown = self._open(request_id)
            if shown is not None:
                begun.append(shown)
                spent += len(self._encode(shown)) + 1
        if begun:
            changes["open"] = begun
        if spent > BUDGET // 4:
            self._burst -= spent
        return spent

    def _counters(self, changes: dict[str, Any], left: int) -> None:
        """Numbers that moved: ``[i, bytes_in, bytes_out, events, last_event_id, state, kind, idle_s]``."""
        known = list(self._streams)
        fresh: list[list[Any]] = []
        weighed = 0
        counted_of, streams = self._source.counted, self._streams
        for _ in range(min(_COUNTERS, len(known))):
            if len(fresh) - weighed == _ROWS:
                left -= len(self._encode(fresh[weighed:]))
                weighed = len(fresh)
            if left <= 0:
                break
            self._stream_turn = (self._stream_turn + 1) % len(known)
            request_id = known[self._stream_turn]
            found = counted_of(request_id)
            number, before = streams[request_id]
            if found is None or found[0] == before:
                continue
            counted, idle = found
            streams[request_id] = number, counted
            fresh.append([number, *counted, int(idle * 10 + 0.5) / 10])
        if fresh:
            changes["set"] = fresh


def _near(one: float | None, other: float | None, within: float) -> bool:
    """Moments that differ by rounding, or by less than anybody looks at."""
    return one is not None and other is not None and abs(one - other) < max(2, within / 4)


def _rounded(rate: float) -> int:
    """Bytes a second in three digits."""
    return int(float(f"{max(0.0, rate):.3g}"))
