"""No regular expression of ours takes exponential time, whatever it is given: it would stop the loop and the daemon."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterator
from time import thread_time
from typing import Any

import tunnelctl
import tunneld

_OCTETS = "aA0-._~/:;,=\"'\\ \t\r\n%?&#@[]()+*"
_LEADS = ("", "/", '"', "a=", 'a="', "a: ", "http://", "[")
_TRAILS = ("\0", '"', "!")
_TIMES = 11  # of two octets each; steps that double with each octet are 4 million by then
_BOUND = 0.05  # seconds


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """(where, pattern) of those that stand in our modules, and of those whose methods do."""
    for package in (tunneld, tunnelctl):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith(("__main__", ".migrations.env")):  # they do what they do when they are imported
                continue
            for name, value in vars(importlib.import_module(found.name)).items():
                of = getattr(value, "__self__", value)
                if isinstance(of, re.Pattern):
                    yield f"{found.name}.{name}", of


def slowest(pattern: re.Pattern[Any]) -> tuple[float, str]:
    """Seconds that the worst of many texts took, and that text."""
    worst = (0.0, "")
    for first, second in itertools.product(_OCTETS, repeat=2):
        for lead, trail in itertools.product(_LEADS, _TRAILS):
            text = lead + (first + second) * _TIMES + trail
            given = text if isinstance(pattern.pattern, str) else text.encode()
            begun = thread_time()
            pattern.fullmatch(given)
            pattern.search(given)
            worst = max(worst, (thread_time() - begun, text))
            if worst[0] > _BOUND:
                return worst
    return worst


def test_no_pattern_takes_exponential_time() -> None:
    found = dict(patterns())
    assert len(found) > 60
    slow = {where: worst for where, pattern in found.items() if (worst := slowest(pattern))[0] > _BOUND}
    assert not slow, "seconds, and for which text"


def test_this_would_find_one() -> None:
    took, text = slowest(re.compile(r"/(?:[0-9A-Za-z._~%-]+/?)*"))
    assert took > _BOUND, text
