"""DNS labels out of free text: valid, stable, and apart from each other."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tunneld.protocol.labels import MAX_NAME, clean_name, labels

LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?").fullmatch


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("My Server", "my-server"),
        ("my-server", "my-server"),
        ("  a  B ", "a-b"),
        ("Größe (neu)!", "grosse-neu"),
        ("ÉCOLE", "ecole"),
        ("a" * 100, "a" * 63),
        ("x" * 62 + " y", "x" * 62),
        ("10.0.0.1:80", "10-0-0-1-80"),
        ("--a--", "a"),
    ],
)
def test_the_first_label(name: str, label: str) -> None:
    cleaned = clean_name(name)
    assert cleaned is not None
    assert next(labels(cleaned)) == label


def test_a_name_without_letters_has_its_hash() -> None:
    assert re.fullmatch(r"tunnel-[0-9a-f]{8}", next(labels("日本")))
    assert next(labels("日本")) != next(labels("中国"))


def test_names_that_share_a_label_have_others() -> None:
    first, second = list(labels("My Server")), list(labels("my server"))
    assert first[0] == second[0] == "my-server"
    assert re.fullmatch(r"my-server-[0-9a-f]{8}", first[1])
    assert not set(first[1:]) & set(second[1:])
    assert first == list(labels("My Server"))


@pytest.mark.parametrize("text", ["", " ", "\n\t", "a\x00b", "a\x1bb", "x" * (MAX_NAME + 1), " " * 5000, "a\u200bb"])
def test_what_is_no_name(text: str) -> None:
    assert clean_name(text) is None


def test_one_spelling_for_each_name() -> None:
    assert clean_name(" a \t b\n") == "a b"
    assert clean_name("e\u0301") == clean_name("\u00e9")


@given(st.text(min_size=1, max_size=300))
def test_every_label_is_one(text: str) -> None:
    name = clean_name(text)
    if name is not None:
        found = list(labels(name))
        assert 3 <= len(found) == len(set(found)) <= 4
        assert all(LABEL(label) for label in found)
        assert clean_name(name) == name
