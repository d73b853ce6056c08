import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.telemetry.tracecontext import TraceParent, begun, continued, read

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_what_a_visitor_says_is_read() -> None:
    parent, state = read([("Host", "x"), ("Traceparent", GOOD), ("TraceState", "a=1"), ("tracestate", "b=2")])
    assert parent == TraceParent(int(TRACE, 16), int(SPAN, 16), 1)
    assert parent is not None
    assert parent.sampled
    assert str(parent) == GOOD
    assert state == "a=1,b=2"


@pytest.mark.parametrize(
    "value",
    [
        "",
        GOOD.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",  # version 00 has nothing behind its flags
        f"01-{TRACE}-{SPAN}-01more",
        f"00-{TRACE}-{SPAN}-0g",
        f"٠٠-{TRACE}-{SPAN}-01",
        GOOD + "\n",
        f"01-{TRACE}-{SPAN}-01-{'x' * 600}",
    ],
)
def test_what_is_not_by_the_rules_counts_for_nothing(value: str) -> None:
    assert read([("traceparent", value), ("tracestate", "a=1")]) == (None, "")


def test_two_parents_are_none() -> None:
    assert read([("traceparent", GOOD), ("traceparent", GOOD)]) == (None, "")


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    parent, _ = read([("traceparent", f"cc-{TRACE}-{SPAN}-ff-what-comes")])
    assert str(parent) == f"00-{TRACE}-{SPAN}-03"


def test_a_span_is_put_where_the_visitors_stood() -> None:
    span = TraceParent(1, 2, 1)
    headers = [("A", "b"), ("TraceParent", GOOD), ("tracestate", "a=1"), ("content-id", "c")]
    assert continued(headers, span, "a=1") == [
        ("A", "b"),
        ("content-id", "c"),
        ("traceparent", "00-00000000000000000000000000000001-0000000000000002-01"),
        ("tracestate", "a=1"),
    ]
    assert continued(headers, span, "")[-1][0] == "traceparent"


def test_children_and_new_traces() -> None:
    first = begun(sampled=True)
    child = first.child()
    assert (child.trace, child.flags) == (first.trace, first.flags)
    assert child.span != first.span
    assert not begun(sampled=False).sampled


@given(st.text())
def test_any_value_is_read_or_refused(value: str) -> None:
    parent, _ = read([("traceparent", value)])
    if parent is not None:
        assert read([("traceparent", str(parent))])[0] == parent
