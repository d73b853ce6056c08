"""The targets of `make fuzz` on their seeds, on what earlier runs kept, and on what hypothesis makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS, v2

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_corpus(name: str) -> None:
    inputs = [*SEEDS[name](), *(path.read_bytes() for path in sorted((CORPUS / name).iterdir()))]
    assert len(inputs) > 20
    for data in inputs:
        TARGETS[name](data)


_TEXT = st.sampled_from(["", "a", "é", "\ud800", "a\r\nb: c", "\0", "x" * 3000, "set-cookie", "content-length", "12"])
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT, lambda inner: st.lists(inner, max_size=3)
)
_FIELDS = st.fixed_dictionaries(
    {"type": st.sampled_from(["response", "stream_chunk", "stream_end", "ping", "pong", "register_api_key", "x"])},
    optional={
        "request_id": st.sampled_from(["r1", "r2", "r3", "r4", "r5", "r9", ""]) | _ANYTHING,
        "status_code": st.sampled_from([200, 204, 304, 502, 99, 101, 600]) | _ANYTHING,
        "headers": st.dictionaries(_TEXT, _TEXT | _ANYTHING, max_size=3) | _ANYTHING,
        "body": _TEXT | _ANYTHING,
        "timestamp": _ANYTHING,
        "api_key": _ANYTHING,
    },
)
_MESSAGE = _FIELDS.map(lambda fields: json.dumps(fields).encode()) | st.binary(max_size=60)


@given(st.binary(min_size=1, max_size=1), st.lists(_MESSAGE, max_size=12))
@settings(max_examples=100, deadline=None)
def test_any_messages_of_the_older_dialect(step: bytes, messages: list[bytes]) -> None:
    v2(step + b"\x1e".join(messages))
