"""The trace that a request belongs to, as W3C Trace Context puts it into ``traceparent`` and ``tracestate``.

What is said of it is believed as far as its form goes: a visitor may name any trace, which costs us nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["SAMPLED", "TraceParent", "begun", "continued", "read"]

SAMPLED = 0x01
_RANDOM = 0x02  # the trace's id is random in its last 56 bits
_KNOWN = SAMPLED | _RANDOM
_VALUE = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
).fullmatch
_MOST = 512
"""Characters of a ``traceparent`` that is looked at; one of version 00 has 55."""

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A span's place in its trace.

    Attributes:
        trace: id of the trace, never 0.
        span: id of the span, never 0.
        flags: of the trace; those that this version of the standard knows.
    """

    trace: int
    span: int
    flags: int

    @property
    def sampled(self) -> bool:
        """Its spans are recorded."""
        return bool(self.flags & SAMPLED)

    def __str__(self) -> str:
        return f"00-{self.trace:032x}-{self.span:016x}-{self.flags:02x}"

    def child(self) -> TraceParent:
        """A new span below this one."""
        return TraceParent(self.trace, _id(8), self.flags)


def _id(octets: int) -> int:
    """A random number that is not 0."""
    return int.from_bytes(os.urandom(octets), "big") or 1


def begun(*, sampled: bool) -> TraceParent:
    """The first span of a new trace."""
    return TraceParent(_id(16), _id(8), (SAMPLED if sampled else 0) | _RANDOM)


def read(headers: Iterable[tuple[str, str]]) -> tuple[TraceParent | None, str]:
    """What a request says of its trace: the span that it comes from, and ``tracestate``.

    Returns:
        (None, ""): nothing, or not by the rules: then ``tracestate`` counts for nothing either.
    """
    parents: list[str] = []
    states: list[str] = []
    for name, value in headers:
        if len(name) == 11 and name.lower() == "traceparent":
            parents.append(value)
        elif len(name) == 10 and name.lower() == "tracestate":
            states.append(value)
    if len(parents) != 1 or len(parents[0]) > _MOST:
        return None, ""
    match = _VALUE(parents[0].strip(" \t"))
    if match is None or (match[1] == "00" and match[5] is not None):
        return None, ""
    return TraceParent(int(match[2], 16), int(match[3], 16), int(match[4], 16) & _KNOWN), ",".join(states)


def continued(headers: Iterable[tuple[str, str]], span: TraceParent, state: str) -> Headers:
    """The headers with `span` as what the request comes from."""
    out = [pair for pair in headers if len(pair[0]) not in (10, 11) or pair[0].lower() not in _NAMES]
    out.append(("traceparent", str(span)))
    if state:
        out.append(("tracestate", state))
    return out


_NAMES = frozenset(("traceparent", "tracestate"))
