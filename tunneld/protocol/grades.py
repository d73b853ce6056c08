"""The grades of a connection, and what each allows at most."""

from __future__ import annotations

from typing import Literal, Protocol

__all__ = ["CAUSES", "GRADES", "NOT_CONNECTED", "Bounds", "Grade", "Thresholds", "cause_of", "grade_of"]

Grade = Literal["excellent", "good", "fair", "poor", "down"]
GRADES: tuple[Grade, ...] = ("excellent", "good", "fair", "poor", "down")
CAUSES = ("rtt", "loss", "jitter", "connection")
"""What a grade can be no better for: the figure that is over its bound, or that no connection stands."""
NOT_CONNECTED = "not connected"


class Bounds(Protocol):
    """What a grade allows at most.

    Attributes:
        rtt: seconds, of the 95th percentile.
        jitter: seconds.
        loss: a share, 0 to 1.
    """

    @property
    def rtt(self) -> float: ...  # noqa: D102
    @property
    def jitter(self) -> float: ...  # noqa: D102
    @property
    def loss(self) -> float: ...  # noqa: D102


class Thresholds(Protocol):
    """Bounds of each grade, the best first; what is over the last is ``poor``. The configuration's `quality`.

    Attributes:
        window: seconds that a ping counts for.
    """

    @property
    def excellent(self) -> Bounds: ...  # noqa: D102
    @property
    def good(self) -> Bounds: ...  # noqa: D102
    @property
    def fair(self) -> Bounds: ...  # noqa: D102
    @property
    def window(self) -> float: ...  # noqa: D102


def grade_of(limits: Thresholds, p95: float | None, jitter: float | None, loss: float | None) -> tuple[Grade, str]:
    """The grade of a connection that stands, and why it is no better, in words; empty for ``excellent``.

    Args:
        limits: that hold.
        p95: of round trips, seconds; None here and below: not known yet, which is within every bound.
        jitter: seconds.
        loss: a share.
    """
    reason = ""
    for grade, bounds in zip(GRADES, (limits.excellent, limits.good, limits.fair), strict=False):
        found = _over(bounds, p95, jitter, loss)
        if not found:
            return grade, reason
        reason = found  # why it is not this grade: what stands when the next one holds
    return "poor", reason


def cause_of(reason: str) -> str | None:
    """Which of `CAUSES` a reason in words tells of; None for an empty one."""
    if not reason:
        return None
    return next((cause for cause in CAUSES if reason.startswith((cause, f"p95 {cause}"))), "connection")


def _over(bounds: Bounds, p95: float | None, jitter: float | None, loss: float | None) -> str:
    """What is over these bounds, in words; empty when nothing is."""
    if p95 is not None and p95 > bounds.rtt:
        return f"p95 rtt {_ms(p95)} > {_ms(bounds.rtt)}"
    if loss is not None and loss > bounds.loss:
        return f"loss {loss:.1%} > {bounds.loss:.1%}"
    if jitter is not None and jitter > bounds.jitter:
        return f"jitter {_ms(jitter)} > {_ms(bounds.jitter)}"
    return ""


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
