import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelctl.render import Column, Screen, clean, duration, elide, parse_duration, size, table, to_json, width_of
from tunnelctl.tunnels import _heard, _outages
from tunneld.errors import UsageError

words = st.text(st.characters(blacklist_categories=("Cs",)), max_size=40)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1, "0.0s"),
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m"),
        (61, "1m 1s"),
        (3599, "59m 59s"),
        (3600, "1h"),
        (3725, "1h 2m"),
        (86399, "23h 59m"),
        (90_000, "1d 1h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (102_400, "100 KiB"),
        (1_048_575, "1.0 MiB"),
        (5 * 2**40, "5.0 TiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5", 1.5), ("500ms", 0.5), ("30s", 30), ("2m", 120), ("1h30m", 5400), ("1d", 86400)],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 s", "5x", "nan", "1e3", "5s!", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_width_counts_wide_and_combining_characters() -> None:
    assert [width_of(text) for text in ("abc", "漢字", "e\u0301", "")] == [3, 4, 1, 0]


@given(words, st.integers(0, 50))
def test_elided_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    short = elide(text, width)
    assert width_of(short) <= width
    if width_of(text) <= width:
        assert short == text
    elif width > 1:
        head, _, tail = short.partition("…")
        assert text.startswith(head)
        assert text.endswith(tail)


@given(st.text(st.characters(), max_size=40))
def test_clean_text_is_printable(text: str) -> None:
    assert clean(text).isprintable()
    if text.isprintable():
        assert clean(text) == text


@given(st.lists(st.tuples(words, words, st.integers(0, 10**9)), max_size=8), st.integers(1, 100))
def test_a_table_is_never_wider_than_its_screen(rows: list[tuple[str, str, int]], width: int) -> None:
    columns = (Column("NAME"), Column("PATH", least=6), Column("COUNT", right=True, drop=1))
    lines = table(columns, rows, Screen(width, colour=False))
    assert len(lines) == len(rows) + 1
    if width >= 4:  # two columns and the gap between
        assert all(width_of(line) <= width for line in lines)


def test_columns_line_up_and_go_by_their_order() -> None:
    columns = (Column("ID"), Column("PATH", least=6), Column("N", right=True, drop=1))
    rows = [("a", "/a/long/path/of/漢字", 1), ("b", "/", 22)]
    assert table(columns, rows, Screen(None, colour=False)) == [
        "ID  PATH                   N",
        "a   /a/long/path/of/漢字   1",
        "b   /                     22",
    ]
    assert table(columns, rows, Screen(16, colour=False)) == [
        "ID  PATH       N",
        "a   /a/l…字    1",
        "b   /         22",
    ]
    assert table(columns, rows, Screen(11, colour=False)) == ["ID  PATH", "a   /a/…字", "b   /"]


def test_json_holds_nothing_that_a_terminal_obeys() -> None:
    assert to_json({"ü": "\x1b\x9b\x7f"}) == '{\n  "ü": "\\u001b\\u009b\\u007f"\n}'


def test_what_is_not_known_of_a_tunnel_is_not_shown_as_a_dash() -> None:
    assert _heard({"last_pong_s": 3, "last_byte_s": 1}) == "the last answer 3.0s ago, the last byte 1.0s ago"
    assert _heard({"last_pong_s": 3, "last_byte_s": None}) == "the last answer 3.0s ago"
    assert _heard({"last_pong_s": None}) == "no answer yet"


def test_one_stream_is_one_stream() -> None:
    outages = {"count": 1, "seconds": 2, "streams_lost": 1, "last": None}
    assert _outages(outages) == "1, 2.0s in sum, 1 stream lost"
    assert _outages({**outages, "streams_lost": 2}).endswith("2 streams lost")
