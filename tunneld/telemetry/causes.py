"""Why a service fails, in one word of a few: a label may not hold the sentence that people read.

The sentence is all that the server is told of what an agent found, so the word is taken from it.
"""

from __future__ import annotations

import re

__all__ = ["CAUSES", "cause_of"]

_WORDS = (
    ("refused", "connection refused"),
    ("timeout", "no answer within|timed out"),
    ("closed", "connection reset|closed its connection"),
    ("socket", "socket does not exist"),
    ("name", "does not resolve"),
    ("certificate", "certificate"),
    ("tls", "TLS"),
    ("status", "was answered [0-9]"),
    ("answer", "answer cannot be used"),
    ("route", "no route"),
    ("probe", "probe did not come back"),
)
CAUSES = (*(cause for cause, _ in _WORDS), "other")
"""Every word."""
_FOUND = re.compile("|".join(f"(?P<{cause}>{words})" for cause, words in _WORDS))


def cause_of(fault: str) -> str:
    """The word for a fault (`agent/probe.py`, `agent/origin.py`, `server/probing.py`)."""
    found = _FOUND.search(fault)
    return "other" if found is None else str(found.lastgroup)
