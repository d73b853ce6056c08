"""The Date of an answer (RFC 9110, 5.6.7 and 6.6.1)."""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from time import time

__all__ = ["date"]


def date() -> str:
    """The present second, as ``Date`` says it."""
    return _of(int(time()))


@lru_cache(maxsize=2)  # made once a second, not for each answer
def _of(second: int) -> str:
    return formatdate(second, usegmt=True)
