"""What is made of pip-audit's answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.audit import verdict

GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        ([GOOD, SKIPPED], 0, "no known vulnerability in 1 of 2"),
        ([SKIPPED], 0, "has no such data"),
        ([GOOD, BAD], 1, "b 2: PYSEC-1, mended in 3"),
    ],
)
def test_a_known_vulnerability_fails_and_missing_data_is_said(found: list[Any], status: int, words: str) -> None:
    told = verdict(json.dumps({"dependencies": found}))
    assert told[0] == status
    assert words in told[1]


@pytest.mark.parametrize("text", ["", "{", "[]", "Traceback"])
def test_without_an_answer(text: str) -> None:
    assert verdict(text) == (0, "pip-audit: its data cannot be had here; nothing was audited")
