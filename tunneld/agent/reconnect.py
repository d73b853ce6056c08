"""When to dial again. Pure: failures and random numbers go in, seconds come out.

One function says whether a failure passes by itself (`Retry`) or wants somebody to act (`Failed`); one class
spaces the dials, with full jitter so that many agents do not come back in step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunneld.errors import CODES

__all__ = ["Backoff", "Failed", "Retry", "Verdict", "of_close", "of_error_code", "of_refusal"]

#: Seconds that an agent in conflict stays away unless the server says otherwise.
CONFLICT_PAUSE = 600.0
#: Seconds that a server may ask for at most: what it says in error must not keep a tunnel down for days.
MAX_RETRY_AFTER = 3600.0
_FATAL_STATUS = {400, 401, 403, 404, 405, 409, 426}
_FATAL_CODES = {
    "hello_timeout",
    "bad_hello",
    "stale_hello",
    "replaced",
    "revoked",
    "conflict",
    "access_unsupported",
    "subprotocol_removed",
}
_FAULTS = {"protocol_error", "unknown_stream", "flow_control", "too_large"}


@dataclass(frozen=True, slots=True)
class Retry:
    """A failure that passes by itself.

    Attributes:
        after: seconds that the server asked for; None: the backoff decides.
        why: one line for `status` and the log.
        fault: somebody broke the protocol: even the first dial after it waits.
        advice: what to do about it; empty where nothing helps but to wait.
    """

    why: str
    after: float | None = None
    fault: bool = False
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """A refusal that asks for somebody: state `failed`, dials after `reconnect.max` or `after` s, or a tenth more."""

    why: str
    advice: str = ""
    after: float | None = None


Verdict = Retry | Failed


def of_refusal(status: int, code: str | None, detail: str, retry_after: float | None) -> Verdict:
    """What an HTTP answer in place of the upgrade means."""
    known = CODES.get(code or "")
    why = f"refused with {status}{f' {code}' if code else ''}{f': {detail}' if detail else ''}"
    if status in _FATAL_STATUS or status < 400:
        advice = known.advice if known else "Check server.url: something other than a tunneld server answers there."
        return Failed(why, advice)
    return Retry(why, _bounded(retry_after))


def of_error_code(code: str, message: str, retry_after: float | None) -> Verdict:
    """What an `error` message of the server, or its code as a close reason, means."""
    known = CODES.get(code)
    why = f"{code}: {message or (known.title if known else 'no reason given')}"
    if code in _FATAL_CODES:
        after = _bounded(retry_after or CONFLICT_PAUSE) if code == "conflict" else None
        return Failed(why, known.advice if known else "", after)
    return Retry(why, _bounded(retry_after), fault=code in _FAULTS)


def of_close(code: int | None, reason: str) -> Verdict:
    """What the end of a connection means that no `error` message explained."""
    if reason in CODES:
        return of_error_code(reason, "", None)
    if code is None:
        return Retry("the connection was lost")
    if code == 1006:  # this side could not take what came (wire/ws_protocol.py); sent again it would do no better
        return Retry("a message of the server's could not be taken here", fault=True)
    return Retry(f"the server closed the connection ({code}{f' {reason}' if reason else ''})")


def _bounded(seconds: float | None) -> float | None:
    return None if seconds is None else min(max(0.0, seconds), MAX_RETRY_AFTER)


class Backoff:
    """The space between dials: at once after a connection that stood, then exponential with full jitter.

    A session that stood for less than the wait before it counts as one more failure: a connection that breaks each
    time as soon as it is made is not dialled at the shortest distance for ever.

    Args:
        initial: seconds; two dials are never closer than this.
        maximum: seconds; the bound of the random wait.
        uniform: (low, high) -> a random number between them.
    """

    def __init__(self, initial: float, maximum: float, uniform: Callable[[float, float], float]) -> None:
        self._initial = initial
        self._maximum = maximum
        self._uniform = uniform
        self._failures = 0
        self._dialled_at: float | None = None
        self._stands_since: float | None = None

    def update(self, initial: float, maximum: float) -> None:
        """Let other values hold from the next wait on."""
        self._initial = initial
        self._maximum = maximum

    def dialled(self, now: float) -> None:
        """A dial begins."""
        self._dialled_at = now

    def connected(self, now: float) -> None:
        """A session stands: its loss is followed by a dial at once, when it stood for long enough."""
        self._stands_since = now

    def forget(self) -> None:
        """Somebody wants a dial now: what failed before counts no more."""
        self._failures = 0

    def spacing(self, now: float) -> float:
        """Seconds that the next dial must wait whoever asks for it."""
        return 0.0 if self._dialled_at is None else max(0.0, self._dialled_at + self._initial - now)

    def _bound(self, failures: int) -> float:
        return max(self._initial, min(self._maximum, self._initial * 2.0 ** min(max(0, failures - 1), 60)))

    def delay(self, now: float, verdict: Verdict, *, kept: float | None = None) -> float:
        """Seconds until the next dial, after a dial or a connection that ended with this verdict.

        Args:
            kept: seconds for which a session is still kept; None: none is. No wait of our own choice is longer than
                a third of it: a long one after a short outage would sleep through what is left of the grace.
        """
        since, self._stands_since = self._stands_since, None
        if since is not None and now - since >= self._bound(self._failures):
            self._failures = 0
        spacing = self.spacing(now)
        if isinstance(verdict, Failed):  # spread a little, so that those who were refused together do not keep in step
            self._failures += 1
            after = self._maximum if verdict.after is None else verdict.after
            return max(spacing, self._uniform(after, after * 1.1))
        if verdict.after is not None:  # spread, so that those who were sent away together come back apart
            self._failures += 1
            return max(spacing, self._uniform(verdict.after, verdict.after * 1.5 + self._initial))
        self._failures += 2 if verdict.fault and not self._failures else 1
        if self._failures == 1:
            return spacing
        bound = self._bound(self._failures)
        if kept is not None and kept > 0:
            bound = max(self._initial, min(bound, kept / 3))
        return max(spacing, self._uniform(self._initial, bound))
