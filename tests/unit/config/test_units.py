import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.config.units import (
    MAX_SECONDS,
    MAX_SIZE,
    Duration,
    Size,
    Whole,
    format_duration,
    format_size,
    parse_duration,
    parse_flag,
    parse_mode,
    parse_size,
    parse_text,
    shown,
)

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers()), st.just({})
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("2m", 120),
        ("1h", 3600),
        ("90d", 90 * 86400),
        ("0", 0),
        ("0.5s", 0.5),
        ("1.5 h", 5400),
        ("45", 45),
        (45, 45),
        (0.25, 0.25),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "60:00",
        "-1s",
        "-0.1",
        "1e3",
        "1_000",
        "٣s",
        "30S",
        "1h30m",
        "nan",
        ".inf",
        "5 minutes",
        "99999d",
        math.nan,
        math.inf,
        -1,
        -0.5,
        True,
        None,
        [],
        {},
        b"3s",
        10**400,
    ],
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256KiB", 256 << 10),
        ("4MiB", 4 << 20),
        ("4 mib", 4 << 20),
        ("10KB", 10_000),
        ("1.5MB", 1_500_000),
        ("0.5KiB", 512),
        ("17", 17),
        ("17B", 17),
        (17, 17),
        ("0", 0),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "1.5", "-1", "4Mi", "4M", "1e6", "0x10", math.nan, True, None, "2000TiB"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_size(text)


@given(st.integers(0, 3650 * 86400 * 1000))
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-15)


@given(st.integers(0, MAX_SIZE))
def test_a_size_reads_back_as_it_was_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(anything)
def test_garbage_gives_a_number_in_bounds_or_one_kind_of_error(value: object) -> None:
    readers = (
        (parse_duration, 0.0, MAX_SECONDS),
        (parse_size, 0, MAX_SIZE),
        (Duration(1, 9), 1, 9),
        (Size(1, 9, off=True), 0, 9),
        (Whole(3, 9), 3, 9),
        (parse_mode, 0, 0o777),
        (parse_flag, False, True),
    )
    for reader, low, high in readers:
        words = ""
        try:
            assert low <= reader(value) <= high
        except ValueError as error:
            words = str(error)
        assert "\n" not in words
        assert len(words) < 300


@given(anything)
def test_what_is_shown_of_a_value_is_one_short_line(value: object) -> None:
    assert len(shown(value)) < 80
    assert shown(value).isprintable()


def test_bounds_are_told() -> None:
    with pytest.raises(ValueError, match="at least 10ms, or 0 for off"):
        Duration(low=0.01, off=True)("1ms")
    assert Duration(low=0.01, off=True)("0") == 0
    with pytest.raises(ValueError, match="at most 1d"):
        Duration(high=86400)("25h")
    with pytest.raises(ValueError, match="at least 16KiB"):
        Size(low=16 << 10)("16383")
    with pytest.raises(ValueError, match="at most 1KiB"):
        Size(high=1024)("1025")
    with pytest.raises(ValueError, match="from 1 to 5"):
        Whole(1, 5)("6")


@pytest.mark.parametrize("text", ["0660", "660", "0o660", 0o660])
def test_a_mode_is_octal_however_it_is_written(text: object) -> None:
    assert parse_mode(text) == 0o660


@pytest.mark.parametrize("text", ["0999", "rw-rw----", "77777", "", None, True, -1, 0o1777])
def test_what_is_no_mode(text: object) -> None:
    with pytest.raises(ValueError, match="octal mode"):
        parse_mode(text)


def test_flags_take_every_word_of_yaml() -> None:
    assert [parse_flag(word) for word in ("true", "Yes", "ON", True)] == [True] * 4
    assert [parse_flag(word) for word in ("false", "no", "Off", False)] == [False] * 4


@pytest.mark.parametrize("value", ["", "  ", "a\nb", "a\x1bb", None, 3, []])
def test_what_is_no_text(value: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_text(value)
